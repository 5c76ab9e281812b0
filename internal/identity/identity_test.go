package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
)

// authority is a CA of the tests.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(tpl, tpl, &a.key.PublicKey)
	return a
}

func (a *authority) sign(tpl, parent *x509.Certificate, public any) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// leaf answers a CSR.
func (a *authority) leaf(public any, id string, from, until time.Duration) []byte {
	a.t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(until), URIs: []*url.URL{u},
	}, a.cert, public).Raw
}

func (a *authority) grant(d *identity.Dir, id string) identity.Grant {
	a.t.Helper()
	csr, err := d.CSR()
	if err != nil {
		a.t.Fatal(err)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		a.t.Fatal(err)
	}
	return identity.Grant{
		Chain: [][]byte{a.leaf(req.PublicKey, id, -time.Hour, time.Hour)}, CA: a.cert.Raw, ServerKey: make(ed25519.PublicKey, ed25519.PublicKeySize),
		Cluster: "c1", Namespace: "default",
	}
}

func (a *authority) token(name string) identity.JoinToken {
	sum := sha256.Sum256(a.cert.Raw)
	return identity.JoinToken{
		Address: "127.0.0.1:7420", CA: sum[:], ID: strings.Repeat("0a", 16), Instance: name, SPIFFE: "spiffe://rotor.local/instance/" + name,
		Expires: time.Now().UTC().Add(time.Minute).Truncate(time.Second), Secret: bytes.Repeat([]byte{7}, 32),
	}
}

func open(t testing.TB, path string) *identity.Dir {
	t.Helper()
	d, err := identity.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

const a1 = "spiffe://rotor.local/instance/a"

func TestModesAndRestart(t *testing.T) {
	path, ca := filepath.Join(t.TempDir(), "id"), newAuthority(t)
	d := open(t, path)
	if err := d.AcceptJoin(ca.token("a"), ca.grant(d, a1), "127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, "identity.json": 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	leaf := d.Leaf()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, path)
	if !d.Joined() || !d.Leaf().Equal(leaf) || d.Instance() != "a" || d.Address() != "127.0.0.1:1" || d.Issuer() != "127.0.0.1:7420" {
		t.Fatalf("%v %q %q %q", d.Joined(), d.Instance(), d.Address(), d.Issuer())
	}
	if _, err := identity.Open(path); fault.CodeOf(err) != fault.IdentityInUse {
		t.Fatalf("opened twice: %v", err)
	}
	if r, err := identity.Read(path); err != nil || r.Instance() != "a" {
		t.Fatalf("not read beside its holder: %v", err)
	}
	if err := os.Chmod(filepath.Join(path, "identity.json"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Read(path); fault.CodeOf(err) != fault.Invalid {
		t.Fatalf("a key that others read: %v", err)
	}
}

// TestSecondProcess holds the directory in a process of its own, and sees it free again once that is killed.
func TestSecondProcess(t *testing.T) {
	if path := os.Getenv("ROTOR_TEST_HOLD"); path != "" {
		open(t, path)
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = os.Stdin.Read(make([]byte, 1)) // for ever: it is killed
		return
	}
	path := filepath.Join(t.TempDir(), "id")
	c := exec.Command(os.Args[0], "-test.run=^TestSecondProcess$")
	c.Env = append(os.Environ(), "ROTOR_TEST_HOLD="+path)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 5)); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := identity.Open(path); fault.CodeOf(err) != fault.IdentityInUse {
		t.Errorf("two live processes: %v", err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed
	open(t, path)
}

// TestCrashes sets the directory up as a crash after each step of a save leaves it: the old identity or the new one, never a third.
func TestCrashes(t *testing.T) {
	ca := newAuthority(t)
	before := filepath.Join(t.TempDir(), "id")
	d := open(t, before)
	old, err := os.ReadFile(filepath.Join(before, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.AcceptJoin(ca.token("a"), ca.grant(d, a1), "h:1"); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(filepath.Join(before, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut <= len(fresh); cut += 97 {
		path := t.TempDir()
		for name, b := range map[string][]byte{"identity.json": old, ".identity-123": fresh[:cut]} {
			if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := open(t, path)
		csr, err := d.CSR()
		if err != nil || d.Joined() {
			t.Fatalf("cut at %d: joined %v, %v", cut, d.Joined(), err)
		}
		req, err := x509.ParseCertificateRequest(csr)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(ca.leaf(req.PublicKey, a1, -time.Hour, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		var have struct{ Chain [][]byte }
		if err := json.Unmarshal(fresh, &have); err != nil {
			t.Fatal(err)
		}
		joined, err := x509.ParseCertificate(have.Chain[0])
		if err != nil || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(joined.PublicKey) {
			t.Fatalf("cut at %d: the key changed, %v", cut, err)
		}
		if left, _ := filepath.Glob(filepath.Join(path, ".identity-*")); len(left) != 0 {
			t.Fatalf("left behind: %v", left)
		}
	}
	for cut := 0; cut < len(fresh); cut += 97 {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, "identity.json"), fresh[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.Open(path); fault.CodeOf(err) != fault.Invalid {
			t.Fatalf("damaged at %d: %v", cut, err)
		}
		if b, err := os.ReadFile(filepath.Join(path, "identity.json")); err != nil || len(b) != cut {
			t.Fatalf("a damaged identity was overwritten: %v", err)
		}
	}
}

func TestAnswersThatAreRefused(t *testing.T) {
	ca, evil := newAuthority(t), newAuthority(t)
	edit := func(g identity.Grant, f func(*identity.Grant)) identity.Grant { f(&g); return g }
	path := filepath.Join(t.TempDir(), "id")
	d, other := open(t, path), open(t, filepath.Join(t.TempDir(), "id"))
	for name, g := range map[string]identity.Grant{
		"of another CA":              evil.grant(d, a1),
		"of another CA, named ours":  edit(evil.grant(d, a1), func(g *identity.Grant) { g.CA = ca.cert.Raw }),
		"for another identity":       ca.grant(d, "spiffe://rotor.local/instance/b"),
		"for another key":            ca.grant(other, a1),
		"without a chain":            edit(ca.grant(d, a1), func(g *identity.Grant) { g.Chain = nil }),
		"without a server key":       edit(ca.grant(d, a1), func(g *identity.Grant) { g.ServerKey = nil }),
		"without a cluster":          edit(ca.grant(d, a1), func(g *identity.Grant) { g.Cluster = "" }),
		"with a chain of noise":      edit(ca.grant(d, a1), func(g *identity.Grant) { g.Chain = [][]byte{{1, 2}} }),
		"with the CA as certificate": edit(ca.grant(d, a1), func(g *identity.Grant) { g.Chain = [][]byte{ca.cert.Raw} }),
	} {
		if err := d.AcceptJoin(ca.token("a"), g, "h:1"); fault.CodeOf(err) != fault.Invalid || d.Joined() {
			t.Errorf("join answer %s: %v", name, err)
		}
	}
	if err := d.AcceptJoin(ca.token("a"), ca.grant(d, a1), "h:1"); err != nil {
		t.Fatal(err)
	}
	leaf := d.Leaf()
	for name, g := range map[string]identity.Grant{
		"of another CA":        evil.grant(d, a1),
		"for another identity": ca.grant(d, "spiffe://rotor.local/instance/b"),
		"of another cluster":   edit(ca.grant(d, a1), func(g *identity.Grant) { g.Cluster = "c2" }),
		"with another key":     edit(ca.grant(d, a1), func(g *identity.Grant) { g.ServerKey = bytes.Repeat([]byte{1}, 32) }),
	} {
		if err := d.Accept(g, ""); fault.CodeOf(err) != fault.Invalid || !d.Leaf().Equal(leaf) {
			t.Errorf("renewal %s: %v", name, err)
		}
	}
	if err := d.Accept(ca.grant(d, a1), ""); err != nil || d.Address() != "h:1" {
		t.Fatalf("renewal: %v", err)
	}
	r, err := identity.Read(path)
	if err != nil || !r.Leaf().Equal(d.Leaf()) {
		t.Fatalf("renewal was not stored: %v", err)
	}
}

// handshake connects a client and a server over a pipe of the kernel.
func handshake(t *testing.T, client, server *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			s := tls.Server(c, server)
			if err = s.Handshake(); err == nil {
				_, err = s.Write([]byte("x"))
			}
			_ = c.Close()
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	_ = raw.Close()
	serverErr = <-done
	return c.ConnectionState(), clientErr, serverErr
}

func TestPeers(t *testing.T) {
	ca, evil := newAuthority(t), newAuthority(t)
	join := func(a *authority, id string) *identity.Dir {
		d := open(t, filepath.Join(t.TempDir(), "id"))
		if err := d.Accept(a.grant(d, id), "h:1"); err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b, foreign := join(ca, a1), join(ca, "spiffe://rotor.local/instance/b"), join(evil, "spiffe://rotor.local/instance/b")
	isB := func(id string) bool { return id == a.PeerID("b") }
	isA := func(id string) bool { return id == b.PeerID("a") }
	state, cerr, serr := handshake(t, a.ClientTLS(isB), b.ServerTLS(isA))
	if cerr != nil || serr != nil || state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
		t.Fatalf("%v, %v, %x, %v", cerr, serr, state.Version, state.CurveID)
	}
	classic := a.ClientTLS(isB)
	classic.CurvePreferences = []tls.CurveID{tls.X25519}
	old := a.ClientTLS(isB)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	naked := a.ClientTLS(isB)
	naked.GetClientCertificate = nil
	for name, tt := range map[string]struct{ client, server *tls.Config }{
		"server of another name":    {a.ClientTLS(isA), b.ServerTLS(isA)},
		"client of another name":    {a.ClientTLS(isB), b.ServerTLS(isB)},
		"server of another cluster": {a.ClientTLS(isB), foreign.ServerTLS(func(string) bool { return true })},
		"client of another cluster": {foreign.ClientTLS(func(string) bool { return true }), b.ServerTLS(func(string) bool { return true })},
		"no certificate":            {naked, b.ServerTLS(isA)},
		"classical key exchange":    {classic, b.ServerTLS(isA)},
		"TLS 1.2":                   {old, b.ServerTLS(isA)},
	} {
		if _, cerr, serr := handshake(t, tt.client, tt.server); cerr == nil && serr == nil {
			t.Errorf("%s: connected", name)
		}
	}
}

func TestJoinTokens(t *testing.T) {
	good := newAuthority(t).token("a")
	text := good.Encode()
	if got, err := identity.ParseJoinToken("  " + text + "\n"); err != nil || got.Encode() != text {
		t.Fatalf("%v", err)
	}
	edit := func(f func(*identity.JoinToken)) string { c := good; f(&c); return c.Encode() }
	plain, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	wrap := func(s string) string { return "rj1." + base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, s := range map[string]string{
		"empty":            "",
		"another prefix":   "rj2." + text[4:],
		"huge":             text + strings.Repeat("A", 4096),
		"cut":              text[:len(text)-3],
		"unknown field":    wrap(strings.Replace(string(plain), "{", `{"x":1,`, 1)),
		"something behind": wrap(string(plain) + "{}"),
		"id of one letter": edit(func(c *identity.JoinToken) { c.ID = "a" }),
		"id in capitals":   edit(func(c *identity.JoinToken) { c.ID = strings.Repeat("0A", 16) }),
		"id is a path":     edit(func(c *identity.JoinToken) { c.ID = "../ca" }),
		"address is a URL": edit(func(c *identity.JoinToken) { c.Address = "h:1/x" }),
		"address has user": edit(func(c *identity.JoinToken) { c.Address = "u@h:1" }),
		"no port":          edit(func(c *identity.JoinToken) { c.Address = "h" }),
		"name and ID":      edit(func(c *identity.JoinToken) { c.Instance = "b" }),
		"an admin's ID":    wrap(strings.Replace(string(plain), "/instance/", "/admin/", 1)),
		"neither":          edit(func(c *identity.JoinToken) { c.SPIFFE = "spiffe://rotor.local/server/a" }),
		"another's mark":   "re1." + text[4:],
		"short secret":     edit(func(c *identity.JoinToken) { c.Secret = c.Secret[:31] }),
		"short hash":       edit(func(c *identity.JoinToken) { c.CA = c.CA[:31] }),
		"no expiry":        edit(func(c *identity.JoinToken) { c.Expires = time.Time{} }),
	} {
		_, err := identity.ParseJoinToken(s)
		if fault.CodeOf(err) != fault.Invalid || len(s) > 8 && strings.Contains(err.Error(), s[4:]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	text := newAuthority(f).token("a").Encode()
	f.Add(text)
	f.Add("rj1.e30")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := identity.ParseJoinToken(s)
		if err != nil {
			return
		}
		if len(got.Encode()) > 4096 {
			return // escapes made it longer
		}
		again, err := identity.ParseJoinToken(got.Encode())
		if err != nil || again.Encode() != got.Encode() || again.ServerID() == "spiffe:///server" {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}
