package authn_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// all allows everything to everybody.
type all struct{}

func (all) Allows(policy.Caller, policy.Action, policy.Resource) (string, bool) { return "all", true }

var admin = policy.Caller{Kind: policy.KindAdmin, Name: "admin/a"}

// cluster is a store with its seal and a clock. Servers on it come and go.
type cluster struct {
	t      *testing.T
	store  store.Store
	sealer seal.Sealer
	clock  atomic.Int64
	rules  guard.Decider
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, store: mem.New(), sealer: s, rules: all{}}
	c.clock.Store(time.Now().UnixNano())
	if _, err := guard.Init(t.Context(), c.config(c.store)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) now() time.Time          { return time.Unix(0, c.clock.Load()) }
func (c *cluster) advance(d time.Duration) { c.clock.Add(int64(d)) }

func (c *cluster) config(s store.Store) guard.Config {
	return guard.Config{Store: s, Sealers: []seal.Sealer{c.sealer}, Rules: all{}, Now: c.now, Log: slog.New(slog.DiscardHandler)}
}

// server is an authority that runs on a store. ctx ends when it breaks.
type server struct {
	*authn.Authority
	ctx   context.Context
	stop  func()
	guard *guard.Guard
}

func (c *cluster) start(s store.Store) server {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	g, err := guard.Open(ctx, c.config(s))
	if err != nil {
		c.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = g.Run(ctx); cancel(); close(done) }() // a broken store ends it
	ended := make(chan struct{})
	stop := func() { cancel(); <-done; <-ended }
	a := c.authority(ctx, g)
	go func() { _ = a.Run(ctx); close(ended) }()
	c.t.Cleanup(stop)
	g.SetRules(a.Decider(c.rules))
	return server{a, ctx, stop, g}
}

func (c *cluster) authority(ctx context.Context, g *guard.Guard) *authn.Authority {
	c.t.Helper()
	a, err := authn.New(ctx, authn.Config{Guard: g, TrustDomain: "rotor.local", Namespace: "default", Now: c.now})
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// twin is another authority at the same door: what a server that serves the same store knows of it.
func (c *cluster) twin(s server) server {
	c.t.Helper()
	a, done := c.authority(s.ctx, s.guard), make(chan struct{})
	go func() { _ = a.Run(s.ctx); close(done) }()
	c.t.Cleanup(func() { s.stop(); <-done })
	return server{a, s.ctx, s.stop, s.guard}
}

func (s server) invite(t *testing.T, name string) string {
	t.Helper()
	text, err := s.Invite(s.ctx, admin, name, 0, "127.0.0.1:7420")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// csr asks for more than the server gives: another name, another SPIFFE ID, a host, CA rights by name.
func csr(t *testing.T, key any) []byte {
	t.Helper()
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin", SerialNumber: "999"}, DNSNames: []string{"kms.example"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "rotor.local", Path: "/admin/admin"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func conn(t *testing.T, chain [][]byte) tls.ConnectionState {
	t.Helper()
	c, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
}

func wants(t *testing.T, what string, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("%s: %v, want %q", what, err, code)
	}
}

func TestJoin(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	text, key := s.invite(t, "a"), newKey(t)
	g, err := s.Join(s.ctx, text, csr(t, key))
	if err != nil {
		t.Fatal(err)
	}
	leaf := conn(t, g.Chain).PeerCertificates[0]
	if identity.SPIFFE(leaf) != "spiffe://rotor.local/instance/a" || leaf.IsCA || len(leaf.DNSNames) > 0 || leaf.Subject.CommonName != "a" {
		t.Errorf("the request chose: %v %v", leaf.URIs, leaf.Subject)
	}
	if life := leaf.NotAfter.Sub(c.now()); life > authn.InstanceLife || life < authn.InstanceLife-2*time.Second {
		t.Errorf("life %s", life)
	}
	again, err := s.Join(s.ctx, text, csr(t, key))
	if err != nil || !reflect.DeepEqual(again, g) {
		t.Errorf("another answer to the same key: %v", err)
	}
	_, err = s.Join(s.ctx, text, csr(t, newKey(t)))
	wants(t, "second key", err, fault.JoinTokenUsed)
	_, err = s.Join(s.ctx, text, csr(t, newKey(t)))
	wants(t, "third key", err, fault.JoinTokenUsed)
	c.advance(time.Hour)
	again, err = s.Join(s.ctx, text, csr(t, key))
	if err != nil || !reflect.DeepEqual(again, g) {
		t.Errorf("a lost answer, asked for again after the token's end: %v", err)
	}
	late := s.invite(t, "b")
	c.advance(identity.MaxTTL)
	_, err = s.Join(s.ctx, late, csr(t, key))
	wants(t, "late", err, fault.JoinTokenExpired)
}

func TestTokensThatAreRefused(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	text, request := s.invite(t, "a"), csr(t, newKey(t))
	good, err := identity.ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(*identity.JoinToken)) string { e := good; f(&e); return e.Encode() }
	for name, e := range map[string]string{
		"another name":    edit(func(e *identity.JoinToken) { e.Instance, e.SPIFFE = "b", "spiffe://rotor.local/instance/b" }),
		"another domain":  edit(func(e *identity.JoinToken) { e.SPIFFE = "spiffe://other/instance/a" }),
		"another secret":  edit(func(e *identity.JoinToken) { e.Secret = make([]byte, 32) }),
		"a longer life":   edit(func(e *identity.JoinToken) { e.Expires = e.Expires.Add(time.Hour) }),
		"another address": edit(func(e *identity.JoinToken) { e.Address = "evil:1" }),
		"another CA":      edit(func(e *identity.JoinToken) { e.CA = make([]byte, 32) }),
		"another ID":      edit(func(e *identity.JoinToken) { e.ID = "00000000000000000000000000000000" }),
	} {
		_, err := s.Join(s.ctx, e, request)
		wants(t, name, err, fault.Unauthenticated)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	forged := csr(t, newKey(t))
	forged[len(forged)-1] ^= 1
	for name, b := range map[string][]byte{"RSA": csr(t, weak), "forged": forged, "noise": {1, 2}, "empty": nil, "something behind": append(csr(t, newKey(t)), 0)} {
		_, err := s.Join(s.ctx, text, b)
		wants(t, "CSR "+name, err, fault.Invalid)
	}
	_, err = s.Join(s.ctx, text, make([]byte, 17<<10))
	wants(t, "huge CSR", err, fault.TooLarge)
	for _, ttl := range []time.Duration{-1, 1, identity.MaxTTL + 1} {
		_, err := s.Invite(s.ctx, admin, "a", ttl, "h:1")
		wants(t, fmt.Sprint(ttl), err, fault.Invalid)
	}
	for _, name := range []string{"", "A", "a/b", "../a"} {
		_, err := s.Invite(s.ctx, admin, name, 0, "h:1")
		wants(t, "invite "+name, err, fault.Invalid)
	}
	_, err = s.Invite(s.ctx, policy.Caller{}, "a", 0, "h:1")
	wants(t, "nobody invites", err, fault.Unauthenticated)
	if _, err := s.Join(s.ctx, text, request); err != nil {
		t.Errorf("the token was spent by refusals: %v", err)
	}
}

func TestRenewalAndItsGrace(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	key := newKey(t)
	g, err := s.Join(s.ctx, s.invite(t, "a"), csr(t, key))
	if err != nil {
		t.Fatal(err)
	}
	old := conn(t, g.Chain)
	c.advance(authn.InstanceLife + time.Minute)
	_, err = s.Identify(old, false)
	wants(t, "expired", err, fault.Unauthenticated)
	g2, err := s.Renew(s.ctx, old, csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	who, err := s.Identify(conn(t, g2.Chain), false)
	if err != nil || who.Instance != "a" || who.Kind != policy.KindInstance {
		t.Fatalf("%+v, %v", who, err)
	}
	c.advance(authn.RenewGrace - time.Hour)
	if _, err := s.Renew(s.ctx, old, csr(t, key)); err != nil {
		t.Errorf("at the end of the grace: %v", err)
	}
	c.advance(2 * time.Hour)
	_, err = s.Renew(s.ctx, old, csr(t, key))
	wants(t, "after the grace", err, fault.Unauthenticated)
}

func TestRemoval(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	key := newKey(t)
	used, unused := s.invite(t, "a"), s.invite(t, "a")
	g, err := s.Join(s.ctx, used, csr(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(s.ctx, admin, "a"); err != nil {
		t.Fatal(err)
	}
	denied := func(s server, when string) {
		t.Helper()
		_, err := s.Identify(conn(t, g.Chain), false)
		wants(t, when+" identify", err, fault.Denied)
		_, err = s.Renew(s.ctx, conn(t, g.Chain), csr(t, key))
		wants(t, when+" renew", err, fault.Denied)
		_, err = s.Join(s.ctx, unused, csr(t, newKey(t)))
		wants(t, when+" token of before", err, fault.JoinTokenExpired)
	}
	denied(s, "at once")
	c.advance(-30 * time.Second) // clocks go back, and removals stay
	denied(s, "clock set back")
	s.stop()
	s = c.start(c.store)
	denied(s, "after a restart")
	fresh, err := s.Join(s.ctx, s.invite(t, "a"), csr(t, key)) // in the same second, with the same key
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Identify(conn(t, fresh.Chain), false); err != nil {
		t.Errorf("invited again: %v", err)
	}
	denied(s, "beside its successor")
	err = s.Remove(s.ctx, policy.Caller{}, "a")
	wants(t, "nobody removes", err, fault.Unauthenticated)
}

// TestRemovalBesideRenewals: whatever the order in which they commit, no certificate outlives the removal.
func TestRemovalBesideRenewals(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	g, err := s.Join(s.ctx, s.invite(t, "a"), csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	request, out := csr(t, newKey(t)), make(chan identity.Grant, 8)
	for range 8 {
		go func() {
			g, _ := s.Renew(s.ctx, conn(t, g.Chain), request) // refused when it comes later
			out <- g
		}()
	}
	if err := s.Remove(s.ctx, admin, "a"); err != nil {
		t.Fatal(err)
	}
	c.advance(time.Second)
	for range 8 {
		if g := <-out; g.Chain != nil {
			_, err := s.Identify(conn(t, g.Chain), false)
			wants(t, "renewed beside the removal", err, fault.Denied)
		}
	}
}

func TestAnswersAreForgotten(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	old := s.invite(t, "old")
	for range 30 {
		s.invite(t, "a")
	}
	count := func() (n int) {
		_, records := c.store.List(t.Context(), "authn/join/")
		for range records {
			n++
		}
		return n
	}
	c.advance(25 * time.Hour)
	s.stop()
	s = c.start(c.store)
	for range 3 {
		s.invite(t, "b")
	}
	if n := count(); n != 3 {
		t.Errorf("%d tokens are kept", n)
	}
	_, err := s.Join(s.ctx, old, csr(t, newKey(t)))
	wants(t, "forgotten", err, fault.JoinTokenExpired)
}

// crashing is a store that dies at one commit: before it, or after it without saying so.
type crashing struct {
	store.Store
	left  atomic.Int64
	after bool
}

func (c *crashing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	switch n := c.left.Add(-1); {
	case n > 0:
		return c.Store.Commit(ctx, conds, ops)
	case n == 0 && c.after:
		if _, err := c.Store.Commit(ctx, conds, ops); err != nil {
			return 0, err
		}
	}
	return 0, store.ErrUnknown
}

// TestCrashInMidJoin ends the server at each commit of a join. The instance asks the next one again and gets one identity.
func TestCrashInMidJoin(t *testing.T) {
	for at := 1; at <= 4; at++ {
		for _, after := range []bool{false, true} {
			c := newCluster(t)
			s := c.start(c.store)
			text, request := s.invite(t, "a"), csr(t, newKey(t))
			s.stop()
			dying := &crashing{Store: c.store, after: after}
			dying.left.Store(1 << 40)
			s = c.start(dying)
			dying.left.Store(int64(at))
			first, err := s.Join(s.ctx, text, request)
			s.stop()
			s = c.start(c.store)
			second, err2 := s.Join(s.ctx, text, request)
			if err2 != nil || err == nil && !reflect.DeepEqual(first, second) {
				t.Fatalf("commit %d, after %v: %v, then %v", at, after, err, err2)
			}
			_, err = s.Join(s.ctx, text, csr(t, newKey(t)))
			wants(t, "second key after a crash", err, fault.JoinTokenUsed)
			s.stop()
		}
	}
}

func TestCallers(t *testing.T) {
	c := newCluster(t)
	s, foreign := c.start(c.store), newCluster(t)
	other := foreign.start(foreign.store)
	g, err := other.Join(other.ctx, other.invite(t, "a"), csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Identify(conn(t, g.Chain), true)
	wants(t, "another cluster", err, fault.Unauthenticated)
	_, err = s.Identify(tls.ConnectionState{}, true)
	wants(t, "no certificate", err, fault.Unauthenticated)
	_, err = s.Identify(conn(t, [][]byte{s.CA().Raw}), true)
	wants(t, "the CA itself", err, fault.Unauthenticated)
	cert, err := s.Server("localhost").GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Identify(conn(t, cert.Certificate), true)
	wants(t, "the server itself", err, fault.Unauthenticated)
	dir, err := identity.Open(filepath.Join(t.TempDir(), "admin"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	wants(t, "bad name", s.Admin(s.ctx, dir, "a/b", "h:1"), fault.Invalid)
	if err := s.Admin(s.ctx, dir, "boss", "h:1"); err != nil {
		t.Fatal(err)
	}
	who, err := s.Identify(conn(t, [][]byte{dir.Leaf().Raw}), false)
	if err != nil || who.Name != "admin/boss" || who.Instance != "" {
		t.Fatalf("%+v, %v", who, err)
	}
	_, err = s.Renew(s.ctx, conn(t, [][]byte{dir.Leaf().Raw}), csr(t, newKey(t)))
	wants(t, "administrators renew elsewhere", err, fault.Denied)
}
