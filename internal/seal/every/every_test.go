package every_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/every"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/secret"
)

func file(t testing.TB) (*local.Sealer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seal.key")
	s, err := local.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return s, path
}

func compose(t testing.TB, parts ...seal.Sealer) *every.Sealer {
	t.Helper()
	s, err := every.New(parts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealer(t *testing.T) {
	paths := map[string][]string{}
	sealtest.Run(t, sealtest.Root{
		Edits: 150,
		New: func(t *testing.T) seal.Sealer {
			a, pa := file(t)
			b, pb := file(t)
			s := compose(t, a, b)
			paths[s.ID()] = []string{pa, pb}
			return s
		},
		Again: func(t *testing.T, s seal.Sealer) seal.Sealer {
			var parts []seal.Sealer
			for _, path := range paths[s.ID()] {
				p, err := local.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				parts = append([]seal.Sealer{p}, parts...) // in another order, which does not matter
			}
			return compose(t, parts...)
		},
	})
}

// TestSharesAndFile: neither the shares nor the file open alone, and what is missing is named.
func TestSharesAndFile(t *testing.T) {
	people, shares, err := shamir.New(2, 3)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := file(t)
	s := compose(t, people, key)
	if want := "all(" + key.ID() + " & " + people.ID() + ")"; s.ID() != want {
		t.Errorf("%s, not %s", s.ID(), want)
	}
	root := secret.Random(32)
	blob, err := s.Wrap(t.Context(), root, 1)
	if err != nil {
		t.Fatal(err)
	}
	closed := func(s seal.Sealer, part string, want error) {
		t.Helper()
		got, err := s.Unwrap(t.Context(), blob)
		if !got.IsZero() || !errors.Is(err, want) || !strings.Contains(err.Error(), part) {
			t.Errorf("%v", err)
		}
	}
	closed(s, people.ID(), seal.ErrNeedsShares)
	for _, share := range shares[:2] {
		if _, err := people.Add("", share); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := file(t)
	closed(compose(t, people, other), other.ID(), seal.ErrWrongSealer)
	if got, err := s.Unwrap(t.Context(), blob); err != nil || !got.Equal(root) {
		t.Fatal(err)
	}
	if err := s.Forget(t.Context(), 2); err != nil {
		t.Errorf("the file forgets, which is enough: %v", err)
	}
	closed(s, key.ID(), seal.ErrForgotten)
}

// TestMixed: the parts of two wraps do not make a third.
func TestMixed(t *testing.T) {
	a, _ := file(t)
	b, _ := file(t)
	s := compose(t, a, b)
	one, err1 := s.Wrap(t.Context(), secret.Random(32), 1)
	two, err2 := s.Wrap(t.Context(), secret.Random(32), 1)
	if err1 != nil || err2 != nil || len(one) != len(two) {
		t.Fatal(err1, err2)
	}
	_, head, _, err := every.Split(one)
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(append([]byte{}, one[:len(head)-50]...), two[len(head)-50:]...)
	if root, err := s.Unwrap(t.Context(), mixed); !root.IsZero() || !errors.Is(err, seal.ErrWrongSealer) {
		t.Error(err)
	}
	parts, _, _, err := every.Split(one)
	if err != nil || len(parts) != 2 {
		t.Fatal(err)
	}
	if root, err := s.Parts()[0].Unwrap(t.Context(), parts[1]); err == nil || !root.IsZero() {
		t.Error("one part opened the other's")
	}
}

func TestNew(t *testing.T) {
	a, _ := file(t)
	for name, parts := range map[string][]seal.Sealer{"none": {}, "one": {a}, "the same twice": {a, a}} {
		if _, err := every.New(parts...); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnwrap(f *testing.F) {
	a, _ := file(f)
	b, _ := file(f)
	s := compose(f, a, b)
	blob, err := s.Wrap(f.Context(), secret.Random(32), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob[:len(blob)-1])
	f.Add(blob[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if root, err := s.Unwrap(t.Context(), b); err == nil || !root.IsZero() {
			t.Error("foreign bytes opened")
		}
	})
}
