package transit

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// wireEntry is a version in the JSON of a backup. Which fields it has depends on the type.
type wireEntry struct {
	Key        []byte    `json:"key"`
	HMACKey    []byte    `json:"hmac_key"`
	Time       time.Time `json:"time"`
	X          number    `json:"ec_x"`
	Y          number    `json:"ec_y"`
	D          number    `json:"ec_d"`
	RSA        *wireRSA  `json:"rsa_key"`
	RSAPublic  *wireRSA  `json:"rsa_public_key"`
	Public     string    `json:"public_key"`
	Convergent int       `json:"convergent_version"`
	Created    int64     `json:"creation_time"` // seconds since 1970
	Chain      [][]byte  `json:"certificate_chain"`
}

// wireRSA is a key of RSA as Go's JSON has it.
type wireRSA struct {
	N           number
	E           int
	D           number   `json:"D,omitzero"`
	Primes      []number `json:"Primes,omitempty"`
	Precomputed *wireCRT `json:"Precomputed,omitempty"`
}

// wireCRT is what makes it fast.
type wireCRT struct {
	Dp, Dq, Qinv number
	CRTValues    []struct{}
}

// number is a whole number of at most maxDigits digits, not negative; the zero value is null.
type number struct{ *big.Int }

// maxDigits are those of a modulus of 4096 bits.
const maxDigits = 1234

var errNumber = errors.New("transit: not a number")

// IsZero says whether there is none.
func (n number) IsZero() bool { return n.Int == nil }

// MarshalJSON writes the digits, or null.
func (n number) MarshalJSON() ([]byte, error) {
	if n.Int == nil {
		return []byte("null"), nil
	}
	return n.Append(nil, 10), nil
}

// UnmarshalJSON reads digits, or null.
func (n *number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		n.Int = nil
		return nil
	}
	if len(b) > maxDigits {
		return errNumber
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return errNumber
		}
	}
	v, ok := new(big.Int).SetString(string(b), 10)
	if !ok {
		return errNumber
	}
	n.Int = v
	return nil
}

var _ = json.Unmarshaler(&number{})

// empty says whether an entry stands for a version without material.
func (e *wireEntry) empty() bool {
	return len(e.Key) == 0 && len(e.HMACKey) == 0 && e.X.IsZero() && e.D.IsZero() && e.RSA == nil && e.RSAPublic == nil && e.Public == ""
}

// version reads an entry of a key. fault.Invalid with a Refusal.
func (e *wireEntry) version(b Backup, p *wirePolicy) (v BackupVersion, err error) {
	key, public, err := e.material(b.Algorithm)
	if err != nil {
		return v, err
	}
	mac := secret.Copy(e.HMACKey)
	switch {
	case b.Algorithm == suite.HMAC || mac.IsZero():
		mac = secret.Random(suite.HMACKeySize)
	case mac.Len() != suite.HMACKeySize:
		return v, refused("backup has an HMAC key of another length")
	}
	defer mac.Destroy()
	if key.IsZero() {
		v.Bundle, err = suite.Bundle(key, mac)
		v.Public = public
	} else {
		v.Bundle, v.Public, err = bundleOf(b.Algorithm, key, mac)
	}
	if err != nil {
		return v, err
	}
	v.Convergent, v.Created, v.Chain = p.convergent(e.Convergent), e.Time, e.Chain
	if v.Created.IsZero() && e.Created > 0 {
		v.Created = time.Unix(e.Created, 0).UTC()
	}
	s := b.Settings
	s.Convergent = v.Convergent
	return v, s.check(b.Algorithm)
}

// material is the key, raw or PKCS #8, and empty where the public half alone is known, in PKIX.
func (e *wireEntry) material(a suite.Algorithm) (key secret.Bytes, public []byte, err error) {
	bad := refused(Refusal("backup has a key that is not of type " + TypeName(a)))
	switch {
	case is(a, classAEAD, classMAC):
		if len(e.Key) == 0 {
			return key, nil, bad
		}
		return secret.Copy(e.Key), nil, nil
	case a == suite.Ed25519:
		return e.ed25519(bad)
	case is(a, classECDSA):
		return e.ecdsa(a, bad)
	case is(a, classRSA):
		return e.rsa(a, bad)
	}
	if len(e.Key) == 0 { // ML-DSA is in PKCS #8
		return key, nil, bad
	}
	return secret.Copy(e.Key), nil, nil
}

func (e *wireEntry) ed25519(bad error) (key secret.Bytes, public []byte, err error) {
	if len(e.Key) == 0 {
		raw, err := base64.StdEncoding.DecodeString(e.Public)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return key, nil, bad
		}
		public, err = suite.EncodePublic(suite.Ed25519, ed25519.PublicKey(raw))
		return key, public, err
	}
	if len(e.Key) != ed25519.PrivateKeySize {
		return key, nil, bad
	}
	k := ed25519.NewKeyFromSeed(e.Key[:ed25519.SeedSize])
	if !secret.Take(k).Equal(secret.Take(e.Key)) {
		return key, nil, bad
	}
	key, err = suite.EncodePrivate(suite.Ed25519, k)
	return key, nil, err
}

func curveOf(a suite.Algorithm) elliptic.Curve {
	switch a {
	case suite.ES384:
		return elliptic.P384()
	case suite.ES512:
		return elliptic.P521()
	}
	return elliptic.P256()
}

func (e *wireEntry) ecdsa(a suite.Algorithm, bad error) (key secret.Bytes, public []byte, err error) {
	c := curveOf(a)
	n := (c.Params().BitSize + 7) / 8
	if e.X.IsZero() || e.Y.IsZero() || e.X.BitLen() > 8*n || e.Y.BitLen() > 8*n || !e.D.IsZero() && e.D.BitLen() > 8*n {
		return key, nil, bad
	}
	point := make([]byte, 1+2*n)
	point[0] = 4 // uncompressed (SEC 1, 2.3.3)
	e.X.FillBytes(point[1 : 1+n])
	e.Y.FillBytes(point[1+n:])
	pk, err := ecdsa.ParseUncompressedPublicKey(c, point)
	if err != nil {
		return key, nil, bad
	}
	if public, err = suite.EncodePublic(a, pk); err != nil || e.D.IsZero() {
		return key, public, err
	}
	d := e.D.FillBytes(make([]byte, n))
	defer clear(d)
	k, err := ecdsa.ParseRawPrivateKey(c, d)
	if err != nil || !k.PublicKey.Equal(pk) {
		return key, nil, bad
	}
	key, err = suite.EncodePrivate(a, k)
	return key, nil, err
}

func (e *wireEntry) rsa(a suite.Algorithm, bad error) (key secret.Bytes, public []byte, err error) {
	w := e.RSA
	if w == nil {
		w = e.RSAPublic
	}
	if w == nil || w.N.IsZero() {
		return key, nil, bad
	}
	pk := rsa.PublicKey{N: w.N.Int, E: w.E}
	if public, err = suite.EncodePublic(a, &pk); err != nil {
		return key, nil, bad
	}
	if e.RSA == nil {
		return key, public, nil
	}
	if w.D.IsZero() || len(w.Primes) != 2 || w.Primes[0].IsZero() || w.Primes[1].IsZero() {
		return key, nil, bad
	}
	k := &rsa.PrivateKey{PublicKey: pk, D: w.D.Int, Primes: []*big.Int{w.Primes[0].Int, w.Primes[1].Int}}
	if k.Validate() != nil {
		return key, nil, bad
	}
	k.Precompute()
	key, err = suite.EncodePrivate(a, k)
	return key, nil, err
}

// entryOf writes a version as an entry. fault.Invalid.
func entryOf(a suite.Algorithm, v BackupVersion) (*wireEntry, error) {
	key, mac, err := suite.SplitBundle(v.Bundle)
	if err != nil {
		return nil, err
	}
	e := &wireEntry{HMACKey: mac.Reveal(), Time: v.Created, Created: v.Created.Unix(), Convergent: v.Convergent, Chain: v.Chain}
	if is(a, classAEAD, classMAC) {
		e.Key = key.Reveal()
		if a == suite.HMAC {
			e.HMACKey = e.Key // they are one in the engine
		}
		return e, nil
	}
	if key.IsZero() {
		public, err := suite.ParsePublic(a, v.Public)
		if err != nil {
			return nil, err
		}
		return e, e.setPublic(a, public)
	}
	private, err := suite.PrivateKey(a, key)
	if err != nil {
		return nil, err
	}
	switch k := private.(type) {
	case ed25519.PrivateKey:
		e.Key = k
	case *ecdsa.PrivateKey:
		d, err := k.Bytes()
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, "key", err)
		}
		e.D = number{new(big.Int).SetBytes(d)}
	case *rsa.PrivateKey:
		k.Precompute()
		e.RSA = &wireRSA{
			N: number{k.N}, E: k.E, D: number{k.D}, Primes: []number{{k.Primes[0]}, {k.Primes[1]}},
			Precomputed: &wireCRT{number{k.Precomputed.Dp}, number{k.Precomputed.Dq}, number{k.Precomputed.Qinv}, []struct{}{}},
		}
	default:
		e.Key = key.Reveal()
	}
	return e, e.setPublic(a, private.Public())
}

// setPublic writes the public half. fault.Invalid.
func (e *wireEntry) setPublic(a suite.Algorithm, public any) error {
	der, err := suite.EncodePublic(a, public)
	if err != nil {
		return err
	}
	switch k := public.(type) {
	case ed25519.PublicKey:
		e.Public = base64.StdEncoding.EncodeToString(k)
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return fault.Wrap(fault.Invalid, "key", err)
		}
		n := (len(point) - 1) / 2
		e.X, e.Y = number{new(big.Int).SetBytes(point[1 : 1+n])}, number{new(big.Int).SetBytes(point[1+n:])}
		e.Public = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	case *rsa.PublicKey:
		e.RSAPublic = &wireRSA{N: number{k.N}, E: k.E}
	default:
		e.Public = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	return nil
}
