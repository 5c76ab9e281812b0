package transit

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// SignOptions say how a message is signed, and verified again.
type SignOptions struct {
	Hash       Hash // RSA and ECDSA; the zero value is none, which RSASSA-PKCS1-v1_5 of what is hashed takes alone
	Prehashed  bool // the input is the hash of the message; Ed25519: the SHA-512 of Ed25519ph
	Padding    string
	Salt       int // of PSS: SaltAuto, SaltHash, or a length in bytes
	Marshaling Marshaling
	Context    []byte // of a derived Ed25519 key
	Signature  []byte // context of Ed25519ctx, Ed25519ph (RFC 8032, 5.1), at most 255 bytes
}

// Lengths of the salt of PSS.
const (
	SaltAuto = rsa.PSSSaltLengthAuto       // as long as fits; any when verifying
	SaltHash = rsa.PSSSaltLengthEqualsHash // as long as the hash
)

// ParseSalt reads a length of salt: auto, hash or a number of bytes; empty is auto. fault.Invalid.
func ParseSalt(s string) (int, error) {
	switch strings.ToLower(s) {
	case "", "auto":
		return SaltAuto, nil
	case "hash":
		return SaltHash, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, refused(Refusal("salt length neither 'auto', 'hash', nor an int: " + s))
	}
	if n < SaltHash {
		return 0, refused(Refusal("salt length is invalid: " + strconv.Itoa(n)))
	}
	return n, nil
}

// check refuses options that fit no key of an algorithm. fault.Invalid.
func (o SignOptions) check(a suite.Algorithm) error {
	if err := CanSign(a); err != nil {
		return err
	}
	switch {
	case o.Padding != "" && o.Padding != "pss" && o.Padding != "pkcs1v15":
		return refused(Refusal("unsupported rsa signature algorithm " + o.Padding))
	case Hashes(a) && o.Hash == 0 && (!o.Prehashed || o.Padding != "pkcs1v15"):
		return refused(NoHashRSA)
	case !Hashes(a) && a != suite.Ed25519 && o.Prehashed:
		return refused(Refusal("prehashed input is not supported for key type " + TypeName(a)))
	case a == suite.Ed25519 && o.Prehashed && crypto.Hash(o.Hash) != crypto.SHA512:
		return refused("prehashed input of ed25519 is that of Ed25519ph: it needs hash_algorithm=sha2-512")
	case a != suite.Ed25519 && len(o.Signature) > 0, len(o.Signature) > 255:
		return refused("signature_context is of ed25519 keys, and has at most 255 bytes")
	}
	return nil
}

// digest is what is signed. fault.Invalid.
func (o SignOptions) digest(a suite.Algorithm, input []byte) ([]byte, error) {
	switch {
	case a == suite.Ed25519 && o.Prehashed && len(input) != crypto.SHA512.Size(),
		is(a, classRSA) && o.Prehashed && o.Hash != 0 && len(input) != crypto.Hash(o.Hash).Size():
		return nil, refused("crypto/rsa: input must be hashed message")
	case Hashes(a) && !o.Prehashed:
		return o.Hash.Sum(input), nil
	case is(a, classECDSA) && len(input) == 0:
		return nil, refused("input must be hashed message")
	}
	return input, nil
}

// Sign returns the text of a signature, and of a derived key the public half (32 bytes), which nobody else knows. fault.Invalid with a Refusal.
func (k *Key) Sign(input []byte, o SignOptions) (text string, public []byte, err error) {
	if err := o.check(k.algorithm); err != nil {
		return "", nil, err
	}
	digest, err := o.digest(k.algorithm, input)
	if err != nil {
		return "", nil, err
	}
	if k.private == nil {
		return "", nil, refused(NoPrivate)
	}
	var sig []byte
	switch key := k.private.(type) {
	case ed25519.PrivateKey:
		if k.settings.Derived {
			if key, err = k.deriveEd25519(o.Context); err != nil {
				return "", nil, err
			}
			public = publicHalf(key)
		}
		sig, err = key.Sign(nil, digest, o.ed25519())
	case *ecdsa.PrivateKey:
		sig, err = signECDSA(key, digest, o.Marshaling)
	case *rsa.PrivateKey:
		sig, err = signRSA(key, digest, o)
	default:
		sig, err = key.Sign(rand.Reader, digest, crypto.Hash(0)) // ML-DSA, hedged (FIPS 204, 5.2)
	}
	if err != nil {
		return "", nil, err
	}
	return formatSignature(k.number, sig, o.Marshaling), public, nil
}

func (o SignOptions) ed25519() *ed25519.Options {
	e := &ed25519.Options{Context: string(o.Signature)}
	if o.Prehashed {
		e.Hash = crypto.SHA512
	}
	return e
}

func (k *Key) deriveEd25519(context []byte) (ed25519.PrivateKey, error) {
	seed, err := k.derive(context, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	defer seed.Destroy()
	return ed25519.NewKeyFromSeed(seed.Reveal()), nil
}

// publicHalf is the public half of a private key: its last bytes (RFC 8032, 5.1.5, as the library keeps them).
func publicHalf(key ed25519.PrivateKey) ed25519.PublicKey {
	return ed25519.PublicKey(bytes.Clone(key[ed25519.SeedSize:]))
}

// ecdsaSignature is ECDSA-Sig-Value (RFC 3279, 2.2.3).
type ecdsaSignature struct{ R, S *big.Int }

func signECDSA(key *ecdsa.PrivateKey, digest []byte, m Marshaling) ([]byte, error) {
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest)
	if err != nil || m == ASN1 {
		return sig, err
	}
	var v ecdsaSignature
	if _, err := asn1.Unmarshal(sig, &v); err != nil {
		return nil, fmt.Errorf("read signature: %w", err)
	}
	n := (key.Params().BitSize + 7) / 8
	out := make([]byte, 2*n)
	v.R.FillBytes(out[:n])
	v.S.FillBytes(out[n:])
	return out, nil
}

func signRSA(key *rsa.PrivateKey, digest []byte, o SignOptions) ([]byte, error) {
	h := crypto.Hash(o.Hash)
	if o.Padding == "pkcs1v15" {
		sig, err := rsa.SignPKCS1v15(nil, key, h, digest)
		if err != nil {
			return nil, refused(Refusal(err.Error()))
		}
		return sig, nil
	}
	if err := o.checkSalt(&key.PublicKey); err != nil {
		return nil, err
	}
	return rsa.SignPSS(rand.Reader, key, h, digest, &rsa.PSSOptions{SaltLength: o.Salt})
}

// checkSalt refuses a salt that does not fit (RFC 8017, 9.1.1). fault.Invalid.
func (o SignOptions) checkSalt(key *rsa.PublicKey) error {
	if o.Salt < SaltHash || o.Salt > (key.N.BitLen()-1+7)/8-2-crypto.Hash(o.Hash).Size() {
		return refused(Refusal(fmt.Sprintf("requested salt length %d is invalid", o.Salt)))
	}
	return nil
}

// Verify says whether the body that ParseSignature found is a signature of the input. fault.Invalid with a Refusal when that cannot be said.
func (k *Key) Verify(input, sig []byte, o SignOptions) (bool, error) {
	if err := o.check(k.algorithm); err != nil {
		return false, err
	}
	digest, err := o.digest(k.algorithm, input)
	if err != nil {
		return false, err
	}
	switch key := k.public.(type) {
	case ed25519.PublicKey:
		if k.settings.Derived {
			private, err := k.deriveEd25519(o.Context)
			if err != nil {
				return false, err
			}
			key = publicHalf(private)
		}
		return ed25519.VerifyWithOptions(key, digest, sig, o.ed25519()) == nil, nil
	case *ecdsa.PublicKey:
		return verifyECDSA(key, digest, sig, o.Marshaling)
	case *rsa.PublicKey:
		if o.Padding == "pkcs1v15" {
			return rsa.VerifyPKCS1v15(key, crypto.Hash(o.Hash), digest, sig) == nil, nil
		}
		if err := o.checkSalt(key); err != nil {
			return false, err
		}
		return rsa.VerifyPSS(key, crypto.Hash(o.Hash), digest, sig, &rsa.PSSOptions{SaltLength: o.Salt}) == nil, nil
	}
	public, err := suite.EncodePublic(k.algorithm, k.public)
	if err != nil {
		return false, err
	}
	return suite.Verify(k.algorithm, public, digest, sig) == nil, nil
}

func verifyECDSA(key *ecdsa.PublicKey, digest, sig []byte, m Marshaling) (bool, error) {
	var v ecdsaSignature
	if m == JWS {
		n := (key.Params().BitSize + 7) / 8
		if len(sig) != 2*n {
			return false, nil
		}
		v = ecdsaSignature{new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])}
	} else {
		rest, err := asn1.Unmarshal(sig, &v)
		if err != nil {
			return false, refused("supplied signature is invalid")
		}
		if len(rest) > 0 {
			return false, refused("supplied signature contains extra data")
		}
	}
	return ecdsa.Verify(key, digest, v.R, v.S), nil
}

// HMAC makes the text of an HMAC (RFC 2104) under the version's HMAC key, whose hash the caller names. fault.Invalid.
func (k *Key) HMAC(h Hash, input []byte) (string, error) {
	sum, err := k.hmac(h, input)
	if err != nil {
		return "", err
	}
	return Format(k.number, sum), nil
}

func (k *Key) hmac(h Hash, input []byte) ([]byte, error) {
	if h == 0 {
		return nil, refused(`unsupported algorithm "none"`)
	}
	w := hmac.New(crypto.Hash(h).New, k.mac.Reveal())
	w.Write(input)
	return w.Sum(nil), nil
}

// VerifyHMAC says whether the body that ParseHMAC found is the HMAC of the input, in constant time. fault.Invalid.
func (k *Key) VerifyHMAC(h Hash, input, sum []byte) (bool, error) {
	want, err := k.hmac(h, input)
	return err == nil && hmac.Equal(want, sum), err
}

// Agree makes the first n bytes of the secret that the version shares with a peer's key (SEC 1, 3.3.1: the x-coordinate), which comes as PKIX in PEM
// and is of the same curve. fault.Invalid.
func (k *Key) Agree(peer []byte, n int) (secret.Bytes, error) {
	private, _ := k.ecdsa()
	if private == nil {
		return secret.Bytes{}, refused(Refusal("base key type " + TypeName(k.algorithm) + " does not support key agreement"))
	}
	own, err := private.ECDH()
	if err != nil {
		return secret.Bytes{}, fault.Wrap(fault.Invalid, "key", err)
	}
	der, err := ImportPublic(k.algorithm, peer)
	if err != nil {
		return secret.Bytes{}, err
	}
	parsed, err := suite.ParsePublic(k.algorithm, der)
	if err != nil {
		return secret.Bytes{}, err
	}
	var other *ecdh.PublicKey
	if p, ok := parsed.(*ecdsa.PublicKey); ok {
		other, err = p.ECDH()
	}
	if err != nil || other == nil {
		return secret.Bytes{}, fault.Wrap(fault.Invalid, "peer public key", err)
	}
	shared, err := own.ECDH(other)
	if err != nil || n > len(shared) {
		return secret.Bytes{}, fault.New(fault.Invalid, "peer public key")
	}
	return secret.Take(shared[:n]), nil
}
