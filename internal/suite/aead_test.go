package suite_test

import (
	"bytes"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestAEADs: each seals and opens, with a fresh nonce each time, and opens nothing that is changed, cut or of other data.
func TestAEADs(t *testing.T) {
	for _, a := range ciphers {
		spec := must(suite.Lookup(a))
		key := secret.Random(spec.KeyBytes)
		aead, err := suite.NewAEAD(a, key)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		if n := aead.NonceSize(); n+aead.Overhead() != spec.Nonce+16 {
			t.Errorf("%s: nonce %d, overhead %d", a, n, aead.Overhead())
		}
		plain, data := []byte("plaintext"), []byte("data")
		box := suite.Seal(aead, []byte("front"), plain, data)
		if !bytes.HasPrefix(box, []byte("front")) || len(box) != 5+spec.Nonce+len(plain)+16 {
			t.Fatalf("%s: %d bytes", a, len(box))
		}
		box = box[5:]
		if bytes.Equal(box[:spec.Nonce], suite.Seal(aead, nil, plain, data)[:spec.Nonce]) {
			t.Errorf("%s: the same nonce twice", a)
		}
		if got, err := suite.Open(aead, []byte("x"), box, data); err != nil || string(got) != "xplaintext" {
			t.Errorf("%s: %q, %v", a, got, err)
		}
		for i := range box {
			bad := bytes.Clone(box)
			bad[i] ^= 1
			if _, err := suite.Open(aead, nil, bad, data); err == nil {
				t.Errorf("%s: byte %d changed, and it opens", a, i)
			}
			if _, err := suite.Open(aead, nil, box[:i], data); err == nil {
				t.Errorf("%s: cut to %d bytes, and it opens", a, i)
			}
		}
		if _, err := suite.Open(aead, nil, box, []byte("Data")); err == nil {
			t.Errorf("%s: opens with other data", a)
		}
		for _, n := range []int{0, 8, 15, 17, 24, 31, 33, 64} {
			if _, err := suite.NewAEAD(a, secret.Random(n)); err == nil {
				t.Errorf("%s takes %d bytes", a, n)
			} else if a != suite.XAES256GCM && fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%s, %d bytes: %v", a, n, err)
			}
		}
	}
}

// TestSymmetricTable: suite bytes of messages are unique, and an AEAD with short random nonces has a volume limit.
func TestSymmetricTable(t *testing.T) {
	seen := map[byte]suite.Algorithm{}
	for _, s := range suite.All() {
		if s.Message != 0 && seen[s.Message] != "" {
			t.Errorf("%s and %s have one suite byte", s.ID, seen[s.Message])
		}
		seen[s.Message] = s.ID
		if short := s.Nonce > 0 && s.Nonce < 24; short != (s.MaxUses == 1<<31) {
			t.Errorf("%s: nonces of %d bytes, %d uses", s.ID, s.Nonce, s.MaxUses)
		}
		if s.Standard == "" || s.Quantum == 0 && s.Sunset.Disallowed == "" || s.Sunset.Disallowed != "" && s.Sunset.Source == "" {
			t.Errorf("%s: %+v", s.ID, s)
		}
	}
}

// TestTags: RFC 4231, test case 2, is of a short key; the keys of rotor are as long as the tag.
func TestTags(t *testing.T) {
	for _, a := range macs {
		spec := must(suite.Lookup(a))
		key := secret.Random(spec.KeyBytes)
		tag, err := suite.Tag(a, key, []byte("message"))
		if err != nil || len(tag) != spec.KeyBytes {
			t.Fatalf("%s: %d bytes, %v", a, len(tag), err)
		}
		if err := suite.VerifyTag(a, key, []byte("message"), tag); err != nil {
			t.Error(err)
		}
		for _, bad := range [][]byte{nil, tag[:len(tag)-1], append(bytes.Clone(tag), 0), make([]byte, len(tag))} {
			if err := suite.VerifyTag(a, key, []byte("message"), bad); err == nil {
				t.Errorf("%s: %d bytes verify", a, len(bad))
			}
		}
	}
	for _, a := range append(ciphers, suite.Ed25519, "") {
		_, err := suite.Tag(a, secret.Random(32), nil)
		forbidden(t, string(a)+" as MAC", err)
	}
}
