package suite

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

func generatePair(a Algorithm) (secret.Bytes, []byte, error) {
	var key crypto.Signer
	var err error
	switch a {
	case Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ES384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RS256:
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	default:
		err = fault.New(fault.AlgorithmForbidden, "key pair for "+string(a))
	}
	if err != nil {
		return secret.Bytes{}, nil, fmt.Errorf("generate %s key: %w", a, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Bytes{}, nil, fmt.Errorf("encode %s key: %w", a, err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	return secret.Take(der), public, err
}

// Signer signs whole messages; it is safe for concurrent use.
type Signer struct {
	alg Algorithm
	key crypto.Signer
}

// NewSigner makes a signer from PKCS #8 material.
func NewSigner(a Algorithm, material secret.Bytes) (*Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(material.Reveal())
	if err != nil {
		return nil, fmt.Errorf("parse %s key: %w", a, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok || !fits(a, key.Public()) {
		return nil, fault.New(fault.AlgorithmForbidden, "private key for "+string(a))
	}
	return &Signer{alg: a, key: key}, nil
}

// Sign returns the signature of msg in the form that JWS uses (RFC 7518, 3; RFC 8037, 3.1).
func (s *Signer) Sign(msg []byte) ([]byte, error) {
	switch s.alg {
	case Ed25519:
		return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
	case RS256:
		sum := sha256.Sum256(msg)
		return s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	key, ok := s.key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fault.New(fault.AlgorithmForbidden, "signature with "+string(s.alg))
	}
	r, v, err := ecdsa.Sign(rand.Reader, key, digest(s.alg, msg))
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", s.alg, err)
	}
	n := (key.Params().BitSize + 7) / 8
	sig := make([]byte, 2*n)
	r.FillBytes(sig[:n])
	v.FillBytes(sig[n:])
	return sig, nil
}

// Verify checks a signature against a PKIX public key. ErrSignature when it does not match, fault.AlgorithmForbidden when the
// key is not one of the algorithm.
func Verify(a Algorithm, public, msg, sig []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return fmt.Errorf("parse %s public key: %w", a, err)
	}
	if !fits(a, parsed) {
		return fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	ok := false
	switch key := parsed.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, msg, sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, digest(a, msg), sig) == nil
	case *ecdsa.PublicKey:
		n := (key.Params().BitSize + 7) / 8
		if len(sig) == 2*n {
			ok = ecdsa.Verify(key, digest(a, msg), new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
		}
	}
	if !ok {
		return ErrSignature
	}
	return nil
}

// ErrSignature is the one error for a signature or tag that does not match.
var ErrSignature = fault.New(fault.TokenInvalid, "signature")

// Tag returns the message authentication code of msg.
func Tag(a Algorithm, material secret.Bytes, msg []byte) ([]byte, error) {
	if a != HMACSHA256 {
		return nil, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" as MAC")
	}
	h := hmac.New(sha256.New, material.Reveal())
	h.Write(msg)
	return h.Sum(nil), nil
}

// VerifyTag compares in constant time. ErrSignature.
func VerifyTag(a Algorithm, material secret.Bytes, msg, tag []byte) error {
	want, err := Tag(a, material, msg)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, tag) {
		return ErrSignature
	}
	return nil
}

func fits(a Algorithm, public any) bool {
	switch key := public.(type) {
	case ed25519.PublicKey:
		return a == Ed25519 && len(key) == ed25519.PublicKeySize
	case *rsa.PublicKey:
		return a == RS256 && key.N != nil && key.N.BitLen() >= 2048 && key.N.BitLen() <= 8192
	case *ecdsa.PublicKey:
		return a == ES256 && key.Curve == elliptic.P256() || a == ES384 && key.Curve == elliptic.P384()
	}
	return false
}

func digest(a Algorithm, msg []byte) []byte {
	if a == ES384 {
		sum := sha512.Sum384(msg)
		return sum[:]
	}
	sum := sha256.Sum256(msg)
	return sum[:]
}

// ParsePublic reads a PKIX public key of an algorithm. fault.AlgorithmForbidden when it is of another.
func ParsePublic(a Algorithm, public []byte) (any, error) {
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("parse %s public key: %w", a, err)
	}
	if !fits(a, key) {
		return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	return key, nil
}

// EncodePublic is the inverse of ParsePublic.
func EncodePublic(a Algorithm, key any) ([]byte, error) {
	if !fits(a, key) {
		return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	return x509.MarshalPKIXPublicKey(key)
}
