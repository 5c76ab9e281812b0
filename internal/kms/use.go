package kms

import (
	"context"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/token"
)

// MaxMessage bounds the plaintext of one server-side operation, in bytes.
const MaxMessage = 1 << 20

// maxOverhead is how much longer a message is at most, in bytes: that of X-Wing and ML-KEM-768 with P-256 carries 1,153 of encapsulation.
const maxOverhead = 2 << 10

// use is one admitted operation: the key, the version and its opened material.
type use struct {
	key     keyring.Key
	version keyring.Version
	opened
	permit *guard.Permit

	suspect bool // the version is compromised, and the caller may read under it
}

// protect admits an operation that protects so many bytes and opens the primary version.
func (s *Service) protect(ctx context.Context, c policy.Caller, a policy.Action, ref Ref, purpose suite.Purpose, size int, parts ...envelope.Part) (use, error) {
	k, p, err := s.admit(ctx, c, a, ref, parts...)
	if err != nil {
		return use{}, err
	}
	if size > MaxMessage {
		return use{}, fault.New(fault.TooLarge, "message").WithHint("at most %d bytes; encrypt files with rotor encrypt", MaxMessage)
	}
	if k.Purpose != purpose {
		return use{}, wrongPurpose(k)
	}
	return s.protecting(ctx, k, p, primary)
}

// choice finds the version of a key that an operation is about.
type choice func(keyring.Key) (keyring.Version, error)

func primary(k keyring.Key) (keyring.Version, error) { return k.Version(k.Primary) }

func number(n uint32) choice {
	return func(k keyring.Key) (keyring.Version, error) { return k.Version(n) }
}

func byHandle(h uint32) choice {
	return func(k keyring.Key) (keyring.Version, error) { return k.ByHandle(h) }
}

// pick finds a version and asks whether it may be used. What the ring refuses is looked at once more when the ring has caught up with the
// store, because another server may have changed the key a moment ago. It returns the key that it has looked at.
func (s *Service) pick(ctx context.Context, k keyring.Key, of choice, may func(keyring.Key, keyring.Version) error) (keyring.Key, keyring.Version, error) {
	ask := func() (keyring.Version, error) {
		v, err := of(k)
		if err == nil {
			err = may(k, v)
		}
		return v, err
	}
	v, err := ask()
	switch fault.CodeOf(err) {
	case fault.UnknownVersion, fault.WrongState, fault.VersionRetired, fault.BelowFloor:
	default:
		return k, v, err
	}
	if err := s.CatchUp(context.WithoutCancel(ctx)); err != nil { // who hangs up has tried all the same
		return k, v, err
	}
	if now, ok := s.Key(k.ID); ok {
		k = now
	}
	v, err = ask()
	return k, v, err
}

// protecting asks the version's state and counts the use where its algorithm has a volume limit, before anything is protected. A server
// whose session is over protects nothing: what it takes for the primary may be retired by now. fault.Unavailable.
func (s *Service) protecting(ctx context.Context, k keyring.Key, p *guard.Permit, of choice) (use, error) {
	k, v, err := s.pick(ctx, k, of, func(k keyring.Key, v keyring.Version) error { return k.MayProtect(v, s.now()) })
	if err != nil {
		return use{}, err
	}
	if s.fresh != nil && !s.fresh() { // asked after the ring was read
		return use{}, fault.New(fault.Unavailable, "server").WithHint("it has lost the store; another one may serve")
	}
	if err := s.spend(ctx, k, v, 1); err != nil {
		return use{}, err
	}
	return s.using(ctx, k, v, p, protects)
}

// process admits an operation that processes and opens the version.
func (s *Service) process(ctx context.Context, k keyring.Key, p *guard.Permit, of choice, protectedAt time.Time) (use, error) {
	return s.processAlso(ctx, k, p, of, protectedAt, false)
}

// processAlso is process, also of a compromised version if the caller was let through for that.
func (s *Service) processAlso(ctx context.Context, k keyring.Key, p *guard.Permit, of choice, protectedAt time.Time, compromised bool) (use, error) {
	k, v, err := s.mayProcess(ctx, k, p, of, protectedAt, compromised)
	if err != nil {
		return use{version: v}, err
	}
	return s.using(ctx, k, v, p, processes)
}

// mayProcess asks the version's state, and notes an attempt on one that is retired.
func (s *Service) mayProcess(ctx context.Context, k keyring.Key, p *guard.Permit, of choice, protectedAt time.Time, compromised bool) (keyring.Key, keyring.Version, error) {
	k, v, err := s.pick(ctx, k, of, func(k keyring.Key, v keyring.Version) error {
		return k.MayProcess(v, protectedAt, s.now(), compromised)
	})
	if fault.CodeOf(err) == fault.VersionRetired {
		s.attempted(ctx, p.Caller().Name, k, v.Number)
	}
	return k, v, err
}

func (s *Service) using(ctx context.Context, k keyring.Key, v keyring.Version, p *guard.Permit, what kind) (use, error) {
	o, err := s.open(ctx, k, v.Number)
	if err != nil {
		return use{version: v}, err
	}
	if err := s.counted(ctx, p, k, v.Number, what, 1); err != nil {
		return use{version: v}, err
	}
	return use{key: k, version: v, opened: o, permit: p}, nil
}

// counted notes n uses of a version, in the log first.
func (s *Service) counted(ctx context.Context, p *guard.Permit, k keyring.Key, version uint32, what kind, n uint64) error {
	if err := p.UseN(ctx, version, n); err != nil {
		return err
	}
	s.usage.count(materialID{k.ID, version}, what, n, s.now())
	return nil
}

// Encrypt makes a message (spec/message.md) under the primary version.
func (s *Service) Encrypt(ctx context.Context, c policy.Caller, ref Ref, plaintext []byte, parts []envelope.Part) ([]byte, uint32, error) {
	if k, ok := s.Lookup(ref.Namespace, ref.Name); ok && k.Purpose == suite.Decrypt {
		return s.encryptTo(ctx, c, ref, plaintext, parts)
	}
	u, err := s.protect(ctx, c, policy.ActEncrypt, ref, suite.Encrypt, len(plaintext), parts...)
	if err != nil {
		return nil, 0, err
	}
	out, err := u.encrypt(ctx, plaintext, parts)
	return out, u.version.Number, err
}

// encryptTo makes a message to the public half of the primary version.
func (s *Service) encryptTo(ctx context.Context, c policy.Caller, ref Ref, plaintext []byte, parts []envelope.Part) ([]byte, uint32, error) {
	u, err := s.protect(ctx, c, policy.ActEncrypt, ref, suite.Decrypt, len(plaintext), parts...)
	if err != nil {
		return nil, 0, err
	}
	out, err := envelope.EncryptTo(address(u.key, u.version), u.version.Public, plaintext, parts...)
	return out, u.version.Number, err
}

// Decrypt opens a message. fault.UnknownVersion, DecryptFailed and what MayProcess returns.
func (s *Service) Decrypt(ctx context.Context, c policy.Caller, ref Ref, ciphertext []byte, parts []envelope.Part) ([]byte, uint32, error) {
	k, p, err := s.admit(ctx, c, policy.ActDecrypt, ref, parts...)
	if err != nil {
		return nil, 0, err
	}
	out, v, err := s.decrypt(ctx, k, p, ciphertext, parts, false)
	return out, v.Number, err
}

// decrypt is Decrypt after the door, also of a compromised version if the caller was let through for that.
func (s *Service) decrypt(ctx context.Context, k keyring.Key, p *guard.Permit, ciphertext []byte, parts []envelope.Part, compromised bool) (out []byte, v keyring.Version, err error) {
	if k.Purpose != suite.Encrypt && k.Purpose != suite.Decrypt {
		return nil, v, wrongPurpose(k)
	}
	overhead := envelope.MessageOverhead
	if k.Purpose == suite.Decrypt {
		overhead = maxOverhead
	}
	if len(ciphertext) > MaxMessage+overhead {
		return nil, v, fault.New(fault.TooLarge, "ciphertext")
	}
	h, err := envelope.MessageHandle(ciphertext)
	if err != nil {
		return nil, v, err
	}
	u, err := s.processAlso(ctx, k, p, byHandle(h), time.Time{}, compromised)
	if err != nil {
		return nil, v, err
	}
	if k.Purpose == suite.Decrypt {
		out, err = envelope.DecryptWith(u.decrypter, address(u.key, u.version), ciphertext, parts...)
		return out, u.version, err
	}
	out, err = u.decrypt(ctx, ciphertext, parts)
	return out, u.version, err
}

// Sign signs with the primary version; the signature is in the form of JWS.
//
// What a verifier of tokens would read as one is refused: its key set has every signing key, and the right to sign is not the right to
// issue tokens, which are about the caller alone. fault.Invalid.
func (s *Service) Sign(ctx context.Context, c policy.Caller, ref Ref, msg []byte) ([]byte, keyring.Version, error) {
	if token.IsInput(msg) {
		return nil, keyring.Version{}, fault.New(fault.Invalid, "message").WithHint("it is an access token to be signed; ask for one with rotor token issue")
	}
	u, err := s.protect(ctx, c, policy.ActSign, ref, suite.Sign, len(msg))
	if err != nil {
		return nil, keyring.Version{}, err
	}
	sig, err := u.sign(ctx, msg)
	return sig, u.version, err
}

// SignToken signs what input makes of the primary version, for a caller with the right to issue tokens of the key.
func (s *Service) SignToken(ctx context.Context, c policy.Caller, ref Ref, input func(keyring.Key, keyring.Version) ([]byte, error)) (msg, sig []byte, err error) {
	u, err := s.protect(ctx, c, policy.ActIssue, ref, suite.Sign, 0)
	if err != nil {
		return nil, nil, err
	}
	if msg, err = input(u.key, u.version); err != nil {
		return nil, nil, err
	}
	sig, err = u.sign(ctx, msg)
	return msg, sig, err
}

// Verify checks a signature of a version. fault.TokenInvalid when it does not match.
func (s *Service) Verify(ctx context.Context, c policy.Caller, ref Ref, n uint32, msg, sig []byte) error {
	k, p, err := s.admit(ctx, c, policy.ActVerify, ref)
	if err != nil {
		return err
	}
	if k.Purpose != suite.Sign && k.Purpose != suite.MAC {
		return wrongPurpose(k)
	}
	if len(msg) > MaxMessage {
		return fault.New(fault.TooLarge, "message")
	}
	if k.Purpose == suite.MAC {
		u, err := s.process(ctx, k, p, number(n), time.Time{})
		if err != nil {
			return err
		}
		return u.verifyTag(ctx, msg, sig)
	}
	_, v, err := s.mayProcess(ctx, k, p, number(n), time.Time{}, false)
	if err != nil {
		return err
	}
	if err := s.counted(ctx, p, k, n, processes, 1); err != nil {
		return err
	}
	return suite.Verify(v.Algorithm, v.Public, msg, sig) // the private half may be gone
}

// Authenticate signs with a signing key and makes a MAC with a MAC key. Who may not make MACs learns nothing of what kind the key is.
func (s *Service) Authenticate(ctx context.Context, c policy.Caller, ref Ref, msg []byte) ([]byte, uint32, error) {
	if k, ok := s.Lookup(ref.Namespace, ref.Name); ok && k.Purpose == suite.MAC && s.guard.Allows(c, policy.ActMAC, Resource(k)) {
		return s.MAC(ctx, c, ref, msg)
	}
	sig, v, err := s.Sign(ctx, c, ref, msg)
	return sig, v.Number, err
}

// MAC returns the authentication code of msg under the primary version.
func (s *Service) MAC(ctx context.Context, c policy.Caller, ref Ref, msg []byte) ([]byte, uint32, error) {
	u, err := s.protect(ctx, c, policy.ActMAC, ref, suite.MAC, len(msg))
	if err != nil {
		return nil, 0, err
	}
	tag, err := u.tag(ctx, msg)
	return tag, u.version.Number, err
}

// Wrap seals a file's data key under the primary version. The file's immutable part is hashed here, not believed.
func (s *Service) Wrap(ctx context.Context, c policy.Caller, ref Ref, dek secret.Bytes, immutable []byte) (envelope.Wrap, error) {
	u, err := s.protect(ctx, c, policy.ActWrap, ref, suite.Wrap, 0, headerParts(immutable)...)
	if err != nil {
		return envelope.Wrap{}, err
	}
	return u.seal(ctx, dek, immutable, s.now())
}

// Unwrap opens a file's data key. It is a release: the audit entry is durable before the answer.
func (s *Service) Unwrap(ctx context.Context, c policy.Caller, w envelope.Wrap, immutable []byte) (secret.Bytes, error) {
	u, err := s.unwrapping(ctx, c, policy.ActUnwrap, w, immutable, false)
	if err != nil {
		return secret.Bytes{}, err
	}
	return u.unwrap(ctx, w, immutable)
}

// unwrap opens the data key and says in the log that it left, before it does.
func (u use) unwrap(ctx context.Context, w envelope.Wrap, immutable []byte) (secret.Bytes, error) {
	dek, err := u.openDEK(ctx, w, immutable)
	if err != nil {
		return secret.Bytes{}, err
	}
	detail := versionDetail(u.version.Number)
	if u.suspect {
		detail["compromised"] = "yes"
	}
	if err := u.permit.Release(ctx, detail); err != nil {
		dek.Destroy()
		return secret.Bytes{}, err
	}
	return dek, nil
}

// Rewrap moves a wrap to the primary version of its key without showing the data key to the caller; the protect time is kept.
// changed is false when it is there already.
func (s *Service) Rewrap(ctx context.Context, c policy.Caller, w envelope.Wrap, immutable []byte) (next envelope.Wrap, changed bool, err error) {
	u, err := s.unwrapping(ctx, c, policy.ActRewrap, w, immutable, false)
	if err != nil {
		return w, false, err
	}
	if w.Version == u.key.Primary { // as the answer may be that nothing is to be done, it must not be an old one
		if err := s.CatchUp(ctx); err != nil {
			return w, false, err
		}
		if u.key, _ = s.Key(u.key.ID); w.Version == u.key.Primary {
			return w, false, nil
		}
	}
	dek, err := u.openDEK(ctx, w, immutable)
	if err != nil {
		return w, false, err
	}
	defer dek.Destroy()
	to, err := s.protecting(ctx, u.key, u.permit, primary)
	if err != nil {
		return w, false, err
	}
	next, err = to.seal(ctx, dek, immutable, w.ProtectTime)
	return next, err == nil, err
}

// unwrapping admits an operation on a wrap, whose key is named by ID.
func (s *Service) unwrapping(ctx context.Context, c policy.Caller, a policy.Action, w envelope.Wrap, immutable []byte, compromised bool) (use, error) {
	ref := Ref{Name: w.KeyID} // of a missing key: without a name the action would be about no key, and be admitted to more callers
	known, ok := s.Key(keyring.KeyID(w.KeyID))
	if !ok && !c.IsZero() {
		if err := s.CatchUp(ctx); err != nil {
			return use{}, err
		}
		known, ok = s.Key(keyring.KeyID(w.KeyID))
	}
	if ok {
		ref = Ref{known.Namespace, known.Name}
	}
	k, p, err := s.admit(ctx, c, a, ref, headerParts(immutable)...)
	if fault.CodeOf(err) == fault.Denied { // without the name, which would tell that the key exists
		return use{}, fault.New(fault.Denied, string(a)+" on the key of this wrap")
	}
	if err != nil {
		return use{}, err
	}
	if k.Purpose != suite.Wrap || w.Type != envelope.WrapKMS {
		return use{}, wrongPurpose(k)
	}
	if compromised {
		if _, err := s.guard.Admit(ctx, c, policy.ActReadSuspect, p.Resource()); err != nil {
			return use{}, fault.New(fault.Denied, string(policy.ActReadSuspect)+" on the key of this wrap")
		}
	}
	return s.processAlso(ctx, k, p, number(w.Version), w.ProtectTime, compromised) // OpenDEK authenticates it
}

// headerParts is the encryption context of a file's header, which its wrap is bound to; none when the header does not parse.
func headerParts(immutable []byte) (parts []envelope.Part) {
	m, err := envelope.ParseImmutable(immutable)
	if err != nil {
		return nil
	}
	for label, value := range m.Context {
		parts = append(parts, envelope.Part{Label: label, Value: []byte(value)})
	}
	return parts
}

// Reencrypt moves messages to a target version for a campaign: decrypts under whatever version made them and encrypts under the
// target, inside the server. Messages that are under the target already are returned as they are with moved false.
func (s *Service) Reencrypt(ctx context.Context, id keyring.KeyID, target uint32, ciphertext []byte, parts []envelope.Part) (out []byte, moved bool, err error) {
	k, ok := s.Key(id)
	if !ok {
		return nil, false, fault.New(fault.NotFound, "key "+string(id))
	}
	if k.Purpose != suite.Encrypt {
		return nil, false, wrongPurpose(k)
	}
	p := s.guard.System("campaign", policy.ActCampaign, Resource(k))
	h, err := envelope.MessageHandle(ciphertext)
	if err != nil {
		return nil, false, err
	}
	whatever := func(keyring.Key, keyring.Version) error { return nil }
	if k, _, err = s.pick(ctx, k, number(target), whatever); err != nil {
		return nil, false, err
	}
	k, from, err := s.pick(ctx, k, byHandle(h), whatever)
	if err != nil {
		return nil, false, err
	}
	if from.Number == target {
		return ciphertext, false, nil
	}
	if k, _, err = s.pick(ctx, k, number(target), func(k keyring.Key, v keyring.Version) error { return k.MayProtect(v, s.now()) }); err != nil {
		return nil, false, err
	}
	src, err := s.process(ctx, k, p, number(from.Number), time.Time{})
	if err != nil {
		return nil, false, err
	}
	dst, err := s.protecting(ctx, k, p, number(target))
	if err != nil {
		return nil, false, err
	}
	plain, err := src.decrypt(ctx, ciphertext, parts)
	if err != nil {
		return nil, false, err
	}
	defer clear(plain)
	out, err = dst.encrypt(ctx, plain, parts)
	return out, err == nil, err
}

// Opens says which version made a message, and whether it opens, for a campaign that checks what a data set says of itself. The version is
// known, and not 0, even when the error says why the message does not open.
func (s *Service) Opens(ctx context.Context, id keyring.KeyID, ciphertext []byte, parts []envelope.Part) (version uint32, err error) {
	k, ok := s.Key(id)
	if !ok {
		return 0, fault.New(fault.NotFound, "key "+string(id))
	}
	if k.Purpose != suite.Encrypt {
		return 0, wrongPurpose(k)
	}
	h, err := envelope.MessageHandle(ciphertext)
	if err != nil {
		return 0, err
	}
	p := s.guard.System("campaign", policy.ActCampaign, Resource(k))
	u, err := s.process(ctx, k, p, byHandle(h), time.Time{})
	if err != nil {
		return u.version.Number, err
	}
	plain, err := u.decrypt(ctx, ciphertext, parts)
	clear(plain)
	return u.version.Number, err
}
