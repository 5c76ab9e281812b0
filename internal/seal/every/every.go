// Package every composes sealers: all of its parts are needed to open. A fresh key wraps the root; the key is split into as many random
// parts as there are sealers, whose XOR it is, and each sealer wraps one. One part that stays secret keeps the root secret.
package every

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

const (
	// Prefix begins the ID of every sealer of this kind.
	Prefix = "all("

	version  = 1
	maxParts = 8
	keySize  = suite.XAESKeySize
)

// Sealer opens with all of its parts.
type Sealer struct {
	parts []seal.Sealer // sorted by ID
}

// New composes 2 to 8 different sealers. fault.Invalid.
func New(parts ...seal.Sealer) (*Sealer, error) {
	parts = slices.Clone(parts)
	slices.SortFunc(parts, func(a, b seal.Sealer) int { return strings.Compare(a.ID(), b.ID()) })
	distinct := len(slices.CompactFunc(slices.Clone(parts), func(a, b seal.Sealer) bool { return a.ID() == b.ID() }))
	if len(parts) < 2 || len(parts) > maxParts || distinct != len(parts) {
		return nil, fault.New(fault.Invalid, "seal").WithHint("a seal of type all has 2 to %d different parts", maxParts)
	}
	return &Sealer{parts}, nil
}

// Parts are the sealers that it is made of.
func (s *Sealer) Parts() []seal.Sealer { return slices.Clone(s.parts) }

// ID implements seal.Sealer: "all(A & B)" of the parts' IDs, sorted.
func (s *Sealer) ID() string {
	ids := make([]string, len(s.parts))
	for i, p := range s.parts {
		ids[i] = p.ID()
	}
	return Prefix + strings.Join(ids, " & ") + ")"
}

// Wrap implements seal.Sealer. The blob is version 1, generation 8, count 1, for each part a length 4 and its blob, nonce, ciphertext, tag.
func (s *Sealer) Wrap(ctx context.Context, root secret.Bytes, generation uint64) ([]byte, error) {
	head := binary.BigEndian.AppendUint64([]byte{version}, generation)
	head = append(head, byte(len(s.parts)))
	key := make([]byte, keySize)
	for _, p := range s.parts {
		part := secret.Random(keySize)
		subtle.XORBytes(key, key, part.Reveal())
		blob, err := p.Wrap(ctx, part, generation)
		part.Destroy()
		if err != nil {
			clear(key)
			return nil, fmt.Errorf("%s: %w", p.ID(), err)
		}
		head = append(binary.BigEndian.AppendUint32(head, uint32(len(blob))), blob...)
	}
	aead, err := s.aead(secret.Take(key))
	if err != nil {
		return nil, err
	}
	return append(head, suite.Seal(aead, nil, root.Reveal(), s.data(head))...), nil
}

// aead makes the cipher of a key and destroys the key. The parts are never used as they are.
func (s *Sealer) aead(key secret.Bytes) (cipher.AEAD, error) {
	defer key.Destroy()
	derived, err := hkdf.Key(sha256.New, key.Reveal(), nil, "rotor/seal/all/1", suite.XAESKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive key of the parts: %w", err)
	}
	k := secret.Take(derived)
	defer k.Destroy()
	return suite.NewXAES(k)
}

// data binds the root to the parts, their order and their blobs: a part of another wrap does not fit.
func (s *Sealer) data(head []byte) []byte {
	sum := sha256.Sum256(head)
	return append([]byte("rotor/seal/all/1\x00"+s.ID()+"\x00"), sum[:]...)
}

// Split takes a blob apart: what each part wrapped, in the order of their IDs. ErrWrongSealer.
func Split(blob []byte) (parts [][]byte, head, rest []byte, err error) {
	if len(blob) < 10 || blob[0] != version || blob[9] < 2 || blob[9] > maxParts {
		return nil, nil, nil, seal.ErrWrongSealer
	}
	at := 10
	for range blob[9] {
		if len(blob)-at < 4 {
			return nil, nil, nil, seal.ErrWrongSealer
		}
		size := int(binary.BigEndian.Uint32(blob[at:]))
		at += 4
		if size > len(blob)-at {
			return nil, nil, nil, seal.ErrWrongSealer
		}
		parts, at = append(parts, blob[at:at+size]), at+size
	}
	return parts, blob[:at], blob[at:], nil
}

// Unwrap implements seal.Sealer. Every part is asked, so that what is missing is named at once.
func (s *Sealer) Unwrap(ctx context.Context, blob []byte) (secret.Bytes, error) {
	blobs, head, rest, err := Split(blob)
	if err != nil {
		return secret.Bytes{}, err
	}
	if len(blobs) != len(s.parts) || len(rest) < suite.XAESNonceSize+suite.XAESTagSize {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	key := make([]byte, keySize)
	defer clear(key)
	var failed []error
	for i, p := range s.parts {
		part, err := p.Unwrap(ctx, blobs[i])
		if err == nil && part.Len() != keySize {
			err = seal.ErrWrongSealer
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.ID(), err))
			continue
		}
		subtle.XORBytes(key, key, part.Reveal())
		part.Destroy()
	}
	if len(failed) > 0 {
		return secret.Bytes{}, errors.Join(failed...)
	}
	aead, err := s.aead(secret.Copy(key))
	if err != nil {
		return secret.Bytes{}, err
	}
	root, err := suite.Open(aead, nil, rest, s.data(bytes.Clone(head)))
	if err != nil {
		return secret.Bytes{}, seal.ErrWrongSealer
	}
	return secret.Take(root), nil
}

// Forget implements seal.Sealer. One part that forgets is enough: all are needed to open. What the others say matters only if none does.
func (s *Sealer) Forget(ctx context.Context, before uint64) error {
	var failed []error
	for _, p := range s.parts {
		if err := p.Forget(ctx, before); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.ID(), err))
		}
	}
	if len(failed) < len(s.parts) {
		return nil
	}
	return errors.Join(failed...)
}
