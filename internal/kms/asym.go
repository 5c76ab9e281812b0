package kms

import (
	"context"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// address is how a message names a version.
func address(k keyring.Key, v keyring.Version) envelope.Address {
	return envelope.Address{Algorithm: v.Algorithm, Handle: v.Handle, NamespaceID: string(k.Namespace), KeyID: string(k.ID)}
}

// DecryptForeign opens what somebody else encrypted to the public half of a version: RSAES-OAEP with an empty label, HPKE in base mode with an
// empty info, encapsulated key first. fault.DecryptFailed and what MayProcess returns.
func (s *Service) DecryptForeign(ctx context.Context, c policy.Caller, ref Ref, n uint32, ciphertext []byte) ([]byte, error) {
	u, err := s.processing(ctx, c, policy.ActDecrypt, ref, suite.Decrypt, n, len(ciphertext))
	if err != nil {
		return nil, err
	}
	return u.decrypter.Decrypt(ciphertext, nil)
}

// processing admits an operation on a version that the caller names.
func (s *Service) processing(ctx context.Context, c policy.Caller, a policy.Action, ref Ref, purpose suite.Purpose, n uint32, size int) (use, error) {
	k, p, err := s.admit(ctx, c, a, ref)
	if err != nil {
		return use{}, err
	}
	if k.Purpose != purpose {
		return use{}, wrongPurpose(k)
	}
	if size > 2*MaxMessage {
		return use{}, fault.New(fault.TooLarge, "ciphertext")
	}
	return s.process(ctx, k, p, number(n), time.Time{})
}

// Encapsulate makes a shared secret of 32 bytes and its encapsulation for the primary version. It is a release: the entry is durable before the
// answer.
func (s *Service) Encapsulate(ctx context.Context, c policy.Caller, ref Ref) (shared secret.Bytes, ciphertext []byte, version uint32, err error) {
	u, err := s.protect(ctx, c, policy.ActEncapsulate, ref, suite.Decapsulate, 0)
	if err != nil {
		return shared, nil, 0, err
	}
	if shared, ciphertext, err = suite.Encapsulate(u.version.Algorithm, u.version.Public); err != nil {
		return shared, nil, 0, err
	}
	if err := u.permit.Release(ctx, versionDetail(u.version.Number)); err != nil {
		shared.Destroy()
		return secret.Bytes{}, nil, 0, err
	}
	return shared, ciphertext, u.version.Number, nil
}

// Decapsulate releases the shared secret of an encapsulation for a version. A wrong one of the right length gives a secret that nobody knows.
// fault.DecryptFailed.
func (s *Service) Decapsulate(ctx context.Context, c policy.Caller, ref Ref, n uint32, ciphertext []byte) (secret.Bytes, error) {
	u, err := s.processing(ctx, c, policy.ActDecapsulate, ref, suite.Decapsulate, n, len(ciphertext))
	if err != nil {
		return secret.Bytes{}, err
	}
	shared, err := u.decapsulator.Decapsulate(ciphertext)
	if err != nil {
		return secret.Bytes{}, err
	}
	if err := u.permit.Release(ctx, versionDetail(n)); err != nil {
		shared.Destroy()
		return secret.Bytes{}, err
	}
	return shared, nil
}
