package suite

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"filippo.io/mldsa"
	"filippo.io/mldsa/x509"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// generatePair makes a key pair: PKCS #8 (RFC 5958, 9881, 9935) and PKIX (RFC 5280), or the encodings of HPKE for hybrids.
func generatePair(s Spec) (secret.Bytes, []byte, error) {
	material, err := newMaterial(s)
	if err != nil {
		return secret.Bytes{}, nil, fmt.Errorf("generate %s key: %w", s.ID, err)
	}
	m := secret.Take(material)
	public, err := PublicOf(s.ID, m)
	return m, public, err
}

func newMaterial(s Spec) ([]byte, error) {
	switch {
	case s.hybrid():
		key, err := s.kem().GenerateKey()
		if err != nil {
			return nil, err
		}
		return key.Bytes()
	case s.mlkemOID() != nil:
		return s.marshalSeed(secret.Random(mlkem.SeedSize).Reveal())
	}
	key, err := newPair(s)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

func newPair(s Spec) (any, error) {
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
	case HPKEX25519:
		return ecdh.X25519().GenerateKey(rand.Reader)
	case HPKEP256:
		return ecdh.P256().GenerateKey(rand.Reader)
	}
	return nil, fault.New(fault.AlgorithmForbidden, "key pair for "+string(s.ID))
}

func (s Spec) curve() elliptic.Curve {
	switch s.ID {
	case ES256, HPKEP256:
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
	invalid := func(form string) error {
		return fault.New(fault.Invalid, "private key for "+string(s.ID)).WithHint("it is not %s", form)
	}
	switch {
	case s.hybrid():
		key, err := s.kem().NewPrivateKey(material.Reveal())
		if err != nil {
			return nil, invalid("the seed of 32 bytes that HPKE serializes")
		}
		return key, nil
	case s.mlkemOID() != nil:
		key, err := s.parseSeed(material.Reveal())
		if err != nil {
			return nil, invalid("PKCS #8 of this parameter set with the seed (RFC 9935)")
		}
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(material.Reveal())
	if err != nil {
		return nil, invalid("PKCS #8 in the clear (openssl pkcs8 -topk8 -nocrypt)")
	}
	if public, ok := publicOf(key); !ok || !s.fits(public) {
		return nil, fault.New(fault.AlgorithmForbidden, "private key for "+string(s.ID)).WithHint("it is a key of another algorithm or size: name its own with --algorithm (rotor key algorithms)")
	}
	return key, nil
}

// publicOf is the public half of what parsePrivate returns.
func publicOf(key any) (any, bool) {
	switch k := key.(type) {
	case *ecdh.PrivateKey:
		return k.PublicKey(), true
	case hpke.PrivateKey:
		return k.PublicKey(), true
	case *mlkem.DecapsulationKey768:
		return k.EncapsulationKey(), true
	case *mlkem.DecapsulationKey1024:
		return k.EncapsulationKey(), true
	case crypto.Signer:
		return k.Public(), true
	}
	return nil, false
}

// PublicOf checks the material of a version and returns the encoded public half of a pair, nil for symmetric algorithms. fault.Invalid,
// AlgorithmForbidden.
func PublicOf(a Algorithm, material secret.Bytes) ([]byte, error) {
	s, err := Lookup(a)
	if err != nil {
		return nil, err
	}
	if s.KeyBytes > 0 {
		return nil, s.checkLength(material.Len())
	}
	key, err := parsePrivate(s, material)
	if err != nil {
		return nil, err
	}
	public, _ := publicOf(key)
	return EncodePublic(a, public)
}

// checkLength refuses symmetric material of another length. fault.Invalid.
func (s Spec) checkLength(n int) error {
	switch {
	case s.KeyMax == 0 && n != s.KeyBytes:
		return fault.New(fault.Invalid, "key").WithHint("%s takes %d bytes", s.ID, s.KeyBytes)
	case s.KeyMax > 0 && (n < s.KeyBytes || n > s.KeyMax):
		return fault.New(fault.Invalid, "key").WithHint("%s takes %d to %d bytes", s.ID, s.KeyBytes, s.KeyMax)
	}
	return nil
}

// Normal returns the material of a private key as rotor keeps it: one encoding for each key, whatever forms it came in. Material of symmetric
// algorithms is copied. fault.Invalid, AlgorithmForbidden.
func Normal(a Algorithm, material secret.Bytes) (secret.Bytes, error) {
	s, err := Lookup(a)
	if err != nil {
		return secret.Bytes{}, err
	}
	if s.KeyBytes > 0 || s.hybrid() || s.mlkemOID() != nil {
		_, err := PublicOf(a, material)
		return secret.Copy(material.Reveal()), err
	}
	key, err := parsePrivate(s, material)
	if err != nil {
		return secret.Bytes{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Bytes{}, fault.New(fault.Invalid, "private key for "+string(a))
	}
	return secret.Take(der), nil
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
	case *ecdh.PublicKey:
		return s.ID == HPKEX25519 && key.Curve() == ecdh.X25519() || s.ID == HPKEP256 && key.Curve() == ecdh.P256()
	case *mldsa.PublicKey:
		return s.mldsa() != mldsa.Parameters{} && s.mldsa() == key.Parameters()
	case hpke.PublicKey:
		return s.hybrid() && key.KEM().ID() == s.kem().ID()
	case *mlkem.EncapsulationKey768:
		return s.ID == MLKEM768
	case *mlkem.EncapsulationKey1024:
		return s.ID == MLKEM1024
	}
	return false
}

// ParsePublic reads an encoded public key of an algorithm. fault.Invalid, AlgorithmForbidden when it is of another.
func ParsePublic(a Algorithm, public []byte) (any, error) {
	s, err := Lookup(a)
	if err != nil {
		return nil, err
	}
	var key any
	switch {
	case s.hybrid():
		key, err = s.kem().NewPublicKey(public)
	case s.mlkemOID() != nil:
		key, err = s.parseEncapsulation(public)
	default:
		key, err = x509.ParsePKIXPublicKey(public)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "public key for "+string(a), err)
	}
	if !s.fits(key) {
		return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	return key, nil
}

// EncodePublic is the inverse of ParsePublic: PKIX (RFC 5280), or the encoding of HPKE for hybrids. fault.AlgorithmForbidden.
func EncodePublic(a Algorithm, key any) ([]byte, error) {
	s, err := Lookup(a)
	if err != nil {
		return nil, err
	}
	if !s.fits(key) {
		return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(a))
	}
	switch k := key.(type) {
	case hpke.PublicKey:
		return bytes.Clone(k.Bytes()), nil
	case *mlkem.EncapsulationKey768:
		return s.marshalEncapsulation(k.Bytes())
	case *mlkem.EncapsulationKey1024:
		return s.marshalEncapsulation(k.Bytes())
	}
	return x509.MarshalPKIXPublicKey(key)
}
