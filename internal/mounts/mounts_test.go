package mounts_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store/mem"
)

var (
	root = policy.Caller{Kind: policy.KindAdmin, Name: "admin/root"}
	eve  = policy.Caller{Kind: policy.KindAdmin, Name: "admin/eve"}
)

const ns = keyring.Namespace("default")

// rules let root do everything.
type rules struct{}

func (rules) Allows(c policy.Caller, _ policy.Action, _ policy.Resource) (string, bool) {
	return "root", c.Name == root.Name
}

// server is one of those that share a store.
type server struct {
	*mounts.Service
	guard *guard.Guard
}

// world is a store of several servers.
type world struct {
	t      *testing.T
	config guard.Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	sealer, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, guard.Config{Store: mem.New(), Rules: rules{}, Now: time.Now}}
	w.config.Sealers = append(w.config.Sealers, sealer)
	if _, err := guard.Init(t.Context(), w.config); err != nil {
		t.Fatal(err)
	}
	return w
}

// start starts one more server.
func (w *world) start(more ...func(*mounts.Config)) server {
	w.t.Helper()
	g, err := guard.Open(w.t.Context(), w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	w.t.Cleanup(func() { stop(); wait.Wait() })
	run := func(f func(context.Context) error) {
		wait.Go(func() {
			if err := f(ctx); err != nil {
				w.t.Error(err)
			}
		})
	}
	run(g.Run)
	c := mounts.Config{Guard: g}
	for _, m := range more {
		m(&c)
	}
	s, err := mounts.New(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	run(s.Run)
	return server{s, g}
}

func want(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if code == "" && err != nil || code != "" && fault.CodeOf(err) != code {
		t.Errorf("%v, want %q", err, code)
	}
}

func paths(all []mounts.Mount) string {
	var out []string
	for _, m := range all {
		out = append(out, m.Full())
	}
	return strings.Join(out, " ")
}

func TestWhatIsThereFromTheStart(t *testing.T) {
	w := newWorld(t)
	a, b := w.start(), w.start()
	if got := paths(a.All(ns)); got != "cubbyhole/ identity/ sys/ transit/ auth/token/" {
		t.Error(got)
	}
	for _, m := range a.All(ns) {
		if other, _ := b.Mounted(ns, m.Auth, m.Path); other.Accessor != m.Accessor || other.UUID != m.UUID || len(m.UUID) != 36 {
			t.Errorf("%s is %s here and %s there", m.Full(), m.Accessor, other.Accessor)
		}
	}
	for _, c := range []struct{ path, mount, rest string }{
		{"transit/keys/a", "transit/", "keys/a"}, {"transit/", "transit/", ""}, {"transit", "transit/", ""}, {"auth/token/lookup-self", "auth/token/", "lookup-self"},
		{"sys/health", "sys/", "health"}, {"transit2/keys/a", "", ""}, {"", "", ""}, {"/", "", ""}, {"/transit/keys", "", ""}, {"auth/transit/keys", "", ""}, {"token/lookup", "", ""},
	} {
		m, rest, ok := a.Find(ns, c.path)
		if ok != (c.mount != "") || ok && (m.Full() != c.mount || rest != c.rest) {
			t.Errorf("%q: %q, %q, %t", c.path, m.Full(), rest, ok)
		}
	}
}

func TestEnableTuneDisable(t *testing.T) {
	w := newWorld(t)
	a, b := w.start(), w.start()
	ctx := t.Context()
	made, err := a.Enable(ctx, root, ns, mounts.Mount{Path: "/team/a", Type: "transit", Description: "of a team", Options: map[string]string{"x": "y"}})
	want(t, err, "")
	if m, rest, ok := a.Find(ns, "team/a/encrypt/k"); !ok || m.Accessor != made.Accessor || rest != "encrypt/k" || !strings.HasPrefix(m.Accessor, "transit_") {
		t.Errorf("%+v, %q, %t", m, rest, ok)
	}
	want(t, b.Refresh(ctx, ns), "")
	if m, ok := b.Mounted(ns, false, "team/a"); !ok || m.Accessor != made.Accessor {
		t.Errorf("at another server: %+v", m)
	}
	usual := int64(3600)
	want(t, b.Tune(ctx, root, ns, false, "team/a", mounts.Change{Settings: func(s *mounts.Settings) { s.DefaultLease = usual }}), "")
	m, _ := b.Mounted(ns, false, "team/a/")
	if d, most := m.Leases(); d != time.Hour || most != mounts.DefaultLease || m.Description != "of a team" {
		t.Errorf("tuned: %+v", m)
	}
	want(t, b.Tune(ctx, root, ns, true, "token", mounts.Change{Settings: func(s *mounts.Settings) { s.MaxLease = 60 }}), "")
	if m, _ := b.Mounted(ns, true, "token"); m.Settings.MaxLease != 60 || m.Type != "token" {
		t.Errorf("token/ tuned: %+v", m)
	}
	want(t, b.Disable(ctx, root, ns, false, "team/a"), "")
	want(t, b.Disable(ctx, root, ns, false, "team/a"), "")
	again, err := b.Enable(ctx, root, ns, mounts.Mount{Path: "team/a/", Type: "transit"})
	want(t, err, "")
	if again.Accessor == made.Accessor || again.UUID == made.UUID {
		t.Error("what is mounted again has the accessor of what was there before")
	}
	want(t, b.Disable(ctx, root, ns, false, "transit"), "")
	if got := paths(w.start().All(ns)); got != "cubbyhole/ identity/ sys/ team/a/ auth/token/" {
		t.Errorf("after a start: %s", got)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	ctx := t.Context()
	enable := func(path, kind string, auth bool) error {
		_, err := s.Enable(ctx, root, ns, mounts.Mount{Path: path, Type: kind, Auth: auth})
		return err
	}
	want(t, enable("a/b", "transit", false), "")
	for _, c := range []struct {
		path, kind string
		auth       bool
		code       fault.Code
	}{
		{"a/b", "transit", false, fault.Exists}, {"a", "transit", false, fault.Exists}, {"a/b/c", "transit", false, fault.Exists}, {"a/bc", "transit", false, ""},
		{"transit/x", "transit", false, fault.Exists}, {"sys", "transit", false, fault.Invalid}, {"sys/x", "transit", false, fault.Invalid}, {"auth", "transit", false, fault.Invalid},
		{"auth/x", "transit", false, fault.Invalid}, {"identity/x", "transit", false, fault.Invalid}, {"cubbyhole/x", "transit", false, fault.Invalid}, {"audit", "transit", false, fault.Invalid},
		{"..", "transit", false, fault.Invalid}, {"a/../c", "transit", false, fault.Invalid}, {"./c", "transit", false, fault.Invalid}, {"c//d", "transit", false, fault.Invalid}, {"", "transit", false, fault.Invalid},
		{"ü", "transit", false, fault.Invalid}, {"a b", "transit", false, fault.Invalid}, {"a%2fb", "transit", false, fault.Invalid}, {"a\x00", "transit", false, fault.Invalid}, {"+", "transit", false, fault.Invalid}, {"a*", "transit", false, fault.Invalid},
		{strings.Repeat("x", 95), "transit", false, ""}, {strings.Repeat("x", 96), "transit", false, fault.Invalid}, {"1/2/3/4/5/6/7/8/9", "transit", false, fault.Invalid},
		{"kv", "kv", false, fault.NotBuilt}, {"k", "", false, fault.Invalid}, {"k", "token", false, fault.Invalid}, {"k", "system", false, fault.Invalid}, {"k", "approle", false, fault.NotBuilt},
		{"approle", "approle", true, ""}, {"approle", "approle", true, fault.Exists}, {"token/x", "approle", true, fault.Exists}, {"x", "ldap", true, fault.NotBuilt}, {"x", "token", true, fault.Invalid}, {"x", "transit", true, fault.NotBuilt},
	} {
		if err := enable(c.path, c.kind, c.auth); c.code == "" && err != nil || c.code != "" && fault.CodeOf(err) != c.code {
			t.Errorf("%s at %q: %v, want %q", c.kind, c.path, err, c.code)
		}
	}
	want(t, s.Disable(ctx, root, ns, false, "sys"), fault.Invalid)
	want(t, s.Disable(ctx, root, ns, true, "token"), fault.Invalid)
	want(t, s.Tune(ctx, root, ns, false, "sys", mounts.Change{}), fault.Invalid)
	want(t, s.Tune(ctx, root, ns, false, "none", mounts.Change{}), fault.NotFound)
	for name, f := range map[string]func(*mounts.Settings){
		"max below default": func(s *mounts.Settings) { s.DefaultLease, s.MaxLease = 10, 5 }, "negative": func(s *mounts.Settings) { s.MaxLease = -1 },
		"visibility": func(s *mounts.Settings) { s.ListingVisibility = "all" }, "token type": func(s *mounts.Settings) { s.TokenType = "x" },
	} {
		if err := s.Tune(ctx, root, ns, false, "a/b", mounts.Change{Settings: f}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := strings.Repeat("x", 5000)
	want(t, s.Tune(ctx, root, ns, false, "a/b", mounts.Change{Description: &long}), fault.TooLarge)
	want(t, s.Tune(ctx, root, ns, false, "a/b", mounts.Change{Options: map[string]string{"k": long}}), fault.TooLarge)
	// Whoever has no right sees and changes nothing.
	_, err := s.List(ctx, eve, ns)
	want(t, err, fault.Denied)
	_, err = s.Enable(ctx, eve, ns, mounts.Mount{Path: "z", Type: "transit"})
	want(t, err, fault.Denied)
	want(t, s.Disable(ctx, eve, ns, false, "none"), fault.Denied)
	want(t, s.Tune(ctx, eve, ns, false, "none", mounts.Change{}), fault.Denied)
	want(t, s.CreateNamespace(ctx, eve, "z"), fault.Denied)
	_, err = s.Namespaces(ctx, eve)
	want(t, err, fault.Denied)
}

func TestNamespaces(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	ctx := t.Context()
	_, err := s.Enable(ctx, root, "prod", mounts.Mount{Path: "a", Type: "transit"})
	want(t, err, fault.NotFound)
	want(t, s.CreateNamespace(ctx, root, "prod"), "")
	want(t, s.CreateNamespace(ctx, root, "prod"), fault.Exists)
	want(t, s.CreateNamespace(ctx, root, "a/b"), fault.Invalid)
	want(t, s.CreateNamespace(ctx, root, "../x"), fault.Invalid)
	_, err = s.Enable(ctx, root, "prod", mounts.Mount{Path: "a", Type: "transit"})
	want(t, err, "")
	if all, err := s.Namespaces(ctx, root); err != nil || fmt.Sprint(all) != "[default prod]" {
		t.Error(all, err)
	}
	if got := paths(s.All("prod")); got != "a/ cubbyhole/ identity/ sys/ transit/ auth/token/" {
		t.Error(got)
	}
	if _, ok := s.Mounted(ns, false, "a"); ok {
		t.Error("a mount of one namespace is in another")
	}
	p, _ := s.Mounted("prod", false, "transit")
	if d, _ := s.Mounted(ns, false, "transit"); d.Accessor == p.Accessor {
		t.Error("two namespaces have a mount of one accessor")
	}
}

// TestManyAtOnce: of those who mount the same at the same time, at two servers, one does, and nothing is lost of the others.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	servers := []server{w.start(), w.start()}
	var wait sync.WaitGroup
	var mu sync.Mutex // guards taken
	taken := 0
	for i := range 20 {
		wait.Go(func() {
			_, err := servers[i%2].Enable(t.Context(), root, ns, mounts.Mount{Path: "same", Type: "transit"})
			if err == nil {
				mu.Lock()
				taken++
				mu.Unlock()
			} else if fault.CodeOf(err) != fault.Exists {
				t.Error(err)
			}
			_, err = servers[i%2].Enable(t.Context(), root, ns, mounts.Mount{Path: fmt.Sprint("own-", i), Type: "transit"})
			want(t, err, "")
		})
	}
	wait.Wait()
	if n := len(w.start().All(ns)); taken != 1 || n != 5+1+20 {
		t.Errorf("%d mounted the same, there are %d", taken, n)
	}
}

// TestMostMounts: the mounts of a namespace are bounded in number.
func TestMostMounts(t *testing.T) {
	s := newWorld(t).start()
	for i := range mounts.MaxMounts - 1 {
		_, err := s.Enable(t.Context(), root, ns, mounts.Mount{Path: fmt.Sprint("m", i), Type: "transit"})
		want(t, err, "")
	}
	_, err := s.Enable(t.Context(), root, ns, mounts.Mount{Path: "more", Type: "transit"})
	want(t, err, fault.TooLarge)
}

// TestClear: what is below a mount goes first, and when it does not the mount stays.
func TestClear(t *testing.T) {
	kept := errors.New("kept")
	var asked []string
	s := newWorld(t).start(func(c *mounts.Config) {
		c.Clear = func(_ context.Context, who policy.Caller, _ keyring.Namespace, m mounts.Mount) error {
			if asked = append(asked, who.Name+" "+m.Full()); len(asked) == 1 {
				return kept
			}
			return nil
		}
	})
	if err := s.Disable(t.Context(), root, ns, false, "transit"); !errors.Is(err, kept) {
		t.Error(err)
	}
	if _, ok := s.Mounted(ns, false, "transit"); !ok {
		t.Error("the mount went without its keys")
	}
	want(t, s.Disable(t.Context(), root, ns, false, "transit"), "")
	if _, ok := s.Mounted(ns, false, "transit"); ok || len(asked) != 2 {
		t.Error(asked)
	}
}

// TestRemount: what is below goes along; nothing is served meanwhile; a failure leaves the mount where it was, and a crash between the commits is gone on from by
// the same call, at any server.
func TestRemount(t *testing.T) {
	w := newWorld(t)
	var fail error
	s, served := w.start(), true
	s.Move = func(context.Context, policy.Caller, keyring.Namespace, mounts.Mount, string) error {
		_, _, served = s.Find(ns, "a/keys/k")
		return fail
	}
	ctx := t.Context()
	made, err := s.Enable(ctx, root, ns, mounts.Mount{Path: "a", Type: "transit"})
	want(t, err, "")
	_, err = s.Enable(ctx, root, ns, mounts.Mount{Path: "taken/x", Type: "transit"})
	want(t, err, "")
	for _, c := range []struct {
		from, to string
		code     fault.Code
	}{
		{"none", "b", fault.NotFound}, {"sys", "b", fault.Invalid}, {"a", "sys/x", fault.Invalid}, {"a", "a", fault.Exists}, {"a", "taken", fault.Exists}, {"a", "taken/x/y", fault.Exists}, {"a", "..", fault.Invalid},
	} {
		_, err := s.Remount(ctx, root, ns, false, c.from, c.to)
		want(t, err, c.code)
	}
	_, err = s.Remount(ctx, eve, ns, false, "a", "b")
	want(t, err, fault.Denied)
	fail = errors.New("a key may not")
	if _, err := s.Remount(ctx, root, ns, false, "a", "b"); !errors.Is(err, fail) || served {
		t.Errorf("%v, served %t", err, served)
	}
	if _, _, ok := s.Find(ns, "a/keys/k"); !ok {
		t.Error("a mount that stays is not served")
	}
	moved, err := s.move(ctx, "a", "b", func() { panic("crash") })
	if err == nil {
		t.Fatalf("%+v", moved)
	}
	other := w.start()
	if _, _, ok := other.Find(ns, "a/keys/k"); ok {
		t.Error("what is half moved is served")
	}
	_, err = other.Enable(ctx, root, ns, mounts.Mount{Path: "b/x", Type: "transit"})
	want(t, err, fault.Exists)
	_, err = other.Remount(ctx, root, ns, false, "a", "c")
	want(t, err, fault.Exists)
	m, err := other.Remount(ctx, root, ns, false, "a", "b")
	want(t, err, "")
	found, rest, ok := other.Find(ns, "b/keys/k")
	if !ok || rest != "keys/k" || found.Accessor != made.Accessor || found.Moved != m.Moved || m.Moved.From != "a/" || len(m.Moved.ID) != 36 {
		t.Errorf("%+v, %+v", m, found)
	}
	if _, _, ok := other.Find(ns, "a/keys/k"); ok {
		t.Error("the old path is served")
	}
}

// move is a Remount in whose middle something happens to the process.
func (s server) move(ctx context.Context, from, to string, what func()) (m mounts.Mount, err error) {
	s.Move = func(context.Context, policy.Caller, keyring.Namespace, mounts.Mount, string) error {
		what()
		return nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return s.Remount(ctx, root, ns, false, from, to)
}
