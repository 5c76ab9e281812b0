package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/secret"
)

func create(t testing.TB) (*local.Sealer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dir", "seal.key")
	s, err := local.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return s, path
}

func TestSealer(t *testing.T) {
	paths := map[seal.Sealer]string{}
	sealtest.Run(t, sealtest.Root{
		New: func(t *testing.T) seal.Sealer {
			s, path := create(t)
			paths[s] = path
			return s
		},
		Again: func(t *testing.T, s seal.Sealer) seal.Sealer {
			again, err := local.Open(paths[s])
			if err != nil {
				t.Fatal(err)
			}
			return again
		},
	})
}

func TestCreate(t *testing.T) {
	s, path := create(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := s.Wrap(t.Context(), secret.Random(32), 1); err != nil {
		t.Fatal(err)
	}
	if info, err = os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("after saving: mode %v, %v", info.Mode(), err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.Create(path); fault.CodeOf(err) != fault.Exists {
		t.Errorf("created twice: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("creating again changed the file (%v)", err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("files beside the key: %v, %v", left, err)
	}
}

func TestMode(t *testing.T) {
	_, path := create(t)
	for mode := range fs(0o1000) {
		if err := os.Chmod(path, mode|0o400); err != nil {
			t.Fatal(err)
		}
		_, err := local.Open(path)
		if mode&0o077 == 0 && err != nil || mode&0o077 != 0 && fault.CodeOf(err) != fault.SealWrong {
			t.Fatalf("mode %o: %v", mode|0o400, err)
		}
	}
}

func fs(n os.FileMode) func(func(os.FileMode) bool) {
	return func(yield func(os.FileMode) bool) {
		for m := range n {
			if !yield(m) {
				return
			}
		}
	}
}

const id, key = "0123456789abcdef", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func TestOpenBad(t *testing.T) {
	dir := t.TempDir()
	if _, err := local.Open(filepath.Join(dir, "none")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("no file: %v", err)
	}
	if _, err := local.Open(dir); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("a folder: %v", err)
	}
	good := `{"version":1,"id":"` + id + `","forgotten_before":0,"keys":{"1":"` + key + `"}}`
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"good":                {good, true},
		"no keys yet":         {`{"version":1,"id":"` + id + `"}`, true},
		"empty":               {"", false},
		"cut short":           {good[:len(good)-1], false},
		"something follows":   {good + "{}", false},
		"unknown field":       {strings.Replace(good, `"id"`, `"x":1,"id"`, 1), false},
		"other version":       {strings.Replace(good, `:1,`, `:2,`, 1), false},
		"short id":            {strings.Replace(good, id, id[1:], 1), false},
		"id not in hex":       {strings.Replace(good, id, "g"+id[1:], 1), false},
		"short key":           {strings.Replace(good, key, key[4:], 1), false},
		"not base64":          {strings.Replace(good, key, "*"+key[1:], 1), false},
		"negative generation": {strings.Replace(good, `"1"`, `"-1"`, 1), false},
		"key of a forgotten":  {strings.Replace(good, `before":0`, `before":2`, 1), false},
		"too large":           {good + strings.Repeat(" ", 1<<20), false},
	} {
		path := filepath.Join(dir, "seal.key")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := local.Open(path)
		if c.ok && err != nil || !c.ok && fault.CodeOf(err) != fault.SealWrong {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), key[5:15]) {
			t.Errorf("%s: the error tells the key", name)
		}
	}
}

// TestBinding: a blob belongs to its sealer and generation even where the keys are the same.
func TestBinding(t *testing.T) {
	write := func(name string) *local.Sealer {
		path := filepath.Join(t.TempDir(), "seal.key")
		text := fmt.Sprintf(`{"version":1,"id":%q,"forgotten_before":0,"keys":{"1":%q,"2":%q}}`, name, key, key)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := local.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s, other := write(id), write("f"+id[1:])
	blob, err := s.Wrap(t.Context(), secret.Random(32), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unwrap(t.Context(), blob); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Unwrap(t.Context(), blob); !errors.Is(err, seal.ErrWrongSealer) {
		t.Errorf("another sealer: %v", err)
	}
	blob[7] = 2
	if _, err := s.Unwrap(t.Context(), blob); !errors.Is(err, seal.ErrWrongSealer) {
		t.Errorf("another generation: %v", err)
	}
}

// TestMain runs a child that saves without room, or for ever until it is killed.
func TestMain(m *testing.M) {
	path := os.Getenv("ROTOR_SEAL_CHILD")
	if path == "" {
		os.Exit(m.Run())
	}
	if err := child(path, os.Getenv("ROTOR_SEAL_FULL") != ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(path string, full bool) error {
	s, err := local.Open(path)
	if err != nil {
		return err
	}
	ctx, root := context.Background(), secret.Copy([]byte("root"))
	for g := uint64(2); !full; g++ {
		if _, err := s.Wrap(ctx, root, g); err != nil {
			return err
		}
		if g%20 == 0 {
			if err := s.Forget(ctx, g-10); err != nil {
				return err
			}
		}
		fmt.Println(g)
	}
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = 10
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if _, err := s.Wrap(ctx, root, 2); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("wrap without room: %w", err)
	}
	if err := s.Forget(ctx, 2); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("forget without room: %w", err)
	}
	blob, err := s.Wrap(ctx, root, 1) // what was there goes on
	if err != nil {
		return err
	}
	if _, err := s.Unwrap(ctx, blob); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	_, err = s.Wrap(ctx, root, 2)
	return err
}

func TestFullDisk(t *testing.T) {
	s, path := create(t)
	blob, err := s.Wrap(t.Context(), secret.Random(32), 1)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "ROTOR_SEAL_CHILD="+path, "ROTOR_SEAL_FULL=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s, err = local.Open(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unwrap(t.Context(), blob); err != nil {
		t.Errorf("the old key is gone: %v", err)
	}
}

// TestCrash kills -9 a saving child: the file is always the old or the new one, with mode 0600.
func TestCrash(t *testing.T) {
	_, path := create(t)
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "ROTOR_SEAL_CHILD="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := uint64(0)
		for n := 0; ; n++ {
			if _, err := fmt.Fscan(out, &last); err != nil {
				break
			}
			if n == 3+round*8 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || last == 0 {
			t.Fatalf("the child ended by itself after %d", last)
		}
		s, err := local.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), fmt.Sprintf("%q:", fmt.Sprint(last))) {
			t.Fatalf("generation %d was acknowledged and is not in the file (%v)", last, err)
		}
		if s.ID() == "" {
			t.Error("no name")
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := local.Create(path); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"` + id + `","forgotten_before":1,"keys":{"1":"` + key + `"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "seal.key")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := local.Open(path)
		if err != nil {
			if fault.CodeOf(err) != fault.SealWrong {
				t.Errorf("%v", err)
			}
			return
		}
		blob, err := s.Wrap(t.Context(), secret.Random(32), 1<<63)
		if err != nil {
			return // forgotten
		}
		if s, err = local.Open(path); err != nil {
			t.Fatalf("what was saved does not open: %v", err)
		}
		if _, err := s.Unwrap(t.Context(), blob); err != nil {
			t.Error(err)
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	s, _ := create(f)
	blob, err := s.Wrap(f.Context(), secret.Random(32), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob[:20])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if root, err := s.Unwrap(t.Context(), b); err == nil || !root.IsZero() {
			t.Error("foreign bytes opened")
		}
	})
}
