package guard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// turn makes another root key with a permit for it.
func (w *world) turn(g *guard.Guard, a policy.Action) (uint64, error) {
	w.t.Helper()
	p, err := g.Admit(w.t.Context(), alice, a, policy.Resource{})
	if err != nil {
		w.t.Fatal(err)
	}
	return g.Turn(w.t.Context(), p, a == policy.ActShred)
}

// copyOf copies a store at one moment, as a thief or a backup does.
func copyOf(t *testing.T, s store.Store) *mem.Store {
	t.Helper()
	out := mem.New()
	_, records := s.List(t.Context(), "")
	for r, err := range records {
		if err == nil {
			_, err = out.Commit(t.Context(), nil, []store.Op{{Key: r.Key, Value: r.Value}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// material puts what stands for the material of a version, sealed as kms does, and returns what opens it again.
func (w *world) material(g *guard.Guard, path, bytes string) {
	w.t.Helper()
	blob, err := g.SealMaterial(w.t.Context(), "default", []byte(path), secret.Take([]byte(bytes)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.put(g, path, string(blob))
}

func (w *world) openMaterial(g *guard.Guard, path string) (string, error) {
	w.t.Helper()
	r, err := g.Get(w.t.Context(), path)
	if err != nil {
		return "", err
	}
	m, err := g.OpenMaterial(w.t.Context(), "default", []byte(path), r.Value)
	return string(m.Reveal()), err
}

func TestRotateRoot(t *testing.T) {
	onEngines(t, func(t *testing.T, w *world) {
		g, stop := w.open()
		for i := range 120 { // more than two commits of sealing again
			w.put(g, fmt.Sprintf("x/%03d", i), "before")
		}
		w.material(g, "material/default/k/1", "the material")
		var before rootJSON
		w.root(&before)
		began, err := g.Roots(t.Context())
		if err != nil || began.Since.IsZero() {
			t.Fatal(began, err)
		}
		w.clock.Add(60)
		if gen, err := w.turn(g, policy.ActRotateRoot); err != nil || gen != 2 {
			t.Fatal(gen, err)
		}
		if err := g.Tend(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.put(g, "x/000", "after")
		var after rootJSON
		w.root(&after)
		if after.Root != 2 || len(after.Older) != 0 || len(after.Wraps) != 1 || bytes.Equal(after.Wraps[w.sealer.ID()], before.Wraps[w.sealer.ID()]) {
			t.Errorf("%+v", after)
		}
		for _, key := range w.keys("") {
			if strings.HasPrefix(key, "log/") || key == "seal/root" {
				continue
			}
			if blob := w.raw(key).Value; !bytes.Equal(blob[:2], []byte{0, 1}) {
				t.Errorf("%s is of generation %d", key, int(blob[0])<<8+int(blob[1])+1)
			}
		}
		r, err := g.Roots(t.Context())
		if err != nil || r.Generation != 2 || len(r.Older) != 0 || !r.Asked.IsZero() || !r.Since.After(began.Since) {
			t.Errorf("%+v, %v", r, err)
		}
		entries := w.entries(g)
		stop()
		g, _ = w.open() // the log, too, is under the new key
		if m, err := w.openMaterial(g, "material/default/k/1"); err != nil || m != "the material" {
			t.Errorf("%q, %v", m, err)
		}
		if r, err := g.Get(t.Context(), "x/000"); err != nil || string(r.Value) != "after" {
			t.Errorf("%q, %v", r.Value, err)
		}
		wantEntry(t, entries, "server.rotate", map[string]string{"generation": "2"})
		wantEntry(t, entries, "server.reseal", map[string]string{"generation": "2"})
		wantEntry(t, entries, "server.retire-root", map[string]string{"retired": "1"})
	})
}

type rootJSON struct {
	Root  uint64                       `json:"root"`
	Wraps map[string][]byte            `json:"wraps"`
	Older map[uint64]map[string][]byte `json:"older"`
}

func (w *world) root(into *rootJSON) {
	w.t.Helper()
	if err := json.Unmarshal(w.raw("seal/root").Value, into); err != nil {
		w.t.Fatal(err)
	}
}

func wantEntry(t *testing.T, entries []audit.Entry, action string, detail map[string]string) {
	t.Helper()
	for _, e := range entries {
		fits := e.Action == action
		for k, v := range detail {
			fits = fits && e.Detail[k] == v
		}
		if fits {
			return
		}
	}
	t.Errorf("no entry %s %v", action, detail)
}

// TestRotateRootWhileServing: writers and readers see nothing of it.
func TestRotateRootWhileServing(t *testing.T) {
	w := newWorld(t, mem.New())
	rotateWhileServing(t, w, w.store)
}

// rotateWhileServing rotates at one server, while others write and read there and at a second one, which has a connection of its own to the store.
func rotateWhileServing(t *testing.T, w *world, second store.Store) {
	t.Helper()
	g, _ := w.open()
	c := w.config()
	c.Store = second
	other, _ := w.openWith(c)
	var users sync.WaitGroup
	var done atomic.Bool
	for n := range 4 {
		at := []*guard.Guard{g, other}[n%2]
		p := w.permit(at)
		users.Go(func() {
			path := fmt.Sprintf("y/%d", n)
			for i := 0; !done.Load() || i < 3; i++ {
				if _, err := p.Commit(t.Context(), nil, []guard.Write{{Path: path, Value: []byte(fmt.Sprint(i))}}, nil); fault.CodeOf(err) == fault.Conflict {
					i-- // the record was sealed again between its reading and the commit, as by any other writer
					continue
				} else if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if err := p.Release(t.Context(), nil); err != nil {
					t.Errorf("release: %v", err)
				}
				if r, err := at.Get(t.Context(), path); err != nil || string(r.Value) != fmt.Sprint(i) {
					t.Errorf("read: %q, %v; want %d", r.Value, err, i)
				}
			}
		})
	}
	for turn := range 3 {
		if _, err := w.turn(g, policy.ActRotateRoot); err != nil {
			t.Error(turn, err)
		}
		if err := g.Tend(t.Context()); err != nil {
			t.Error(turn, err)
		}
	}
	done.Store(true)
	users.Wait()
	if r, err := other.Roots(t.Context()); err != nil || r.Generation != 4 {
		t.Errorf("the other server is at %+v, %v", r, err)
	}
}

// dying is a store whose commits stop after n of them, before or after the last is durable: a crash at that boundary.
type dying struct {
	store.Store
	left  atomic.Int64
	after bool
	died  func()
}

var errDead = errors.New("the process is dead")

func (d *dying) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	left := d.left.Add(-1)
	if left < 0 {
		defer d.died()
	}
	switch {
	case left < -1, left == -1 && !d.after:
		return 0, errDead
	case left == -1:
		if _, err := d.Store.Commit(ctx, conds, ops); err != nil {
			return 0, err
		}
		return 0, errDead
	}
	return d.Store.Commit(ctx, conds, ops)
}

// TestShredSurvivesACrashAnywhere: the process dies at each commit in turn, before and after it is durable; whoever opens the store next
// goes on and finishes, and nothing is lost.
func TestShredSurvivesACrashAnywhere(t *testing.T) {
	for _, after := range []bool{false, true} {
		finished := false
		for n := int64(0); !finished; n++ {
			if n > 100 {
				t.Fatal("it never finishes")
			}
			t.Run(fmt.Sprintf("after=%v/%d", after, n), func(t *testing.T) { finished = crashAt(t, n, after) })
		}
	}
}

func crashAt(t *testing.T, n int64, after bool) (finished bool) {
	w := newWorld(t, mem.New())
	g, stop := w.open()
	for i := range 60 {
		w.put(g, fmt.Sprintf("x/%02d", i), fmt.Sprint(i))
	}
	w.material(g, "material/default/k/1", "doomed")
	w.material(g, "material/default/k/2", "alive")
	if _, err := w.permit(g).Commit(t.Context(), nil, []guard.Write{{Path: "material/default/k/1", Delete: true}}, nil); err != nil {
		t.Fatal(err)
	}
	w.entries(g)
	stop()
	alive := w.store
	life, die := context.WithCancel(t.Context())
	defer die()
	d := &dying{Store: alive, after: after, died: die}
	d.left.Store(n)
	w.store = d
	g, stop = w.open()
	p := g.System("test", policy.ActShred, policy.Resource{})
	_, err := g.Turn(life, p, true)
	if err == nil {
		err = g.Tend(life)
	}
	finished = err == nil
	stop()
	w.store = alive
	g, _ = w.open()
	if r, err := g.Roots(t.Context()); err != nil {
		t.Fatal(err)
	} else if r.Generation == 1 { // it died before the first commit: ask again
		if _, err := g.Turn(t.Context(), g.System("test", policy.ActShred, policy.Resource{}), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		if r, err := g.Get(t.Context(), fmt.Sprintf("x/%02d", i)); err != nil || string(r.Value) != fmt.Sprint(i) {
			t.Errorf("x/%02d: %q, %v", i, r.Value, err)
		}
	}
	if m, err := w.openMaterial(g, "material/default/k/2"); err != nil || m != "alive" {
		t.Errorf("%q, %v", m, err)
	}
	if _, ok := g.Erased("material/default/k/1"); !ok {
		t.Error("what was destroyed before is not erased")
	}
	if r, err := g.Roots(t.Context()); err != nil || r.Generation != 2 || len(r.Older) != 0 || !r.Asked.IsZero() || r.Withdrawn != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	return finished
}

// TestAfterAShredAnOldCopyOpensNothing: who has copies of the store from before and from during the shred, and the key file of today, can
// open nothing that was destroyed before; with the key file of then they could.
func TestAfterAShredAnOldCopyOpensNothing(t *testing.T) {
	w := newWorld(t, mem.New())
	keyFile := filepath.Join(t.TempDir(), "seal.key")
	var err error
	sealer, err := local.Create(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	w.store, w.sealer = mem.New(), sealer
	if w.made, err = guard.Init(t.Context(), w.config()); err != nil {
		t.Fatal(err)
	}
	g, stop := w.open()
	w.material(g, "material/default/k/1", "doomed")
	w.material(g, "material/default/k/2", "alive")
	copies := []*mem.Store{copyOf(t, w.store)}
	oldKeys, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.permit(g).Commit(t.Context(), nil, []guard.Write{{Path: "material/default/k/1", Delete: true}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := g.Erased("material/default/k/1"); ok {
		t.Error("erased before anything forgot")
	}
	stop()
	watched := &watching{Store: w.store, t: t}
	w.store = watched
	g2, _ := w.open()
	if _, err := w.turn(g2, policy.ActShred); err != nil {
		t.Fatal(err)
	}
	if err := g2.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at, ok := g2.Erased("material/default/k/1"); !ok || !at.Equal(w.now().UTC()) {
		t.Errorf("%v, %v", at, ok)
	}
	if _, ok := g2.Erased("material/default/k/2"); ok {
		t.Error("what lives is erased")
	}
	copies = append(copies, watched.copies...)
	if len(copies) < 4 {
		t.Fatalf("only %d copies", len(copies))
	}
	today, err := local.Open(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	then := filepath.Join(t.TempDir(), "then.key")
	if err := os.WriteFile(then, oldKeys, 0o600); err != nil {
		t.Fatal(err)
	}
	thief, err := local.Open(then)
	if err != nil {
		t.Fatal(err)
	}
	if m := loot(t, copies[0], thief); m != "doomed" {
		t.Fatalf("the test's own thief does not open the copy with the key file of then: %q", m)
	}
	for i, c := range copies {
		if m := loot(t, c, today); m != "" {
			t.Errorf("copy %d opens with today's key file: %q", i, m)
		}
	}
}

// loot opens the destroyed material of a copy with a sealer, as far as it goes.
func loot(t *testing.T, c store.Store, s seal.Sealer) string {
	t.Helper()
	g, err := guard.Open(t.Context(), guard.Config{Store: c, Sealers: []seal.Sealer{s}, Rules: only{}, Now: time.Now})
	if err != nil {
		return ""
	}
	r, err := g.Get(t.Context(), "material/default/k/1")
	if err != nil {
		return ""
	}
	m, err := g.OpenMaterial(t.Context(), "default", []byte("material/default/k/1"), r.Value)
	if err != nil {
		return ""
	}
	return string(m.Reveal())
}

// watching copies the store after each commit that touches the root record.
type watching struct {
	store.Store
	t      *testing.T
	mu     sync.Mutex
	copies []*mem.Store
}

func (s *watching) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	rev, err := s.Store.Commit(ctx, conds, ops)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && strings.Contains(fmt.Sprint(keysOf(ops)), "guard/") {
		s.copies = append(s.copies, copyOf(s.t, s.Store))
	}
	return rev, err
}

func keysOf(ops []store.Op) (keys []string) {
	for _, op := range ops {
		keys = append(keys, op.Key)
	}
	return keys
}

// stubborn is a sealer that cannot forget, or is not there.
type stubborn struct {
	seal.Sealer
	forget, wrap error
	lies         bool // says that it forgot and did not
	wrong        bool // unwraps something else
}

func (s stubborn) Forget(ctx context.Context, before uint64) error {
	if s.forget != nil || s.lies {
		return s.forget
	}
	return s.Sealer.Forget(ctx, before)
}

func (s stubborn) Wrap(ctx context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	if s.wrap != nil {
		return nil, s.wrap
	}
	if s.wrong && generation > 1 {
		root = secret.Random(32)
	}
	return s.Sealer.Wrap(ctx, root, generation)
}

func TestASealerThatCannotForgetIsNamed(t *testing.T) {
	for name, bad := range map[string]stubborn{
		"cannot": {forget: errors.New("the shares are with people")},
		"lies":   {lies: true},
		"away":   {forget: seal.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mem.New())
			g, stop := w.open()
			w.material(g, "material/default/k/1", "doomed")
			if _, err := w.permit(g).Commit(t.Context(), nil, []guard.Write{{Path: "material/default/k/1", Delete: true}}, nil); err != nil {
				t.Fatal(err)
			}
			stop()
			good := w.sealer
			bad.Sealer = good
			w.sealer = bad
			g, stop = w.open()
			if _, err := w.turn(g, policy.ActShred); err != nil {
				t.Fatal(err)
			}
			err := g.Tend(t.Context())
			wantCode(t, err, fault.GateClosed, good.ID())
			if _, ok := g.Erased("material/default/k/1"); ok {
				t.Error("erased, although a sealer did not forget")
			}
			if r, err := g.Roots(t.Context()); err != nil || r.Asked.IsZero() || r.Withdrawn != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			stop()
			w.sealer = good // it can now
			g, _ = w.open()
			if err := g.Tend(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := g.Erased("material/default/k/1"); !ok {
				t.Error("not erased")
			}
		})
	}
}

func TestANewRootIsProvenFirst(t *testing.T) {
	for name, bad := range map[string]stubborn{"away": {wrap: seal.ErrUnavailable}, "wrong": {wrong: true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mem.New())
			bad.Sealer = w.sealer
			w.sealer = bad
			g, _ := w.open()
			before := w.raw("seal/root").Rev
			if _, err := w.turn(g, policy.ActRotateRoot); err == nil {
				t.Error("a root that does not come back was taken")
			}
			if w.raw("seal/root").Rev != before {
				t.Error("the root record was changed")
			}
		})
	}
}

// TestTheRightToTurn: the same door as for everything else, and not twice at once.
func TestTheRightToTurn(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	if _, err := g.Admit(t.Context(), bob, policy.ActShred, policy.Resource{}); fault.CodeOf(err) != fault.Denied {
		t.Error(err)
	}
	if _, err := g.Turn(t.Context(), nil, false); fault.CodeOf(err) != fault.Denied {
		t.Error(err)
	}
}

// TestAReplayAcrossGenerationsIsNamed: a record of an earlier generation, put back, is no more believed than any other old one.
func TestAReplayAcrossGenerationsIsNamed(t *testing.T) {
	w := newWorld(t, mem.New())
	g, stop := w.open()
	w.put(g, "x/a", "1")
	old := w.raw("x/a").Value
	oldRoot := w.raw("seal/root").Value
	if _, err := w.turn(g, policy.ActRotateRoot); err != nil {
		t.Fatal(err)
	}
	if err := g.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	new := w.raw("x/a").Value
	w.tamper(store.Op{Key: "x/a", Value: old})
	_, err := guard.Open(t.Context(), w.config())
	wantCode(t, err, fault.RecordReplayed, "x/a")
	w.tamper(store.Op{Key: "x/a", Value: new}, store.Op{Key: "seal/root", Value: oldRoot})
	if _, err = guard.Open(t.Context(), w.config()); err == nil {
		t.Error("an old root record, put back, was believed")
	}
}
