// Command interop lets the Python tests use rotor's own code for the formats: one JSON request a line on standard input, one answer a
// line on standard output. Keys in requests are test keys.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

type request struct {
	Op        string            `json:"op"` // write, read, rewrap, encrypt, decrypt
	Path      string            `json:"path"`
	Key       []byte            `json:"key"`
	Data      []byte            `json:"data"`
	Context   map[string]string `json:"context"`
	Handle    uint32            `json:"handle"`
	Namespace string            `json:"namespace"`
	KeyID     string            `json:"key_id"`
	Parts     []envelope.Part   `json:"parts"`
	FLOE      bool              `json:"floe"`
}

type answer struct {
	Data  []byte `json:"data"`
	Error string `json:"error"`
}

// keyFile wraps with one key.
type keyFile struct{ request }

// WrapDEK implements envelope.Wrapper.
func (k keyFile) WrapDEK(_ context.Context, dek envelope.Secret, immutable []byte) (envelope.Wrap, error) {
	aead, err := suite.NewXAES(secret.Copy(k.Key))
	if err != nil {
		return envelope.Wrap{}, err
	}
	w := envelope.Wrap{Type: envelope.WrapKeyFile, KeyID: k.KeyID, Version: k.Handle, Algorithm: suite.XAES256GCM, ProtectTime: time.Now()}
	return envelope.SealDEK(aead, w, immutable, dek)
}

// UnwrapDEK implements envelope.Unwrapper.
func (k keyFile) UnwrapDEK(_ context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	aead, err := suite.NewXAES(secret.Copy(k.Key))
	if err != nil {
		return envelope.Secret{}, err
	}
	if w.KeyID != k.KeyID {
		return envelope.Secret{}, fault.New(fault.NotFound, "key of the file")
	}
	return envelope.OpenDEK(aead, w, immutable)
}

func (k keyFile) rewrap(ctx context.Context, immutable []byte, wraps []envelope.Wrap) ([]envelope.Wrap, bool, error) {
	dek, err := k.UnwrapDEK(ctx, wraps[0], immutable)
	if err != nil {
		return nil, false, err
	}
	w, err := k.WrapDEK(ctx, dek, immutable)
	return []envelope.Wrap{w}, true, err
}

func do(ctx context.Context, r request) ([]byte, error) {
	k := keyFile{r}
	switch r.Op {
	case "write":
		o := envelope.Options{ContentType: "text/plain", Context: r.Context, Wrappers: []envelope.Wrapper{k}, Force: true, FLOE: r.FLOE}
		return nil, envelope.EncryptFile(ctx, r.Path, bytes.NewReader(r.Data), o)
	case "read":
		f, err := envelope.OpenFile(ctx, r.Path, k)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // only read
		return f.ReadAll(ctx)
	case "rewrap":
		_, err := envelope.Rewrap(ctx, r.Path, k.rewrap)
		return nil, err
	}
	m, err := envelope.NewMessageKey(secret.Copy(r.Key), r.Handle, r.Namespace, r.KeyID)
	if err != nil {
		return nil, err
	}
	if r.Op == "encrypt" {
		return m.Encrypt(nil, r.Data, r.Parts...)
	}
	return m.Decrypt(nil, r.Data, r.Parts...)
}

func main() {
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	out := json.NewEncoder(os.Stdout)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return // the tests have ended
		}
		b, err := do(context.Background(), r)
		if err := out.Encode(answer{b, string(fault.CodeOf(err))}); err != nil {
			os.Exit(1)
		}
	}
}
