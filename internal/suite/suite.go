// Package suite is the only place that names a cryptographic algorithm: what each is for, whether it may be used, and how it
// is constructed from key material. Material is raw bytes for symmetric algorithms and PKCS #8 for key pairs.
package suite

import (
	"crypto/cipher"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// Algorithm is the stable name of an algorithm, stored with every key version.
type Algorithm string

// The algorithms.
const (
	XAES256GCM Algorithm = "XAES-256-GCM" // C2SP XAES-256-GCM: 32-byte key, 24-byte random nonce, 16-byte tag
	HMACSHA256 Algorithm = "HMAC-SHA256"  // RFC 2104 with FIPS 180-4: 32-byte key and tag
	Ed25519    Algorithm = "Ed25519"      // RFC 8032; JWS "EdDSA" (RFC 8037)
	ES256      Algorithm = "ES256"        // ECDSA P-256, SHA-256, r||s (RFC 7518, 3.4)
	ES384      Algorithm = "ES384"        // ECDSA P-384, SHA-384, r||s (RFC 7518, 3.4)
	RS256      Algorithm = "RS256"        // RSASSA-PKCS1-v1_5, SHA-256, 3072 bits (RFC 7518, 3.3); for verifiers that know no other
)

// Purpose is what a key is for. A key has one purpose for its life (SP 800-57 Part 1, 5.2).
type Purpose string

// The purposes.
const (
	Encrypt Purpose = "encrypt" // data: fields, messages, cache entries
	Wrap    Purpose = "wrap"    // the data keys of files
	Sign    Purpose = "sign"    // tokens and messages
	MAC     Purpose = "mac"     // message authentication
)

// Status says how far an algorithm may be used.
type Status string

// The statuses.
const (
	StatusDefault   Status = "default"   // chosen when nobody names one
	StatusAllowed   Status = "allowed"   // may be named
	StatusLegacy    Status = "legacy"    // existing versions process, new ones are refused
	StatusForbidden Status = "forbidden" // refused everywhere
)

// Spec is one row of the table.
type Spec struct {
	ID       Algorithm
	Purposes []Purpose
	Status   Status
	FIPS     bool   // approved by FIPS 140-3 as used here
	Bits     int    // security strength (SP 800-57 Part 1, 5.6.1)
	JWA      string // the JWS "alg" value (RFC 7518, RFC 8037); empty: not for tokens
	KeyBytes int    // length of symmetric material; 0 for key pairs
}

var table = []Spec{
	{XAES256GCM, []Purpose{Encrypt, Wrap}, StatusDefault, true, 256, "", 32},
	{HMACSHA256, []Purpose{MAC}, StatusDefault, true, 256, "", 32},
	{Ed25519, []Purpose{Sign}, StatusDefault, true, 128, "EdDSA", 0},
	{ES256, []Purpose{Sign}, StatusAllowed, true, 128, "ES256", 0},
	{ES384, []Purpose{Sign}, StatusAllowed, true, 192, "ES384", 0},
	{RS256, []Purpose{Sign}, StatusAllowed, true, 128, "RS256", 0},
}

// All returns the table.
func All() []Spec { return slices.Clone(table) }

// Lookup finds a row. fault.AlgorithmForbidden when there is none.
func Lookup(a Algorithm) (Spec, error) {
	for _, s := range table {
		if s.ID == a {
			return s, nil
		}
	}
	return Spec{}, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a))
}

// Default is the algorithm for a purpose when nobody names one; empty for an unknown purpose.
func Default(p Purpose) Algorithm {
	for _, s := range table {
		if s.Status == StatusDefault && slices.Contains(s.Purposes, p) {
			return s.ID
		}
	}
	return ""
}

// ForPurpose returns the row if new versions of a key with this purpose may use the algorithm. fault.AlgorithmForbidden.
func ForPurpose(a Algorithm, p Purpose) (Spec, error) {
	s, err := Lookup(a)
	if err != nil {
		return s, err
	}
	if !slices.Contains(s.Purposes, p) || s.Status == StatusLegacy || s.Status == StatusForbidden {
		return Spec{}, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" for "+string(p))
	}
	return s, nil
}

// Generate makes fresh material; public is the PKIX (RFC 5280) public key of a pair, nil for symmetric algorithms.
func Generate(a Algorithm) (material secret.Bytes, public []byte, err error) {
	s, err := Lookup(a)
	if err != nil {
		return secret.Bytes{}, nil, err
	}
	if s.KeyBytes > 0 {
		return secret.Random(s.KeyBytes), nil, nil
	}
	return generatePair(a)
}

// NewAEAD makes the AEAD of an encrypt or wrap version. It is safe for concurrent use.
func NewAEAD(a Algorithm, material secret.Bytes) (cipher.AEAD, error) {
	if a != XAES256GCM {
		return nil, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" as AEAD")
	}
	return NewXAES(material)
}
