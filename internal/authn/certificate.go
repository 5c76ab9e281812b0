package authn

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// Bounds of files with certificates and of what they name.
const (
	maxPEM     = 16 << 20
	maxAnchors = 64
	maxSubject = 512
	maxChain   = 8
)

// CAConfig says whose client certificates are taken. Name and CAFile must be set.
type CAConfig struct {
	Name     string   // of the authority in callers' names
	CAFile   string   // PEM: the roots
	CRLFile  string   // PEM or DER: lists of revoked certificates (RFC 5280, 5); empty: none are asked for
	Match    []string // patterns of the SPIFFE ID, or of the subject as RFC 2253 writes it, one of which fits; empty: any
	Identity string   // "spiffe" (default) names callers by their SPIFFE ID, "subject" by the subject
}

// ClientCA is an authority whose client certificates name callers. Safe for concurrent use.
type ClientCA struct {
	CAConfig
	state atomic.Pointer[caFiles]

	mu     sync.Mutex // guards what follows
	seen   [2]time.Time
	looked time.Time
}

// lookEvery is how often the files of an authority are looked at, at most.
const lookEvery = 30 * time.Second

// look reads the files again when they have changed; wrong ones are passed over until they change again, which with an old list is a refusal.
func (a *ClientCA) look(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.looked.IsZero() && now.Sub(a.looked) < lookEvery && !now.Before(a.looked) {
		return
	}
	first := a.looked.IsZero()
	a.looked = now
	var seen [2]time.Time
	for i, path := range []string{a.CAFile, a.CRLFile} {
		if info, err := os.Stat(path); path != "" && err == nil {
			seen[i] = info.ModTime()
		}
	}
	if seen != a.seen && !first {
		_ = a.Reload() // see above
	}
	a.seen = seen
}

// caFiles is what the files hold, replaced as a whole.
type caFiles struct {
	roots *x509.CertPool
	lists []*x509.RevocationList
}

// NewClientCA reads an authority's files. fault.Invalid, NotFound.
func NewClientCA(c CAConfig) (*ClientCA, error) {
	if c.Identity == "" {
		c.Identity = "spiffe"
	}
	if !keyring.ValidName(c.Name) || c.Identity != "spiffe" && c.Identity != "subject" || slices.Contains(c.Match, "") {
		return nil, fault.New(fault.Invalid, "authority "+c.Name).WithHint("it needs a name of lower-case letters, and identity is spiffe or subject")
	}
	a := &ClientCA{CAConfig: c}
	return a, a.Reload()
}

// Reload reads the files again; what was read before stays when they are wrong.
func (a *ClientCA) Reload() error {
	b, err := readBounded(a.CAFile)
	if err != nil {
		return err
	}
	roots, n, err := parseAnchors(b)
	if err != nil || n == 0 || n > maxAnchors {
		return fault.New(fault.Invalid, a.CAFile).WithHint("it must hold 1 to %d certificates of authorities in PEM", maxAnchors)
	}
	next := &caFiles{roots: roots}
	if a.CRLFile != "" {
		if b, err = readBounded(a.CRLFile); err != nil {
			return err
		}
		if next.lists, err = parseLists(b); err != nil {
			return fault.Wrap(fault.Invalid, a.CRLFile, err)
		}
	}
	a.state.Store(next)
	return nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, path, err)
	}
	if info.Size() > maxPEM {
		return nil, fault.New(fault.TooLarge, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// parseAnchors reads certificates of authorities.
func parseAnchors(b []byte) (*x509.CertPool, int, error) {
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return pool, n, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !c.IsCA {
			return nil, 0, fault.New(fault.Invalid, "certificate of an authority")
		}
		pool.AddCert(c)
		n++
	}
}

// parseLists reads revocation lists, one or more in PEM, or one in DER.
func parseLists(b []byte) ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	if l, err := x509.ParseRevocationList(b); err == nil {
		return []*x509.RevocationList{l}, nil
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse revocation list: %w", err)
		}
		out = append(out, l)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "revocation list")
	}
	return out, nil
}

// Identify names the caller that a chain of certificates is of. fault.Unauthenticated.
func (a *ClientCA) Identify(chain []*x509.Certificate, now time.Time, own string) (policy.Caller, error) {
	nobody := func(why string) (policy.Caller, error) {
		return policy.Caller{}, fault.New(fault.Unauthenticated, "caller").WithHint("%s", why)
	}
	if len(chain) == 0 || len(chain) > maxChain {
		return nobody("present a certificate")
	}
	a.look(now)
	leaf, files := chain[0], a.state.Load()
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	verified, err := leaf.Verify(x509.VerifyOptions{
		Roots: files.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil || leaf.IsCA {
		return nobody("the certificate is expired or of an authority that is not configured")
	}
	if a.CRLFile != "" && !slices.ContainsFunc(verified, func(c []*x509.Certificate) bool { return files.valid(c, now) }) {
		return nobody("the certificate is revoked, or there is no valid revocation list of its authority")
	}
	id, why := a.identity(leaf, own)
	if why != "" {
		return nobody(why)
	}
	return policy.Caller{Kind: policy.KindCertificate, Name: "certificate/" + a.Name + "/" + id, Attributes: subjectAttributes(leaf, own)}, nil
}

// valid says whether each certificate of a chain but the root is on no list, and a list of its issuer is there and in time (RFC 5280, 6.3).
func (f *caFiles) valid(chain []*x509.Certificate, now time.Time) bool {
	for i, c := range chain[:len(chain)-1] {
		good := false
		for _, l := range f.lists {
			if string(l.RawIssuer) != string(c.RawIssuer) || l.CheckSignatureFrom(chain[i+1]) != nil {
				continue
			}
			if now.Before(l.ThisUpdate) || l.NextUpdate.IsZero() || !now.Before(l.NextUpdate) || partial(l) {
				continue
			}
			if slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 }) {
				return false
			}
			good = true
		}
		if !good {
			return false
		}
	}
	return true
}

// revoked says whether a list has a serial number, whoever's it is: a session that was made of a certificate knows no more of it.
func (a *ClientCA) revoked(serial string) bool {
	return slices.ContainsFunc(a.state.Load().lists, func(l *x509.RevocationList) bool {
		return slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Text(16) == serial })
	})
}

// partial says whether a list has a critical extension, as one has that does not speak of all certificates (RFC 5280, 5.2).
func partial(l *x509.RevocationList) bool {
	return slices.ContainsFunc(l.Extensions, func(e pkix.Extension) bool { return e.Critical })
}

// identity is what names the caller of a leaf, or why there is nothing.
func (a *ClientCA) identity(leaf *x509.Certificate, own string) (id, why string) {
	if a.Identity == "spiffe" {
		id = spiffeID(leaf, own)
		if id == "" {
			return "", "the certificate has no SPIFFE ID, more than one, or one of this cluster's own trust domain"
		}
	} else {
		id = leaf.Subject.String()
	}
	switch {
	case id == "" || len(id) > maxSubject || strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xFFFD }):
		return "", "the certificate's subject is empty, too long or no printable text"
	case len(a.Match) > 0 && !slices.ContainsFunc(a.Match, func(p string) bool { return policy.Match(p, id) }):
		return "", "the authority's configuration does not take this certificate"
	}
	return id, ""
}

// spiffeID is the one SPIFFE ID of a certificate, if it is of a foreign trust domain (SPIFFE-ID, 2).
func spiffeID(leaf *x509.Certificate, own string) string {
	if len(leaf.URIs) != 1 {
		return ""
	}
	u := leaf.URIs[0]
	plain := url.URL{Scheme: "spiffe", Host: u.Host, Path: u.Path}
	if u.Scheme != "spiffe" || u.Host == "" || strings.EqualFold(u.Host, own) || u.Path == "" || u.Path == "/" || u.String() != plain.String() {
		return ""
	}
	return u.String()
}

// subjectAttributes are the parts of a certificate that it has once, without a SPIFFE ID of this cluster's own trust domain, which no other authority gives.
func subjectAttributes(leaf *x509.Certificate, own string) map[string]string {
	out := map[string]string{"serial": leaf.SerialNumber.Text(16)}
	sum := sha256.Sum256(leaf.Raw)
	out["fingerprint"] = hex.EncodeToString(sum[:])
	for name, all := range map[string][]string{
		"common_name": {leaf.Subject.CommonName}, "organization": leaf.Subject.Organization, "organizational_unit": leaf.Subject.OrganizationalUnit, "dns": leaf.DNSNames,
	} {
		if len(all) == 1 && all[0] != "" && len(all[0]) <= maxAttribute {
			out[name] = strings.ToValidUTF8(all[0], "\uFFFD")
		}
	}
	if id := spiffeID(leaf, own); id != "" && len(id) <= maxAttribute {
		out["spiffe_id"] = id
	}
	return out
}
