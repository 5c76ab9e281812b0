package suite

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// AES key wrap with padding (RFC 5649; SP 800-38F, KWP): the form in which cloud services and PKCS #11 tokens exchange keys. It has neither
// nonce nor associated data, so rotor uses it for import and export alone.

// kwpConstant begins the alternative initial value (RFC 5649, 3).
const kwpConstant = 0xA65959A6

// maxWrapped bounds what is wrapped, in bytes: far above any key.
const maxWrapped = 64 << 10

var errUnwrap = errors.New("suite: key does not unwrap")

// WrapKWP wraps 1 to 65,536 bytes under an AES key of 16, 24 or 32 bytes. fault.Invalid.
func WrapKWP(kek, key secret.Bytes) ([]byte, error) {
	block, err := aes.NewCipher(kek.Reveal())
	if err != nil || key.Len() == 0 || key.Len() > maxWrapped {
		return nil, fault.New(fault.Invalid, "key to wrap").WithHint("1 to %d bytes under an AES key", maxWrapped)
	}
	b := make([]byte, 8+(key.Len()+7)/8*8) // initial value, key, zeros
	binary.BigEndian.PutUint32(b, kwpConstant)
	binary.BigEndian.PutUint32(b[4:], uint32(key.Len()))
	copy(b[8:], key.Reveal())
	if len(b) == aes.BlockSize {
		block.Encrypt(b, b)
		return b, nil
	}
	n := len(b)/8 - 1
	var in [aes.BlockSize]byte
	copy(in[:8], b)
	for t := 1; t <= 6*n; t++ { // RFC 3394, 2.2.1
		r := b[8+8*((t-1)%n):][:8]
		copy(in[8:], r)
		block.Encrypt(in[:], in[:])
		copy(r, in[8:])
		xorCounter(in[:8], uint64(t))
	}
	copy(b, in[:8])
	return b, nil
}

// UnwrapKWP opens what WrapKWP made. Whatever is wrong, the error is one.
func UnwrapKWP(kek secret.Bytes, wrapped []byte) (secret.Bytes, error) {
	block, err := aes.NewCipher(kek.Reveal())
	if err != nil || len(wrapped) < aes.BlockSize || len(wrapped)%8 != 0 || len(wrapped) > maxWrapped+8 {
		return secret.Bytes{}, errUnwrap
	}
	b := append([]byte(nil), wrapped...)
	unwind(block, b)
	size, padded := uint64(binary.BigEndian.Uint32(b[4:])), uint64(len(b)-8)
	ok := subtle.ConstantTimeCompare(b[:4], binary.BigEndian.AppendUint32(nil, kwpConstant))
	if size > padded || size+8 <= padded {
		ok, size = 0, padded
	}
	var pad byte
	for _, c := range b[8+size:] {
		pad |= c
	}
	if ok&subtle.ConstantTimeByteEq(pad, 0) != 1 || size == 0 {
		clear(b)
		return secret.Bytes{}, errUnwrap
	}
	return secret.Take(b[8 : 8+size]), nil
}

// unwind undoes the wrapping of b in place (RFC 3394, 2.2.2).
func unwind(block cipher.Block, b []byte) {
	if len(b) == aes.BlockSize {
		block.Decrypt(b, b)
		return
	}
	n := len(b)/8 - 1
	var in [aes.BlockSize]byte
	copy(in[:8], b)
	for t := 6 * n; t > 0; t-- {
		r := b[8+8*((t-1)%n):][:8]
		xorCounter(in[:8], uint64(t))
		copy(in[8:], r)
		block.Decrypt(in[:], in[:])
		copy(r, in[8:])
	}
	copy(b, in[:8])
}

func xorCounter(b []byte, t uint64) {
	binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)^t)
}
