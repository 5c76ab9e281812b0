package authn_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/policy"
)

// decade is the life of the authority's certificate.
const decade = 10 * 365 * 24 * time.Hour

// shake connects an identity to a server and says what the client found.
func shake(t *testing.T, serverTLS, clientTLS *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_ = tls.Server(c, serverTLS).Handshake() // the client says what it found
			_ = c.Close()
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), clientTLS)
	if err == nil {
		err = c.Close()
	}
	<-done
	return errors.Join(err, l.Close())
}

// TestAuthorityEnds: an authority that ended under a server which was never started again locks everybody out; the next start lets everybody in again,
// with what they have. Clients go by the real clock, so the cluster begins ten years ago.
func TestAuthorityEnds(t *testing.T) {
	c := newCluster(t)
	at := func(back time.Duration) { c.clock.Store(time.Now().Add(-back).UnixNano()) }
	at(decade + 24*time.Hour)
	old := c.start(c.store)
	at(48 * time.Hour) // the authority has a day left, and nobody started a server
	dir, err := identity.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	request, err := dir.CSR()
	if err != nil {
		t.Fatal(err)
	}
	token := old.invite(t, "m")
	parsed, err := identity.ParseJoinToken(token)
	if err != nil {
		t.Fatal(err)
	}
	grant, err := old.Join(old.ctx, token, request)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.AcceptJoin(parsed, grant, "127.0.0.1:7420"); err != nil {
		t.Fatal(err)
	}
	at(0)
	client := dir.ClientTLS(func(id string) bool { return id == old.ServerID() })
	var ended x509.CertificateInvalidError
	if err := shake(t, old.Server("127.0.0.1"), client); !errors.As(err, &ended) || ended.Reason != x509.Expired {
		t.Fatalf("an authority that ended: %v", err)
	}
	if _, err := old.Identify(conn(t, grant.Chain), false); fault.CodeOf(err) != fault.Unauthenticated {
		t.Fatalf("at the server: %v", err)
	}

	next := c.twin(old) // what a start does
	if left := next.CA().NotAfter.Sub(c.now()); left < decade-time.Hour {
		t.Errorf("the next certificate of the authority lasts for %s", left)
	}
	if err := shake(t, next.Server("127.0.0.1"), client); err != nil {
		t.Fatalf("after the start: %v", err)
	}
	renewed, err := next.Renew(next.ctx, conn(t, grant.Chain), request)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Accept(renewed, ""); err != nil {
		t.Fatal(err)
	}
	if err := dir.Accept(grant, ""); err != nil || !bytes.Equal(dir.CAPEM(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: next.CA().Raw})) {
		t.Errorf("a server that was not started again, after the renewal: %v", err)
	}
	if again := c.twin(next); !again.CA().Equal(next.CA()) {
		t.Error("the next start made yet another certificate")
	}
	if caller, err := next.Identify(conn(t, renewed.Chain), false); err != nil || caller.Kind != policy.KindInstance {
		t.Errorf("%v, %v", caller, err)
	}
}

// TestOverlap: while both certificates of the authority last, what either server signed is good at the other.
func TestOverlap(t *testing.T) {
	c := newCluster(t)
	old := c.start(c.store)
	c.advance(decade/2 + time.Hour)
	next := c.twin(old)
	if next.CA().Equal(old.CA()) || !identity.Succeeds(old.CA(), next.CA()) {
		t.Fatal("no succession")
	}
	for i, from := range []server{old, next} {
		grant := from.join(t, []string{"a", "b"}[i])
		for _, to := range []server{old, next} {
			if _, err := to.Identify(conn(t, grant.Chain), false); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestNoSuccessor: another cluster's authority of the same name, and a certificate that the authority signed, are not the authority.
func TestNoSuccessor(t *testing.T) {
	c := newCluster(t)
	one := c.start(c.store)
	other := newCluster(t)
	two := other.start(other.store)
	if identity.Succeeds(one.CA(), two.CA()) {
		t.Error("an authority of the same name with another key")
	}
	grant := one.join(t, "a")
	leaf, err := x509.ParseCertificate(grant.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if identity.Succeeds(one.CA(), leaf) {
		t.Error("a leaf")
	}
}

// join joins an instance.
func (s server) join(t *testing.T, name string) identity.Grant {
	t.Helper()
	g, err := s.Join(s.ctx, s.invite(t, name), csr(t, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	return g
}
