package guard_test

import (
	"context"
	"iter"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// exchanged is a store that another can be put in the place of while it is in use. What watches it goes on to watch the first.
type exchanged struct {
	store.Store
	now atomic.Pointer[store.Store]
}

func exchangeable(s store.Store) *exchanged {
	x := &exchanged{Store: s}
	x.now.Store(&s)
	return x
}

func (x *exchanged) Get(ctx context.Context, key string) (store.Record, error) {
	return (*x.now.Load()).Get(ctx, key)
}

func (x *exchanged) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	return (*x.now.Load()).List(ctx, prefix)
}

// TestAServerIsAWitness: a store that goes back, or becomes another, under a running server.
func TestAServerIsAWitness(t *testing.T) {
	for name, more := range map[string]int{"older": 0, "another of the same size": 1, "another that is longer": 5} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mem.New())
			g, stop := w.open()
			w.put(g, "x/a", "1")
			w.entries(g)
			stop()
			var other store.Store = copyOf(t, w.store)
			x := exchangeable(w.store)
			w.store = x
			g, _ = w.open()
			w.put(g, "x/a", "2")
			w.entries(g)
			if d, err := g.CheckStore(t.Context()); err != nil || d.Kind != "" {
				t.Fatalf("its own: %v, %v", d, err)
			}
			w.store = other
			h, end := w.open()
			for range more {
				w.put(h, "x/a", "3")
			}
			w.entries(h)
			end()
			x.now.Store(&other)
			if d, err := g.CheckStore(t.Context()); err != nil || d.Kind != "rolled back" {
				t.Fatalf("%v, %v", d, err)
			}
			<-g.Suspended()
			w.refusesAll(g, "rolled back")
		})
	}
}

// TestAWitnessOfOneServerIsHeardByAll: and by the next start, until a recovery has begun another incarnation.
func TestAWitnessOfOneServerIsHeardByAll(t *testing.T) {
	w := newWorld(t, mem.New())
	ahead := w.setBack()
	g, stop := w.open()
	h, halt := w.open()
	if d, err := g.Witness(t.Context(), ahead); err != nil || d.Kind != "rolled back" {
		t.Fatalf("%v, %v", d, err)
	}
	<-h.Suspended()
	w.refusesAll(h, "rolled back")
	stop()
	halt()
	g, stop = w.inRecovery()
	if got := kinds(g); len(got) != 1 || got[0] != "rolled back" {
		t.Fatalf("the next start: %v", got)
	}
	stop()
	w.recovers(nil)
	if _, err := w.store.Get(t.Context(), "restored/witness"); err == nil {
		t.Error("the statement is left after the recovery")
	}
}

// TestWhatSomebodyPutsInThePlaceOfAWitness: what is not signed by the cluster says nothing.
func TestWhatSomebodyPutsInThePlaceOfAWitness(t *testing.T) {
	w := newWorld(t, mem.New())
	w.tamper(store.Op{Key: "restored/witness", Value: []byte(`{"body":"e30=","signature":"AA=="}`)})
	g, _ := w.open()
	if got := g.Detected(); len(got) != 0 {
		t.Errorf("detected %v", got)
	}
}
