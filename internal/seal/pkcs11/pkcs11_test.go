//go:build services && pkcs11

package pkcs11_test

import (
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/pkcs11"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/testenv"
)

func config(s *testenv.SoftHSM, key string) pkcs11.Config {
	return pkcs11.Config{Config: hsm.Config{Module: s.Module, Token: s.Label, PINFile: s.PINFile}, Key: key}
}

func open(t *testing.T, c pkcs11.Config) *pkcs11.Sealer {
	t.Helper()
	s, err := pkcs11.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealer(t *testing.T) {
	s := testenv.SoftHSM2(t)
	configs := map[string]pkcs11.Config{}
	sealtest.Run(t, sealtest.Root{
		New: func(t *testing.T) seal.Sealer {
			c := config(s, "root "+rand.Text())
			sealer := open(t, c)
			configs[sealer.ID()] = c
			return sealer
		},
		Again: func(t *testing.T, sealer seal.Sealer) seal.Sealer { return open(t, configs[sealer.ID()]) },
		Offline: func(*testing.T, seal.Sealer) func() {
			s.Remove()
			return s.Insert
		},
		Stall: func(*testing.T, seal.Sealer) (<-chan struct{}, func()) { return s.Stall() },
	})
}

// TestPIN: a PIN that the token refuses is tried once and not again, so that it does not lock; another in the file is. No error tells it.
func TestPIN(t *testing.T) {
	s := testenv.SoftHSM2(t)
	right, err := os.ReadFile(s.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	s.SetPIN("wrong-pin-1")
	sealer := open(t, config(s, "root"))
	root := secret.Random(32)
	for _, want := range []string{"refused the PIN", "refused this PIN before"} {
		if _, err := sealer.Wrap(t.Context(), root, 1); !errors.Is(err, seal.ErrUnavailable) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "wrong-pin") {
			t.Errorf("%v", err)
		}
	}
	for name, change := range map[string]func() error{
		"gone":     func() error { return nil },
		"empty":    func() error { return os.WriteFile(s.PINFile, nil, 0o600) },
		"too long": func() error { return os.WriteFile(s.PINFile, []byte(strings.Repeat("1", 300)), 0o600) },
		"open":     func() error { return errors.Join(os.WriteFile(s.PINFile, right, 0o600), os.Chmod(s.PINFile, 0o644)) },
	} {
		if err := errors.Join(os.Remove(s.PINFile), change()); err != nil {
			t.Fatal(err)
		}
		if _, err := sealer.Wrap(t.Context(), root, 1); !errors.Is(err, seal.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		s.SetPIN("wrong-pin-1")
	}
	s.SetPIN(strings.TrimSpace(string(right)))
	blob, err := sealer.Wrap(t.Context(), root, 1)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sealer.Unwrap(t.Context(), blob); err != nil || !r.Equal(root) {
		t.Error(err)
	}
}

// TestForgetDestroys: the keys of forgotten generations are gone from the token, and nobody else's.
func TestForgetDestroys(t *testing.T) {
	s := testenv.SoftHSM2(t)
	mine, other := open(t, config(s, "root")), open(t, config(s, "root 2"))
	for g := range uint64(3) {
		for _, x := range []*pkcs11.Sealer{mine, other} {
			if _, err := x.Wrap(t.Context(), secret.Random(32), g); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := s.Objects(); n != 6 {
		t.Fatalf("%d objects", n)
	}
	if err := mine.Forget(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if n := s.Objects(); n != 4 {
		t.Errorf("%d objects", n)
	}
}

// TestTwoKeysOfOneGeneration: two servers that make the key of a generation at the same time make two; what either wrapped opens.
func TestTwoKeysOfOneGeneration(t *testing.T) {
	s := testenv.SoftHSM2(t)
	c := config(s, "root")
	token, err := hsm.Open(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	sealer := open(t, c)
	root := secret.Random(32)
	first, err := sealer.Wrap(t.Context(), root, 7)
	if err != nil {
		t.Fatal(err)
	}
	// The second key of the name is the one that this process now remembers, as another server would.
	if err := token.MakeAES(t.Context(), hsm.Name{Label: "root", ID: "\x00\x00\x00\x00\x00\x00\x00\x07"}, 32); err != nil {
		t.Fatal(err)
	}
	second, err := sealer.Wrap(t.Context(), root, 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range [][]byte{first, second} {
		if r, err := sealer.Unwrap(t.Context(), blob); err != nil || !r.Equal(root) {
			t.Error(err)
		}
	}
	if err := sealer.Forget(t.Context(), 8); err != nil {
		t.Fatal(err)
	}
	if n := s.Objects(); n != 0 {
		t.Errorf("%d objects are left", n)
	}
}

// TestAnotherToken: a token that was set up anew under the same label opens nothing, and says so.
func TestAnotherToken(t *testing.T) {
	s := testenv.SoftHSM2(t)
	sealer := open(t, config(s, "root"))
	blob, err := sealer.Wrap(t.Context(), secret.Random(32), 1)
	if err != nil {
		t.Fatal(err)
	}
	s.Renew()
	if r, err := sealer.Unwrap(t.Context(), blob); !r.IsZero() || !errors.Is(err, seal.ErrWrongSealer) {
		t.Errorf("%v", err)
	}
}

func TestNew(t *testing.T) {
	s := testenv.SoftHSM2(t)
	for name, test := range map[string]struct {
		change func(*pkcs11.Config)
		want   fault.Code
	}{
		"no module":       {func(c *pkcs11.Config) { c.Module = "" }, fault.Invalid},
		"relative module": {func(c *pkcs11.Config) { c.Module = "libsofthsm2.so" }, fault.Invalid},
		"no token":        {func(c *pkcs11.Config) { c.Token = "" }, fault.Invalid},
		"long token":      {func(c *pkcs11.Config) { c.Token = strings.Repeat("x", 33) }, fault.Invalid},
		"no PIN":          {func(c *pkcs11.Config) { c.PINFile = "" }, fault.Invalid},
		"no key":          {func(c *pkcs11.Config) { c.Key = "" }, fault.Invalid},
		"missing module":  {func(c *pkcs11.Config) { c.Module = "/nowhere/lib.so" }, fault.NotFound},
		"not a library":   {func(c *pkcs11.Config) { c.Module = s.Conf }, fault.NotFound},
	} {
		c := config(s, "root")
		test.change(&c)
		if _, err := pkcs11.New(c); fault.CodeOf(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := config(s, "root")
	c.Token = "another"
	if _, err := open(t, c).Wrap(t.Context(), secret.Random(32), 1); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("a token that is not there: %v", err)
	}
}
