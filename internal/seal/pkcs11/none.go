//go:build !pkcs11

package pkcs11

import (
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/seal"
)

// New answers that this build has no PKCS #11. fault.NotBuilt, Invalid.
func New(c Config) (seal.Sealer, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	_, err := hsm.Open(c.Config)
	return nil, err
}
