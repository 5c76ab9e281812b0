package authn_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/policy"
)

// TestGrantsEndWithTheirNamespace: however many they are; those of others stay.
func TestGrantsEndWithTheirNamespace(t *testing.T) {
	c := newCluster(t)
	c.rules = instances{}
	s := c.start(c.store)
	p, err := s.guard.Admit(s.ctx, admin, policy.ActNamespaceDelete, policy.Resource{})
	if err == nil {
		err = s.guard.CreateNamespace(s.ctx, p, "team", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	grant := func(ns string) {
		t.Helper()
		ask := authn.Grant{Grantee: "credential/worker", Actions: []policy.Action{policy.ActDecrypt}}
		if _, err := s.CreateGrant(s.ctx, admin, policy.Resource{Namespace: ns, Key: "k"}, ask, 0); err != nil {
			t.Fatal(err)
		}
	}
	grant("default")
	for range 35 {
		grant("team")
	}
	still, _, err := s.guard.CloseNamespace(s.ctx, p, "team")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Vacate(s.ctx, p, still, "team"); err != nil {
		t.Fatal(err)
	}
	left, err := s.Grants(admin)
	if err != nil || len(left) != 1 || left[0].Namespace != "default" {
		t.Errorf("%d are left, %v", len(left), err)
	}
}
