//go:build pkcs11

package pkcs11

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
)

const (
	version  = 1
	headSize = 1 + 8
	maxBlob  = 4 << 10 // bytes
	keySize  = 32      // of AES-256, bytes
)

// Sealer encrypts with keys that never leave the token. Safe for concurrent use.
type Sealer struct {
	token *hsm.Token
	label string
}

// New makes the sealer. It loads the token's library, and asks the token nothing. fault.Invalid, NotFound.
func New(c Config) (*Sealer, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	t, err := hsm.Open(c.Config)
	if err != nil {
		return nil, err
	}
	return &Sealer{t, c.Key}, nil
}

// ID implements seal.Sealer: a PKCS #11 URI (RFC 7512) of the token's label and the keys'. Tokens that hold the same keys, as those of a cluster do, have one ID.
func (s *Sealer) ID() string { return hsm.URI(s.token.Label(), s.label) }

func (s *Sealer) key(generation uint64) hsm.Name {
	return hsm.Name{Label: s.label, ID: string(binary.BigEndian.AppendUint64(nil, generation))}
}

// data binds a blob to the sealer and its generation.
func (s *Sealer) data(head []byte) []byte {
	return append([]byte("rotor/seal/pkcs11/1\x00"+s.ID()+"\x00"), head...)
}

// Wrap implements seal.Sealer. The blob is version 1, generation 8, nonce 12, ciphertext, tag 16.
func (s *Sealer) Wrap(ctx context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	head := binary.BigEndian.AppendUint64([]byte{version}, generation)
	key := s.key(generation)
	box, err := s.token.Encrypt(ctx, key, root, s.data(head))
	if errors.Is(err, hsm.ErrNoKey) {
		if err := s.makeKey(ctx, generation); err != nil {
			return nil, err
		}
		box, err = s.token.Encrypt(ctx, key, root, s.data(head))
	}
	if errors.Is(err, hsm.ErrNoKey) {
		return nil, s.gone(ctx, generation)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	return append(head, box...), nil
}

// makeKey makes the key of a generation that is newer than all others; one that is missing below the newest was forgotten.
func (s *Sealer) makeKey(ctx context.Context, generation uint64) error {
	all, err := s.generations(ctx)
	if err != nil {
		return unavailable(err)
	}
	switch {
	case slices.Contains(all, generation): // another has made it meanwhile
		return nil
	case slices.ContainsFunc(all, func(g uint64) bool { return g > generation }):
		return seal.ErrForgotten
	}
	if err := s.token.MakeAES(ctx, s.key(generation), keySize); err != nil {
		return unavailable(err)
	}
	return nil
}

// Unwrap implements seal.Sealer.
func (s *Sealer) Unwrap(ctx context.Context, blob []byte) (secret.Bytes, error) {
	if len(blob) <= headSize || len(blob) > maxBlob || blob[0] != version {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	generation := binary.BigEndian.Uint64(blob[1:])
	root, err := s.token.Decrypt(ctx, s.key(generation), blob[headSize:], s.data(blob[:headSize]))
	switch {
	case errors.Is(err, hsm.ErrNoKey):
		return secret.Bytes{}, s.gone(ctx, generation)
	case errors.Is(err, hsm.ErrRefused):
		return secret.Bytes{}, fmt.Errorf("%w: %w", seal.ErrWrongSealer, err)
	case err != nil:
		return secret.Bytes{}, unavailable(err)
	}
	return root, nil
}

// Forget implements seal.Sealer: the keys of older generations are destroyed in the token. What was copied out of it in its own way, into a backup of the token or into another
// of its cluster, is out of reach.
func (s *Sealer) Forget(ctx context.Context, before uint64) error {
	all, err := s.generations(ctx)
	if err != nil {
		return unavailable(err)
	}
	for _, g := range all {
		if g >= before {
			continue
		}
		if _, err := s.token.Destroy(ctx, s.key(g)); err != nil {
			return unavailable(err)
		}
	}
	return nil
}

// gone says what a missing key means: forgotten when there are newer ones, never made otherwise.
func (s *Sealer) gone(ctx context.Context, generation uint64) error {
	all, err := s.generations(ctx)
	if err != nil {
		return unavailable(err)
	}
	if slices.ContainsFunc(all, func(g uint64) bool { return g > generation }) {
		return seal.ErrForgotten
	}
	return seal.ErrWrongSealer
}

// generations that have keys.
func (s *Sealer) generations(ctx context.Context) ([]uint64, error) {
	ids, err := s.token.IDs(ctx, s.label)
	if errors.Is(err, hsm.ErrNoKey) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []uint64
	for _, id := range ids {
		if len(id) == 8 {
			all = append(all, binary.BigEndian.Uint64([]byte(id)))
		}
	}
	return all, nil
}

func unavailable(err error) error {
	if errors.Is(err, hsm.ErrUnable) {
		return fault.Wrap(fault.Invalid, "token", err).WithHint("it has to make AES keys of 256 bits and to encrypt with them by CKM_AES_GCM, for the user of this PIN")
	}
	return fmt.Errorf("%w: %w", seal.ErrUnavailable, err)
}
