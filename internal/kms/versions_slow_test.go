//go:build slow

package kms_test

import "testing"

func TestTenThousandVersions(t *testing.T) { lifeOfVersions(t, 10_000) }
