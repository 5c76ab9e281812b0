package authn_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/policy"
)

// instances allows everything to instances.
type instances struct{}

func (instances) Allows(c policy.Caller, _ policy.Action, _ policy.Resource) (string, bool) {
	return "instances", c.Kind == policy.KindInstance || c.Kind == policy.KindAdmin
}

// TestGrantOfTheRemoved: a request of an instance that was let in before its removal, and is done after it, lends nothing in the name of who is
// invited under that name later.
func TestGrantOfTheRemoved(t *testing.T) {
	c := newCluster(t)
	c.rules = instances{}
	s := c.start(c.store)
	before := policy.Caller{Kind: policy.KindInstance, Name: s.InstanceID("reader"), Instance: "reader"}
	if err := s.Remove(s.ctx, admin, "reader"); err != nil {
		t.Fatal(err)
	}
	after := before
	after.Generation = 1
	key := policy.Resource{Namespace: "default", Key: "records"}
	for grantor, want := range map[string]policy.Caller{"credential/of-the-removed": before, "credential/of-the-next": after} {
		ask := authn.Grant{Grantee: grantor, Actions: []policy.Action{policy.ActDecrypt}}
		if _, err := s.CreateGrant(s.ctx, want, key, ask, 0); err != nil {
			t.Fatal(err)
		}
		lends := s.guard.Allows(policy.Caller{Kind: policy.KindCredential, Name: grantor}, policy.ActDecrypt, key)
		if lends != (want.Generation == 1) {
			t.Errorf("%s: %v", grantor, lends)
		}
	}
}

// TestDecisionOrder: a rule that denies counts before the policies of a token, these before the rules that allow, and a denial of theirs is final.
func TestDecisionOrder(t *testing.T) {
	rules, err := policy.Parse("rules", []byte(`version: 1
rules:
  - {name: frozen, effect: deny, callers: ["**"], actions: [encrypt], keys: {namespace: "**", names: ["transit/frozen"]}}
  - {name: lent, callers: ["vault/token/lent", "admin/*"], actions: [encrypt, decrypt, grant], keys: {namespace: default, names: ["**"]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t)
	c.rules = rules
	s := c.start(c.store)
	allow := func(path string, caps ...policy.Operation) policy.Stanza {
		return policy.Stanza{Path: path, Grants: policy.Grants{Capabilities: caps}}
	}
	acl := policy.NewACL("default", true, []policy.PathPolicy{{Name: "app", Stanzas: []policy.Stanza{
		allow("transit/encrypt/*", policy.OpUpdate), allow("transit/encrypt/secret", policy.CapDeny), allow("sys/mounts/transit", policy.OpDelete),
	}}})
	for _, q := range []struct {
		name, path, key string
		ns              string // of the key
		by              string // empty: denied
	}{
		{"app", "transit/encrypt/orders", "transit/orders", "default", "policy app"},
		{"app", "transit/decrypt/orders", "transit/orders", "default", ""},
		{"app", "transit/encrypt/frozen", "transit/frozen", "default", ""},
		{"app", "transit/encrypt/secret", "transit/secret", "default", ""},
		{"app", "transit/encrypt/orders", "orders", "default", ""},       // a key that has no mount
		{"app", "transit/encrypt/orders", "other/orders", "default", ""}, // of another mount
		{"app", "transit/encrypt/orders", "transit/orders", "team", ""},  // of another namespace
		{"app", "sys/mounts/transit", "transit/orders", "default", "policy app"},
		{"app", "sys/mounts/transit", "transits/orders", "default", ""},
		{"lent", "transit/decrypt/orders", "transit/orders", "default", "lent"},
		{"lent", "transit/encrypt/secret", "transit/secret", "default", ""}, // whatever the rules allow
		{"lent", "", "transit/orders", "default", ""},                       // it came in at another front end
	} {
		who := policy.Caller{Kind: policy.KindVault, Name: "vault/token/" + q.name, ACL: acl}
		if q.path != "" {
			who.Request = &policy.Request{Namespace: "default", Path: q.path, Operation: policy.OpUpdate}
			if q.path == "sys/mounts/transit" {
				who.Request.Operation = policy.OpDelete
			}
		}
		got, ok := s.Decider(rules).Allows(who, policy.ActEncrypt, policy.Resource{Namespace: q.ns, Key: q.key})
		if ok != (q.by != "") || got != q.by {
			t.Errorf("%+v: %q, %t", q, got, ok)
		}
	}
	// What is of the whole cluster is not given by the policies of one of its namespaces, not even by all of them.
	all := policy.NewACL("team", false, []policy.PathPolicy{{Name: policy.RootPolicy}})
	for ns, want := range map[string]bool{"team": false, "default": true} {
		who := policy.Caller{Kind: policy.KindVault, Name: "vault/token/x", ACL: all, Request: &policy.Request{Namespace: ns, Path: "sys/rotate", Operation: policy.OpUpdate}}
		if want {
			who.ACL = policy.NewACL("default", true, []policy.PathPolicy{{Name: policy.RootPolicy}})
		}
		if _, ok := s.Decider(rules).Allows(who, policy.ActRotateRoot, policy.Resource{}); ok != want {
			t.Errorf("of the cluster, in %s: %t", ns, ok)
		}
	}
	// A grant does not help against a rule that denies either.
	for key, want := range map[string]bool{"transit/orders": true, "transit/frozen": false} {
		ask := authn.Grant{Grantee: "credential/worker", Actions: []policy.Action{policy.ActDecrypt}}
		if key == "transit/frozen" {
			ask.Actions = []policy.Action{policy.ActEncrypt}
		}
		_, err := s.CreateGrant(s.ctx, admin, policy.Resource{Namespace: "default", Key: key}, ask, 0)
		if (err == nil) != want {
			t.Fatalf("%s: %v", key, err)
		}
		if got := s.guard.Allows(policy.Caller{Kind: policy.KindCredential, Name: "credential/worker"}, ask.Actions[0], policy.Resource{Namespace: "default", Key: key}); got != want {
			t.Errorf("%s: %t", key, got)
		}
	}
}
