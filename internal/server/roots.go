package server

import (
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
)

// openSealers opens the wrap set that the configuration names: any one of it opens the root key. fault.NotFound, SealWrong.
func openSealers(c Config) ([]seal.Sealer, error) {
	sealer, err := local.Open(c.SealKey)
	if err != nil {
		return nil, err
	}
	return []seal.Sealer{sealer}, nil
}

// makeSealers makes what a new cluster is sealed with; what an Init has left that was cut off is taken.
func makeSealers(c Config) ([]seal.Sealer, error) {
	sealer, err := local.Create(c.SealKey)
	if fault.CodeOf(err) == fault.Exists {
		return openSealers(c)
	}
	if err != nil {
		return nil, err
	}
	return []seal.Sealer{sealer}, nil
}

// sealNames lists the sealers for status.
func sealNames(sealers []seal.Sealer) string {
	var ids []string
	for _, s := range sealers {
		ids = append(ids, s.ID())
	}
	return strings.Join(ids, " ")
}
