package guard_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/store"
)

// TestServersOnOneStore: three guards on one store make and delete the same records at once. Every counter is given out once, so that the
// log can be loaded again; each record is made once for each time that it was absent; a guard reads what another has just written.
func TestServersOnOneStore(t *testing.T) {
	onEngines(t, func(t *testing.T, w *world) {
		const servers, workers, rounds = 3, 3, 40
		var guards []*guard.Guard
		var stops []func()
		for range servers {
			g, stop := w.open()
			guards, stops = append(guards, g), append(stops, stop)
		}
		var there [4]atomic.Int64 // made less deleted
		var all sync.WaitGroup
		for s, g := range guards {
			for n := range workers {
				all.Go(func() {
					for range rounds {
						at := rand.IntN(len(there))
						turn(t, w, g, fmt.Sprintf("a/%d", at), fmt.Sprint(s, n), &there[at])
					}
				})
			}
		}
		all.Wait()
		for _, g := range guards {
			if got := len(w.entries(g)); got < servers*workers*rounds/4 {
				t.Errorf("a server has %d entries", got)
			}
		}
		for _, stop := range stops {
			stop()
		}
		g, _ := w.open()
		records, _, err := g.List(t.Context(), "a/")
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]int64{}
		for _, r := range records {
			have[r.Path] = 1
		}
		for i := range there {
			if path := fmt.Sprintf("a/%d", i); there[i].Load() != have[path] {
				t.Errorf("%s was made %d times more than deleted, and is there %d times", path, there[i].Load(), have[path])
			}
		}
	})
}

// turn makes a record that is absent, or deletes or changes one that is there.
func turn(t *testing.T, w *world, g *guard.Guard, path, value string, there *atomic.Int64) {
	r, err := g.Get(t.Context(), path)
	write := guard.Write{Path: path, Value: []byte(value), Delete: err == nil && rand.IntN(2) == 0}
	if err != nil && fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
		return
	}
	_, failed := w.permit(g).Commit(t.Context(), []guard.Cond{{Path: path, Rev: r.Rev}}, []guard.Write{write}, nil)
	switch {
	case fault.CodeOf(failed) == fault.Conflict:
	case failed != nil:
		t.Error(failed)
	case write.Delete:
		there.Add(-1)
	case err != nil:
		there.Add(1)
	}
}

// meddling is a store before whose next commit of a/same something else happens.
type meddling struct {
	store.Store
	before atomic.Pointer[func()]
}

func (m *meddling) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if f := m.before.Load(); f != nil && ops[0].Key == "a/same" && m.before.CompareAndSwap(f, nil) {
		(*f)()
	}
	return m.Store.Commit(ctx, conds, ops)
}

// TestMadeAndDeletedMeanwhile: a record that another server makes and deletes between the look and the commit does not make the commit fail,
// nor give its counter out twice: the log would be broken for good.
func TestMadeAndDeletedMeanwhile(t *testing.T) {
	w := newWorld(t, newMem())
	two, _ := w.open()
	m := &meddling{Store: w.store}
	w.store = m
	one, _ := w.open()
	path, absent := "a/same", []guard.Cond{{Path: "a/same"}}
	commit := func(g *guard.Guard, conds []guard.Cond, write guard.Write) (store.Rev, error) {
		return w.permit(g).Commit(context.Background(), conds, []guard.Write{write}, nil)
	}
	for _, conds := range [][]guard.Cond{absent, nil} { // conditioned by the caller, and by what the log knows
		meddle := func() {
			rev, err := commit(two, absent, guard.Write{Path: path, Value: []byte("other")})
			if err != nil {
				t.Error(err)
			}
			if _, err := commit(two, []guard.Cond{{Path: path, Rev: rev}}, guard.Write{Path: path, Delete: true}); err != nil {
				t.Error(err)
			}
		}
		m.before.Store(&meddle)
		rev, err := commit(one, conds, guard.Write{Path: path, Value: []byte("mine")})
		if err != nil {
			t.Fatalf("a record that another server deleted cannot be made: %v", err)
		}
		r, err := two.Get(t.Context(), path)
		if err != nil || string(r.Value) != "mine" {
			t.Fatalf("%q, %v", r.Value, err)
		}
		if _, err := commit(two, absent, guard.Write{Path: path, Value: []byte("again")}); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("a record that is there was made: %v", err)
		}
		if _, err := commit(one, []guard.Cond{{Path: path, Rev: rev}}, guard.Write{Path: path, Delete: true}); err != nil {
			t.Fatal(err)
		}
	}
	last, _ := w.open() // the counters of the log go up by one
	if _, err := last.Get(t.Context(), path); fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
	}
}
