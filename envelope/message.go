// Package envelope is rotor's formats in code: messages (fields, cache entries) and files (model weights, data sets). It makes
// and opens them with keys that it is given and never fetches one. Normative text: spec/message.md, spec/file.md.
package envelope

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strings"
	"sync"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Secret is key bytes that cannot leak.
type Secret = secret.Bytes

// Sizes of a message in bytes: suite 1, handle 4, nonce 24 (12 of some suites), ciphertext, tag 16.
const (
	suiteXAES       = 1
	messageFront    = 1 + 4
	messageTag      = 16
	MessageOverhead = messageFront + suite.XAESNonceSize + messageTag // at most: of the default suite and of all with nonces as long
	maxPlaintext    = 1 << 35                                         // AES-GCM ends a little below 2^36 bytes
	textPrefix      = "rk1."
)

// Part is one labelled piece of associated data: what a message is bound to and does not carry. Order counts.
type Part struct {
	Label string
	Value []byte
}

// MessageKey encrypts and decrypts under one key version. Safe for concurrent use.
type MessageKey struct {
	aead   cipher.AEAD
	suite  byte
	nonce  int // bytes of the nonce, wherever it is made
	handle uint32
	prefix []byte // of the associated data: all that is the same for every message
}

// NewMessageKey makes a key from 32 bytes of material, of the default suite, XAES-256-GCM. The handle names the version in the namespace; the
// IDs go into the associated data of each message, so that no message opens under another namespace or key.
func NewMessageKey(material Secret, handle uint32, namespaceID, keyID string) (*MessageKey, error) {
	return NewMessageKeyOf(suite.XAES256GCM, material, handle, namespaceID, keyID)
}

// NewMessageKeyOf is NewMessageKey of another algorithm. fault.AlgorithmForbidden for one that has no messages, Invalid for material of a wrong length.
func NewMessageKeyOf(a suite.Algorithm, material Secret, handle uint32, namespaceID, keyID string) (*MessageKey, error) {
	if _, err := messageSpec(a); err != nil {
		return nil, err
	}
	aead, err := suite.NewAEAD(a, material)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "message key", err)
	}
	return NewMessageKeyWith(a, aead, handle, namespaceID, keyID)
}

func messageSpec(a suite.Algorithm) (suite.Spec, error) {
	spec, err := suite.Lookup(a)
	if err == nil && (spec.Message == 0 || spec.Nonce == 0) {
		err = fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" for messages")
	}
	return spec, err
}

// NewMessageKeyWith is NewMessageKeyOf of an AEAD of the algorithm, whose key is elsewhere. One that makes its nonces itself has a nonce size of 0 and puts them before the
// ciphertext. fault.AlgorithmForbidden.
func NewMessageKeyWith(a suite.Algorithm, aead cipher.AEAD, handle uint32, namespaceID, keyID string) (*MessageKey, error) {
	spec, err := messageSpec(a)
	if err != nil {
		return nil, err
	}
	p := appendField(nil, []byte("rotor/field/1"))
	p = appendField(p, []byte{spec.Message})
	p = appendField(p, binary.BigEndian.AppendUint32(nil, handle))
	p = appendField(p, []byte(namespaceID))
	p = appendField(p, []byte(keyID))
	return &MessageKey{aead: aead, suite: spec.Message, nonce: spec.Nonce, handle: handle, prefix: p}, nil
}

// Overhead is how much longer a message is than its plaintext, in bytes.
func (k *MessageKey) Overhead() int { return messageFront + k.nonce + messageTag }

// Encrypt appends the message for a plaintext to dst. Its length is the plaintext's + Overhead. The plaintext may share memory with
// dst, whose bytes after its length are overwritten. fault.TooLarge.
func (k *MessageKey) Encrypt(dst, plaintext []byte, parts ...Part) ([]byte, error) {
	if uint64(len(plaintext)) > maxPlaintext {
		return nil, fault.New(fault.TooLarge, "plaintext")
	}
	scratch := borrowScratch()
	data, err := k.data(scratch, parts) // before anything is written: the parts may share memory with dst too
	if err != nil {
		return nil, err
	}
	n, size := len(dst), len(plaintext)
	need := size + k.Overhead()
	if cap(dst)-n < need {
		dst = append(make([]byte, 0, n+need), dst...)
	}
	m, front := dst[n:n+need], messageFront+k.nonce
	if k.aead.NonceSize() == 0 { // makes its nonces itself and puts them before the ciphertext
		own := bytes.Clone(plaintext)
		k.aead.Seal(m[messageFront:messageFront], nil, own, data)
		clear(own)
	} else {
		copy(m[front:], plaintext) // first, and encrypted in place
		nonce, body := m[messageFront:front], m[front:front+size]
		rand.Read(nonce)
		k.aead.Seal(body[:0], nonce, body, data)
	}
	m[0] = k.suite
	binary.BigEndian.PutUint32(m[1:], k.handle)
	scratches.Put(scratch)
	return dst[:n+need], nil
}

// Decrypt appends the plaintext of a message to dst, which must not share memory with the message. Whatever is wrong, the error is
// fault.DecryptFailed.
func (k *MessageKey) Decrypt(dst, message []byte, parts ...Part) ([]byte, error) {
	h, err := MessageHandle(message)
	if err != nil || h != k.handle || message[0] != k.suite || uint64(len(message)) > maxPlaintext {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	scratch := borrowScratch()
	data, err := k.data(scratch, parts)
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	out, err := suite.Open(k.aead, dst, message[messageFront:], data)
	scratches.Put(scratch)
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	return out, nil
}

// data is the associated data of a message. fault.TooLarge for a part that its length field cannot tell.
func (k *MessageKey) data(scratch *[]byte, parts []Part) ([]byte, error) {
	if len(parts) == 0 {
		return k.prefix, nil
	}
	b := append((*scratch)[:0], k.prefix...)
	for _, p := range parts {
		if uint64(len(p.Label)) > math.MaxUint32 || uint64(len(p.Value)) > math.MaxUint32 {
			return nil, fault.New(fault.TooLarge, "associated data")
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(p.Label)))
		b = append(b, p.Label...)
		b = appendField(b, p.Value)
	}
	if cap(b) <= maxScratch {
		*scratch = b
	}
	return b, nil
}

// scratches hold associated data, which is not secret, for the time of a call: it would be an allocation for each message.
var scratches = sync.Pool{New: func() any {
	b := make([]byte, 0, 512)
	return &b
}}

// maxScratch is the largest buffer that is kept for the next message, in bytes.
const maxScratch = 64 << 10

func borrowScratch() *[]byte {
	b, ok := scratches.Get().(*[]byte)
	if !ok {
		panic("envelope: the pool holds something else")
	}
	return b
}

// appendField appends a length of 4 bytes and the field, so that no two lists of fields give the same bytes.
func appendField(b, field []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
}

// MessageHandle reads the handle of the version that made a message. fault.Invalid for bytes that are no message.
func MessageHandle(message []byte) (uint32, error) {
	if len(message) < messageFront || len(message) < minMessage(message[0]) {
		return 0, fault.New(fault.Invalid, "message").WithHint("these bytes are no rotor message")
	}
	return binary.BigEndian.Uint32(message[1:]), nil
}

// minMessage is the least length of a message of a suite; of one that is not known more than any slice has.
func minMessage(b byte) int {
	if b == suiteXAES {
		return MessageOverhead
	}
	spec, ok := suite.ByMessage(b)
	if !ok {
		return math.MaxInt
	}
	if spec.Nonce == 0 { // to a public key: its decrypter knows the lengths
		return messageFront + 1
	}
	return messageFront + spec.Nonce + messageTag
}

// EncodeText gives the text form of a message: "rk1." and base64url without padding.
func EncodeText(message []byte) string {
	return textPrefix + base64.RawURLEncoding.EncodeToString(message)
}

// DecodeText reads the text form. fault.Invalid.
func DecodeText(text string) ([]byte, error) {
	body, ok := strings.CutPrefix(text, textPrefix)
	message, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || strings.ContainsAny(body, "\r\n") { // which the decoder skips: a message has one text form
		return nil, fault.New(fault.Invalid, "message").WithHint("a text message begins with %s and is base64url", textPrefix)
	}
	return message, nil
}
