// Package testenv starts real servers for tests: PostgreSQL, etcd and a transit engine as processes of their own on free ports of the loopback, with
// their data in the test's directory. Only tests import it, for processes those with the build tag services; scripts/services installs what it starts.
package testenv
