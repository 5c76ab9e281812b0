package kms_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/suite"
)

var (
	alice   = policy.Caller{Kind: policy.KindAdmin, Name: "admin/alice"}
	bob     = policy.Caller{Kind: policy.KindAdmin, Name: "admin/bob"}
	mallory = policy.Caller{Kind: policy.KindAdmin, Name: "admin/mallory"}
	dave    = policy.Caller{Kind: policy.KindAdmin, Name: "admin/dave"}
)

// rules let alice and bob do everything, and dave everything with keys that have the label team=dave.
type rules struct{}

func (rules) Allows(c policy.Caller, _ policy.Action, r policy.Resource) (string, bool) {
	return "test", c.Name == alice.Name || c.Name == bob.Name || c.Name == dave.Name && r.Labels["team"] == "dave"
}

// world is a service with its guard over a store in memory, whose clock stands still until a test moves it.
type world struct {
	*kms.Service
	t     *testing.T
	store *shaky
	guard *guard.Guard
	seal  seal.Sealer
	hsm   kms.HSM
	clock atomic.Int64 // seconds
	known atomic.Int32 // the newest format that every server on the store knows

	refusals struct { // in the log, as far as it was read: by caller and key
		read int64
		by   map[[2]string]int
	}
}

func (w *world) now() time.Time            { return time.Unix(w.clock.Load(), 0) }
func (w *world) pass(d time.Duration)      { w.clock.Add(int64(d / time.Second)) }
func (w *world) ref(k keyring.Key) kms.Ref { return kms.Ref{Namespace: k.Namespace, Name: k.Name} }

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, func(string) kms.HSM { return nil })
}

// newWorldWith is newWorld with a token for the cluster.
func newWorldWith(t *testing.T, token func(cluster string) kms.HSM) *world {
	t.Helper()
	sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: &shaky{Store: mem.New()}, seal: sealer}
	w.clock.Store(1_800_000_000)
	w.known.Store(replica.Format)
	w.refusals.by = map[[2]string]int{}
	c := guard.Config{Store: w.store, Sealers: []seal.Sealer{sealer}, Rules: rules{}, Now: w.now}
	if _, err := guard.Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if w.guard, err = guard.Open(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	w.hsm = token(w.guard.ClusterID())
	w.run(w.guard.Run)
	p := w.guard.System("test", policy.ActCreate, policy.Resource{Namespace: "other"})
	if err := w.guard.CreateNamespace(t.Context(), p, "other", nil); err != nil {
		t.Fatal(err)
	}
	w.Service = w.serve()
	return w
}

// serve starts one more service on the same guard.
func (w *world) serve() *kms.Service {
	w.t.Helper()
	s, err := kms.New(w.t.Context(), kms.Config{Guard: w.guard, Now: w.now, HSM: w.hsm, Knows: func(format int) bool { return int(w.known.Load()) >= format }})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(s.Run)
	w.run(s.Sweep)
	return s
}

// run runs a loop until the test ends.
func (w *world) run(loop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- loop(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// create makes a key in the namespace default.
func (w *world) create(name string, p suite.Purpose, with ...func(*keyring.Key)) keyring.Key {
	w.t.Helper()
	spec := keyring.Key{Namespace: "default", Name: name, Purpose: p}
	for _, f := range with {
		f(&spec)
	}
	return must(w.Create(w.t.Context(), alice, spec))(w.t)
}

// rotate makes a new version primary; nobody holds the key.
func (w *world) rotate(k keyring.Key) keyring.Key {
	w.t.Helper()
	must(w.Rotate(w.t.Context(), alice, w.ref(k), 0))(w.t)
	w.distribute(k)
	return must(w.Step(w.t.Context(), k.ID, guard.Cond{}, promote))(w.t)
}

func (w *world) distribute(k keyring.Key) keyring.Key {
	w.t.Helper()
	return must(w.Step(w.t.Context(), k.ID, guard.Cond{}, distribute))(w.t)
}

// await looks until something is so.
func (w *world) await(what string, is func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// raw returns the records of keys as the store has them, without the log.
func (w *world) raw() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, prefix := range []string{"key/", "name/", "material/", "handle/"} {
		_, records := w.store.List(w.t.Context(), prefix)
		for r, err := range records {
			if err != nil {
				w.t.Fatal(err)
			}
			out[r.Key] = string(r.Value)
		}
	}
	return out
}

// entries settles the log and returns it.
func (w *world) entries() []audit.Entry {
	w.t.Helper()
	l := must(w.guard.ReadLog(w.t.Context(), alice))(w.t)
	if err := l.Settled(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	var out []audit.Entry
	err := l.Tail(w.t.Context(), 0, false, func(_ int64, b []byte) error {
		e, err := audit.Decode(b)
		out = append(out, e)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// must gives the value of a call that has to work.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantCode(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("%v; want %q", err, code)
	}
}

// shaky is a store that can lose the answer of one commit of a key's record, before or after it is durable.
type shaky struct {
	store.Store
	lose  atomic.Int32
	room  atomic.Value // prefix of the records that it is about; default keys
	after atomic.Int32 // the commit of a key's record, counted from 1, that is lost before it is written; 0: none
}

const (
	loseBefore = 1 + iota // nothing is written
	loseAfter             // it is written
)

func (s *shaky) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	room, ok := s.room.Load().(string)
	if !ok {
		room = "key/"
	}
	for _, o := range ops {
		if !strings.HasPrefix(o.Key, room) || room == "key/" && strings.Count(o.Key, "/") != 2 { // its pages come with its head
			continue
		}
		if s.after.Load() > 0 && s.after.Add(-1) == 0 {
			return 0, store.ErrUnknown
		}
		switch s.lose.Swap(0) {
		case loseAfter:
			if _, err := s.Store.Commit(ctx, conds, ops); err != nil {
				return 0, err
			}
			return 0, store.ErrUnknown
		case loseBefore:
			return 0, store.ErrUnknown
		}
	}
	return s.Store.Commit(ctx, conds, ops)
}
