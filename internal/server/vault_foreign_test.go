package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// signer signs tokens of others.
type signer struct {
	t   testing.TB
	key *ecdsa.PrivateKey
	kid string
}

func newSigner(t testing.TB, kid string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, key, kid}
}

// pem is the public key.
func (s signer) pem() string {
	s.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// token signs claims, with changes: nil takes one away.
func (s signer) token(claims m, changes m) string {
	s.t.Helper()
	all := maps.Clone(claims)
	for name, value := range changes {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		s.t.Fatal(err)
	}
	js, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: s.kid}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	o, err := js.Sign(b)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := o.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// serves is an HTTPS server with the key set at a path, and its authority in PEM. bearer, if there is one, has to be shown.
func (s signer) serves(path, bearer string) (url, ca string) {
	s.t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path || bearer != "" && r.Header.Get("Authorization") != "Bearer "+bearer {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: s.kid}}})
	}))
	s.t.Cleanup(server.Close)
	return server.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

// TestVaultJWT: tokens of a configured issuer, by its keys in PEM and by its key set, and what is not taken.
func TestVaultJWT(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op, nobody := w.operator(), w.vault("")
	op.must("POST", "sys/auth/jwt", m{"type": "jwt"})
	key, other := newSigner(t, "k1"), newSigner(t, "k1")
	op.do("POST", "auth/jwt/config", m{"jwt_validation_pubkeys": "x"}).want(t, "no key", 400, "public key")
	op.do("POST", "auth/jwt/config", m{"jwks_url": "http://issuer.example"}).want(t, "no TLS", 400, "https")
	op.do("POST", "auth/jwt/config", m{"oidc_client_id": "x", "oidc_discovery_url": "https://issuer.example"}).want(t, "a browser", 400, "oidc_client_id is not supported")
	op.must("POST", "auth/jwt/config", m{"jwt_validation_pubkeys": []string{key.pem()}, "bound_issuer": "https://ci.example"})
	op.do("GET", "auth/jwt/config", nil).want(t, "config", 200, `"bound_issuer":"https://ci.example"`)
	role := m{"user_claim": "/job/name", "user_claim_json_pointer": true, "bound_audiences": "rotor", "bound_claims": m{"ref": []string{"refs/heads/main"}, "groups": "ci"},
		"claim_mappings": m{"repository": "repo"}, "policies": "app", "ttl": "10m"}
	op.do("POST", "auth/jwt/role/none", m{"user_claim": "sub"}).want(t, "a role without a bound", 400, "at least one bound constraint")
	op.do("POST", "auth/jwt/role/none", m{"bound_subject": "x"}).want(t, "a role without a claim", 400, "user claim")
	op.must("POST", "auth/jwt/role/ci", role)
	op.do("LIST", "auth/jwt/role", nil).want(t, "roles", 200, `"keys":["ci"]`)
	now := time.Now()
	claims := m{
		"iss": "https://ci.example", "aud": "rotor", "sub": "job:1", "exp": now.Add(time.Minute).Unix(), "iat": now.Unix(), "job": m{"name": "train"}, "ref": "refs/heads/main", "groups": []string{"dev", "ci"},
		"repository": "acme/train",
	}
	login := func(role, token string) answer {
		return nobody.do("POST", "auth/jwt/login", m{"role": role, "jwt": token})
	}
	a := login("ci", key.token(claims, nil)).want(t, "login", 200, `"lease_duration":600`)
	if meta, _ := a.auth("metadata").(m); meta["role"] != "ci" || meta["repo"] != "acme/train" {
		t.Error(a.text)
	}
	w.vault(a.login(t)).do("GET", "auth/token/lookup-self", nil).want(t, "lookup-self", 200, `"display_name":"train"`)
	unknown := "it is of no issuer or role here"
	for what, c := range map[string]struct{ role, token, text string }{
		"another key":       {"ci", other.token(claims, nil), unknown},
		"another role":      {"other", key.token(claims, nil), unknown},
		"no token":          {"ci", "x", unknown},
		"no role":           {"", key.token(claims, nil), "missing role"},
		"another issuer":    {"ci", key.token(claims, m{"iss": "https://other.example"}), "invalid issuer"},
		"another audience":  {"ci", key.token(claims, m{"aud": "other"}), "invalid audience"},
		"no audience":       {"ci", key.token(claims, m{"aud": nil}), "invalid audience"},
		"expired":           {"ci", key.token(claims, m{"exp": now.Add(-2 * time.Minute).Unix()}), "token is expired"},
		"without an end":    {"ci", key.token(claims, m{"exp": nil}), "no end"},
		"of tomorrow":       {"ci", key.token(claims, m{"nbf": now.Add(2 * time.Minute).Unix()}), "not yet valid"},
		"another branch":    {"ci", key.token(claims, m{"ref": "refs/heads/other"}), `claim \"ref\" does not match`},
		"no branch":         {"ci", key.token(claims, m{"ref": nil}), `claim \"ref\" is missing`},
		"another group":     {"ci", key.token(claims, m{"groups": []string{"dev"}}), `claim \"groups\" does not match`},
		"nobody":            {"ci", key.token(claims, m{"job": nil}), "not found in token"},
		"a name of no text": {"ci", key.token(claims, m{"job": m{"name": []string{"a", "b"}}}), "could not be converted"},
	} {
		login(c.role, c.token).want(t, what, 400, c.text)
	}
	url, ca := other.serves("/keys", "")
	op.must("POST", "auth/jwt/config", m{"jwt_validation_pubkeys": []string{}, "jwks_url": url + "/keys", "jwks_ca_pem": ca, "default_role": "ci"})
	login("", other.token(claims, nil)).want(t, "the default role and a key set", 200, "client_token")
	login("ci", key.token(claims, nil)).want(t, "the key of before", 400, unknown)
	op.must("POST", "auth/jwt/role/ci", m{"bound_claims": m{"ref": "refs/*"}, "bound_claims_type": "glob"})
	login("ci", other.token(claims, m{"ref": "refs/tags/v1"})).want(t, "a pattern", 200, "client_token")
}

// TestVaultKubernetes: service accounts, by their keys in PEM and by those of the API server, which wants a token for them.
func TestVaultKubernetes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op, nobody := w.operator(), w.vault("")
	op.must("POST", "sys/auth/kubernetes", m{"type": "kubernetes"})
	key, other := newSigner(t, "k1"), newSigner(t, "k1")
	op.must("POST", "auth/kubernetes/config", m{"kubernetes_host": "https://kubernetes.example", "pem_keys": key.pem(), "token_reviewer_jwt": "its-secret"})
	if a := op.do("GET", "auth/kubernetes/config", nil).want(t, "config", 200, `"token_reviewer_jwt_set":true`); a.data("token_reviewer_jwt") != nil {
		t.Error(a.text)
	}
	op.do("POST", "auth/kubernetes/role/x", m{"bound_service_account_names": "a"}).want(t, "no namespaces", 400, "can not be empty")
	op.must("POST", "auth/kubernetes/role/app", m{"bound_service_account_names": "train-*", "bound_service_account_namespaces": "ml", "token_policies": "app"})
	op.must("POST", "auth/kubernetes/role/aud", m{"bound_service_account_names": "*", "bound_service_account_namespaces": "ml", "audience": "rotor"})
	now, api := time.Now(), "https://kubernetes.default.svc"
	claims := m{
		"iss": api, "aud": []string{api}, "exp": now.Add(time.Hour).Unix(), "sub": "system:serviceaccount:ml:train-1",
		"kubernetes.io": m{"namespace": "ml", "serviceaccount": m{"name": "train-1", "uid": "u1"}},
	}
	login := func(role, token string) answer {
		return nobody.do("POST", "auth/kubernetes/login", m{"role": role, "jwt": token})
	}
	a := login("app", key.token(claims, nil)).want(t, "login", 200, `"service_account_name":"train-1"`)
	w.vault(a.login(t)).do("GET", "auth/token/lookup-self", nil).want(t, "lookup-self", 200, `"display_name":"ml-train-1"`)
	login("aud", key.token(claims, m{"aud": []string{"rotor"}})).want(t, "an audience", 200, "client_token")
	legacy := m{
		"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ml:train-1", "kubernetes.io/serviceaccount/namespace": "ml", "kubernetes.io/serviceaccount/service-account.name": "train-1",
		"kubernetes.io/serviceaccount/service-account.uid": "u1", "kubernetes.io/serviceaccount/secret.name": "s", "exp": now.Add(time.Hour).Unix(),
	}
	login("app", key.token(legacy, nil)).want(t, "a token of a secret, with an end", 200, `"service_account_secret_name":"s"`)
	account := func(ns, name string) m {
		return m{"sub": "system:serviceaccount:" + ns + ":" + name, "kubernetes.io": m{"namespace": ns, "serviceaccount": m{"name": name, "uid": "u"}}}
	}
	for what, c := range map[string]struct {
		role, token string
		status      int
	}{
		"another key":                    {"app", other.token(claims, nil), 400},
		"another role":                   {"none", key.token(claims, nil), 403},
		"another account":                {"app", key.token(claims, account("ml", "web")), 403},
		"another namespace":              {"app", key.token(claims, account("web", "train-1")), 403},
		"for another service":            {"app", key.token(claims, m{"aud": []string{"rotor"}}), 403},
		"for the API server":             {"aud", key.token(claims, nil), 403},
		"expired":                        {"app", key.token(claims, m{"exp": now.Add(-time.Hour).Unix()}), 400},
		"without an end":                 {"app", key.token(legacy, m{"exp": nil}), 400},
		"another subject than its claim": {"app", key.token(claims, m{"sub": "system:serviceaccount:ml:other"}), 400},
		"no account":                     {"app", key.token(claims, m{"kubernetes.io": nil}), 400},
	} {
		if a := login(c.role, c.token); a.status != c.status {
			t.Errorf("%s: %d %s", what, a.status, a.text)
		}
	}
	url, ca := other.serves("/openid/v1/jwks", "reviewer")
	op.must("POST", "auth/kubernetes/config", m{"kubernetes_host": url, "kubernetes_ca_cert": ca, "token_reviewer_jwt": "reviewer", "pem_keys": []string{}})
	login("app", other.token(claims, nil)).want(t, "the API server's keys", 200, "client_token")
}

// issue makes a certificate; without an authority one that is its own.
func issue(t testing.TB, cn string, ca *tls.Certificate, isCA bool, life time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn, OrganizationalUnit: []string{"ml"}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, DNSNames: []string{cn + ".example"},
	}
	parent, signs := c, crypto.Signer(key)
	if ca != nil {
		parent, signs = ca.Leaf, ca.PrivateKey.(crypto.Signer)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signs)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func certPEM(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Leaf.Raw}))
}

// TestVaultCert: client certificates of a configured authority, and one that is configured itself.
func TestVaultCert(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "sys/auth/cert", m{"type": "cert"})
	ca, foreign := issue(t, "ca", nil, true, time.Hour), issue(t, "ca", nil, true, time.Hour)
	own, twin := issue(t, "own", nil, false, time.Hour), issue(t, "own", nil, false, time.Hour)
	op.do("POST", "auth/cert/certs/x", m{"certificate": "x"}).want(t, "no certificate", 400, "failed to parse certificate")
	op.do("POST", "auth/cert/certs/x", m{"certificate": certPEM(ca), "ocsp_enabled": true}).want(t, "OCSP", 400, "not supported")
	op.must("POST", "auth/cert/certs/web", m{"certificate": certPEM(ca), "allowed_common_names": "web-*", "allowed_organizational_units": "ml", "token_policies": "app", "token_ttl": "30m"})
	op.must("POST", "auth/cert/certs/own", m{"certificate": certPEM(own)})
	op.do("LIST", "auth/cert/certs", nil).want(t, "list", 200, `"keys":["own","web"]`)
	login := func(c tls.Certificate, body m) answer {
		v := w.vault("")
		v.http = &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &c, nil
		}}}}
		t.Cleanup(v.http.CloseIdleConnections)
		return v.do("POST", "auth/cert/login", body)
	}
	a := login(issue(t, "web-1", &ca, false, time.Hour), nil).want(t, "login", 200, `"cert_name":"web"`)
	if a.auth("lease_duration") != 1800.0 {
		t.Error(a.text)
	}
	w.vault(a.login(t)).do("GET", "auth/token/lookup-self", nil).want(t, "lookup-self", 200, `"policies":["app","default"]`)
	if a := login(issue(t, "web-1", &ca, false, time.Minute), nil); a.auth("lease_duration").(float64) > 60 {
		t.Errorf("a token outlives its certificate: %s", a.text)
	}
	login(own, m{"name": "own"}).want(t, "its own", 200, `"common_name":"own"`)
	for what, c := range map[string]struct {
		cert tls.Certificate
		body m
	}{
		"another name": {issue(t, "db-1", &ca, false, time.Hour), nil}, "another authority": {issue(t, "web-1", &foreign, false, time.Hour), nil},
		"another entry": {issue(t, "web-1", &ca, false, time.Hour), m{"name": "own"}}, "no entry": {own, m{"name": "none"}}, "the same name and no more": {twin, m{"name": "own"}},
		"expired": {issue(t, "web-1", &ca, false, -time.Minute), nil},
	} {
		login(c.cert, c.body).want(t, what, 400, "invalid certificate or no client certificate supplied")
	}
	w.vault("").do("POST", "auth/cert/login", nil).want(t, "none", 400, "client certificate must be supplied")
}
