// Package pkcs11 seals with a PKCS #11 token (package hsm): the root is encrypted by AES-256-GCM inside the token, under one key for each generation that never leaves
// it, and forgetting destroys keys. It is there in builds with the tag pkcs11.
package pkcs11

import (
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
)

// Config says which token, and which keys in it.
type Config struct {
	hsm.Config
	Key string // CKA_LABEL of the keys; CKA_ID is the generation in 8 bytes, big-endian
}

func (c Config) validate() error {
	if c.Key == "" || len(c.Key) > 64 {
		return fault.New(fault.Invalid, "key").WithHint("the label of the keys in the token: 1 to 64 bytes")
	}
	return c.Config.Validate()
}
