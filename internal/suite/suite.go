// Package suite is the only place that names a cryptographic algorithm: what each is for, whether it may be used, and how it
// is constructed from key material. Material is raw bytes for symmetric algorithms and hybrid HPKE keys, and PKCS #8 for all other
// key pairs.
package suite

import (
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// Algorithm is the stable name of an algorithm, stored with every key version.
type Algorithm string

// Purpose is what a key is for. A key has one purpose for its life (SP 800-57 Part 1, 5.2).
type Purpose string

// The purposes.
const (
	Encrypt Purpose = "encrypt" // data: fields, messages, cache entries
	Wrap    Purpose = "wrap"    // the data keys of files
	Sign    Purpose = "sign"    // tokens and messages
	MAC     Purpose = "mac"     // message authentication

	Decrypt     Purpose = "decrypt"     // of a pair: what anybody encrypts with its public half
	Decapsulate Purpose = "decapsulate" // of a pair: shared secrets that anybody encapsulates with its public half

	// Transit is of a key that is used in several ways under one name, as clients of Vault's transit engine expect. SP 800-57 Part 1, 5.2 advises
	// against that, so it is a purpose of its own, which no key of another purpose ever takes.
	Transit Purpose = "transit"
)

// Purposes returns every purpose, in the order in which people read them.
func Purposes() []Purpose { return []Purpose{Encrypt, Wrap, Sign, MAC, Decrypt, Decapsulate, Transit} }

// Status says how far an algorithm may be used.
type Status string

// The statuses.
const (
	StatusDefault     Status = "default"      // chosen when nobody names one
	StatusAllowed     Status = "allowed"      // may be named
	StatusDecryptOnly Status = "decrypt-only" // existing versions process, new ones are refused
	StatusForbidden   Status = "forbidden"    // refused everywhere
)

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
	if p == Transit {
		return AES256GCM // what Vault takes (type aes256-gcm96)
	}
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
	if !slices.Contains(s.Purposes, p) || s.Status == StatusDecryptOnly || s.Status == StatusForbidden {
		return Spec{}, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" for "+string(p))
	}
	return s, nil
}

// Generate makes fresh material; public is the encoded public key of a pair (EncodePublic), nil for symmetric algorithms. For the purpose Transit
// there is GenerateTransit.
func Generate(a Algorithm) (material secret.Bytes, public []byte, err error) {
	s, err := Lookup(a)
	if err != nil {
		return secret.Bytes{}, nil, err
	}
	if s.KeyBytes > 0 {
		return secret.Random(s.KeyBytes), nil, nil
	}
	return generatePair(s)
}
