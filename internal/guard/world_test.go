package guard_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
	"github.com/rotorkms/rotor/internal/store/mem"
)

var (
	alice = policy.Caller{Kind: policy.KindAdmin, Name: "admin/alice"}
	bob   = policy.Caller{Kind: policy.KindAdmin, Name: "admin/bob"}
	aKey  = policy.Resource{Namespace: "default", Key: "k"}
)

// only lets alice do everything with key k.
type only struct{}

func (only) Allows(c policy.Caller, _ policy.Action, r policy.Resource) (string, bool) {
	return "alice", c.Name == alice.Name && (r.Key == "k" || r.Key == "")
}

// world is a store with a seal, whose clock stands still until a test moves it.
type world struct {
	t      *testing.T
	store  store.Store
	sealer seal.Sealer
	made   guard.InitResult
	clock  atomic.Int64 // seconds
}

func (w *world) now() time.Time { return time.Unix(w.clock.Load(), 0) }

func (w *world) config() guard.Config {
	return guard.Config{Store: w.store, Sealers: []seal.Sealer{w.sealer}, Rules: only{}, Now: w.now, Packs: func() bool { return true }}
}

func newWorld(t *testing.T, s store.Store) *world {
	t.Helper()
	sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: s, sealer: sealer}
	w.clock.Store(1_800_000_000)
	if w.made, err = guard.Init(t.Context(), w.config()); err != nil {
		t.Fatal(err)
	}
	return w
}

// open starts a guard; stop ends it as a crash would. That it ends by itself is an error.
func (w *world) open() (g *guard.Guard, stop func()) {
	w.t.Helper()
	return w.openWith(w.config())
}

func (w *world) openWith(c guard.Config) (g *guard.Guard, stop func()) {
	w.t.Helper()
	g, err := guard.Open(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		if err := g.Run(ctx); err != nil {
			w.t.Errorf("a guard has ended: %v", err)
		}
	}()
	var once atomic.Bool
	stop = func() {
		if once.CompareAndSwap(false, true) {
			cancel()
			<-done
		}
	}
	w.t.Cleanup(stop)
	return g, stop
}

func (w *world) permit(g *guard.Guard) *guard.Permit {
	w.t.Helper()
	p, err := g.Admit(w.t.Context(), alice, policy.ActEncrypt, aKey)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) put(g *guard.Guard, path, value string) {
	w.t.Helper()
	if _, err := w.permit(g).Commit(w.t.Context(), nil, []guard.Write{{Path: path, Value: []byte(value)}}, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) raw(key string) store.Record {
	w.t.Helper()
	r, err := w.store.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(key, err)
	}
	return r
}

// tamper writes past the door.
func (w *world) tamper(ops ...store.Op) {
	w.t.Helper()
	if _, err := w.store.Commit(w.t.Context(), nil, ops); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) keys(prefix string) []string {
	_, records := w.store.List(w.t.Context(), prefix)
	var out []string
	for r, err := range records {
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, r.Key)
	}
	return out
}

// entries settles the log and returns it.
func (w *world) entries(g *guard.Guard) []audit.Entry {
	w.t.Helper()
	l, err := g.ReadLog(w.t.Context(), alice)
	if err == nil {
		err = l.Settled(w.t.Context())
	}
	var out []audit.Entry
	if err == nil {
		err = l.Tail(w.t.Context(), 0, false, func(_ int64, b []byte) error {
			e, err := audit.Decode(b)
			out = append(out, e)
			return err
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func count(entries []audit.Entry, outcome string) (n int) {
	for _, e := range entries {
		if e.Outcome == outcome {
			n++
		}
	}
	return n
}

// onEngines runs a test on both engines.
func onEngines(t *testing.T, f func(t *testing.T, w *world)) {
	t.Run("mem", func(t *testing.T) { f(t, newWorld(t, mem.New())) })
	t.Run("bolt", func(t *testing.T) {
		s, err := bolt.Open(filepath.Join(t.TempDir(), "db"), bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		f(t, newWorld(t, s))
	})
}

func wantCode(t *testing.T, err error, code fault.Code, about string) {
	t.Helper()
	if fault.CodeOf(err) != code || !strings.Contains(errText(err), about) {
		t.Errorf("%v; want %s about %q", err, code, about)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// failing is a store whose commits can be made to fail, before or after they are durable.
type failing struct {
	store.Store
	err   atomic.Pointer[error]
	after atomic.Bool
}

var errBroken = errors.New("broken")

func (f *failing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	err := f.err.Load()
	if err == nil {
		return f.Store.Commit(ctx, conds, ops)
	}
	if f.after.Load() {
		if _, err := f.Store.Commit(ctx, conds, ops); err != nil {
			return 0, err
		}
	}
	return 0, *err
}

func (f *failing) fail(err error) { f.err.Store(&err) }
func (f *failing) heal()          { f.err.Store(nil) }
