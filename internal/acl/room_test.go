package acl_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
)

// TestRoomIsShared: whoever takes without end gets the shares that docs/reference/limits.md tells, and however many do so, callers, mounts or namespaces, others
// find room.
func TestRoomIsShared(t *testing.T) {
	const most = 10_000 // a tenth of what there is
	fill := func(put func(ns, mount, caller string) bool, who ...[3]string) (n int) {
		for took := true; took; {
			took = false
			for _, w := range who {
				if put(w[0], w[1], w[2]) {
					took, n = true, n+1
				}
			}
		}
		return n
	}
	many := func(n int, format func(i int) [3]string) (all [][3]string) {
		for i := range n {
			all = append(all, format(i))
		}
		return all
	}
	caller := func(i int) [3]string { return [3]string{"n", "m", fmt.Sprint(i)} }
	mount := func(i int) [3]string { return [3]string{"n", fmt.Sprint(i), fmt.Sprint(i)} }
	namespace := func(i int) [3]string { return [3]string{fmt.Sprint(i), fmt.Sprint(i), fmt.Sprint(i)} }
	for what, c := range map[string]struct {
		greedy [][3]string
		most   int
		others [][3]string
	}{
		"one caller":      {many(1, caller), 4_000, [][3]string{{"n", "m", "x"}, {"n", "x", "x"}, {"x", "x", "x"}}},
		"two callers":     {many(2, caller), 4_445, [][3]string{{"n", "m", "x"}, {"n", "x", "x"}, {"x", "x", "x"}}},
		"200 callers":     {many(200, caller), 5_000, [][3]string{{"n", "m", "x"}, {"n", "x", "x"}, {"x", "x", "x"}}},
		"200 mounts":      {many(200, mount), 6_667, [][3]string{{"n", "x", "x"}, {"x", "x", "x"}}},
		"many callers":    {many(6_000, caller), 5_000, [][3]string{{"n", "x", "x"}, {"x", "x", "x"}}},
		"100 of no mount": {many(100, func(i int) [3]string { return [3]string{fmt.Sprint(i), "", fmt.Sprint(i)} }), 9_900, [][3]string{{"x", "", "x"}}},
		"100 namespaces":  {many(100, namespace), 9_900, [][3]string{{"x", "x", "x"}}},
		"all its callers": {many(6_000, func(i int) [3]string { return [3]string{"n", fmt.Sprint(i % 9), fmt.Sprint(i)} }), 6_667, [][3]string{{"x", "x", "x"}}},
	} {
		for _, other := range c.others {
			put := acl.NewRoom(most)
			if n := fill(put, c.greedy...); n > c.most || n < c.most*9/10 {
				t.Errorf("%s: %d", what, n)
			}
			if n := fill(put, other); n < 1 {
				t.Errorf("%s: %v is kept out", what, other)
			}
		}
	}
}

// doors are two mounts, with roles that need no secret.
func (s *server) doors(roles ...string) map[string]acl.Door {
	s.t.Helper()
	out := map[string]acl.Door{}
	for _, path := range []string{"a", "b"} {
		m, err := s.mount.Enable(s.ctx, admin, ns, mounts.Mount{Path: path + "/", Type: "approle", Auth: true})
		must(s.t, err)
		out[path] = acl.Door{Namespace: ns, Mount: m, Address: "192.0.2.1"}
		for _, role := range roles {
			at := acl.At{Namespace: ns, Mount: m, Kind: acl.KindAppRole, Name: role}
			must(s.t, s.PutAppRole(s.ctx, admin, at, path+role, set(`{"bind_secret_id": false, "token_bound_cidrs": "192.0.2.0/24", "token_ttl": 3600, "token_policies": "app"}`)))
		}
	}
	return out
}

// logins logs in until there is no room.
func (s *server) logins(d acl.Door, role string) (all []acl.Ticket) {
	s.t.Helper()
	for {
		tk, err := s.LoginAppRole(s.ctx, d, d.Mount.Path[:1]+role, "")
		if fault.CodeOf(err) == fault.QuotaReached {
			return all
		}
		must(s.t, err)
		all = append(all, tk)
	}
}

// TestNobodyKeepsOthersOut: callers who log in without end, and make tokens of what they get, leave room for others at their mount and elsewhere; what is over is
// room again at once, and its records go.
func TestNobodyKeepsOthersOut(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	s.policy("app", appPolicy)
	d := s.doors("greedy", "second", "third", "modest")
	s.SetRoom(600, 100, 100)

	first := s.logins(d["a"], "greedy")
	if len(first) != 240 { // with each place it takes two and a half
		t.Errorf("%d tokens of one caller", len(first))
	}
	c := s.as(first[0].Text, "auth/token/create", policy.OpUpdate)
	for _, ask := range []acl.Ask{{}, {NoParent: true}} {
		ask.Path = "auth/token/create"
		if _, err := s.Create(s.ctx, c, ns, ask); ask.NoParent == (fault.CodeOf(err) == fault.QuotaReached) {
			t.Errorf("%+v: %v", ask, err)
		}
	}
	if n := len(s.logins(d["a"], "second")); n == 0 {
		t.Error("a second one is kept out")
	}
	if n := len(s.logins(d["a"], "third")); n == 0 {
		t.Error("a third one is kept out")
	}
	for _, at := range []string{"a", "b"} {
		if n := len(s.logins(d[at], "modest")); n == 0 {
			t.Errorf("somebody else is kept out at %s", at)
		}
	}
	if n := len(s.Slots()); n > 600 {
		t.Errorf("%d tokens", n)
	}

	must(t, s.Revoke(s.ctx, admin, ns, acl.Who{Accessor: first[0].Accessor}, false))
	if n := len(s.logins(d["a"], "greedy")); n != 0 { // the others have the room that it left, and more
		t.Errorf("%d more of who has most", n)
	}
	taken := s.Slots()
	w.advance(time.Hour)
	_, err := s.LoginAppRole(s.ctx, d["a"], "agreedy", "")
	must(t, err)
	must(t, s.HearAgain())
	if n := len(s.logins(d["a"], "greedy")); n != 239 {
		t.Errorf("%d tokens when all are over", n)
	}
	if now := s.Slots(); len(now) > len(taken)+1 {
		t.Errorf("slots are not used again: %d, %d", len(taken), len(now))
	}
	s.SweepOnce(s.ctx, s.SweepOnce(s.ctx, nil))
	if n := len(s.Slots()); n != 240 {
		t.Errorf("%d records after a sweep", n)
	}
	again := w.start() // counts what is there
	again.SetRoom(60, 100, 100)
	if n := len(again.logins(d["a"], "greedy")); n != 0 {
		t.Errorf("%d more at a server that has just started", n)
	}
}

// TestSweep: what is over goes in the turn after the one that found it, at the server that leads, unless it was changed since.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	s.policy("app", appPolicy)
	once := s.create(admin, acl.Ask{Policies: []string{"app"}, NumUses: 1})
	short := s.create(admin, acl.Ask{Policies: []string{"app"}, TTL: time.Minute})
	long := s.create(admin, acl.Ask{Policies: []string{"app"}, TTL: time.Hour})
	child, err := s.Create(s.ctx, s.as(short.Text, "auth/token/create", policy.OpUpdate), ns, acl.Ask{Path: "auth/token/create", TTL: time.Hour})
	must(t, err)
	_, err = s.CreateWrapping(s.ctx, admin, ns, "x", []byte("x"), time.Minute, "")
	must(t, err)
	last := s.SweepOnce(s.ctx, nil)
	if len(last) != 0 {
		t.Errorf("%v are over", last)
	}
	c := s.as(once.Text, "auth/token/lookup-self", policy.OpRead)
	if last = s.SweepOnce(s.ctx, last); len(last) != 1 {
		t.Errorf("%v are over", last)
	}
	if _, err := s.Lookup(s.ctx, c, ns, acl.Who{Self: true}); err != nil {
		t.Errorf("the request that had the last use: %v", err)
	}
	w.advance(time.Minute)
	if last = s.SweepOnce(s.ctx, last); len(last) != 4 || len(s.Slots()) != 3 {
		t.Errorf("%v are over, %v are there", last, s.Slots())
	}
	s.Lead = func() (guard.Cond, bool) { return guard.Cond{}, false }
	if s.SweepOnce(s.ctx, last); len(s.Slots()) != 3 {
		t.Error("a server that does not lead sweeps")
	}
	s.Lead = nil
	if last = s.SweepOnce(s.ctx, last); len(s.Slots()) != 1 || !s.lives(long.Text) || s.lives(child.Text) {
		t.Errorf("%v are over, %v are there", last, s.Slots())
	}
	if last = s.SweepOnce(s.ctx, last); len(last) != 0 || s.Counted()["caller admin/a"] != 1 {
		t.Errorf("%v are over, %v count", last, s.Counted())
	}
}

// TestRoomForAnswersAndSecrets: the same holds for wrapped answers and secret IDs.
func TestRoomForAnswersAndSecrets(t *testing.T) {
	s := newWorld(t).start()
	d := s.doors("r", "x")
	s.SetRoom(100, 20, 20)
	wraps := func(c policy.Caller) (n int) {
		for {
			_, err := s.CreateWrapping(s.ctx, c, ns, "x", []byte("x"), time.Minute, "")
			if fault.CodeOf(err) == fault.QuotaReached {
				return n
			}
			must(t, err)
			n++
		}
	}
	caller := func(name, mount string) policy.Caller {
		return policy.Caller{Kind: policy.KindVault, Name: name, Mount: mount}
	}
	made := caller("vault/token/y", "a")
	made.Makers = []policy.Maker{{Name: "vault/a/greedy"}}
	if n := wraps(caller("vault/a/greedy", "a")); n != 8 {
		t.Errorf("%d answers of one caller", n)
	}
	if wraps(made) != 0 || wraps(caller("vault/a/other", "a")) == 0 || wraps(caller("vault/b/other", "b")) == 0 {
		t.Error("what it made has room, or another one has none")
	}

	secrets := func(at, role string) (n int) {
		where := acl.At{Namespace: ns, Mount: d[at].Mount, Kind: acl.KindAppRole, Name: role}
		must(t, s.PutAppRole(s.ctx, admin, where, "", set(`{"bind_secret_id": true}`)))
		for {
			_, err := s.CreateSecretID(s.ctx, admin, where, acl.SecretID{})
			if fault.CodeOf(err) == fault.QuotaReached {
				return n
			}
			must(t, err)
			n++
		}
	}
	if n := secrets("a", "r"); n != 10 {
		t.Errorf("%d secret IDs of one role", n)
	}
	if secrets("a", "x") == 0 || secrets("b", "r") == 0 {
		t.Error("another role, or mount, is kept out")
	}
}
