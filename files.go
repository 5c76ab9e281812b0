package rotor

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// File is an encrypted file that is open for reading: an io.ReaderAt over the plaintext, which never touches the disk.
type File = envelope.File

// FileOptions say how a file is encrypted.
type FileOptions struct {
	ContentType string            // for example "application/onnx"
	Context     map[string]string // readable by all, bound to the data
	Force       bool              // replace an existing file
}

// EncryptFile encrypts src into a new file at path, with a data key of its own that is wrapped under a key for wrapping. The file
// appears whole or not at all.
func (c *Client) EncryptFile(ctx context.Context, key string, src io.Reader, path string, o FileOptions) error {
	return envelope.EncryptFile(ctx, path, src, envelope.Options{
		ContentType: o.ContentType, Context: o.Context, Force: o.Force, Wrappers: []envelope.Wrapper{serverKey{c, key}},
	})
}

// OpenFile opens an encrypted file for reading at any place. The last chunk is verified before it returns; nothing unverified is
// ever read from it. Close it.
func (c *Client) OpenFile(ctx context.Context, path string) (*File, error) {
	return envelope.OpenFile(ctx, path, serverKey{c, ""})
}

// DecryptStream decrypts a file as it comes. Each chunk is verified before it is returned.
func (c *Client) DecryptStream(ctx context.Context, r io.Reader) (io.Reader, error) {
	return envelope.NewReader(ctx, r, serverKey{c, ""})
}

// RewrapFile moves a file to the primary versions of its keys. At most 64 KiB are read and written, whatever the file's size; the server
// does not see the data, the client does not see the data key.
func (c *Client) RewrapFile(ctx context.Context, path string) (changed bool, stats envelope.Stats, err error) {
	stats, err = envelope.Rewrap(ctx, path, func(ctx context.Context, immutable []byte, wraps []envelope.Wrap) ([]envelope.Wrap, bool, error) {
		out := make([]envelope.Wrap, len(wraps))
		for i, w := range wraps {
			out[i] = w
			if w.Type != envelope.WrapKMS {
				continue
			}
			r, err := c.admin.Keys.Rewrap(ctx, connect.NewRequest(&rotorv1.RewrapRequest{Wrap: wrapMessage(w), Immutable: immutable}))
			if err != nil {
				return nil, false, err
			}
			if !r.Msg.GetChanged() {
				continue
			}
			if out[i] = wrapOf(r.Msg.GetWrap()); !replaces(w, out[i]) {
				return nil, false, fault.New(fault.Internal, "rewrapped key of the file").WithHint("the server answered with another key's; the file is unchanged")
			}
			changed = true
		}
		return out, changed, nil
	})
	return changed, stats, err
}

// replaces says whether a wrap can take the place of another: the same key, the same time of protection, and something in it. That it holds
// the same data key only the server can know.
func replaces(old, next envelope.Wrap) bool {
	return next.Type == old.Type && next.KeyID == old.KeyID && next.ProtectTime.Equal(old.ProtectTime) && len(next.Blob) == len(old.Blob)
}

// ScrubFile removes the wraps that a rewrap left in the file's older header slot.
func (c *Client) ScrubFile(ctx context.Context, path string) (envelope.Stats, error) {
	return envelope.Scrub(ctx, path)
}

// serverKey wraps and unwraps at the server.
type serverKey struct {
	client *Client
	name   string
}

// WrapDEK implements envelope.Wrapper.
func (k serverKey) WrapDEK(ctx context.Context, dek secret.Bytes, immutable []byte) (envelope.Wrap, error) {
	m := &rotorv1.WrapRequest{Key: &rotorv1.KeyRef{Name: k.name}, Dek: dek.Reveal(), Immutable: immutable}
	out, err := k.client.admin.Keys.Wrap(ctx, connect.NewRequest(m))
	if err != nil {
		return envelope.Wrap{}, err
	}
	return wrapOf(out.Msg.GetWrap()), nil
}

// UnwrapDEK implements envelope.Unwrapper.
func (k serverKey) UnwrapDEK(ctx context.Context, w envelope.Wrap, immutable []byte) (secret.Bytes, error) {
	if w.Type != envelope.WrapKMS {
		return secret.Bytes{}, fault.New(fault.NotFound, "key of the file")
	}
	out, err := k.client.admin.Keys.Unwrap(ctx, connect.NewRequest(&rotorv1.UnwrapRequest{Wrap: wrapMessage(w), Immutable: immutable}))
	if err != nil {
		return secret.Bytes{}, err
	}
	return secret.Take(out.Msg.GetDek()), nil
}

func wrapMessage(w envelope.Wrap) *rotorv1.FileWrap {
	return &rotorv1.FileWrap{
		Type: uint32(w.Type), KeyId: w.KeyID, Version: w.Version, Algorithm: string(w.Algorithm), ProtectTimeUnix: w.ProtectTime.Unix(), Blob: w.Blob,
	}
}

func wrapOf(m *rotorv1.FileWrap) envelope.Wrap {
	return envelope.Wrap{
		Type: envelope.WrapType(m.GetType()), KeyID: m.GetKeyId(), Version: m.GetVersion(), Algorithm: suite.Algorithm(m.GetAlgorithm()),
		ProtectTime: time.Unix(m.GetProtectTimeUnix(), 0).UTC(), Blob: m.GetBlob(),
	}
}
