package identity

import (
	"bytes"
	"cmp"
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
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
)

const (
	bundleFile = "identity.json"
	lockFile   = "lock"
	maxBundle  = 1 << 20

	tempPattern = ".identity-*"
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
	Issuer    string   `json:"issuer,omitempty"` // host:port that the server calls itself; empty: Address
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
	switch err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(fault.New(fault.IdentityInUse, "identity "+path), lock.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock identity directory: %w", err), lock.Close())
	}
	d := &Dir{path: path, lock: lock}
	d.sweep()
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

// sweep removes what a crash in the middle of a save left. Only the holder of the lock may.
func (d *Dir) sweep() {
	left, _ := filepath.Glob(filepath.Join(d.path, tempPattern)) // the pattern is well formed
	for _, path := range left {
		_ = os.Remove(path) // the next save uses another name
	}
}

func (d *Dir) load() error {
	f, err := os.Open(filepath.Join(d.path, bundleFile))
	if errors.Is(err, fs.ErrNotExist) && d.lock != nil {
		return d.create()
	}
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fault.New(fault.Invalid, "identity "+d.path).WithHint("chmod 600 %s: others may use its private key now", bundleFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	defer clear(b)
	var n bundle
	if len(b) > maxBundle || json.Unmarshal(b, &n) != nil || n.Version != 1 {
		return fault.New(fault.Invalid, "identity "+d.path).WithHint("%s is damaged; restore it, or join anew in another directory", bundleFile)
	}
	p, err := d.parse(n)
	if err == nil {
		d.install(p)
	}
	return err
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
	p := parsed{bundle: bundle{Version: 1, Key: der}, key: key}
	if err := d.save(p.bundle); err != nil {
		return err
	}
	d.install(p)
	return nil
}

// parsed is a bundle that is consistent.
type parsed struct {
	bundle bundle
	key    *ecdsa.PrivateKey
	leaf   *x509.Certificate // nil before joining, like ca
	ca     *x509.Certificate
}

func (d *Dir) install(p parsed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bundle, d.key, d.leaf, d.ca = p.bundle, p.key, p.leaf, p.ca
}

// parse checks that a bundle belongs together: certificate and key, chain and CA.
func (d *Dir) parse(n bundle) (parsed, error) {
	bad := fault.New(fault.Invalid, "identity "+d.path)
	key, err := x509.ParsePKCS8PrivateKey(n.Key)
	p := parsed{bundle: n}
	var ok bool
	if p.key, ok = key.(*ecdsa.PrivateKey); err != nil || !ok {
		return p, bad.WithHint("its private key does not parse")
	}
	if len(n.Chain) == 0 {
		return p, nil
	}
	if p.leaf, err = x509.ParseCertificate(n.Chain[0]); err != nil {
		return p, bad.WithHint("its certificate does not parse")
	}
	if p.ca, err = x509.ParseCertificate(n.CA); err != nil {
		return p, bad.WithHint("its CA does not parse")
	}
	if !p.key.PublicKey.Equal(p.leaf.PublicKey) {
		return p, bad.WithHint("its certificate is for another key")
	}
	// At the start of its life, because an identity that is expired can still be renewed.
	if err := verifyChain(p.leaf, p.leaf.NotBefore, p.ca); err != nil || SPIFFE(p.leaf) == "" {
		return p, bad.WithHint("its certificate is not of its CA")
	}
	return p, nil
}

// save replaces the bundle atomically, and durably before it returns: a key that a power cut forgets after a join token was bound to
// it would be locked out.
func (d *Dir) save(n bundle) error {
	b, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	defer clear(b)
	tmp, err := os.CreateTemp(d.path, tempPattern) // mode 0600
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
	if err := syncDir(d.path); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
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

// Issuer is the host:port that the server calls itself in access tokens; the address may be another way to it.
func (d *Dir) Issuer() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return cmp.Or(d.bundle.Issuer, d.bundle.Address)
}

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

// Accept stores what a renewal answered, or what an administrator's certificate came with. What was pinned at join stays: an answer
// that has another CA, server key, cluster or SPIFFE ID is refused; a later certificate of the same CA is pinned instead. fault.Invalid.
func (d *Dir) Accept(g Grant, address string) error {
	d.mu.RLock()
	have := parsed{d.bundle, d.key, d.leaf, d.ca}
	d.mu.RUnlock()
	next, err := d.granted(have.bundle, g)
	if err != nil {
		return err
	}
	if have.leaf != nil {
		ca := later(have.ca, next.ca)
		same := ca != nil && bytes.Equal(have.bundle.ServerKey, g.ServerKey) && have.bundle.Cluster == g.Cluster
		if !same || SPIFFE(have.leaf) != SPIFFE(next.leaf) {
			return fault.New(fault.Invalid, "renewal").WithHint("it is not of the cluster or not for the identity that was joined")
		}
		next.bundle.CA, next.ca = ca.Raw, ca
	}
	next.bundle.Address = cmp.Or(address, next.bundle.Address)
	return d.keep(next)
}

// AcceptJoin stores what a join answered, if it is what the token promised: its CA, its SPIFFE ID. address is how the server was reached.
// fault.Invalid.
func (d *Dir) AcceptJoin(t JoinToken, g Grant, address string) error {
	d.mu.RLock()
	n := d.bundle
	d.mu.RUnlock()
	if sum := sha256.Sum256(g.CA); !bytes.Equal(sum[:], t.CA) {
		return fault.New(fault.Invalid, "join answer").WithHint("its CA is not the one that the join token names")
	}
	next, err := d.granted(n, g)
	if err != nil {
		return err
	}
	if SPIFFE(next.leaf) != t.SPIFFE {
		return fault.New(fault.Invalid, "join answer").WithHint("its certificate is not for the identity that the join token names")
	}
	next.bundle.Address = address
	next.bundle.Issuer, _, _ = strings.Cut(t.Address, ",") // the server that made the token
	return d.keep(next)
}

func (d *Dir) granted(n bundle, g Grant) (parsed, error) {
	n.Chain, n.CA, n.ServerKey, n.Cluster, n.Namespace = g.Chain, g.CA, g.ServerKey, g.Cluster, g.Namespace
	if len(n.Chain) == 0 || len(n.ServerKey) != ed25519.PublicKeySize || n.Cluster == "" {
		return parsed{}, fault.New(fault.Invalid, "certificate from the server")
	}
	return d.parse(n)
}

// keep stores first and uses then: what is used must survive a restart.
func (d *Dir) keep(p parsed) error {
	if err := d.save(p.bundle); err != nil {
		return err
	}
	d.install(p)
	return nil
}

// Expired says whether there is a certificate and it has ended: nothing but its renewal is possible.
func (d *Dir) Expired(now time.Time) bool {
	c := d.Leaf()
	return c != nil && now.After(c.NotAfter)
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
	leaf, roots := s.PeerCertificates[0], []*x509.Certificate{ca}
	if len(s.PeerCertificates) > 1 && Succeeds(ca, s.PeerCertificates[1]) {
		roots = append(roots, s.PeerCertificates[1])
	}
	if err := verifyChain(leaf, time.Time{}, roots...); err != nil {
		return fault.Wrap(fault.Unauthenticated, "peer", err)
	}
	switch id := SPIFFE(leaf); {
	case id != "" && accept(id):
		return nil
	case id != "" && id == SPIFFE(ca)+sealedPath:
		return fault.New(fault.Sealed, "server")
	default:
		return fault.New(fault.Unauthenticated, "peer "+id)
	}
}

// verifyChain checks a certificate against certificates of the cluster's CA at a time; zero: now.
func verifyChain(leaf *x509.Certificate, at time.Time, cas ...*x509.Certificate) error {
	roots := x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
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

// ServerID is the SPIFFE ID that the cluster's server has.
func (d *Dir) ServerID() string {
	c := d.Leaf()
	if c == nil || len(c.URIs) != 1 {
		return ""
	}
	return "spiffe://" + c.URIs[0].Host + "/server"
}

// sealedPath is the path of the SPIFFE ID of a server that is sealed.
const sealedPath = "/sealed"

// SealedID is the SPIFFE ID that the cluster's server has while it is sealed: whoever shows it gets shares and nothing else.
func (d *Dir) SealedID() string {
	id, ok := strings.CutSuffix(d.ServerID(), "/server")
	if !ok {
		return ""
	}
	return id + sealedPath
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
