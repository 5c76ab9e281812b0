package campaign_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/examples/fleet/board"
	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/suite"
)

const rules = `version: 1
rules:
  - name: all
    callers: ["admin/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
  - name: reader
    callers: ["reader"]
    actions: [key.show]
    keys: {namespace: "**", names: ["**"]}
`

var (
	admin  = policy.Caller{Kind: policy.KindAdmin, Name: "admin/a"}
	second = policy.Caller{Kind: policy.KindAdmin, Name: "admin/b"}
	reader = policy.Caller{Kind: policy.KindAdmin, Name: "reader"}
	ref    = kms.Ref{Namespace: "default", Name: "records"}
)

// crowd is the holders of every key, as a test wants them.
type crowd struct {
	mu      sync.Mutex // guards members
	members []rotation.Member
}

func (c *crowd) CatchUp(context.Context) error { return nil }

func (c *crowd) Members(keyring.KeyID) ([]rotation.Member, guard.Cond) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members, guard.Cond{Path: "fleet/members"}
}

func (c *crowd) set(m ...rotation.Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = m
}

// world is a server without wires: store, guard, keys and campaigns. stop and boot restart it over the same store.
type world struct {
	*testing.T
	store  *forgetful
	sealer seal.Sealer
	crowd  *crowd
	open   func(campaign.DataSet) (campaign.Adapter, error)
	lead   func() (guard.Cond, bool) // nil: there is no other server

	clockMu sync.Mutex // guards ahead
	ahead   time.Duration

	floors    atomic.Pointer[kms.Floors] // of destructions
	guard     *guard.Guard
	kms       *kms.Service
	campaigns *campaign.Service
	stop      func()
}

func (w *world) now() time.Time {
	w.clockMu.Lock()
	defer w.clockMu.Unlock()
	return time.Now().Add(w.ahead)
}

func (w *world) pass(d time.Duration) {
	w.clockMu.Lock()
	defer w.clockMu.Unlock()
	w.ahead += d
}

// newWorld starts a server with one key, records, whose data sets are opened by open.
func newWorld(t *testing.T, open func(campaign.DataSet) (campaign.Adapter, error)) *world {
	t.Helper()
	return newLed(t, open, nil)
}

// newLed is newWorld for a server that is not alone.
func newLed(t *testing.T, open func(campaign.DataSet) (campaign.Adapter, error), lead func() (guard.Cond, bool)) *world {
	t.Helper()
	sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, store: &forgetful{Store: mem.New()}, sealer: sealer, crowd: &crowd{}, open: open, lead: lead}
	w.floors.Store(&kms.Floors{})
	if _, err := guard.Init(t.Context(), w.config()); err != nil {
		t.Fatal(err)
	}
	w.boot()
	_, err = w.kms.Create(t.Context(), admin, keyring.Key{Namespace: "default", Name: "records", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet,
		Rotation: keyring.Rotation{Window: time.Hour, Wait: time.Hour, Approvals: 2}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) config() guard.Config {
	parsed, err := policy.Parse("rules", []byte(rules))
	if err != nil {
		w.Fatal(err)
	}
	return guard.Config{Store: w.store, Sealers: []seal.Sealer{w.sealer}, Rules: parsed, Now: w.now, Log: slog.New(slog.DiscardHandler)}
}

func (w *world) boot() {
	w.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	g, err := guard.Open(ctx, w.config())
	if err != nil {
		w.Fatal(err)
	}
	var wait sync.WaitGroup
	run := func(f func(context.Context) error) {
		wait.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				w.Errorf("a loop ended: %v", err)
			}
		})
	}
	run(g.Run)
	k, err := kms.New(ctx, kms.Config{Guard: g, Now: w.now, Floors: func() kms.Floors { return *w.floors.Load() }})
	if err != nil {
		w.Fatal(err)
	}
	run(k.Run)
	s, err := campaign.New(ctx, campaign.Config{Guard: g, KMS: k, Fleet: w.crowd, Open: w.open, Lead: w.lead, Now: w.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.Fatal(err)
	}
	run(s.Run)
	w.guard, w.kms, w.campaigns = g, k, s
	w.stop = sync.OnceFunc(func() { cancel(); wait.Wait() })
}

func (w *world) restart() {
	w.stop()
	w.boot()
}

func (w *world) key() keyring.Key {
	w.Helper()
	k, err := w.kms.Get(w.Context(), admin, ref)
	if err != nil {
		w.Fatal(err)
	}
	return k
}

// rotate makes the next version primary, as rollout does.
func (w *world) rotate() uint32 {
	w.Helper()
	k, err := w.kms.Rotate(w.Context(), admin, ref, 0)
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.kms.Step(w.Context(), k.ID, guard.Cond{}, rotation.Distribute); err != nil {
		w.Fatal(err)
	}
	return w.promote()
}

func (w *world) promote() uint32 {
	w.Helper()
	k, err := w.kms.Step(w.Context(), w.key().ID, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		return rotation.Promote(k, nil, now, false)
	})
	if err != nil {
		w.Fatal(err)
	}
	return k.Primary
}

func part(id string) envelope.Part { return envelope.Part{Label: "record", Value: []byte(id)} }

// seals makes the ciphertext of a record under the primary version.
func (w *world) seals(id, text string) []byte {
	w.Helper()
	out, _, err := w.kms.Encrypt(w.Context(), admin, ref, []byte(text), []envelope.Part{part(id)})
	if err != nil {
		w.Fatal(err)
	}
	return out
}

// opens reads a record's ciphertext, and says under which version it is.
func (w *world) opens(id string, message []byte) (string, uint32) {
	w.Helper()
	out, n, err := w.kms.Decrypt(w.Context(), admin, ref, message, []envelope.Part{part(id)})
	if err != nil {
		w.Fatalf("record %s: %v", id, err)
	}
	return string(out), n
}

func (w *world) register(name string, inFlight time.Duration) {
	w.Helper()
	d := campaign.DataSet{Name: name, URL: "https://" + name + ".example/", MaxInFlight: inFlight}
	if _, err := w.campaigns.Register(w.Context(), admin, ref, d); err != nil {
		w.Fatal(err)
	}
}

func (w *world) start() campaign.Campaign {
	w.Helper()
	c, err := w.campaigns.Start(w.Context(), admin, ref, 0, 0)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// ended returns a campaign once its end is stored.
func (w *world) ended(id string) campaign.Campaign {
	w.Helper()
	for {
		rev, _ := w.store.List(w.Context(), "campaign/")
		c, err := w.campaigns.Get(w.Context(), admin, id)
		if err != nil {
			w.Fatal(err)
		}
		if r, err := w.guard.Get(w.Context(), "campaign/"+id); err != nil {
			w.Fatal(err)
		} else if err := json.Unmarshal(r.Value, &c); err != nil {
			w.Fatal(err)
		}
		if c.Done() {
			return c
		}
		for _, err := range w.guard.Watch(w.Context(), "campaign/", rev) {
			if err != nil {
				w.Fatal(err)
			}
			break
		}
	}
}

// moved runs a campaign that has to end well.
func (w *world) moved() campaign.Campaign {
	w.Helper()
	c := w.ended(w.start().ID)
	if c.Phase != "done" || c.Error != "" || c.Failed != 0 {
		w.Fatalf("the campaign ended as %+v", c)
	}
	return c
}

func (w *world) census() campaign.Report {
	w.Helper()
	r, err := w.campaigns.Census(w.Context(), admin, ref)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

func (w *world) retire(n uint32) error {
	_, err := w.campaigns.Retire(w.Context(), admin, ref, n, false)
	return err
}

// destroy asks as two callers.
func (w *world) destroy(n uint32) (done bool, waiting string) {
	w.Helper()
	for _, c := range []policy.Caller{admin, second} {
		var err error
		if _, done, waiting, err = w.campaigns.Destroy(w.Context(), c, ref, n); err != nil {
			w.Fatal(err)
		}
		if done {
			break
		}
	}
	return done, waiting
}

func want(t testing.TB, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Fatalf("got %v, want %s", err, code)
	}
}

// place is a data set as a test uses it: through its adapter, and as an application does.
type place interface {
	campaign.Adapter
	put(t testing.TB, id string, message []byte) error // makes or replaces; errBelow when the floor refuses it
	all(t testing.TB) map[string][]byte
}

var errBelow = errors.New("below the floor")

// places are the data sets that every test runs on: one in memory, and the board of the demo over HTTPS.
func places(t *testing.T, test func(t *testing.T, make func(t *testing.T) place)) {
	t.Run("memory", func(t *testing.T) { test(t, func(*testing.T) place { return newShelf() }) })
	t.Run("board", func(t *testing.T) { test(t, func(t *testing.T) place { return newBoard(t) }) })
}

// boarded is the demo's board behind TLS.
type boarded struct {
	campaign.Adapter
	board *board.Board
}

func newBoard(t *testing.T) *boarded {
	b, err := board.Open(filepath.Join(t.TempDir(), "board.db"))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(b.Handler(func(*http.Request) string { return "server" }, "server"))
	t.Cleanup(func() { s.Close(); _ = b.Close() })
	return &boarded{campaign.HTTP(s.URL+"/rotor-dataset/v1", trusting(s)), b}
}

func trusting(s *httptest.Server) *tls.Config {
	c := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	c.NextProtos = nil
	return c
}

func (b *boarded) put(t testing.TB, id string, message []byte) error {
	for {
		at, _, err := b.board.Get(id)
		if err != nil && !errors.Is(err, board.ErrNotFound) {
			t.Fatal(err)
		}
		_, err = b.board.Put(id, at, message)
		switch {
		case errors.Is(err, board.ErrCondition):
			continue
		case errors.Is(err, board.ErrBelowFloor):
			return errBelow
		case err != nil:
			t.Fatal(err)
		}
		return nil
	}
}

func (b *boarded) all(t testing.TB) map[string][]byte {
	found := map[string][]byte{}
	for after := ""; ; {
		items, next, err := b.board.List(after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			found[i.ID] = i.Message
		}
		if after = next; next == "" {
			return found
		}
	}
}

// forgetful is a store that makes a commit and loses the answer, once.
type forgetful struct {
	*mem.Store

	mu    sync.Mutex // guards what follows
	path  string
	after int
	slow  chan struct{} // until it is closed, watches of data sets bring nothing; nil: they do
}

// delay makes watches of data sets late, until the function that it returns is called.
func (f *forgetful) delay() (arrive func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slow := make(chan struct{})
	f.slow = slow
	return sync.OnceFunc(func() { close(slow) })
}

func (f *forgetful) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		for events, err := range f.Store.Watch(ctx, prefix, after) {
			f.mu.Lock()
			slow := f.slow
			f.mu.Unlock()
			if slow != nil && prefix == "dataset/" {
				select {
				case <-slow:
				case <-ctx.Done():
				}
			}
			if !yield(events, err) {
				return
			}
		}
	}
}

// forget loses the answer to a commit that writes below a path, after some more.
func (f *forgetful) forget(path string, after int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path, f.after = path, after
}

func (f *forgetful) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	rev, err := f.Store.Commit(ctx, conds, ops)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.path == "" || err != nil || !strings.HasPrefix(ops[0].Key, f.path) {
		return rev, err
	}
	if f.after--; f.after >= 0 {
		return rev, nil
	}
	f.path = ""
	return 0, store.ErrUnknown
}
