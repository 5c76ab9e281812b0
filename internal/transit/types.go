package transit

import (
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// class is what the keys of a type are, which decides what they can do.
type class byte

const (
	classAEAD  class = iota + 1 // symmetric, encrypts
	classMAC                    // HMAC alone
	classRSA                    // a pair that encrypts and signs
	classECDSA                  // a pair that signs, and agrees on secrets (ECDH)
	classEdDSA
	classMLDSA
)

// keyType is a row of Vault's key types.
type keyType struct {
	algorithm suite.Algorithm
	class     class
	name      string
	number    int    // in backups
	set       string // parameter set of ml-dsa
	second    string // a second spelling
}

// types lists them. Numbers of backups are Vault's (sdk/helper/keysutil of 1.14: 10 is a managed key, 11 HMAC). xchacha20-poly1305 is OpenBao's alone, where it
// is 11, and HMAC is 10 (wirePolicy.algorithm).
var types = []keyType{
	{algorithm: suite.AES256GCM, class: classAEAD, name: "aes256-gcm96", number: 0},
	{algorithm: suite.ES256, class: classECDSA, name: "ecdsa-p256", number: 1},
	{algorithm: suite.Ed25519, class: classEdDSA, name: "ed25519", number: 2},
	{algorithm: suite.RSA2048, class: classRSA, name: "rsa-2048", number: 3},
	{algorithm: suite.RSA4096, class: classRSA, name: "rsa-4096", number: 4},
	{algorithm: suite.ChaCha20Poly1305, class: classAEAD, name: "chacha20-poly1305", number: 5},
	{algorithm: suite.ES384, class: classECDSA, name: "ecdsa-p384", number: 6},
	{algorithm: suite.ES512, class: classECDSA, name: "ecdsa-p521", number: 7},
	{algorithm: suite.AES128GCM, class: classAEAD, name: "aes128-gcm96", number: 8},
	{algorithm: suite.RSA3072, class: classRSA, name: "rsa-3072", number: 9},
	{algorithm: suite.HMAC, class: classMAC, name: "hmac", number: 11},
	{algorithm: suite.XChaCha20Poly1305, class: classAEAD, name: "xchacha20-poly1305", number: 11},
	{algorithm: suite.MLDSA44, class: classMLDSA, name: "ml-dsa", number: 14, set: "44", second: "mldsa-44"},
	{algorithm: suite.MLDSA65, class: classMLDSA, name: "ml-dsa", number: 14, set: "65", second: "mldsa-65"},
	{algorithm: suite.MLDSA87, class: classMLDSA, name: "ml-dsa", number: 14, set: "87", second: "mldsa-87"},
}

func typeOf(a suite.Algorithm) (keyType, error) {
	for _, t := range types {
		if t.algorithm == a {
			return t, nil
		}
	}
	return keyType{}, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" for "+string(suite.Transit))
}

// ParseType finds the algorithm of a type's name and, of ml-dsa, its parameter set ("44", "65" or "87"). spelling is the name where it is not the
// usual one, to be shown again. fault.Invalid.
func ParseType(name, set string) (a suite.Algorithm, spelling string, err error) {
	name = strings.ToLower(name)
	for _, t := range types {
		switch {
		case t.second != "" && name == t.second:
			return t.algorithm, name, nil
		case t.name == name && t.set == "":
			return t.algorithm, "", nil
		case t.name == name && t.set == set:
			return t.algorithm, "", nil
		}
	}
	if name == "ml-dsa" {
		return "", "", refused(Refusal("invalid parameter set " + set + " for key type " + name))
	}
	return "", "", refused(Refusal("unknown key type " + name))
}

// TypeName is the usual name of an algorithm's type; empty when clients have none for it.
func TypeName(a suite.Algorithm) string {
	t, err := typeOf(a)
	if err != nil {
		return ""
	}
	return t.name
}

// Describe returns the name of a type as its creator spelled it, and the parameter set of ml-dsa, which has none under its other spelling.
func Describe(a suite.Algorithm, spelling string) (name, set string) {
	t, err := typeOf(a)
	if err != nil {
		return "", ""
	}
	if spelling != "" && spelling == t.second {
		return t.second, ""
	}
	return t.name, t.set
}

// Types lists the names, with both spellings, for documentation.
func Types() (names []string) {
	seen := map[string]bool{}
	for _, t := range types {
		for _, n := range []string{t.name, t.second} {
			if n != "" && !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
		}
	}
	return names
}

// classes are the rows' classes by algorithm.
var classes = func() map[suite.Algorithm]class {
	out := map[suite.Algorithm]class{}
	for _, t := range types {
		out[t.algorithm] = t.class
	}
	return out
}()

// is says whether keys of an algorithm are of one of some classes; none of an algorithm that has no type.
func is(a suite.Algorithm, some ...class) bool {
	return slices.Contains(some, classes[a])
}

// Encrypts says whether keys of an algorithm encrypt and decrypt.
func Encrypts(a suite.Algorithm) bool { return is(a, classAEAD, classRSA) }

// CanEncrypt refuses what keys of an algorithm cannot do, in the words of that. fault.Invalid with a Refusal.
func CanEncrypt(a suite.Algorithm) error {
	return can(Encrypts(a), "message encryption not supported for key type ", a, "")
}

// CanDecrypt is CanEncrypt of decryption.
func CanDecrypt(a suite.Algorithm) error {
	return can(Encrypts(a), "message decryption not supported for key type ", a, "")
}

// CanSign is CanEncrypt of signatures.
func CanSign(a suite.Algorithm) error {
	return can(Signs(a), "key type ", a, " does not support signing")
}

// CanVerify is CanSign of signatures that are verified.
func CanVerify(a suite.Algorithm) error {
	return can(Signs(a), "key type ", a, " does not support verification")
}

func can(does bool, before string, a suite.Algorithm, after string) error {
	if does {
		return nil
	}
	return refused(Refusal(before + TypeName(a) + after))
}

// Signs says whether keys of an algorithm sign and verify.
func Signs(a suite.Algorithm) bool { return is(a, classRSA, classECDSA, classEdDSA, classMLDSA) }

// Derives says whether keys of an algorithm may be derived by context.
func Derives(a suite.Algorithm) bool { return is(a, classAEAD, classEdDSA) }

// Converges says whether keys of an algorithm may be convergent.
func Converges(a suite.Algorithm) bool { return is(a, classAEAD) }

// Associates says whether keys of an algorithm take associated data.
func Associates(a suite.Algorithm) bool { return is(a, classAEAD) }

// Hashes says whether messages are hashed before keys of an algorithm sign them.
func Hashes(a suite.Algorithm) bool { return is(a, classRSA, classECDSA) }

// importsPublic says whether a version may be imported of which the public half alone is known.
func importsPublic(a suite.Algorithm) bool { return is(a, classRSA, classECDSA, classEdDSA) }

// Agrees says whether keys of an algorithm agree on secrets with those of others (ECDH).
func Agrees(a suite.Algorithm) bool { return is(a, classECDSA) }
