package guard_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// TestBefore: a store that this process had open opens again without a sealer, as long as the root key is the same and the store is the one that it was.
func TestBefore(t *testing.T) {
	w := newWorld(t, mem.New())
	g, stop := w.open()
	if _, err := w.permit(g).Commit(t.Context(), nil, []guard.Write{{Path: "a/b", Value: []byte("c")}}, nil); err != nil {
		t.Fatal(err)
	}
	stop()
	c := w.config()
	c.Sealers = nil
	if _, err := guard.Open(t.Context(), c); err == nil {
		t.Fatal("it opens with nothing")
	}
	c.Before = g
	again, err := guard.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := again.Get(t.Context(), "a/b"); err != nil || string(r.Value) != "c" {
		t.Errorf("%q, %v", r.Value, err)
	}
	other := newWorld(t, mem.New())
	c.Store = other.store
	if _, err := guard.Open(t.Context(), c); err == nil {
		t.Error("the store of another cluster opens")
	}

	turning, stop := w.open()
	if _, err := turning.Turn(t.Context(), w.permit(turning), false); err != nil {
		t.Fatal(err)
	}
	stop()
	c.Store = w.store
	if _, err := guard.Open(t.Context(), c); fault.CodeOf(err) == "" {
		t.Error("another root key opens")
	}
}
