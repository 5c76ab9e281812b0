package rotor

import (
	"context"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// DecryptCompromised is Decrypt at the server, also under a compromised version, for whoever has the right decrypt.compromised besides; each such use is
// in the audit log before the answer. suspect says that the version is compromised: whoever has its key may have made the message, so nothing but the
// plaintext is known.
func (k *Key) DecryptCompromised(ctx context.Context, message []byte, parts ...Part) (plaintext []byte, suspect bool, err error) {
	m := &rotorv1.DecryptRequest{Key: k.ref(), Ciphertext: message, Parts: partMessages(parts), AllowCompromised: true}
	out, err := k.client.admin.Keys.Decrypt(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, false, err
	}
	return out.Msg.GetPlaintext(), out.Msg.GetCompromised(), nil
}

// OpenCompromisedFile is OpenFile, also of a file under a compromised version, as DecryptCompromised.
func (c *Client) OpenCompromisedFile(ctx context.Context, path string) (f *File, suspect bool, err error) {
	u := &suspectKey{client: c}
	f, err = envelope.OpenFile(ctx, path, u)
	return f, u.suspect, err
}

// suspectKey unwraps also under compromised versions, and remembers that it did.
type suspectKey struct {
	client  *Client
	suspect bool
}

// UnwrapDEK implements envelope.Unwrapper.
func (k *suspectKey) UnwrapDEK(ctx context.Context, w envelope.Wrap, immutable []byte) (secret.Bytes, error) {
	if w.Type != envelope.WrapKMS {
		return secret.Bytes{}, fault.New(fault.NotFound, "key of the file")
	}
	m := &rotorv1.UnwrapRequest{Wrap: wrapMessage(w), Immutable: immutable, AllowCompromised: true}
	out, err := k.client.admin.Keys.Unwrap(ctx, connect.NewRequest(m))
	if err != nil {
		return secret.Bytes{}, err
	}
	k.suspect = out.Msg.GetCompromised()
	return secret.Take(out.Msg.GetDek()), nil
}
