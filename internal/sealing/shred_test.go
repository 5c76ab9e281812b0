package sealing_test

import (
	"context"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/seal/transit"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/testenv"
)

const doomed = "material/default/k/1"

// shredding is a store with a destroyed version, a copy of it from before the destruction, and a guard that its keeper has opened.
type shredding struct {
	*world
	keeper *sealing.Keeper
	guard  *guard.Guard
	before *mem.Store
}

// vault adds a transit engine to the roots of trust that the configuration names.
func (w *world) vault(name string) {
	w.t.Helper()
	engine, err := testenv.NewTransit("")
	w.must(err)
	h := httptest.NewTLSServer(engine)
	w.t.Cleanup(h.Close)
	dir := w.t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	w.must(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw}), 0o600))
	w.must(os.WriteFile(token, []byte(testenv.TransitToken), 0o600))
	w.named[name], err = transit.New(transit.Config{Address: h.URL, Mount: "transit", Key: "root", TokenFile: token, CAFile: ca})
	w.must(err)
}

// destroyed makes the store, puts a material into it, copies it, and destroys the material.
func destroyed(w *world, shares []shamir.Share) *shredding {
	w.t.Helper()
	s := &shredding{world: w}
	s.reopen(shares)
	blob, err := s.guard.SealMaterial(w.t.Context(), "default", []byte(doomed), secret.Copy([]byte("doomed")))
	w.must(err)
	s.commit(guard.Write{Path: doomed, Value: blob})
	s.before = s.copy()
	s.commit(guard.Write{Path: doomed, Delete: true})
	return s
}

// reopen opens the store with a keeper of its own, by shares if it takes any.
func (s *shredding) reopen(shares []shamir.Share) {
	s.t.Helper()
	s.keeper = s.world.keeper()
	for _, one := range shares {
		_, err := s.keeper.Unseal(s.t.Context(), "", "", one.Text())
		s.must(err)
	}
	g, err := guard.Open(s.t.Context(), guard.Config{Store: s.store, Sealers: s.keeper.Sealers(), Rules: onlyAlice{}, Now: s.now})
	s.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Run(ctx) }() // ends with ctx
	s.t.Cleanup(func() { stop(); <-done })
	s.keeper.Opened(g)
	s.guard = g
}

func (s *shredding) commit(w guard.Write) {
	s.t.Helper()
	p, err := s.guard.Admit(s.t.Context(), alice, policy.ActDestroy, policy.Resource{})
	s.must(err)
	_, err = p.Commit(s.t.Context(), nil, []guard.Write{w}, nil)
	s.must(err)
}

func (s *shredding) copy() *mem.Store {
	s.t.Helper()
	out := mem.New()
	_, records := s.store.List(s.t.Context(), "")
	for r, err := range records {
		s.must(err)
		_, err = out.Commit(s.t.Context(), nil, []store.Op{{Key: r.Key, Value: r.Value}})
		s.must(err)
	}
	return out
}

func (s *shredding) shred() error {
	s.t.Helper()
	p, err := s.guard.Admit(s.t.Context(), alice, policy.ActShred, policy.Resource{})
	s.must(err)
	_, err = s.guard.Turn(s.t.Context(), p, true)
	s.must(err)
	return s.guard.Tend(s.t.Context())
}

// loot is the destroyed material, for who has the copy and what opens stores today: the configured roots, and shares.
func (s *shredding) loot(shares []shamir.Share) string {
	s.t.Helper()
	wraps, err := guard.ReadWraps(s.t.Context(), s.before)
	s.must(err)
	set := sealing.Members(wraps.Wraps, s.named)
	for _, one := range shares {
		for _, p := range set.People {
			own, err := shamir.ParseShare(one.Text())
			s.must(err)
			_, _ = p.Add("", own) // of another set: it does not open, which is what is asked
		}
	}
	g, err := guard.Open(s.t.Context(), guard.Config{Store: s.before, Sealers: set.Sealers(), Now: s.now})
	if err != nil {
		return ""
	}
	r, err := g.Get(s.t.Context(), doomed)
	s.must(err)
	m, err := g.OpenMaterial(s.t.Context(), "default", []byte(doomed), r.Value)
	s.must(err)
	return string(m.Reveal())
}

// withdrawn checks that the destroyed material is said to be withdrawn and not erased, and why.
func (s *shredding) withdrawn(err error, why string) {
	s.t.Helper()
	code(s.t, err, fault.GateClosed, "the erasure")
	if err != nil && !strings.Contains(err.Error(), why) {
		s.t.Errorf("it does not say %q: %v", why, err)
	}
	if _, ok := s.guard.Erased(doomed); ok {
		s.t.Error("erased is said too early")
	}
	if r, err := s.guard.Roots(s.t.Context()); err != nil || r.Withdrawn != 1 || r.Asked.IsZero() {
		s.t.Errorf("%+v, %v", r, err)
	}
}

func (s *shredding) erased() {
	s.t.Helper()
	if _, ok := s.guard.Erased(doomed); !ok {
		s.t.Error("not erased")
	}
	if r, err := s.guard.Roots(s.t.Context()); err != nil || r.Withdrawn != 0 || !r.Asked.IsZero() {
		s.t.Errorf("%+v, %v", r, err)
	}
}

// TestShredByTransit: who has the copy and the token of today opens nothing that was destroyed before.
func TestShredByTransit(t *testing.T) {
	w := newWorld(t)
	w.vault("vault")
	w.init("vault")
	s := destroyed(w, nil)
	if got := s.loot(nil); got != "doomed" {
		t.Fatalf("before the shred the copy gives %q", got)
	}
	w.must(s.shred())
	s.erased()
	if got := s.loot(nil); got != "" {
		t.Errorf("after it the copy gives %q", got)
	}
}

// TestShredByShares: shares do not forget. What was destroyed stays withdrawn until there are others, and the old ones are destroyed.
func TestShredByShares(t *testing.T) {
	w := newWorld(t)
	old := w.init("shamir:2/3")
	s := destroyed(w, old[:2])
	first := "shamir:2/3:" + old[0].Set
	p, err := s.guard.Admit(t.Context(), alice, policy.ActShred, policy.Resource{})
	w.must(err)
	_, err = s.guard.Turn(t.Context(), p, true)
	code(t, err, fault.Unavailable, "a shred without people")
	for _, one := range old[:2] {
		_, err = s.keeper.Unseal(t.Context(), "", "", one.Text())
		w.must(err)
	}
	s.withdrawn(s.shred(), first)
	if got := s.loot(old[1:]); got != "doomed" {
		t.Fatalf("with the shares of then the copy gives %q", got)
	}
	_, err = s.keeper.StartRekey(t.Context(), alice, "2/3", "")
	w.must(err)
	r := sealing.Rekey{}
	for _, one := range old[1:] {
		r, err = s.keeper.Rekey(t.Context(), alice, "", one.Text())
		w.must(err)
	}
	fresh := r.Shares
	for _, one := range fresh[:2] {
		_, err = s.keeper.Rekey(t.Context(), alice, "", one.Text())
		w.must(err)
	}
	s.withdrawn(s.guard.Tend(t.Context()), "gone")
	if r, err := s.guard.Roots(t.Context()); err != nil || !slices.Equal(r.Outside, []string{first}) {
		t.Errorf("%+v, %v", r, err)
	}
	code(t, s.keeper.Change(t.Context(), bob, "gone", first), fault.Denied, "gone without the right")
	code(t, s.keeper.Change(t.Context(), alice, "gone", "shamir:2/3:0000"), fault.NotFound, "gone, of nobody")
	code(t, s.keeper.Change(t.Context(), alice, "gone", "shamir:2/3:"+fresh[0].Set), fault.InUse, "gone, of a member")
	w.must(s.keeper.Change(t.Context(), alice, "gone", first))
	w.must(s.guard.Tend(t.Context()))
	s.erased()
	if r, err := s.guard.Roots(t.Context()); err != nil || len(r.Outside) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if got := s.loot(fresh[:2]); got != "" {
		t.Errorf("with today's shares the copy gives %q", got)
	}
	s.reopen(fresh[1:]) // and what lives opens with them
	s.erased()
}

// TestARemovedSealerForgets: one that was taken out of the wrap set is told as well.
func TestARemovedSealerForgets(t *testing.T) {
	for name, there := range map[string]bool{"configured": true, "not configured any more": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.init("far", "near")
			s := destroyed(w, nil)
			far := w.named["far"]
			w.must(s.keeper.Change(t.Context(), alice, "remove", "far"))
			if r, err := s.guard.Roots(t.Context()); err != nil || !slices.Equal(r.Outside, []string{far.ID()}) {
				t.Errorf("%+v, %v", r, err)
			}
			if !there {
				s.keeper.SetNamed(map[string]seal.Sealer{"near": w.named["near"]})
				s.withdrawn(s.shred(), far.ID())
				s.keeper.SetNamed(w.named)
				w.must(s.guard.Tend(t.Context()))
			} else {
				w.must(s.shred())
			}
			s.erased()
			if got := s.loot(nil); got != "" {
				t.Errorf("the removed sealer opens the copy: %q", got)
			}
			if r, err := s.guard.Roots(t.Context()); err != nil || len(r.Outside) != 0 {
				t.Errorf("%+v, %v", r, err)
			}
			w.must(s.keeper.Change(t.Context(), alice, "add", "far")) // it can come back
		})
	}
}
