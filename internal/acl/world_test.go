package acl_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

const ns = "default"

var admin = policy.Caller{Kind: policy.KindAdmin, Name: "admin/a"}

// world is a store with its seal and a clock. Servers on it come and go.
type world struct {
	t      *testing.T
	store  store.Store
	sealer seal.Sealer
	clock  atomic.Int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: mem.New(), sealer: s}
	w.clock.Store(time.Now().UnixNano())
	if _, err := guard.Init(t.Context(), w.config()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) now() time.Time          { return time.Unix(0, w.clock.Load()) }
func (w *world) advance(d time.Duration) { w.clock.Add(int64(d)) }

func (w *world) config() guard.Config {
	return guard.Config{Store: w.store, Sealers: []seal.Sealer{w.sealer}, Now: w.now, Log: slog.New(slog.DiscardHandler)}
}

const rules = `version: 1
rules:
  - {name: administrators, callers: ["admin/a"], actions: ["*"], keys: {namespace: "**", names: ["**"]}}
`

// server is a server of the world.
type server struct {
	*acl.Service
	t     *testing.T
	ctx   context.Context
	stop  func()
	guard *guard.Guard
	auth  *authn.Authority
	mount *mounts.Service
	world *world
}

func (w *world) start() *server {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	g, err := guard.Open(ctx, w.config())
	must(w.t, err)
	done := make(chan struct{}, 4)
	run := func(loop func(context.Context) error) { go func() { _ = loop(ctx); done <- struct{}{} }() }
	run(g.Run)
	a, err := authn.New(ctx, authn.Config{Guard: g, TrustDomain: "rotor.local", Namespace: ns, Now: w.now})
	must(w.t, err)
	m, err := mounts.New(ctx, mounts.Config{Guard: g, Log: slog.New(slog.DiscardHandler)})
	must(w.t, err)
	s, err := acl.New(ctx, acl.Config{Guard: g, Authority: a, Mounts: m, Now: w.now})
	must(w.t, err)
	m.Config.Clear, m.Config.Vacate = s.Clear, s.Vacate
	run(a.Run)
	run(m.Run)
	run(s.Run)
	r, err := policy.Parse("rules", []byte(rules))
	must(w.t, err)
	g.SetRules(a.Decider(r))
	var once atomic.Bool
	stop := func() {
		if cancel(); !once.Swap(true) {
			for range 4 {
				<-done
			}
		}
	}
	w.t.Cleanup(stop)
	return &server{s, w.t, ctx, stop, g, a, m, w}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, what string, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("%s: %v, want %q", what, err, code)
	}
}

func (s *server) policy(name, text string) {
	s.t.Helper()
	must(s.t, s.WritePolicy(s.ctx, admin, ns, name, text))
}

func (s *server) create(c policy.Caller, ask acl.Ask) acl.Ticket {
	s.t.Helper()
	if ask.Path == "" {
		ask.Path = "auth/token/create"
	}
	out, err := s.Create(s.ctx, c, ns, ask)
	must(s.t, err)
	return out
}

// as is the caller behind a token who asks for something.
func (s *server) as(text, path string, op policy.Operation) policy.Caller {
	s.t.Helper()
	c, _, err := s.Identify(s.ctx, text, "192.0.2.1")
	must(s.t, err)
	c.Request = &policy.Request{Namespace: ns, Path: path, Operation: op}
	return c
}

func (s *server) lives(text string) bool {
	s.t.Helper()
	_, _, err := s.Identify(s.ctx, text, "192.0.2.1")
	if err != nil {
		wants(s.t, "a token that is none", err, fault.Unauthenticated)
	}
	return err == nil
}

// set makes a change of fields in JSON.
func set(text string) func(acl.Spec) error {
	return func(s acl.Spec) error {
		var body map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			return err
		}
		return acl.Decode(s, body, nil)
	}
}

const appPolicy = `path "transit/encrypt/*" { capabilities = ["update"] } path "auth/token/create*" { capabilities = ["update"] } path "auth/token/*" { capabilities = ["update", "read"] }`

func TestTokenLife(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	s.policy("app", appPolicy)
	tk := s.create(admin, acl.Ask{Policies: []string{"App", "app"}, TTL: time.Hour, Meta: map[string]string{"a": "b"}, Display: "my app"})
	if !strings.HasPrefix(tk.Text, "hvs.") || !slices.Equal(tk.Policies, []string{"app", "default"}) || !tk.Orphan || tk.Caller != "vault/token/token-my-app" || tk.TTL != time.Hour {
		t.Fatalf("%+v", tk)
	}
	c := s.as(tk.Text, "transit/encrypt/orders", policy.OpUpdate)
	if c.Kind != policy.KindVault || !s.guard.Allows(c, policy.ActEncrypt, policy.Resource{Namespace: ns, Key: "transit/orders"}) {
		t.Errorf("%+v may not encrypt", c)
	}
	self, err := s.Lookup(s.ctx, s.as(tk.Text, "auth/token/lookup-self", policy.OpRead), ns, acl.Who{Self: true})
	if err != nil || self.Accessor != tk.Accessor || self.Meta["a"] != "b" || self.CreationTTL != time.Hour {
		t.Errorf("%+v, %v", self, err)
	}
	for _, bad := range []string{"", "hvs.", "hvs." + strings.Repeat("A", 48), tk.Text[:len(tk.Text)-1], tk.Text + "A", strings.ToLower(tk.Text), "s." + tk.Text[4:], tk.Text[:20] + "A" + tk.Text[21:]} {
		if bad != tk.Text && s.lives(bad) {
			t.Errorf("%q is a token", bad)
		}
	}
	w.advance(59 * time.Minute)
	renewed, err := s.Renew(s.ctx, s.as(tk.Text, "auth/token/renew-self", policy.OpUpdate), ns, acl.Who{Self: true}, 2*time.Hour)
	if err != nil || renewed.TTL != 2*time.Hour {
		t.Errorf("%+v, %v", renewed, err)
	}
	w.advance(119 * time.Minute)
	if !s.lives(tk.Text) {
		t.Error("the renewed token is over")
	}
	w.advance(time.Minute)
	if s.lives(tk.Text) {
		t.Error("the token outlives its end")
	}
}

// TestPoliciesCountAtOnce: a policy that is changed or forgotten counts for the tokens that are there.
func TestPoliciesCountAtOnce(t *testing.T) {
	s := newWorld(t).start()
	s.policy("app", appPolicy)
	tk := s.create(admin, acl.Ask{Policies: []string{"app"}})
	may := func() bool {
		return s.guard.Allows(s.as(tk.Text, "transit/encrypt/orders", policy.OpUpdate), policy.ActEncrypt, policy.Resource{Namespace: ns, Key: "transit/orders"})
	}
	if !may() {
		t.Error("not allowed at first")
	}
	s.policy("app", `path "transit/encrypt/orders" { capabilities = ["deny"] }`)
	if may() {
		t.Error("allowed by a policy that was changed")
	}
	s.policy("app", appPolicy)
	must(t, s.DeletePolicy(s.ctx, admin, ns, "app"))
	if may() {
		t.Error("allowed by a policy that is gone")
	}
	for name, text := range map[string]string{"root": appPolicy, "response-wrapping": appPolicy, "a/b": appPolicy, "": appPolicy, "x": "", "y": `path "a" {`, "../z": appPolicy} {
		wants(t, "policy "+name, s.WritePolicy(s.ctx, admin, ns, name, text), fault.Invalid)
	}
	wants(t, "delete default", s.DeletePolicy(s.ctx, admin, ns, "default"), fault.Invalid)
	wants(t, "somebody", s.WritePolicy(s.ctx, policy.Caller{Kind: policy.KindAdmin, Name: "admin/b"}, ns, "x", appPolicy), fault.Denied)
	if _, err := s.Policy(s.ctx, admin, ns, "app"); fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
	}
}

// TestChildren: what a token may hand on, and what happens to that when it ends.
func TestChildren(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	s.policy("app", appPolicy)
	s.policy("other", appPolicy)
	s.policy("boss", appPolicy+` path "auth/token/create" { capabilities = ["update", "sudo"] }`)
	app, boss := s.create(admin, acl.Ask{Policies: []string{"app"}, TTL: time.Hour}), s.create(admin, acl.Ask{Policies: []string{"boss"}})
	as := func(tk acl.Ticket) policy.Caller { return s.as(tk.Text, "auth/token/create", policy.OpUpdate) }
	child := s.create(as(app), acl.Ask{TTL: 10 * time.Hour})
	if child.Orphan || !slices.Equal(child.Policies, []string{"app", "default"}) {
		t.Errorf("%+v", child)
	}
	grandchild := s.create(as(child), acl.Ask{Policies: []string{"app"}, NoDefault: true, TTL: 20 * time.Hour})
	if !slices.Equal(grandchild.Policies, []string{"app"}) {
		t.Errorf("%+v", grandchild)
	}
	for what, ask := range map[string]acl.Ask{
		"policies of others": {Policies: []string{"other"}}, "root": {Policies: []string{"root"}}, "orphan": {NoParent: true}, "periodic": {Period: time.Hour},
		"a type of its own": {Type: "x"}, "its own ID": {ID: "hvs.mine"}, "negative uses": {NumUses: -1}, "a role that is not": {Role: "none"}, "wrapping": {Policies: []string{"response-wrapping"}},
	} {
		ask.Path = "auth/token/create"
		_, err := s.Create(s.ctx, as(app), ns, ask)
		wants(t, what, err, fault.Invalid)
	}
	for what, ask := range map[string]acl.Ask{"policies of others": {Policies: []string{"other"}}, "orphan": {NoParent: true}, "periodic": {Period: time.Hour}} {
		if tk := s.create(as(boss), ask); what == "orphan" && !tk.Orphan {
			t.Errorf("%s: %+v", what, tk)
		}
	}
	_, err := s.Create(s.ctx, as(boss), ns, acl.Ask{Policies: []string{"root"}, Path: "auth/token/create"})
	wants(t, "root by sudo", err, fault.Invalid)
	root := s.create(admin, acl.Ask{Policies: []string{"root"}})
	if !root.Expires.IsZero() || root.Renewable {
		t.Errorf("%+v", root)
	}
	_, err = s.Create(s.ctx, as(root), ns, acl.Ask{Policies: []string{"root", "app"}, Path: "auth/token/create"})
	wants(t, "root and more", err, fault.Invalid)
	_, err = s.Create(s.ctx, as(s.create(as(root), acl.Ask{TTL: time.Minute, Policies: []string{"root"}})), ns, acl.Ask{Policies: []string{"root"}, Path: "auth/token/create"})
	wants(t, "a root that ends makes one that does not", err, fault.Invalid)
	kept := s.create(as(app), acl.Ask{TTL: 30 * time.Hour})
	must(t, s.Revoke(s.ctx, admin, ns, acl.Who{Accessor: child.Accessor}, false))
	if s.lives(child.Text) || s.lives(grandchild.Text) || !s.lives(app.Text) {
		t.Error("a revocation reaches the children, and nobody else")
	}
	must(t, s.Revoke(s.ctx, admin, ns, acl.Who{Accessor: app.Accessor}, true))
	if s.lives(app.Text) || !s.lives(kept.Text) {
		t.Error("an orphan lives on")
	}
	parent := s.create(admin, acl.Ask{Policies: []string{"app"}, TTL: time.Hour})
	below := s.create(as(parent), acl.Ask{TTL: 10 * time.Hour})
	w.advance(2 * time.Hour)
	if s.lives(below.Text) {
		t.Error("a child outlives its parent's end")
	}
	s.create(admin, acl.Ask{}) // takes the slot of the parent
	if s.lives(below.Text) {
		t.Error("a child has another's token as its parent")
	}
	n, err := s.Tidy(s.ctx, admin, ns)
	if err != nil || n == 0 {
		t.Errorf("tidy: %d, %v", n, err)
	}
	all, err := s.Accessors(s.ctx, admin, ns)
	if err != nil || slices.Contains(all, below.Accessor) || !slices.Contains(all, kept.Accessor) {
		t.Errorf("%v, %v", all, err)
	}
}

// TestUses: a token for a number of uses has so many, at all servers together and over a restart, and makes no others.
func TestUses(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	s.policy("app", appPolicy)
	tk := s.create(admin, acl.Ask{Policies: []string{"app"}, NumUses: 3})
	if !s.lives(tk.Text) {
		t.Error("first")
	}
	_, err := s.Create(s.ctx, s.as(tk.Text, "auth/token/create", policy.OpUpdate), ns, acl.Ask{Path: "auth/token/create"})
	wants(t, "a child", err, fault.Invalid)
	s.stop()
	s = w.start()
	last := s.as(tk.Text, "auth/token/lookup-self", policy.OpRead)
	if got, err := s.Lookup(s.ctx, last, ns, acl.Who{Self: true}); err != nil || got.Accessor != tk.Accessor || s.lives(tk.Text) {
		t.Errorf("the third use, which is the last, asks for the token itself: %v", err)
	}
	_, err = s.Lookup(s.ctx, admin, ns, acl.Who{Text: tk.Text})
	wants(t, "lookup", err, fault.NotFound)
}

// TestOtherServers: what one server does counts at the other.
func TestOtherServers(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(), w.start()
	one.policy("app", appPolicy)
	for range 20 {
		tk := one.create(admin, acl.Ask{Policies: []string{"app"}})
		c := one.as(tk.Text, "auth/token/create", policy.OpUpdate)
		child := one.create(c, acl.Ask{})
		if !two.lives(child.Text) || !two.lives(tk.Text) {
			t.Fatal("a token of a moment ago is not known")
		}
		if _, err := two.Lookup(two.ctx, admin, ns, acl.Who{Accessor: child.Accessor}); err != nil {
			t.Fatal(err)
		}
		must(t, two.Revoke(two.ctx, admin, ns, acl.Who{Accessor: tk.Accessor}, false))
		for one.lives(child.Text) { // it ends with the watch
			if one.ctx.Err() != nil {
				t.Fatal("the server ended")
			}
		}
	}
}

func TestPeriodicAndExplicit(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	tk := s.create(admin, acl.Ask{Period: time.Hour, Explicit: 150 * time.Minute})
	for i, want := range []time.Duration{time.Hour, 50 * time.Minute} {
		w.advance(50 * time.Minute)
		got, err := s.Renew(s.ctx, admin, ns, acl.Who{Text: tk.Text}, 24*time.Hour)
		if err != nil || got.TTL != want {
			t.Errorf("%d: %s, %v", i, got.TTL, err)
		}
	}
	w.advance(50 * time.Minute)
	_, err := s.Renew(s.ctx, admin, ns, acl.Who{Text: tk.Text}, 0)
	wants(t, "after the explicit end", err, fault.NotFound)
	long := s.create(admin, acl.Ask{TTL: 1000 * time.Hour})
	if long.TTL != mounts.DefaultLease || len(long.Warnings) != 1 {
		t.Errorf("%s, %v", long.TTL, long.Warnings)
	}
	fixed := s.create(admin, acl.Ask{NotRenewable: true})
	_, err = s.Renew(s.ctx, admin, ns, acl.Who{Text: fixed.Text}, 0)
	wants(t, "one that is not renewable", err, fault.Invalid)
}

// TestShortStaysShort: a renewal that asks for no time gives as much as the last time, as at Vault (1.14.2), and not what is usual at the mount.
func TestShortStaysShort(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	tk := s.create(admin, acl.Ask{Policies: []string{"default"}, TTL: 5 * time.Minute})
	for i, step := range []struct{ ask, want time.Duration }{{0, 5 * time.Minute}, {time.Hour, time.Hour}, {0, time.Hour}, {2 * time.Minute, 2 * time.Minute}, {0, 2 * time.Minute}} {
		w.advance(time.Minute)
		got, err := s.Renew(s.ctx, admin, ns, acl.Who{Text: tk.Text}, step.ask)
		if err != nil || got.TTL != step.want || len(got.Warnings) > 0 {
			t.Errorf("%d: %s, %v, %v", i, got.TTL, got.Warnings, err)
		}
	}
	if got := s.create(admin, acl.Ask{Policies: []string{"default", "nosuch"}}); !slices.Equal(got.Warnings, []string{`Policy "nosuch" does not exist`}) {
		t.Errorf("warnings of a token: %q", got.Warnings)
	}
}

// TestRoleOfRenewal: a token that a role made lives on by what the role is now, and not without it.
func TestRoleOfRenewal(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	m, _ := s.mount.Mounted(ns, true, "token/")
	at := acl.At{Namespace: ns, Mount: m, Kind: acl.KindTokenRole, Name: "ci"}
	must(t, s.Put(s.ctx, admin, at, set(`{"allowed_policies": "default", "token_period": "1h"}`)))
	tk := s.create(admin, acl.Ask{Role: "ci", Path: "auth/token/create/ci"})
	must(t, s.Put(s.ctx, admin, at, set(`{"token_period": "10m"}`)))
	for i, want := range []time.Duration{10 * time.Minute, 10 * time.Minute} {
		w.advance(9 * time.Minute)
		if got, err := s.Renew(s.ctx, admin, ns, acl.Who{Text: tk.Text}, 0); err != nil || got.TTL != want {
			t.Errorf("%d: %s, %v", i, got.TTL, err)
		}
	}
	must(t, s.Delete(s.ctx, admin, at))
	_, err := s.Renew(s.ctx, admin, ns, acl.Who{Text: tk.Text}, 0)
	wants(t, "without the role", err, fault.Invalid)
}

func TestTokenRoles(t *testing.T) {
	s := newWorld(t).start()
	s.policy("app", appPolicy)
	m, _ := s.mount.Mounted(ns, true, "token/")
	role := func(name, text string) {
		t.Helper()
		must(t, s.Put(s.ctx, admin, acl.At{Namespace: ns, Mount: m, Kind: acl.KindTokenRole, Name: name}, set(text)))
	}
	role("ci", `{"allowed_policies": "dev,test", "allowed_policies_glob": ["web-*"], "disallowed_policies": "test", "orphan": true, "token_period": "1h", "token_num_uses": 5, "token_bound_cidrs": "192.0.2.0/24", "path_suffix": "x"}`)
	role("own", `{}`)
	app := s.create(admin, acl.Ask{Policies: []string{"app"}})
	c := s.as(app.Text, "auth/token/create/ci", policy.OpUpdate)
	tk := s.create(c, acl.Ask{Role: "ci", Policies: []string{"dev", "web-1"}, Path: "auth/token/create/ci"})
	if !tk.Orphan || tk.Period != time.Hour || tk.NumUses != 5 || tk.Path != "auth/token/create/ci/x" || !slices.Equal(tk.Policies, []string{"default", "dev", "web-1"}) {
		t.Errorf("%+v", tk)
	}
	if _, _, err := s.Identify(s.ctx, tk.Text, "198.51.100.1"); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("from elsewhere: %v", err)
	}
	for what, ask := range map[string]acl.Ask{
		"disallowed": {Role: "ci", Policies: []string{"test"}}, "not allowed": {Role: "ci", Policies: []string{"prod"}}, "root": {Role: "ci", Policies: []string{"root"}},
		"not its own": {Role: "own", Policies: []string{"prod"}},
	} {
		ask.Path = "auth/token/create/" + ask.Role
		_, err := s.Create(s.ctx, c, ns, ask)
		wants(t, what, err, fault.Invalid)
	}
	if tk := s.create(c, acl.Ask{Role: "own", Path: "auth/token/create/own"}); !slices.Equal(tk.Policies, []string{"app", "default"}) || tk.Orphan {
		t.Errorf("%+v", tk)
	}
	for _, text := range []string{`{"allowed_policies": "root"}`, `{"token_type": "batch"}`, `{"path_suffix": "a/b"}`, `{"token_bound_cidrs": "x"}`, `{"orphan": "maybe"}`, `{"allowed_entity_aliases": "a"}`} {
		wants(t, text, s.Put(s.ctx, admin, acl.At{Namespace: ns, Mount: m, Kind: acl.KindTokenRole, Name: "bad"}, set(text)), fault.Invalid)
	}
}
