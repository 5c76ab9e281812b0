package bolt

import (
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/rotorkms/rotor/internal/store"
)

// TestReadsWaitForTheSync holds a transaction at the moment when it is in the memory map and its sync has not returned.
func TestReadsWaitForTheSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(filepath.Join(t.TempDir(), "store.db"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "k", Value: []byte("v")}}); err != nil {
			t.Fatal(err)
		}
		id := s.durable.Load()
		s.durable.Store(id - 1)
		done := 0
		read := func() {
			if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != "v" {
				t.Errorf("%+v, %v", r, err)
			}
			done++
		}
		miss := func() {
			_, _ = s.Get(t.Context(), "absent")
			done++
		}
		list := func() {
			s.List(t.Context(), "")
			done++
		}
		for _, f := range []func(){read, miss, list} {
			done = 0
			s.durable.Store(id - 1)
			go f()
			synctest.Wait()
			if done != 0 {
				t.Error("a read showed what is not durable")
			}
			s.durable.Store(id)
			s.mu.Lock()
			s.wake()
			s.mu.Unlock()
			synctest.Wait()
			if done != 1 {
				t.Error("a read went on waiting")
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
