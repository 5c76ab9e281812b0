package transit

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
)

const (
	maxChainText = 256 << 10 // bytes of a chain of certificates
	maxChain     = 16        // certificates in it
)

// Request makes a request for a certificate (PKCS #10, RFC 2986) of the version, in PEM. template is another in PEM, of which the subject and the
// extensions are taken; empty: an empty one. fault.Invalid with a Refusal.
func (k *Key) Request(template string) (string, error) {
	if err := k.certifies(); err != nil {
		return "", err
	}
	if k.private == nil {
		return "", refused("private key not imported for key version selected")
	}
	if len(template) > maxText {
		return "", fault.New(fault.TooLarge, "csr").WithHint("at most %d bytes", maxText)
	}
	t := &x509.CertificateRequest{}
	if template != "" {
		block, _ := pem.Decode([]byte(template))
		if block == nil {
			return "", refused("could not decode PEM certificate request")
		}
		parsed, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return "", refused(Refusal(err.Error()))
		}
		t = &x509.CertificateRequest{
			RawSubject: parsed.RawSubject, Subject: parsed.Subject, ExtraExtensions: parsed.Extensions,
			DNSNames: parsed.DNSNames, EmailAddresses: parsed.EmailAddresses, IPAddresses: parsed.IPAddresses, URIs: parsed.URIs,
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, k.private)
	if err != nil {
		return "", refused(Refusal("could not create the csr: " + err.Error()))
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// certifies refuses keys that no certificate can be of. fault.Invalid.
func (k *Key) certifies() error {
	switch {
	case !importsPublic(k.algorithm):
		return refused(Refusal("key type " + TypeName(k.algorithm) + " does not support signing"))
	case k.settings.Derived:
		return refused("operation not supported on keys with derivation enabled")
	}
	return nil
}

// Chain reads a chain of certificates in PEM, the version's own first, checks that its own is of the version's key and the others are of
// authorities, and returns them in DER. Signatures and dates are not checked: a chain is kept for its readers. fault.Invalid with a Refusal.
func (k *Key) Chain(text string) ([][]byte, error) {
	if err := k.certifies(); err != nil {
		return nil, err
	}
	if len(text) > maxChainText {
		return nil, fault.New(fault.TooLarge, "certificate_chain").WithHint("at most %d bytes", maxChainText)
	}
	chain, err := parseChain(text)
	if err != nil {
		return nil, err
	}
	if chain[0].BasicConstraintsValid && chain[0].IsCA {
		return nil, refused("certificate in the first position is not a leaf certificate")
	}
	for _, c := range chain[1:] {
		if c.BasicConstraintsValid && !c.IsCA {
			return nil, refused("provided certificate chain contains more than one leaf certificate")
		}
	}
	if !k.owns(chain[0].PublicKey) {
		return nil, refused("leaf certificate public key does match the key version selected") // the words are Vault's: it means that it does not
	}
	var out [][]byte
	for _, c := range chain {
		out = append(out, c.Raw)
	}
	return out, nil
}

func parseChain(text string) (chain []*x509.Certificate, err error) {
	for rest := []byte(strings.TrimSpace(text)); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, refused("could not decode PEM block in certificate chain")
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if len(chain) == maxChain {
			return nil, fault.New(fault.TooLarge, "certificate_chain").WithHint("at most %d certificates", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, refused(Refusal("failed to parse certificate in certificate chain: " + err.Error()))
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, refused("provided certificate chain did not contain any valid PEM certificate")
	}
	return chain, nil
}

func (k *Key) owns(public any) bool {
	switch key := k.public.(type) {
	case *rsa.PublicKey:
		return key.Equal(public)
	case *ecdsa.PublicKey:
		return key.Equal(public)
	case ed25519.PublicKey:
		return key.Equal(public)
	}
	return false
}
