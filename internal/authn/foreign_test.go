package authn_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/oidc"
	"github.com/rotorkms/rotor/internal/policy"
)

// pki is a foreign authority.
type pki struct {
	t     *testing.T
	now   func() time.Time
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate // from below the root to this one
	n     int64
}

func newPKI(t *testing.T, now func() time.Time, above *pki) *pki {
	t.Helper()
	p := &pki{t: t, now: now, key: newKey(t), n: 100}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotBefore: now().Add(-time.Hour), NotAfter: now().Add(1000 * time.Hour), SubjectKeyId: []byte{1},
	}
	parent, signer := tpl, p.key
	if above != nil {
		tpl.Subject.CommonName, tpl.SubjectKeyId = "intermediate", []byte{2}
		parent, signer = above.cert, above.key
	}
	p.cert = parsed(t, tpl, parent, &p.key.PublicKey, signer)
	if above != nil {
		p.chain = []*x509.Certificate{p.cert}
	}
	return p
}

func parsed(t *testing.T, tpl, parent *x509.Certificate, public any, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// client makes a connection of a certificate that edit changes.
func (p *pki) client(edit func(*x509.Certificate)) tls.ConnectionState {
	p.t.Helper()
	p.n++
	u, err := url.Parse("spiffe://mesh.example/ns/eval/sa/reader")
	if err != nil {
		p.t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(p.n), Subject: pkix.Name{CommonName: "reader", Organization: []string{"Acme"}}, URIs: []*url.URL{u},
		NotBefore: p.now().Add(-time.Hour), NotAfter: p.now().Add(10 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(tpl)
	}
	leaf := parsed(p.t, tpl, p.cert, &newKey(p.t).PublicKey, p.key)
	return tls.ConnectionState{PeerCertificates: append([]*x509.Certificate{leaf}, p.chain...)}
}

func (p *pki) list(until time.Time, edit func(*x509.RevocationList), serials ...int64) []byte {
	p.t.Helper()
	tpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: p.now().Add(-time.Hour), NextUpdate: until}
	for _, n := range serials {
		tpl.RevokedCertificateEntries = append(tpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: p.now()})
	}
	if edit != nil {
		edit(tpl)
	}
	der, err := x509.CreateRevocationList(rand.Reader, tpl, p.cert, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func file(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (p *pki) file() string {
	p.t.Helper()
	return file(p.t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))
}

func (s server) trust(t *testing.T, c authn.CAConfig) *authn.ClientCA {
	t.Helper()
	ca, err := authn.NewClientCA(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(authn.Access{Certificates: []*authn.ClientCA{ca}}); err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestClientCertificates(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	root := newPKI(t, c.now, nil)
	mesh := newPKI(t, c.now, root)
	_, err := s.Identify(mesh.client(nil), false)
	wants(t, "not configured", err, fault.Unauthenticated)
	s.trust(t, authn.CAConfig{Name: "mesh", CAFile: root.file(), Match: []string{"spiffe://mesh.example/ns/eval/**"}})
	who, err := s.Identify(mesh.client(nil), false)
	delete(who.Attributes, "fingerprint")
	want := policy.Caller{
		Kind: policy.KindCertificate, Name: "certificate/mesh/spiffe://mesh.example/ns/eval/sa/reader",
		Attributes: map[string]string{"common_name": "reader", "organization": "Acme", "serial": "66", "spiffe_id": "spiffe://mesh.example/ns/eval/sa/reader"},
	}
	if diff := cmp.Diff(want, who); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	uri := func(text string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = []*url.URL{u}
		}
	}
	for what, edit := range map[string]func(*x509.Certificate){
		"over":                     func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Minute) },
		"not yet":                  func(c *x509.Certificate) { c.NotBefore = c.NotAfter },
		"for servers":              func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"no SPIFFE ID":             func(c *x509.Certificate) { c.URIs = nil },
		"two":                      func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"another path":             uri("spiffe://mesh.example/ns/train/sa/reader"),
		"rotor's own trust domain": uri("spiffe://rotor.local/instance/a"),
		"its administrators":       uri("spiffe://ROTOR.local/admin/admin"),
		"no path":                  uri("spiffe://mesh.example"),
		"a query":                  uri("spiffe://mesh.example/ns/eval/sa/reader?x"),
		"a user":                   uri("spiffe://admin@mesh.example/ns/eval/sa/reader"),
		"not SPIFFE":               uri("https://mesh.example/ns/eval/sa/reader"),
		"an authority":             func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
	} {
		_, err := s.Identify(mesh.client(edit), false)
		wants(t, what, err, fault.Unauthenticated)
	}
	s.trust(t, authn.CAConfig{Name: "mesh", CAFile: root.file()}) // whoever it is of
	for what, edit := range map[string]func(*x509.Certificate){
		"rotor's own trust domain": uri("spiffe://rotor.local/instance/a"), "in capitals": uri("spiffe://ROTOR.local/admin/admin"), "two": func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"no path": uri("spiffe://mesh.example"), "a query": uri("spiffe://mesh.example/a?x"), "not SPIFFE": uri("https://mesh.example/a"),
	} {
		_, err := s.Identify(mesh.client(edit), false)
		wants(t, "without patterns: "+what, err, fault.Unauthenticated)
	}
	alone := mesh.client(nil)
	alone.PeerCertificates = alone.PeerCertificates[:1]
	_, err = s.Identify(alone, false)
	wants(t, "without its intermediate", err, fault.Unauthenticated)
	_, err = s.Identify(newPKI(t, c.now, nil).client(nil), false)
	wants(t, "another authority of the same name", err, fault.Unauthenticated)
	_, err = s.Renew(s.ctx, mesh.client(nil), csr(t, newKey(t)))
	wants(t, "renewal", err, fault.Denied)
	wants(t, "no authority in the file", second(authn.NewClientCA(authn.CAConfig{Name: "x", CAFile: file(t, "x", nil)})), fault.Invalid)
	wants(t, "no file", second(authn.NewClientCA(authn.CAConfig{Name: "x", CAFile: "/nowhere"})), fault.NotFound)
	wants(t, "name", second(authn.NewClientCA(authn.CAConfig{Name: "a/b", CAFile: root.file()})), fault.Invalid)
}

func TestSubjects(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	ca := newPKI(t, c.now, nil)
	s.trust(t, authn.CAConfig{Name: "old", CAFile: ca.file(), Identity: "subject", Match: []string{"CN=reader,O=*"}})
	who, err := s.Identify(ca.client(func(c *x509.Certificate) { c.URIs = nil }), false)
	if err != nil || who.Name != "certificate/old/CN=reader,O=Acme" {
		t.Errorf("%+v, %v", who, err)
	}
	own := &url.URL{Scheme: "spiffe", Host: "rotor.local", Path: "/instance/reader"}
	who, err = s.Identify(ca.client(func(c *x509.Certificate) { c.URIs = []*url.URL{own} }), false)
	if err != nil || who.Attributes["spiffe_id"] != "" {
		t.Errorf("an ID of this cluster from another authority: %+v, %v", who, err)
	}
	for what, subject := range map[string]pkix.Name{
		"another": {CommonName: "writer", Organization: []string{"Acme"}}, "of more parts": {CommonName: "x,CN=reader,O=Acme"}, "empty": {}, "line": {CommonName: "reader", Organization: []string{"A\nB"}},
	} {
		_, err := s.Identify(ca.client(func(c *x509.Certificate) { c.Subject, c.URIs = subject, nil }), false)
		wants(t, what, err, fault.Unauthenticated)
	}
}

func TestRevocationLists(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	root := newPKI(t, c.now, nil)
	mesh := newPKI(t, c.now, root)
	path := file(t, "crl.pem", nil)
	write := func(lists ...[]byte) {
		t.Helper()
		var all []byte
		for _, l := range lists {
			all = append(all, l...)
		}
		if err := os.WriteFile(path, all, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	later := c.now().Add(time.Hour)
	write(root.list(later, nil), mesh.list(later, nil, 101))
	ca := s.trust(t, authn.CAConfig{Name: "mesh", CAFile: root.file(), CRLFile: path})
	revoked, good := mesh.client(nil), mesh.client(nil)
	_, err := s.Identify(revoked, false)
	wants(t, "revoked", err, fault.Unauthenticated)
	if _, err := s.Identify(good, false); err != nil {
		t.Fatal(err)
	}
	k, err := s.Login(s.ctx, authn.Proof{TLS: good, Address: here})
	if err != nil {
		t.Fatal(err)
	}
	for what, lists := range map[string][][]byte{
		"no list of the root":         {mesh.list(later, nil)},
		"no list of the intermediate": {root.list(later, nil)},
		"old list":                    {root.list(later, nil), mesh.list(c.now().Add(-time.Minute), nil)},
		"list to come":                {root.list(later, nil), mesh.list(later, func(l *x509.RevocationList) { l.ThisUpdate = c.now().Add(time.Minute) })},
		"the intermediate is revoked": {root.list(later, nil, mesh.cert.SerialNumber.Int64()), mesh.list(later, nil)},
		"a list of somebody else":     {root.list(later, nil), newPKI(t, c.now, newPKI(t, c.now, nil)).list(later, nil)},
		"a list of changes": {root.list(later, nil), mesh.list(later, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		})},
	} {
		write(lists...)
		if err := ca.Reload(); err != nil {
			t.Fatal(err)
		}
		_, err := s.Identify(good, false)
		wants(t, what, err, fault.Unauthenticated)
	}
	s.takes(t, "session of a certificate that is on no list", k.Token)
	write(root.list(later, nil), mesh.list(later, nil, 102))
	if err := ca.Reload(); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "session of a certificate that was revoked", k.Token)
	write([]byte("noise"))
	if err := ca.Reload(); err == nil {
		t.Error("noise was taken for a list")
	}
	_, err = s.Identify(good, false)
	wants(t, "what was read before stays", err, fault.Unauthenticated)
	if err := s.Configure(authn.Access{}); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "session of an authority that was taken out", k.Token)
}

func TestTokenToSession(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.store)
	key := newKey(t)
	var idp *httptest.Server
	idp = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "k"}}})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": idp.URL, "jwks_uri": idp.URL + "/keys"})
	}))
	t.Cleanup(idp.Close)
	pool := x509.NewCertPool()
	pool.AddCert(idp.Certificate())
	issuer := func(name string) *oidc.Issuer {
		i, err := oidc.New(oidc.Config{
			Name: name, URL: idp.URL, Audiences: []string{"rotor"}, CAs: pool, Kind: "github", Require: map[string]string{"repository": "acme/train", "environment": "production"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(i.Close)
		return i
	}
	if err := s.Configure(authn.Access{Issuers: []*oidc.Issuer{issuer("ci")}}); err != nil {
		t.Fatal(err)
	}
	token := func(environment, sub string) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(map[string]any{
			"iss": idp.URL, "aud": "rotor", "sub": sub, "exp": c.now().Add(5 * time.Minute).Unix(), "repository": "acme/train", "ref": "refs/heads/main", "environment": environment,
		})
		o, err := signer.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		text, err := o.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	k, err := s.Login(s.ctx, authn.Proof{JWT: token("production", "repo:acme/train:environment:production"), Address: here})
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Caller{
		Kind: policy.KindToken, Name: "token/ci/repo:acme/train:environment:production", Session: k.ID,
		Attributes: map[string]string{"repository": "acme/train", "ref": "refs/heads/main", "environment": "production"},
	}
	if diff := cmp.Diff(want, s.takes(t, "session", k.Token)); diff != "" {
		t.Error(diff)
	}
	if k.Expires.Sub(c.now()) > time.Hour {
		t.Errorf("%s", k.Expires.Sub(c.now()))
	}
	_, err = s.Login(s.ctx, authn.Proof{JWT: token("staging", "x"), Address: here})
	wants(t, "another environment", err, fault.Denied)
	_, err = s.Login(s.ctx, authn.Proof{JWT: token("production", "x"), Issuer: "other", Address: here})
	wants(t, "an issuer that is not there", err, fault.TokenInvalid)
	_, err = s.Login(s.ctx, authn.Proof{JWT: "noise", Address: here})
	wants(t, "noise", err, fault.TokenInvalid)
	if n := len(s.entries(t, "login")); n != 2 {
		t.Errorf("%d entries, want a login and a refusal that stands for its repetitions", n)
	}
	wants(t, "two of one name", s.Configure(authn.Access{Issuers: []*oidc.Issuer{issuer("a"), issuer("a")}}), fault.Invalid)
	if err := s.Configure(authn.Access{Issuers: []*oidc.Issuer{issuer("ci")}}); err != nil {
		t.Fatal(err)
	}
	s.takes(t, "after a reload", k.Token)
	if err := s.Configure(authn.Access{Issuers: []*oidc.Issuer{issuer("other")}}); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, "its issuer is configured no more", k.Token)
}
