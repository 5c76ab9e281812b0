package kms

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// TransitMessage is one message to authenticate or sign, or to verify.
type TransitMessage struct {
	Input   []byte
	Text    string              // to verify: the HMAC or signature
	Version uint32              // that signs; 0: the primary
	Hash    transit.Hash        // of HMACs
	Options transit.SignOptions // of signatures
}

// TransitHMAC makes HMACs under the HMAC key that each version of a key has, of whatever type it is. fault.NotFound, WrongState, Denied.
func (s *Service) TransitHMAC(ctx context.Context, c policy.Caller, ref Ref, items []TransitMessage) ([]TransitResult, error) {
	return s.sign(ctx, c, policy.ActMAC, ref, items, authenticate, func(k *transit.Key, it TransitMessage) (r TransitResult) {
		r.Ciphertext, r.Err = k.HMAC(it.Hash, it.Input)
		return r
	})
}

// TransitSign signs messages. fault.NotFound, WrongState, Denied.
func (s *Service) TransitSign(ctx context.Context, c policy.Caller, ref Ref, items []TransitMessage) ([]TransitResult, error) {
	return s.sign(ctx, c, policy.ActSign, ref, items, signing, func(k *transit.Key, it TransitMessage) (r TransitResult) {
		r.Ciphertext, r.Public, r.Err = k.Sign(it.Input, it.Options)
		return r
	})
}

func (s *Service) sign(
	ctx context.Context, c policy.Caller, a policy.Action, ref Ref, items []TransitMessage, words wording, do func(*transit.Key, TransitMessage) TransitResult,
) ([]TransitResult, error) {
	b, err := s.begin(ctx, c, a, ref, len(items))
	if err != nil {
		return nil, s.missed(ctx, c, ref, err, versionsOf(items, func(it TransitMessage) (uint32, []byte, error) { return it.Version, nil, nil }))
	}
	if a == policy.ActMAC {
		words.tooNew = transit.Refusal(fmt.Sprintf("key version does not exist; latest key version is %d", b.key.Primary))
	} else if err := transit.CanSign(b.key.Algorithm); err != nil {
		return refusing(len(items), err), nil
	}
	if b.key.Transit.MinEncryption == 0 { // what is too old then is below min_decryption_version, and put away at Vault
		words.tooOld = "no such key version"
	}
	n := counts{}
	for _, it := range items {
		n[it.Version]++
	}
	keys, err := b.ready(ctx, n, words, protects, b.authenticating)
	if err != nil {
		return nil, err
	}
	out := make([]TransitResult, len(items))
	for i, it := range items {
		r := keys[it.Version]
		if r.err != nil {
			out[i].Err = r.err
			continue
		}
		if out[i] = do(r.key, it); out[i].Err == nil {
			out[i].Version = r.key.Number()
		}
	}
	return out, failed(out)
}

// TransitVerifyHMAC says of each message whether its HMAC is right. fault.NotFound, WrongState, Denied.
func (s *Service) TransitVerifyHMAC(ctx context.Context, c policy.Caller, ref Ref, items []TransitMessage) ([]TransitResult, error) {
	parse := func(it TransitMessage) (uint32, []byte, error) { return transit.ParseHMAC(it.Text) }
	return s.verify(ctx, c, ref, items, verifyHMAC, parse, func(k *transit.Key, it TransitMessage, sum []byte) (bool, error) {
		return k.VerifyHMAC(it.Hash, it.Input, sum)
	})
}

// TransitVerify says of each message whether its signature is right. fault.NotFound, WrongState, Denied.
func (s *Service) TransitVerify(ctx context.Context, c policy.Caller, ref Ref, items []TransitMessage) ([]TransitResult, error) {
	parse := func(it TransitMessage) (uint32, []byte, error) {
		return transit.ParseSignature(it.Text, it.Options.Marshaling)
	}
	return s.verify(ctx, c, ref, items, verifying, parse, func(k *transit.Key, it TransitMessage, sig []byte) (bool, error) {
		return k.Verify(it.Input, sig, it.Options)
	})
}

func (s *Service) verify(
	ctx context.Context, c policy.Caller, ref Ref, items []TransitMessage, words wording,
	parse func(TransitMessage) (uint32, []byte, error), do func(*transit.Key, TransitMessage, []byte) (bool, error),
) ([]TransitResult, error) {
	b, err := s.begin(ctx, c, policy.ActVerify, ref, len(items))
	if err != nil {
		return nil, s.missed(ctx, c, ref, err, versionsOf(items, parse))
	}
	if words == verifying {
		if err := transit.CanVerify(b.key.Algorithm); err != nil {
			return refusing(len(items), err), nil
		}
	}
	out, err := each(ctx, b, words, items, parse, func(k *transit.Key, it TransitMessage, body []byte, out *TransitResult) {
		out.Valid, out.Err = do(k, it, body)
	})
	if err == nil {
		b.misread(ctx, out, func(r TransitResult) bool { return r.Err == nil && !r.Valid })
	}
	return out, err
}

// versionsOf are the versions that messages are about; 0: the primary.
func versionsOf(items []TransitMessage, parse func(TransitMessage) (uint32, []byte, error)) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for _, it := range items {
			if n, _, err := parse(it); err == nil && !yield(n) {
				return
			}
		}
	}
}

// TransitPublic returns the public halves (32 bytes) that the versions of a derived key of Ed25519 have for a context, by number: those of the versions
// that clients see. Other public halves stand in the key's record. fault.NotFound, Invalid.
func (s *Service) TransitPublic(ctx context.Context, c policy.Caller, ref Ref, context []byte) (map[uint32][]byte, error) {
	b, err := s.begin(ctx, c, policy.ActShow, ref, 1)
	if err != nil {
		return nil, err
	}
	out := map[uint32][]byte{}
	for v := range b.key.All() {
		if !b.key.Seen(v) || !b.key.Transit.Derived || v.Algorithm != suite.Ed25519 {
			continue
		}
		o, err := s.open(ctx, b.key, v.Number)
		if err != nil {
			return nil, err
		}
		if _, out[v.Number], err = o.transit.Sign(nil, transit.SignOptions{Context: context}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// certifiable admits a request about the certificate of a version; 0: the primary.
func (s *Service) certifiable(ctx context.Context, c policy.Caller, a policy.Action, ref Ref, n uint32) (*batch, keyring.Version, *transit.Key, error) {
	b, err := s.begin(ctx, c, a, ref, 1)
	if err != nil {
		return nil, keyring.Version{}, nil, err
	}
	v, err := b.authenticating(ctx, n, 1)
	if err != nil {
		return nil, v, nil, signing.say(err)
	}
	o, err := s.open(ctx, b.key, v.Number)
	return b, v, o.transit, err
}

// TransitCSR makes a request for a certificate of a version, 0 for the primary, in PEM; template is another in PEM, or empty. fault.Invalid.
func (s *Service) TransitCSR(ctx context.Context, c policy.Caller, ref Ref, n uint32, template string) (string, error) {
	b, v, key, err := s.certifiable(ctx, c, policy.ActSign, ref, n)
	if err != nil {
		return "", err
	}
	if err := s.counted(ctx, b.permit, b.key, v.Number, protects, 1); err != nil {
		return "", err
	}
	return key.Request(template)
}

// TransitSetCertificate keeps a chain of certificates, in PEM, with a version, 0 for the primary. fault.Invalid, TooLarge.
func (s *Service) TransitSetCertificate(ctx context.Context, c policy.Caller, ref Ref, n uint32, chain string) (keyring.Key, error) {
	b, v, key, err := s.certifiable(ctx, c, policy.ActConfigure, ref, n)
	if err != nil {
		return keyring.Key{}, err
	}
	der, err := key.Chain(chain)
	if err != nil {
		return keyring.Key{}, err
	}
	return s.update(ctx, b.permit, b.key.ID, versionDetail(v.Number), func(k keyring.Key) (keyring.Key, change, error) {
		if err := unmoved(k, ref); err != nil {
			return k, change{}, err
		}
		return k.Clone().Edit(v.Number, func(v *keyring.Version) { v.Chain = der }), change{}, nil
	})
}

// Agreement is how TransitDeriveKey comes to a key.
type Agreement struct {
	Base    Ref
	Version uint32        // of the base key; 0: the primary
	Peer    []byte        // public key of the other party, PKIX in PEM
	Caller  policy.Caller // as it would ask for the base key: policies about paths have to give that one, too
}

// TransitDeriveKey makes a key of the secret that a version of an ECDSA key shares with a peer (ECDH). The secret stays on the server, and as both
// parties have to have it the key is one that was imported, and is rotated by no clock. fault.Invalid, Exists.
func (s *Service) TransitDeriveKey(ctx context.Context, c policy.Caller, a Agreement, spec TransitSpec) (keyring.Key, error) {
	b, err := s.begin(ctx, a.Caller, policy.ActDecapsulate, a.Base, 1)
	if err != nil {
		return keyring.Key{}, err
	}
	if !transit.Agrees(b.key.Algorithm) {
		return keyring.Key{}, invalid("base_key_name", "base key type %s does not support key agreement", transit.TypeName(b.key.Algorithm))
	}
	row, err := suite.ForPurpose(spec.Algorithm, suite.Transit)
	if err != nil || !transit.Associates(spec.Algorithm) {
		return keyring.Key{}, invalid("derived_key_type", "unknown key type %s", transit.TypeName(spec.Algorithm))
	}
	keys, err := b.ready(ctx, counts{a.Version: 1}, signing, protects, b.authenticating)
	if err == nil {
		err = keys[a.Version].err
	}
	if err != nil {
		return keyring.Key{}, err
	}
	shared, err := keys[a.Version].key.Agree(a.Peer, row.KeyBytes)
	if err != nil {
		return keyring.Key{}, err
	}
	defer shared.Destroy()
	spec.Transit.Imported, spec.Transit.RotationAllowed = true, false
	return s.make(ctx, c, spec.key(), func(ctx context.Context, k keyring.Key, now time.Time) (keyring.Version, change, error) {
		return s.keepForeign(ctx, k, keyring.Version{Number: 1, Algorithm: k.Algorithm, Created: now}, shared)
	})
}
