package fleet_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/suite"
)

const (
	ttl  = 10 * time.Second
	skew = time.Second
)

// rules allow everything but what denied says.
type rules struct{ denied atomic.Pointer[policy.Action] }

func (r *rules) Allows(c policy.Caller, a policy.Action, _ policy.Resource) (string, bool) {
	d := r.denied.Load()
	return "all", c.Kind != policy.KindInstance || d == nil || *d != a
}

// flaky fails commits after they were made, as an engine whose answer is lost.
type flaky struct {
	store.Store
	fail atomic.Int32 // how many commits
	lose atomic.Bool  // they are not made
	mute atomic.Bool  // releases cannot be written: entries alone, without conditions

	meddle atomic.Pointer[func()] // what happens before the next commit of members
}

func (f *flaky) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if m := f.meddle.Load(); m != nil && strings.HasPrefix(ops[0].Key, "fleet/") && f.meddle.CompareAndSwap(m, nil) {
		(*m)()
	}
	if f.mute.Load() && len(ops) == 1 && strings.HasPrefix(ops[0].Key, "log/new/") { // an entry alone
		return 0, store.ErrClosed
	}
	if f.fail.Add(-1) < 0 {
		f.fail.Store(0)
		return f.Store.Commit(ctx, conds, ops)
	}
	if !f.lose.Load() {
		if _, err := f.Store.Commit(ctx, conds, ops); err != nil {
			return 0, err
		}
	}
	return 0, store.ErrUnknown
}

// world is a server's rooms up to fleet, on the store in memory. Time is the bubble's.
type world struct {
	t     *testing.T
	store *flaky
	guard *guard.Guard
	kms   *kms.Service
	fleet *fleet.Fleet
	rules *rules
	admin policy.Caller
	stop  context.CancelFunc
	seal  seal.Sealer

	keeper *replica.Keeper // nil: no other server can open the store
}

// bubble runs a test in a world with a clock of its own.
func bubble(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, store: &flaky{Store: mem.New()}, rules: &rules{}, admin: policy.Caller{Kind: policy.KindAdmin, Name: "admin/a"}, seal: sealer}
		if _, err := guard.Init(t.Context(), w.guardConfig()); err != nil {
			t.Fatal(err)
		}
		w.start()
		f(t, w)
		w.stop()
		synctest.Wait()
	})
}

func (w *world) guardConfig() guard.Config {
	return guard.Config{Store: w.store, Sealers: []seal.Sealer{w.seal}, Rules: w.rules, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
}

// start builds the rooms on what the store has; a second call is a restart.
func (w *world) start() {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
	}
	ctx, stop := context.WithCancel(w.t.Context())
	w.stop = stop
	var err error
	if w.guard, err = guard.Open(ctx, w.guardConfig()); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = w.guard.Run(ctx) }()
	if w.kms, err = kms.New(ctx, kms.Config{Guard: w.guard, Now: time.Now}); err != nil {
		w.t.Fatal(err)
	}
	c := fleet.Config{
		Guard: w.guard, Keys: w.kms, Leases: rotation.Leases{TTL: ttl, MaxSkew: skew}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	if w.keeper != nil {
		c.Replicas = w.keeper
	}
	w.fleet, err = fleet.New(ctx, c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.kms.OnChange(func(k keyring.Key) { w.fleet.Publish(ctx, k) })
	go func() { _ = w.kms.Run(ctx) }()
	go func() { _ = w.fleet.Run(ctx) }()
	if w.keeper != nil {
		go func() { _ = w.keeper.Run(ctx) }()
	}
}

func (w *world) create(name string, s keyring.Silence) keyring.Key {
	w.t.Helper()
	k, err := w.kms.Create(w.t.Context(), w.admin, keyring.Key{
		Namespace: "default", Name: name, Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Rotation: keyring.Rotation{Silence: s},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// distribute stages and distributes a new version.
func (w *world) distribute(name string) keyring.Key {
	w.t.Helper()
	k, err := w.kms.Rotate(w.t.Context(), w.admin, kms.Ref{Namespace: "default", Name: name}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if k, err = w.kms.Step(w.t.Context(), k.ID, guard.Cond{}, rotation.Distribute); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
	return k
}

// process is the other end of a session.
type process struct {
	w       *world
	private delivery.Private
	parcels *delivery.Receiver
	address delivery.Address
	session *fleet.Session
	keys    map[string]*holder.Key
	have    map[keyring.KeyID]delivery.Materials
}

func (w *world) process(name string) *process {
	w.t.Helper()
	private, err := delivery.NewPrivate()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{w: w, private: private, keys: map[string]*holder.Key{}, have: map[keyring.KeyID]delivery.Materials{}}
	p.address = delivery.Address{Cluster: w.guard.ClusterID(), Instance: name, Incarnation: nonce(), Session: nonce()}
	return p
}

func (w *world) signed(domain string, msg, sig []byte) bool {
	return identity.VerifyServer(w.guard.PublicKey(), domain, msg, sig)
}

func nonce() []byte {
	b := make([]byte, delivery.NonceSize)
	rand.Read(b)
	return b
}

func (p *process) caller() policy.Caller {
	id := "spiffe://rotor.local/instance/" + p.address.Instance
	return policy.Caller{Kind: policy.KindInstance, Name: id, SPIFFEID: id, Instance: p.address.Instance}
}

// connect opens a stream, in place of the one before.
func (p *process) connect() error {
	p.address.Session = nonce()
	p.parcels = delivery.NewReceiver(p.address, p.private, p.w.signed)
	s, err := p.w.fleet.Connect(p.w.t.Context(), p.caller(), fleet.Hello{
		Incarnation: p.address.Incarnation, Session: p.address.Session, Public: p.private.Public(), Namespace: "default",
	})
	if err == nil {
		p.session = s
	}
	return err
}

func (w *world) join(name string, keys ...string) *process {
	w.t.Helper()
	p := w.process(name)
	if err := p.connect(); err != nil {
		w.t.Fatal(err)
	}
	p.hold(keys...)
	return p
}

func (p *process) hold(keys ...string) {
	p.w.t.Helper()
	if err := p.session.Hold(p.w.t.Context(), keys); err != nil {
		p.w.t.Fatal(err)
	}
}

// drain takes everything that waits in the mailbox, and installs the parcels.
func (p *process) drain() (got []fleet.Down, err error) {
	p.w.t.Helper()
	for {
		ctx, cancel := context.WithCancel(p.w.t.Context())
		done := make(chan struct{})
		var d fleet.Down
		go func() { d, err = p.session.Next(ctx); close(done) }()
		synctest.Wait()
		cancel()
		<-done
		if fault.CodeOf(err) == fault.Canceled {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, d)
		if d.Parcel != nil {
			p.install(*d.Parcel)
		}
	}
}

func (p *process) install(in delivery.Parcel) {
	p.w.t.Helper()
	s, m, err := p.parcels.Unpack(in)
	if err != nil {
		p.w.t.Fatal(err)
	}
	next, _, err := holder.Apply(p.keys[s.Name], s)
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.keys[s.Name] = next
	if p.have[s.Key] == nil {
		p.have[s.Key] = delivery.Materials{}
	}
	for n, b := range m {
		p.have[s.Key][n] = b
	}
}

// ack makes a true acknowledgement of what the process has.
func (p *process) ack(key string) fleet.Ack {
	p.w.t.Helper()
	s := p.keys[key].Snapshot
	proof, err := delivery.Proof(p.address, s, func(n uint32) (b secret.Bytes, ok bool) { b, ok = p.have[s.Key][n]; return b, ok })
	if err != nil {
		p.w.t.Fatal(err)
	}
	return fleet.Ack{Key: s.Key, Epoch: s.Epoch, Proof: proof}
}

// catchUp installs everything and acknowledges a key.
func (p *process) catchUp(key string) {
	p.w.t.Helper()
	if _, err := p.drain(); err != nil {
		p.w.t.Fatal(err)
	}
	if err := p.session.Acknowledge(p.w.t.Context(), p.ack(key)); err != nil {
		p.w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) waiting(k keyring.Key) []string {
	members, _ := w.fleet.Members(k.ID)
	return rotation.Waiting(members, k.Epoch)
}

func (w *world) want(what string, got, want any) {
	w.t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestAcknowledgementIsProven(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("records", keyring.Block)
		a, b := w.join("a", "records"), w.join("b", "records")
		for _, p := range []*process{a, b} {
			if _, err := p.drain(); err != nil {
				t.Fatal(err)
			}
		}
		stolen := b.ack("records") // true of b, false of a
		if err := a.session.Acknowledge(t.Context(), stolen); fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("another process's proof: %v", err)
		}
		forged := a.ack("records")
		forged.Proof = make([]byte, len(forged.Proof))
		if err := a.session.Acknowledge(t.Context(), forged); fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("a proof of zeros: %v", err)
		}
		w.want("waits for both", w.waiting(k), []string{"a", "b"})
		for range 2 { // a repeated one changes nothing
			if err := a.session.Acknowledge(t.Context(), a.ack("records")); err != nil {
				t.Fatal(err)
			}
		}
		w.want("waits for b", w.waiting(k), []string{"b"})

		late := b.ack("records")
		k = w.distribute("records")
		if err := b.session.Acknowledge(t.Context(), late); err != nil {
			t.Errorf("an acknowledgement that was overtaken: %v", err)
		}
		w.want("an old epoch acknowledges nothing new", w.waiting(k), []string{"a", "b"})
		a.catchUp("records")
		b.catchUp("records")
		w.want("all", w.waiting(k), []string(nil))
	})
}

// TestLeaseWithheld: heartbeats without acknowledgements cannot hold up a fence rotation (L2).
func TestLeaseWithheld(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		fenced, blocked := w.create("fenced", keyring.Fence), w.create("blocked", keyring.Block)
		p := w.join("a", "fenced", "blocked")
		p.catchUp("fenced")
		p.catchUp("blocked")
		lease := func() *fleet.Lease {
			t.Helper()
			p.session.Beat(7)
			d, err := p.session.Next(t.Context())
			if err != nil || d.Lease == nil || d.Lease.Beat != 7 || d.Lease.TTL != ttl {
				t.Fatalf("%+v, %v", d, err)
			}
			return d.Lease
		}
		w.want("withheld before", lease().Withheld, []keyring.KeyID(nil))
		w.distribute("fenced")
		w.distribute("blocked")
		for range 2 { // the parcels, which get lost
			if _, err := p.session.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			w.want("withheld", lease().Withheld, []keyring.KeyID{fenced.ID})
			w.want("silent too early", w.fleet.Silent(fenced.ID, []string{"a"}), []string{})
			time.Sleep((ttl + skew) / 10)
		}
		w.want("silent", w.fleet.Silent(fenced.ID, []string{"a"}), []string{"a"})
		w.want("silent for the other key", w.fleet.Silent(blocked.ID, []string{"a"}), []string{})
		if err := w.fleet.Drop(t.Context(), fenced.ID, "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.session.Next(t.Context()); fault.CodeOf(err) != fault.LeaseOver {
			t.Errorf("stream of a fenced member: %v", err)
		}
		p.session.Beat(8) // revives nothing
		members, _ := w.fleet.Members(fenced.ID)
		w.want("members", members, []rotation.Member(nil))
		members, _ = w.fleet.Members(blocked.ID)
		w.want("members of the other key", len(members), 1)

		if err := p.connect(); err != nil { // it joins again, and gets its time
			t.Fatal(err)
		}
		p.hold("fenced")
		w.want("silent after joining again", w.fleet.Silent(fenced.ID, []string{"a"}), []string{})
		p.catchUp("fenced")
		p.session.Beat(9)
		got, err := p.drain()
		if err != nil || len(got) != 1 || len(got[0].Lease.Withheld) != 0 {
			t.Errorf("%+v, %v: it has caught up", got, err)
		}
	})
}

func TestDropNeedsASilentMember(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("fenced", keyring.Fence)
		p := w.join("a", "fenced")
		time.Sleep(ttl + skew - 1)
		if err := w.fleet.Drop(t.Context(), k.ID, "a"); err != nil {
			t.Fatal(err)
		}
		members, _ := w.fleet.Members(k.ID)
		w.want("members", len(members), 1)
		p.session.Close(t.Context(), false)
	})
}

// TestRestart: what is stored is there after a restart; a lease that the new server does not know may have been granted just before.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("fenced", keyring.Fence)
		w.join("a", "fenced").catchUp("fenced")
		w.join("b", "fenced")
		synctest.Wait()
		time.Sleep(time.Hour)
		w.start()
		w.want("waits for", w.waiting(k), []string{"b"})
		members, cond := w.fleet.Members(k.ID)
		w.want("members", len(members), 2)
		if cond.Rev == 0 {
			t.Error("a gate without a condition")
		}
		time.Sleep(ttl + skew - 1)
		w.want("silent too early", w.fleet.Silent(k.ID, []string{"a", "b"}), []string{})
		time.Sleep(1 * time.Nanosecond)
		w.want("silent", w.fleet.Silent(k.ID, []string{"a", "b"}), []string{"a", "b"})
	})
}

// TestTwoProcesses: the second with one identity is refused while the first is alive, and takes its place when it is not.
func TestTwoProcesses(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("records", keyring.Block)
		first := w.join("a", "records")
		first.catchUp("records")
		second := w.process("a")
		if err := second.connect(); fault.CodeOf(err) != fault.IdentityInUse {
			t.Fatalf("second process: %v", err)
		}
		time.Sleep(ttl - 1)
		if err := second.connect(); fault.CodeOf(err) != fault.IdentityInUse {
			t.Fatalf("second process, just before the end of the first: %v", err)
		}
		first.session.Beat(1)
		time.Sleep(ttl)
		if err := second.connect(); err != nil {
			t.Fatalf("second process after the first fell silent: %v", err)
		}
		if _, err := first.drain(); fault.CodeOf(err) != fault.IdentityInUse {
			t.Errorf("first process: %v", err)
		}
		if err := first.session.Hold(t.Context(), []string{"records"}); fault.CodeOf(err) != fault.LeaseOver {
			t.Errorf("first process holds again: %v", err)
		}
		members, _ := w.fleet.Members(k.ID)
		w.want("the new process holds nothing yet", members, []rotation.Member(nil))
		first.session.Close(t.Context(), true)
		second.hold("records")
		members, _ = w.fleet.Members(k.ID)
		w.want("the older process's leave takes nothing from the newer one", len(members), 1)
	})
}

func TestLeaveAndRemove(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("records", keyring.Block)
		a, b, c := w.join("a", "records"), w.join("b", "records"), w.join("c", "records")
		a.session.Close(t.Context(), true)
		b.session.Close(t.Context(), false)
		w.want("b did not leave cleanly", w.waiting(k), []string{"b", "c"})
		if err := w.fleet.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.drain(); fault.CodeOf(err) != fault.Denied {
			t.Errorf("stream of a removed instance: %v", err)
		}
		w.want("after the removal", w.waiting(k), []string{"b"})
		members, connected := w.fleet.Count()
		w.want("count", []int{members, connected}, []int{1, 0})
		w.start()
		w.want("after a restart", w.waiting(k), []string{"b"})
		if err := w.fleet.Remove(t.Context(), "nobody"); err != nil {
			t.Error(err)
		}
	})
}

// TestRightTakenAway: who may not hold a key any more gets no new version of it, is told, and holds up nothing.
func TestRightTakenAway(t *testing.T) {
	deliver := policy.ActDeliver
	for _, reload := range []bool{false, true} {
		t.Run(fmt.Sprintf("reload %v", reload), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				k := w.create("records", keyring.Block)
				p := w.join("a", "records")
				p.catchUp("records")
				w.rules.denied.Store(&deliver)
				if reload {
					w.fleet.Reconsider(t.Context())
				} else {
					k = w.distribute("records")
				}
				synctest.Wait()
				got, err := p.drain()
				if err != nil || len(got) != 1 || got[0].Refused == nil || fault.CodeOf(got[0].Refused.Err) != fault.Denied {
					t.Fatalf("%+v, %v", got, err)
				}
				w.want("waits for", w.waiting(k), []string(nil))
				p.hold("records")
				if got, err = p.drain(); err != nil || len(got) != 1 || got[0].Refused == nil {
					t.Fatalf("asked again: %+v, %v", got, err)
				}
				w.rules.denied.Store(nil)
				p.hold("records")
				if got, err = p.drain(); err != nil || len(got) != 1 || got[0].Parcel == nil {
					t.Fatalf("allowed again: %+v, %v", got, err)
				}
			})
		})
	}
}

// TestAnswerOfCommitLost: a commit whose outcome is unknown is looked up, and nothing that was acknowledged meanwhile is forgotten.
func TestAnswerOfCommitLost(t *testing.T) {
	for _, lose := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost %v", lose), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				k := w.create("records", keyring.Block)
				a := w.join("a", "records")
				if _, err := a.drain(); err != nil {
					t.Fatal(err)
				}
				w.store.lose.Store(lose)
				w.store.fail.Store(1)
				if err := a.session.Acknowledge(t.Context(), a.ack("records")); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				w.want("waits for", w.waiting(k), []string(nil))
				time.Sleep(2 * time.Second) // stored at the second try
				synctest.Wait()
				w.store.fail.Store(1)
				if err := w.process("b").connect(); !errors.Is(err, store.ErrUnknown) {
					t.Fatalf("join with a lost answer: %v", err)
				}
				w.want("nothing forgotten", w.waiting(k), []string(nil))
				b := w.join("b", "records") // goes on from what the store has
				w.want("waits for", w.waiting(k), []string{"b"})
				b.catchUp("records")
				time.Sleep(time.Second) // acknowledgements are stored together, a little later
				w.start()
				w.want("after a restart", w.waiting(k), []string(nil))
			})
		})
	}
}

// TestUnauditedDelivery: nothing leaves before it is in the log, and it leaves once it can be.
func TestUnauditedDelivery(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.create("records", keyring.Block)
		p := w.join("a", "records")
		p.catchUp("records")
		w.store.mute.Store(true)
		k := w.distribute("records")
		if got, err := p.drain(); err != nil || len(got) != 0 {
			t.Fatalf("delivered without an entry: %+v, %v", got, err)
		}
		w.store.mute.Store(false)
		time.Sleep(2 * time.Second)
		p.catchUp("records")
		w.want("waits for", w.waiting(k), []string(nil))
	})
}

// TestJoinIsOneStep: a key that changes between the reading and the commit of a join is read again.
func TestJoinIsOneStep(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		k := w.create("records", keyring.Block)
		p := w.process("a")
		if err := p.connect(); err != nil {
			t.Fatal(err)
		}
		between := &racing{Service: w.kms}
		between.race = func() {
			between.race = nil
			k = w.distribute("records")
		}
		w.fleet.Keys = between
		p.hold("records")
		if _, err := p.drain(); err != nil {
			t.Fatal(err)
		}
		w.want("epoch that the join sent", p.keys["records"].Snapshot.Epoch, k.Epoch)
		if between.reads < 2 {
			t.Error("the race did not happen")
		}
	})
}

// racing changes a key just after it was read.
type racing struct {
	*kms.Service
	race  func()
	reads int
}

func (r *racing) Record(ctx context.Context, id keyring.KeyID) (keyring.Key, guard.Cond, error) {
	r.reads++
	k, c, err := r.Service.Record(ctx, id)
	if r.race != nil {
		r.race()
	}
	return k, c, err
}

// TestBounds: what one process can ask for has an end.
func TestBounds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.create("records", keyring.Block)
		p := w.join("a", "records")
		names := make([]string, fleet.MaxKeys+1)
		if err := p.session.Hold(t.Context(), names); fault.CodeOf(err) != fault.TooLarge {
			t.Errorf("%d names: %v", len(names), err)
		}
		var err error
		for i := 0; i < 4*fleet.MaxKeys && err == nil; i++ { // asked for, never fetched
			err = p.session.Hold(t.Context(), []string{fmt.Sprintf("none-%d", i)})
		}
		if fault.CodeOf(err) != fault.TooLarge {
			t.Errorf("refusals that nobody fetches: %v", err)
		}
		for name, edit := range map[string]func(*fleet.Hello){
			"incarnation": func(h *fleet.Hello) { h.Incarnation = h.Incarnation[1:] },
			"session":     func(h *fleet.Hello) { h.Session = nil },
			"public":      func(h *fleet.Hello) { h.Public = h.Public[1:] },
		} {
			h := fleet.Hello{Incarnation: nonce(), Session: nonce(), Public: p.private.Public(), Namespace: "default"}
			edit(&h)
			if _, err := w.fleet.Connect(t.Context(), w.process("b").caller(), h); fault.CodeOf(err) != fault.Invalid {
				t.Errorf("hello with a wrong %s: %v", name, err)
			}
		}
		if _, err := w.fleet.Connect(t.Context(), w.admin, fleet.Hello{}); fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("no instance: %v", err)
		}
	})
}

// TestMailbox: a process that reads slowly gets the newest snapshot alone, and material once.
func TestMailbox(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.create("records", keyring.Block)
		p := w.join("a", "records")
		if _, err := p.drain(); err != nil {
			t.Fatal(err)
		}
		w.distribute("records")
		k, err := w.kms.Back(t.Context(), w.admin, kms.Ref{Namespace: "default", Name: "records"}, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.session.Beat(1)
		got, err := p.drain()
		if err != nil || len(got) != 2 || got[0].Parcel == nil || got[1].Lease == nil {
			t.Fatalf("%+v, %v: want one parcel, then the lease", got, err)
		}
		w.want("epoch", p.keys["records"].Snapshot.Epoch, k.Epoch)
		w.want("sealed again", len(got[0].Parcel.Sealed), 0)
		p.hold("records") // who asks is answered
		if got, err = p.drain(); err != nil || len(got) != 1 || got[0].Parcel == nil {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

func TestInstances(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.create("records", keyring.Block)
		a := w.join("a", "records")
		a.catchUp("records")
		w.join("b", "records").session.Close(t.Context(), false)
		w.distribute("records")
		all, err := w.fleet.Instances(t.Context(), w.admin)
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			all[i].Heard = time.Time{}
		}
		w.want("instances", all, []fleet.Info{
			{Name: "a", Connected: true, Keys: []string{"records"}, Behind: []string{"records"}},
			{Name: "b", Keys: []string{"records"}, Behind: []string{"records"}},
		})
		w.fleet.Drain()
		if _, err := a.drain(); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("drained: %v", err)
		}
		deny := policy.ActInstances
		w.rules.denied.Store(&deny)
		if _, err := w.fleet.Instances(t.Context(), a.caller()); fault.CodeOf(err) != fault.Denied {
			t.Errorf("an instance lists: %v", err)
		}
	})
}
