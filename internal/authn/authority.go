// Package authn turns credentials into callers. It holds the certificate authority, lets instances join with a token, renews
// certificates, and denies at once what was removed. Protocol: spec/join.md.
package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
)

// Lifetimes of certificates.
const (
	caLife       = 10 * 365 * 24 * time.Hour
	serverLife   = 30 * 24 * time.Hour
	adminLife    = 365 * 24 * time.Hour
	InstanceLife = 7 * 24 * time.Hour
	RenewGrace   = 30 * 24 * time.Hour // after expiry
	backdate     = time.Minute         // of NotBefore, for clocks that are behind
)

const (
	caPath        = "authn/ca"
	joinPrefix    = "authn/join/"
	removedPrefix = "authn/removed/"
	maxCSR        = 16 << 10
)

// Config is what an Authority needs.
type Config struct {
	Guard       *guard.Guard
	TrustDomain string // of the SPIFFE IDs, for example "rotor.example"
	Namespace   string // that joined instances work in
	Now         func() time.Time
}

// Authority is the certificate authority of a cluster. Safe for concurrent use.
type Authority struct {
	Config
	ca  *x509.Certificate
	key *ecdsa.PrivateKey

	mu      sync.RWMutex // guards removed
	removed map[string]time.Time
}

// caRecord is the stored authority.
type caRecord struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS #8
	TrustDomain string `json:"trust_domain"`
}

// New opens the authority, making it at the first start.
func New(ctx context.Context, c Config) (*Authority, error) {
	a := &Authority{Config: c, removed: map[string]time.Time{}}
	r, err := c.Guard.Get(ctx, caPath)
	if fault.CodeOf(err) == fault.NotFound {
		if err := a.create(ctx); err != nil {
			return nil, err
		}
		r, err = c.Guard.Get(ctx, caPath)
	}
	if err != nil {
		return nil, err
	}
	if err := a.load(r.Value); err != nil {
		return nil, err
	}
	removed, _, err := c.Guard.List(ctx, removedPrefix)
	if err != nil {
		return nil, err
	}
	for _, r := range removed {
		var at time.Time
		if err := json.Unmarshal(r.Value, &at); err != nil {
			return nil, fault.Wrap(fault.RecordTampered, r.Path, err)
		}
		a.removed[strings.TrimPrefix(r.Path, removedPrefix)] = at
	}
	return a, nil
}

func (a *Authority) create(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make CA key: %w", err)
	}
	now := a.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "rotor CA " + a.TrustDomain}, NotBefore: now.Add(-backdate),
		NotAfter: now.Add(caLife), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: a.TrustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make CA certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode CA key: %w", err)
	}
	value, err := json.Marshal(caRecord{der, pkcs8, a.TrustDomain})
	if err != nil {
		return fmt.Errorf("encode CA: %w", err)
	}
	sum := sha256.Sum256(der)
	p := a.Guard.System("authn", "ca.create", policy.Resource{})
	_, err = p.Commit(ctx, []guard.Cond{{Path: caPath}}, []guard.Write{{Path: caPath, Value: value}}, map[string]string{"sha256": hex.EncodeToString(sum[:])})
	return err
}

func (a *Authority) load(value []byte) error {
	var r caRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return fault.Wrap(fault.RecordTampered, caPath, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(r.Key)
	if err != nil {
		return fault.New(fault.RecordTampered, caPath)
	}
	var ok bool
	if a.key, ok = key.(*ecdsa.PrivateKey); !ok {
		return fault.New(fault.RecordTampered, caPath)
	}
	a.TrustDomain = r.TrustDomain
	if a.ca, err = x509.ParseCertificate(r.Certificate); err != nil {
		return fault.New(fault.RecordTampered, caPath)
	}
	return nil
}

// CA is the authority's certificate.
func (a *Authority) CA() *x509.Certificate { return a.ca }

// ServerID is the SPIFFE ID of the server.
func (a *Authority) ServerID() string { return "spiffe://" + a.TrustDomain + "/server" }

// InstanceID is the SPIFFE ID of an instance.
func (a *Authority) InstanceID(name string) string {
	return "spiffe://" + a.TrustDomain + "/instance/" + name
}

// sign issues a certificate for a public key.
func (a *Authority) sign(public any, path string, life time.Duration, hosts ...string) ([]byte, error) {
	now := a.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-backdate), NotAfter: now.Add(life), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{{Scheme: "spiffe", Host: a.TrustDomain, Path: path}},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.ca, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", path, err)
	}
	return der, nil
}

func serial() *big.Int {
	return new(big.Int).SetBytes(secret.Random(16).Reveal())
}

// Server is TLS for the listener. Strangers may connect (health, JWKS, join); Identify decides per request who somebody is. The
// certificate is made fresh at the start and at half of its life. X25519MLKEM768 is preferred; rotor's own parts require it, while a
// stranger that fetches the JWKS may be older.
func (a *Authority) Server(hosts ...string) *tls.Config {
	var mu sync.Mutex
	var cached *tls.Certificate
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			if cached == nil || a.Now().After(cached.Leaf.NotBefore.Add(serverLife/2)) {
				fresh, err := a.serverCertificate(hosts)
				if err != nil {
					return nil, err
				}
				cached = fresh
			}
			return cached, nil
		},
	}
}

func (a *Authority) serverCertificate(hosts []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make server key: %w", err)
	}
	der, err := a.sign(&key.PublicKey, "/server", serverLife, hosts...)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// ClientTLS lets the server itself call an instance of the fleet that serves something, such as a data set, under its own SPIFFE ID.
func (a *Authority) ClientTLS(instance string) (*tls.Config, error) {
	cert, err := a.serverCertificate(nil)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert},
		InsecureSkipVerify: true, //nolint:gosec // names are SPIFFE IDs, not hosts; VerifyConnection checks chain and ID
		VerifyConnection: func(s tls.ConnectionState) error {
			c, err := a.Identify(s, false)
			if err == nil && c.Instance != instance {
				err = fault.New(fault.Unauthenticated, "instance "+instance).WithHint("%s answers in its place", c.Name)
			}
			return err
		},
	}, nil
}

// Admin makes an identity directory for an operator; at init, and by somebody who can read the store's seal.
func (a *Authority) Admin(dir *identity.Dir, name, address string) error {
	csr, err := dir.CSR()
	if err != nil {
		return err
	}
	req, err := parseCSR(csr)
	if err != nil {
		return err
	}
	der, err := a.sign(req.PublicKey, "/admin/"+name, adminLife)
	if err != nil {
		return err
	}
	return dir.Accept(a.grant([][]byte{der, a.ca.Raw}), address)
}

func (a *Authority) grant(chain [][]byte) identity.Grant {
	return identity.Grant{Chain: chain, CA: a.ca.Raw, ServerKey: a.Guard.PublicKey(), Cluster: a.Guard.ClusterID(), Namespace: a.Namespace}
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, fault.New(fault.TooLarge, "certificate request")
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "certificate request", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fault.Wrap(fault.Invalid, "certificate request", err)
	}
	if k, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, fault.New(fault.Invalid, "certificate request").WithHint("its key is not ECDSA P-256")
	}
	return req, nil
}

// Identify names the caller behind a connection. expired allows certificates within RenewGrace after their end; for Renew alone.
// fault.Unauthenticated.
func (a *Authority) Identify(s tls.ConnectionState, expired bool) (policy.Caller, error) {
	nobody := func(why string) (policy.Caller, error) {
		return policy.Caller{}, fault.New(fault.Unauthenticated, "caller").WithHint("%s", why)
	}
	if len(s.PeerCertificates) == 0 {
		return nobody("present the certificate of a joined instance or an administrator")
	}
	leaf, now := s.PeerCertificates[0], a.Now()
	at := now
	if expired && now.After(leaf.NotAfter) && now.Before(leaf.NotAfter.Add(RenewGrace)) {
		at = leaf.NotAfter
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nobody("the certificate is expired or of another cluster")
	}
	id := identity.SPIFFE(leaf)
	path, ok := strings.CutPrefix(id, "spiffe://"+a.TrustDomain+"/")
	kind, name, found := strings.Cut(path, "/")
	if !ok || !found && path != "server" {
		return nobody("the certificate has no SPIFFE ID of this cluster")
	}
	switch kind {
	case "server":
		return policy.Caller{Kind: policy.KindAdmin, Name: id, SPIFFEID: id}, nil
	case "admin":
		return policy.Caller{Kind: policy.KindAdmin, Name: "admin/" + name, SPIFFEID: id}, nil
	case "instance":
		if a.isRemoved(name, leaf) {
			return nobody("the instance was removed")
		}
		return policy.Caller{Kind: policy.KindInstance, Name: id, SPIFFEID: id, Instance: name}, nil
	}
	return nobody("the certificate has no SPIFFE ID of this cluster")
}

func (a *Authority) isRemoved(name string, leaf *x509.Certificate) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	at, ok := a.removed[name]
	return ok && !leaf.NotBefore.Add(backdate).After(at)
}

// Remove denies every certificate that an instance has now.
func (a *Authority) Remove(ctx context.Context, c policy.Caller, name string) error {
	p, err := a.Guard.Admit(ctx, c, policy.ActRemove, policy.Resource{})
	if err != nil {
		return err
	}
	if !keyring.ValidName(name) {
		return fault.New(fault.Invalid, "instance name")
	}
	now := a.Now().UTC()
	value, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("encode removal: %w", err)
	}
	if _, err := p.Commit(ctx, nil, []guard.Write{{Path: removedPrefix + name, Value: value}}, map[string]string{"instance": name}); err != nil {
		return err
	}
	a.mu.Lock()
	a.removed[name] = now
	a.mu.Unlock()
	return nil
}

// joinRecord is the stored half of a join token.
type joinRecord struct {
	Secret   []byte    `json:"secret"` // SHA-256
	Instance string    `json:"instance"`
	Expires  time.Time `json:"expires"`
	Bound    []byte    `json:"bound,omitempty"` // SHA-256 of the public key that used it first
	Chain    [][]byte  `json:"chain,omitempty"` // the answer, repeated to the same key
}

// Invite makes a join token for one instance. fault.Invalid, Denied.
func (a *Authority) Invite(ctx context.Context, c policy.Caller, name string, ttl time.Duration, address string) (string, error) {
	p, err := a.Guard.Admit(ctx, c, policy.ActInvite, policy.Resource{})
	if err != nil {
		return "", err
	}
	if !keyring.ValidName(name) {
		return "", fault.New(fault.Invalid, "instance name").WithHint("lower-case letters, digits, and inside . _ -")
	}
	if ttl <= 0 || ttl > identity.MaxTTL {
		ttl = identity.MaxTTL
	}
	sum := sha256.Sum256(a.ca.Raw)
	t := identity.JoinToken{
		Address: address, CA: sum[:], ID: hex.EncodeToString(secret.Random(16).Reveal()), Instance: name,
		SPIFFE: a.InstanceID(name), Expires: a.Now().UTC().Add(ttl).Truncate(time.Second), Secret: secret.Random(32).Reveal(),
	}
	hash := sha256.Sum256(t.Secret)
	value, err := json.Marshal(joinRecord{Secret: hash[:], Instance: name, Expires: t.Expires})
	if err != nil {
		return "", fmt.Errorf("encode join token: %w", err)
	}
	path := joinPrefix + t.ID
	if _, err := p.Commit(ctx, []guard.Cond{{Path: path}}, []guard.Write{{Path: path, Value: value}}, map[string]string{"instance": name}); err != nil {
		return "", err
	}
	return t.Encode(), nil
}

// Join answers a stranger with a token: the first key that uses the token gets the certificate, and gets the same one again
// whenever it asks again (a reply can be lost); any other key is refused. fault.Invalid, JoinTokenUsed, JoinTokenExpired.
func (a *Authority) Join(ctx context.Context, token string, csr []byte) (identity.Grant, error) {
	t, err := identity.ParseJoinToken(token)
	if err != nil {
		return identity.Grant{}, err
	}
	req, err := parseCSR(csr)
	if err != nil {
		return identity.Grant{}, err
	}
	key := sha256.Sum256(req.RawSubjectPublicKeyInfo)
	hash := sha256.Sum256(t.Secret)
	for {
		rec, err := a.Guard.Get(ctx, joinPrefix+t.ID)
		if fault.CodeOf(err) == fault.NotFound {
			return identity.Grant{}, fault.New(fault.Unauthenticated, "join token")
		}
		if err != nil {
			return identity.Grant{}, err
		}
		var j joinRecord
		if err := json.Unmarshal(rec.Value, &j); err != nil {
			return identity.Grant{}, fault.Wrap(fault.RecordTampered, rec.Path, err)
		}
		switch {
		case subtle.ConstantTimeCompare(j.Secret, hash[:]) != 1:
			return identity.Grant{}, fault.New(fault.Unauthenticated, "join token")
		case len(j.Bound) > 0 && subtle.ConstantTimeCompare(j.Bound, key[:]) != 1:
			return identity.Grant{}, fault.New(fault.JoinTokenUsed, "instance "+j.Instance)
		case len(j.Bound) > 0:
			return a.grant(j.Chain), nil
		case !a.Now().Before(j.Expires):
			return identity.Grant{}, fault.New(fault.JoinTokenExpired, "instance "+j.Instance)
		}
		chain, err := a.bind(ctx, rec, j, req, key[:])
		if fault.CodeOf(err) == fault.Conflict {
			continue // somebody used it meanwhile; read who
		}
		if err != nil {
			return identity.Grant{}, err
		}
		return a.grant(chain), nil
	}
}

func (a *Authority) bind(ctx context.Context, rec guard.Record, j joinRecord, req *x509.CertificateRequest, key []byte) ([][]byte, error) {
	der, err := a.sign(req.PublicKey, "/instance/"+j.Instance, InstanceLife)
	if err != nil {
		return nil, err
	}
	j.Bound, j.Chain = key, [][]byte{der, a.ca.Raw}
	value, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode join token: %w", err)
	}
	p := a.Guard.System("authn", policy.ActInvite, policy.Resource{})
	_, err = p.Commit(ctx, []guard.Cond{{Path: rec.Path, Rev: rec.Rev}}, []guard.Write{{Path: rec.Path, Value: value}}, map[string]string{"joined": j.Instance})
	return j.Chain, err
}

// Renew gives a caller a new certificate for a new or the same key; possible until RenewGrace after the old one's end, unless the
// instance was removed.
func (a *Authority) Renew(ctx context.Context, s tls.ConnectionState, csr []byte) (identity.Grant, error) {
	c, err := a.Identify(s, true)
	if err != nil {
		return identity.Grant{}, err
	}
	if c.Kind != policy.KindInstance {
		return identity.Grant{}, fault.New(fault.Denied, "renewal of "+c.Name)
	}
	req, err := parseCSR(csr)
	if err != nil {
		return identity.Grant{}, err
	}
	der, err := a.sign(req.PublicKey, "/instance/"+c.Instance, InstanceLife)
	if err != nil {
		return identity.Grant{}, err
	}
	p := a.Guard.System("authn", "instance.renew", policy.Resource{})
	if err := p.Release(ctx, map[string]string{"instance": c.Instance}); err != nil {
		return identity.Grant{}, err
	}
	return a.grant([][]byte{der, a.ca.Raw}), nil
}

// CAPEM is the authority's certificate for tools that want PEM.
func (a *Authority) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.ca.Raw})
}
