package envelope

import (
	"encoding/binary"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// Address says which key version a message is for: its algorithm, its handle in the namespace, and the IDs that go into the associated data.
type Address struct {
	Algorithm   suite.Algorithm
	Handle      uint32
	NamespaceID string
	KeyID       string
}

// maxSealed bounds the plaintext of a message to a public key, in bytes.
const maxSealed = 1 << 30

// data is the associated data of a message to a public key (spec/message.md).
func (a Address) data(suiteByte byte, parts []Part) []byte {
	b := appendField(nil, []byte("rotor/field/1"))
	b = appendField(b, []byte{suiteByte})
	b = appendField(b, binary.BigEndian.AppendUint32(nil, a.Handle))
	b = appendField(b, []byte(a.NamespaceID))
	b = appendField(b, []byte(a.KeyID))
	for _, p := range parts {
		b = appendField(appendField(b, []byte(p.Label)), p.Value)
	}
	return b
}

// EncryptTo makes a message that only the holder of the private half can open: suite, handle, and the ciphertext of the algorithm.
// fault.AlgorithmForbidden, TooLarge.
func EncryptTo(a Address, public, plaintext []byte, parts ...Part) ([]byte, error) {
	spec, err := suite.Lookup(a.Algorithm)
	if err != nil {
		return nil, err
	}
	if len(plaintext) > maxSealed {
		return nil, fault.New(fault.TooLarge, "plaintext")
	}
	box, err := suite.EncryptTo(a.Algorithm, public, plaintext, a.data(spec.Message, parts))
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32([]byte{spec.Message}, a.Handle), box...), nil
}

// DecryptWith opens what EncryptTo made. fault.DecryptFailed, whatever the cause.
func DecryptWith(d *suite.Decrypter, a Address, message []byte, parts ...Part) ([]byte, error) {
	spec, err := suite.Lookup(a.Algorithm)
	if err != nil {
		return nil, err
	}
	if h, err := MessageHandle(message); err != nil || h != a.Handle || message[0] != spec.Message {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	out, err := d.Decrypt(message[messageFront:], a.data(spec.Message, parts))
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, "message")
	}
	return out, nil
}
