package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
)

const (
	bundleFile = "identity.json"
	lockFile   = "lock"
	maxBundle  = 1 << 20
)

// bundle is everything that is kept, in one file so that it changes atomically.
type bundle struct {
	Version   int      `json:"version"` // 1
	Key       []byte   `json:"key"`     // PKCS #8
	Chain     [][]byte `json:"chain,omitempty"`
	CA        []byte   `json:"ca,omitempty"`
	ServerKey []byte   `json:"server_key,omitempty"` // Ed25519, signs snapshots
	Cluster   string   `json:"cluster,omitempty"`
	Namespace string   `json:"namespace,omitempty"`
	Address   string   `json:"address,omitempty"`
}

// Dir is an identity directory that this process holds: no other process can open it meanwhile.
type Dir struct {
	path string
	lock *os.File

	mu     sync.RWMutex // guards what follows
	bundle bundle
	key    *ecdsa.PrivateKey
	leaf   *x509.Certificate
	ca     *x509.Certificate
}

// Grant is what a join or a renewal answers.
type Grant struct {
	Chain     [][]byte
	CA        []byte
	ServerKey ed25519.PublicKey
	Cluster   string
	Namespace string
}

// Open takes the directory, making it and a private key if needed. fault.IdentityInUse when another process holds it.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make identity directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open identity directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fault.New(fault.IdentityInUse, path)
	}
	d := &Dir{path: path, lock: lock}
	if err := d.load(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// Read reads an identity without holding it, for one-shot commands of people. fault.NotFound.
func Read(path string) (*Dir, error) {
	if _, err := os.Stat(filepath.Join(path, bundleFile)); err != nil {
		return nil, fault.New(fault.NotFound, "identity "+path)
	}
	d := &Dir{path: path}
	return d, d.load()
}

// Close lets another process take the directory.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

func (d *Dir) load() error {
	b, err := os.ReadFile(filepath.Join(d.path, bundleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d.create()
	}
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	defer clear(b)
	var n bundle
	if len(b) > maxBundle || json.Unmarshal(b, &n) != nil || n.Version != 1 {
		return fault.New(fault.Invalid, "identity "+d.path)
	}
	return d.use(n)
}

func (d *Dir) create() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make identity key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode identity key: %w", err)
	}
	n := bundle{Version: 1, Key: der}
	if err := d.save(n); err != nil {
		return err
	}
	return d.use(n)
}

func (d *Dir) use(n bundle) error {
	parsed, err := x509.ParsePKCS8PrivateKey(n.Key)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return fault.New(fault.Invalid, "identity "+d.path)
	}
	var leaf, ca *x509.Certificate
	if len(n.Chain) > 0 {
		if leaf, err = x509.ParseCertificate(n.Chain[0]); err != nil {
			return fault.Wrap(fault.Invalid, "identity "+d.path, err)
		}
		if ca, err = x509.ParseCertificate(n.CA); err != nil {
			return fault.Wrap(fault.Invalid, "identity "+d.path, err)
		}
		if !key.PublicKey.Equal(leaf.PublicKey) {
			return fault.New(fault.Invalid, "identity "+d.path).WithHint("its certificate is for another key")
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bundle, d.key, d.leaf, d.ca = n, key, leaf, ca
	return nil
}

// save replaces the bundle atomically.
func (d *Dir) save(n bundle) error {
	b, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	defer clear(b)
	tmp, err := os.CreateTemp(d.path, ".identity-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := os.Rename(tmp.Name(), filepath.Join(d.path, bundleFile)); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// Joined says whether there is a certificate.
func (d *Dir) Joined() bool { return d.Leaf() != nil }

// Leaf is the present certificate, nil before joining.
func (d *Dir) Leaf() *x509.Certificate {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.leaf
}

// Cluster is the ID of the cluster, pinned at join like the other facts below.
func (d *Dir) Cluster() string { d.mu.RLock(); defer d.mu.RUnlock(); return d.bundle.Cluster }

// Namespace is the namespace that the identity works in.
func (d *Dir) Namespace() string { d.mu.RLock(); defer d.mu.RUnlock(); return d.bundle.Namespace }

// Address is the server's host:port.
func (d *Dir) Address() string { d.mu.RLock(); defer d.mu.RUnlock(); return d.bundle.Address }

// ServerKey is the key that signs snapshots.
func (d *Dir) ServerKey() ed25519.PublicKey {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.bundle.ServerKey
}

// CSR makes a request for a certificate of the directory's key (RFC 2986). Names in it are ignored by the server.
func (d *Dir) CSR() ([]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "rotor"}}, d.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return b, nil
}

// Accept stores what a join or renewal answered.
func (d *Dir) Accept(g Grant, address string) error {
	d.mu.RLock()
	n := d.bundle
	d.mu.RUnlock()
	n.Chain, n.CA, n.ServerKey, n.Cluster, n.Namespace = g.Chain, g.CA, g.ServerKey, g.Cluster, g.Namespace
	if address != "" {
		n.Address = address
	}
	if len(n.Chain) == 0 || len(n.ServerKey) != ed25519.PublicKeySize {
		return fault.New(fault.Invalid, "join answer")
	}
	if err := d.use(n); err != nil {
		return err
	}
	return d.save(n)
}

// NeedsRenewal says whether half of the certificate's life is over.
func (d *Dir) NeedsRenewal(now time.Time) bool {
	c := d.Leaf()
	return c != nil && now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore)/2))
}

// SignHello signs with the certificate's key.
func (d *Dir) SignHello(msg []byte) ([]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	sum := sha256.Sum256(msg)
	return d.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// VerifyHello checks what SignHello made.
func VerifyHello(c *x509.Certificate, msg, sig []byte) bool {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	sum := sha256.Sum256(msg)
	return ok && ecdsa.VerifyASN1(key, sum[:], sig)
}

// SPIFFE returns the SPIFFE ID of a certificate; empty when it has not exactly one (SPIFFE X509-SVID, 2).
func SPIFFE(c *x509.Certificate) string {
	if c == nil || len(c.URIs) != 1 || c.URIs[0].Scheme != "spiffe" {
		return ""
	}
	return c.URIs[0].String()
}

// certificate is the TLS form of the present certificate, empty before joining.
func (d *Dir) certificate() *tls.Certificate {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.leaf == nil {
		return &tls.Certificate{}
	}
	return &tls.Certificate{Certificate: d.bundle.Chain, PrivateKey: d.key, Leaf: d.leaf}
}

// ClientTLS connects to a peer whose SPIFFE ID the predicate accepts, presenting whatever certificate is present at the time.
// TLS between rotor's own parts is version 1.3 with X25519MLKEM768.
func (d *Dir) ClientTLS(accept func(spiffe string) bool) *tls.Config {
	c := d.base(accept)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.certificate(), nil }
	return c
}

// ServerTLS serves peers whose SPIFFE ID the predicate accepts.
func (d *Dir) ServerTLS(accept func(spiffe string) bool) *tls.Config {
	c := d.base(accept)
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.certificate(), nil }
	return c
}

func (d *Dir) base(accept func(string) bool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768},
		NextProtos:         []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // names are SPIFFE IDs, not hosts; VerifyConnection checks chain and ID
		VerifyConnection: func(s tls.ConnectionState) error {
			d.mu.RLock()
			ca := d.ca
			d.mu.RUnlock()
			return verifyPeer(s, ca, accept)
		},
	}
}

func verifyPeer(s tls.ConnectionState, ca *x509.Certificate, accept func(string) bool) error {
	if ca == nil || len(s.PeerCertificates) == 0 {
		return fault.New(fault.Unauthenticated, "peer")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	leaf := s.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fault.Wrap(fault.Unauthenticated, "peer", err)
	}
	if id := SPIFFE(leaf); id == "" || !accept(id) {
		return fault.New(fault.Unauthenticated, "peer "+id)
	}
	return nil
}

// JoinTLS connects to a server that is known only by the hash of its CA's certificate, from a join token.
func JoinTLS(caHash []byte, server string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768},
		NextProtos:         []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks the chain against the pinned hash
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, c := range s.PeerCertificates {
				if sum := sha256.Sum256(c.Raw); string(sum[:]) == string(caHash) {
					return verifyPeer(s, c, func(id string) bool { return id == server })
				}
			}
			return fault.New(fault.Unauthenticated, "server").WithHint("its CA is not the one that the join token names")
		},
	}
}

// HTTPClient talks to the cluster's server alone, by HTTP/2 over TLS as the directory's identity.
func (d *Dir) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   d.ClientTLS(d.isServer),
		ForceAttemptHTTP2: true,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}}
}

// ServerID is the SPIFFE ID that the cluster's server has.
func (d *Dir) ServerID() string {
	c := d.Leaf()
	if c == nil || len(c.URIs) != 1 {
		return ""
	}
	return "spiffe://" + c.URIs[0].Host + "/server"
}

func (d *Dir) isServer(id string) bool { return id != "" && id == d.ServerID() }

// PeerID is the SPIFFE ID of another instance of the cluster.
func (d *Dir) PeerID(instance string) string {
	c := d.Leaf()
	if c == nil || len(c.URIs) != 1 {
		return ""
	}
	return "spiffe://" + c.URIs[0].Host + "/instance/" + instance
}
