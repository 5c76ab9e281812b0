package suite

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// forPurpose finds the row of an algorithm that is for a purpose. fault.AlgorithmForbidden.
func forPurpose(a Algorithm, p Purpose) (Spec, error) {
	s, err := Lookup(a)
	if err == nil && !slices.Contains(s.Purposes, p) {
		err = fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" for "+string(p))
	}
	return s, err
}

// kem is the KEM of an HPKE algorithm (RFC 9180, draft-ietf-hpke-pq); nil for all others.
func (s Spec) kem() hpke.KEM {
	switch s.ID {
	case HPKEX25519:
		return hpke.DHKEM(ecdh.X25519())
	case HPKEP256:
		return hpke.DHKEM(ecdh.P256())
	case HPKEXWing:
		return hpke.MLKEM768X25519()
	case HPKEMLKEM768P256:
		return hpke.MLKEM768P256()
	}
	return nil
}

// hybrid says whether keys of the algorithm have no PKIX form yet, so that they are kept in the encoding of HPKE.
func (s Spec) hybrid() bool { return s.ID == HPKEXWing || s.ID == HPKEMLKEM768P256 }

// EncryptTo encrypts for the holder of the private half, in the form of the standard: HPKE base mode with data as its info, HKDF-SHA256 and
// AES-256-GCM, encapsulated key first; RSAES-OAEP with data as its label. fault.TooLarge for what RSA cannot hold, Invalid, AlgorithmForbidden.
func EncryptTo(a Algorithm, public, plaintext, data []byte) ([]byte, error) {
	s, err := forPurpose(a, Decrypt)
	if err != nil {
		return nil, err
	}
	key, err := ParsePublic(a, public)
	if err != nil {
		return nil, err
	}
	if pk, ok := key.(*rsa.PublicKey); ok {
		if n := s.RSABits/8 - 2*s.Hash.Size() - 2; len(plaintext) > n {
			return nil, fault.New(fault.TooLarge, "plaintext").WithHint("%s holds at most %d bytes", a, n)
		}
		return rsa.EncryptOAEP(s.Hash.New(), rand.Reader, pk, plaintext, data)
	}
	pk, err := s.hpkePublic(key)
	if err != nil {
		return nil, err
	}
	out, err := hpke.Seal(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), data, plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypt with %s: %w", a, err)
	}
	return out, nil
}

func (s Spec) hpkePublic(key any) (hpke.PublicKey, error) {
	switch k := key.(type) {
	case hpke.PublicKey:
		return k, nil
	case *ecdh.PublicKey:
		return hpke.NewDHKEMPublicKey(k)
	case *ecdsa.PublicKey:
		e, err := k.ECDH()
		if err != nil {
			return nil, err
		}
		return hpke.NewDHKEMPublicKey(e)
	}
	return nil, fault.New(fault.AlgorithmForbidden, "public key for "+string(s.ID))
}

// Decrypter decrypts what EncryptTo made; it is safe for concurrent use.
type Decrypter struct {
	spec Spec
	rsa  *rsa.PrivateKey
	hpke hpke.PrivateKey
}

// NewDecrypter makes a decrypter from the material of a pair. fault.AlgorithmForbidden, Invalid.
func NewDecrypter(a Algorithm, material secret.Bytes) (*Decrypter, error) {
	s, err := forPurpose(a, Decrypt)
	if err != nil {
		return nil, err
	}
	key, err := parsePrivate(s, material)
	if err != nil {
		return nil, err
	}
	d := &Decrypter{spec: s}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		d.rsa = k
	case hpke.PrivateKey:
		d.hpke = k
	case *ecdh.PrivateKey:
		d.hpke, err = hpke.NewDHKEMPrivateKey(k)
	case *ecdsa.PrivateKey:
		var e *ecdh.PrivateKey
		if e, err = k.ECDH(); err == nil {
			d.hpke, err = hpke.NewDHKEMPrivateKey(e)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("prepare %s key: %w", a, err)
	}
	return d, nil
}

// Decrypt opens a ciphertext. fault.DecryptFailed, whatever the cause.
func (d *Decrypter) Decrypt(ciphertext, data []byte) (out []byte, err error) {
	if d.rsa != nil {
		out, err = d.rsa.Decrypt(nil, ciphertext, &rsa.OAEPOptions{Hash: d.spec.Hash, Label: data})
	} else {
		out, err = hpke.Open(d.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), data, ciphertext)
	}
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, "ciphertext")
	}
	return out, nil
}

// Encapsulate makes a shared secret of 32 bytes and its encapsulation for the holder of the private half (FIPS 203). fault.Invalid,
// AlgorithmForbidden.
func Encapsulate(a Algorithm, public []byte) (shared secret.Bytes, ciphertext []byte, err error) {
	if _, err := forPurpose(a, Decapsulate); err != nil {
		return shared, nil, err
	}
	key, err := ParsePublic(a, public)
	if err != nil {
		return shared, nil, err
	}
	var k []byte
	switch pk := key.(type) {
	case *mlkem.EncapsulationKey768:
		k, ciphertext = pk.Encapsulate()
	case *mlkem.EncapsulationKey1024:
		k, ciphertext = pk.Encapsulate()
	}
	return secret.Take(k), ciphertext, nil
}

// Decapsulator finds the secrets that Encapsulate made; it is safe for concurrent use.
type Decapsulator struct {
	key interface {
		Decapsulate(ciphertext []byte) ([]byte, error)
	}
}

// NewDecapsulator makes a decapsulator from the material of a pair. fault.AlgorithmForbidden, Invalid.
func NewDecapsulator(a Algorithm, material secret.Bytes) (*Decapsulator, error) {
	s, err := forPurpose(a, Decapsulate)
	if err != nil {
		return nil, err
	}
	key, err := parsePrivate(s, material)
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *mlkem.DecapsulationKey768:
		return &Decapsulator{k}, nil
	case *mlkem.DecapsulationKey1024:
		return &Decapsulator{k}, nil
	}
	return nil, fault.New(fault.AlgorithmForbidden, "private key for "+string(a))
}

// Decapsulate returns the shared secret. A ciphertext of the right length always gives one: of a wrong ciphertext it is a secret that nobody
// knows (FIPS 203, 6.3, implicit rejection). fault.DecryptFailed for a wrong length.
func (d *Decapsulator) Decapsulate(ciphertext []byte) (secret.Bytes, error) {
	k, err := d.key.Decapsulate(ciphertext)
	if err != nil {
		return secret.Bytes{}, fault.New(fault.DecryptFailed, "ciphertext")
	}
	return secret.Take(k), nil
}
