// Package authn turns credentials into callers. It holds the certificate authority, lets instances join with a token, renews
// certificates, and denies at once what was removed. Protocol: spec/join.md.
package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
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

	// Room, if set, says whether there is room for another instance. fault.QuotaReached.
	Room func(name string) error
	// OnEnded, if set, is told of what must not go on, by whatever server it was ended. Set it before Run.
	OnEnded func(Ended)
}

// Authority is the certificate authority of a cluster. Safe for concurrent use.
type Authority struct {
	Config
	ca  *x509.Certificate
	key *ecdsa.PrivateKey

	mu          sync.RWMutex // guards what follows
	removed     guard.Table[removal]
	tokens      guard.Table[ending]
	enrolments  guard.Table[ending]
	admins      guard.Table[admin]
	sessions    guard.Table[session]
	credentials guard.Table[credential]
	grants      guard.Table[grant]
	granted     map[string]map[string]bool // IDs of grants, by the grantee
	cursor      uint64                     // where the next free slot of a session is looked for

	from     store.Rev     // that the tables were read at
	heard    atomic.Uint64 // the last commit that is in the tables
	access   atomic.Pointer[access]
	rules    atomic.Pointer[guard.Decider] // without the grants
	hasher   Hasher
	touching sync.Map // slots whose use is being written
}

// caRecord is the stored authority.
type caRecord struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS #8
	TrustDomain string `json:"trust_domain"`
}

// New opens the authority, making it at the first start.
func New(ctx context.Context, c Config) (*Authority, error) {
	a := &Authority{
		Config: c, removed: guard.NewTable[removal](removedPrefix), tokens: guard.NewTable[ending](joinPrefix), enrolments: guard.NewTable[ending](enrolPrefix),
		admins: guard.NewTable[admin](adminPrefix), sessions: guard.NewTable[session](sessionPrefix), credentials: guard.NewTable[credential](credentialPrefix),
		grants: guard.NewTable[grant](grantPrefix), granted: map[string]map[string]bool{}, hasher: NewHasher(),
	}
	if err := a.Configure(Access{}); err != nil {
		return nil, err
	}
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
	if err := a.succeed(ctx); err != nil {
		return nil, err
	}
	return a, a.read(ctx)
}

func (a *Authority) create(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make CA key: %w", err)
	}
	der, value, err := a.selfSign(key, a.Now().Add(-backdate), nil)
	if err != nil {
		return err
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

// Hasher hashes secrets of others too, so that all together take no more memory than it has turns for.
func (a *Authority) Hasher() Hasher { return a.hasher }

// CA is the authority's certificate.
func (a *Authority) CA() *x509.Certificate { return a.ca }

// ServerID is the SPIFFE ID of the server.
func (a *Authority) ServerID() string { return "spiffe://" + a.TrustDomain + "/server" }

// InstanceID is the SPIFFE ID of an instance.
func (a *Authority) InstanceID(name string) string {
	return "spiffe://" + a.TrustDomain + "/instance/" + name
}

// sign issues a certificate for a public key. Instances have their generation in the subject; see removal.
func (a *Authority) sign(public any, path string, subject pkix.Name, life time.Duration, hosts ...string) ([]byte, error) {
	now := a.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: subject, NotBefore: now.Add(-backdate), NotAfter: now.Add(life), KeyUsage: x509.KeyUsageDigitalSignature,
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
	current := a.current(hosts)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current() },
	}
}

// current gives the server's certificate, made at the first call and again at half of its life.
func (a *Authority) current(hosts []string) func() (*tls.Certificate, error) {
	var mu sync.Mutex // guards cached
	var cached *tls.Certificate
	return func() (*tls.Certificate, error) {
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
	}
}

func (a *Authority) serverCertificate(hosts []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make server key: %w", err)
	}
	der, err := a.sign(&key.PublicKey, "/server", pkix.Name{}, serverLife, hosts...)
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
	current := a.current(nil)
	if _, err := current(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current() },
		InsecureSkipVerify:   true, //nolint:gosec // names are SPIFFE IDs, not hosts; VerifyConnection checks chain and ID
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
func (a *Authority) Admin(ctx context.Context, dir *identity.Dir, name, address string) error {
	if !keyring.ValidName(name) {
		return fault.New(fault.Invalid, "administrator's name")
	}
	csr, err := dir.CSR()
	if err != nil {
		return err
	}
	req, err := parseCSR(csr)
	if err != nil {
		return err
	}
	var der []byte
	err = a.again(ctx, func() (rev store.Rev, err error) {
		der, rev, err = a.admit(ctx, a.Guard.System("authn", "admin.create", policy.Resource{}), name, req)
		return rev, err
	})
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
// fault.Unauthenticated; fault.Denied for an instance or administrator that was removed, which tells a process to drop its keys at once.
func (a *Authority) Identify(s tls.ConnectionState, expired bool) (policy.Caller, error) {
	c, _, err := a.identify(s, expired)
	return c, err
}

// identify also says what a session of the caller would depend on.
func (a *Authority) identify(s tls.ConnectionState, expired bool) (policy.Caller, source, error) {
	if len(s.PeerCertificates) == 0 {
		return nobody("present the certificate of a joined instance or an administrator, or log in")
	}
	leaf, now := s.PeerCertificates[0], a.Now()
	at := now
	if expired && now.After(leaf.NotAfter) && now.Before(leaf.NotAfter.Add(RenewGrace)) {
		at = leaf.NotAfter
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return a.foreign(s, now)
	}
	id := identity.SPIFFE(leaf)
	path, ok := strings.CutPrefix(id, "spiffe://"+a.TrustDomain+"/")
	kind, name, found := strings.Cut(path, "/")
	if !ok || !found || !keyring.ValidName(name) {
		return nobody("the certificate has no SPIFFE ID of this cluster")
	}
	n := generation(leaf)
	src := source{Generation: n, Until: leaf.NotAfter}
	switch kind {
	case "admin":
		if a.adminRemoved(name, n) {
			return policy.Caller{}, source{}, fault.New(fault.Denied, "administrator "+name).WithHint("it was removed")
		}
		src.Admin = name
		return policy.Caller{Kind: policy.KindAdmin, Name: "admin/" + name, SPIFFEID: id, Generation: n}, src, nil
	case "instance":
		if a.isRemoved(name, n) {
			return policy.Caller{}, source{}, fault.New(fault.Denied, "instance "+name).WithHint("it was removed; invite it again")
		}
		src.Instance = name
		return policy.Caller{Kind: policy.KindInstance, Name: id, SPIFFEID: id, Instance: name, Generation: n}, src, nil
	}
	return nobody("the certificate has no SPIFFE ID of this cluster")
}

// foreign asks the configured authorities.
func (a *Authority) foreign(s tls.ConnectionState, now time.Time) (policy.Caller, source, error) {
	all := a.access.Load().Certificates
	if len(all) == 0 {
		return nobody("the certificate is expired or of another cluster")
	}
	var first error
	for _, ca := range all {
		c, err := ca.Identify(s.PeerCertificates, now, a.TrustDomain)
		if err == nil {
			leaf := s.PeerCertificates[0]
			return c, source{Certificate: ca.Name, Serial: leaf.SerialNumber.Text(16), Until: leaf.NotAfter}, nil
		}
		if first == nil {
			first = err
		}
	}
	return policy.Caller{}, source{}, first
}

func nobody(why string) (policy.Caller, source, error) {
	return policy.Caller{}, source{}, fault.New(fault.Unauthenticated, "caller").WithHint("%s", why)
}
