package campaign_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/store"
)

// crown is the lead of two servers: who has it in the store, and who believes to have it. One that sleeps goes on believing.
type crown struct {
	mu       sync.Mutex // guards what follows
	believes map[string]store.Rev
}

const leaderPath = guard.ReplicaPrefix + "leader"

// lead is what a server believes.
func (c *crown) lead(name string) func() (guard.Cond, bool) {
	return func() (guard.Cond, bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		rev, ok := c.believes[name]
		return guard.Cond{Path: leaderPath, Rev: rev}, ok
	}
}

// give makes a server lead, and tells it alone.
func (c *crown) give(w *world, name string) {
	w.Helper()
	rev, err := w.store.Store.Commit(w.Context(), nil, []store.Op{{Key: leaderPath, Value: []byte(name)}})
	if err != nil {
		w.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.believes[name] = rev
}

// wake tells a server that it does not lead.
func (c *crown) wake(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.believes, name)
}

// from is a data set as one of two servers calls it. What a test puts into before happens before each call.
type from struct {
	*shelf
	before func(call string) error
}

func (f from) Scan(ctx context.Context, shard, cursor string, n int) ([]campaign.Item, string, error) {
	if err := f.before("scan"); err != nil {
		return nil, "", err
	}
	return f.shelf.Scan(ctx, shard, cursor, n)
}

func (f from) Swap(ctx context.Context, swaps []campaign.Swap) ([]campaign.Outcome, error) {
	if err := f.before("swap"); err != nil {
		return nil, err
	}
	return f.shelf.Swap(ctx, swaps)
}

func (f from) Census(ctx context.Context, shard string) (map[string]uint64, uint64, error) {
	if err := f.before("census"); err != nil {
		return nil, 0, err
	}
	return f.shelf.Census(ctx, shard)
}

func (f from) SetFloor(ctx context.Context, floor campaign.Floor) error {
	if err := f.before("floor"); err != nil {
		return err
	}
	return f.shelf.SetFloor(ctx, floor)
}

func nothing(string) error { return nil }

// pair starts two servers, a and b, on one store; a leads. a's calls to the one data set go through before.
func pair(t *testing.T, p *shelf, before func(call string) error) (a, b *world, c *crown) {
	t.Helper()
	c = &crown{believes: map[string]store.Rev{}}
	a = newLed(t, at(from{p, before}), c.lead("a"))
	b = &world{T: t, store: &forgetful{Store: a.store.Store}, sealer: a.sealer, crowd: a.crowd, open: at(from{p, nothing}), lead: c.lead("b")}
	b.floors.Store(&kms.Floors{})
	b.boot()
	t.Cleanup(func() { b.stop() })
	c.give(a, "a")
	return a, b, c
}

func (f from) put(t testing.TB, id string, m []byte) error { return f.shelf.put(t, id, m) }

// TestCampaignGoesOn: a campaign that was begun at one server is carried on by the other, from the last cursor that the first one stored, when the first dies in the middle of
// a swap; what the first one still sends afterwards changes nothing, and the campaign's count is of what there was. Then everything is rolled back, and moved back by the server
// that was started again.
func TestCampaignGoesOn(t *testing.T) {
	for _, call := range []string{"scan", "swap", "census", "floor"} {
		t.Run(call, func(t *testing.T) {
			p, reached, late := newShelf(), make(chan struct{}), make(chan struct{})
			var once sync.Once
			stuck := func(name string) error {
				if name == call {
					first := false
					once.Do(func() { first = true })
					if first {
						close(reached)
						<-late // it sleeps here, and does then what it was about to do
					}
				}
				return nil
			}
			armed := nothing
			a, b, c := pair(t, p, func(name string) error { return armed(name) })
			a.register("board", 0)
			a.fill(p, "a", 30)
			a.fill(p, "z", 30)
			a.rotate()
			b.synced(a)
			armed = stuck
			begun := b.start() // asked at one, done by the other
			<-reached
			c.give(b, "b")
			got := b.ended(begun.ID)
			if got.Phase != "done" || got.Failed != 0 || got.Lost != 0 || got.Total != 60 || got.Moved+got.Skipped < 60 {
				t.Errorf("%+v", got)
			}
			b.check(p, 2, 60)
			c.wake("a")
			close(late)
			b.check(p, 2, 60)
			a.restart()
			if again, err := a.campaigns.Get(t.Context(), admin, begun.ID); err != nil || again.Phase != "done" || again.Moved != got.Moved {
				t.Errorf("what the other server says: %+v, %v", again, err)
			}

			k, err := a.kms.Back(t.Context(), admin, ref, 1, 0)
			if err != nil {
				t.Fatal(err)
			}
			b.lowered(k)
			b.promote()
			c.give(a, "a")
			c.wake("b")
			if back := a.moved(); back.Moved != 60 {
				t.Errorf("%+v", back)
			}
			a.check(p, 1, 60)
		})
	}
}

// synced waits until a server knows a key as another one does.
func (w *world) synced(other *world) {
	w.Helper()
	want := other.key()
	for w.key().Epoch.Less(want.Epoch) {
		if err := w.kms.CatchUp(w.Context()); err != nil {
			w.Fatal(err)
		}
	}
}

// TestStaleLeaderDestroysNothing: a server that lost the lead while it counted does not destroy what it has counted, although everything else that it saw still
// holds; the one that leads now does, and so it does for who asks a server that does not lead.
func TestStaleLeaderDestroysNothing(t *testing.T) {
	p := newShelf()
	count := nothing
	a, b, c := pair(t, p, func(call string) error { return count(call) })
	a.register("board", 0)
	a.fill(p, "a", 3)
	a.rotate()
	a.moved()
	if err := a.retire(1); err != nil {
		t.Fatal(err)
	}
	b.synced(a)
	if done, waiting := a.destroy(1); done || !strings.Contains(waiting, "waits until") {
		t.Fatal(done, waiting)
	}
	c.wake("a") // so that its loop does not take the step while the clocks are set
	a.pass(time.Hour + time.Second)
	b.pass(time.Hour + time.Second)

	var once sync.Once
	count = func(call string) error {
		if call == "census" {
			once.Do(func() { c.give(b, "somebody else"); c.wake("somebody else") }) // while it counts
		}
		return nil
	}
	c.give(a, "a")
	_, done, _, err := a.campaigns.Destroy(t.Context(), admin, ref, 1)
	c.wake("a")
	if fault.CodeOf(err) != fault.Conflict || done || b.key().At(0).Phase != keyring.PhaseRetired {
		t.Fatalf("the leader of before: %t, %v, the version is %s", done, err, b.key().At(0).Phase)
	}
	c.give(b, "b")
	if _, done, waiting, err := a.campaigns.Destroy(t.Context(), admin, ref, 1); err != nil || !done {
		t.Errorf("asked at a server that follows: %s, %v", waiting, err)
	}
	if v := b.key().At(0); v.Phase != keyring.PhaseDestroyed {
		t.Errorf("%+v", v)
	}
}

// TestFloorOnItsWay: a server that meant a floor before a rollback began may still be about to send it. The one that leads does not promote before it knows of it,
// however late its own watch is: it would be raised over the version that is primary again.
func TestFloorOnItsWay(t *testing.T) {
	p, reached, late := newShelf(), make(chan struct{}), make(chan struct{})
	stuck := nothing
	a, b, c := pair(t, p, func(call string) error { return stuck(call) })
	a.register("board", 0)
	a.fill(p, "a", 3)
	a.rotate()
	b.synced(a)
	if got := b.campaigns.NotReady(t.Context(), b.key()); got != nil { // it knows the data set, as it was
		t.Fatal(got)
	}
	arrive := b.store.delay()
	defer arrive()
	var once sync.Once
	stuck = func(call string) error {
		if call == "floor" {
			once.Do(func() { close(reached) })
			<-late
		}
		return nil
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = a.retire(1) }() // raises the floor first; ends below
	<-reached
	c.wake("a")
	c.give(b, "b")
	k, err := b.kms.Back(t.Context(), admin, ref, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.campaigns.NotReady(t.Context(), k); len(got) == 0 {
		t.Error("a rollback goes on although a floor is on its way")
	}
	arrive()
	b.lowered(k)
	b.promote()
	close(late)
	<-done
	if err := p.put(t, "back", b.seals("back", "text of back")); err != nil {
		t.Errorf("a write under the version that is primary again: %v", err)
	}
}
