package envelope_test

import (
	"bytes"
	"context"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Sizes of the format in bytes, as spec/file.md gives them.
const (
	chunkSize    = 16 << 10
	sealedChunk  = chunkSize + 16
	slotSize     = 12 << 10
	preludeSize  = 13 + 4 + 32
	payloadFront = 24 + 32
)

var protected = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// ring is a KMS in memory: the wrap key "models" with as many versions as it holds.
type ring map[uint32]cipher.AEAD

func newRing(t testing.TB, versions ...uint32) ring {
	t.Helper()
	r := ring{}
	for _, v := range versions {
		material := secret.Copy(bytes.Repeat([]byte{byte(v)}, 32))
		aead, err := suite.NewAEAD(suite.XAES256GCM, material)
		if err != nil {
			t.Fatal(err)
		}
		r[v] = aead
	}
	return r
}

// UnwrapDEK implements envelope.Unwrapper.
func (r ring) UnwrapDEK(_ context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	if w.Type != envelope.WrapKMS || w.KeyID != "models" {
		return envelope.Secret{}, fault.New(fault.NotFound, "key of the file")
	}
	aead := r[w.Version]
	if aead == nil {
		return envelope.Secret{}, fault.New(fault.UnknownVersion, fmt.Sprint("version ", w.Version))
	}
	return envelope.OpenDEK(aead, w, immutable)
}

// version wraps under one version.
type version struct {
	ring   ring
	number uint32
}

// WrapDEK implements envelope.Wrapper.
func (v version) WrapDEK(_ context.Context, dek envelope.Secret, immutable []byte) (envelope.Wrap, error) {
	return envelope.SealDEK(v.ring[v.number], wrapOf(v.number), immutable, dek)
}

func wrapOf(number uint32) envelope.Wrap {
	return envelope.Wrap{Type: envelope.WrapKMS, KeyID: "models", Version: number, Algorithm: suite.XAES256GCM, ProtectTime: protected}
}

// rewrapTo moves every wrap to a version.
func (r ring) rewrapTo(number uint32) func(context.Context, []byte, []envelope.Wrap) ([]envelope.Wrap, bool, error) {
	return func(ctx context.Context, immutable []byte, wraps []envelope.Wrap) ([]envelope.Wrap, bool, error) {
		dek, err := r.UnwrapDEK(ctx, wraps[0], immutable)
		if err != nil {
			return nil, false, err
		}
		next, err := version{r, number}.WrapDEK(ctx, dek, immutable)
		return []envelope.Wrap{next}, true, err
	}
}

func (r ring) options() envelope.Options {
	return envelope.Options{
		ContentType: "application/onnx", Context: map[string]string{"team": "vision", "tier": "gold"}, Wrappers: []envelope.Wrapper{version{r, 1}},
	}
}

// plaintext is n bytes that differ from chunk to chunk.
func plaintext(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b)
	return b
}

// encrypt makes an encrypted file in memory.
func encrypt(t testing.TB, r ring, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := envelope.NewWriter(t.Context(), &out, r.options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func encryptFile(t testing.TB, r ring, plain []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.rotor")
	if err := envelope.EncryptFile(t.Context(), path, bytes.NewReader(plain), r.options()); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, r ring, b []byte) (*envelope.File, error) {
	t.Helper()
	return envelope.Open(t.Context(), bytes.NewReader(b), int64(len(b)), r)
}

// readAll opens and reads the whole of a file.
func readAll(t testing.TB, r ring, b []byte) ([]byte, error) {
	t.Helper()
	f, err := open(t, r, b)
	if err != nil {
		return nil, err
	}
	return f.ReadAll(t.Context())
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func payloadAt(t testing.TB, b []byte) int {
	t.Helper()
	h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return int(h.PayloadOffset())
}

func wantCode(t testing.TB, err error, want ...fault.Code) {
	t.Helper()
	for _, c := range want {
		if fault.CodeOf(err) == c {
			return
		}
	}
	t.Errorf("got %v, want %v", err, want)
}
