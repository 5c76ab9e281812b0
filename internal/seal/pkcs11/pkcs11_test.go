//go:build services && pkcs11

package pkcs11_test

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	raw "github.com/miekg/pkcs11"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/pkcs11"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
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

// another is the sealer of another server: it logs in for itself and remembers nothing of what this one found.
func another(t *testing.T, s *testenv.SoftHSM, key string) *pkcs11.Sealer {
	t.Helper()
	pin, err := os.ReadFile(s.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	c := config(s, key)
	c.PINFile = filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(c.PINFile, pin, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, c)
}

// TestTwoKeysOfOneGeneration: two servers that make the key of a generation at the same time make two; what either wrapped opens, at both, and both keys are destroyed.
func TestTwoKeysOfOneGeneration(t *testing.T) {
	s := testenv.SoftHSM2(t)
	one, two := open(t, config(s, "root")), another(t, s, "root")
	root := secret.Random(32)
	first, err := one.Wrap(t.Context(), root, 7)
	if err != nil {
		t.Fatal(err)
	}
	back := s.Hide() // the other server has not seen it
	second, err := two.Wrap(t.Context(), root, 7)
	if err != nil {
		t.Fatal(err)
	}
	back()
	s.Remove() // so that the library, which thinks that it knows all of its files, begins again
	if _, err := one.Unwrap(t.Context(), first); !errors.Is(err, seal.ErrUnavailable) {
		t.Fatal(err)
	}
	s.Insert()
	if n := s.Objects(); n != 2 {
		t.Fatalf("%d objects", n)
	}
	for name, sealer := range map[string]*pkcs11.Sealer{"one": one, "two": two, "a third": another(t, s, "root")} {
		for _, blob := range [][]byte{first, second} {
			if r, err := sealer.Unwrap(t.Context(), blob); err != nil || !r.Equal(root) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := one.Forget(t.Context(), 8); err != nil {
		t.Fatal(err)
	}
	if n := s.Objects(); n != 0 {
		t.Errorf("%d objects are left", n)
	}
}

// TestKeyMadeLater: a server that has found its keys looks again before it refuses a blob: another may have made one since. The blob is put together here, after the documentation of its
// format, under a key that the test knows.
func TestKeyMadeLater(t *testing.T) {
	s := testenv.SoftHSM2(t)
	sealer, root, head := open(t, config(s, "root")), secret.Random(32), []byte{1, 0, 0, 0, 0, 0, 0, 0, 7}
	if _, err := sealer.Wrap(t.Context(), root, 7); err != nil {
		t.Fatal(err)
	}
	key := secret.Random(32)
	plant(t, s, "root", head[1:], key.Reveal())
	aead, err := suite.NewAEAD(suite.AES256GCM, key)
	if err != nil {
		t.Fatal(err)
	}
	blob := suite.Seal(aead, head, root.Reveal(), append([]byte("rotor/seal/pkcs11/1\x00"+sealer.ID()+"\x00"), head...))
	if r, err := sealer.Unwrap(t.Context(), blob); err != nil || !r.Equal(root) {
		t.Error(err)
	}
}

// plant puts an AES key into the token. The library is the one that the process has loaded and begun.
func plant(t *testing.T, s *testenv.SoftHSM, label string, id, value []byte) {
	t.Helper()
	lib := raw.New(s.Module)
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	session, err := lib.OpenSession(slots[0], raw.CKF_SERIAL_SESSION|raw.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lib.CreateObject(session, []*raw.Attribute{
		raw.NewAttribute(raw.CKA_CLASS, raw.CKO_SECRET_KEY), raw.NewAttribute(raw.CKA_KEY_TYPE, raw.CKK_AES), raw.NewAttribute(raw.CKA_VALUE, value),
		raw.NewAttribute(raw.CKA_TOKEN, true), raw.NewAttribute(raw.CKA_LABEL, label), raw.NewAttribute(raw.CKA_ID, id), raw.NewAttribute(raw.CKA_DECRYPT, true),
	}); err != nil {
		t.Fatal(err)
	}
}

// TestLoggedOut: a process that the token has logged out logs in again.
func TestLoggedOut(t *testing.T) {
	s := testenv.SoftHSM2(t)
	one := open(t, config(s, "root"))
	root := secret.Random(32)
	blob, err := one.Wrap(t.Context(), root, 1)
	if err != nil {
		t.Fatal(err)
	}
	lib := raw.New(s.Module)
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]func() error{
		"logged out": func() error {
			session, err := lib.OpenSession(slots[0], raw.CKF_SERIAL_SESSION|raw.CKF_RW_SESSION)
			return errors.Join(err, lib.Logout(session))
		},
		"sessions closed": func() error { return lib.CloseAllSessions(slots[0]) },
		"library ended":   func() error { return lib.Finalize() },
	} {
		if err := out(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r, err := one.Unwrap(t.Context(), blob); err != nil || !r.Equal(root) {
			t.Errorf("%s: %v", name, err)
		}
		if err := out(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := one.Wrap(t.Context(), root, 1); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := s.Objects(); n != 1 {
			t.Errorf("%s: %d objects", name, n)
		}
	}
}

// TestEmptyIsNotGone: a token that was taken away looks empty to a session that is open. That is no reason to call a generation forgotten, the blob somebody else's, or to make a new key.
func TestEmptyIsNotGone(t *testing.T) {
	s := testenv.SoftHSM2(t)
	one, two := open(t, config(s, "root")), another(t, s, "root")
	blob, err := one.Wrap(t.Context(), secret.Random(32), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Forget(t.Context(), 0); err != nil { // which opens a session, and remembers no key
		t.Fatal(err)
	}
	s.Remove()
	if r, err := two.Unwrap(t.Context(), blob); !r.IsZero() || !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("unwrap: %v", err)
	}
	if _, err := two.Wrap(t.Context(), secret.Random(32), 1); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("wrap: %v", err)
	}
	if err := two.Forget(t.Context(), 2); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("forget: %v", err)
	}
	s.Insert()
	if _, err := two.Unwrap(t.Context(), blob); err != nil {
		t.Errorf("when it is back: %v", err)
	}
	if n := s.Objects(); n != 1 {
		t.Errorf("%d objects", n)
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
