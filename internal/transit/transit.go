// Package transit is the cryptography of Vault's transit engine, bit by bit, so that what was made there is read here and the other way round:
// the text forms of ciphertext, signatures and HMACs, derived and convergent keys, imports, exports and backups. It is pure: it keeps nothing and
// asks nobody, and which key and version a caller may use is decided elsewhere. Constructions are named after HashiCorp's documentation of the
// engine (https://developer.hashicorp.com/vault/docs/secrets/transit) and tried against a real server.
package transit

import (
	"crypto"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha256"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Settings are what all uses of a version depend on.
type Settings struct {
	Derived    bool // each context has a key of its own
	Counter    bool // by HMAC-SHA256 in counter mode (SP 800-108; Vault's kdf 0), as the oldest keys are; else by HKDF-SHA256 (RFC 5869)
	Convergent int  // version of the convergent construction, 1 to 3; 0: nonces are random. New versions take ConvergentVersion
}

// ConvergentVersion is the construction that new convergent versions take.
const ConvergentVersion = 3

// Key is one version, prepared for use. It is safe for concurrent use.
type Key struct {
	algorithm suite.Algorithm
	keyBytes  int // of symmetric ones, as suite.Spec has it; 0 for pairs
	nonce     int // of AEADs, in bytes
	number    uint32
	settings  Settings
	raw       secret.Bytes // symmetric, HMAC: the key
	mac       secret.Bytes // key of HMACs
	prk       secret.Bytes // derived: HKDF's pseudorandom key
	input     secret.Bytes // derived: what counter mode derives from
	aead      cipher.AEAD  // neither derived nor a pair
	private   crypto.Signer
	public    crypto.PublicKey // of a pair
}

// New prepares a version. public is its public half in PKIX, needed where the bundle has no key, because the public half alone is known.
// fault.Invalid, AlgorithmForbidden.
func New(a suite.Algorithm, number uint32, bundle secret.Bytes, public []byte, settings Settings) (*Key, error) {
	spec, err := lookup(a)
	if err != nil {
		return nil, err
	}
	if err := settings.check(a); err != nil {
		return nil, err
	}
	key, mac, err := suite.SplitBundle(bundle)
	if err != nil {
		return nil, err
	}
	k := &Key{algorithm: spec.ID, keyBytes: spec.KeyBytes, nonce: spec.Nonce, number: number, settings: settings, mac: mac}
	if spec.KeyBytes > 0 {
		err = k.symmetric(key)
	} else {
		err = k.pair(key, public)
	}
	if err != nil {
		return nil, err
	}
	if a == suite.HMAC {
		k.mac = key // Vault's HMAC keys have no other
	}
	return k, nil
}

func lookup(a suite.Algorithm) (suite.Spec, error) {
	if _, err := typeOf(a); err != nil {
		return suite.Spec{}, err
	}
	return suite.Lookup(a)
}

// check refuses settings that an algorithm has no construction for. fault.Invalid.
func (s Settings) check(a suite.Algorithm) error {
	switch {
	case s.Derived && !Derives(a):
		return refused(Refusal("key derivation and convergent encryption not supported for keys of type " + TypeName(a)))
	case s.Convergent != 0 && (!s.Derived || a == suite.Ed25519):
		return refused("convergent encryption requires derivation to be enabled")
	case s.Convergent < 0 || s.Convergent > ConvergentVersion, s.Counter && (s.Convergent == ConvergentVersion || a == suite.Ed25519):
		return refused("unhandled convergent version or key derivation mode")
	}
	return nil
}

func (k *Key) symmetric(key secret.Bytes) (err error) {
	if _, err := suite.PublicOf(k.algorithm, key); err != nil {
		return err
	}
	k.raw = key
	switch {
	case k.settings.Derived:
		return k.deriveFrom(key)
	case k.nonce > 0:
		k.aead, err = suite.NewAEAD(k.algorithm, key)
	}
	return err
}

func (k *Key) pair(key secret.Bytes, public []byte) (err error) {
	if key.IsZero() {
		if k.settings.Derived {
			return refused("requested version for signing does not contain a private part")
		}
		k.public, err = suite.ParsePublic(k.algorithm, public)
		return err
	}
	if k.private, err = suite.PrivateKey(k.algorithm, key); err != nil {
		return err
	}
	k.public = k.private.Public()
	if seed, ok := k.private.(ed25519.PrivateKey); ok && k.settings.Derived {
		return k.deriveFrom(secret.Copy(seed)) // Vault takes all 64 bytes, seed and public half, as the key of the derivation
	}
	return nil
}

func (k *Key) deriveFrom(key secret.Bytes) error {
	k.input = key
	prk, err := hkdf.Extract(sha256.New, key.Reveal(), nil)
	if err != nil {
		return fault.Wrap(fault.Invalid, "key", err)
	}
	k.prk = secret.Take(prk)
	return nil
}

// Number is the version's.
func (k *Key) Number() uint32 { return k.number }

// HasPrivate says whether more than the public half is known; true for symmetric keys.
func (k *Key) HasPrivate() bool { return k.keyBytes > 0 || k.private != nil }

// Destroy overwrites the secrets. The key must not be used after it.
func (k *Key) Destroy() {
	for _, s := range []secret.Bytes{k.raw, k.mac, k.prk, k.input} {
		s.Destroy()
	}
	k.aead, k.private = nil, nil
}

func (k *Key) rsa() (*rsa.PrivateKey, *rsa.PublicKey) {
	private, _ := k.private.(*rsa.PrivateKey)
	public, _ := k.public.(*rsa.PublicKey)
	return private, public
}

func (k *Key) ecdsa() (*ecdsa.PrivateKey, *ecdsa.PublicKey) {
	private, _ := k.private.(*ecdsa.PrivateKey)
	public, _ := k.public.(*ecdsa.PublicKey)
	return private, public
}
