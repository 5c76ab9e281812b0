package mem_test

import (
	"errors"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Engine{Open: func(_ *testing.T, history int) store.Store { return mem.NewHistory(history) }})
}

func TestDefaultHistory(t *testing.T) {
	s := mem.New()
	for range mem.DefaultHistory + 1 {
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "k", Delete: true}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range s.Watch(t.Context(), "", 0) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watch from before the history: %v", err)
		}
	}
}
