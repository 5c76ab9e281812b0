package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// selfSign makes the authority's certificate, from a moment until caLife after now, and the record of it. keyID is that of an earlier
// certificate of the key, nil for the first.
func (a *Authority) selfSign(key *ecdsa.PrivateKey, from time.Time, keyID []byte) (der, record []byte, err error) {
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "rotor CA " + a.TrustDomain}, NotBefore: from, SubjectKeyId: keyID,
		NotAfter: a.Now().Add(caLife), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: a.TrustDomain}},
	}
	if der, err = x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key); err != nil {
		return nil, nil, fmt.Errorf("make CA certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode CA key: %w", err)
	}
	if record, err = json.Marshal(caRecord{der, pkcs8, a.TrustDomain}); err != nil {
		return nil, nil, fmt.Errorf("encode CA: %w", err)
	}
	return der, record, nil
}

// succeed gives the authority another certificate when less than half of a life is left, or nothing. Key, name and beginning stay, so that all
// that was signed under the old certificate is valid under the new one, and the other way round while the old one lasts: identities learn the new one at
// their next renewal, and trust it before if a peer presents it (identity.Succeeds).
func (a *Authority) succeed(ctx context.Context) error {
	return a.again(ctx, func() (store.Rev, error) {
		r, err := a.Guard.Get(ctx, caPath)
		if err != nil {
			return 0, err
		}
		if err := a.load(r.Value); err != nil || a.Now().Before(a.ca.NotAfter.Add(-caLife/2)) {
			return 0, err
		}
		der, value, err := a.selfSign(a.key, a.ca.NotBefore, a.ca.SubjectKeyId)
		if err != nil {
			return 0, err
		}
		sum := sha256.Sum256(der)
		p := a.Guard.System("authn", "ca.succeed", policy.Resource{})
		conds, writes := []guard.Cond{{Path: caPath, Rev: r.Rev}}, []guard.Write{{Path: caPath, Value: value}}
		rev, err := p.Commit(ctx, conds, writes, map[string]string{"sha256": hex.EncodeToString(sum[:])})
		if err != nil {
			return 0, err
		}
		return rev, a.load(value)
	})
}
