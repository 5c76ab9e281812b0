// Package seal is the contract of the roots of trust: what wraps the root key, so that the store alone opens nothing.
// Every sealer passes the same suite, sealtest.
package seal

import (
	"context"
	"errors"

	"github.com/rotorkms/rotor/internal/secret"
)

// The errors that sealers return, possibly wrapped.
var (
	// ErrWrongSealer: the blob was not made by this sealer, or was changed.
	ErrWrongSealer = errors.New("seal: blob is not of this sealer or was changed")
	// ErrForgotten: the blob is of a generation that the sealer was told to forget.
	ErrForgotten = errors.New("seal: generation was forgotten")
	// ErrUnavailable: the root of trust cannot be reached now.
	ErrUnavailable = errors.New("seal: root of trust is not available")
	// ErrNeedsShares: people have to bring their shares first. It is only ever returned together with ErrUnavailable.
	ErrNeedsShares = errors.New("seal: shares are needed")
	// ErrRemains: older blobs stay openable, because what opens them is out of the sealer's reach: custodians' shares, for example.
	ErrRemains = errors.New("seal: older blobs cannot be made unopenable from here")
)

// Sealer wraps the root key.
type Sealer interface {
	// ID names the sealer stably, for example "local:6f1c…"; it is written beside the blobs that it made.
	ID() string
	// Wrap encrypts the root key of a generation. ErrForgotten, ErrUnavailable.
	Wrap(ctx context.Context, root secret.Bytes, generation uint64) (blob []byte, err error)
	// Unwrap opens a blob that Wrap made. ErrWrongSealer, ErrForgotten, ErrUnavailable.
	Unwrap(ctx context.Context, blob []byte) (secret.Bytes, error)
	// Forget makes every blob of a generation older than before unopenable for good, or says what it cannot make so. ErrRemains, ErrUnavailable.
	Forget(ctx context.Context, before uint64) error
}
