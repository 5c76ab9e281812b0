package acl_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// recover has the store begin another incarnation, as after an older copy of it was put back.
func (w *world) recover() {
	w.t.Helper()
	_, err := w.store.Commit(w.t.Context(), nil, []store.Op{{Key: guard.RestoredPath, Value: []byte("x")}})
	must(w.t, err)
	c := w.config()
	c.Recovery = true
	ctx, stop := context.WithCancel(w.t.Context())
	g, err := guard.Open(ctx, c)
	must(w.t, err)
	ran := make(chan error)
	go func() { ran <- g.Run(ctx) }()
	_, err = g.AskRecovery(ctx, "test", 0)
	must(w.t, err)
	_, incarnation, err := g.BeginRecovery(ctx, nil)
	must(w.t, err)
	must(w.t, g.EndRecovery(ctx, incarnation))
	stop()
	<-ran
}

// TestBatchTokensEndWithARecovery: there is no record that says of which history of the store they are, so those of a former one are none.
func TestBatchTokensEndWithARecovery(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	s.policy("app", `path "transit/*" { capabilities = ["update"] }`)
	ask := acl.Ask{Type: "batch", Policies: []string{"app"}, TTL: time.Hour}
	old := s.create(admin, ask)
	s.stop()
	s = w.start()
	if !s.lives(old.Text) {
		t.Error("it ends with a start")
	}
	s.stop()
	w.recover()
	s = w.start()
	if s.lives(old.Text) {
		t.Error("one of a former history is in force")
	}
	if !s.lives(s.create(admin, ask).Text) {
		t.Error("none is made after a recovery")
	}
}

// TestBatchTokens: they are known at every server without a record, live no longer than their time and their parents, and can do what their policies say now.
func TestBatchTokens(t *testing.T) {
	w := newWorld(t)
	s, other := w.start(), w.start()
	s.policy("app", `path "transit/*" { capabilities = ["update"] } path "auth/token/create" { capabilities = ["update", "sudo"] }`)
	parent := s.create(admin, acl.Ask{Policies: []string{"app"}})
	maker := s.as(parent.Text, "auth/token/create", policy.OpUpdate)
	stored := len(accessors(s))
	b := s.create(maker, acl.Ask{Type: "batch", TTL: time.Hour, Meta: map[string]string{"job": "7"}})
	if !strings.HasPrefix(b.Text, "hvb.") || !b.Batch || b.Accessor != "" || b.Renewable || b.Orphan || b.TTL != time.Hour || len(accessors(s)) != stored {
		t.Errorf("%+v", b)
	}
	c := other.as(b.Text, "transit/encrypt/k", policy.OpUpdate)
	if c.Attributes["job"] != "7" || c.Accessor == "" {
		t.Errorf("%+v", c)
	}
	if c := s.as(b.Text, "transit/encrypt/k", policy.OpUpdate); !c.ACL.Decide(c.Request).Allowed {
		t.Errorf("%+v", c)
	}
	self := acl.Who{Self: true, Text: b.Text}
	if got, err := other.Lookup(other.ctx, admin, ns, acl.Who{Text: b.Text}); err != nil || !got.Batch || got.DisplayName != "token" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err := s.Create(s.ctx, s.as(b.Text, "auth/token/create", policy.OpUpdate), ns, acl.Ask{Path: "auth/token/create"})
	says(t, err, "batch tokens cannot create more tokens")
	_, err = s.Renew(s.ctx, admin, ns, acl.Who{Text: b.Text}, time.Hour)
	says(t, err, "batch tokens cannot be renewed")
	says(t, s.Revoke(s.ctx, admin, ns, acl.Who{Text: b.Text}, false), "batch tokens cannot be revoked")
	says(t, s.Revoke(s.ctx, s.as(b.Text, "auth/token/revoke-self", policy.OpUpdate), ns, self, false), "batch tokens cannot be revoked")

	for i := range b.Text { // nothing of it can be changed
		if bad := b.Text[:i] + string(b.Text[i]^1) + b.Text[i+1:]; s.lives(bad) {
			t.Fatalf("with its character %d changed it is one", i)
		}
	}
	if s.lives(b.Text[:len(b.Text)-1]) || s.lives("hvb.") || s.lives(b.Text+"A") {
		t.Error("a part of it, or more, is one")
	}
	s.policy("app", `path "other" { capabilities = ["read"] }`)
	if c := s.as(b.Text, "transit/encrypt/k", policy.OpUpdate); c.ACL.Decide(c.Request).Allowed {
		t.Error("what its policies do not allow any more is allowed")
	}
	must(t, s.Revoke(s.ctx, admin, ns, acl.Who{Text: parent.Text}, false))
	if s.lives(b.Text) {
		t.Error("it lives without its parent")
	}
	wants(t, "Stands", s.Stands(s.ctx, b.Text, ""), fault.Unauthenticated)
	orphan := s.create(admin, acl.Ask{Type: "batch", Policies: []string{"app"}, TTL: time.Hour})
	if !s.lives(orphan.Text) || !orphan.Orphan {
		t.Errorf("%+v", orphan)
	}
	w.advance(time.Hour)
	if s.lives(orphan.Text) {
		t.Error("it lives longer than its time")
	}
}

func accessors(s *server) []string {
	all, err := s.Accessors(s.ctx, admin, ns)
	must(s.t, err)
	return all
}

func says(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, want %q", err, text)
	}
}

// TestBatchRefusals are those of Vault.
func TestBatchRefusals(t *testing.T) {
	s := newWorld(t).start()
	m, _ := s.mount.Mounted(ns, true, "token/")
	for text, ask := range map[string]acl.Ask{
		"invalid 'token_type' value":                      {Type: "x"},
		`batch tokens cannot have "explicit_max_ttl" set`: {Type: "batch", Explicit: time.Hour},
		`batch tokens cannot have "num_uses" set`:         {Type: "batch", NumUses: 1},
		`batch tokens cannot have "period" set`:           {Type: "batch", Period: time.Hour},
		"batch tokens cannot be root tokens":              {Type: "batch", Policies: []string{"root"}},
		"they are too long":                               {Type: "batch", Policies: []string{"a"}, Meta: map[string]string{"a": strings.Repeat("x", 4000)}},
	} {
		ask.Path = "auth/token/create"
		_, err := s.Create(s.ctx, admin, ns, ask)
		says(t, err, text)
	}
	for text, role := range map[string]string{
		"non-orphan tokens":                    `{"token_type": "batch", "renewable": false}`,
		"renewable tokens":                     `{"token_type": "batch", "orphan": true}`,
		"an explicit max TTL":                  `{"token_type": "batch", "orphan": true, "renewable": false, "token_explicit_max_ttl": "1h"}`,
		"periodic tokens":                      `{"token_type": "batch", "orphan": true, "renewable": false, "token_period": "1h"}`,
		"limited use count":                    `{"token_type": "default-batch", "token_num_uses": 1}`,
		`invalid 'token_type' value "nothing"`: `{"token_type": "nothing"}`,
	} {
		says(t, s.Put(s.ctx, admin, acl.At{Namespace: ns, Mount: m, Kind: acl.KindTokenRole, Name: "r"}, func(spec acl.Spec) error { return json.Unmarshal([]byte(role), spec) }), text)
	}
}

// TestBatchLogins: a role or a mount may ask for them, and they end with the mount.
func TestBatchLogins(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	for _, c := range []struct {
		mount, role string
		batch       bool
	}{
		{"", "", false}, {"", "batch", true}, {"default-batch", "", true}, {"default-batch", "default", true}, {"default-batch", "service", false}, {"batch", "service", true}, {"service", "batch", false}, {"default-service", "batch", true},
	} {
		m, err := s.mount.Enable(s.ctx, admin, ns, mounts.Mount{Path: "people", Type: mounts.Userpass, Auth: true, Settings: mounts.Settings{TokenType: c.mount}})
		must(t, err)
		password := "a long password"
		must(t, s.PutUser(s.ctx, admin, acl.At{Namespace: ns, Mount: m, Kind: acl.KindUser, Name: "ana"}, &password, func(spec acl.Spec) error {
			return json.Unmarshal([]byte(`{"token_policies": "app", "token_type": "`+c.role+`"}`), spec)
		}))
		in, err := s.LoginUser(s.ctx, acl.Door{Namespace: ns, Mount: m, Address: "192.0.2.1"}, "ana", password)
		must(t, err)
		if in.Batch != c.batch || in.Renewable == c.batch || !s.lives(in.Text) {
			t.Errorf("%+v: %+v", c, in)
		}
		must(t, s.mount.Disable(s.ctx, admin, ns, true, "people"))
		if s.lives(in.Text) {
			t.Errorf("%+v: it lives without its mount", c)
		}
	}
}
