package bolt_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
	"github.com/rotorkms/rotor/internal/store/storetest"
)

func mustOpen(t testing.TB, path string, o bolt.Options) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close %s: %v", path, err)
		}
	})
	return s
}

var ctx = context.Background()

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func mustCommit(t testing.TB, s store.Store, ops ...store.Op) store.Rev {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestStore(t *testing.T) {
	path := ""
	storetest.Run(t, storetest.Engine{
		Open: func(t *testing.T, history int) store.Store {
			path = filepath.Join(t.TempDir(), "dir", "store.db")
			return mustOpen(t, path, bolt.Options{History: history})
		},
		Reopen: func(t *testing.T, history int) store.Store { return mustOpen(t, path, bolt.Options{History: history}) },
	})
}

func TestOneOpener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, bolt.Options{})
	mustCommit(t, s, put("k", "v"))
	if _, err := bolt.Open(path, bolt.Options{}); !errors.Is(err, store.ErrLocked) {
		t.Fatalf("second opener: %v", err)
	}
	mustCommit(t, s, put("k", "w")) // the first is not disturbed
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path, bolt.Options{})
	if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != "w" {
		t.Fatalf("%+v, %v", r, err)
	}
}
