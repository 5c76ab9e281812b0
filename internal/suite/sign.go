package suite

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"

	"filippo.io/mldsa"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// Signer signs whole messages; it is safe for concurrent use.
type Signer struct {
	spec Spec
	key  crypto.Signer
}

// NewSigner makes a signer from PKCS #8 material. fault.AlgorithmForbidden when the key is of another algorithm.
func NewSigner(a Algorithm, material secret.Bytes) (*Signer, error) {
	s, err := forPurpose(a, Sign)
	if err != nil {
		return nil, err
	}
	key, err := parseSigner(s, material)
	if err != nil {
		return nil, err
	}
	return &Signer{spec: s, key: key}, nil
}

// parseSigner is parsePrivate of keys that sign. fault.AlgorithmForbidden when it does not.
func parseSigner(s Spec, material secret.Bytes) (crypto.Signer, error) {
	parsed, err := parsePrivate(s, material)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fault.New(fault.AlgorithmForbidden, "private key for "+string(s.ID))
	}
	return key, nil
}

// Sign returns the signature of msg in the form that JWS uses (RFC 7518, 3; RFC 8037, 3.1); of ML-DSA that of FIPS 204, hedged, without a
// context.
func (s *Signer) Sign(msg []byte) ([]byte, error) {
	sig, err := s.sign(msg)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", s.spec.ID, err)
	}
	return sig, nil
}

func (s *Signer) sign(msg []byte) ([]byte, error) {
	switch key := s.key.(type) {
	case ed25519.PrivateKey, *mldsa.PrivateKey:
		return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
	case *rsa.PrivateKey:
		if s.spec.PSS() {
			return key.Sign(rand.Reader, s.spec.Digest(msg), s.spec.pssOptions())
		}
		return key.Sign(rand.Reader, s.spec.Digest(msg), s.spec.Hash)
	case *ecdsa.PrivateKey:
		r, v, err := ecdsa.Sign(rand.Reader, key, s.spec.Digest(msg))
		if err != nil {
			return nil, err
		}
		n := (key.Params().BitSize + 7) / 8
		sig := make([]byte, 2*n)
		r.FillBytes(sig[:n])
		v.FillBytes(sig[n:])
		return sig, nil
	}
	return nil, fault.New(fault.AlgorithmForbidden, "signature with "+string(s.spec.ID))
}

// Verify checks a signature against an encoded public key. ErrSignature when it does not match, fault.AlgorithmForbidden when the
// key is not one of the algorithm.
func Verify(a Algorithm, public, msg, sig []byte) error {
	s, err := forPurpose(a, Sign)
	if err != nil {
		return err
	}
	parsed, err := ParsePublic(a, public)
	if err != nil {
		return err
	}
	ok := false
	switch key := parsed.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, msg, sig)
	case *mldsa.PublicKey:
		ok = mldsa.Verify(key, msg, sig, nil) == nil
	case *rsa.PublicKey:
		if s.PSS() {
			ok = rsa.VerifyPSS(key, s.Hash, s.Digest(msg), sig, s.pssOptions()) == nil
		} else {
			ok = rsa.VerifyPKCS1v15(key, s.Hash, s.Digest(msg), sig) == nil
		}
	case *ecdsa.PublicKey:
		n := (key.Params().BitSize + 7) / 8
		if len(sig) == 2*n {
			ok = ecdsa.Verify(key, s.Digest(msg), new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
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
	s, err := forPurpose(a, MAC)
	if err != nil {
		return nil, err
	}
	h := hmac.New(s.Hash.New, material.Reveal())
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

// PSS says whether it is RSASSA-PSS.
func (s Spec) PSS() bool { return s.JWA == "PS256" || s.JWA == "PS512" }

// pssOptions are RFC 7518, 3.5: the salt is as long as the hash.
func (s Spec) pssOptions() *rsa.PSSOptions {
	return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.Hash}
}

// Digest is the hash of a message.
func (s Spec) Digest(msg []byte) []byte {
	h := s.Hash.New()
	h.Write(msg)
	return h.Sum(nil)
}
