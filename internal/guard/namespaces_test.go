package guard_test

import (
	"context"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// in is a permit about a namespace.
func in(g *guard.Guard, namespace string) *guard.Permit {
	return g.System("test", policy.ActEncrypt, policy.Resource{Namespace: namespace})
}

// ends closes a namespace and notes that it is deleted.
func (w *world) ends(g *guard.Guard, namespace string) {
	w.t.Helper()
	still, done, err := g.CloseNamespace(w.t.Context(), w.permit(g), namespace)
	if err != nil || done {
		w.t.Fatalf("%t, %v", done, err)
	}
	if _, err := g.EndNamespace(w.t.Context(), w.permit(g), namespace, still); err != nil {
		w.t.Fatal(err)
	}
}

// TestNamespaceLife: nothing about a closed namespace is committed, and nothing of a former life in one that is made again.
func TestNamespaceLife(t *testing.T) {
	onEngines(t, func(t *testing.T, w *world) {
		g, stop := w.open()
		ctx := t.Context()
		create := func() error { return g.CreateNamespace(ctx, w.permit(g), "team", nil) }
		write := func(p *guard.Permit) error {
			_, err := p.Commit(ctx, nil, []guard.Write{{Path: "x/team", Value: []byte("v")}}, nil)
			return err
		}
		if err := create(); err != nil {
			t.Fatal(err)
		}
		first := in(g, "team")
		asked, err := g.Admit(ctx, alice, policy.ActEncrypt, policy.Resource{Namespace: "team"})
		if err != nil {
			t.Fatal(err)
		}
		vouched := g.Vouch(alice, "login", "of a test").Within("team")
		if err := write(first); err != nil {
			t.Fatal(err)
		}
		still, done, err := g.CloseNamespace(ctx, w.permit(g), "team")
		if err != nil || done || g.HasNamespace("team") || len(g.Namespaces()) != 1 {
			t.Fatalf("%t, %v, %v", done, err, g.Namespaces())
		}
		for _, p := range []*guard.Permit{first, asked, vouched, in(g, "team")} {
			refusedAs(t, write(p), fault.NotFound, "in a closed one")
		}
		refusedAs(t, create(), fault.InUse, "made while it is closed")
		if again, done, err := g.CloseNamespace(ctx, w.permit(g), "team"); err != nil || done || again != still {
			t.Errorf("closed again: %v, %t, %v", again, done, err)
		}
		if err := g.ReopenNamespace(ctx, w.permit(g), "team", still); err != nil || !g.HasNamespace("team") {
			t.Fatal(err)
		}
		refusedAs(t, g.ReopenNamespace(ctx, w.permit(g), "team", still), fault.Conflict, "opened twice")
		_, err = g.EndNamespace(ctx, w.permit(g), "team", still)
		refusedAs(t, err, fault.Conflict, "ended after it was opened again")
		for _, p := range []*guard.Permit{first, in(g, "team")} { // it has not ended
			if err := write(p); err != nil {
				t.Fatal(err)
			}
		}
		w.ends(g, "team")
		stop()
		g, _ = w.open() // what the log says
		if _, done, err := g.CloseNamespace(ctx, w.permit(g), "team"); err != nil || !done || g.HasNamespace("team") {
			t.Fatalf("%t, %v", done, err)
		}
		before := in(g, "team")
		refusedAs(t, write(before), fault.NotFound, "in a deleted one")
		if err := create(); err != nil || !g.HasNamespace("team") {
			t.Fatal(err)
		}
		refusedAs(t, create(), fault.Exists, "made twice")
		refusedAs(t, write(before), fault.NotFound, "by a permit of before")
		if err := write(in(g, "team")); err != nil {
			t.Error(err)
		}
		for _, name := range []string{guard.First, "none"} {
			_, _, err := g.CloseNamespace(ctx, w.permit(g), name)
			refusedAs(t, err, fault.NotFound, name)
		}
	})
}

// TestNamespaceIsClosedMeanwhile: a commit that another server overtakes with a deletion fails, also when the namespace is made again before it comes to the store.
func TestNamespaceIsClosedMeanwhile(t *testing.T) {
	w := newWorld(t, newMem())
	two, _ := w.open()
	if err := two.CreateNamespace(t.Context(), w.permit(two), "team", nil); err != nil {
		t.Fatal(err)
	}
	m := &meddling{Store: w.store}
	w.store = m
	one, _ := w.open()
	for what, meddle := range map[string]func(){
		"closed": func() {
			if _, _, err := two.CloseNamespace(t.Context(), w.permit(two), "team"); err != nil {
				t.Error(err)
			}
		},
		"made again": func() {
			w.ends(two, "team")
			if err := two.CreateNamespace(t.Context(), w.permit(two), "team", nil); err != nil {
				t.Error(err)
			}
		},
	} {
		p := in(one, "team")
		m.before.Store(&meddle)
		_, err := p.Commit(t.Context(), nil, []guard.Write{{Path: "a/same", Value: []byte("v")}}, nil)
		refusedAs(t, err, fault.NotFound, what)
		if _, err := two.Get(t.Context(), "a/same"); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("%s: it is there: %v", what, err)
		}
		if still, done, err := two.CloseNamespace(t.Context(), w.permit(two), "team"); err != nil || done {
			t.Fatal(err)
		} else if err := two.ReopenNamespace(t.Context(), w.permit(two), "team", still); err != nil {
			t.Fatal(err)
		}
		if _, err := one.CaughtUp(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in(one, "team").Commit(t.Context(), nil, []guard.Write{{Path: "a/same", Value: []byte("v")}}, nil); err != nil {
		t.Error(err)
	}
}

// TestNamespaceIsMadeWhenHeard: the name of a deleted namespace is given again when others have heard of its end.
func TestNamespaceIsMadeWhenHeard(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	if err := g.CreateNamespace(t.Context(), w.permit(g), "team", nil); err != nil {
		t.Fatal(err)
	}
	w.ends(g, "team")
	behind := fault.New(fault.Unavailable, "server b")
	err := g.CreateNamespace(t.Context(), w.permit(g), "team", func(_ context.Context, rev store.Rev) error {
		if rev == 0 {
			t.Error("no commit to hear of")
		}
		return behind
	})
	refusedAs(t, err, fault.Unavailable, "while a server has not heard of it")
	if g.HasNamespace("team") {
		t.Error("it is there")
	}
}

func refusedAs(t *testing.T, err error, code fault.Code, what string) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}
