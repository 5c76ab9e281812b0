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
