package suite

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/rand"
	"errors"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// NewAEAD makes the AEAD of an encrypt or wrap version. It is safe for concurrent use. In FIPS mode the AES ones choose their nonces themselves:
// their nonce size is 0 and their overhead has it in it, so the bytes of Seal are the same. fault.AlgorithmForbidden; fault.Invalid for material of
// another length.
func NewAEAD(a Algorithm, material secret.Bytes) (cipher.AEAD, error) {
	s, err := Lookup(a)
	if err != nil {
		return nil, err
	}
	if s.Nonce == 0 {
		return nil, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" as AEAD")
	}
	if material.Len() != s.KeyBytes {
		return nil, fault.New(fault.Invalid, "key").WithHint("%s takes %d bytes", a, s.KeyBytes)
	}
	switch a {
	case XAES256GCM:
		return NewXAES(material)
	case ChaCha20Poly1305:
		return chacha20poly1305.New(material.Reveal())
	case XChaCha20Poly1305:
		return chacha20poly1305.NewX(material.Reveal())
	}
	block, err := aes.NewCipher(material.Reveal())
	if err != nil {
		return nil, err
	}
	return newGCM(block)
}

// newGCM is AES-GCM: in FIPS mode with nonces of the module's own generator, which approves no others (SP 800-38D, 8.2).
func newGCM(block cipher.Block) (cipher.AEAD, error) {
	if fips140.Enabled() {
		return cipher.NewGCMWithRandomNonce(block)
	}
	return cipher.NewGCM(block)
}

// Seal appends a fresh nonce, the ciphertext and the tag to dst, which must not overlap plaintext.
func Seal(a cipher.AEAD, dst, plaintext, data []byte) []byte {
	n := a.NonceSize()
	if n == 0 {
		return a.Seal(dst, nil, plaintext, data)
	}
	at := len(dst)
	dst = slices.Grow(dst, n+len(plaintext)+a.Overhead())[:at+n]
	rand.Read(dst[at:])
	return a.Seal(dst, dst[at:], plaintext, data)
}

var errShort = errors.New("suite: box is too short")

// Open appends the plaintext of what Seal made to dst, which must not overlap box. It returns an error whatever is wrong.
func Open(a cipher.AEAD, dst, box, data []byte) ([]byte, error) {
	n := a.NonceSize()
	if len(box) < n+a.Overhead() {
		return nil, errShort
	}
	return a.Open(dst, box[:n], box[n:], data)
}
