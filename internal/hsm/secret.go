//go:build pkcs11

package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"

	"github.com/miekg/pkcs11"

	"github.com/rotorkms/rotor/internal/secret"
)

const (
	nonceSize = 12 // of AES-GCM, bytes
	tagSize   = 16

	atOnce = 512 // objects that one call of a search returns

	aeadDecryptFailed = pkcs11.Error(0x42) // CKR_AEAD_DECRYPT_FAILED of 3.0
)

// object is what handles are remembered by.
type object struct {
	Name
	class uint
}

func (o object) attributes() []*pkcs11.Attribute {
	a := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, o.class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, o.Label)}
	if o.ID != "" {
		a = append(a, pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(o.ID)))
	}
	return a
}

// search finds objects in the token.
func (s *session) search(o object) ([]pkcs11.ObjectHandle, error) {
	return s.list(o.attributes(), math.MaxInt)
}

// list finds at most so many objects.
func (s *session) list(attributes []*pkcs11.Attribute, most int) (found []pkcs11.ObjectHandle, err error) {
	s.token.module.alone.Lock()
	defer s.token.module.alone.Unlock()
	if err := s.lib.FindObjectsInit(s.at, attributes); err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	for len(found) < most {
		some, _, err := s.lib.FindObjects(s.at, min(most-len(found), atOnce))
		if err != nil {
			return nil, fmt.Errorf("search: %w", errors.Join(err, s.lib.FindObjectsFinal(s.at)))
		}
		if found = append(found, some...); len(some) == 0 {
			break
		}
	}
	if err := s.lib.FindObjectsFinal(s.at); err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	return found, nil
}

// showsAny says whether the token shows something that is private: so it is there, and we are logged in.
func (s *session) showsAny() (bool, error) {
	found, err := s.list([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true)}, 1)
	return len(found) > 0, err
}

// Alive asks whether the token is there and lets us in. ErrAway.
func (t *Token) Alive(ctx context.Context) error {
	return t.do(ctx, func(s *session) error {
		any, err := s.showsAny()
		if err == nil && !any && !s.fresh {
			err = errEmpty
		}
		return err
	})
}

// nothing says that a search found nothing: ErrNoKey where that is believed. A library whose token was pulled out may go on and find nothing, and so does a session that is logged in no more. So it
// is believed where the token shows other private objects, or where the library was begun for the question; and of that object then until it is begun again.
func (s *session) nothing(o object) error {
	any, err := s.showsAny()
	if err != nil {
		return err
	}
	s.token.mu.Lock()
	defer s.token.mu.Unlock()
	if s.fresh && s.token.epoch == s.epoch {
		s.token.missing[o] = true
	}
	if any || s.token.missing[o] {
		return ErrNoKey
	}
	return errEmpty
}

// find is search with a memory. ErrNoKey.
func (s *session) find(o object) ([]pkcs11.ObjectHandle, error) {
	t := s.token
	t.mu.Lock()
	known := t.handles[o]
	t.mu.Unlock()
	if len(known) > 0 {
		return known, nil
	}
	found, err := s.search(o)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, s.nothing(o)
	}
	s.remember(o, found)
	return found, nil
}

func (s *session) remember(o object, found []pkcs11.ObjectHandle) {
	s.token.mu.Lock()
	defer s.token.mu.Unlock()
	if s.token.epoch == s.epoch {
		s.token.handles[o] = found
	}
}

// IDs are the CKA_ID of the secret and private keys of a label. ErrAway, ErrNoKey when there is none.
func (t *Token) IDs(ctx context.Context, label string) ([]string, error) {
	out := make(chan []string, 1)
	err := t.do(ctx, func(s *session) error {
		var ids []string
		for _, class := range keyClasses() {
			found, err := s.search(object{Name{Label: label}, class})
			if err != nil {
				return err
			}
			for _, h := range found {
				a, err := s.lib.GetAttributeValue(s.at, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil)})
				if err != nil {
					return fmt.Errorf("read CKA_ID: %w", err)
				}
				ids = append(ids, string(a[0].Value))
			}
		}
		if len(ids) == 0 {
			return s.nothing(object{Name: Name{Label: label}})
		}
		return give(out, ids)
	})
	if err != nil {
		return nil, err
	}
	return <-out, nil
}

// keyClasses are the classes of the objects that hold something secret.
func keyClasses() []uint { return []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY} }

// give puts what an operation returns where its caller takes it, if it still waits.
func give[T any](out chan T, v T) error {
	select {
	case <-out: // of an attempt whose answer nobody saw
	default:
	}
	out <- v
	return nil
}

// unfinished is the label of keys that are being made: some tokens show an object before it is whole, so it gets its name when it is. One that keeps this
// label was cut off and never used.
const unfinished = "rotor unfinished"

// hidden are the attributes of what never leaves the token.
func hidden(attributes ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, unfinished), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
	}, attributes...)
}

// MakeAES has the token make an AES key of 16 or 32 bytes that never leaves it. When an answer is lost there may be two of a name, either as good. ErrAway, ErrUnable.
func (t *Token) MakeAES(ctx context.Context, n Name, size int) error {
	return t.do(ctx, func(s *session) error {
		h, err := s.makeSecret(pkcs11.CKM_AES_KEY_GEN, hidden(
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, size),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
			pkcs11.NewAttribute(pkcs11.CKA_WRAP, false), pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, false), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, false)))
		if err != nil {
			return fmt.Errorf("make AES key: %w", err)
		}
		return s.finish(h, n)
	})
}

func (s *session) makeSecret(mechanism uint, attributes []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	s.token.module.alone.Lock()
	defer s.token.module.alone.Unlock()
	return s.lib.GenerateKey(s.at, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, attributes)
}

func (s *session) destroy(h pkcs11.ObjectHandle) error {
	s.token.module.alone.Lock()
	defer s.token.module.alone.Unlock()
	return s.lib.DestroyObject(s.at, h)
}

// finish gives an object that is whole its name.
func (s *session) finish(h pkcs11.ObjectHandle, n Name) error {
	s.token.module.alone.Lock()
	err := s.lib.SetAttributeValue(s.at, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(n.ID)), pkcs11.NewAttribute(pkcs11.CKA_LABEL, n.Label)})
	s.token.module.alone.Unlock()
	if err != nil {
		_ = s.destroy(h) // the name says what is wrong
		return fmt.Errorf("name key: %w", err)
	}
	return nil
}

// Encrypt encrypts by AES-256-GCM (SP 800-38D; PKCS #11 2.40, 2.12.3) under a key of the token: nonce 12, ciphertext, tag 16. The nonce is random, of ours or, where the
// token insists, of its own. ErrAway, ErrNoKey, ErrUnable.
func (t *Token) Encrypt(ctx context.Context, n Name, plaintext secret.Bytes, data []byte) ([]byte, error) {
	out := make(chan []byte, 1)
	own := secret.Copy(plaintext.Reveal()) // the caller may overwrite its own while the library still reads
	err := t.do(ctx, func(s *session) error {
		found, err := s.find(object{n, pkcs11.CKO_SECRET_KEY})
		if err != nil {
			return err
		}
		box, err := s.seal(found[0], own.Reveal(), data)
		if err != nil {
			return err
		}
		return give(out, box)
	})
	if !errors.Is(err, ErrAway) { // else a call that was given up may still read it, and it is left to the collector
		own.Destroy()
	}
	if err != nil {
		return nil, err
	}
	return <-out, nil
}

func (s *session) seal(key pkcs11.ObjectHandle, plaintext, data []byte) ([]byte, error) {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	p := pkcs11.NewGCMParams(nonce, data, 8*tagSize)
	defer p.Free()
	if err := s.lib.EncryptInit(s.at, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, key); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	sealed, err := s.lib.Encrypt(s.at, plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	if nonce = p.IV(); len(nonce) != nonceSize || len(sealed) != len(plaintext)+tagSize {
		return nil, fmt.Errorf("%w: AES-GCM with a nonce of %d bytes and %d more than the plaintext", ErrUnable, len(nonce), len(sealed)-len(plaintext))
	}
	return append(nonce, sealed...), nil
}

// Decrypt opens what Encrypt made. ErrAway, ErrNoKey, ErrRefused, ErrUnable.
func (t *Token) Decrypt(ctx context.Context, n Name, box, data []byte) (secret.Bytes, error) {
	if len(box) < nonceSize+tagSize {
		return secret.Bytes{}, ErrRefused
	}
	out := make(chan secret.Bytes, 1)
	err := t.do(ctx, func(s *session) error {
		found, err := s.find(object{n, pkcs11.CKO_SECRET_KEY})
		if err != nil {
			return err
		}
		for _, h := range found {
			plain, err := s.open(h, box, data)
			if err == nil {
				return give(out, secret.Take(plain))
			}
			if !errors.Is(err, ErrRefused) {
				return err
			}
		}
		return s.lookAgain(object{n, pkcs11.CKO_SECRET_KEY}, found, ErrRefused)
	})
	if err != nil {
		return secret.Bytes{}, err
	}
	return <-out, nil
}

// lookAgain refuses, unless there are others of the name by now: then they are tried next time.
func (s *session) lookAgain(o object, tried []pkcs11.ObjectHandle, refused error) error {
	found, err := s.search(o)
	if err != nil {
		return err
	}
	if len(found) > len(tried) {
		return fmt.Errorf("there are other keys of this name by now: %w", pkcs11.Error(pkcs11.CKR_KEY_HANDLE_INVALID)) // lost, so that it is repeated
	}
	return refused
}

func (s *session) open(key pkcs11.ObjectHandle, box, data []byte) ([]byte, error) {
	p := pkcs11.NewGCMParams(box[:nonceSize], data, 8*tagSize)
	defer p.Free()
	if err := s.lib.DecryptInit(s.at, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, key); err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	plain, err := s.lib.Decrypt(s.at, box[nonceSize:])
	if err == nil {
		return plain, nil
	}
	switch e, _ := codeOf(err); e {
	case pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE, aeadDecryptFailed:
		return nil, ErrRefused
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED: // some say this of a wrong tag too: it is one if the token is there
		if s.well(key) {
			return nil, ErrRefused
		}
	}
	return nil, fmt.Errorf("decrypt: %w", err)
}

// well says whether the token still knows the object. Nothing is encrypted for the question: whoever sends nonsense would use up the nonces of the key.
func (s *session) well(key pkcs11.ObjectHandle) bool {
	a, err := s.lib.GetAttributeValue(s.at, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, nil)})
	return err == nil && len(a) == 1 && len(a[0].Value) > 0
}

// Destroy destroys the keys of a name in the token, all of them, and says whether there were any. ErrAway, ErrUnable.
func (t *Token) Destroy(ctx context.Context, n Name) (were bool, err error) {
	err = t.do(ctx, func(s *session) error {
		gone, err := s.clear(n)
		if err == nil && gone == 0 {
			err = s.nothing(object{Name: n})
		}
		return err
	})
	if errors.Is(err, ErrNoKey) {
		return false, nil
	}
	return err == nil, err
}

// clear destroys what has a name, and counts it.
func (s *session) clear(n Name) (gone int, err error) {
	for _, class := range keyClasses() {
		o := object{n, class}
		found, err := s.search(o)
		if err != nil {
			return gone, err
		}
		s.remember(o, nil)
		for _, h := range found {
			if err := s.destroy(h); err != nil {
				return gone, fmt.Errorf("destroy: %w", err)
			}
			gone++
		}
	}
	return gone, nil
}
