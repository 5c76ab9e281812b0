package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"
)

// SealedLife is how long the certificate of a sealed server lasts.
const SealedLife = 365 * 24 * time.Hour

// SealedCertificate makes what a server shows while it is sealed and has no authority to ask: certificate and private key in PEM. Its ID is
// not the server's: it lasts longer and is kept in the clear, and nobody but who brings shares accepts it.
func (a *Authority) SealedCertificate(hosts ...string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of the sealed server: %w", err)
	}
	der, err := a.sign(&key.PublicKey, "/sealed", pkix.Name{}, SealedLife, hosts...)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of the sealed server: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.ca.Raw})...)
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...), nil
}
