package authn_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

const here = "10.1.2.3"

// credential makes a credential and returns its ID and text.
func (s server) credential(t *testing.T, want authn.Credential, ttl time.Duration) (id, text string) {
	t.Helper()
	c, text, err := s.CreateCredential(s.ctx, admin, want, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return c.ID, text
}

func (s server) login(t *testing.T, text string) authn.Ticket {
	t.Helper()
	k, err := s.Login(s.ctx, authn.Proof{Credential: text, Address: here})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (s server) refuses(t *testing.T, what, token string) {
	t.Helper()
	c, _, err := s.Session(s.ctx, token, here)
	wants(t, what, err, fault.Unauthenticated)
	if !c.IsZero() {
		t.Errorf("%s: a caller all the same: %+v", what, c)
	}
}

func (s server) takes(t *testing.T, what, token string) policy.Caller {
	t.Helper()
	c, _, err := s.Session(s.ctx, token, here)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return c
}

func TestCredentialToSession(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	id, text := s.credential(t, authn.Credential{Name: "ci", Attributes: map[string]string{"team": "vision"}}, 0)
	k := s.login(t, text)
	want := policy.Caller{Kind: policy.KindCredential, Name: "credential/ci", Attributes: map[string]string{"team": "vision"}, Session: k.ID}
	if diff := cmp.Diff(want, s.takes(t, "fresh", k.Token)); diff != "" {
		t.Error(diff)
	}
	if k.Expires.Sub(c.now()) > 12*time.Hour || k.Idle != time.Hour {
		t.Errorf("%+v", k)
	}
	list, err := s.Credentials(s.ctx, admin)
	if err != nil || len(list) != 1 || list[0].ID != id || list[0].Maker != admin.Name {
		t.Errorf("%+v, %v", list, err)
	}
	for _, secretText := range []string{text, k.Token} {
		raw, err := base64.RawURLEncoding.DecodeString(secretText[len(secretText)-43:])
		if err != nil {
			t.Fatal(err)
		}
		records, _, err := s.guard.List(s.ctx, "authn/")
		if err != nil || len(records) < 2 {
			t.Fatal(err)
		}
		for _, r := range records {
			if bytes.Contains(r.Value, raw) || bytes.Contains(r.Value, []byte(secretText[len(secretText)-43:])) {
				t.Errorf("%s holds the secret", r.Path)
			}
		}
	}
	s.stop()
	s = c.start(c.store)
	s.takes(t, "after a restart", k.Token)
	if _, err := s.ChangeCredential(s.ctx, admin, id, "revoke"); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "session of a revoked credential", k.Token)
	_, err = s.Login(s.ctx, authn.Proof{Credential: text, Address: here})
	wants(t, "revoked", err, fault.Unauthenticated)
}

// TestSessionsCountEverywhere: what one server makes and ends, another knows, also before its watch has brought it.
func TestSessionsCountEverywhere(t *testing.T) {
	c := newCluster(t)
	one := c.start(c.store)
	two := c.twin(one)
	id, text := one.credential(t, authn.Credential{Name: "ci"}, 0)
	k := two.login(t, text)
	one.takes(t, "made elsewhere", k.Token)
	other := two.login(t, text)
	if n, err := one.RevokeSessions(one.ctx, admin, k.ID, ""); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	one.refuses(t, "at once", k.Token)
	two.takes(t, "another session", other.Token)
	await(t, "revoked elsewhere", func() bool { _, _, err := two.Session(two.ctx, k.Token, here); return err != nil })
	if _, err := one.ChangeCredential(one.ctx, admin, id, "revoke"); err != nil {
		t.Fatal(err)
	}
	await(t, "credential revoked elsewhere", func() bool { _, _, err := two.Session(two.ctx, other.Token, here); return err != nil })
}

// TestTwoServers: the same of two servers, each with its own door to the store.
func TestTwoServers(t *testing.T) {
	c := newCluster(t)
	one := c.start(c.store)
	two := c.start(c.store)
	_, text := one.credential(t, authn.Credential{Name: "ci", Uses: 2}, 0)
	k := two.login(t, text)
	one.takes(t, "made elsewhere", k.Token)
	one.login(t, text)
	_, err := two.Login(two.ctx, authn.Proof{Credential: text, Address: here})
	wants(t, "third use of two", err, fault.Unauthenticated)
	if n, err := one.RevokeSessions(one.ctx, admin, "", "credential/ci"); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	one.refuses(t, "revoked", k.Token)
	await(t, "revoked elsewhere", func() bool { _, _, err := two.Session(two.ctx, k.Token, here); return err != nil })
	if two.ctx.Err() != nil {
		t.Error("a server ended")
	}
}

// await waits for what the watch of another server brings.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSessionsEnd(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	if err := s.Configure(authn.Access{SessionLife: 2 * time.Hour, SessionIdle: 20 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	_, text := s.credential(t, authn.Credential{Name: "ci"}, 0)
	k, idle := s.login(t, text), s.login(t, text)
	writes := len(s.entries(t, "session.use"))
	for range 119 {
		c.advance(time.Minute)
		s.takes(t, "in use", k.Token)
	}
	if n := len(s.entries(t, "session.use")) - writes; n < 10 || n > 24 {
		t.Errorf("its use was written %d times in 119 uses", n)
	}
	c.advance(time.Minute)
	s.refuses(t, "absolute limit", k.Token)
	s.refuses(t, "idle limit", idle.Token)
	if all, err := s.Sessions(s.ctx, admin, "", true); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// entries are those of the audit log with an action.
func (s server) entries(t *testing.T, action string) (out []string) {
	t.Helper()
	l, err := s.guard.ReadLog(s.ctx, admin)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Settled(s.ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Tail(s.ctx, 0, false, func(_ int64, e []byte) error {
		if strings.Contains(string(e), `"action":"`+action+`"`) {
			out = append(out, string(e))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLogoutAndRights(t *testing.T) {
	c := newCluster(t)
	c.rules = only{admin.Name}
	s := c.start(c.store)
	_, ci := s.credential(t, authn.Credential{Name: "ci"}, 0)
	_, bot := s.credential(t, authn.Credential{Name: "bot"}, 0)
	k, k2, other := s.login(t, ci), s.login(t, ci), s.login(t, bot)
	who := s.takes(t, "ci", k.Token)
	if all, err := s.Sessions(s.ctx, who, "", false); err != nil || len(all) != 2 {
		t.Errorf("its own: %v, %v", all, err)
	}
	for what, err := range map[string]error{
		"all":          second(s.Sessions(s.ctx, who, "", true)),
		"another's":    second(s.Sessions(s.ctx, who, "credential/bot", false)),
		"revoke":       second(s.RevokeSessions(s.ctx, who, other.ID, "")),
		"revoke all":   second(s.RevokeSessions(s.ctx, who, "", "credential/bot")),
		"no such":      second(s.RevokeSessions(s.ctx, who, "0000", "")),
		"list":         second(s.Credentials(s.ctx, who)),
		"change":       second(s.ChangeCredential(s.ctx, who, strings.Repeat("0", 32), "unlock")),
		"invite admin": second(s.InviteAdmin(s.ctx, who, "eve", 0, "h:1")),
		"admins":       second(s.Admins(s.ctx, who)),
		"remove admin": s.RemoveAdmin(s.ctx, who, "admin"),
	} {
		wants(t, what, err, fault.Denied)
	}
	_, _, err := s.CreateCredential(s.ctx, who, authn.Credential{Name: "!"}, 0)
	wants(t, "create", err, fault.Denied)
	if err := s.Logout(s.ctx, who); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "logged out", k.Token)
	who = s.takes(t, "its other session", k2.Token)
	if n, err := s.RevokeSessions(s.ctx, who, k2.ID, ""); n != 1 || err != nil {
		t.Errorf("its own: %d, %v", n, err)
	}
	s.takes(t, "another's", other.Token)
	wants(t, "logout without a session", s.Logout(s.ctx, admin), fault.Invalid)
	wants(t, "neither", second(s.RevokeSessions(s.ctx, admin, "", "")), fault.Invalid)
	wants(t, "no such session", second(s.RevokeSessions(s.ctx, admin, "0000", "")), fault.NotFound)
	for what, err := range map[string]error{
		"sessions": second(s.Sessions(s.ctx, policy.Caller{}, "", true)), "revoke": second(s.RevokeSessions(s.ctx, policy.Caller{}, "x", "")),
		"grants": second(s.Grants(policy.Caller{})),
	} {
		wants(t, "nobody: "+what, err, fault.Unauthenticated)
	}
}

func second[T any](_ T, err error) error { return err }

// only allows everything to some callers.
type only []string

func (o only) Allows(c policy.Caller, _ policy.Action, _ policy.Resource) (string, bool) {
	return "only", slices.Contains(o, c.Name)
}

func TestCredentialLimits(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	_, text := s.credential(t, authn.Credential{Name: "ci", Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Uses: 2}, time.Hour)
	_, err := s.Login(s.ctx, authn.Proof{Credential: text, Address: "10.2.0.1"})
	wants(t, "another network", err, fault.Unauthenticated)
	for _, odd := range []string{"", "localhost", "fe80::1%eth0"} {
		_, err := s.Login(s.ctx, authn.Proof{Credential: text, Address: odd})
		wants(t, "address "+odd, err, fault.Unauthenticated)
	}
	k := s.login(t, text)
	_, _, err = s.Session(s.ctx, k.Token, "10.2.0.1")
	wants(t, "a session that was carried away", err, fault.Unauthenticated)
	if _, err := s.Login(s.ctx, authn.Proof{Credential: text, Address: "::ffff:10.1.0.9"}); err != nil {
		t.Errorf("IPv4 in IPv6: %v", err)
	}
	_, err = s.Login(s.ctx, authn.Proof{Credential: text, Address: here})
	wants(t, "third use of two", err, fault.Unauthenticated)
	s.takes(t, "a session of it", k.Token)
	c.advance(59 * time.Minute)
	s.takes(t, "before its end", k.Token)
	c.advance(time.Minute)
	s.refuses(t, "a session of a credential that has ended", k.Token)
	for what, want := range map[string]authn.Credential{
		"no name": {}, "name": {Name: "A"}, "network": {Name: "a", Networks: []netip.Prefix{{}}},
		"network with host": {Name: "a", Networks: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}},
		"attribute":         {Name: "a", Attributes: map[string]string{"": "x"}},
		"long attribute":    {Name: "a", Attributes: map[string]string{"x": strings.Repeat("x", 513)}},
	} {
		_, _, err := s.CreateCredential(s.ctx, admin, want, 0)
		wants(t, what, err, fault.Invalid)
	}
	for _, ttl := range []time.Duration{-1, 1, authn.MaxCredentialLife + 1} {
		_, _, err := s.CreateCredential(s.ctx, admin, authn.Credential{Name: "a"}, ttl)
		wants(t, fmt.Sprint(ttl), err, fault.Invalid)
	}
}

// TestUsesAtOnce: a credential for three uses is used three times, however many try at a time, at two servers.
func TestUsesAtOnce(t *testing.T) {
	c := newCluster(t)
	one := c.start(c.store)
	two := c.twin(one)
	_, text := one.credential(t, authn.Credential{Name: "ci", Uses: 3}, 0)
	out := make(chan error, 12)
	for i := range 12 {
		go func() {
			s := []server{one, two}[i%2]
			_, err := s.Login(s.ctx, authn.Proof{Credential: text, Address: here})
			out <- err
		}()
	}
	n := 0
	for range 12 {
		if err := <-out; err == nil {
			n++
		} else {
			wants(t, "beyond its uses", err, fault.Unauthenticated)
		}
	}
	if n != 3 {
		t.Errorf("%d logins", n)
	}
}

// TestLockout: failures in a row are counted in the store, wherever they happen; then the right secret is refused too.
func TestLockout(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	limit := authn.Access{Failures: 5}
	id, text := s.credential(t, authn.Credential{Name: "ci"}, 0)
	wrong := text[:len(text)-43] + base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	fail := func(s server, n int) {
		t.Helper()
		out := make(chan error, n)
		for range n {
			go func() {
				_, err := s.Login(s.ctx, authn.Proof{Credential: wrong, Address: here})
				out <- err
			}()
		}
		for range n {
			wants(t, "wrong secret", <-out, fault.Unauthenticated)
		}
	}
	configure := func(s server) {
		if err := s.Configure(limit); err != nil {
			t.Fatal(err)
		}
	}
	configure(s)
	fail(s, 4)
	s.login(t, text) // which begins a new row
	fail(s, 3)
	s.stop()
	s = c.start(c.store)
	configure(s)
	fail(s, 1)
	other := c.twin(s)
	configure(other)
	fail(other, 4)
	for _, s := range []server{s, other} {
		_, err := s.Login(s.ctx, authn.Proof{Credential: text, Address: here})
		wants(t, "the right secret of a locked credential", err, fault.Unauthenticated)
	}
	list, err := other.Credentials(other.ctx, admin)
	if err != nil || list[0].Failures != 5 || !list[0].Locked {
		t.Errorf("%+v, %v", list, err)
	}
	if n := len(other.entries(t, "login")); n != 11 {
		t.Errorf("%d entries: of a login, nine failures, and one of what was refused in the same minute", n)
	}
	if _, err := other.ChangeCredential(other.ctx, admin, id, "unlock"); err != nil {
		t.Fatal(err)
	}
	s.login(t, text)
	for _, bad := range []authn.Access{{Failures: 101}, {Failures: -1}, {SessionLife: 25 * time.Hour}, {SessionIdle: time.Second}, {SessionIdle: 13 * time.Hour}} {
		wants(t, fmt.Sprintf("%+v", bad), s.Configure(bad), fault.Invalid)
	}
}

func TestStrangersLogIn(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	_, text := s.credential(t, authn.Credential{Name: "ci"}, 0)
	k := s.login(t, text)
	flip := func(s string, i int) string { return s[:i] + string(s[i]^1) + s[i+1:] }
	for what, bad := range map[string]string{
		"empty": "", "noise": "x", "another ID": flip(text, 20), "longer": text + "A", "shorter": text[:len(text)-1], "a session": k.Token,
		"upper case": strings.ToUpper(text), "no base64": text[:len(text)-1] + "=", "bits behind": text[:len(text)-1] + "B", "path": strings.Replace(text, "rotor_credential_", "rotor_credential_../", 1),
	} {
		_, err := s.Login(s.ctx, authn.Proof{Credential: bad, Address: here})
		wants(t, "credential: "+what, err, fault.Unauthenticated)
	}
	slot := len("rotor_session_")
	for what, bad := range map[string]string{
		"empty": "", "another slot": flip(k.Token, slot+5), "another secret": flip(k.Token, slot+12), "longer": k.Token + "A", "a credential": text,
		"beyond all slots": k.Token[:slot] + "ffffff" + k.Token[slot+6:], "upper case": k.Token[:slot] + "00000A" + k.Token[slot+6:], "sign": k.Token[:slot] + "+00000" + k.Token[slot+6:],
	} {
		s.refuses(t, "session: "+what, bad)
	}
	_, err := s.Login(s.ctx, authn.Proof{Credential: text, JWT: "x", Address: here})
	wants(t, "two proofs", err, fault.Invalid)
	_, err = s.Login(s.ctx, authn.Proof{TLS: tls.ConnectionState{}, Address: here})
	wants(t, "nothing", err, fault.Unauthenticated)
}

// TestCertificateToSession: an instance's session is the instance, and ends with it.
func TestCertificateToSession(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	g, err := s.Join(s.ctx, s.invite(t, "a"), csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.Login(s.ctx, authn.Proof{TLS: conn(t, g.Chain), Address: here})
	if err != nil {
		t.Fatal(err)
	}
	who := s.takes(t, "instance", k.Token)
	if who.Name != "spiffe://rotor.local/instance/a" || who.Instance != "a" || who.Session == "" {
		t.Errorf("%+v", who)
	}
	if err := s.Remove(s.ctx, admin, "a"); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "removed", k.Token)
	if _, err := s.Join(s.ctx, s.invite(t, "a"), csr(t, newKey(t))); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "beside its successor", k.Token)
	c.advance(authn.InstanceLife - time.Hour)
	if g, err = s.Join(s.ctx, s.invite(t, "b"), csr(t, newKey(t))); err != nil {
		t.Fatal(err)
	}
	c.advance(authn.InstanceLife - time.Minute)
	if k, err = s.Login(s.ctx, authn.Proof{TLS: conn(t, g.Chain), Address: here}); err != nil {
		t.Fatal(err)
	}
	if k.Expires.After(c.now().Add(2 * time.Minute)) {
		t.Errorf("the session outlives the certificate: %s", k.Expires.Sub(c.now()))
	}
}

// TestSlotsAreUsedAgain: the number of paths that the log has to remember is that of the sessions at a time.
func TestSlotsAreUsedAgain(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	g, err := s.Join(s.ctx, s.invite(t, "a"), csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	state := conn(t, g.Chain)
	slots, first := map[string]bool{}, ""
	login := func() string {
		k, err := s.Login(s.ctx, authn.Proof{TLS: state, Address: here})
		if err != nil {
			t.Fatal(err)
		}
		slots[k.Token[:len("rotor_session_000000")]] = true
		return k.Token
	}
	for range 20 {
		login()
	}
	c.advance(2 * time.Hour)
	for range 20 {
		login()
	}
	if len(slots) > 22 {
		t.Errorf("%d slots for 20 sessions at a time", len(slots))
	}
	c.advance(time.Second) // those before are older
	first = login()
	c.advance(time.Second)
	for range 100 {
		login()
		c.advance(time.Second)
	}
	s.refuses(t, "the oldest of too many of one caller", first)
}

func TestEnrolment(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	text, err := s.Enrolment(s.ctx, "root", "127.0.0.1:7420")
	if err != nil || !strings.HasPrefix(text, "re1.") {
		t.Fatal(text, err)
	}
	k, err := identity.ParseJoinToken(text)
	if err != nil || !k.IsAdmin() {
		t.Fatal(k, err)
	}
	key := newKey(t)
	g, err := s.Join(s.ctx, text, csr(t, key))
	if err != nil {
		t.Fatal(err)
	}
	root := conn(t, g.Chain)
	who, err := s.Identify(root, false)
	if err != nil || who.Name != "admin/root" || who.Kind != policy.KindAdmin {
		t.Fatalf("%+v, %v", who, err)
	}
	_, err = s.Join(s.ctx, text, csr(t, newKey(t)))
	wants(t, "second key", err, fault.JoinTokenUsed)
	if _, err := s.Join(s.ctx, text, csr(t, key)); err != nil {
		t.Errorf("a lost answer: %v", err)
	}
	wants(t, "the last administrator", s.RemoveAdmin(s.ctx, who, "root"), fault.InUse)
	late, err := s.InviteAdmin(s.ctx, who, "late", 0, "127.0.0.1:7420")
	if err != nil {
		t.Fatal(err)
	}
	c.advance(identity.MaxEnrolTTL)
	_, err = s.Join(s.ctx, late, csr(t, newKey(t)))
	wants(t, "late", err, fault.JoinTokenExpired)
	boss, err := s.InviteAdmin(s.ctx, who, "boss", 0, "127.0.0.1:7420")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.Join(s.ctx, boss, csr(t, newKey(t))); err != nil {
		t.Fatal(err)
	}
	session, err := s.Login(s.ctx, authn.Proof{TLS: root, Address: here})
	if err != nil {
		t.Fatal(err)
	}
	unused, err := s.InviteAdmin(s.ctx, who, "root", 0, "127.0.0.1:7420")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveAdmin(s.ctx, admin, "root"); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s = c.start(c.store)
	_, err = s.Identify(root, false)
	wants(t, "removed", err, fault.Denied)
	s.refuses(t, "session of a removed administrator", session.Token)
	_, err = s.Join(s.ctx, unused, csr(t, newKey(t)))
	wants(t, "enrolment of before", err, fault.JoinTokenExpired)
	wants(t, "again", s.RemoveAdmin(s.ctx, admin, "root"), fault.NotFound)
	again, err := s.InviteAdmin(s.ctx, admin, "root", 0, "127.0.0.1:7420")
	if err != nil {
		t.Fatal(err)
	}
	if g, err = s.Join(s.ctx, again, csr(t, key)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Identify(conn(t, g.Chain), false); err != nil {
		t.Errorf("invited again: %v", err)
	}
	_, err = s.Identify(root, false)
	wants(t, "removed, beside its successor", err, fault.Denied)
	all, err := s.Admins(s.ctx, admin)
	if err != nil || len(all) != 2 || all[0].Name != "boss" || !all[1].Removed.IsZero() {
		t.Errorf("%+v, %v", all, err)
	}
	for _, edit := range []func(*identity.JoinToken){
		func(k *identity.JoinToken) { k.SPIFFE = "spiffe://rotor.local/instance/root" }, func(k *identity.JoinToken) { k.Secret = make([]byte, 32) },
	} {
		forged := k
		edit(&forged)
		_, err := s.Join(s.ctx, forged.Encode(), csr(t, key))
		if fault.CodeOf(err) != fault.Unauthenticated && fault.CodeOf(err) != fault.JoinTokenExpired {
			t.Errorf("forged: %v", err)
		}
	}
}

// counting counts the reads of single records.
type counting struct {
	store.Store
	reads atomic.Int64
}

func (c *counting) Get(ctx context.Context, key string) (store.Record, error) {
	c.reads.Add(1)
	return c.Store.Get(ctx, key)
}

// TestMadeUpSessions: tokens of nobody, in any slot, are not each looked for in the store; one that another server has made is.
func TestMadeUpSessions(t *testing.T) {
	c := newCluster(t)
	db := &counting{Store: c.store}
	s := c.start(db)
	_, text := s.credential(t, authn.Credential{Name: "ci"}, 0)
	k := s.login(t, text)
	other := c.twin(s)
	other.takes(t, "one of another server", k.Token)
	secret := strings.Repeat("A", 43)
	other.refuses(t, "the last slot", "rotor_session_01869f_"+secret) // its watch may not be there yet
	await(t, "made-up tokens are looked for no more", func() bool {
		before := db.reads.Load()
		for slot := range 100 {
			other.refuses(t, "a made-up token", fmt.Sprintf("rotor_session_%06x_%s", slot+1, secret))
		}
		return before == db.reads.Load()
	})
}

// TestStrangersInTheLog: whoever has all addresses of an IPv6 network is one stranger to the log.
func TestStrangersInTheLog(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	before, waiting := s.guard.LogStats()
	for i := range 50 {
		address := fmt.Sprintf("2001:db8::%x", i+1)
		_, err := s.Login(s.ctx, authn.Proof{Credential: "rotor_credential_", Address: address, From: "2001:db8::/64"})
		wants(t, address, err, fault.Unauthenticated)
	}
	if entries, more := s.guard.LogStats(); entries+int64(more)-before-int64(waiting) > 2 { // a minute may have ended
		t.Errorf("%d entries", entries+int64(more)-before-int64(waiting))
	}
}
