//go:build !services

package server_test

// The fast tests start no process of their own, and build nothing.
func instead() bool { return false }
func sweep()        {}
