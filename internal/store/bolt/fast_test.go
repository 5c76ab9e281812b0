//go:build !slow

package bolt_test

// slowChildren are the children that only slow tests start.
func slowChildren() map[string]func(path string) error { return nil }
