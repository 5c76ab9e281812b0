package replica_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// gate is a store that one server reaches only while the gate is open: a closed one is a server that is frozen or cut off.
type gate struct {
	store.Store
	shut atomic.Bool
}

var errShut = errors.New("cut off")

func (g *gate) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if g.shut.Load() {
		return 0, errShut
	}
	return g.Store.Commit(ctx, conds, ops)
}

// server is one keeper that runs.
type server struct {
	*replica.Keeper
	gate *gate
	err  error // of Run, after stop
	stop func()
}

const ttl = 5 * time.Second

func start(t *testing.T, s store.Store, name string, change ...func(*replica.Config)) *server {
	t.Helper()
	began := time.Now()
	v := &server{gate: &gate{Store: s}}
	c := replica.Config{Store: v.gate, Address: name, TTL: ttl, Clock: func() time.Duration { return time.Since(began) }}
	for _, f := range change {
		f(&c)
	}
	v.Keeper = replica.New(c)
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); v.err = v.Run(ctx) }() // ends with ctx
	v.stop = func() { cancel(); <-done }
	return v
}

func leads(v *server) bool { _, ok := v.Lead(); return ok }

func wait(d time.Duration) {
	time.Sleep(d) // of synctest's clock
	synctest.Wait()
}

// only checks that one server leads, and returns it.
func only(t *testing.T, all ...*server) *server {
	t.Helper()
	var found []*server
	for _, v := range all {
		if leads(v) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d servers lead", len(found))
	}
	return found[0]
}

// TestOneLeads: of three one leads; when it is cut off it stops leading before another begins, and what it would commit fails; when it comes
// back it follows. A clean end hands over at once.
func TestOneLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		all := []*server{start(t, s, "a"), start(t, s, "b"), start(t, s, "c")}
		wait(2 * ttl)
		first := only(t, all...)
		term, _ := first.Lead()
		wait(10 * ttl)
		if now, ok := first.Lead(); !ok || now != term {
			t.Error("the lead moved while its server was alive")
		}
		first.gate.shut.Store(true)
		var gap bool
		for range 30 {
			wait(ttl / 10)
			n := 0
			for _, v := range all {
				if leads(v) {
					n++
				}
			}
			if n > 1 {
				t.Fatal("two lead at once")
			}
			gap = gap || n == 0
		}
		second := only(t, all...)
		if second == first || !gap {
			t.Fatal("the lead did not move")
		}
		if _, err := s.Commit(t.Context(), []store.Cond{term}, []store.Op{{Key: "x", Value: nil}}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a commit of the deposed leader: %v", err)
		}
		first.gate.shut.Store(false)
		wait(2 * ttl)
		if only(t, all...) != second || !first.Fresh() {
			t.Error("who came back does not follow")
		}
		if err := second.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		wait(ttl / 2)
		if only(t, all...) == second {
			t.Error("who has ended leads")
		}
		for _, v := range all {
			v.stop()
			if v.err != nil {
				t.Error(v.err)
			}
		}
	})
}

// TestDead: who is silent is dead to the others after its TTL and the drift, not before its own session has ended; the condition holds
// until it is heard of again. Who is unknown, or has ended, is dead. A server whose own session is over takes nobody for dead.
func TestDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		a, b := start(t, s, "a"), start(t, s, "b")
		defer a.stop()
		defer b.stop()
		wait(2 * ttl)
		b.gate.shut.Store(true)
		var cond store.Cond
		for dead := false; !dead; {
			wait(100 * time.Millisecond)
			if _, cond, dead = a.DeadFor(b.ID()); dead && b.Fresh() {
				t.Fatal("dead before its session has ended")
			}
		}
		write := func() error {
			_, err := s.Commit(t.Context(), []store.Cond{cond}, []store.Op{{Key: "x"}})
			return err
		}
		if err := write(); err != nil {
			t.Errorf("a commit under its death: %v", err)
		}
		b.gate.shut.Store(false)
		wait(ttl)
		if err := write(); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a commit under its death, after it came back: %v", err)
		}
		if _, _, dead := a.DeadFor(b.ID()); dead {
			t.Error("dead, and alive")
		}
		if since, _, dead := a.DeadFor("nobody"); !dead || since < 2*ttl {
			t.Errorf("an unknown session is dead for %s, %t", since, dead)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		since, cond, dead := a.DeadFor(b.ID())
		if !dead || since != time.Second || write() != nil || cond.Rev != 0 {
			t.Errorf("an ended session is dead for %s, %t", since, dead)
		}
		c := start(t, s, "c")
		defer c.stop()
		wait(ttl)
		a.gate.shut.Store(true)
		c.gate.shut.Store(true)
		wait(3 * ttl)
		if _, _, dead := a.DeadFor(c.ID()); dead {
			t.Error("a server whose own session is over takes another for dead")
		}
	})
}

// TestBehind: a server is behind until it says that it has seen a revision, and one that comes back is not fresh before its memory has
// caught up.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		var seen atomic.Uint64
		var slow atomic.Bool
		a := start(t, s, "a")
		b := start(t, s, "b", func(c *replica.Config) {
			c.Seen = func() store.Rev { return store.Rev(seen.Load()) }
			c.Caught = func(ctx context.Context, rev store.Rev) error {
				if slow.Load() {
					<-ctx.Done()
					return ctx.Err()
				}
				seen.Store(uint64(rev))
				return nil
			}
		})
		defer a.stop()
		defer b.stop()
		wait(ttl)
		slow.Store(true)
		wait(ttl / 5)
		rev, err := s.Commit(t.Context(), nil, []store.Op{{Key: "x"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(a.Behind(rev), " "); got != "server a server b" {
			t.Errorf("behind: %q", got) // a has to be heard of since
		}
		wait(ttl / 2)
		if got := strings.Join(a.Behind(rev), " "); got != "server b" || !b.Fresh() {
			t.Errorf("behind: %q, fresh %t", got, b.Fresh())
		}
		wait(2 * ttl)
		if b.Fresh() {
			t.Error("fresh on old memory")
		}
		slow.Store(false)
		wait(ttl)
		if got := strings.Join(a.Behind(rev), " "); got != "" || !b.Fresh() {
			t.Errorf("behind: %q, fresh %t", got, b.Fresh())
		}
	})
}

// TestForgotten: the leader deletes sessions that are long dead, and their servers may come back under the same name.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		a, b := start(t, s, "a"), start(t, s, "b")
		defer a.stop()
		defer b.stop()
		b.gate.shut.Store(true)
		wait(100 * ttl)
		if n := len(a.Sessions()); n != 1 {
			t.Fatalf("%d sessions", n)
		}
		b.gate.shut.Store(false)
		wait(2 * ttl)
		if _, _, dead := a.DeadFor(b.ID()); dead || !b.Fresh() || len(a.Sessions()) != 2 {
			t.Errorf("dead %t, fresh %t, %v", dead, b.Fresh(), a.Sessions())
		}
	})
}

// TestUnknownOutcome: a sign of life that was made although its answer was lost counts.
func TestUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &losing{Store: mem.New()}
		a := start(t, l, "a")
		defer a.stop()
		l.lose.Store(true)
		wait(5 * ttl)
		if !a.Fresh() {
			t.Error("not fresh")
		}
	})
}

// losing makes commits and loses their answers.
type losing struct {
	store.Store
	lose atomic.Bool
}

func (l *losing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	rev, err := l.Store.Commit(ctx, conds, ops)
	if l.lose.Load() && err == nil {
		return 0, store.ErrUnknown
	}
	return rev, err
}

// TestUpgrade: builds of two formats share a store, which moves on to the newer one when the last old build has gone for a while: one that is only
// started again finds the store as it left it.
func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		old := start(t, s, "old")
		wait(ttl)
		next := start(t, s, "next", func(c *replica.Config) { c.Newest = replica.Format + 1 })
		defer next.stop()
		wait(3 * ttl)
		if next.Format() != replica.Format || !old.Fresh() {
			t.Errorf("format %d beside an old build", next.Format())
		}
		if err := old.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		old.stop()
		wait(5 * ttl)
		old = start(t, s, "old")
		wait(5 * ttl)
		if next.Format() != replica.Format || !old.Fresh() {
			t.Errorf("format %d beside an old build that was started again", next.Format())
		}
		if err := old.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		old.stop()
		wait(5 * ttl)
		if next.Format() != replica.Format {
			t.Errorf("format %d at once", next.Format())
		}
		wait(2 * ttl)
		if next.Format() != replica.Format+1 {
			t.Errorf("format %d without an old build", next.Format())
		}
		if err := replica.CheckFormat(t.Context(), s); fault.CodeOf(err) != fault.StoreNewer {
			t.Errorf("an old build starts: %v", err)
		}
	})
}

// TestFormat: a store of a newer format is refused at the start, and left when the others move on; it moves on when all who live know it.
func TestFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		a := start(t, s, "a")
		wait(ttl)
		if a.Format() != replica.Format {
			t.Errorf("format %d", a.Format())
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "replica/format", Value: []byte("999")}}); err != nil {
			t.Fatal(err)
		}
		wait(ttl)
		a.stop()
		if fault.CodeOf(a.err) != fault.StoreNewer {
			t.Errorf("Run ended with %v", a.err)
		}
		if err := replica.New(replica.Config{Store: s}).Start(t.Context()); fault.CodeOf(err) != fault.StoreNewer {
			t.Errorf("Start: %v", err)
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "replica/format", Value: []byte(`"x"`)}}); err != nil {
			t.Fatal(err)
		}
		if err := replica.MarkFormat(t.Context(), s); fault.CodeOf(err) != fault.RecordTampered {
			t.Errorf("garbage: %v", err)
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "replica/format", Value: []byte(`1`)}}); err != nil {
			t.Fatal(err)
		}
		if err := replica.MarkFormat(t.Context(), s); err != nil { // by the only server on the store
			t.Error(err)
		}
		if r, err := s.Get(t.Context(), "replica/format"); err != nil || string(r.Value) != strconv.Itoa(replica.Format) {
			t.Errorf("the only server left format %s, %v", r.Value, err)
		}
	})
}

// raising is a store that the others move on, to a newer format, in the moment in which a server stores its first session.
type raising struct{ store.Store }

func (r raising) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	rev, err := r.Store.Commit(ctx, conds, ops)
	if err == nil && strings.HasPrefix(ops[0].Key, "replica/session/") {
		if _, err := r.Store.Commit(ctx, nil, []store.Op{{Key: "replica/format", Value: []byte("999")}}); err != nil {
			return 0, err
		}
	}
	return rev, err
}

// TestFormatMeanwhile: a server that starts in the moment in which the others move on does not start.
func TestFormatMeanwhile(t *testing.T) {
	k := replica.New(replica.Config{Store: raising{mem.New()}})
	if err := k.Start(t.Context()); fault.CodeOf(err) != fault.StoreNewer {
		t.Error(err)
	}
}

// TestHeard: who waits for a revision waits for a sign of life of every server, which a hurry brings before its time, and for a silent one until it is dead.
func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		sees := func(c *replica.Config) {
			var seen atomic.Uint64
			c.Seen = func() store.Rev { return store.Rev(seen.Load()) }
			c.Caught = func(_ context.Context, rev store.Rev) error { seen.Store(uint64(rev)); return nil }
		}
		a, b := start(t, s, "a", sees), start(t, s, "b", sees)
		defer a.stop()
		defer b.stop()
		wait(ttl)
		rev := func() store.Rev {
			rev, err := s.Commit(t.Context(), nil, []store.Op{{Key: "x"}})
			if err != nil {
				t.Fatal(err)
			}
			return rev
		}
		at, since := rev(), time.Now()
		for range 2 { // the first says that memory has come so far, the next that it has
			a.Hurry()
			b.Hurry()
			synctest.Wait()
		}
		if err := a.Heard(t.Context(), at); err != nil || time.Since(since) != 0 {
			t.Errorf("%v, after %v", err, time.Since(since))
		}
		if err := a.Heard(t.Context(), rev()); err != nil || time.Since(since) > ttl {
			t.Errorf("without a hurry: %v, after %v", err, time.Since(since))
		}
		b.gate.shut.Store(true)
		at, since = rev(), time.Now()
		if err := a.Heard(t.Context(), at); err != nil || time.Since(since) < ttl/2 || b.Fresh() {
			t.Errorf("of a silent server: %v, after %v", err, time.Since(since))
		}
		a.gate.shut.Store(true)
		if err := a.Heard(t.Context(), rev()); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("without a session of its own: %v", err)
		}
	})
}
