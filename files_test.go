package rotor_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestFileIsRewrapped follows a file through a rotation of its key: the payload stays, what is read and written is bounded, and after a scrub
// no wrap of the old version is left.
func TestFileIsRewrapped(t *testing.T) {
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "models", Purpose: "wrap"})
	path := filepath.Join(t.TempDir(), "model.rotor")
	model := bytes.Repeat([]byte("weights "), 10_000)
	o := rotor.FileOptions{ContentType: "application/onnx", Context: map[string]string{"team": "vision"}}
	if err := c.admin.EncryptFile(t.Context(), "models", bytes.NewReader(model), path, o); err != nil {
		t.Fatal(err)
	}
	err := c.admin.EncryptFile(t.Context(), "models", bytes.NewReader(nil), path, o)
	if rotor.CodeOf(err) != "exists" {
		t.Error("an existing file:", err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if changed, stats, err := c.admin.RewrapFile(t.Context(), path); err != nil || changed || stats.Written != 0 {
		t.Errorf("rewrapped without a rotation: %v, %+v, %v", changed, stats, err)
	}
	c.rotate("models")
	changed, stats, err := c.admin.RewrapFile(t.Context(), path)
	if err != nil || !changed || stats.Read+stats.Written > 64<<10 {
		t.Fatalf("%v, %+v, %v", changed, stats, err)
	}
	if versions := wrapVersions(t, c.admin, path, model); versions != [2]uint32{1, 2} {
		t.Errorf("the slots hold versions %v", versions)
	}
	if _, err := c.admin.ScrubFile(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if versions := wrapVersions(t, c.admin, path, model); versions != [2]uint32{2, 2} {
		t.Errorf("after a scrub the slots hold versions %v", versions)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(model); !bytes.Equal(after[len(after)-n:], before[len(before)-n:]) {
		t.Error("the payload was changed")
	}
	// A byte of the encryption context is enough for the server to refuse.
	after[bytes.Index(after, []byte("vision"))] ^= 1
	if err := os.WriteFile(path, after, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.admin.RewrapFile(t.Context(), path); rotor.CodeOf(err) != "malformed_file" {
		t.Error("a changed context:", err)
	}
}

// wrapVersions reads the file in both ways and returns the versions in its slots.
func wrapVersions(t *testing.T, client *rotor.Client, path string, want []byte) (versions [2]uint32) {
	t.Helper()
	f, err := client.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := f.ReadAll(t.Context()); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	src, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	s, err := client.DecryptStream(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("streamed %d bytes, %v", len(got), err)
	}
	for i, wraps := range f.Header().Slots {
		versions[i] = wraps[0].Version
	}
	return versions
}
