// Package testenv starts real servers for tests: PostgreSQL and etcd as processes of their own on free ports of the loopback, with
// their data in the test's directory. Only tests import it, those with the build tag services; scripts/services installs what it starts.
package testenv
