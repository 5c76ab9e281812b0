package kms

import (
	"context"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
)

// This file is reading under a compromised version. Somebody else has its key and may have made what is read, so it takes a right of its own and a
// caller that asks for it, each use is in the log before its answer, and the answer says that its origin is unproven. Signatures and MACs
// of such a version stay refused: their origin is all that they are for. So does rewrapping, which would pass it on as genuine.

// DecryptCompromised is Decrypt, also of a message under a compromised version; compromised says whether it was.
func (s *Service) DecryptCompromised(ctx context.Context, c policy.Caller, ref Ref, ciphertext []byte, parts []envelope.Part) (out []byte, n uint32, compromised bool, err error) {
	k, p, err := s.admit(ctx, c, policy.ActDecrypt, ref, parts...)
	if err != nil {
		return nil, 0, false, err
	}
	suspect, err := s.guard.Admit(ctx, c, policy.ActReadSuspect, p.Resource())
	if err != nil {
		return nil, 0, false, err
	}
	out, v, err := s.decrypt(ctx, k, p, ciphertext, parts, true)
	if err != nil {
		return nil, v.Number, false, err
	}
	if v.State != keyring.Compromised {
		return out, v.Number, false, nil
	}
	if err := suspect.Release(ctx, versionDetail(v.Number)); err != nil {
		clear(out)
		return nil, v.Number, false, err
	}
	return out, v.Number, true, nil
}

// UnwrapCompromised is Unwrap, also of a data key under a compromised version; compromised says whether it was.
func (s *Service) UnwrapCompromised(ctx context.Context, c policy.Caller, w envelope.Wrap, immutable []byte) (dek secret.Bytes, compromised bool, err error) {
	u, err := s.unwrapping(ctx, c, policy.ActUnwrap, w, immutable, true)
	if err != nil {
		return dek, false, err
	}
	u.suspect = u.version.State == keyring.Compromised
	dek, err = u.unwrap(ctx, w, immutable)
	return dek, u.suspect && err == nil, err
}
