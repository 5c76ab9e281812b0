package kms_test

import (
	"bytes"
	"testing"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// someRules let alice do everything and bob everything but one action.
type someRules struct{ not policy.Action }

func (r someRules) Allows(c policy.Caller, a policy.Action, _ policy.Resource) (string, bool) {
	return "test", c.Name == alice.Name || c.Name == bob.Name && a != r.not
}

// TestReadCompromised: what is under a compromised version is read by who asks for it and has the right, marked, and in the log before the answer;
// nothing is verified or moved on under it.
func TestReadCompromised(t *testing.T) {
	w := newWorld(t)
	w.guard.SetRules(someRules{policy.ActReadSuspect})
	enc, wrap, mac := w.create("e", suite.Encrypt), w.create("w", suite.Wrap), w.create("m", suite.MAC)
	message, _, err := w.Encrypt(t.Context(), alice, w.ref(enc), []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	dek := bytes.Repeat([]byte{7}, 32)
	wrapped := must(w.Wrap(t.Context(), alice, w.ref(wrap), secret.Copy(dek), immutable))(t)
	tag, _, err := w.Authenticate(t.Context(), alice, w.ref(mac), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	out, _, suspect, err := w.DecryptCompromised(t.Context(), alice, w.ref(enc), message, nil)
	if err != nil || suspect || string(out) != "x" {
		t.Errorf("before: %q, %v, %v", out, suspect, err)
	}
	for _, k := range []keyring.Key{enc, wrap, mac} {
		must(w.Change(t.Context(), alice, w.ref(k), 1, keyring.Compromise, "a test"))(t)
	}
	_, _, err = w.Decrypt(t.Context(), alice, w.ref(enc), message, nil)
	wantCode(t, err, fault.WrongState)
	_, err = w.Unwrap(t.Context(), alice, wrapped, immutable)
	wantCode(t, err, fault.WrongState)
	_, _, err = w.Rewrap(t.Context(), alice, wrapped, immutable)
	wantCode(t, err, fault.WrongState)
	wantCode(t, w.Verify(t.Context(), alice, w.ref(mac), 1, []byte("x"), tag), fault.WrongState)

	out, n, suspect, err := w.DecryptCompromised(t.Context(), alice, w.ref(enc), message, nil)
	if err != nil || !suspect || n != 1 || string(out) != "x" {
		t.Errorf("%q, %v, %v", out, suspect, err)
	}
	got, suspect, err := w.UnwrapCompromised(t.Context(), alice, wrapped, immutable)
	if err != nil || !suspect || !got.Equal(secret.Copy(dek)) {
		t.Errorf("%v, %v", suspect, err)
	}
	_, _, _, err = w.DecryptCompromised(t.Context(), bob, w.ref(enc), message, nil)
	wantCode(t, err, fault.Denied)
	_, _, err = w.UnwrapCompromised(t.Context(), bob, wrapped, immutable)
	wantCode(t, err, fault.Denied)
	w.guard.SetRules(someRules{policy.ActDecrypt}) // the right alone is not the right to decrypt
	_, _, _, err = w.DecryptCompromised(t.Context(), bob, w.ref(enc), message, nil)
	wantCode(t, err, fault.Denied)
	released := 0
	for _, e := range w.entries() {
		if e.Class == audit.ClassRelease && (e.Action == string(policy.ActReadSuspect) || e.Detail["compromised"] == "yes") && e.Caller == alice.Name {
			released++
		}
	}
	if released != 2 {
		t.Errorf("%d releases in the log", released)
	}
}
