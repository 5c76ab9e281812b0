// Package envelope is rotor's formats in code: messages (fields, cache entries) and files (model weights, data sets). It makes
// and opens them with keys that it is given and never fetches one. Normative text: spec/message-format.md, spec/file-format.md.
package envelope

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Secret is key bytes that cannot leak.
type Secret = secret.Bytes

// Sizes of a message in bytes: suite 1, handle 4, nonce 24, ciphertext, tag 16.
const (
	suiteXAES       = 1
	messageHeader   = 1 + 4 + suite.XAESNonceSize
	MessageOverhead = messageHeader + suite.XAESTagSize
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
	handle uint32
	prefix []byte // of the associated data: all that is the same for every message
}

// NewMessageKey makes a key from 32 bytes of material. The handle names the version in the namespace; the IDs go into the
// associated data of each message, so that no message opens under another namespace or key.
func NewMessageKey(material Secret, handle uint32, namespaceID, keyID string) (*MessageKey, error) {
	aead, err := suite.NewXAES(material)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "message key", err)
	}
	p := appendField(nil, []byte("rotor/field/1"))
	p = appendField(p, []byte{suiteXAES})
	p = appendField(p, binary.BigEndian.AppendUint32(nil, handle))
	p = appendField(p, []byte(namespaceID))
	p = appendField(p, []byte(keyID))
	return &MessageKey{aead: aead, handle: handle, prefix: p}, nil
}

// Encrypt appends the message for a plaintext to dst. Its length is the plaintext's + MessageOverhead.
func (k *MessageKey) Encrypt(dst, plaintext []byte, parts ...Part) ([]byte, error) {
	n := len(dst)
	if need := len(plaintext) + MessageOverhead; cap(dst)-n < need {
		dst = append(make([]byte, 0, n+need), dst...)
	}
	dst = append(dst, suiteXAES)
	dst = binary.BigEndian.AppendUint32(dst, k.handle)
	dst = dst[:n+messageHeader]
	nonce := dst[n+5 : n+messageHeader]
	rand.Read(nonce)
	var scratch [256]byte
	return k.aead.Seal(dst, nonce, plaintext, k.data(scratch[:0], parts)), nil
}

// Decrypt appends the plaintext of a message to dst. Whatever is wrong, the error is fault.DecryptFailed.
func (k *MessageKey) Decrypt(dst, message []byte, parts ...Part) ([]byte, error) {
	h, err := MessageHandle(message)
	if err != nil || h != k.handle {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	var scratch [256]byte
	out, err := k.aead.Open(dst, message[5:messageHeader], message[messageHeader:], k.data(scratch[:0], parts))
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	return out, nil
}

func (k *MessageKey) data(b []byte, parts []Part) []byte {
	if len(parts) == 0 {
		return k.prefix
	}
	b = append(b, k.prefix...)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p.Label)))
		b = append(b, p.Label...)
		b = appendField(b, p.Value)
	}
	return b
}

// appendField appends a length of 4 bytes and the field, so that no two lists of fields give the same bytes.
func appendField(b, field []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
}

// MessageHandle reads the handle of the version that made a message. fault.Invalid for bytes that are no message.
func MessageHandle(message []byte) (uint32, error) {
	if len(message) < MessageOverhead || message[0] != suiteXAES {
		return 0, fault.New(fault.Invalid, "message").WithHint("these bytes are no rotor message")
	}
	return binary.BigEndian.Uint32(message[1:]), nil
}

// EncodeText gives the text form of a message: "rk1." and base64url without padding.
func EncodeText(message []byte) string {
	return textPrefix + base64.RawURLEncoding.EncodeToString(message)
}

// DecodeText reads the text form. fault.Invalid.
func DecodeText(text string) ([]byte, error) {
	body, ok := strings.CutPrefix(text, textPrefix)
	message, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil {
		return nil, fault.New(fault.Invalid, "message").WithHint("a text message begins with %s and is base64url", textPrefix)
	}
	return message, nil
}
