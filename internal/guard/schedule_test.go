package guard_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// turns says whose turn it is among the guards of one store.
type turns struct {
	mu     sync.Mutex // guards what follows
	mine   bool
	change chan struct{}
}

func newTurns(mine bool) *turns { return &turns{mine: mine, change: make(chan struct{})} }

func (l *turns) now() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mine, l.change
}

func (l *turns) set(mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mine = mine
	close(l.change)
	l.change = make(chan struct{})
}

// counting counts the commits of one server.
type counting struct {
	store.Store
	n atomic.Int64
}

func (c *counting) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	c.n.Add(1)
	return c.Store.Commit(ctx, conds, ops)
}

// led opens the world's store as one of several servers.
func (w *world) led(l *turns, every time.Duration) *guard.Guard {
	w.t.Helper()
	c := w.config()
	c.Turn, c.ShredEvery = l.now, every
	g, err := guard.Open(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Run(ctx) }() // ends with ctx
	w.t.Cleanup(func() { stop(); <-done })
	return g
}

// destroys puts and deletes what stands for a material.
func (w *world) destroys(g *guard.Guard, path string) {
	w.t.Helper()
	w.material(g, path, "doomed")
	if _, err := w.permit(g).Commit(w.t.Context(), nil, []guard.Write{{Path: path, Delete: true}}, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) roots(g *guard.Guard) guard.Roots {
	w.t.Helper()
	r, err := g.Roots(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// TestTheLeaderAloneTakesATurnFurther: whatever server was asked for it.
func TestTheLeaderAloneTakesATurnFurther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mem.New())
		one, two := newTurns(false), newTurns(false)
		g := w.led(one, 0)
		quiet := &counting{Store: w.store}
		w.store = quiet
		h := w.led(two, 0)
		one.set(true)
		synctest.Wait()
		one.set(false)
		w.destroys(g, "material/default/k/1")
		if _, err := w.turn(g, policy.ActShred); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute) // of synctest's clock
		synctest.Wait()
		if r := w.roots(h); len(r.Older) != 1 || r.Asked.IsZero() {
			t.Errorf("without a leader: %+v", r)
		}
		if n := quiet.n.Load(); n != 0 {
			t.Errorf("a server whose turn it is not has made %d commits", n)
		}
		two.set(true)
		synctest.Wait()
		for _, g := range []*guard.Guard{g, h} {
			if r := w.roots(g); len(r.Older) != 0 || !r.Asked.IsZero() || r.Withdrawn != 0 {
				t.Errorf("with one: %+v", r)
			}
		}
		if _, err := w.turn(g, policy.ActRotateRoot); err != nil { // the other one hears of it at once
			t.Fatal(err)
		}
		synctest.Wait()
		if r := w.roots(g); len(r.Older) != 0 || r.Generation != 3 {
			t.Errorf("asked at another server: %+v", r)
		}
	})
}

// TestShredOnSchedule: at one server, when it is due, when something was destroyed, and not while one waits.
func TestShredOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mem.New())
		const every = 24 * time.Hour
		lead := newTurns(true)
		g, h := w.led(lead, every), w.led(newTurns(false), every)
		pass := func(d time.Duration) {
			w.clock.Add(int64(d / time.Second))
			time.Sleep(2 * time.Minute) // of synctest's clock, which the next look is on
			synctest.Wait()
		}
		pass(2 * every)
		if r := w.roots(g); r.Generation != 1 {
			t.Errorf("nothing was destroyed: %+v", r)
		}
		w.destroys(h, "material/default/k/1")
		pass(0)
		if r := w.roots(h); r.Generation != 2 || r.Withdrawn != 0 || len(r.Older) != 0 {
			t.Errorf("due: %+v", r)
		}
		w.destroys(h, "material/default/k/2")
		pass(every - time.Hour)
		if r := w.roots(h); r.Generation != 2 || r.Withdrawn != 1 {
			t.Errorf("not due yet: %+v", r)
		}
		b, err := g.NewBackup(t.Context(), w.permit(g), 3*every)
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		pass(every)
		if r := w.roots(h); r.Generation != 3 || r.Withdrawn != 1 || r.Asked.IsZero() {
			t.Errorf("while it waits for a backup: %+v", r)
		}
		pass(2 * every)
		if r := w.roots(h); r.Generation != 3 || r.Withdrawn != 0 {
			t.Errorf("once backup %s has expired: %+v", b.Backup.ID, r)
		}
		entries := w.entries(g)
		wantEntry(t, entries, "server.shred", map[string]string{"shred": "true", "generation": "3"})
	})
}
