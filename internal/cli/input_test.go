package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90d": 90 * day, "1d12h": 36 * time.Hour, "0d": 0, "0s": 0, "30s": 30 * time.Second, "1h30m": 90 * time.Minute, "0d5s": 5 * time.Second,
	} {
		if got, err := parseDuration(text); got != want || err != nil {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "x", "-5s", "-1d", "1d-5s", "1.5d", "99999d", "1d1d", "5", "1y", "1d "} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 7 * day: "7d", 25 * time.Hour: "25h", 90 * time.Minute: "1h30m", 5 * time.Minute: "5m", 1500 * time.Millisecond: "1.5s",
		10 * time.Second: "10s", time.Hour + 10*time.Second: "1h0m10s",
	} {
		if got := days(d); got != want {
			t.Errorf("%s is written %s, want %s", d, got, want)
		}
		if back, err := parseDuration(days(d)); back != d || err != nil {
			t.Errorf("%s comes back as %s, %v", d, back, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"worker-1": "worker-1", "Ärger 5 €": "Ärger 5 €", "\x1b[2Jgone": `"\x1b[2Jgone"`, "two\nlines": `"two\nlines"`, "tab\tbed": `"tab\tbed"`,
		"\u202eright to left": `"\u202eright to left"`, "\xff": `"\xff"`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q is printed %s, want %s", in, got, want)
		}
	}
}

// TestErrorsAreOneLine checks that nothing that a stranger named moves the cursor or forges a line.
func TestErrorsAreOneLine(t *testing.T) {
	var out bytes.Buffer
	if code := report(&out, fault.New(fault.Denied, "key x\ncode: ok\x1b[A").WithHint("go\rback")); code != 4 {
		t.Errorf("exit status %d", code)
	}
	if n := strings.Count(out.String(), "\n"); n != 3 || strings.ContainsAny(out.String(), "\x1b\r") {
		t.Errorf("%q", out.String())
	}
}

// TestInterruptible checks that a read that gets nothing ends with its context.
func TestInterruptible(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	in := interruptible{ctx, r}
	go func() { _, _ = w.Write([]byte("abc")) }() // ends with the read below
	b := make([]byte, 8)
	if n, err := in.Read(b); string(b[:n]) != "abc" || err != nil {
		t.Fatalf("%q, %v", b[:n], err)
	}
	cancel()
	if _, err := in.Read(b); fault.CodeOf(err) != fault.Canceled {
		t.Fatal(err)
	}
}

// TestTilesStayInside sends files of a server that wants to write elsewhere.
func TestTilesStayInside(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "in")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(inside, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range []string{"../x", "/x", "a/../../x", "link/x", filepath.Join(dir, "x"), "", "."} {
		if err := writeTile(root, &rotorv1.ExportFile{Path: path, Data: []byte("x")}); err == nil {
			t.Errorf("wrote %q", path)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file appeared outside")
	}
	if err := writeTile(root, &rotorv1.ExportFile{Path: "tile/0/000", Data: []byte("x")}); err != nil {
		t.Error(err)
	}
}

// TestWriteFile checks that a file appears whole or not at all, and that nothing is replaced without force.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	write := func(text string, err error) func(io.Writer) error {
		return func(w io.Writer) error {
			_, werr := io.WriteString(w, text)
			return errors.Join(werr, err)
		}
	}
	if err := writeFile(path, false, write("half", io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if all, _ := os.ReadDir(dir); len(all) != 0 {
		t.Fatalf("left %v", all)
	}
	if err := writeFile(path, false, write("one", nil)); err != nil {
		t.Fatal(err)
	}
	appears := func(w io.Writer) error { return os.WriteFile(path+"2", []byte("somebody else's"), 0o600) }
	for err, want := range map[error]fault.Code{
		writeFile(path, false, write("two", nil)): fault.Exists, writeFile(path+"2", false, appears): fault.Exists,
		writeFile(path, true, write("two", io.ErrUnexpectedEOF)): fault.Internal,
	} {
		if fault.CodeOf(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if b, _ := os.ReadFile(path); string(b) != "one" {
		t.Errorf("replaced by %q", b)
	}
	if err := writeFile(path, true, write("three", nil)); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "three" {
		t.Errorf("%q", b)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", info.Mode())
	}
}
