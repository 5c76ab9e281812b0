package transit

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// WrappingAlgorithm is that of the key that imports are wrapped with.
const WrappingAlgorithm = suite.RSA4096

const (
	ephemeralKey = 32       // bytes of the AES key between RSA and the key
	maxText      = 64 << 10 // bytes of a wrapped key, a public key, a request for a certificate
)

// Unwrap opens what an importer wrapped: an AES-256 key under RSAES-OAEP with a hash and no label, then the key under AES-KWP (RFC 5649) with it; in
// base64. private is the wrapping key in PKCS #8. fault.Invalid for what cannot be such a blob, DecryptFailed whatever else is wrong.
func Unwrap(private secret.Bytes, blob string, h Hash) (secret.Bytes, error) {
	signer, err := suite.PrivateKey(WrappingAlgorithm, private)
	if err != nil {
		return secret.Bytes{}, err
	}
	key, ok := signer.(*rsa.PrivateKey)
	if !ok || h == 0 {
		return secret.Bytes{}, fault.New(fault.Invalid, "wrapping key")
	}
	if len(blob) > maxText {
		return secret.Bytes{}, fault.New(fault.TooLarge, "ciphertext").WithHint("at most %d bytes", maxText)
	}
	b, err := base64.StdEncoding.DecodeString(blob)
	if err != nil {
		return secret.Bytes{}, refused(Refusal(err.Error()))
	}
	if len(b) <= key.Size() {
		return secret.Bytes{}, refused("provided ciphertext is too short")
	}
	failed := fault.Wrap(fault.DecryptFailed, "ciphertext", WrongRSA)
	ephemeral, err := rsa.DecryptOAEP(crypto.Hash(h).New(), nil, key, b[:key.Size()], nil)
	if err != nil || len(ephemeral) != ephemeralKey {
		return secret.Bytes{}, failed
	}
	kek := secret.Take(ephemeral)
	defer kek.Destroy()
	out, err := suite.UnwrapKWP(kek, b[key.Size():])
	if err != nil {
		return secret.Bytes{}, failed
	}
	return out, nil
}

// Wrap is what an importer does: it wraps a key, raw or PKCS #8, for the holder of an RSA key, which is public in PKIX. fault.Invalid.
func Wrap(public []byte, key secret.Bytes, h Hash) (string, error) {
	parsed, err := x509.ParsePKIXPublicKey(public)
	to, ok := parsed.(*rsa.PublicKey)
	if err != nil || !ok || h == 0 {
		return "", refused("unsupported key type in use; must be a rsa key")
	}
	kek := secret.Random(ephemeralKey)
	defer kek.Destroy()
	front, err := rsa.EncryptOAEP(crypto.Hash(h).New(), rand.Reader, to, kek.Reveal(), nil)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, "wrapping key", err)
	}
	back, err := suite.WrapKWP(kek, key)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(append(front, back...)), nil
}

// Import makes a bundle of a key that came in, raw or PKCS #8, with a fresh HMAC key, and returns its public half in PKIX. fault.Invalid with a
// Refusal.
func Import(a suite.Algorithm, key secret.Bytes) (bundle secret.Bytes, public []byte, err error) {
	if _, err := lookup(a); err != nil {
		return bundle, nil, err
	}
	mac := secret.Random(suite.HMACKeySize)
	defer mac.Destroy()
	return bundleOf(a, key, mac)
}

// bundleOf joins a foreign key with an HMAC key. fault.Invalid with a Refusal.
func bundleOf(a suite.Algorithm, key, mac secret.Bytes) (bundle secret.Bytes, public []byte, err error) {
	if !is(a, classAEAD, classMAC) {
		key = plainRSA(key)
	}
	normal, err := suite.Normal(a, key)
	if err != nil {
		return bundle, nil, badKey(a, key, err)
	}
	defer normal.Destroy()
	if public, err = suite.PublicOf(a, normal); err != nil {
		return bundle, nil, badKey(a, key, err)
	}
	bundle, err = suite.Bundle(normal, mac)
	return bundle, public, err
}

func badKey(a suite.Algorithm, key secret.Bytes, err error) error {
	text := Refusal("error parsing asymmetric key")
	if is(a, classAEAD, classMAC) {
		text = Refusal("invalid key size " + itoa(key.Len()) + " bytes for key type " + TypeName(a))
	} else if fault.CodeOf(err) == fault.AlgorithmForbidden {
		text = Refusal("invalid key type: expected " + TypeName(a))
	}
	return fault.Wrap(fault.Invalid, "key", text)
}

var (
	oidRSA = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}  // rsaEncryption (RFC 8017, A.1)
	oidPSS = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10} // id-RSASSA-PSS (RFC 8017, A.2.3)
)

// plainRSA is a PKCS #8 key of RSA that is marked for PSS alone, as some tools make them, under the OID that the library knows. All else is returned
// as it is.
func plainRSA(key secret.Bytes) secret.Bytes {
	var k struct {
		Version   int
		Algorithm struct {
			OID        asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		Key []byte
	}
	if rest, err := asn1.Unmarshal(key.Reveal(), &k); err != nil || len(rest) > 0 || !k.Algorithm.OID.Equal(oidPSS) {
		return key
	}
	k.Algorithm.OID, k.Algorithm.Parameters = oidRSA, asn1.NullRawValue
	der, err := asn1.Marshal(k)
	if err != nil {
		return key
	}
	return secret.Take(der)
}

// ImportPublic reads a public key in PEM (PKIX) and returns it in PKIX. fault.Invalid with a Refusal.
func ImportPublic(a suite.Algorithm, text []byte) ([]byte, error) {
	if !importsPublic(a) {
		return nil, refused("provided type does not support public_key import")
	}
	if len(text) > maxText {
		return nil, fault.New(fault.TooLarge, "public key").WithHint("at most %d bytes", maxText)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, refused("error parsing public key: not in PEM format")
	}
	key, err := suite.ParsePublic(a, block.Bytes)
	if err != nil {
		return nil, refused(Refusal("error parsing public key: expected " + TypeName(a)))
	}
	return suite.EncodePublic(a, key)
}

// ImportPublicOnly makes the bundle of a version whose public half alone is known.
func ImportPublicOnly() (secret.Bytes, error) {
	mac := secret.Random(suite.HMACKeySize)
	defer mac.Destroy()
	return suite.Bundle(secret.Bytes{}, mac)
}

// AddPrivate makes the bundle of a version whose public half alone was known, once its key came in. It keeps the HMAC key. fault.Invalid with a
// Refusal.
func AddPrivate(a suite.Algorithm, bundle secret.Bytes, public []byte, key secret.Bytes) (secret.Bytes, error) {
	old, mac, err := suite.SplitBundle(bundle)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer mac.Destroy()
	if !old.IsZero() {
		return secret.Bytes{}, refused("private key imported, key version cannot be updated")
	}
	next, found, err := bundleOf(a, key, mac)
	if err != nil {
		return secret.Bytes{}, err
	}
	if !bytes.Equal(found, public) {
		next.Destroy()
		return secret.Bytes{}, refused("cannot import key, key pair does not match")
	}
	return next, nil
}
