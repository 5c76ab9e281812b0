package transit

import (
	"crypto"
	_ "crypto/sha1" // #nosec G505 -- crypto.SHA1, which callers name for what others made
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"strings"
)

// Hash is a hash that a caller names; the zero value is none.
type Hash crypto.Hash

// hashes are the names. SHA-1 is there for what others signed: rotor names it nowhere by itself.
var hashes = map[string]Hash{
	"none": 0, "sha1": Hash(crypto.SHA1),
	"sha2-224": Hash(crypto.SHA224), "sha2-256": Hash(crypto.SHA256), "sha2-384": Hash(crypto.SHA384), "sha2-512": Hash(crypto.SHA512),
	"sha3-224": Hash(crypto.SHA3_224), "sha3-256": Hash(crypto.SHA3_256), "sha3-384": Hash(crypto.SHA3_384), "sha3-512": Hash(crypto.SHA3_512),
}

// SHA256 is the hash when none is named.
const SHA256 = Hash(crypto.SHA256)

// ParseHash finds a hash by Vault's name, for example sha2-256.
func ParseHash(name string) (Hash, bool) {
	h, ok := hashes[name]
	return h, ok
}

// Sum hashes a message; of none it is the message itself.
func (h Hash) Sum(msg []byte) []byte {
	if h == 0 {
		return msg
	}
	w := crypto.Hash(h).New()
	w.Write(msg)
	return w.Sum(nil)
}

// ParseWrapHash finds the hash of RSAES-OAEP in imports and byok-export, for example SHA256; the empty name is that. fault.Invalid.
func ParseWrapHash(name string) (Hash, error) {
	switch strings.ToUpper(name) {
	case "", "SHA256":
		return SHA256, nil
	case "SHA1":
		return Hash(crypto.SHA1), nil
	case "SHA224":
		return Hash(crypto.SHA224), nil
	case "SHA384":
		return Hash(crypto.SHA384), nil
	case "SHA512":
		return Hash(crypto.SHA512), nil
	}
	return 0, refused(Refusal("unknown hash function: " + name))
}
