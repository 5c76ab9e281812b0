package transit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

func itoa(n int) string { return strconv.Itoa(n) }

// Export is what an export is of.
type Export string

// The exports, by the names that they have in paths.
const (
	ExportEncryption Export = "encryption-key"
	ExportSigning    Export = "signing-key"
	ExportHMAC       Export = "hmac-key"
	ExportPublic     Export = "public-key"
	ExportChain      Export = "certificate-chain"
)

// Check refuses an export that keys of an algorithm have not. fault.Invalid with a Refusal.
func (e Export) Check(a suite.Algorithm) error {
	switch {
	case !slices.Contains([]Export{ExportEncryption, ExportSigning, ExportHMAC, ExportPublic, ExportChain}, e):
		return refused(Refusal("invalid export type: " + string(e)))
	case e == ExportEncryption && !Encrypts(a):
		return refused("encryption not supported for the key")
	case e == ExportSigning && !Signs(a):
		return refused("signing not supported for the key")
	case e == ExportChain && !Signs(a):
		return refused("certificate chain not supported for keys that do not support signing")
	case e == ExportPublic && !Signs(a):
		return refused(Refusal("unknown key type " + TypeName(a) + " for export type " + string(e)))
	}
	return nil
}

// Releases says whether an export tells secrets.
func (e Export) Releases() bool { return e != ExportPublic && e != ExportChain }

// Export is the text of an export of the version, as Vault encodes it: raw keys and HMAC keys in base64, RSA in PKCS #1 (RFC 8017, A.1.2), ECDSA in
// SEC 1 (RFC 5915), both in PEM, Ed25519 seed and public half in base64, ML-DSA in PKCS #8 in PEM; empty where the public half alone is known.
// fault.Invalid with a Refusal.
func (k *Key) Export(e Export) (secret.Bytes, error) {
	if err := e.Check(k.algorithm); err != nil {
		return secret.Bytes{}, err
	}
	switch e {
	case ExportHMAC:
		return coded(k.mac.Reveal()), nil
	case ExportEncryption, ExportSigning:
		return k.exportKey()
	case ExportPublic:
		text, err := k.PublicText()
		if is(k.algorithm, classECDSA) {
			text = strings.TrimSpace(text)
		}
		return secret.Take([]byte(text)), err
	}
	return secret.Bytes{}, refused(Refusal("invalid export type: " + string(e)))
}

func coded(b []byte) secret.Bytes {
	return secret.Take(base64.StdEncoding.AppendEncode(nil, b))
}

func (k *Key) exportKey() (secret.Bytes, error) {
	if is(k.algorithm, classAEAD) {
		return coded(k.raw.Reveal()), nil
	}
	switch key := k.private.(type) {
	case nil:
		return secret.Bytes{}, nil
	case ed25519.PrivateKey:
		return coded(key), nil
	case *rsa.PrivateKey:
		return inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), nil
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return secret.Bytes{}, fault.Wrap(fault.Invalid, "key", err)
		}
		text := inPEM("EC PRIVATE KEY", der)
		return secret.Take([]byte(strings.TrimSpace(string(text.Reveal())))), nil
	}
	der, err := suite.EncodePrivate(k.algorithm, k.private)
	if err != nil {
		return secret.Bytes{}, err
	}
	return inPEM("PRIVATE KEY", der.Reveal()), nil
}

func inPEM(kind string, der []byte) secret.Bytes {
	return secret.Take(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// Portable is the key as importers wrap it: raw, or PKCS #8. fault.Invalid with a Refusal when the public half alone is known.
func (k *Key) Portable() (secret.Bytes, error) {
	if k.keyBytes > 0 {
		return secret.Copy(k.raw.Reveal()), nil
	}
	if k.private == nil {
		return secret.Bytes{}, refused(NoPrivate)
	}
	return suite.EncodePrivate(k.algorithm, k.private)
}

// PublicText is the public half as clients read it in key metadata: PEM, of Ed25519 base64. Of a derived key and of symmetric keys it is empty.
func (k *Key) PublicText() (string, error) {
	if k.public == nil || k.settings.Derived {
		return "", nil
	}
	der, err := suite.EncodePublic(k.algorithm, k.public)
	if err != nil {
		return "", err
	}
	return PublicText(k.algorithm, der)
}

// PublicText is the text of a public half in PKIX, as clients read it: PEM, of Ed25519 base64. fault.Invalid.
func PublicText(a suite.Algorithm, public []byte) (string, error) {
	key, err := suite.ParsePublic(a, public)
	if err != nil {
		return "", err
	}
	if raw, ok := key.(ed25519.PublicKey); ok {
		return base64.StdEncoding.EncodeToString(raw), nil
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	return text, nil
}

// ChainText is a chain of certificates in PEM. fault.Invalid with a Refusal for none.
func ChainText(chain [][]byte) (string, error) {
	if len(chain) == 0 {
		return "", refused("selected key version does not have a certificate chain imported")
	}
	var parts []string
	for _, der := range chain {
		parts = append(parts, strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))))
	}
	return strings.Join(parts, "\n"), nil
}

// parseExport reads the text of an export of a key back: raw, or PKCS #8. fault.Invalid with a Refusal.
func parseExport(a suite.Algorithm, text secret.Bytes) (secret.Bytes, error) {
	if text.Len() > maxText {
		return secret.Bytes{}, fault.New(fault.TooLarge, "exported key").WithHint("at most %d bytes", maxText)
	}
	bad := refused(Refusal("export is not of a key of type " + TypeName(a)))
	if Hashes(a) {
		block, _ := pem.Decode(text.Reveal())
		if block == nil {
			return secret.Bytes{}, bad
		}
		key, err := parseDER(block)
		if err != nil {
			return secret.Bytes{}, bad
		}
		return suite.EncodePrivate(a, key)
	}
	raw := make([]byte, base64.StdEncoding.DecodedLen(text.Len()))
	n, err := base64.StdEncoding.Decode(raw, text.Reveal())
	if err != nil || n == 0 {
		return secret.Bytes{}, bad
	}
	if a != suite.Ed25519 {
		return secret.Take(raw[:n]), nil
	}
	defer clear(raw)
	key, _, err := (&wireEntry{Key: raw[:n]}).ed25519(bad)
	return key, err
}

func parseDER(block *pem.Block) (crypto.Signer, error) {
	if block.Type == "RSA PRIVATE KEY" {
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

// Add puts a version into a backup that is put together from exports: its key and its HMAC key, in the texts of Export. fault.Invalid with a
// Refusal.
func (b *Backup) Add(number uint32, created time.Time, key, mac secret.Bytes) error {
	v := BackupVersion{Number: number, Created: created, Convergent: b.Settings.Convergent}
	raw, err := parseExport(b.Algorithm, key)
	if err != nil {
		return err
	}
	defer raw.Destroy()
	sum, err := parseExport(suite.HMAC, mac)
	if err != nil {
		return err
	}
	if b.Algorithm == suite.HMAC { // it has no other, and the bundle needs one
		sum, b.KeyBytes = secret.Random(suite.HMACKeySize), raw.Len()
	}
	defer sum.Destroy()
	if v.Bundle, v.Public, err = bundleOf(b.Algorithm, raw, sum); err != nil {
		return err
	}
	b.Versions = append(b.Versions, v)
	return nil
}
