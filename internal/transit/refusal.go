package transit

import (
	"errors"

	"github.com/rotorkms/rotor/internal/fault"
)

// Refusal is why a use is refused, in the words that clients of Vault match. It is the cause of a fault.
type Refusal string

// Error returns the words.
func (r Refusal) Error() string { return string(r) }

// Refusals that front ends need by name.
const (
	NoContext   Refusal = "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key"
	TooOld      Refusal = "ciphertext or signature version is disallowed by policy (too old)"
	TooNew      Refusal = "invalid ciphertext: version is too new"
	SigTooNew   Refusal = "invalid signature: version is too new"
	HMACTooNew  Refusal = "invalid HMAC: version is too new"
	HMACTooOld  Refusal = "cannot verify HMAC: version is too old (disallowed by policy)"
	WithNonce   Refusal = "nonce provided when not allowed"
	NoPrivate   Refusal = "requested version for signing does not contain a private part"
	WrongCipher Refusal = "cipher: message authentication failed"
	WrongChaCha Refusal = "chacha20poly1305: message authentication failed"
	TooShort    Refusal = "invalid ciphertext length"
	WrongRSA    Refusal = "failed to RSA decrypt the ciphertext: crypto/rsa: decryption error"
	NoHashRSA   Refusal = "hash_algorithm=none requires both prehashed=true and signature_algorithm=pkcs1v15"
)

// Text returns the words of a refusal in an error's chain; empty: there are none.
func Text(err error) string {
	var r Refusal
	errors.As(err, &r)
	return string(r)
}

// refused is a fault.Invalid with the words.
func refused(text Refusal) error { return fault.Wrap(fault.Invalid, "request", text) }
