package interop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

const (
	origin   = "rotor.example/audit"
	entries  = 700 // two full tiles, a partial one and a tile of level 1
	workers  = 8   // more than a fault can stop: fsck waits for ever once all have met one
	deadline = time.Minute
)

// export writes a log of entries into a directory, as rotor audit export does, and returns it with its verifier key.
func export(t *testing.T) (dir, vkey string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, rev, err := audit.Load(ctx, mem.New(), secret.Random(32), func(audit.Entry, store.Rev) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := audit.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetSigner(string(skey.Reveal())); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- l.Follow(ctx, rev, func(audit.Commit) error { return nil }) }() // ends with ctx
	go func() { done <- l.Sequence(ctx, nil) }()                                        // ends with ctx
	for i := range entries {
		e := audit.Entry{
			Action: "test", Caller: "admin/ana", Class: audit.ClassChange, Outcome: "done", Time: time.Unix(int64(i), 0).UTC(),
			Writes: []audit.Write{{Counter: uint64(i + 1), Path: "key/records", SHA256: audit.Deleted}},
		}
		if err := l.Append(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := l.Export(ctx, func(path string, data []byte) error {
		path = filepath.Join(dir, filepath.FromSlash(path))
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600))
	}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := errors.Join(<-done, <-done); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return dir, vkey
}

// leaves hashes the entries of a bundle.
func leaves(bundle []byte) ([][]byte, error) {
	var b api.EntryBundle
	if err := b.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range b.Entries {
		out = append(out, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return out, nil
}

// check runs Tessera's verifier over a directory.
func check(t *testing.T, dir, vkey string) error {
	t.Helper()
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	done := make(chan error, 1)
	go func() { // fsck does not look at ctx while it waits for its workers
		done <- fsck.New(origin, verifier, client.FileFetcher{Root: dir}, leaves, fsck.Opts{N: workers}).Check(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		t.Fatal("fsck came to no end")
		return nil
	}
}

// TestFsck: a verifier that rotor did not write takes rotor's export, and finds a byte that is planted in any kind of file.
func TestFsck(t *testing.T) {
	dir, vkey := export(t)
	if err := check(t, dir, vkey); err != nil {
		t.Fatalf("fsck refuses rotor's export: %v", err)
	}
	if r, err := audit.Verify(os.DirFS(dir), vkey); err != nil || r.Size != entries {
		t.Fatalf("rotor's own verifier: %+v, %v", r, err)
	}
	_, other, err := audit.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	if check(t, dir, other) == nil {
		t.Error("fsck takes the export with another key")
	}
	for _, path := range []string{
		"tile/entries/000", "tile/entries/001", "tile/entries/002.p/188", "tile/0/000", "tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2", "checkpoint",
	} {
		file := filepath.Join(dir, filepath.FromSlash(path))
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		at := len(b) / 2
		if path == "checkpoint" {
			at = len(origin) + 1 // the size
		}
		bad := bytes.Clone(b)
		bad[at] ^= 1
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		theirs := check(t, dir, vkey)
		_, ours := audit.Verify(os.DirFS(dir), vkey)
		if theirs == nil || ours == nil {
			t.Errorf("a byte of %s: fsck says %v, rotor says %v", path, theirs, ours)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := check(t, dir, vkey); err != nil {
		t.Fatal(fmt.Errorf("fsck refuses the export as it was: %w", err))
	}
}
