package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/rotorkms/rotor/internal/fault"
)

// FLOE (C2SP FLOE) with AES-GCM-256, HKDF-EXPAND-SHA-384, an IV of 32 bytes and segments of 16,416 bytes, which hold 16 KiB of plaintext. Its GCM
// nonces are random, so that it runs in FIPS mode, and a segment can be written anew.
const (
	floeSegment  = chunkSize + floeOverhead
	floeOverhead = 4 + 12 + tagSize // length, nonce, tag
	floeIV       = 32
	floeParams   = 10
	floeFront    = floeParams + floeIV + 32
	floeKDFKey   = 48
	floeRotation = 20 // 2^20 segments are under one key
	floeMore     = 0xFFFFFFFF
)

// floe is one FLOE ciphertext; safe for concurrent use.
type floe struct {
	messageKey [floeKDFKey]byte
	front      [floeFront]byte
	context    []byte

	mu   sync.Mutex // guards what follows
	span int64      // of segments that aead is for
	aead cipher.AEAD
}

// floeEncoded are the parameters as FLOE encodes them: AEAD 0, KDF 0, length of a segment, length of the IV.
func floeEncoded() []byte {
	b := binary.BigEndian.AppendUint32([]byte{0, 0}, floeSegment)
	return binary.BigEndian.AppendUint32(b, floeIV)
}

// kdf is FLOE_KDF.
func (f *floe) kdf(key []byte, purpose string, n int) ([]byte, error) {
	info := string(f.front[:floeParams+floeIV]) + purpose + string(f.context)
	return hkdf.Expand(sha512.New384, key, info, n)
}

// newFLOE derives what a ciphertext with this IV needs from the data key.
func newFLOE(dek Secret, iv, context []byte) (*floe, error) {
	f := &floe{context: context, span: -1}
	copy(f.front[:], floeEncoded())
	copy(f.front[floeParams:], iv)
	tag, err := f.kdf(dek.Reveal(), "HEADER_TAG:", 32)
	if err != nil {
		return nil, fmt.Errorf("derive payload key: %w", err)
	}
	copy(f.front[floeParams+floeIV:], tag)
	key, err := f.kdf(dek.Reveal(), "MESSAGE_KEY:", floeKDFKey)
	if err != nil {
		return nil, fmt.Errorf("derive payload key: %w", err)
	}
	copy(f.messageKey[:], key)
	clear(key)
	return f, nil
}

// cipher is the AEAD of segment n.
func (f *floe) cipher(n int64) (cipher.AEAD, error) {
	span := n >> floeRotation
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.span == span {
		return f.aead, nil
	}
	key, err := f.kdf(f.messageKey[:], "DEK:"+string(binary.BigEndian.AppendUint64(nil, uint64(span<<floeRotation))), 32)
	if err != nil {
		return nil, fmt.Errorf("derive segment key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive segment key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive segment key: %w", err)
	}
	f.span, f.aead = span, aead
	return aead, nil
}

// floeData is the associated data of a segment.
func floeData(n int64, last bool) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 9), uint64(n))
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}

// seal appends segment n to dst, which must not overlap plain.
func (f *floe) seal(dst []byte, n int64, plain []byte, last bool) ([]byte, error) {
	aead, err := f.cipher(n)
	if err != nil {
		return nil, err
	}
	size := uint32(floeMore)
	if last {
		size = uint32(len(plain) + floeOverhead)
	}
	return aead.Seal(binary.BigEndian.AppendUint32(dst, size), nil, plain, floeData(n, last)), nil
}

// open appends the plaintext of segment n to dst, which may overlap sealed. fault.DecryptFailed.
func (f *floe) open(dst []byte, n int64, sealed []byte, last bool) ([]byte, error) {
	failed := fault.New(fault.DecryptFailed, fmt.Sprintf("chunk %d of the file", n))
	want := uint32(floeMore)
	if last {
		want = uint32(len(sealed))
	}
	if len(sealed) < floeOverhead || len(sealed) > floeSegment || !last && len(sealed) != floeSegment || binary.BigEndian.Uint32(sealed) != want {
		return nil, failed
	}
	aead, err := f.cipher(n)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, sealed[4:], floeData(n, last))
	if err != nil {
		return nil, failed
	}
	defer clear(plain)
	return append(dst, plain...), nil
}
