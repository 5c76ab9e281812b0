//go:build !pkcs11

package server

import (
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/kms"
)

// open refuses a token, which this build cannot open. fault.NotBuilt, Invalid.
func (h HSM) open(string) (kms.HSM, error) {
	if h == (HSM{}) {
		return nil, nil
	}
	_, err := hsm.Open(h.config())
	return nil, err
}
