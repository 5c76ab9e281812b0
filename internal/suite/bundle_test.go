package suite_test

import (
	"bytes"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestGenerateTransit: each algorithm of the purpose gives a key and an HMAC key that are fresh, and no other algorithm gives any.
func TestGenerateTransit(t *testing.T) {
	n := 0
	for _, s := range suite.All() {
		if _, err := suite.ForPurpose(s.ID, suite.Transit); err != nil {
			_, _, err := suite.GenerateTransit(s.ID, 0)
			forbidden(t, string(s.ID), err)
			_, err = suite.PublicOfBundle(s.ID, must(suite.Bundle(secret.Random(32), secret.Random(32))))
			forbidden(t, string(s.ID), err)
			continue
		}
		n++
		if s.RSABits > 2048 {
			continue // slow to make, and as the shorter one
		}
		a, public, err := suite.GenerateTransit(s.ID, 0)
		if err != nil || (public == nil) != (s.KeyBytes > 0) {
			t.Fatalf("%s: %v", s.ID, err)
		}
		if got, err := suite.PublicOfBundle(s.ID, a); err != nil || !bytes.Equal(got, public) {
			t.Errorf("%s: %v", s.ID, err)
		}
		key, mac, err := suite.SplitBundle(a)
		if err != nil || mac.Len() != suite.HMACKeySize || s.KeyBytes > 0 && key.Len() != s.KeyBytes {
			t.Errorf("%s: %d, %d, %v", s.ID, key.Len(), mac.Len(), err)
		}
		b, _, _ := suite.GenerateTransit(s.ID, 0)
		key2, mac2, _ := suite.SplitBundle(b)
		if key.Equal(key2) || mac.Equal(mac2) || key.Equal(mac) {
			t.Errorf("%s: the same key twice", s.ID)
		}
		if m := must(suite.Normal(s.ID, key)); !m.Equal(key) {
			t.Errorf("%s: what is made is not in its normal form", s.ID)
		}
	}
	if n != 15 {
		t.Errorf("%d algorithms", n)
	}
}

// TestHMACKeyLengths: 32 to 512 bytes.
func TestHMACKeyLengths(t *testing.T) {
	for size, want := range map[int]int{0: 32, 32: 32, 33: 33, 512: 512, 31: -1, 513: -1, -1: -1} {
		b, public, err := suite.GenerateTransit(suite.HMAC, size)
		if want < 0 {
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%d bytes: %v", size, err)
			}
			if size > 0 {
				if _, err := suite.PublicOf(suite.HMAC, secret.Random(size)); fault.CodeOf(err) != fault.Invalid {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
			continue
		}
		key, _, err2 := suite.SplitBundle(b)
		if err != nil || err2 != nil || public != nil || key.Len() != want {
			t.Errorf("%d bytes: %d, %v, %v", size, key.Len(), err, err2)
		}
	}
	for _, size := range []int{16, 64} { // a size is of HMAC alone
		if b, _, err := suite.GenerateTransit(suite.AES256GCM, size); err != nil || b.Len() != 3+32+32 {
			t.Errorf("%d: %d, %v", size, b.Len(), err)
		}
	}
}

// TestBundle: what Bundle refuses, and that its parts are copies.
func TestBundle(t *testing.T) {
	for _, c := range [][2]int{{32, 31}, {32, 33}, {32, 0}, {1 << 16, 32}} {
		if _, err := suite.Bundle(secret.Random(c[0]), secret.Random(c[1])); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v: %v", c, err)
		}
	}
	b := must(suite.Bundle(secret.Bytes{}, secret.Random(32))) // a version whose public half alone is known
	key, mac, err := suite.SplitBundle(b)
	if err != nil || key.Len() != 0 {
		t.Errorf("%d, %v", key.Len(), err)
	}
	b.Destroy()
	if mac.Equal(secret.Take(make([]byte, 32))) {
		t.Error("a part shares the memory of the bundle")
	}
}

// FuzzBundle: a bundle is what Bundle makes, byte for byte.
func FuzzBundle(f *testing.F) {
	f.Add([]byte{})
	f.Add(must(suite.Bundle(secret.Random(32), secret.Random(32))).Reveal())
	f.Add(must(suite.Bundle(secret.Bytes{}, secret.Random(32))).Reveal())
	f.Fuzz(func(t *testing.T, b []byte) {
		key, mac, err := suite.SplitBundle(secret.Copy(b))
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Error(err)
			}
			return
		}
		if again, err := suite.Bundle(key, mac); err != nil || !bytes.Equal(again.Reveal(), b) {
			t.Errorf("%x, %v", b, err)
		}
	})
}
