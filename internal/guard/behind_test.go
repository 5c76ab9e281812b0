package guard_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// behind is the store as a server sees it that was suspended, or that a network keeps from what happens: it follows the log no further than
// to a revision.
type behind struct {
	store.Store
	mu      sync.Mutex
	limit   store.Rev // 0: none
	changed chan struct{}
}

// let lets it follow up to a revision; 0: all of it.
func (b *behind) let(limit store.Rev) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = limit
	if b.changed != nil {
		close(b.changed)
	}
	b.changed = make(chan struct{})
}

func (b *behind) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		for events, err := range b.Store.Watch(ctx, prefix, after) {
			if prefix != "" {
				b.let(0) // all of it, once a record is there that is watched
			}
			for err == nil && prefix == "" {
				b.mu.Lock()
				limit, changed := b.limit, b.changed
				b.mu.Unlock()
				if limit == 0 || events[0].Rev <= limit {
					break
				}
				select {
				case <-changed:
				case <-ctx.Done():
					err = ctx.Err()
				}
			}
			if !yield(events, err) {
				return
			}
		}
	}
}

// at opens another server over a store, which is not the one whose turn it is.
func (w *world) at(s store.Store) *guard.Guard {
	w.t.Helper()
	g, _ := w.openWith(w.idle(s))
	return g
}

func (w *world) idle(s store.Store) guard.Config {
	c := w.config()
	c.Store, c.Turn = s, func() (bool, <-chan struct{}) { return false, nil }
	return c
}

// rotate turns the root key over, until nothing is under the generation before.
func (w *world) rotate(g *guard.Guard, a policy.Action) {
	w.t.Helper()
	if _, err := w.turn(g, a); err != nil {
		w.t.Fatal(err)
	}
	if err := g.Tend(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// TestAServerThatIsBehind: a server slept while the root key was rotated several times, and while the sealers forgot all generations that came and
// went meanwhile. It can open none of them, follows the log all the same, and goes on.
func TestAServerThatIsBehind(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	w.put(g, "y/0", "before")
	slow := &behind{Store: w.store}
	other := w.at(slow)
	slow.let(w.raw("y/0").Rev)
	w.rotate(g, policy.ActRotateRoot)
	w.put(g, "y/0", "in the second")
	second := w.raw("y/0")
	w.rotate(g, policy.ActRotateRoot)
	w.put(g, "y/1", "in the third")
	w.rotate(g, policy.ActShred)
	w.put(g, "y/2", "in the fourth")

	slow.let(second.Rev) // an entry of the second generation: it asks for the keys, and is given those of the fourth
	for changes, err := range other.Watch(t.Context(), "y/", second.Rev-1) {
		if err != nil {
			t.Error("what it watches:", err)
		}
		if err != nil || changes[0].Path == "y/2" {
			break
		}
	}
	for i, want := range []string{"in the second", "in the third", "in the fourth"} {
		if r, err := other.Get(t.Context(), fmt.Sprintf("y/%d", i)); err != nil || string(r.Value) != want {
			t.Errorf("y/%d: %q, %v", i, r.Value, err)
		}
	}
	w.put(other, "y/3", "by the other")
	if r, err := g.Get(t.Context(), "y/3"); err != nil || string(r.Value) != "by the other" {
		t.Errorf("%q, %v", r.Value, err)
	}
	if r, err := other.Roots(t.Context()); err != nil || r.Generation != 4 || len(r.Older) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if here, there := w.entries(g), w.entries(other); len(here) == 0 || len(here) != len(there) {
		t.Errorf("%d entries here, %d there", len(here), len(there))
	}
}

// TestAServerThatIsTooFarBehind: without what the generations in between tagged the log with it takes nothing as true. It ends, says why, and a
// start brings it back; who waits is told.
func TestAServerThatIsTooFarBehind(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	w.put(g, "y/0", "before")
	slow := &behind{Store: w.store}
	other, err := guard.Open(t.Context(), w.idle(slow))
	if err != nil {
		t.Fatal(err)
	}
	slow.let(w.raw("y/0").Rev)
	ended := make(chan error, 1)
	go func() { ended <- other.Run(t.Context()) }() // ends by itself
	w.rotate(g, policy.ActRotateRoot)
	w.rotate(g, policy.ActRotateRoot)
	w.put(g, "y/0", "after")
	kept := w.raw("guard/log-keys")
	w.tamper(store.Op{Key: kept.Key, Delete: true})
	waits := make(chan error, 1)
	go func() {
		_, err := other.Get(t.Context(), "y/0")
		waits <- err
	}()
	slow.let(0)
	if err := <-ended; fault.CodeOf(err) != fault.AuditBroken && fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("it ended with %v", err)
	} else {
		wantText(t, err, "root generation 2")
	}
	wantCode(t, <-waits, fault.Unavailable, "root generation 2")
	l, err := other.ReadLog(t.Context(), alice)
	if err == nil {
		err = l.Settled(t.Context())
	}
	wantCode(t, err, fault.Unavailable, "")
	w.tamper(store.Op{Key: kept.Key, Value: kept.Value})
	again, _ := w.open()
	if r, err := again.Get(t.Context(), "y/0"); err != nil || string(r.Value) != "after" {
		t.Errorf("%q, %v", r.Value, err)
	}
}

func wantText(t *testing.T, err error, text string) {
	t.Helper()
	wantCode(t, err, fault.CodeOf(err), text)
}

// between calls a function before a server asks for how far the log is, as it does after it has sealed everything again and before it retires the
// generation before.
type between struct {
	store.Store
	once sync.Once
	do   func()
}

func (b *between) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	if prefix == "log/state" {
		b.once.Do(b.do)
	}
	return b.Store.List(ctx, prefix)
}

// grown calls a function before a record is read, once.
type grown struct {
	store.Store
	key  string
	once sync.Once
	do   func()
}

func (b *grown) Get(ctx context.Context, key string) (store.Record, error) {
	if key == b.key {
		b.once.Do(b.do)
	}
	return b.Store.Get(ctx, key)
}

// TestAStartBesideANewStatement: a start has read the log, and before it looks for what witnesses said another server goes on and is told of its own
// newest statement. Nobody follows the log of the start yet, so it reads it again and waits for nothing.
func TestAStartBesideANewStatement(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	w.put(g, "x/a", "1")
	w.entries(g)
	b := &grown{Store: w.store, key: guard.WitnessPath, do: func() {
		w.put(g, "x/a", "2")
		w.entries(g)
		statement, err := g.Statement()
		if err != nil {
			t.Fatal(err)
		}
		w.tamper(store.Op{Key: guard.WitnessPath, Value: statement})
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	other, err := guard.Open(ctx, w.idle(b))
	if err != nil || len(other.Detected()) > 0 {
		t.Fatalf("%v", err)
	}
}

// TestRetiredIsOnlyWhatWasSealedAgain: a server has sealed everything again and is about to retire the generation before, and meanwhile another
// does that and rotates once more. The one must not retire what nothing was sealed again from: everything was lost.
func TestRetiredIsOnlyWhatWasSealedAgain(t *testing.T) {
	w := newWorld(t, mem.New())
	g := w.at(w.store)
	b := &between{Store: w.store}
	w.store = b
	var other *guard.Guard
	reached := make(chan struct{})
	b.do = func() {
		defer close(reached)
		if err := g.Tend(t.Context()); err != nil {
			t.Error(err)
		}
		if generation, err := w.turn(g, policy.ActRotateRoot); err != nil || generation != 3 {
			t.Error(generation, err)
		}
		if r, err := other.Roots(t.Context()); err != nil || r.Generation != 3 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	other, _ = w.open()
	for i := range 10 {
		w.put(g, fmt.Sprintf("y/%d", i), "alive")
	}
	if _, err := w.turn(g, policy.ActRotateRoot); err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := other.Tend(t.Context()); err != nil {
		t.Error(err)
	}
	for i := range 10 {
		if r, err := other.Get(t.Context(), fmt.Sprintf("y/%d", i)); err != nil || string(r.Value) != "alive" {
			t.Errorf("y/%d: %q, %v", i, r.Value, err)
		}
	}
	if r, err := other.Roots(t.Context()); err != nil || r.Generation != 3 || len(r.Older) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestAnEntryOfAnOldRootIsNotBelieved: who can write into the store puts an entry there again that waited before the root key was rotated, with
// its tag of then. A server that was there then and knows the key of then does not take it either.
func TestAnEntryOfAnOldRootIsNotBelieved(t *testing.T) {
	w := newWorld(t, mem.New())
	g, err := guard.Open(t.Context(), w.config())
	if err != nil {
		t.Fatal(err)
	}
	var old []store.Op
	for _, key := range w.keys("log/new/") {
		old = append(old, store.Op{Key: key, Value: w.raw(key).Value})
	}
	if len(old) != 1 { // that of Init, which nobody has put into order yet
		t.Fatal(len(old))
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Run(t.Context()) }() // ends by itself
	w.rotate(g, policy.ActRotateRoot)
	if r, err := g.Roots(t.Context()); err != nil || r.Generation != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	w.tamper(old...)
	wantCode(t, <-ended, fault.AuditBroken, "a waiting entry was put in")
}

// asked calls a function before a record is read for the first time.
type asked struct {
	store.Store
	path string
	once sync.Once
	do   func()
}

func (a *asked) Get(ctx context.Context, path string) (store.Record, error) {
	if path == a.path {
		a.once.Do(a.do)
	}
	return a.Store.Get(ctx, path)
}

// TestAStartWhileTheRootIsRotated: between the log and the first record that a start reads, another server seals everything again. The start
// must not wait for entries that nobody follows yet.
func TestAStartWhileTheRootIsRotated(t *testing.T) {
	for _, path := range []string{"guard/checkpoint-key", "guard/snapshot-key"} {
		for rotations := range 3 {
			w := newWorld(t, mem.New())
			g, _ := w.open()
			w.put(g, "y/0", "alive")
			c := w.config()
			c.Store = &asked{Store: w.store, path: path, do: func() {
				for range rotations {
					w.rotate(g, policy.ActRotateRoot)
				}
				if _, err := g.System("test", policy.ActStatus, policy.Resource{}).Commit(t.Context(), nil, []guard.Write{{Path: "y/1", Value: []byte("new")}}, nil); err != nil {
					t.Error(err)
				}
			}}
			other, _ := w.openWith(c)
			for i, want := range []string{"alive", "new"} {
				if r, err := other.Get(t.Context(), fmt.Sprintf("y/%d", i)); err != nil || string(r.Value) != want {
					t.Errorf("%s, %d rotations: %q, %v", path, rotations, r.Value, err)
				}
			}
		}
	}
}

// meanwhile calls a function before the first commit that writes a record in a room.
type meanwhile struct {
	store.Store
	room string
	once sync.Once
	do   func()
}

func (m *meanwhile) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	for _, op := range ops {
		if strings.HasPrefix(op.Key, m.room) {
			m.once.Do(m.do)
		}
	}
	return m.Store.Commit(ctx, conds, ops)
}

// TestABackupIsUnderTheRootOfItsRecord: a shred that is done before a backup is on record does not wait for it. The backup is then under the root
// key of now, and not under that which the sealers have forgotten.
func TestABackupIsUnderTheRootOfItsRecord(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	other := w.at(&meanwhile{Store: w.store, room: "backup/", do: func() { w.rotate(g, policy.ActShred) }})
	s, err := other.NewBackup(t.Context(), w.permit(other), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var root rootJSON
	if err := json.Unmarshal(s.Root, &root); err != nil || root.Root != 2 || s.Backup.Generation != 2 {
		t.Errorf("it is under %d, on record as of %d, %v", root.Root, s.Backup.Generation, err)
	}
	if _, _, err := guard.BackupOpener(t.Context(), []seal.Sealer{w.sealer}, s.Root); err != nil {
		t.Error(err)
	}
	if all, err := g.Backups(t.Context()); err != nil || len(all) != 1 || all[0].Generation != 2 {
		t.Errorf("%+v, %v", all, err)
	}
}
