package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
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
			return mustOpen(t, path, bolt.Options{History: history, Behind: history})
		},
		Reopen: func(t *testing.T, history int) store.Store {
			return mustOpen(t, path, bolt.Options{History: history, Behind: history})
		},
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

// TestHistoryWaitsForWatches: a watch that is under way loses nothing, however short the history is; when it has read, or ended, commits are forgotten
// bit by bit, and the store opens again.
func TestHistoryWaitsForWatches(t *testing.T) {
	const history, commits = 10, 500
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, bolt.Options{History: history})
	first := mustCommit(t, s, put("k", "0"))
	next, stop := iter.Pull2(s.Watch(t.Context(), "", first-1))
	defer stop()
	see := func(want store.Rev) {
		t.Helper()
		events, err, _ := next()
		if err != nil || len(events) != 1 || events[0].Rev != want {
			t.Fatalf("%+v, %v instead of revision %d", events, err, want)
		}
	}
	see(first)
	for i := range commits {
		mustCommit(t, s, put("k", fmt.Sprint(i+1)))
	}
	begin := func(after store.Rev) error {
		for _, err := range s.Watch(t.Context(), "", after) {
			return err
		}
		return nil
	}
	for i := range store.Rev(commits) {
		see(first + 1 + i)
		if i == 0 {
			if err := begin(first + 1); err != nil {
				t.Fatalf("what a watch has not read is gone: %v", err)
			}
		}
	}
	stop()
	for range commits / 64 * 2 {
		mustCommit(t, s, put("k", "later"))
	}
	rev, _ := s.List(t.Context(), "")
	if err := begin(rev - history - 1); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("older than the history: %v", err)
	}
	if err := begin(rev - history); err != nil {
		t.Errorf("the history: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, bolt.Options{})
}
