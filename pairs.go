package rotor

import (
	"context"

	"connectrpc.com/connect"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// DecryptForeign opens a ciphertext that was made elsewhere with the public half of a version of a key whose purpose is decrypt: RSAES-OAEP with an
// empty label, or HPKE in base mode with an empty info, encapsulated key first. Code decrypt_failed whatever is wrong with it.
func (k *Key) DecryptForeign(ctx context.Context, ciphertext []byte, version uint32) ([]byte, error) {
	m := &rotorv1.DecryptRequest{Key: k.ref(), Ciphertext: ciphertext, ForeignVersion: version}
	out, err := k.client.admin.Keys.Decrypt(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, err
	}
	return out.Msg.GetPlaintext(), nil
}

// Encapsulate makes a shared secret of 32 bytes and its encapsulation for the primary version of a key whose purpose is decapsulate. It returns the
// version, which Decapsulate needs. Whoever has the public half can do the same without the server.
func (k *Key) Encapsulate(ctx context.Context) (shared []byte, ciphertext []byte, version uint32, err error) {
	out, err := k.client.admin.Keys.Encapsulate(ctx, connect.NewRequest(&rotorv1.EncapsulateRequest{Key: k.ref()}))
	if err != nil {
		return nil, nil, 0, err
	}
	return out.Msg.GetSharedSecret(), out.Msg.GetCiphertext(), out.Msg.GetVersion(), nil
}

// Decapsulate returns the shared secret of an encapsulation for a version. A wrong ciphertext of the right length gives a secret that nobody else
// has (FIPS 203, 6.3).
func (k *Key) Decapsulate(ctx context.Context, ciphertext []byte, version uint32) ([]byte, error) {
	m := &rotorv1.DecapsulateRequest{Key: k.ref(), Ciphertext: ciphertext, Version: version}
	out, err := k.client.admin.Keys.Decapsulate(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, err
	}
	return out.Msg.GetSharedSecret(), nil
}
