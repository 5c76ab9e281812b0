package rollout_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rollout"
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

// all allows everything.
type all struct{}

func (all) Allows(policy.Caller, policy.Action, policy.Resource) (string, bool) { return "all", true }

// world is a server's rooms up to rollout, on the store in memory, with the bubble's time.
type world struct {
	t     *testing.T
	store store.Store
	seal  seal.Sealer
	guard *guard.Guard
	kms   *kms.Service
	fleet *fleet.Fleet
	loops []*rollout.Loop
	stop  context.CancelFunc

	versions atomic.Int64 // that a key may have; 0: any number
	offset   atomic.Int64 // nanoseconds that the clocks of the server are wrong by

	mu       sync.Mutex // guards promoted
	promoted []uint32   // primaries in the order of their promotions
}

var (
	admin = policy.Caller{Kind: policy.KindAdmin, Name: "admin/a"}
	ref   = kms.Ref{Namespace: "default", Name: "records"}
	quiet = slog.New(slog.DiscardHandler)
)

func bubble(t *testing.T, loops int, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, store: mem.New(), seal: sealer}
		if _, err := guard.Init(t.Context(), w.config()); err != nil {
			t.Fatal(err)
		}
		w.start(loops)
		f(t, w)
		w.stop()
		synctest.Wait()
	})
}

func (w *world) config() guard.Config {
	return guard.Config{Store: w.store, Sealers: []seal.Sealer{w.seal}, Rules: all{}, Now: w.now, Log: quiet}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

// start builds the rooms on what the store has, with so many loops; again: a restart after a crash.
func (w *world) start(loops int) {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
		synctest.Wait()
	}
	ctx, stop := context.WithCancel(w.t.Context())
	w.stop, w.loops = stop, nil
	var err error
	if w.guard, err = guard.Open(ctx, w.config()); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = w.guard.Run(ctx) }()
	if w.kms, err = kms.New(ctx, kms.Config{Guard: w.guard, Now: w.now, Quotas: func() kms.Quotas { return kms.Quotas{Versions: int(w.versions.Load())} }}); err != nil {
		w.t.Fatal(err)
	}
	c := fleet.Config{Guard: w.guard, Keys: w.kms, Leases: rotation.Leases{TTL: ttl, MaxSkew: skew}, Now: w.now, Log: quiet}
	if w.fleet, err = fleet.New(ctx, c); err != nil {
		w.t.Fatal(err)
	}
	for range loops {
		w.loops = append(w.loops, rollout.New(rollout.Config{KMS: w.kms, Fleet: w.fleet, Now: w.now, Log: quiet}))
	}
	look := func(id keyring.KeyID) {
		for _, l := range w.loops {
			l.Look(id)
		}
	}
	w.fleet.OnChange = look
	w.kms.OnChange(func(k keyring.Key) {
		w.mu.Lock()
		if n := len(w.promoted); n == 0 || w.promoted[n-1] != k.Primary {
			w.promoted = append(w.promoted, k.Primary)
		}
		w.mu.Unlock()
		w.fleet.Publish(ctx, k)
		look(k.ID)
	})
	for _, loop := range []func(context.Context) error{w.kms.Run, w.kms.CountUses, w.fleet.Run} {
		go func() { _ = loop(ctx) }()
	}
	for _, l := range w.loops {
		go func() { _ = l.Run(ctx) }()
	}
	synctest.Wait()
}

func (w *world) create(r keyring.Rotation) {
	w.t.Helper()
	_, err := w.kms.Create(w.t.Context(), admin, keyring.Key{
		Namespace: "default", Name: "records", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Rotation: r,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) rotate() {
	w.t.Helper()
	if _, err := w.kms.Rotate(w.t.Context(), admin, ref, 0); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) key() keyring.Key {
	synctest.Wait()
	k, _ := w.kms.Lookup("default", "records")
	return k
}

func (w *world) progress() rollout.Progress {
	return w.loops[0].Progress(w.t.Context(), w.key())
}

func (w *world) want(what string, got, want any) {
	w.t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// process holds the key, and acknowledges what it gets while it is not frozen.
type process struct {
	w       *world
	name    string
	private delivery.Private
	parcels *delivery.Receiver
	address delivery.Address
	session *fleet.Session

	mu     sync.Mutex // guards frozen and parcels
	frozen bool
	late   []delivery.Parcel
	key    *holder.Key
	have   delivery.Materials
}

func (w *world) join(name string) *process {
	w.t.Helper()
	p := &process{w: w, name: name, have: delivery.Materials{}}
	var err error
	if p.private, err = delivery.NewPrivate(); err != nil {
		w.t.Fatal(err)
	}
	p.address = delivery.Address{Cluster: w.guard.ClusterID(), Instance: name, Incarnation: nonce()}
	p.connect()
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

func (p *process) connect() {
	p.w.t.Helper()
	p.address.Session = nonce()
	p.parcels = delivery.NewReceiver(p.address, p.private, p.w.signed)
	c := policy.Caller{Kind: policy.KindInstance, Name: "spiffe://rotor.local/instance/" + p.name, Instance: p.name}
	h := fleet.Hello{Incarnation: p.address.Incarnation, Session: p.address.Session, Public: p.private.Public(), Namespace: "default"}
	s, err := p.w.fleet.Connect(p.w.t.Context(), c, h)
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.session = s
	if err := s.Hold(p.w.t.Context(), []string{"records"}); err != nil {
		p.w.t.Fatal(err)
	}
	ctx := p.w.t.Context()
	go func() {
		for {
			d, err := s.Next(ctx)
			if err != nil {
				return
			}
			if d.Parcel != nil {
				p.take(*d.Parcel)
			}
		}
	}()
	synctest.Wait()
}

func (p *process) take(in delivery.Parcel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen {
		p.late = append(p.late, in)
		return
	}
	p.install(in)
}

// install is what a process does with a parcel, one after the other in the order of the stream. Call with mu held.
func (p *process) install(in delivery.Parcel) {
	s, m, err := p.parcels.Unpack(in)
	if err != nil {
		p.w.t.Error(err)
		return
	}
	if p.key, _, err = holder.Apply(p.key, s); err != nil {
		p.w.t.Error(err)
	}
	for n, b := range m {
		p.have[n] = b
	}
	proof, err := delivery.Proof(p.address, s, func(n uint32) (secret.Bytes, bool) { b, ok := p.have[n]; return b, ok })
	if err != nil {
		p.w.t.Error(err)
	}
	if err := p.session.Acknowledge(p.w.t.Context(), fleet.Ack{Key: s.Key, Epoch: s.Epoch, Proof: proof}); err != nil {
		p.w.t.Error(err)
	}
}

func (p *process) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

func (p *process) thaw() {
	p.mu.Lock()
	for _, in := range p.late {
		p.install(in)
	}
	p.frozen, p.late = false, nil
	p.mu.Unlock()
	synctest.Wait()
}

// TestBlock: a silent member holds a rotation up for as long as it is silent, is named, and pauses it after max_wait; then it catches up.
func TestBlock(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.create(keyring.Rotation{Silence: keyring.Block, MaxWait: time.Hour})
		w.join("a")
		b := w.join("b")
		w.rotate()
		w.want("primary", w.key().Primary, uint32(2))
		b.freeze()
		w.rotate()
		for _, after := range []time.Duration{0, time.Minute, 58 * time.Minute, 2 * time.Hour} {
			time.Sleep(after)
			p := w.progress()
			w.want("primary", p.Key.Primary, uint32(2))
			w.want("waits for", p.Waiting, []string{"b"})
			w.want("paused", p.Paused, after > time.Hour)
		}
		b.thaw()
		w.want("primary", w.key().Primary, uint32(3))
		w.want("behind", w.progress().Behind, []string(nil))
	})
}

// TestFence: a silent member is dropped when its lease is over, not before, and the rotation goes on.
func TestFence(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.create(keyring.Rotation{Silence: keyring.Fence})
		w.join("a")
		b := w.join("b")
		b.session.Beat(1)
		b.freeze()
		w.rotate()
		time.Sleep(ttl + skew - time.Millisecond)
		w.want("primary before the lease ends", w.key().Primary, uint32(1))
		w.want("waits for", w.progress().Waiting, []string{"b"})
		time.Sleep(200 * time.Millisecond) // the loop looks at the clock every 100 ms
		w.want("primary after it", w.key().Primary, uint32(2))
		w.want("members", w.progress().Members, 1)
		<-b.session.Done()
	})
}

// TestFenceAfterRestart: a new server waits for a lease that the old one may have granted in its last moment.
func TestFenceAfterRestart(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.create(keyring.Rotation{Silence: keyring.Fence})
		w.join("a").freeze()
		time.Sleep(time.Hour)
		w.start(1)
		w.rotate()
		time.Sleep(ttl + skew - time.Millisecond)
		w.want("primary", w.key().Primary, uint32(1))
		time.Sleep(200 * time.Millisecond)
		w.want("primary", w.key().Primary, uint32(2))
	})
}

// TestCrashBetweenSteps: whatever step was the last before a crash, the next server goes on from it.
func TestCrashBetweenSteps(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) { // no loop: staged, and crashed
		w.create(keyring.Rotation{Window: time.Minute})
		w.rotate()
		w.want("phase", w.key().At(1).Phase, keyring.PhaseStaged)
		w.start(0)
		if _, err := w.kms.Step(t.Context(), w.key().ID, guard.Cond{}, rotation.Distribute); err != nil {
			t.Fatal(err)
		}
		w.start(0) // distributed, and crashed
		w.want("primary", w.key().Primary, uint32(1))
		w.start(1)
		time.Sleep(time.Second)
		w.want("primary", w.key().Primary, uint32(2))
		w.start(1) // promoted, and crashed: the window still ends
		time.Sleep(2 * time.Minute)
		w.want("state of the old version", w.key().At(0).State, keyring.Deactivated)
	})
}

// TestTwoLoops: every step is taken once, however many loops try.
func TestTwoLoops(t *testing.T) {
	bubble(t, 3, func(t *testing.T, w *world) {
		w.create(keyring.Rotation{})
		w.join("a")
		w.join("b")
		for range 5 {
			before := w.key().Epoch.Counter
			w.rotate()
			w.want("epochs of a rotation: distributed, promoted", w.key().Epoch.Counter-before, uint64(2))
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.want("primaries", w.promoted, []uint32{1, 2, 3, 4, 5, 6})
	})
}

// TestBack: a rotation is given up in flight, and an older version comes back while its window is open.
func TestBack(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.create(keyring.Rotation{Window: time.Hour})
		a := w.join("a")
		a.freeze()
		w.rotate()
		if _, err := w.kms.Back(t.Context(), admin, ref, 1, 0); err != nil {
			t.Fatal(err)
		}
		k := w.key()
		w.want("given up", []any{k.Primary, k.Target, k.At(1).Phase}, []any{uint32(1), uint32(0), keyring.PhaseDestroyed})
		a.thaw()
		w.rotate()
		w.want("primary", w.key().Primary, uint32(3))
		if _, err := w.kms.Back(t.Context(), admin, ref, 1, 0); err != nil {
			t.Fatal(err)
		}
		w.want("primary after going back", w.key().Primary, uint32(1))
		w.want("the newer version still processes", w.key().At(2).Phase, keyring.PhaseDecryptOnly)
		time.Sleep(time.Hour + time.Second)
		w.want("the window ended", w.key().At(2).State, keyring.Deactivated)
		if _, err := w.kms.Back(t.Context(), admin, ref, 3, 0); err == nil {
			t.Error("went back after the window")
		}
	})
}

// TestCompromise: the successor of a compromised primary waits for nobody, also when a rotation was waiting; a target that is
// compromised itself is not promoted.
func TestCompromise(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		compromise := func(n uint32) {
			t.Helper()
			if _, err := w.kms.Change(t.Context(), admin, ref, n, keyring.Compromise, "test"); err != nil {
				t.Fatal(err)
			}
		}
		w.create(keyring.Rotation{})
		a := w.join("a")
		a.freeze()
		compromise(1)
		w.want("primary", w.key().Primary, uint32(2))
		w.want("behind", w.progress().Behind, []string{"a"})
		w.rotate() // waits for a
		w.want("waits for", w.progress().Waiting, []string{"a"})
		compromise(2)
		w.want("primary", w.key().Primary, uint32(3))
		w.rotate()
		compromise(4)
		a.thaw()
		time.Sleep(time.Second)
		w.want("primary", w.key().Primary, uint32(3))
		w.want("waits for", w.progress().Waiting, []string{rotation.TargetName})
		if _, err := w.kms.Back(t.Context(), admin, ref, 3, 0); err != nil {
			t.Fatal(err)
		}
		w.want("given up", w.key().At(3).Phase, keyring.PhaseDestroyed)
		w.rotate()
		w.want("primary", w.key().Primary, uint32(5))
	})
}
