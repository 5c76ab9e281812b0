package suite

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"filippo.io/mldsa"
	"filippo.io/mldsa/x509"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// generatePair makes a key pair: PKCS #8 (RFC 5958, RFC 9881) and PKIX (RFC 5280).
func generatePair(s Spec) (secret.Bytes, []byte, error) {
	key, err := newPair(s)
	if err != nil {
		return secret.Bytes{}, nil, fmt.Errorf("generate %s key: %w", s.ID, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Bytes{}, nil, fmt.Errorf("encode %s key: %w", s.ID, err)
	}
	public, err := EncodePublic(s.ID, key.Public())
	return secret.Take(der), public, err
}

func newPair(s Spec) (crypto.Signer, error) {
	if s.RSABits > 0 {
		return rsa.GenerateKey(rand.Reader, s.RSABits)
	}
	switch s.ID {
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case ES256, ES384, ES512:
		return ecdsa.GenerateKey(s.curve(), rand.Reader)
	case MLDSA44, MLDSA65, MLDSA87:
		return mldsa.GenerateKey(s.mldsa())
	}
	return nil, fault.New(fault.AlgorithmForbidden, "key pair for "+string(s.ID))
}

func (s Spec) curve() elliptic.Curve {
	switch s.ID {
	case ES256:
		return elliptic.P256()
	case ES384:
		return elliptic.P384()
	case ES512:
		return elliptic.P521()
	}
	return nil
}

func (s Spec) mldsa() mldsa.Parameters {
	switch s.ID {
	case MLDSA44:
		return mldsa.MLDSA44()
	case MLDSA65:
		return mldsa.MLDSA65()
	case MLDSA87:
		return mldsa.MLDSA87()
	}
	return mldsa.Parameters{}
}

// parsePrivate reads the private half of a pair and checks that it is whole and of the algorithm. fault.Invalid, AlgorithmForbidden.
func parsePrivate(s Spec, material secret.Bytes) (any, error) {
	key, err := x509.ParsePKCS8PrivateKey(material.Reveal())
	if err != nil {
		return nil, fault.New(fault.Invalid, "private key for "+string(s.ID)).WithHint("it is not PKCS #8")
	}
	pair, ok := key.(interface{ Public() crypto.PublicKey })
	if !ok || !s.fits(pair.Public()) {
		return nil, fault.New(fault.AlgorithmForbidden, "private key for "+string(s.ID))
	}
	return key, nil
}

// fits says whether a parsed public key is one of the algorithm, with its one size.
func (s Spec) fits(public any) bool {
	switch key := public.(type) {
	case ed25519.PublicKey:
		return s.ID == Ed25519 && len(key) == ed25519.PublicKeySize
	case *rsa.PublicKey:
		return s.RSABits > 0 && key.N != nil && key.N.BitLen() == s.RSABits && key.E >= 1<<16+1 && key.E&1 == 1
	case *ecdsa.PublicKey:
		return key.Curve != nil && s.curve() == key.Curve
	case *mldsa.PublicKey:
		return s.mldsa() != mldsa.Parameters{} && s.mldsa() == key.Parameters()
	}
	return false
}

// ParsePublic reads an encoded public key of an algorithm. fault.Invalid, AlgorithmForbidden when it is of another.
func ParsePublic(a Algorithm, public []byte) (any, error) {
	s, err := Lookup(a)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "public key for "+string(a), err)
	}
	if !s.fits(key) {
		return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	return key, nil
}

// EncodePublic is the inverse of ParsePublic: PKIX.
func EncodePublic(a Algorithm, key any) ([]byte, error) {
	s, err := Lookup(a)
	if err != nil {
		return nil, err
	}
	if !s.fits(key) {
		return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	return x509.MarshalPKIXPublicKey(key)
}
