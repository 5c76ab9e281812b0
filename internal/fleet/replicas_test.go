package fleet_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

const session = 5 * time.Second // TTL of a server's session

// servers runs a test with so many servers on one store.
func servers(t *testing.T, n int, f func(*testing.T, []*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
		if err != nil {
			t.Fatal(err)
		}
		shared, all := mem.New(), []*world(nil)
		for i := range n {
			w := &world{t: t, store: &flaky{Store: shared}, rules: &rules{}, admin: policy.Caller{Kind: policy.KindAdmin, Name: "admin/a"}, seal: sealer}
			if i == 0 {
				if _, err := guard.Init(t.Context(), w.guardConfig()); err != nil {
					t.Fatal(err)
				}
			}
			w.session(shared)
			w.start()
			all = append(all, w)
		}
		time.Sleep(session)
		f(t, all)
		for _, w := range all {
			w.stop()
		}
		synctest.Wait()
	})
}

// session gives a server a session of its own.
func (w *world) session(s store.Store) {
	began := time.Now()
	w.keeper = replica.New(replica.Config{Store: s, TTL: session, Clock: func() time.Duration { return time.Since(began) }})
	if err := w.keeper.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// move connects a process to another server.
func (p *process) move(to *world) error {
	p.w = to
	return p.connect()
}

// cutOff starts a server again whose session goes on, for a while without the store.
func (w *world) cutOff() *cutting {
	cut := &cutting{Store: w.store.Store}
	cut.off.Store(true)
	w.stop()
	synctest.Wait() // the keeper has ended, and may be changed
	w.keeper.Store = cut
	w.start()
	return cut
}

// crash ends a server without a word.
func (w *world) crash() { w.stop() }

func (w *world) silent(k keyring.Key, name string) bool {
	return len(w.fleet.Silent(k.ID, []string{name})) == 1
}

// TestAcknowledgedElsewhere: what a process acknowledges at one server counts at every other, and who joined at one holds up a gate at another.
func TestAcknowledgedElsewhere(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("records", keyring.Block)
		a, b := one.join("a", "records"), two.join("b", "records")
		synctest.Wait()
		one.want("waits at one", one.waiting(k), []string{"a", "b"})
		two.want("waits at two", two.waiting(k), []string{"a", "b"})
		a.catchUp("records")
		b.catchUp("records")
		time.Sleep(time.Second) // acknowledgements are stored together, a little later
		one.want("waits at one", one.waiting(k), []string(nil))
		two.want("waits at two", two.waiting(k), []string(nil))
		info, err := one.fleet.Instances(t.Context(), one.admin)
		if err != nil || len(info) != 2 || !info[0].Connected || !info[1].Connected {
			t.Errorf("%+v, %v", info, err)
		}
		members, connected := two.fleet.Count()
		two.want("count", []int{members, connected}, []int{2, 2})
	})
}

// TestGateOfAServerBehind: a gate that a server takes on memory that misses a join elsewhere fails.
func TestGateOfAServerBehind(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("records", keyring.Block)
		members, cond := one.fleet.Members(k.ID)
		two.join("b", "records")
		_, err := one.kms.Step(t.Context(), k.ID, cond, func(k keyring.Key, now time.Time) (keyring.Key, error) {
			next, err := rotation.Stage(k, keyring.Version{Handle: 7, Algorithm: k.Algorithm}, now)
			if err != nil {
				return k, err
			}
			if next, err = rotation.Distribute(next, now); err != nil {
				return k, err
			}
			return rotation.Promote(next, members, now, false)
		})
		if fault.CodeOf(err) != fault.Conflict {
			t.Errorf("promoted past a member that joined at another server: %v", err)
		}
		if err := one.fleet.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		one.want("waits", one.waiting(k), []string{"b"})
	})
}

// TestMove: a process that goes on at another server keeps its membership and its acknowledgements; its old stream ends; the server that it
// left can neither grant it a lease nor take it for silent.
func TestMove(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("fenced", keyring.Fence)
		p := one.join("a", "fenced")
		p.catchUp("fenced")
		time.Sleep(time.Second)
		before := p.session
		if err := p.move(two); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.hold("fenced")
		if _, err := before.Next(t.Context()); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("the old stream: %v", err)
		}
		before.Beat(3)
		two.want("acknowledged", two.waiting(k), []string(nil))
		time.Sleep(ttl + skew - 2*time.Second)
		if one.silent(k, "a") || two.silent(k, "a") {
			t.Error("silent too early: its lease counts from its move")
		}
		time.Sleep(2 * time.Second)
		if one.silent(k, "a") || !two.silent(k, "a") {
			t.Errorf("silent at one: %t, at two: %t", one.silent(k, "a"), two.silent(k, "a"))
		}
		p.session.Beat(4)
		if two.silent(k, "a") {
			t.Error("silent after a lease request")
		}
		if err := p.move(one); err != nil { // and back: what this server knew of it before is too old
			t.Fatal(err)
		}
		synctest.Wait()
		if one.silent(k, "a") || two.silent(k, "a") {
			t.Error("silent after it came back")
		}
	})
}

// TestHomeDies: while a server may live, nobody else takes its members for silent. After its end their leases run out, by the clock of who
// asks; then they are fenced, and the promotion need not wait for them.
func TestHomeDies(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("fenced", keyring.Fence)
		p := two.join("a", "fenced")
		p.catchUp("fenced")
		time.Sleep(time.Second)
		p.session.Beat(1)
		granted := time.Now()
		two.crash()
		for !one.silent(k, "a") {
			time.Sleep(100 * time.Millisecond)
		}
		took := time.Since(granted)
		if least, most := ttl+skew+session, ttl+skew+2*session; took < least || took > most {
			t.Errorf("fenced %s after its home died, want between %s and %s", took, least, most)
		}
		if err := one.fleet.Drop(t.Context(), k.ID, "a"); err != nil {
			t.Fatal(err)
		}
		members, _ := one.fleet.Members(k.ID)
		one.want("members", members, []rotation.Member(nil))
	})
}

// TestHomeComesBack: a server that was taken for dead and gives a sign of life keeps its members: who would fence them is refused.
func TestHomeComesBack(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("fenced", keyring.Fence)
		p := two.join("a", "fenced")
		p.catchUp("fenced")
		time.Sleep(time.Second)
		cut := two.cutOff()
		if err := p.connect(); err != nil {
			t.Fatal(err)
		}
		p.hold("fenced")
		if _, err := p.drain(); err != nil {
			t.Fatal(err)
		}
		for !one.silent(k, "a") {
			time.Sleep(100 * time.Millisecond)
		}
		if two.keeper.Fresh() {
			t.Fatal("fresh, and taken for dead")
		}
		p.session.Beat(1)
		if got, err := p.drain(); err != nil || len(got) != 0 {
			t.Errorf("a server without a session grants a lease: %+v, %v", got, err)
		}
		meddle := func() { // a sign of life between the decision and the commit of who would fence it
			path := "replica/session/" + two.keeper.ID()
			r, err := cut.Get(t.Context(), path)
			if err == nil {
				_, err = cut.Store.Commit(t.Context(), []store.Cond{{Key: path, Rev: r.Rev}}, []store.Op{{Key: path, Value: r.Value}})
			}
			if err != nil {
				t.Error(err)
			}
		}
		one.store.meddle.Store(&meddle)
		if err := one.fleet.Drop(t.Context(), k.ID, "a"); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("fenced a member of a server that came back: %v", err)
		}
		cut.off.Store(false)
		time.Sleep(session)
		p.session.Beat(2)
		if got, err := p.drain(); err != nil || len(got) != 1 || got[0].Lease == nil {
			t.Errorf("a server that came back grants no lease: %+v, %v", got, err)
		}
		if err := one.fleet.Drop(t.Context(), k.ID, "a"); err != nil {
			t.Fatal(err)
		}
		members, _ := one.fleet.Members(k.ID)
		one.want("members", len(members), 1)
	})
}

// TestFencedElsewhere: a member that another server has fenced while its home had no session has to join again when its home is back, before it
// is told anything that a gate does not wait for.
func TestFencedElsewhere(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("fenced", keyring.Fence)
		p := two.join("a", "fenced")
		p.catchUp("fenced")
		time.Sleep(time.Second)
		cut := two.cutOff()
		if err := p.connect(); err != nil {
			t.Fatal(err)
		}
		for !one.silent(k, "a") {
			time.Sleep(100 * time.Millisecond)
		}
		if err := one.fleet.Drop(t.Context(), k.ID, "a"); err != nil {
			t.Fatal(err)
		}
		cut.off.Store(false)
		time.Sleep(session)
		if _, err := p.drain(); fault.CodeOf(err) != fault.LeaseOver {
			t.Errorf("its stream: %v", err)
		}
		if err := p.connect(); err != nil {
			t.Fatal(err)
		}
		p.hold("fenced")
		synctest.Wait()
		one.want("waits for it again", one.waiting(one.distribute("fenced")), []string{"a"})
	})
}

// TestHeldAlready: a process that asks again for a key that it holds, as far as a server's old memory goes, is told nothing before the server
// knows that another one made it leave: its membership and the snapshot are of one moment.
func TestHeldAlready(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		one.create("records", keyring.Block)
		p := two.join("a", "records")
		p.catchUp("records")
		time.Sleep(time.Second)
		race := &racing{Service: two.kms}
		race.race = func() { // between the reading of the key and the answer
			race.race = nil
			if err := one.fleet.Remove(t.Context(), "a"); err != nil {
				t.Error(err)
			}
			if _, err := one.kms.Rotate(t.Context(), one.admin, kms.Ref{Namespace: "default", Name: "records"}, 0); err != nil {
				t.Error(err)
			}
		}
		two.fleet.Keys = race
		if err := p.session.Hold(t.Context(), []string{"records"}); fault.CodeOf(err) != fault.LeaseOver {
			t.Errorf("it holds a key that it was made to leave: %v", err)
		}
		if race.race != nil {
			t.Error("the race did not happen")
		}
	})
}

// TestTwoProcessesAtTwoServers: the second with one identity is refused while the first lives at another server, taken when its stream has
// ended there, and when that server is dead.
func TestTwoProcessesAtTwoServers(t *testing.T) {
	servers(t, 3, func(t *testing.T, all []*world) {
		one, two, three := all[0], all[1], all[2]
		one.create("records", keyring.Block)
		first := one.join("a", "records")
		synctest.Wait()
		second := two.process("a")
		if err := second.connect(); fault.CodeOf(err) != fault.IdentityInUse {
			t.Fatalf("second process: %v", err)
		}
		waiting := make(chan error, 1)
		go func() { waiting <- second.connect() }()
		synctest.Wait()
		first.session.Close(context.Background(), false)
		if err := <-waiting; err != nil {
			t.Fatalf("second process, when the first has gone: %v", err)
		}
		third := three.process("a")
		if err := third.connect(); fault.CodeOf(err) != fault.IdentityInUse {
			t.Fatalf("third process: %v", err)
		}
		two.crash()
		time.Sleep(2 * session)
		if err := third.connect(); err != nil {
			t.Errorf("third process, when the second's server is dead: %v", err)
		}
		if err := one.fleet.Remove(t.Context(), "a"); err != nil { // at any server
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := third.session.Next(t.Context()); fault.CodeOf(err) != fault.Denied {
			t.Errorf("stream of a removed instance: %v", err)
		}
	})
}

// TestDrainedServer: the members of a server that ends in order go on elsewhere, and none is told anything that is not so.
func TestDrainedServer(t *testing.T) {
	servers(t, 2, func(t *testing.T, all []*world) {
		one, two := all[0], all[1]
		k := one.create("records", keyring.Block)
		p := one.join("a", "records")
		p.catchUp("records")
		time.Sleep(time.Second)
		one.fleet.Drain()
		p.session.Close(t.Context(), false)
		if err := one.keeper.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		one.stop()
		if err := p.move(two); err != nil {
			t.Fatal(err)
		}
		p.hold("records")
		two.want("acknowledged", two.waiting(k), []string(nil))
		if n := len(two.fleet.List()); n != 1 {
			t.Errorf("%d members", n)
		}
		fresh := two.process("a")
		if err := fresh.connect(); fault.CodeOf(err) != fault.IdentityInUse {
			t.Errorf("another process: %v", err)
		}
	})
}

// cutting is a store that takes no commits while it is off.
type cutting struct {
	store.Store
	off atomic.Bool
}

func (c *cutting) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if c.off.Load() {
		return 0, store.ErrUnavailable
	}
	return c.Store.Commit(ctx, conds, ops)
}
