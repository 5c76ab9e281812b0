//go:build services

package server_test

import "testing"

// TestNamespaceOfTwoServers is TestNamespaceAmongServers on PostgreSQL.
func TestNamespaceOfTwoServers(t *testing.T) {
	t.Parallel()
	endsAmong(t, twoVaults(t), 6)
}
