//go:build pkcs11

package server

import (
	"github.com/rotorkms/rotor/internal/custody"
	"github.com/rotorkms/rotor/internal/kms"
)

// open loads the token's library, once for the process. nil without a token. fault.Invalid, NotFound.
func (h HSM) open(cluster string) (kms.HSM, error) {
	if h == (HSM{}) {
		return nil, nil
	}
	return custody.Open(h.config(), cluster)
}
