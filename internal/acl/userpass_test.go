package acl_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/mounts"
)

// TestRefusalsTakeTheSame: how long a refusal takes says nothing of whether there is a user, or whether it is locked; and a true password waits for nothing.
func TestRefusalsTakeTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newWorld(t).start()
		m, err := s.mount.Enable(s.ctx, admin, ns, mounts.Mount{Path: "userpass/", Type: "userpass", Auth: true})
		must(t, err)
		d := acl.Door{Namespace: ns, Mount: m, Address: "192.0.2.1"}
		password := "correct horse"
		for _, name := range []string{"anna", "locked"} {
			must(t, s.PutUser(s.ctx, admin, acl.At{Namespace: ns, Mount: m, Kind: acl.KindUser, Name: name}, &password, set(`{}`)))
		}
		login := func(name, password string) (took time.Duration, err error) {
			began := time.Now()
			_, err = s.LoginUser(s.ctx, d, name, password)
			return time.Since(began), err
		}
		for range 5 {
			_, err := login("locked", "wrong")
			wants(t, "to lock", err, fault.Invalid)
		}
		for what, who := range map[string][2]string{
			"nobody": {"nobody", password}, "a wrong password": {"anna", "wrong"}, "a locked user": {"locked", password}, "no name": {"a b", password},
		} {
			took, err := login(who[0], who[1])
			if wants(t, what, err, fault.Invalid); took != 100*time.Millisecond {
				t.Errorf("%s takes %v", what, took)
			}
		}
		took, err := login("anna", password)
		if must(t, err); took >= 100*time.Millisecond {
			t.Errorf("a login takes %v", took)
		}
	})
}
