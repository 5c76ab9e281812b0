package shamir_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/secret"
)

func make3of5(t testing.TB) (*shamir.Sealer, []shamir.Share) {
	t.Helper()
	s, shares, err := shamir.New(3, 5)
	if err != nil {
		t.Fatal(err)
	}
	return s, shares
}

func add(t testing.TB, s *shamir.Sealer, shares ...shamir.Share) shamir.Progress {
	t.Helper()
	var p shamir.Progress
	for _, share := range shares {
		again, err := shamir.ParseShare(share.Text()) // what was printed is what works, and the sealer owns a copy
		if err == nil {
			p, err = s.Add("", again)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestSealer(t *testing.T) {
	of := map[string][]shamir.Share{}
	sealtest.Run(t, sealtest.Root{
		Remains: true, Edits: 60,
		New: func(t *testing.T) seal.Sealer {
			s, shares := make3of5(t)
			of[s.ID()] = shares
			add(t, s, shares[4], shares[0], shares[2])
			return s
		},
		Again: func(t *testing.T, s seal.Sealer) seal.Sealer {
			old, ok := s.(*shamir.Sealer)
			if !ok {
				t.Fatal("another sealer")
			}
			again, err := shamir.Open(old.Public())
			if err != nil {
				t.Fatal(err)
			}
			add(t, again, of[s.ID()][1:4]...)
			return again
		},
	})
}

// TestCollect: nothing opens before enough shares are there; each that does not fit is named and changes nothing.
func TestCollect(t *testing.T) {
	s, shares := make3of5(t)
	_, foreign := make3of5(t)
	root := secret.Random(32)
	blob, err := s.Wrap(t.Context(), root, 1) // before anybody has come
	if err != nil {
		t.Fatal(err)
	}
	closed := func() {
		t.Helper()
		if r, err := s.Unwrap(t.Context(), blob); !r.IsZero() || !errors.Is(err, seal.ErrNeedsShares) || !errors.Is(err, seal.ErrUnavailable) {
			t.Fatalf("%v", err)
		}
	}
	closed()
	p := add(t, s, shares[1])
	if p.Have != 1 || p.Threshold != 3 || p.Total != 5 || p.Attempt == "" || p.Done() {
		t.Errorf("%+v", p)
	}
	for _, c := range []struct {
		attempt string
		share   shamir.Share
		code    fault.Code
		named   string
	}{
		{"", shares[1], fault.ShareDuplicate, "share 2 of 5"},
		{p.Attempt, shares[1], fault.ShareDuplicate, "share 2 of 5"},
		{"", foreign[0], fault.ShareForeign, "share 1 of 5, set " + foreign[0].Set},
		{"another", shares[2], fault.Conflict, "another"},
	} {
		got, err := s.Add(c.attempt, c.share)
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != c.code || !strings.Contains(f.Resource, c.named) || got.Have != 1 || got.Attempt != p.Attempt {
			t.Errorf("%s: %+v, %v", c.named, got, err)
		}
	}
	closed()
	if err := s.Reset("guess"); fault.CodeOf(err) != fault.Conflict {
		t.Errorf("reset by a guess: %v", err)
	}
	if err := s.Reset(p.Attempt); err != nil || s.Progress().Have != 0 {
		t.Errorf("reset: %v, %+v", err, s.Progress())
	}
	if _, err := s.Add(p.Attempt, shares[0]); fault.CodeOf(err) != fault.Conflict {
		t.Errorf("an attempt that was reset: %v", err)
	}
	add(t, s, shares[0], shares[1])
	closed()
	if p := add(t, s, shares[3]); !p.Done() {
		t.Errorf("%+v", p)
	}
	if got, err := s.Unwrap(t.Context(), blob); err != nil || !got.Equal(root) {
		t.Fatal(err)
	}
	s.Clear()
	closed()
}

// TestWrongShare: a share whose checksum was made to fit is still not the one that was printed, and is named.
func TestWrongShare(t *testing.T) {
	s, shares := make3of5(t)
	for at := range 32 {
		forged := shamir.ShareWith(shares[2], at)
		again, err := shamir.ParseShare(forged.Text())
		if err != nil {
			t.Fatalf("its checksum holds: %v", err)
		}
		if _, err := s.Add("", again); fault.CodeOf(err) != fault.ShareWrong || !strings.Contains(err.Error(), "share 3 of 5") {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	if p := s.Progress(); p.Have != 0 {
		t.Errorf("%+v", p)
	}
}

func TestText(t *testing.T) {
	_, shares := make3of5(t)
	text := string(shares[0].Text().Reveal())
	if len(text) != 3+11*8 || !strings.HasPrefix(text, "rs1-") {
		t.Errorf("%q", text)
	}
	for name, written := range map[string]string{
		"as printed": text, "upper case": strings.ToUpper(text), "no dashes": strings.ReplaceAll(text, "-", ""),
		"blanks and lines": "\n " + strings.ReplaceAll(text, "-", " \r\n\t") + "\n",
	} {
		got, err := shamir.ParseShare(secret.Copy([]byte(written)))
		if err != nil || !got.Text().Equal(shares[0].Text()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range text { // every letter that is copied wrong is found
		for _, c := range "abz27x" {
			wrong := text[:i] + string(c) + text[i+1:]
			if wrong == text || text[i] == '-' {
				continue
			}
			if _, err := shamir.ParseShare(secret.Copy([]byte(wrong))); fault.CodeOf(err) != fault.ShareWrong {
				t.Fatalf("letter %d: %v", i, err)
			} else if strings.Contains(err.Error(), text[10:20]) {
				t.Fatal("the error quotes the share")
			}
		}
		if _, err := shamir.ParseShare(secret.Copy([]byte(text[:i]))); fault.CodeOf(err) != fault.ShareWrong {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, ok := range map[string]bool{
		"3/5": true, "2/2": true, "255/255": true, "2/255": true, "1/3": false, "4/3": false, "0/0": false, "2/256": false, "": false, "3": false,
		"3/x": false, "-3/5": false, "3/5/7": false,
	} {
		if _, _, err := shamir.ParseSizes(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := shamir.New(1, 1); fault.CodeOf(err) != fault.Invalid {
		t.Error(err)
	}
}

func FuzzParseShare(f *testing.F) {
	_, shares := make3of5(f)
	f.Add(string(shares[0].Text().Reveal()))
	f.Add("rs1-aaaaaaa")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := shamir.ParseShare(secret.Copy([]byte(text)))
		if err != nil {
			if fault.CodeOf(err) != fault.ShareWrong {
				t.Error(err)
			}
			return
		}
		again, err := shamir.ParseShare(s.Text())
		if err != nil || again.Name() != s.Name() || !again.Text().Equal(s.Text()) {
			t.Errorf("%s: %v", s.Name(), err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	s, _ := make3of5(f)
	f.Add(s.Public())
	f.Add(s.Public()[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := shamir.Open(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, s.Public()) || s.ID() == "" {
			t.Error("it took something else")
		}
		if root, err := s.Unwrap(t.Context(), b); err == nil || !root.IsZero() {
			t.Error("foreign bytes opened")
		}
	})
}
