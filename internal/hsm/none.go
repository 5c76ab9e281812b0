//go:build !pkcs11

package hsm

import (
	"context"

	"github.com/rotorkms/rotor/internal/fault"
)

// errNotBuilt is what a build without PKCS #11 answers.
var errNotBuilt = fault.New(fault.NotBuilt, "PKCS #11").WithHint("build it with cgo: CGO_ENABLED=1 go build -tags pkcs11 ./cmd/rotor")

// Token is one that this build cannot open.
type Token struct{}

// Open answers that this build has no PKCS #11. fault.NotBuilt, Invalid.
func Open(c Config) (*Token, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return nil, errNotBuilt
}

// Info answers that this build has no PKCS #11. fault.NotBuilt.
func (*Token) Info(context.Context) (Info, error) { return Info{}, errNotBuilt }
