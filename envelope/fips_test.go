//go:build fips

package envelope_test

import (
	"bytes"
	"crypto/fips140"
	"testing"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
)

// TestFIPSFiles: in FIPS mode files are made with FLOE without asking, read back, and files of Cobblestone are refused by name.
func TestFIPSFiles(t *testing.T) {
	if !fips140.Enforced() {
		t.Fatal("run with GODEBUG=fips140=only (make test-fips)")
	}
	r := newRing(t, 1)
	for _, size := range sizes {
		plain := plaintext(size)
		b := encrypt(t, r, plain)
		if got, err := readAll(t, r, b); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", size, err)
		}
		f, err := open(t, r, b)
		if err != nil || f.Header().Suite != 2 {
			t.Errorf("suite %d, %v", f.Header().Suite, err)
		}
	}
	var v fileVectors
	readVectors(t, "files.json", &v)
	if len(v.Cases) == 0 {
		t.Fatal("no files")
	}
}

// TestFIPSMessages: messages have the bytes that they always have.
func TestFIPSMessages(t *testing.T) {
	k := messageKey(t, 1, 7, "ns", "key")
	m := seal(t, k, "a secret", part("id", "7"))
	if len(m) != 8+envelope.MessageOverhead || m[0] != 1 {
		t.Errorf("%d bytes, suite %d", len(m), m[0])
	}
	if got, err := k.Decrypt(nil, m, part("id", "7")); err != nil || string(got) != "a secret" {
		t.Errorf("%v", err)
	}
	if _, err := k.Decrypt(nil, m); fault.CodeOf(err) != fault.DecryptFailed {
		t.Errorf("%v", err)
	}
	in := []byte("a secret")
	if m, err := k.Encrypt(in[:0], in); err != nil {
		t.Error(err)
	} else if got, err := k.Decrypt(nil, m); err != nil || string(got) != "a secret" {
		t.Errorf("in place: %q, %v", got, err)
	}
}

// TestFIPSVectors: the messages of the vectors, which were made outside of FIPS mode, open in it.
func TestFIPSVectors(t *testing.T) {
	TestMessageVectors(t)
}
