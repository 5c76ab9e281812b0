//go:build services

package guard_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// TestRotateRootOnServices: two servers with connections of their own to a real PostgreSQL and a real etcd.
func TestRotateRootOnServices(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		url := testenv.Postgres(t).URL
		testRotateOn(t, func() (store.Store, error) { return postgres.Open(t.Context(), url, postgres.Options{}) })
	})
	t.Run("etcd", func(t *testing.T) {
		config, err := etcd.ParseURL(etcd.Scheme + testenv.Etcd(t, "3.7", 1).Hosts() + "/rotate")
		if err != nil {
			t.Fatal(err)
		}
		testRotateOn(t, func() (store.Store, error) { return etcd.Open(t.Context(), config) })
	})
}

func testRotateOn(t *testing.T, connect func() (store.Store, error)) {
	open := func() store.Store {
		s, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	rotateWhileServing(t, newWorld(t, open()), open())
}
