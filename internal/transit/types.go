package transit

import (
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// keyType is a row of Vault's key types.
type keyType struct {
	algorithm suite.Algorithm
	name      string
	number    int    // in backups
	set       string // parameter set of ml-dsa
	second    string // a second spelling
}

// types lists them. Numbers of backups are Vault's; that of xchacha20-poly1305 is OpenBao's, which Vault gives to keys of 16 bytes.
var types = []keyType{
	{algorithm: suite.AES256GCM, name: "aes256-gcm96", number: 0},
	{algorithm: suite.ES256, name: "ecdsa-p256", number: 1},
	{algorithm: suite.Ed25519, name: "ed25519", number: 2},
	{algorithm: suite.RSA2048, name: "rsa-2048", number: 3},
	{algorithm: suite.RSA4096, name: "rsa-4096", number: 4},
	{algorithm: suite.ChaCha20Poly1305, name: "chacha20-poly1305", number: 5},
	{algorithm: suite.ES384, name: "ecdsa-p384", number: 6},
	{algorithm: suite.ES512, name: "ecdsa-p521", number: 7},
	{algorithm: suite.AES128GCM, name: "aes128-gcm96", number: 8},
	{algorithm: suite.RSA3072, name: "rsa-3072", number: 9},
	{algorithm: suite.HMAC, name: "hmac", number: 11},
	{algorithm: suite.XChaCha20Poly1305, name: "xchacha20-poly1305", number: 12},
	{algorithm: suite.MLDSA44, name: "ml-dsa", number: 14, set: "44", second: "mldsa-44"},
	{algorithm: suite.MLDSA65, name: "ml-dsa", number: 14, set: "65", second: "mldsa-65"},
	{algorithm: suite.MLDSA87, name: "ml-dsa", number: 14, set: "87", second: "mldsa-87"},
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

// Encrypts says whether keys of an algorithm encrypt and decrypt.
func Encrypts(a suite.Algorithm) bool { return symmetric(a) || rsaKey(a) }

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
func Signs(a suite.Algorithm) bool {
	_, err := typeOf(a)
	return err == nil && !symmetric(a) && a != suite.HMAC
}

// Derives says whether keys of an algorithm may be derived by context.
func Derives(a suite.Algorithm) bool { return symmetric(a) || a == suite.Ed25519 }

// Converges says whether keys of an algorithm may be convergent.
func Converges(a suite.Algorithm) bool { return symmetric(a) }

// Associates says whether keys of an algorithm take associated data.
func Associates(a suite.Algorithm) bool { return symmetric(a) }

// Hashes says whether messages are hashed before keys of an algorithm sign them.
func Hashes(a suite.Algorithm) bool { return rsaKey(a) || ecKey(a) }

// ImportsPublic says whether a version may be imported of which the public half alone is known.
func ImportsPublic(a suite.Algorithm) bool { return Hashes(a) || a == suite.Ed25519 }

// Agrees says whether keys of an algorithm agree on secrets with those of others (ECDH).
func Agrees(a suite.Algorithm) bool { return ecKey(a) }

func symmetric(a suite.Algorithm) bool {
	return a == suite.AES128GCM || a == suite.AES256GCM || a == suite.ChaCha20Poly1305 || a == suite.XChaCha20Poly1305
}

func rsaKey(a suite.Algorithm) bool {
	return a == suite.RSA2048 || a == suite.RSA3072 || a == suite.RSA4096
}

func ecKey(a suite.Algorithm) bool { return a == suite.ES256 || a == suite.ES384 || a == suite.ES512 }
