package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

var theMAC = strings.Repeat("k", 32)

// running is a log that is followed and put into order.
type running struct {
	*audit.Log
	seen []audit.Entry   // at its start
	ctx  context.Context // ends when the sequencer does
	stop func()          // ends the loops; what they returned is in errs after that
	errs [2]error        // of Follow and Sequence
}

// open loads the log of a store and, with order, starts its loops.
func open(t *testing.T, s store.Store, order bool) *running {
	t.Helper()
	return load(t, s, order, nil)
}

// openPacking is open of a log that packs entries when it may.
func openPacking(t *testing.T, s store.Store, when func() bool) *running {
	t.Helper()
	return load(t, s, true, when)
}

func load(t *testing.T, s store.Store, order bool, packs func() bool) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{ctx: ctx}
	t.Cleanup(cancel)
	l, rev, err := audit.Load(ctx, s, secret.Take([]byte(theMAC)), func(e audit.Entry, _ store.Rev) error {
		r.seen = append(r.seen, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Log = l
	l.Pack(packs)
	done := make(chan int, 2)
	if order {
		go func() { r.errs[0] = l.Follow(ctx, rev, func(audit.Commit) error { return nil }); done <- 0 }() // ends with ctx
		go func() { r.errs[1] = l.Sequence(ctx, nil); cancel(); done <- 1 }()                              // ends with ctx
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		for range 2 {
			if order {
				<-done
			}
		}
	})
	return r
}

func used(i int) audit.Entry {
	return audit.Entry{Action: "test", Caller: fmt.Sprint(i), Class: audit.ClassUse, Outcome: "closed", Time: time.Unix(int64(i), 0).UTC()}
}

func (r *running) write(t *testing.T, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := r.Append(t.Context(), used(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// ordered checks that the log holds the entries 0 … n-1 in this order.
func (r *running) ordered(t *testing.T, n int) {
	t.Helper()
	var got []string
	if err := r.Tail(t.Context(), 0, false, func(_ int64, b []byte) error {
		e, err := audit.Decode(b)
		got = append(got, e.Caller)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != n {
		t.Fatalf("the log has %d entries instead of %d", len(got), n)
	}
	for i, c := range got {
		if c != fmt.Sprint(i) {
			t.Fatalf("entry %d is %s", i, c)
		}
	}
}

// failing is a store whose sequencer commits fail while err is set.
type failing struct {
	store.Store
	err   atomic.Pointer[error]
	tries atomic.Int64
}

func (f *failing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if len(conds) > 0 {
		f.tries.Add(1)
		if err := f.err.Load(); err != nil {
			return 0, fmt.Errorf("commit: %w", *err)
		}
	}
	return f.Store.Commit(ctx, conds, ops)
}

// TestSequencerOutlastsFullStore: a disk without room stops the order, not the server; the entries keep waiting, durably.
func TestSequencerOutlastsFullStore(t *testing.T) { synctest.Test(t, outlasts) }

func outlasts(t *testing.T) {
	f := &failing{Store: mem.New()}
	f.err.Store(&store.ErrFull)
	l := open(t, f, true)
	l.write(t, 0, 60)
	time.Sleep(10 * time.Second) // of synctest's clock
	synctest.Wait()
	l.ordered(t, 0)
	if n := f.tries.Load(); n < 5 || n > 15 {
		t.Errorf("%d tries in 10 s without room", n)
	}
	if n := len(open(t, f, false).seen); n != 60 {
		t.Errorf("%d of 60 entries are durable while the store is full", n)
	}
	f.err.Store(nil)
	if err := l.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.ordered(t, 60)
	l.stop()
	if l.errs[1] != nil {
		t.Errorf("the sequencer ended with %v", l.errs[1])
	}
	again := open(t, f, true)
	defer again.stop()
	again.ordered(t, 60)
}

// TestSequencerEndsWhileFull: the pause ends with the context.
func TestSequencerEndsWhileFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{Store: mem.New()}
		f.err.Store(&store.ErrFull)
		l := open(t, f, true)
		l.write(t, 0, 1)
		synctest.Wait()
		before := time.Now()
		l.stop()
		if l.errs[1] != nil || !time.Now().Equal(before) {
			t.Errorf("%v after %s", l.errs[1], time.Since(before))
		}
	})
}

// TestSequencerStopsOnDamage: a store that is damaged is for a new start to look at.
func TestSequencerStopsOnDamage(t *testing.T) {
	for _, err := range []error{store.ErrCorrupt, store.ErrClosed} {
		synctest.Test(t, func(t *testing.T) {
			f := &failing{Store: mem.New()}
			f.err.Store(&err)
			l := open(t, f, true)
			l.write(t, 0, 1)
			synctest.Wait()
			if !errors.Is(l.errs[1], err) || f.tries.Load() != 1 {
				t.Errorf("%v: the sequencer ended with %v after %d tries", err, l.errs[1], f.tries.Load())
			}
			l.stop()
		})
	}
}

// TestSequencerGoesOn: another server that is faster, an outcome that is unknown and a store that is out of reach pass.
func TestSequencerGoesOn(t *testing.T) {
	for _, err := range []error{store.ErrUnknown, store.ErrConflict, errors.New("connection refused")} {
		synctest.Test(t, func(t *testing.T) {
			f := &failing{Store: mem.New()}
			f.err.Store(&err)
			l := open(t, f, true)
			l.write(t, 0, 1)
			time.Sleep(3500 * time.Millisecond) // of synctest's clock
			synctest.Wait()
			if n := f.tries.Load(); n < 3 || n > 5 {
				t.Errorf("%v: %d tries in 3.5 s", err, n)
			}
			f.err.Store(nil)
			settle(t, l)
			l.ordered(t, 1)
			l.stop()
			if l.errs[1] != nil {
				t.Errorf("%v: the sequencer ended with %v", err, l.errs[1])
			}
		})
	}
}

// TestLargeEntries: a batch of the largest entries must fit into one commit of the store.
func TestLargeEntries(t *testing.T) {
	s := mem.New()
	l := open(t, s, false)
	big := func(i int) audit.Entry {
		e := used(i)
		e.Detail = map[string]string{"x": strings.Repeat("y", 65_000)}
		return e
	}
	for i := range 40 {
		if err := l.Append(t.Context(), big(i)); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, s, true)
	defer again.stop()
	settle(t, again)
	again.ordered(t, 40)
}

// settle waits until everything is in order; a sequencer that ended instead is told.
func settle(t *testing.T, r *running) {
	t.Helper()
	if err := r.Settled(r.ctx); err != nil {
		r.stop()
		t.Fatalf("%v; the sequencer ended with %v", err, r.errs[1])
	}
}

// TestCrashBeforeOrder: entries that were committed and not put into order get into the next start's log, once, in commit order.
func TestCrashBeforeOrder(t *testing.T) {
	s := mem.New()
	first := open(t, s, true)
	first.write(t, 0, 50)
	settle(t, first)
	first.stop()
	crashed := open(t, s, false) // commits, and never gets to order anything
	crashed.write(t, 50, 150)
	last := open(t, s, true)
	defer last.stop()
	if len(last.seen) != 150 {
		t.Errorf("the start saw %d entries", len(last.seen))
	}
	last.write(t, 150, 160)
	settle(t, last)
	last.ordered(t, 160)
}

// TestThreeSequencers: servers on one store put the log into order together. Each step is one server's, the others follow it, none ends, and
// every one of them has the same tree.
func TestThreeSequencers(t *testing.T) {
	s := mem.New()
	open(t, s, false).write(t, 0, 100) // waits for all three
	var all []*running
	for range 3 {
		all = append(all, open(t, s, true))
	}
	var writers sync.WaitGroup
	for i, l := range all {
		writers.Go(func() { l.write(t, 100+200*i, 300+200*i) })
	}
	writers.Wait()
	for _, l := range all {
		settle(t, l)
	}
	skey, _, err := audit.NewKey("test")
	if err != nil {
		t.Fatal(err)
	}
	roots := map[string]bool{}
	for i, l := range all {
		if err := l.SetSigner(string(skey.Reveal())); err != nil {
			t.Fatal(err)
		}
		signed, size, err := l.Checkpoint()
		if err != nil || size != 700 {
			t.Fatalf("server %d: %d entries, %v", i, size, err)
		}
		roots[string(signed)] = true
		l.stop()
		if !errors.Is(l.errs[0], context.Canceled) || l.errs[1] != nil {
			t.Errorf("server %d ended with %v", i, l.errs)
		}
	}
	if len(roots) != 1 {
		t.Errorf("three servers have %d different trees", len(roots))
	}
	if n := len(open(t, s, false).seen); n != 700 {
		t.Errorf("a new start sees %d entries", n)
	}
}

// TestTurn: who has not the turn puts nothing into order, and does when the turn comes.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		l := open(t, s, false)
		var mu sync.Mutex // guards change and mine
		change, mine := make(chan struct{}), false
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- l.Follow(ctx, 0, func(audit.Commit) error { return nil }) }() // ends with ctx
		go func() {
			done <- l.Sequence(ctx, func() (bool, <-chan struct{}) { // ends with ctx
				mu.Lock()
				defer mu.Unlock()
				return mine, change
			})
		}()
		l.write(t, 0, 10)
		synctest.Wait()
		if n := len(stored(t, s, "log/entry/")); n != 0 {
			t.Errorf("%d entries in order without the turn", n)
		}
		mu.Lock()
		mine = true
		close(change)
		change = make(chan struct{})
		mu.Unlock()
		settle(t, l)
		if n := len(stored(t, s, "log/entry/")); n != 10 {
			t.Errorf("%d entries in order with it", n)
		}
		cancel()
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

func stored(t *testing.T, s store.Store, prefix string) (keys []string) {
	_, records := s.List(t.Context(), prefix)
	for r, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, r.Key)
	}
	return keys
}

// TestForeignStep: what somebody else put into order is taken over only if it is what waited, in the order of its commits, under a state
// that only the log's key makes.
func TestForeignStep(t *testing.T) {
	for name, change := range map[string]func(ops []store.Op) []store.Op{
		"entries exchanged": func(ops []store.Op) []store.Op {
			ops[1].Value, ops[3].Value = ops[3].Value, ops[1].Value
			return ops
		},
		"entry changed": func(ops []store.Op) []store.Op {
			ops[1].Value = append([]byte(nil), ops[1].Value...)
			ops[1].Value[len(ops[1].Value)-2] ^= 1
			return ops
		},
		"entry left out": func(ops []store.Op) []store.Op { return ops[2:] },
		"state alone":    func(ops []store.Op) []store.Op { return ops[len(ops)-1:] },
		"state no JSON": func(ops []store.Op) []store.Op {
			ops[len(ops)-1].Value = []byte("{")
			return ops
		},
		"": func(ops []store.Op) []store.Op { return ops },
	} {
		t.Run(name, func(t *testing.T) {
			steps := &recording{Store: mem.New()}
			open(t, steps, false).write(t, 0, 3)
			l, rev, err := audit.Load(t.Context(), steps, secret.Take([]byte(theMAC)), func(audit.Entry, store.Rev) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			other := open(t, steps, false)
			steps.keep.Store(true) // what the other does is seen and not done
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { _ = other.Sequence(ctx, nil) }() // it waits for Follow, until ctx ends
			ops := change(<-steps.kept())
			cancel()
			steps.keep.Store(false)
			if _, err := steps.Commit(t.Context(), nil, ops); err != nil {
				t.Fatal(err)
			}
			other.write(t, 3, 4) // when this is seen, the step has been taken over
			errTaken, commits := errors.New("taken over"), 0
			err = l.Follow(t.Context(), rev, func(audit.Commit) error {
				if commits++; commits == 2 {
					return errTaken
				}
				return nil
			})
			if name == "" && !errors.Is(err, errTaken) || name != "" && fault.CodeOf(err) != fault.AuditBroken {
				t.Errorf("followed with %v", err)
			}
		})
	}
}

// recording keeps commits instead of making them, and says that their outcome is unknown.
type recording struct {
	store.Store
	keep atomic.Bool
	once sync.Once
	ops  chan []store.Op
}

func (r *recording) kept() chan []store.Op {
	r.once.Do(func() { r.ops = make(chan []store.Op, 1) })
	return r.ops
}

func (r *recording) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if !r.keep.Load() {
		return r.Store.Commit(ctx, conds, ops)
	}
	select {
	case r.kept() <- ops:
	default:
	}
	return 0, store.ErrUnknown
}

// TestLoadAfterTampering: whatever was edited, added or taken out while nobody ran is audit_broken.
func TestLoadAfterTampering(t *testing.T) {
	build := func(t *testing.T) *mem.Store {
		s := mem.New()
		l := open(t, s, true)
		l.write(t, 0, 20)
		settle(t, l)
		l.stop()
		open(t, s, false).write(t, 20, 23) // left waiting
		return s
	}
	keys := func(t *testing.T, s store.Store, prefix string) (out []store.Record) {
		_, records := s.List(t.Context(), prefix)
		for r, err := range records {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		if len(out) < 1 {
			t.Fatalf("nothing under %s", prefix)
		}
		return out
	}
	flipped := func(b []byte, at int) []byte { b[at] ^= 1; return b }
	for name, change := range map[string]func(t *testing.T, s store.Store) []store.Op{
		"entry changed": func(t *testing.T, s store.Store) []store.Op {
			r := keys(t, s, "log/entry/")[7]
			return []store.Op{{Key: r.Key, Value: []byte(strings.Replace(string(r.Value), `"7"`, `"8"`, 1))}}
		},
		"entry taken out": func(t *testing.T, s store.Store) []store.Op {
			return []store.Op{{Key: keys(t, s, "log/entry/")[7].Key, Delete: true}}
		},
		"last entry taken out": func(t *testing.T, s store.Store) []store.Op {
			return []store.Op{{Key: keys(t, s, "log/entry/")[19].Key, Delete: true}}
		},
		"entry added": func(t *testing.T, s store.Store) []store.Op {
			r := keys(t, s, "log/entry/")[19]
			return []store.Op{{Key: fmt.Sprintf("log/entry/%016x", 20), Value: r.Value}}
		},
		"entries exchanged": func(t *testing.T, s store.Store) []store.Op {
			all := keys(t, s, "log/entry/")
			return []store.Op{{Key: all[3].Key, Value: all[4].Value}, {Key: all[4].Key, Value: all[3].Value}}
		},
		"state taken out": func(*testing.T, store.Store) []store.Op { return []store.Op{{Key: "log/state", Delete: true}} },
		"state changed": func(t *testing.T, s store.Store) []store.Op {
			r := keys(t, s, "log/state")[0]
			return []store.Op{{Key: r.Key, Value: []byte(strings.Replace(string(r.Value), `"size":20`, `"size":19`, 1))}}
		},
		"state no JSON": func(*testing.T, store.Store) []store.Op { return []store.Op{{Key: "log/state", Value: []byte("{")}} },
		"state's tag changed": func(t *testing.T, s store.Store) []store.Op {
			r := keys(t, s, "log/state")[0]
			return []store.Op{{Key: r.Key, Value: []byte(strings.Replace(string(r.Value), `"tag":"`, `"tag":"00`, 1))}}
		},
		"waiting entry changed": func(t *testing.T, s store.Store) []store.Op {
			r := keys(t, s, "log/new/")[0]
			return []store.Op{{Key: r.Key, Value: flipped(r.Value, len(r.Value)-4)}}
		},
		"waiting entry's tag changed": func(t *testing.T, s store.Store) []store.Op {
			r := keys(t, s, "log/new/")[0]
			return []store.Op{{Key: r.Key, Value: flipped(r.Value, 0)}}
		},
		"waiting entry shorter than a tag": func(t *testing.T, s store.Store) []store.Op {
			return []store.Op{{Key: keys(t, s, "log/new/")[0].Key, Value: []byte("x")}}
		},
		"waiting entry under another name": func(t *testing.T, s store.Store) []store.Op {
			return []store.Op{{Key: "log/new/other", Value: keys(t, s, "log/new/")[0].Value}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t)
			if _, err := s.Commit(t.Context(), nil, change(t, s)); err != nil {
				t.Fatal(err)
			}
			_, _, err := audit.Load(t.Context(), s, secret.Take([]byte(theMAC)), func(audit.Entry, store.Rev) error { return nil })
			if fault.CodeOf(err) != fault.AuditBroken {
				t.Errorf("loaded with %v", err)
			}
		})
	}
	s := build(t)
	_, _, err := audit.Load(t.Context(), s, secret.Random(32), func(audit.Entry, store.Rev) error { return nil })
	if fault.CodeOf(err) != fault.AuditBroken {
		t.Errorf("loaded under another key with %v", err)
	}
	if n := len(open(t, s, false).seen); n != 23 {
		t.Errorf("untouched, %d entries", n)
	}
}
