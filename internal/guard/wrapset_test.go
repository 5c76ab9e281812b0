package guard_test

import (
	"context"
	"errors"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

func keyFile(t *testing.T) (*local.Sealer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seal.key")
	s, err := local.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return s, path
}

func (w *world) sealPermit(g *guard.Guard) *guard.Permit {
	w.t.Helper()
	p, err := g.Admit(w.t.Context(), alice, policy.ActSeal, policy.Resource{})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// opensWith says whether one sealer alone opens the store.
func (w *world) opensWith(s seal.Sealer) error {
	c := w.config()
	c.Sealers = []seal.Sealer{s}
	_, err := guard.Open(w.t.Context(), c)
	return err
}

func (w *world) set(g *guard.Guard) []string {
	w.t.Helper()
	set, err := g.Wraps(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for id := range set.Wraps {
		ids = append(ids, id)
	}
	return slices.Sorted(slices.Values(ids))
}

// TestWrapSet: any one member opens, what was removed does not, and each change is an entry with who made it.
func TestWrapSet(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	w.put(g, "a/1", "kept")
	second, _ := keyFile(t)
	third, _ := keyFile(t)
	ctx := t.Context()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(g.AddSealer(ctx, w.sealPermit(g), second))
	do(w.opensWith(w.sealer))
	do(w.opensWith(second))
	if err := w.opensWith(third); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("a stranger: %v", err)
	}
	if err := g.AddSealer(ctx, w.sealPermit(g), second); fault.CodeOf(err) != fault.Exists {
		t.Errorf("added twice: %v", err)
	}
	old := w.raw("seal/root")
	do(g.RotateSealer(ctx, w.sealPermit(g), second))
	do(second.Forget(ctx, 2)) // only what is in the set now counts
	do(w.opensWith(second))
	do(w.opensWith(w.sealer))
	do(g.ReplaceSealer(ctx, w.sealPermit(g), second.ID(), third))
	do(w.opensWith(third))
	if err := w.opensWith(second); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("what was replaced: %v", err)
	}
	if err := g.RemoveSealer(ctx, w.sealPermit(g), second.ID(), []seal.Sealer{third}); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("removed what is not there: %v", err)
	}
	do(g.RemoveSealer(ctx, w.sealPermit(g), w.sealer.ID(), []seal.Sealer{third}))
	if got := w.set(g); !slices.Equal(got, []string{third.ID()}) {
		t.Errorf("%v", got)
	}
	if err := g.RemoveSealer(ctx, w.sealPermit(g), third.ID(), []seal.Sealer{third}); fault.CodeOf(err) != fault.InUse {
		t.Errorf("the last one: %v", err)
	}
	if err := g.AddSealer(ctx, nil, second); fault.CodeOf(err) != fault.Denied {
		t.Errorf("without a permit: %v", err)
	}
	var changes []string
	for _, e := range w.entries(g) {
		if e.Action == string(policy.ActSeal) && e.Outcome == "done" && e.Caller == alice.Name {
			changes = append(changes, strings.Fields(e.Detail["change"])[0]+" "+e.Detail["sealer"])
		}
	}
	want := []string{"add " + second.ID(), "rotate " + second.ID(), "replace " + third.ID(), "remove " + w.sealer.ID()}
	if !slices.Equal(changes, want) {
		t.Errorf("the log says %q, not %q", changes, want)
	}

	// An older root record, put back, would bring a removed sealer back.
	w.tamper(store.Op{Key: old.Key, Value: old.Value})
	if _, err := g.Wraps(ctx); fault.CodeOf(err) != fault.RecordReplayed {
		t.Errorf("an older root record, in the running guard: %v", err)
	}
	if err := w.opensWith(w.sealer); fault.CodeOf(err) != fault.RecordReplayed && fault.CodeOf(err) != fault.RecordTampered {
		t.Errorf("an older root record, at the start: %v", err)
	}
}

// odd is a sealer with a fault of its own.
type odd struct {
	seal.Sealer
	unwrap func(secret.Bytes, error) (secret.Bytes, error)
}

func (o odd) Unwrap(ctx context.Context, blob []byte) (secret.Bytes, error) {
	return o.unwrap(o.Sealer.Unwrap(ctx, blob))
}

// TestWrapIsProven: a sealer that wraps and does not open, or opens to something else, never gets into the set, and takes none out.
func TestWrapIsProven(t *testing.T) {
	w := newWorld(t, mem.New())
	g, _ := w.open()
	before := w.raw("seal/root")
	for name, c := range map[string]struct {
		unwrap func(secret.Bytes, error) (secret.Bytes, error)
		code   fault.Code
	}{
		"does not open":   {func(secret.Bytes, error) (secret.Bytes, error) { return secret.Bytes{}, seal.ErrWrongSealer }, fault.SealWrong},
		"is away":         {func(secret.Bytes, error) (secret.Bytes, error) { return secret.Bytes{}, seal.ErrUnavailable }, fault.Unavailable},
		"gives another":   {func(secret.Bytes, error) (secret.Bytes, error) { return secret.Random(32), nil }, fault.SealWrong},
		"gives nothing":   {func(secret.Bytes, error) (secret.Bytes, error) { return secret.Bytes{}, nil }, fault.SealWrong},
		"gives a shorter": {func(r secret.Bytes, err error) (secret.Bytes, error) { return secret.Copy(r.Reveal()[:31]), err }, fault.SealWrong},
	} {
		inner, _ := keyFile(t)
		bad := odd{inner, c.unwrap}
		if err := g.AddSealer(t.Context(), w.sealPermit(g), bad); fault.CodeOf(err) != c.code {
			t.Errorf("%s: added: %v", name, err)
		}
		if err := g.ReplaceSealer(t.Context(), w.sealPermit(g), w.sealer.ID(), bad); fault.CodeOf(err) != c.code {
			t.Errorf("%s: replaced: %v", name, err)
		}
		if err := g.RotateSealer(t.Context(), w.sealPermit(g), odd{w.sealer, c.unwrap}); fault.CodeOf(err) != c.code {
			t.Errorf("%s: rotated: %v", name, err)
		}
		good, _ := keyFile(t)
		if err := g.AddSealer(t.Context(), w.sealPermit(g), good); err != nil {
			t.Fatal(err)
		}
		if err := g.RemoveSealer(t.Context(), w.sealPermit(g), w.sealer.ID(), []seal.Sealer{odd{good, c.unwrap}}); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: removed: %v", name, err)
		}
		if err := g.RemoveSealer(t.Context(), w.sealPermit(g), good.ID(), []seal.Sealer{w.sealer}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.opensWith(w.sealer); err != nil {
		t.Error(err)
	}
	if before.Rev == w.raw("seal/root").Rev {
		t.Error("the set was never changed, so nothing was tried")
	}
}

var errFuse = errors.New("the process is gone")

// fuse counts the calls of one change that leave the process and cuts the change off at one of them, before it or after it. The guard's own
// loops, whose calls come when they come, are let through.
type fuse struct {
	mu    sync.Mutex // guards what follows
	armed bool
	left  int
	after bool
	blown bool
}

// ofChange marks the context of the change whose calls count.
type ofChange struct{}

func (f *fuse) call(ctx context.Context, do func() error) error {
	if ctx.Value(ofChange{}) == nil {
		return do()
	}
	f.mu.Lock()
	if f.armed && !f.blown {
		f.left--
		f.blown = f.left < 0
		if f.blown && f.after {
			f.mu.Unlock()
			_ = do() // it happens, and nobody hears of it
			return errFuse
		}
	}
	gone := f.blown
	f.mu.Unlock()
	if gone {
		return errFuse
	}
	return do()
}

func (f *fuse) arm(left int, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed, f.left, f.after = true, left, after
}

func (f *fuse) isBlown() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blown
}

type fusedStore struct {
	store.Store
	f *fuse
}

func (s fusedStore) Get(ctx context.Context, key string) (r store.Record, err error) {
	err = s.f.call(ctx, func() error { r, err = s.Store.Get(ctx, key); return err })
	return r, err
}

func (s fusedStore) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (rev store.Rev, err error) {
	err = s.f.call(ctx, func() error { rev, err = s.Store.Commit(ctx, conds, ops); return err })
	return rev, err
}

func (s fusedStore) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	return s.Store.List(ctx, prefix)
}

type fusedSealer struct {
	seal.Sealer
	f *fuse
}

func (s fusedSealer) Wrap(ctx context.Context, root secret.Bytes, generation uint64) (blob []byte, err error) {
	err = s.f.call(ctx, func() error { blob, err = s.Sealer.Wrap(ctx, root, generation); return err })
	return blob, err
}

func (s fusedSealer) Unwrap(ctx context.Context, blob []byte) (root secret.Bytes, err error) {
	err = s.f.call(ctx, func() error { root, err = s.Sealer.Unwrap(ctx, blob); return err })
	return root, err
}

// TestCrashes cuts every change of the wrap set off before and after each call that leaves the process. The set is the old one or the new
// one, the record is believed, and every member of it opens.
func TestCrashes(t *testing.T) {
	for name, change := range map[string]func(ctx context.Context, g *guard.Guard, p *guard.Permit, first, second, third seal.Sealer) error{
		"add": func(ctx context.Context, g *guard.Guard, p *guard.Permit, _, _, third seal.Sealer) error {
			return g.AddSealer(ctx, p, third)
		},
		"remove": func(ctx context.Context, g *guard.Guard, p *guard.Permit, first, second, _ seal.Sealer) error {
			return g.RemoveSealer(ctx, p, first.ID(), []seal.Sealer{second})
		},
		"rotate": func(ctx context.Context, g *guard.Guard, p *guard.Permit, first, _, _ seal.Sealer) error {
			return g.RotateSealer(ctx, p, first)
		},
		"replace": func(ctx context.Context, g *guard.Guard, p *guard.Permit, first, _, third seal.Sealer) error {
			return g.ReplaceSealer(ctx, p, first.ID(), third)
		},
	} {
		t.Run(name, func(t *testing.T) {
			steps := 0
			for cut := 0; ; cut++ {
				done := false
				for _, after := range []bool{false, true} {
					done = crash(t, cut, after, change)
				}
				if done {
					steps = cut
					break
				}
			}
			if steps < 2 {
				t.Errorf("only %d calls left the process", steps)
			}
		})
	}
}

// crash makes one change with a fuse, and says whether it came through whole.
func crash(t *testing.T, cut int, after bool, change func(ctx context.Context, g *guard.Guard, p *guard.Permit, first, second, third seal.Sealer) error) bool {
	t.Helper()
	far := &fuse{}
	inner := mem.New()
	w := newWorld(t, fusedStore{inner, far})
	first, ok := w.sealer.(*local.Sealer)
	if !ok {
		t.Fatal("another sealer")
	}
	second, path2 := keyFile(t)
	third, path3 := keyFile(t)
	g, stop := w.open()
	if err := g.AddSealer(t.Context(), w.sealPermit(g), second); err != nil {
		t.Fatal(err)
	}
	p := w.sealPermit(g)
	old := w.set(g)
	far.arm(cut, after)
	err := change(context.WithValue(t.Context(), ofChange{}, true), g, p, fusedSealer{first, far}, fusedSealer{second, far}, fusedSealer{third, far})
	blown := far.isBlown()
	if blown != (err != nil) {
		t.Fatalf("cut at %d: %v", cut, err)
	}
	stop()

	w.store = inner
	rec, err := guard.ReadWraps(t.Context(), inner)
	if err != nil || len(rec.Wraps) == 0 {
		t.Fatalf("cut at %d: %v", cut, err)
	}
	files := map[string]*local.Sealer{first.ID(): first} // what the other two keep is read again from their files
	for _, path := range []string{path2, path3} {
		s, err := local.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		files[s.ID()] = s
	}
	var now []string
	for id := range rec.Wraps {
		now = append(now, id)
		if err := w.opensWith(files[id]); err != nil {
			t.Errorf("cut at %d, after %t: %s does not open: %v", cut, after, id, err)
		}
	}
	slices.Sort(now)
	if blown && !after && !slices.Equal(now, old) {
		t.Errorf("cut before call %d: %v became %v", cut, old, now)
	}
	return !blown
}
