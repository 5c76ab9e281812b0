package campaign_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// at opens every data set as one place.
func at(p place) func(campaign.DataSet) (campaign.Adapter, error) {
	return func(campaign.DataSet) (campaign.Adapter, error) { return p, nil }
}

// byName opens data sets by their names.
func byName(all map[string]campaign.Adapter) func(campaign.DataSet) (campaign.Adapter, error) {
	return func(d campaign.DataSet) (campaign.Adapter, error) {
		if a, ok := all[d.Name]; ok {
			return a, nil
		}
		return nil, fault.New(fault.Unavailable, d.Name)
	}
}

func (w *world) fill(p place, prefix string, n int) {
	w.Helper()
	for i := range n {
		id := fmt.Sprintf("%s%d", prefix, i)
		if err := p.put(w, id, w.seals(id, "text of "+id)); err != nil {
			w.Fatal(err)
		}
	}
}

// check opens everything in a place and expects it under a version.
func (w *world) check(p place, version uint32, n int) {
	w.Helper()
	all := p.all(w)
	if len(all) != n {
		w.Fatalf("%d records are left of %d", len(all), n)
	}
	for id, m := range all {
		if text, v := w.opens(id, m); v != version || text != "text of "+id {
			w.Fatalf("record %s is %q under version %d, want %d", id, text, v, version)
		}
	}
}

// TestLife takes data through everything: rotation, campaign, retirement, destruction, and what is refused on the way.
func TestLife(t *testing.T) {
	places(t, func(t *testing.T, make func(*testing.T) place) {
		p := make(t)
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 30)
		w.fill(p, "z", 30)
		kept := w.seals("kept", "old")
		w.rotate()
		want(t, w.retire(1), fault.InUse) // 60 ciphertexts are under it
		if c := w.moved(); c.Moved != 60 || c.Lost != 0 {
			t.Fatalf("%+v", c)
		}
		w.check(p, 2, 60)
		if err := p.put(t, "kept", kept); !errors.Is(err, errBelow) {
			t.Fatalf("a write that was frozen since before the rotation: %v", err)
		}
		if r := w.census(); r.Counts[1] != 0 || r.Counts[2] != 60 || !r.Settled || r.Unknown != 0 || r.Sets != 1 {
			t.Fatalf("%+v", r)
		}
		if c := w.moved(); c.Moved != 0 {
			t.Fatalf("a second campaign moved something: %+v", c)
		}
		_, _, _, err := w.campaigns.Destroy(t.Context(), admin, ref, 1)
		want(t, err, fault.InUse) // it is not retired yet
		if err := w.retire(1); err != nil {
			t.Fatal(err)
		}
		if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "waits until") {
			t.Fatal(done, waiting)
		}
		w.pass(time.Hour + time.Second)
		if done, waiting := w.destroy(1); !done {
			t.Fatal(waiting)
		}
		if v := w.key().At(0); v.Phase != keyring.PhaseDestroyed {
			t.Fatalf("%+v", v)
		}
		w.check(p, 2, 60)
	})
}

// TestRollback goes back under a campaign's floor: the floor is lowered first, writes under the old version are taken again, and a campaign
// in the other direction moves everything back.
func TestRollback(t *testing.T) {
	places(t, func(t *testing.T, make func(*testing.T) place) {
		p := make(t)
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 20)
		w.rotate()
		w.moved()
		k, err := w.kms.Back(t.Context(), admin, ref, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.campaigns.NotReady(t.Context(), k); !slices.Equal(got, []string{"data set board"}) {
			t.Fatalf("not ready: %v", got)
		}
		w.lowered(k)
		w.promote()
		w.fill(p, "m", 5) // a write under version 1
		w.moved()
		w.check(p, 1, 25)
		if r := w.census(); r.Counts[2] != 0 || !r.Settled {
			t.Fatalf("%+v", r)
		}
	})
}

// lowered waits until no floor is in the way of a rollback.
func (w *world) lowered(k keyring.Key) {
	w.Helper()
	for {
		rev, _ := w.store.List(w.Context(), "dataset/")
		if len(w.campaigns.NotReady(w.Context(), k)) == 0 {
			return
		}
		for _, err := range w.guard.Watch(w.Context(), "dataset/", rev) {
			if err != nil {
				w.Fatal(err)
			}
			break
		}
	}
}

// TestConcurrentWriters re-encrypts while applications write: their writes win, and none is lost.
func TestConcurrentWriters(t *testing.T) {
	places(t, func(t *testing.T, make func(*testing.T) place) {
		p := make(t)
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 100)
		w.rotate()
		var stop atomic.Bool
		var writers sync.WaitGroup
		last := [4]int{}
		for n := range last {
			writers.Go(func() {
				for i := 0; !stop.Load() || i < 10; i++ { // each writes its own record over and over
					id := fmt.Sprintf("a%d", n)
					if err := p.put(t, id, w.seals(id, fmt.Sprint(i))); err != nil {
						t.Error(err)
						return
					}
					last[n] = i
				}
			})
		}
		w.moved()
		stop.Store(true)
		writers.Wait()
		for n, i := range last {
			id := fmt.Sprintf("a%d", n)
			if text, v := w.opens(id, p.all(t)[id]); text != fmt.Sprint(i) || v != 2 {
				t.Errorf("%s is %q under version %d, want %d under 2", id, text, v, i)
			}
		}
		if r := w.census(); r.Counts[1] != 0 || r.Counts[2] != 100 {
			t.Errorf("%+v", r)
		}
	})
}

// TestLostRace swaps behind a campaign's back between scan and swap: the application's write stays.
func TestLostRace(t *testing.T) {
	p := newShelf()
	w := newWorld(t, at(p))
	w.register("board", 0)
	w.fill(p, "a", 3)
	w.rotate()
	won := w.seals("a1", "text of a1")
	p.before = func(call string) error {
		if call == "swap" {
			return p.put(t, "a1", won)
		}
		return nil
	}
	if c := w.moved(); c.Moved != 2 || c.Lost != 1 {
		t.Fatalf("%+v", c)
	}
	if string(p.all(t)["a1"]) != string(won) {
		t.Error("the campaign overwrote an application's write")
	}
	w.check(p, 2, 3)
}

// TestCrashAnywhere stops the server at each call of a campaign to its data sets, before and after the call took effect, and starts it
// again: the campaign ends, and nothing is lost.
func TestCrashAnywhere(t *testing.T) {
	for _, call := range []string{"info", "census", "scan", "swap", "floor"} {
		for nth := range 3 {
			t.Run(fmt.Sprint(call, nth), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := newShelf(), newShelf()
					b.info.Shards = []string{"m-z", "a-l"} // in another order than campaigns like
					w := newWorld(t, byName(map[string]campaign.Adapter{"a": a, "b": b}))
					w.register("a", 0)
					w.register("b", 0)
					for _, p := range []place{a, b} {
						w.fill(p, "a", 4)
						w.fill(p, "z", 4)
					}
					w.rotate()
					crash, seen := make(chan struct{}), 0
					down := func(name string) error {
						if name == call {
							if seen++; seen == nth+1 {
								close(crash)
							}
						}
						if seen > nth {
							return errors.New("the server is gone")
						}
						return nil
					}
					a.before, b.before = down, down
					c := w.start()
					select {
					case <-crash:
					case <-time.After(time.Minute): // a campaign has fewer of these calls
					}
					w.stop()
					a.before, b.before = nil, nil
					w.boot()
					if got := w.ended(c.ID); got.Phase != "done" || got.Failed != 0 {
						t.Fatalf("%+v", got)
					}
					w.check(a, 2, 8)
					w.check(b, 2, 8)
				})
			})
		}
	}
}

// TestLongCampaign goes on after an error when it has made progress within the time that it may be stuck, however long it runs.
func TestLongCampaign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 50)
		w.rotate()
		scans := 0
		p.before = func(call string) error {
			if call == "scan" {
				if scans++; scans%3 == 0 {
					return fault.New(fault.Unavailable, "now and then")
				}
				time.Sleep(6 * time.Minute) // fake
			}
			return nil
		}
		c, err := w.campaigns.Start(t.Context(), admin, ref, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.ended(c.ID); got.Phase != "done" {
			t.Fatalf("%+v", got)
		}
		w.check(p, 2, 50)
	})
}

// TestStuckCampaign gives up on a data set that stays unreachable, with the reason, and can be started again.
func TestStuckCampaign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 5)
		w.rotate()
		p.before = func(string) error { return fault.New(fault.Unavailable, "board") }
		c := w.start()
		_, err := w.campaigns.Start(t.Context(), admin, ref, 0, 0)
		want(t, err, fault.RotationInFlight)
		began := time.Now()
		if got := w.ended(c.ID); got.Phase != "failed" || !strings.Contains(got.Error, "cannot be reached") {
			t.Fatalf("%+v", got)
		}
		if d := time.Since(began); d < 10*time.Minute || d > 11*time.Minute {
			t.Errorf("it gave up after %s", d)
		}
		p.before = nil
		w.moved()
		w.check(p, 2, 5)
	})
}

// TestThrottle bounds the ciphertexts a second.
func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 100)
		w.rotate()
		began := time.Now()
		c, err := w.campaigns.Start(t.Context(), admin, ref, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.ended(c.ID); got.Moved != 100 {
			t.Fatalf("%+v", got)
		}
		if d := time.Since(began); d < 9*time.Second || d > 12*time.Second {
			t.Errorf("100 ciphertexts at 10 a second took %s", d)
		}
	})
}

// TestOneCampaign starts many at once: a key has one.
func TestOneCampaign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 3)
		w.rotate()
		hold := make(chan struct{})
		p.before = func(string) error { <-hold; return nil }
		var made atomic.Int32
		var id atomic.Value
		var wait sync.WaitGroup
		for range 20 {
			wait.Go(func() {
				c, err := w.campaigns.Start(t.Context(), admin, ref, 0, 0)
				if err == nil {
					made.Add(1)
					id.Store(c.ID)
				} else if fault.CodeOf(err) != fault.RotationInFlight {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		close(hold)
		if made.Load() != 1 {
			t.Fatalf("%d campaigns", made.Load())
		}
		w.ended(id.Load().(string))
	})
}

// TestWhoIsLate waits for holders that have not acknowledged the promotion: they may write under the old version.
func TestWhoIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		w.register("board", 0)
		w.fill(p, "a", 5)
		w.rotate()
		w.crowd.set(rotation.Member{Instance: "sleepy"})
		if err := w.retire(1); fault.CodeOf(err) != fault.GateClosed || !strings.Contains(err.Error(), "sleepy") {
			t.Fatal(err)
		}
		if w.census().Settled {
			t.Error("a census is settled while a holder may write under the old version")
		}
		c := w.start()
		time.Sleep(time.Minute) // fake
		synctest.Wait()
		if got, err := w.campaigns.Get(t.Context(), admin, c.ID); err != nil || got.Moved != 0 || !strings.Contains(got.Error, "sleepy") {
			t.Fatalf("%+v %v", got, err)
		}
		w.crowd.set(rotation.Member{Instance: "sleepy", Acked: w.key().Epoch})
		if got := w.ended(c.ID); got.Moved != 5 {
			t.Fatalf("%+v", got)
		}
	})
}

// TestInFlight lets a data set without a floor wait until every write that was begun before has ended, in campaigns and before retirement.
func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		p.info.Floor = false
		w := newWorld(t, at(p))
		_, err := w.campaigns.Register(t.Context(), admin, ref, campaign.DataSet{Name: "board", URL: "https://board/"})
		want(t, err, fault.Invalid) // it has to say how long a write may be on its way
		w.register("board", 20*time.Minute)
		w.fill(p, "a", 5)
		late := w.seals("a0", "text of a0")
		w.rotate()
		began := time.Now()
		c := w.start()
		time.Sleep(15 * time.Minute) // fake
		if err := p.put(t, "a0", late); err != nil {
			t.Fatal(err)
		}
		want(t, w.retire(1), fault.GateClosed)
		if got := w.ended(c.ID); got.Phase != "done" || time.Since(began) < 20*time.Minute {
			t.Fatalf("after %s: %+v", time.Since(began), got)
		}
		w.check(p, 2, 5)
		if err := w.retire(1); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDestroyNeedsEveryDataSet refuses the destruction while a data set cannot be reached, and lets the wait begin anew.
func TestDestroyNeedsEveryDataSet(t *testing.T) {
	a, b := newShelf(), newShelf()
	w := newWorld(t, byName(map[string]campaign.Adapter{"a": a, "b": b}))
	w.register("a", 0)
	w.register("b", 0)
	w.rotate()
	b.before = func(string) error { return fault.New(fault.Unavailable, "b") }
	want(t, w.retire(1), fault.GateClosed)
	b.before = nil
	if err := w.retire(1); err != nil {
		t.Fatal(err)
	}
	w.pass(2 * time.Hour)
	b.before = func(string) error { return fault.New(fault.Unavailable, "b") }
	if done, waiting := w.destroy(1); done || waiting == "" {
		t.Fatal(done, waiting)
	}
	b.before = nil
	if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "waits until") {
		t.Fatalf("the wait did not begin anew: %v %q", done, waiting)
	}
	w.pass(2 * time.Hour)
	if done, waiting := w.destroy(1); !done {
		t.Fatal(waiting)
	}
}

// TestNewDataSetRestartsTheWait: what is registered while a version waits for its destruction has not been counted.
func TestNewDataSetRestartsTheWait(t *testing.T) {
	a, b := newShelf(), newShelf()
	w := newWorld(t, byName(map[string]campaign.Adapter{"a": a, "b": b}))
	w.register("a", 0)
	w.fill(b, "z", 1) // under version 1
	w.rotate()
	if err := w.retire(1); err != nil {
		t.Fatal(err)
	}
	w.pass(2 * time.Hour)
	w.register("b", 0)
	if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "waits until") {
		t.Fatal(done, waiting)
	}
	w.pass(2 * time.Hour)
	if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "1 ciphertexts are under it") {
		t.Fatal(done, waiting)
	}
}

// liar is a data set whose census is what a test wants.
type liar struct {
	*shelf
	counts map[string]uint64
}

func (l liar) Census(context.Context, string) (map[string]uint64, uint64, error) {
	return l.counts, 0, nil
}

// TestLyingCensus checks what data sets say of themselves: at the end of a campaign by a sample, before a destruction by opening everything.
func TestLyingCensus(t *testing.T) {
	p := liar{newShelf(), map[string]uint64{}}
	w := newWorld(t, at(p))
	w.register("board", 0)
	w.fill(p, "a", 2)
	w.rotate()
	if got := w.ended(w.start().ID); got.Phase != "failed" || !strings.Contains(got.Error, "other ciphertexts than its census says") {
		t.Fatalf("%+v", got)
	}
	if err := w.retire(1); err != nil { // which can be undone
		t.Fatal(err)
	}
	w.pass(2 * time.Hour)
	if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "2 ciphertexts are under it") {
		t.Fatal(done, waiting)
	}
}

// TestCountsDoNotWrap: one data set cannot count another's ciphertexts away.
func TestCountsDoNotWrap(t *testing.T) {
	honest, evil := newShelf(), liar{newShelf(), nil}
	w := newWorld(t, byName(map[string]campaign.Adapter{"a": honest, "b": evil}))
	evil.counts = map[string]uint64{fmt.Sprintf("%08x", w.key().At(0).Handle): math.MaxUint64 - 2}
	evil.info.Shards = []string{"all"}
	w.campaigns.Open = byName(map[string]campaign.Adapter{"a": honest, "b": evil})
	w.register("a", 0)
	w.fill(honest, "a", 3)
	w.register("b", 0)
	w.rotate()
	if got := w.census().Counts[1]; got != math.MaxUint64 {
		t.Errorf("counted %d", got)
	}
	want(t, w.retire(1), fault.InUse)
}

// TestBadCiphertexts: one that does not open keeps nothing else from being moved, is counted, and keeps its version from retirement.
func TestBadCiphertexts(t *testing.T) {
	p := newShelf()
	w := newWorld(t, at(p))
	w.register("board", 0)
	w.fill(p, "a", 5)
	bad := w.seals("a0", "x")
	bad[len(bad)-1] ^= 1
	if err := p.put(t, "a0", bad); err != nil {
		t.Fatal(err)
	}
	w.rotate()
	got := w.ended(w.start().ID)
	if got.Phase != "failed" || got.Moved != 4 || got.Failed != 1 || !strings.Contains(got.Error, "5 passes have not moved everything") {
		t.Fatalf("%+v", got)
	}
	want(t, w.retire(1), fault.InUse)
}

// TestSlowCensus gives up on a data set that is slow in every one of many shards, and says that it was not counted.
func TestSlowCensus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		w := newWorld(t, at(p))
		w.register("board", 0)
		for i := range 1000 {
			p.info.Shards = append(p.info.Shards, fmt.Sprint("shard", i))
		}
		p.before = func(string) error { time.Sleep(50 * time.Second); return nil } // fake
		began := time.Now()
		if r := w.census(); !slices.Equal(r.Unreachable, []string{"board"}) || time.Since(began) > 12*time.Minute {
			t.Errorf("after %s: %+v", time.Since(began), r)
		}
	})
}

// TestEndlessScan ends a scan that a data set makes endless.
func TestEndlessScan(t *testing.T) {
	p := endless{newShelf(), new(int)}
	w := newWorld(t, at(p))
	w.register("board", 0)
	w.fill(p, "a", 1)
	w.rotate()
	got := w.ended(w.start().ID)
	if got.Phase != "failed" || *p.pages > 5000 {
		t.Fatalf("%d pages, %+v", *p.pages, got)
	}
}

type endless struct {
	*shelf
	pages *int
}

func (e endless) Scan(context.Context, string, string, int) ([]campaign.Item, string, error) {
	*e.pages++
	return nil, fmt.Sprint("page ", *e.pages), nil
}

// TestPrimaryMovesOn ends a campaign whose target is no longer primary: data moves to the primary version only.
func TestPrimaryMovesOn(t *testing.T) {
	p := newShelf()
	w := newWorld(t, at(p))
	w.register("board", 0)
	w.fill(p, "a", 5)
	w.rotate()
	_, err := w.campaigns.Start(t.Context(), admin, ref, 1, 0)
	want(t, err, fault.WrongState)
	var once sync.Once
	p.before = func(call string) error {
		if call == "scan" {
			once.Do(func() { w.rotate() })
		}
		return nil
	}
	if got := w.ended(w.start().ID); got.Phase != "failed" {
		t.Fatalf("%+v", got)
	}
	p.before = nil
	w.moved()
	w.check(p, 3, 5)
}

// TestRegister refuses what is no place for a data set, and those who may not.
func TestRegister(t *testing.T) {
	p := newShelf()
	w := newWorld(t, at(p))
	for _, d := range []campaign.DataSet{
		{Name: "board", URL: "http://board/"}, {Name: "board", URL: "board:80"}, {Name: "board", URL: ""}, {Name: "board", URL: "https://"},
		{Name: "board", URL: "file:///etc/passwd"}, {Name: "board", URL: "https://user:secret@board/"}, {Name: "board", URL: "https://board/?a=b"},
		{Name: "board", URL: "https://board/#x"}, {Name: "board", URL: "https://board/" + strings.Repeat("x", 2000)},
		{Name: "Bad Name", URL: "https://board/"}, {Name: "", URL: "https://board/"}, {Name: "board", URL: "https://board/", MaxInFlight: -1},
	} {
		if _, err := w.campaigns.Register(t.Context(), admin, ref, d); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", d, err)
		}
	}
	good := campaign.DataSet{Name: "board", URL: "https://board/"}
	_, err := w.campaigns.Register(t.Context(), reader, ref, good)
	want(t, err, fault.Denied)
	_, err = w.campaigns.Start(t.Context(), reader, ref, 0, 0)
	want(t, err, fault.Denied)
	_, err = w.campaigns.Census(t.Context(), reader, ref)
	want(t, err, fault.Denied)
	_, err = w.campaigns.Retire(t.Context(), reader, ref, 1, false)
	want(t, err, fault.Denied)
	_, err = w.campaigns.DataSets(t.Context(), reader)
	want(t, err, fault.Denied)
	p.before = func(string) error { return fault.New(fault.Unavailable, "board") }
	_, err = w.campaigns.Register(t.Context(), admin, ref, good)
	want(t, err, fault.Unavailable)
	p.before = nil
	w.register("board", 0)
	_, err = w.campaigns.Register(t.Context(), admin, ref, good)
	want(t, err, fault.Exists)
	w.restart()
	if all, err := w.campaigns.DataSets(t.Context(), admin); err != nil || len(all) != 1 || all[0].Name != "board" {
		t.Fatal(all, err)
	}
}

// TestGivenUp lets callers hang up in the middle: the next caller goes on.
func TestGivenUp(t *testing.T) {
	p := newShelf()
	w := newWorld(t, at(p))
	w.register("board", 0)
	w.rotate()
	ctx, cancel := context.WithCancel(t.Context())
	p.before = func(call string) error {
		if call == "floor" {
			cancel()
		}
		return nil
	}
	if _, err := w.campaigns.Retire(ctx, admin, ref, 1, false); err == nil {
		t.Fatal("a caller that had hung up was answered")
	}
	p.before = nil
	if err := w.retire(1); err != nil {
		t.Fatal(err)
	}
}

// TestOutcomeUnknown lets each commit of a data set's or campaign's record in turn be made without its answer: what comes after does not
// fail for ever because the record is newer than the server believes.
func TestOutcomeUnknown(t *testing.T) {
	for _, path := range []string{"dataset/board", "campaign/"} {
		for nth := range 3 {
			t.Run(fmt.Sprint(path, nth), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newShelf()
					w := newWorld(t, at(p))
					w.store.forget(path, nth)
					w.register("board", 0)
					w.fill(p, "a", 3)
					w.rotate()
					if got := w.ended(w.start().ID); got.Phase != "done" {
						t.Fatalf("%+v", got)
					}
					w.check(p, 2, 3)
					if err := w.retire(1); err != nil {
						t.Fatal(err)
					}
				})
			})
		}
	}
}

// TestDestroyFloor: a destruction needs what the server asks for at least, also of a key that was made before and asked for less; the key's own
// numbers stay as they are.
func TestDestroyFloor(t *testing.T) {
	w := newWorld(t, byName(map[string]campaign.Adapter{}))
	w.rotate()
	if err := w.retire(1); err != nil {
		t.Fatal(err)
	}
	w.floors.Store(&kms.Floors{Approvals: 3, Wait: 5 * time.Hour})
	w.pass(2 * time.Hour) // the key waits for one
	if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "waits until") {
		t.Fatal(done, waiting)
	}
	w.pass(4 * time.Hour)
	if done, waiting := w.destroy(1); done || !strings.Contains(waiting, "2 of 3 approvals") {
		t.Fatal(done, waiting)
	}
	_, err := w.kms.Create(t.Context(), admin, keyring.Key{Namespace: "default", Name: "weak", Purpose: suite.Encrypt, Rotation: keyring.Rotation{Wait: 9 * time.Hour}})
	want(t, err, fault.Invalid)
	_, err = w.kms.Create(t.Context(), admin, keyring.Key{Namespace: "default", Name: "hasty", Purpose: suite.Encrypt, Rotation: keyring.Rotation{Wait: time.Hour, Approvals: 3}})
	want(t, err, fault.Invalid)
	_, err = w.kms.Create(t.Context(), admin, keyring.Key{Namespace: "default", Name: "strong", Purpose: suite.Encrypt, Rotation: keyring.Rotation{Approvals: 4}})
	want(t, err, "")
	w.floors.Store(&kms.Floors{Approvals: 1, Wait: 3 * time.Hour}) // fewer than the key asks for, and a wait that is over
	if done, waiting := w.destroy(1); !done {
		t.Fatal(waiting)
	}
	if r := w.key().Rotation; r.Approvals != 2 || r.Wait != time.Hour {
		t.Errorf("the key's own numbers are %+v", r)
	}
}
