package suite

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"sync"

	"github.com/rotorkms/rotor/internal/secret"
)

// Sizes of XAES-256-GCM in bytes.
const (
	XAESKeySize   = 32
	XAESNonceSize = 24
	XAESTagSize   = 16
)

var errXAESOpen = errors.New("suite: message authentication failed")

// xaes is XAES-256-GCM (C2SP, XAES-256-GCM.md): each message has its own AES-256-GCM key, derived by the SP 800-108r1 CMAC
// counter KDF from the first half of the nonce; the second half is the GCM nonce.
type xaes struct {
	block cipher.Block
	k1    [aes.BlockSize]byte // the CMAC subkey K1 (SP 800-38B, 6.1)
}

// NewXAES makes the AEAD from a 32-byte key; in FIPS mode as NewAEAD says. It allocates only in the derivation of each message's key.
func NewXAES(key secret.Bytes) (cipher.AEAD, error) {
	if key.Len() != XAESKeySize {
		return nil, errors.New("suite: XAES-256-GCM takes a key of 32 bytes")
	}
	block, err := aes.NewCipher(key.Reveal())
	if err != nil {
		return nil, err
	}
	x := &xaes{block: block}
	block.Encrypt(x.k1[:], x.k1[:])
	var msb byte
	for i := aes.BlockSize - 1; i >= 0; i-- {
		next := x.k1[i] >> 7
		x.k1[i] = x.k1[i]<<1 | msb
		msb = next
	}
	x.k1[aes.BlockSize-1] ^= 0x87 & -msb
	if fips140.Enabled() {
		return ownNonces{x}, nil
	}
	return x, nil
}

// ownNonces is XAES-256-GCM in FIPS mode: the second half of the nonce is made by the module, as it approves no other GCM, the first by the same
// generator. Its nonce size is 0; nonce, ciphertext and tag are one piece, and the bytes are those of XAES-256-GCM.
type ownNonces struct{ x *xaes }

func (o ownNonces) NonceSize() int { return 0 }
func (o ownNonces) Overhead() int  { return XAESNonceSize + XAESTagSize }

func (o ownNonces) Seal(dst, _, plaintext, data []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, 12, 12+len(plaintext)+12+XAESTagSize)...)
	rand.Read(dst[at:])
	return o.x.derive(dst[at:]).Seal(dst, nil, plaintext, data)
}

func (o ownNonces) Open(dst, _, box, data []byte) ([]byte, error) {
	if len(box) < o.Overhead() {
		return nil, errXAESOpen
	}
	return o.x.derive(box[:12]).Open(dst, nil, box[12:], data)
}

func (x *xaes) NonceSize() int { return XAESNonceSize }
func (x *xaes) Overhead() int  { return XAESTagSize }

// messageKeys are buffers for the keys of messages, zero while nobody has them: on the stack they cannot be, behind cipher.Block.
var messageKeys = sync.Pool{New: func() any { return new([32]byte) }}

// derive makes the GCM of one message from the first 12 bytes of its nonce.
func (x *xaes) derive(nonce []byte) cipher.AEAD {
	key, ok := messageKeys.Get().(*[32]byte)
	if !ok {
		panic("suite: the pool holds something else")
	}
	defer messageKeys.Put(key)
	for i := range byte(2) {
		half := key[16*i : 16*i+16]
		copy(half, []byte{0, i + 1, 'X', 0})
		copy(half[4:], nonce[:12])
		subtle.XORBytes(half, half, x.k1[:])
		x.block.Encrypt(half, half)
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("suite: aes refuses a 32-byte key")
	}
	gcm, err := newGCM(block)
	if err != nil {
		panic("suite: gcm refuses aes")
	}
	clear(key[:])
	return gcm
}

func (x *xaes) Seal(dst, nonce, plaintext, data []byte) []byte {
	if len(nonce) != XAESNonceSize {
		panic("suite: XAES-256-GCM takes a nonce of 24 bytes")
	}
	return x.derive(nonce).Seal(dst, nonce[12:], plaintext, data)
}

func (x *xaes) Open(dst, nonce, ciphertext, data []byte) ([]byte, error) {
	if len(nonce) != XAESNonceSize {
		return nil, errXAESOpen
	}
	return x.derive(nonce).Open(dst, nonce[12:], ciphertext, data)
}
