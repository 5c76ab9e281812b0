package oidc_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/oidc"
)

// now is the time of all tests.
var now = time.Unix(1_800_000_000, 0)

// idp is an identity provider: an HTTPS server with discovery and a key set.
type idp struct {
	*httptest.Server
	t testing.TB

	mu      sync.Mutex // guards what follows
	keys    []jose.JSONWebKey
	signers map[string]crypto.Signer
	asked   map[string]int
	down    bool
	bearer  string
	edit    func(path string, body []byte) []byte
}

func newIDP(t testing.TB) *idp {
	t.Helper()
	p := &idp{t: t, signers: map[string]crypto.Signer{}, asked: map[string]int{}}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.Close)
	return p
}

func (p *idp) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[r.URL.Path]++
	if p.down || p.bearer != "" && r.Header.Get("Authorization") != "Bearer "+p.bearer {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	var body []byte
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		body, _ = json.Marshal(map[string]string{"issuer": p.URL, "jwks_uri": p.URL + "/keys"})
	case "/keys":
		body, _ = json.Marshal(jose.JSONWebKeySet{Keys: p.keys})
	}
	if p.edit != nil {
		body = p.edit(r.URL.Path, body)
	}
	_, _ = w.Write(body)
}

func (p *idp) set(f func()) { p.mu.Lock(); defer p.mu.Unlock(); f() }

// add publishes a key.
func (p *idp) add(kid string, s crypto.Signer) {
	p.set(func() {
		p.signers[kid] = s
		p.keys = append(p.keys, jose.JSONWebKey{Key: s.Public(), KeyID: kid, Use: "sig"})
	})
}

func (p *idp) count(path string) int { p.mu.Lock(); defer p.mu.Unlock(); return p.asked[path] }

func (p *idp) cas() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Certificate())
	return pool
}

func (p *idp) config() oidc.Config {
	return oidc.Config{Name: "idp", URL: p.URL, Audiences: []string{"rotor"}, CAs: p.cas()}
}

func (p *idp) issuer(edit func(*oidc.Config)) *oidc.Issuer {
	p.t.Helper()
	c := p.config()
	if edit != nil {
		edit(&c)
	}
	i, err := oidc.New(c)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(i.Close)
	return i
}

// claims are good ones, changed by what is given; nil takes one out.
func (p *idp) claims(change map[string]any) map[string]any {
	c := map[string]any{
		"iss": p.URL, "sub": "repo:acme/train", "aud": "rotor", "iat": now.Unix() - 10, "nbf": now.Unix() - 10, "exp": now.Unix() + 300,
	}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (p *idp) token(alg jose.SignatureAlgorithm, kid string, change map[string]any) string {
	p.t.Helper()
	return sign(p.t, alg, kid, p.signers[kid], p.claims(change))
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, kid string, key any, claims any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	text, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// raw puts a token together of any header and claims.
func raw(header, claims string, sig []byte) string {
	b := base64.RawURLEncoding
	return b.EncodeToString([]byte(header)) + "." + b.EncodeToString([]byte(claims)) + "." + b.EncodeToString(sig)
}

func ec(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wants(t *testing.T, what string, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("%s: %v, want %q", what, err, code)
	}
}

func TestAlgorithms(t *testing.T) {
	p := newIDP(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"p256": ec(t, elliptic.P256()), "p384": ec(t, elliptic.P384()), "p521": ec(t, elliptic.P521()), "rsa": rsaKey(t, 2048), "ed": ed}
	good := map[string][]jose.SignatureAlgorithm{
		"p256": {jose.ES256}, "p384": {jose.ES384}, "p521": {jose.ES512}, "ed": {jose.EdDSA},
		"rsa": {jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512},
	}
	for kid, k := range keys {
		p.add(kid, k)
	}
	i := p.issuer(nil)
	for kid, algs := range good {
		for _, a := range algs {
			if who, err := i.Verify(t.Context(), now, p.token(a, kid, nil)); err != nil || who.Subject != "repo:acme/train" {
				t.Errorf("%s with %s: %+v, %v", a, kid, who, err)
			}
		}
	}
	body, err := json.Marshal(p.claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{
		`{"alg":"none","kid":"rsa"}`, `{"alg":"","kid":"rsa"}`, `{"alg":"HS256","kid":"rsa"}`, `{"alg":"ES256","kid":"rsa"}`, `{"alg":"RS256","kid":"p256"}`,
		`{"alg":"ES384","kid":"p256"}`, `{"alg":"RS1","kid":"rsa"}`, `{"alg":"EdDSA","kid":"rsa"}`,
	} {
		_, err := i.Verify(t.Context(), now, raw(header, string(body), []byte("x")))
		wants(t, header, err, fault.TokenAlgorithm)
	}
	// The public key as the secret of an HMAC, which verifiers that believe the header take.
	public, err := x509.MarshalPKIXPublicKey(keys["rsa"].Public())
	if err != nil {
		t.Fatal(err)
	}
	_, err = i.Verify(t.Context(), now, sign(t, jose.HS256, "rsa", public, p.claims(nil)))
	wants(t, "HMAC under the public key", err, fault.TokenAlgorithm)
	p.set(func() { p.keys[0].Algorithm = "RS512" })
	_, err = i.Verify(t.Context(), now, sign(t, jose.ES256, "p256", ec(t, elliptic.P256()), p.claims(nil)))
	wants(t, "another key", err, fault.TokenInvalid)
}

func TestKeysThatDoNotCount(t *testing.T) {
	p := newIDP(t)
	weak := rsaKey(t, 1024)
	p.add("weak", weak)
	p.set(func() {
		p.keys = append(p.keys, jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "secret"},
			jose.JSONWebKey{Key: ec(t, elliptic.P256()).Public(), KeyID: "enc", Use: "enc"}, jose.JSONWebKey{Key: ec(t, elliptic.P224()).Public(), KeyID: "p224"})
		p.keys = p.keys[:3] // P-224 cannot be encoded
	})
	k := ec(t, elliptic.P256())
	p.set(func() { p.keys = append(p.keys, jose.JSONWebKey{Key: k.Public(), KeyID: "pinned", Algorithm: "ES384"}) })
	i := p.issuer(nil)
	for kid, token := range map[string]string{
		"secret": sign(t, jose.HS256, "secret", []byte("0123456789abcdef0123456789abcdef"), p.claims(nil)),
		"enc":    sign(t, jose.ES256, "enc", ec(t, elliptic.P256()), p.claims(nil)),
		"weak":   sign(t, jose.RS256, "weak", weak, p.claims(nil)),
	} {
		_, err := i.Verify(t.Context(), now, token)
		wants(t, kid, err, fault.UnknownKeyID)
	}
	_, err := i.Verify(t.Context(), now, sign(t, jose.ES256, "pinned", k, p.claims(nil)))
	wants(t, "an algorithm that the key is not for", err, fault.TokenAlgorithm)
}

func TestClaims(t *testing.T) {
	p := newIDP(t)
	k := ec(t, elliptic.P256())
	p.add("a", k)
	i := p.issuer(func(c *oidc.Config) {
		c.Audiences = []string{"rotor", "kms"}
		c.Subjects = []string{"repo:acme/*"}
		c.Attributes = map[string]string{"branch": "ref", "pod": "/kubernetes.io/pod/name", "slash": "/a~1b/c~0d", "n": "n", "ok": "ok"}
		c.Require = map[string]string{"branch": "refs/heads/*"}
	})
	who, err := i.Verify(t.Context(), now, p.token(jose.ES256, "a", map[string]any{
		"aud": []string{"else", "kms"}, "ref": "refs/heads/main", "kubernetes.io": map[string]any{"pod": map[string]any{"name": "p-1"}},
		"a/b": map[string]any{"c~d": "x"}, "n": 74, "ok": true, "iat": float64(now.Unix()) + 0.5,
	}))
	want := oidc.Identity{Subject: "repo:acme/train", Attributes: map[string]string{"branch": "refs/heads/main", "pod": "p-1", "slash": "x", "n": "74", "ok": "true"}}
	if diff := cmp.Diff(want, who); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	good := map[string]any{"ref": "refs/heads/main"}
	for _, c := range []struct {
		what   string
		change map[string]any
		code   fault.Code
	}{
		{"another issuer", map[string]any{"iss": "https://evil.example"}, fault.TokenInvalid},
		{"no issuer", map[string]any{"iss": nil}, fault.TokenInvalid},
		{"the issuer with a slash", map[string]any{"iss": p.URL + "/"}, fault.TokenInvalid},
		{"another audience", map[string]any{"aud": "else"}, fault.TokenAudience},
		{"no audience", map[string]any{"aud": nil}, fault.TokenAudience},
		{"empty audience", map[string]any{"aud": []string{}}, fault.TokenAudience},
		{"audience of numbers", map[string]any{"aud": []int{1}}, fault.TokenInvalid},
		{"over", map[string]any{"exp": now.Unix() - 60}, fault.TokenExpired},
		{"over within the skew", map[string]any{"exp": now.Unix() - 59}, ""},
		{"no end", map[string]any{"exp": nil}, fault.TokenInvalid},
		{"end as a text", map[string]any{"exp": "9999999999"}, fault.TokenInvalid},
		{"huge end", map[string]any{"exp": 1e300}, fault.TokenInvalid},
		{"negative end", map[string]any{"exp": -1}, fault.TokenInvalid},
		{"not yet", map[string]any{"nbf": now.Unix() + 61}, fault.TokenNotYetValid},
		{"not yet within the skew", map[string]any{"nbf": now.Unix() + 60}, ""},
		{"from the future", map[string]any{"iat": now.Unix() + 61}, fault.TokenNotYetValid},
		{"too long", map[string]any{"exp": now.Unix() + 24*3600}, fault.TokenInvalid},
		{"too long without a beginning", map[string]any{"iat": nil, "nbf": nil, "exp": now.Unix() + 24*3600 + 1}, fault.TokenInvalid},
		{"no subject", map[string]any{"sub": nil}, fault.TokenInvalid},
		{"empty subject", map[string]any{"sub": ""}, fault.TokenInvalid},
		{"number as subject", map[string]any{"sub": 7}, fault.TokenInvalid},
		{"line in the subject", map[string]any{"sub": "repo:acme/a\nb"}, fault.TokenInvalid},
		{"huge subject", map[string]any{"sub": "repo:acme/" + strings.Repeat("x", 513)}, fault.TokenInvalid},
		{"another subject", map[string]any{"sub": "repo:evil/train"}, fault.Denied},
		{"no branch", map[string]any{"ref": nil}, fault.Denied},
		{"null branch", map[string]any{"ref": json.RawMessage("null")}, fault.Denied},
		{"another branch", map[string]any{"ref": "refs/tags/v1"}, fault.Denied},
		{"branch of more parts", map[string]any{"ref": "refs/heads/a/b"}, fault.Denied},
		{"list as an attribute", map[string]any{"ref": []string{"refs/heads/main"}}, fault.TokenInvalid},
		{"object as an attribute", map[string]any{"n": map[string]any{}}, fault.TokenInvalid},
		{"fraction as an attribute", map[string]any{"n": 1.5}, fault.TokenInvalid},
		{"long attribute", map[string]any{"ref": strings.Repeat("x", 513)}, fault.TokenInvalid},
		{"path through a text", map[string]any{"kubernetes.io": "x"}, ""},
	} {
		change := maps.Clone(good)
		maps.Copy(change, c.change)
		_, err := i.Verify(t.Context(), now, p.token(jose.ES256, "a", change))
		wants(t, c.what, err, c.code)
	}
	token := p.token(jose.ES256, "a", good)
	parts := strings.Split(token, ".")
	body, err := json.Marshal(p.claims(good))
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]string{
		"empty": "", "two parts": parts[0] + "." + parts[1], "four parts": token + ".x", "line": token[:10] + "\n" + token[10:], "padding": parts[0] + "=." + parts[1] + "." + parts[2],
		"crit": raw(`{"alg":"ES256","kid":"a","crit":["x"]}`, string(body), nil), "b64": raw(`{"alg":"ES256","kid":"a","b64":false}`, string(body), nil),
		"twice": raw(`{"alg":"ES256","kid":"a"}`, `{"iss":"x","iss":"`+p.URL+`"}`, nil), "list": raw(`[]`, `{}`, nil), "null": raw(`null`, `null`, nil),
		"number as kid": raw(`{"alg":"ES256","kid":1}`, string(body), nil), "other claims": parts[0] + "." + base64.RawURLEncoding.EncodeToString(bytes.Replace(body, []byte("acme"), []byte("evil"), 1)) + "." + parts[2],
		"no UTF-8": raw("{\"alg\":\"ES256\",\"kid\":\"a\xff\"}", string(body), nil), "ISS": raw(`{"alg":"ES256","kid":"a"}`, strings.Replace(string(body), `"iss"`, `"ISS"`, 1), nil),
	} {
		_, err := i.Verify(t.Context(), now, bad)
		wants(t, what, err, fault.TokenInvalid)
	}
	_, err = i.Verify(t.Context(), now, strings.Repeat("A", 17<<10))
	wants(t, "huge", err, fault.TooLarge)
}

func TestKeysRotate(t *testing.T) {
	p := newIDP(t)
	p.add("a", ec(t, elliptic.P256()))
	i := p.issuer(nil)
	at := now
	verify := func(kid string) error {
		s, there := p.signers[kid]
		if !there {
			s = ec(t, elliptic.P256())
		}
		_, err := i.Verify(t.Context(), at, sign(t, jose.ES256, kid, s, p.claims(map[string]any{"iat": at.Unix(), "nbf": at.Unix(), "exp": at.Unix() + 60})))
		return err
	}
	for range 50 {
		wants(t, "known", verify("a"), "")
		wants(t, "unknown", verify("nobody's"), fault.UnknownKeyID)
	}
	if n := p.count("/keys"); n != 1 {
		t.Errorf("%d fetches for 50 tokens under an unknown key", n)
	}
	p.add("b", ec(t, elliptic.P256()))
	wants(t, "new key, at once after a fetch", verify("b"), fault.UnknownKeyID)
	at = at.Add(15 * time.Second)
	wants(t, "new key", verify("b"), "")
	p.set(func() { p.keys = p.keys[1:] })
	wants(t, "key that was withdrawn a moment ago", verify("a"), "")
	at = at.Add(10 * time.Minute)
	wants(t, "key that was withdrawn", verify("a"), fault.UnknownKeyID)
	p.set(func() { p.down = true })
	at = at.Add(23 * time.Hour)
	wants(t, "issuer down", verify("b"), "")
	n := p.count("/.well-known/openid-configuration")
	for range 20 {
		wants(t, "issuer down", verify("b"), "")
	}
	if p.count("/.well-known/openid-configuration") != n {
		t.Error("it is asked again and again while it is down")
	}
	at = at.Add(time.Hour)
	wants(t, "issuer down for too long", verify("b"), fault.Unavailable)
	p.set(func() { p.down = false })
	at = at.Add(time.Minute)
	wants(t, "issuer back", verify("b"), "")
	successor := p.issuer(nil)
	p.set(func() { p.down = true })
	successor.Inherit(i)
	i = successor
	wants(t, "after a reload while the issuer is down", verify("b"), "")
}

// TestManyAtOnce: those who come together share one fetch.
func TestManyAtOnce(t *testing.T) {
	p := newIDP(t)
	p.add("a", ec(t, elliptic.P256()))
	i, token := p.issuer(nil), p.token(jose.ES256, "a", nil)
	out := make(chan error, 50)
	for range 50 {
		go func() { _, err := i.Verify(t.Context(), now, token); out <- err }()
	}
	for range 50 {
		wants(t, "one of many", <-out, "")
	}
	if n := p.count("/keys"); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

func TestIssuersThatAreNotBelieved(t *testing.T) {
	p := newIDP(t)
	p.add("a", ec(t, elliptic.P256()))
	token := p.token(jose.ES256, "a", nil)
	verify := func(i *oidc.Issuer) error { _, err := i.Verify(t.Context(), now, token); return err }
	wants(t, "its certificate is of nobody we know", verify(p.issuer(func(c *oidc.Config) { c.CAs = nil })), fault.Unavailable)
	for what, edit := range map[string]func(path string, body []byte) []byte{
		"another name": func(_ string, b []byte) []byte {
			return bytes.Replace(b, []byte(`"issuer":"`), []byte(`"issuer":"x`), 1)
		},
		"keys by http": func(_ string, b []byte) []byte {
			return bytes.Replace(b, []byte(`"jwks_uri":"https`), []byte(`"jwks_uri":"http`), 1)
		},
		"noise":   func(string, []byte) []byte { return []byte("<html>") },
		"no keys": func(path string, b []byte) []byte { return cutAt(path, b, "{}") },
		"huge":    func(_ string, b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 2<<20)...) },
		"two of one name": func(path string, b []byte) []byte {
			return bytes.Replace(b, []byte(`"keys":[`), []byte(`"keys":[`+string(key(b))+`,`), 1)
		},
	} {
		p.set(func() { p.edit = edit })
		wants(t, what, verify(p.issuer(nil)), fault.Unavailable)
	}
	redirect := httptest.NewTLSServer(http.RedirectHandler(p.URL, http.StatusFound))
	defer redirect.Close()
	p.set(func() { p.edit = nil })
	pool := p.cas()
	pool.AddCert(redirect.Certificate())
	wants(t, "redirect", verify(p.issuer(func(c *oidc.Config) { c.CAs, c.Keys = pool, redirect.URL+"/keys" })), fault.Unavailable)
	wants(t, "keys by URL", verify(p.issuer(func(c *oidc.Config) { c.Keys = p.URL + "/keys" })), "")
	path := filepath.Join(t.TempDir(), "bearer")
	if err := os.WriteFile(path, []byte("xyz\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.bearer = "xyz" })
	wants(t, "without its bearer", verify(p.issuer(nil)), fault.Unavailable)
	wants(t, "with its bearer", verify(p.issuer(func(c *oidc.Config) { c.BearerFile = path })), "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i := p.issuer(func(c *oidc.Config) { c.BearerFile = path })
	if _, err := i.Verify(ctx, now, token); err != nil {
		t.Errorf("a fetch that others may wait for was given up: %v", err)
	}
}

func cutAt(path string, b []byte, with string) []byte {
	if path == "/keys" {
		return []byte(with)
	}
	return b
}

// key is the first key of a set.
func key(b []byte) []byte {
	var s struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(b, &s) != nil || len(s.Keys) == 0 {
		return nil
	}
	return s.Keys[0]
}

func TestConfig(t *testing.T) {
	good := oidc.Config{Name: "idp", URL: "https://idp.example", Audiences: []string{"rotor"}}
	if _, err := oidc.New(good); err != nil {
		t.Fatal(err)
	}
	for what, edit := range map[string]func(*oidc.Config){
		"name": func(c *oidc.Config) { c.Name = "a/b" }, "http": func(c *oidc.Config) { c.URL = "http://idp.example" }, "no URL": func(c *oidc.Config) { c.URL = "" },
		"user": func(c *oidc.Config) { c.URL = "https://u:p@idp.example" }, "keys": func(c *oidc.Config) { c.Keys = "http://x" },
		"audience": func(c *oidc.Config) { c.Audiences = nil }, "empty audience": func(c *oidc.Config) { c.Audiences = []string{""} },
		"kind": func(c *oidc.Config) { c.Kind = "bitbucket" }, "skew": func(c *oidc.Config) { c.Skew = 3 * time.Minute }, "life": func(c *oidc.Config) { c.MaxLife = -1 },
		"require": func(c *oidc.Config) { c.Require = map[string]string{"x": "y"} }, "stale": func(c *oidc.Config) { c.Stale = 25 * time.Hour },
		"session": func(c *oidc.Config) { c.Session = time.Second },
	} {
		c := good
		edit(&c)
		_, err := oidc.New(c)
		wants(t, what, err, fault.Invalid)
	}
	for _, kind := range []string{"kubernetes", "github", "gitlab"} {
		c := good
		c.Kind = kind
		if i, err := oidc.New(c); err != nil || len(i.Attributes) < 5 {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	p := newIDP(f)
	k := ec(f, elliptic.P256())
	p.add("a", k)
	i := p.issuer(func(c *oidc.Config) { c.Kind = "kubernetes" })
	good := p.token(jose.ES256, "a", nil)
	f.Add(good)
	f.Add(raw(`{"alg":"none"}`, `{}`, nil))
	f.Add(raw(`{"alg":"ES256","kid":"a"}`, fmt.Sprintf(`{"iss":%q,"exp":1e400}`, p.URL), []byte("x")))
	if _, err := i.Verify(f.Context(), now, good); err != nil {
		f.Fatal(err)
	}
	p.set(func() { p.down = true })
	f.Fuzz(func(t *testing.T, token string) {
		if who, err := i.Verify(t.Context(), now, token); err == nil && token != good {
			t.Errorf("%q is %+v", token, who)
		}
		_, _ = oidc.IssuerOf(token)
	})
}
