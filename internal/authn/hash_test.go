package authn

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
)

// TestMain makes hashes cheap, so that the tests of logins are; TestHash measures nothing and takes the real cost.
func TestMain(m *testing.M) {
	hashCost.memory, hashCost.passes = 64, 1
	os.Exit(m.Run())
}

func TestHash(t *testing.T) {
	cheap := hashCost
	hashCost = cost{memory: 19 << 10, passes: 2, threads: 1}
	defer func() { hashCost = cheap }()
	h := NewHasher()
	one, err := h.Make(t.Context(), "secret")
	if err != nil || !strings.HasPrefix(one, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatal(one, err)
	}
	if two, _ := h.Make(t.Context(), "secret"); two == one {
		t.Error("no salt")
	}
	hashCost = cheap // which old hashes do not depend on
	for text, want := range map[string]bool{"secret": true, "Secret": false, "": false} {
		if ok, err := h.Matches(t.Context(), text, one); ok != want || err != nil {
			t.Errorf("%q: %v, %v", text, ok, err)
		}
	}
	for _, bad := range []string{
		"", "secret", strings.Replace(one, "argon2id", "argon2i", 1), strings.Replace(one, "v=19", "v=16", 1), strings.Replace(one, "m=19456", "m=4194304", 1),
		strings.Replace(one, "m=19456", "m=1", 1), strings.Replace(one, "t=2", "t=0", 1), strings.Replace(one, "t=2", "t=17", 1), strings.Replace(one, "p=1", "p=9", 1),
		strings.Replace(one, "t=2", "t=02", 1), one + "A", one[:len(one)-1], one + "$",
	} {
		if ok, err := h.Matches(t.Context(), "secret", bad); ok || err != nil {
			t.Errorf("%q matches, %v", bad, err)
		}
	}
}

// TestHashingIsBounded: with all turns taken, so many wait, and one more is turned away at once.
func TestHashingIsBounded(t *testing.T) {
	h := NewHasher()
	for range maxHashing {
		if _, err := h.turn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := make(chan error, maxWaiting)
	for range maxWaiting {
		h.waiting <- struct{}{} // as one who waits
	}
	if _, err := h.Make(ctx, "x"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("one too many: %v", err)
	}
	<-h.waiting
	go func() { _, err := h.Matches(ctx, "x", ""); out <- err }()
	cancel()
	if err := <-out; fault.CodeOf(err) != fault.Canceled {
		t.Errorf("one who gives up: %v", err)
	}
}

func FuzzParseHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if c, salt, sum, ok := parseHash(s); ok && formatHash(c, salt, sum) != s {
			t.Errorf("%q is read as %q", s, formatHash(c, salt, sum))
		}
	})
}

func FuzzParseSession(f *testing.F) {
	f.Add("rotor_session_00000a_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if slot, err := parseSession(s); err == nil && !strings.HasPrefix(s, SessionMark+slot+"_") {
			t.Errorf("%q is of slot %q", s, slot)
		}
	})
}

func FuzzParseCredential(f *testing.F) {
	f.Add("rotor_credential_00112233445566778899aabbccddeeff_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := parseCredential(s); err == nil && (!isID(id) || !strings.HasPrefix(s, credentialMark+id+"_")) {
			t.Errorf("%q is of ID %q", s, id)
		}
	})
}

func FuzzParseLists(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if lists, err := parseLists(b); err == nil && len(lists) == 0 {
			t.Error("no list and no error")
		}
		if _, n, err := parseAnchors(b); err != nil && n > 0 {
			t.Error("refused with authorities")
		}
	})
}
