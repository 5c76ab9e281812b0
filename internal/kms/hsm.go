package kms

import (
	"cmp"
	"context"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// HSM carries out inside a token what keys of custody hsm are for. Objects have an ID that the caller chooses; whatever fails is a fault: Unavailable while the token is
// away, NotFound, AlgorithmForbidden for what it cannot do.
type HSM interface {
	// Make makes an object that never leaves the token, and shows that it does its work. public is the encoded public key of a pair.
	Make(ctx context.Context, a suite.Algorithm, id string) (public []byte, err error)
	// Seal encrypts as AEADs of the table do, and puts the nonce before the ciphertext.
	Seal(ctx context.Context, id string, plaintext, data []byte) ([]byte, error)
	// Open opens what Seal made. fault.DecryptFailed.
	Open(ctx context.Context, id string, box, data []byte) ([]byte, error)
	// Sign is Signer.Sign of a pair, and Tag of a MAC key.
	Sign(ctx context.Context, a suite.Algorithm, id string, msg []byte) ([]byte, error)
	// Destroy destroys an object, and says whether there was one.
	Destroy(ctx context.Context, id string) (was bool, err error)
	// Alive asks whether the token is there.
	Alive(ctx context.Context) error
}

// The ID of an object says of which version of which key it is, and under which handle: two servers that make one version at a time make two objects, and which of
// them a version has is what its record says. So nothing of a token is stored, and a record that was brought in from elsewhere can name no object but its own.
const objectKey = 16 // bytes of a key's ID

// inHSM is the material that the store keeps of a version in the token: that there is some, bound to its facts as any other.
var inHSM = []byte("rotor/hsm/1")

func objectID(k keyring.Key, v keyring.Version) (string, error) {
	id, err := hex.DecodeString(string(k.ID))
	if err != nil || len(id) != objectKey {
		return "", fmt.Errorf("name the object of key %s: not an ID", k.ID)
	}
	id = binary.BigEndian.AppendUint32(id, v.Number)
	return string(binary.BigEndian.AppendUint32(id, v.Handle)), nil
}

// algorithmFor is the algorithm of a key for which nobody named one.
func (s *Service) algorithmFor(k keyring.Key) suite.Algorithm {
	if k.Custody == keyring.CustodyHSM {
		return cmp.Or(s.suites.DefaultInToken(k.Purpose), s.suites.Default(k.Purpose)) // the latter is refused by name
	}
	return s.suites.Default(k.Purpose)
}

func (s *Service) token() (HSM, error) {
	if s.hsm == nil {
		return nil, fault.New(fault.Unavailable, "token").WithHint("the configuration of this server names none: see hsm.module in docs/reference/configuration.md")
	}
	return s.hsm, nil
}

// newObject has the token make version v. The object is made first: a version without one must not be; an object without a version, which a crash here leaves, protects
// nothing.
func (s *Service) newObject(ctx context.Context, k keyring.Key, v keyring.Version) (keyring.Version, change, error) {
	token, err := s.token()
	if err != nil {
		return v, change{}, err
	}
	v, handle, err := s.newHandle(ctx, k, v)
	if err != nil {
		return v, change{}, err
	}
	id, err := objectID(k, v)
	if err != nil {
		return v, change{}, err
	}
	undo := func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if _, err := token.Destroy(limited, id); err != nil {
			s.log.WarnContext(ctx, "an object that nothing uses is left in the token", "key", k.Name, "version", v.Number, "error", err)
		}
	}
	if v.Public, err = token.Make(ctx, v.Algorithm, id); err != nil {
		undo()
		return v, change{}, err
	}
	made, err := s.place(ctx, k, v, secret.Copy(inHSM))
	if err != nil {
		undo()
		return v, change{}, err
	}
	made.undo = undo
	return v, made.and(handle), nil
}

// undoTime bounds the destruction of an object that came to nothing.
const undoTime = 10 * time.Second

// readyObject names the object of a version.
func (s *Service) readyObject(k keyring.Key, v keyring.Version, m secret.Bytes) (opened, error) {
	if _, err := s.token(); err != nil {
		return opened{}, err
	}
	if !m.Equal(secret.Copy(inHSM)) {
		return opened{}, fault.New(fault.RecordTampered, "material")
	}
	id, err := objectID(k, v)
	return opened{object: id, hsm: s.hsm}, err
}

// inToken is the AEAD of an object for the time of one operation. Seal of an AEAD cannot fail: why this one did stands in err, and what it gave is nothing then.
type inToken struct {
	ctx      context.Context // of the one operation
	opened   opened
	overhead int
	err      error
}

// NonceSize implements cipher.AEAD: nonces are made with the ciphertext.
func (t *inToken) NonceSize() int { return 0 }

// Overhead implements cipher.AEAD.
func (t *inToken) Overhead() int { return t.overhead }

// Seal implements cipher.AEAD.
func (t *inToken) Seal(dst, _, plaintext, data []byte) []byte {
	box, err := t.opened.hsm.Seal(t.ctx, t.opened.object, plaintext, data)
	if err == nil && len(box) != len(plaintext)+t.overhead {
		err = fault.New(fault.AlgorithmForbidden, "token").WithHint("its ciphertexts have another length than the algorithm's")
	}
	if err != nil {
		t.err = err
		return append(dst, make([]byte, len(plaintext)+t.overhead)...)
	}
	return append(dst, box...)
}

// Open implements cipher.AEAD.
func (t *inToken) Open(dst, _, box, data []byte) ([]byte, error) {
	plain, err := t.opened.hsm.Open(t.ctx, t.opened.object, box, data)
	if err != nil {
		if fault.CodeOf(err) != fault.DecryptFailed {
			t.err = err
		}
		return nil, err
	}
	defer clear(plain)
	return append(dst, plain...), nil
}

// failed is what went wrong in the token, or else err.
func (t *inToken) failed(err error) error {
	if t != nil && t.err != nil {
		return t.err
	}
	return err
}

// aead makes the AEAD of a version; the second is nil for one whose key is in memory.
func (u use) aead(ctx context.Context) (cipher.AEAD, *inToken, error) {
	if u.object == "" {
		a, err := suite.NewAEAD(u.version.Algorithm, u.material)
		if err != nil {
			return nil, nil, fmt.Errorf("prepare key %s, version %d: %w", u.key.Name, u.version.Number, err)
		}
		return a, nil, nil
	}
	spec, err := suite.Lookup(u.version.Algorithm)
	if err != nil {
		return nil, nil, err
	}
	t := &inToken{ctx: ctx, opened: u.opened, overhead: spec.Nonce + gcmTag}
	return t, t, nil
}

// gcmTag is the length of the tag of AES-GCM, which is the one AEAD of tokens.
const gcmTag = 16

// messages makes the key of messages of a version.
func (u use) messages(ctx context.Context) (*envelope.MessageKey, *inToken, error) {
	if u.object == "" {
		return u.message, nil, nil
	}
	a, t, err := u.aead(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := envelope.NewMessageKeyWith(u.version.Algorithm, a, u.version.Handle, string(u.key.Namespace), string(u.key.ID))
	return m, t, err
}

func (u use) encrypt(ctx context.Context, plaintext []byte, parts []envelope.Part) ([]byte, error) {
	m, t, err := u.messages(ctx)
	if err != nil {
		return nil, err
	}
	out, err := m.Encrypt(nil, plaintext, parts...)
	if err = t.failed(err); err != nil {
		return nil, err
	}
	return out, nil
}

func (u use) decrypt(ctx context.Context, message []byte, parts []envelope.Part) ([]byte, error) {
	m, t, err := u.messages(ctx)
	if err != nil {
		return nil, err
	}
	out, err := m.Decrypt(nil, message, parts...)
	if err = t.failed(err); err != nil {
		return nil, err
	}
	return out, nil
}

func (u use) seal(ctx context.Context, dek secret.Bytes, immutable []byte, protectTime time.Time) (envelope.Wrap, error) {
	aead, t, err := u.aead(ctx)
	if err != nil {
		return envelope.Wrap{}, err
	}
	w, err := envelope.SealDEK(aead, envelope.Wrap{
		Type: envelope.WrapKMS, KeyID: string(u.key.ID), Version: u.version.Number, Algorithm: u.version.Algorithm,
		ProtectTime: protectTime.UTC().Truncate(time.Second),
	}, immutable, dek)
	if err = t.failed(err); err != nil {
		return envelope.Wrap{}, err
	}
	return w, nil
}

func (u use) openDEK(ctx context.Context, w envelope.Wrap, immutable []byte) (secret.Bytes, error) {
	aead, t, err := u.aead(ctx)
	if err != nil {
		return secret.Bytes{}, err
	}
	dek, err := envelope.OpenDEK(aead, w, immutable)
	return dek, t.failed(err)
}

func (u use) sign(ctx context.Context, msg []byte) ([]byte, error) {
	if u.object != "" {
		return u.hsm.Sign(ctx, u.version.Algorithm, u.object, msg)
	}
	return u.signer.Sign(msg)
}

func (u use) tag(ctx context.Context, msg []byte) ([]byte, error) {
	if u.object != "" {
		return u.hsm.Sign(ctx, u.version.Algorithm, u.object, msg)
	}
	return suite.Tag(u.version.Algorithm, u.material, msg)
}

// verifyTag makes the tag again and compares in constant time. suite.ErrSignature.
func (u use) verifyTag(ctx context.Context, msg, tag []byte) error {
	want, err := u.tag(ctx, msg)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(want, tag) != 1 {
		return suite.ErrSignature
	}
	return nil
}

// sweepEvery is when the token is looked at without a reason, and when a sweep that failed is tried again.
const sweepEvery = time.Minute

func (s *Service) wantSweep() {
	select {
	case s.sweep <- struct{}{}:
	default: // it is wanted already
	}
}

// TokenUp says whether the token answered when it was asked last; there is false without one.
func (s *Service) TokenUp() (up, there bool) { return s.tokenUp.Load(), s.hsm != nil }

// Sweep destroys the objects of versions that are destroyed, until ctx ends: at the start, after each commit that may have destroyed one, and again until the token can be
// reached. Several servers may do so at once.
func (s *Service) Sweep(ctx context.Context) error {
	if s.hsm == nil {
		return nil
	}
	swept := map[string]bool{}
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	s.wantSweep()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.sweep:
		case <-every.C:
		}
		err := s.hsm.Alive(ctx)
		if err == nil {
			err = s.sweepOnce(ctx, swept)
		}
		if ctx.Err() != nil {
			return nil
		}
		if s.tokenUp.Store(err == nil); err != nil {
			s.log.WarnContext(ctx, "the token cannot be looked at, and what is destroyed may still be in it", "error", err)
		}
	}
}

// sweepOnce destroys what the ring says is to be, and notes what is done. No other object is touched: one of a version that the ring does not know may be of a commit under way, or of a newer copy of this
// store.
func (s *Service) sweepOnce(ctx context.Context, swept map[string]bool) error {
	for _, k := range s.Keys() {
		if k.Custody != keyring.CustodyHSM {
			continue
		}
		for v := range k.All() {
			if k.KeepsMaterial(v) {
				continue
			}
			if err := s.sweepVersion(ctx, k, v, swept); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) sweepVersion(ctx context.Context, k keyring.Key, v keyring.Version, swept map[string]bool) error {
	id, err := objectID(k, v)
	if err != nil || swept[id] {
		return err
	}
	was, err := s.hsm.Destroy(ctx, id)
	if err != nil {
		return err
	}
	if was {
		detail := versionDetail(v.Number)
		detail["token"] = "object destroyed"
		if err := s.guard.System("kms", policy.ActDestroy, Resource(k)).Release(ctx, detail); err != nil {
			return err
		}
	}
	swept[id] = true
	return nil
}
