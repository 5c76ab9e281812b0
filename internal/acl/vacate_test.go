package acl_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// dying is a store that a server loses: its commit of a number is not made, or its reply is lost, and nothing works after it.
type dying struct {
	store.Store
	left  atomic.Int64 // commits until then
	reply bool         // the commit is made
}

var errDied = errors.New("the server has died")

func (d *dying) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	switch n := d.left.Add(-1); {
	case n > 0:
		return d.Store.Commit(ctx, conds, ops)
	case n == 0 && d.reply:
		_, _ = d.Store.Commit(ctx, conds, ops)
	}
	return 0, errDied
}

// teams is what a namespace has: policies, a way to log in with a user, tokens of each kind, and a wrapped answer.
type teams struct{ user, root, batch, wrapped string }

const team = "team"

func (s *server) team() (out teams) {
	s.t.Helper()
	must(s.t, s.mount.CreateNamespace(s.ctx, admin, team))
	must(s.t, s.WritePolicy(s.ctx, admin, team, "app", `path "transit/encrypt/orders" { capabilities = ["update"] }`))
	_, err := s.mount.Enable(s.ctx, admin, team, mounts.Mount{Path: "people", Type: mounts.Userpass, Auth: true})
	must(s.t, err)
	m, _ := s.mount.Mounted(team, true, "people")
	password := "a long password"
	must(s.t, s.PutUser(s.ctx, admin, acl.At{Namespace: team, Mount: m, Kind: acl.KindUser, Name: "ana"}, &password, func(spec acl.Spec) error {
		return json.Unmarshal([]byte(`{"token_policies": "app"}`), spec)
	}))
	life, _ := s.guard.Life(team)
	in, err := s.LoginUser(s.ctx, acl.Door{Namespace: team, Life: life, Mount: m, Address: "192.0.2.1"}, "ana", password)
	must(s.t, err)
	ask := func(a acl.Ask) string {
		a.Path = "auth/token/create"
		out, err := s.Create(s.ctx, admin, team, a)
		must(s.t, err)
		return out.Text
	}
	w, err := s.CreateWrapping(s.ctx, admin, team, "transit/keys/a", []byte(`{}`), acl.MaxWrapTTL, "")
	must(s.t, err)
	for i := range 31 { // more than one commit takes
		must(s.t, s.WritePolicy(s.ctx, admin, team, fmt.Sprintf("p%d", i), `path "x" { capabilities = ["read"] }`))
	}
	return teams{in.Text, ask(acl.Ask{Policies: []string{policy.RootPolicy}}), ask(acl.Ask{Policies: []string{"app"}, Type: "batch", TTL: acl.MaxWrapTTL / 2}), w.Text}
}

// leftOf are the paths in the store of what is in the namespace.
func (w *world) leftOf() (paths []string) {
	w.t.Helper()
	for _, prefix := range []string{"acl/", "mounts/"} {
		_, records := w.store.List(w.t.Context(), prefix)
		for r, err := range records {
			must(w.t, err)
			paths = append(paths, r.Key)
		}
	}
	return paths
}

// ended checks that nothing of a namespace is left, nor comes back with its name.
func (s *server) ended(what string, of teams) {
	s.t.Helper()
	if left := s.world.leftOf(); len(left) > 0 {
		s.t.Fatalf("%s: left are %s", what, strings.Join(left, ", "))
	}
	must(s.t, s.mount.CreateNamespace(s.ctx, admin, team))
	for _, text := range []string{of.user, of.root, of.batch, of.wrapped} {
		if s.lives(text) {
			s.t.Errorf("%s: a token of the former namespace is in force: %.20s…", what, text)
		}
	}
	if all, err := s.Policies(s.ctx, admin, team); err != nil || len(all) != 2 {
		s.t.Errorf("%s: policies %v, %v", what, all, err)
	}
	if _, there := s.mount.Mounted(team, true, "people"); there {
		s.t.Errorf("%s: the way to log in is there", what)
	}
}

// TestNamespaceEnds: with a namespace all ends that is in it, wherever the server dies that deletes it, and whether the last commit was made.
func TestNamespaceEnds(t *testing.T) {
	t.Parallel()
	for _, reply := range []bool{false, true} {
		for died, n := true, int64(1); died; n++ {
			w := newWorld(t)
			first := w.start()
			of := first.team()
			for _, text := range []string{of.user, of.root, of.batch, of.wrapped} {
				if !first.lives(text) {
					t.Fatal("a token is not in force")
				}
			}
			first.stop()
			whole := w.store
			d := &dying{Store: whole, reply: reply}
			d.left.Store(n)
			w.store = d
			second := w.start()
			err := second.mount.DeleteNamespace(second.ctx, admin, team)
			died = err != nil
			second.stop()
			w.store = whole
			third := w.start()
			what := fmt.Sprintf("commit %d, made: %t", n, reply)
			if _, closed := third.guard.Life(team); closed && third.lives(of.batch) {
				t.Errorf("%s: a batch token of a closed namespace is in force", what)
			}
			must(t, third.mount.DeleteNamespace(third.ctx, admin, team))
			third.ended(what, of)
			if !died && n < 6 {
				t.Fatalf("%d commits", n)
			}
		}
	}
}

// TestNamespaceIsHeardOf: nothing in a namespace is removed before every server knows that it is closed, and its name is not given again before each knows that
// nothing is left.
func TestNamespaceIsHeardOf(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	of := s.team()
	all, silent := len(w.leftOf()), fault.New(fault.Unavailable, "server b")
	s.mount.Heard = func(context.Context, store.Rev) error { return silent }
	wants(t, "unheard of", s.mount.DeleteNamespace(s.ctx, admin, team), fault.OutcomeUnknown)
	if s.guard.HasNamespace(team) || len(w.leftOf()) != all {
		t.Errorf("%d of %d are left; the namespace is there: %t", len(w.leftOf()), all, s.guard.HasNamespace(team))
	}
	wants(t, "made while it is closed", s.mount.CreateNamespace(s.ctx, admin, team), fault.InUse)
	var last store.Rev
	s.mount.Heard = func(_ context.Context, rev store.Rev) error {
		if len(w.leftOf()) > 0 {
			return nil
		}
		last = rev
		return silent
	}
	wants(t, "the end unheard of", s.mount.DeleteNamespace(s.ctx, admin, team), fault.OutcomeUnknown)
	wants(t, "made while the end is unheard of", s.mount.CreateNamespace(s.ctx, admin, team), fault.OutcomeUnknown)
	if last == 0 {
		t.Error("nothing to hear of")
	}
	s.mount.Heard = nil
	s.ended("at last", of)
}

// TestNamespaceEndsUnderAnotherRoot: another root key, under which what says that the namespace is closed is sealed again, does not stop a deletion.
func TestNamespaceEndsUnderAnotherRoot(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	of := s.team()
	asked := 0
	s.mount.Vacate = func(ctx context.Context, p *guard.Permit, still guard.Cond, ns keyring.Namespace) error {
		if asked++; asked == 1 {
			by, err := s.guard.Admit(ctx, admin, policy.ActRotateRoot, policy.Resource{})
			must(t, err)
			_, err = s.guard.Turn(ctx, by, true)
			must(t, err)
			for now := still; now == still; { // the guard seals again in the background
				now, _, err = s.guard.CloseNamespace(ctx, p, team)
				must(t, err)
			}
		}
		return s.Vacate(ctx, p, still, ns)
	}
	must(t, s.mount.DeleteNamespace(s.ctx, admin, team))
	if asked != 2 {
		t.Errorf("emptied %d times", asked)
	}
	s.ended("at last", of)
}

// TestNamespaceWithMaterial: what may not go with a namespace is looked for before and after it is closed, and keeps all.
func TestNamespaceWithMaterial(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	of := s.team()
	for refuses := range 2 {
		asked := 0
		s.mount.Vacant = func(context.Context, keyring.Namespace) error {
			if asked++; asked > refuses {
				if _, err := s.Tidy(s.ctx, admin, ns); err != nil { // what may come back is not over
					t.Error(err)
				}
				return fault.New(fault.InUse, "material")
			}
			return nil
		}
		wants(t, "with material", s.mount.DeleteNamespace(s.ctx, admin, team), fault.InUse)
		if asked != refuses+1 || !s.guard.HasNamespace(team) {
			t.Errorf("asked %d times; the namespace is there: %t", asked, s.guard.HasNamespace(team))
		}
	}
	if !s.lives(of.user) || len(w.leftOf()) < 35 {
		t.Error("something has gone")
	}
	s.mount.Vacant = nil
	must(t, s.mount.DeleteNamespace(s.ctx, admin, team))
	must(t, s.mount.DeleteNamespace(s.ctx, admin, team))
	s.ended("at last", of)
}

// TestNamespaceHalfEmpty: a deletion that was cut short goes on or stays where it is, also when it cannot be said for a moment what is in the namespace: opened again
// it would lack the policies that deny.
func TestNamespaceHalfEmpty(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	of := s.team()
	away := fault.New(fault.Unavailable, "store")
	s.mount.Vacate = func(ctx context.Context, p *guard.Permit, still guard.Cond, ns keyring.Namespace) error {
		must(t, s.Vacate(ctx, p, still, ns))
		return away
	}
	wants(t, "cut short", s.mount.DeleteNamespace(s.ctx, admin, team), fault.Unavailable)
	s.mount.Vacant = func(context.Context, keyring.Namespace) error { return away }
	wants(t, "not looked through", s.mount.DeleteNamespace(s.ctx, admin, team), fault.Unavailable)
	if s.guard.HasNamespace(team) {
		t.Error("it is open again, and half empty")
	}
	s.mount.Vacant, s.mount.Vacate = nil, s.Vacate
	must(t, s.mount.DeleteNamespace(s.ctx, admin, team))
	s.ended("at last", of)
}
