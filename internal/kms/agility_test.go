package kms_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestRotateTo: a version of another algorithm of the same purpose takes over, what the old one protected still opens, and going back goes back to
// the algorithm, too.
func TestRotateTo(t *testing.T) {
	for _, c := range []struct {
		purpose  suite.Purpose
		from, to suite.Algorithm
	}{
		{suite.Encrypt, suite.AES256GCM, suite.XAES256GCM},
		{suite.Encrypt, suite.XAES256GCM, suite.XChaCha20Poly1305},
		{suite.Sign, suite.Ed25519, suite.MLDSA65},
		{suite.MAC, suite.HMACSHA256, suite.HMACSHA512},
		{suite.Wrap, suite.AES256GCM, suite.XAES256GCM},
		{suite.Decrypt, suite.RSAOAEP256, suite.HPKEXWing},
		{suite.Decapsulate, suite.MLKEM768, suite.MLKEM1024},
	} {
		w := newWorld(t)
		k := w.create("k", c.purpose, func(k *keyring.Key) { k.Algorithm = c.from })
		opens := must(w.protected(k))(t)
		if _, err := w.RotateTo(t.Context(), alice, w.ref(k), 0, c.to); err != nil {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
			continue
		}
		w.distribute(k)
		k = must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
		if k.At(0).Algorithm != c.from || k.At(1).Algorithm != c.to || k.Algorithm != c.to || k.Primary != 2 {
			t.Errorf("%+v", k)
		}
		after := must(w.protected(k))(t)
		other := w.serve() // another server knows all of it from the store
		for name, f := range map[string]func(*world) error{"before": opens, "after": after} {
			if err := f(w); err != nil {
				t.Errorf("%s to %s, %s: %v", c.from, c.to, name, err)
			}
			if err := f(&world{Service: other, t: t}); err != nil {
				t.Errorf("%s to %s, %s, another server: %v", c.from, c.to, name, err)
			}
		}
		must(w.Back(t.Context(), alice, w.ref(k), 1, 0))(t)
		k = must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
		if k.Primary != 1 || k.Algorithm != c.from {
			t.Errorf("back: primary %d, %s", k.Primary, k.Algorithm)
		}
		if k = w.rotate(k); k.At(2).Algorithm != c.from {
			t.Errorf("the next one is %s", k.At(2).Algorithm)
		}
	}
}

// TestRotateToRefuses: no other purpose, nothing weaker, nothing that the custody or the profile forbids; a rotation given up leaves the algorithm.
func TestRotateToRefuses(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt, func(k *keyring.Key) { k.Custody = keyring.CustodyFleet })
	for a, code := range map[suite.Algorithm]fault.Code{
		suite.Ed25519: fault.AlgorithmForbidden, suite.AES128GCM: fault.AlgorithmForbidden, "ROT13": fault.AlgorithmForbidden, suite.AES256GCM: fault.Invalid,
	} {
		_, err := w.RotateTo(t.Context(), alice, w.ref(k), 0, a)
		wantCode(t, err, code)
	}
	s := w.create("s", suite.Sign, func(k *keyring.Key) { k.Algorithm = suite.MLDSA65 })
	_, err := w.RotateTo(t.Context(), alice, w.ref(s), 0, suite.ES512) // stronger against classical attacks alone
	wantCode(t, err, fault.AlgorithmForbidden)
	must(w.RotateTo(t.Context(), alice, w.ref(k), 0, suite.XChaCha20Poly1305))(t)
	k = must(w.Back(t.Context(), alice, w.ref(k), 1, 0))(t)
	if k.Algorithm != suite.XAES256GCM || k.Len() != 2 || k.At(1).State != keyring.Destroyed {
		t.Errorf("given up: %+v", k)
	}
}
