//go:build services && pkcs11

package kms_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/custody"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/testenv"
)

// tokenWorld is a world with SoftHSM.
func tokenWorld(t *testing.T) (*world, *testenv.SoftHSM) {
	t.Helper()
	s := testenv.SoftHSM2(t)
	w := newWorldWith(t, func(cluster string) kms.HSM {
		k, err := custody.Open(hsm.Config{Module: s.Module, Token: s.Label, PINFile: s.PINFile}, cluster)
		if err != nil {
			t.Fatal(err)
		}
		return k
	})
	return w, s
}

func inToken(k *keyring.Key) { k.Custody = keyring.CustodyHSM }

// use has a key of custody hsm do all that its purpose has, under the version that is primary, and returns a check that what it made goes on to be good.
func (w *world) use(k keyring.Key) (check func() error) {
	w.t.Helper()
	ctx, ref := w.t.Context(), w.ref(k)
	switch k.Purpose {
	case suite.Encrypt:
		m, _, err := w.Encrypt(ctx, alice, ref, text, parts)
		if err != nil {
			w.t.Fatal(err)
		}
		return func() error {
			if out, _, err := w.Decrypt(ctx, alice, ref, m, []envelope.Part{{Label: "row", Value: []byte("8")}}); out != nil || err == nil {
				w.t.Errorf("in another row: %v", err)
			}
			out, _, err := w.Decrypt(ctx, alice, ref, m, parts)
			if err == nil && !bytes.Equal(out, text) {
				w.t.Errorf("%q", out)
			}
			return err
		}
	case suite.Wrap:
		wrapped := must(w.Wrap(ctx, alice, ref, dek, immutable))(w.t)
		return func() error {
			out, err := w.Unwrap(ctx, alice, wrapped, immutable)
			if err == nil && !out.Equal(dek) {
				w.t.Error("another data key")
			}
			return err
		}
	default:
		sig, n, err := w.Authenticate(ctx, alice, ref, text)
		if err != nil {
			w.t.Fatal(err)
		}
		return func() error {
			if err := w.Verify(ctx, alice, ref, n, []byte("attack at noon"), sig); err == nil {
				w.t.Error("of another message")
			}
			return w.Verify(ctx, alice, ref, n, text, sig)
		}
	}
}

// TestHSM: keys of every purpose that a token has live in it through rotation to destruction, as others do; the object of a destroyed version is gone from the token, with an entry in
// the log.
func TestHSM(t *testing.T) {
	w, s := tokenWorld(t)
	for _, p := range []suite.Purpose{suite.Encrypt, suite.Wrap, suite.MAC, suite.Sign} {
		t.Run(string(p), func(t *testing.T) {
			before := s.Objects()
			k := w.create("in-token-"+string(p), p, inToken)
			if s.Objects() != before+1 {
				t.Fatalf("%d objects", s.Objects()-before)
			}
			first := w.use(k)
			if err := first(); err != nil {
				t.Fatal(err)
			}
			w.rotate(k)
			second := w.use(k)
			for _, check := range []func() error{first, second} {
				if err := check(); err != nil {
					t.Error(err)
				}
			}
			if p == suite.Sign { // destroyed when it never signs again
				w.settle(k)
				w.gone(s, before+1)
				if err := first(); err != nil {
					t.Errorf("the public half: %v", err)
				}
				return
			}
			w.retire(k)
			w.destroy(k)
			w.gone(s, before+1)
			if err := first(); fault.CodeOf(err) != fault.VersionDestroyed {
				t.Errorf("destroyed: %v", err)
			}
			if err := second(); err != nil {
				t.Error(err)
			}
		})
	}
	if n := slices.IndexFunc(w.logged("destroy"), func(d map[string]string) bool { return d["token"] == "object destroyed" && d["version"] == "1" }); n < 0 {
		t.Error("the log does not tell of the object's end")
	}
}

// gone waits until the token has so many objects.
func (w *world) gone(s *testenv.SoftHSM, want int) {
	w.t.Helper()
	w.await(fmt.Sprintf("%d objects", want), func() bool { return s.Objects() == want })
}

// logged are the details of the log's entries of an action.
func (w *world) logged(action string) (all []map[string]string) {
	for _, e := range w.entries() {
		if string(e.Action) == action || string(e.Action) == "version."+action {
			all = append(all, e.Detail)
		}
	}
	return all
}

// TestHSMRefuses: what a token cannot do, and what would leave it.
func TestHSMRefuses(t *testing.T) {
	w, s := tokenWorld(t)
	for name, test := range map[string]struct {
		change func(*keyring.Key)
		want   fault.Code
	}{
		"XAES":        {func(k *keyring.Key) { k.Algorithm = suite.XAES256GCM }, fault.Invalid},
		"ChaCha20":    {func(k *keyring.Key) { k.Algorithm = suite.ChaCha20Poly1305 }, fault.Invalid},
		"ML-DSA":      {func(k *keyring.Key) { k.Purpose, k.Algorithm = suite.Sign, suite.MLDSA65 }, fault.Invalid},
		"decrypt":     {func(k *keyring.Key) { k.Purpose = suite.Decrypt }, fault.Invalid},
		"decapsulate": {func(k *keyring.Key) { k.Purpose = suite.Decapsulate }, fault.Invalid},
		"exportable":  {func(k *keyring.Key) { k.Exportable = true }, fault.Invalid},
	} {
		k := keyring.Key{Namespace: "default", Name: "no", Purpose: suite.Encrypt, Custody: keyring.CustodyHSM}
		test.change(&k)
		if _, err := w.Create(t.Context(), alice, k); fault.CodeOf(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := s.Objects(); n != 0 {
		t.Errorf("%d objects of what was refused", n)
	}
	k := w.create("k", suite.Encrypt, inToken)
	if k.Algorithm != suite.AES256GCM {
		t.Errorf("the default is %s", k.Algorithm)
	}
	_, err := w.Material(t.Context(), k, 1)
	wantCode(t, err, fault.NotExportable)
	_, err = w.Export(t.Context(), alice, w.ref(k), 1, suite.TransportRSA, nil)
	wantCode(t, err, fault.NotExportable)
	_, err = w.Backup(t.Context(), alice, w.ref(k), kms.BackupFor{Keep: time.Hour})
	wantCode(t, err, fault.NotExportable)
	_, err = w.Import(t.Context(), alice, keyring.Key{Namespace: "default", Name: "in", Purpose: suite.Encrypt, Custody: keyring.CustodyHSM}, kms.Imported{})
	wantCode(t, err, fault.Invalid)
	_, err = w.RotateTo(t.Context(), alice, w.ref(k), 0, suite.XAES256GCM)
	wantCode(t, err, fault.Invalid)
	_, err = w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyHSM})
	wantCode(t, err, fault.Exists)
	if n := s.Objects(); n != 1 {
		t.Errorf("%d objects: a key that was not made left one", n)
	}
}

// TestHSMAway: while the token is away its keys say so, nothing is made and nothing is lost; other keys go on; what was destroyed meanwhile goes when it is back.
func TestHSMAway(t *testing.T) {
	w, s := tokenWorld(t)
	k, other := w.create("k", suite.Encrypt, inToken), w.create("other", suite.Encrypt)
	check := w.use(k)
	w.rotate(k)
	w.retire(k)
	must(w.Approve(t.Context(), alice, w.ref(k), 1))(t)
	must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)
	w.pass(wait)
	second := w.use(k)
	s.Remove()
	_, _, err := w.Encrypt(t.Context(), alice, w.ref(k), text, parts)
	wantCode(t, err, fault.Unavailable)
	wantCode(t, second(), fault.Unavailable)
	_, err = w.Rotate(t.Context(), alice, w.ref(k), 0)
	wantCode(t, err, fault.Unavailable)
	w.use(other)
	must(w.tryDestroy(k))(t) // in the record; the object has to wait
	w.await("the token to be found away", func() bool { up, there := w.TokenUp(); return there && !up })
	s.Insert()
	if n := s.Objects(); n != 2 {
		t.Errorf("%d objects", n)
	}
	again := w.serve() // as a server that is started
	w.gone(s, 1)
	w.await("the token to be up", func() bool { up, _ := again.TokenUp(); return up })
	if err := second(); err != nil {
		t.Errorf("when it is back: %v", err)
	}
	wantCode(t, check(), fault.VersionDestroyed)
}

// TestHSMLostAnswer: when the answer of a commit is lost the object stays if the version may be there, and the version works if it is.
func TestHSMLostAnswer(t *testing.T) {
	w, s := tokenWorld(t)
	w.store.lose.Store(loseAfter)
	k := w.create("k", suite.Encrypt, inToken)
	if err := w.use(k)(); err != nil {
		t.Error(err)
	}
	w.store.lose.Store(loseBefore)
	if _, err := w.Rotate(t.Context(), alice, w.ref(k), 0); fault.CodeOf(err) != fault.OutcomeUnknown {
		t.Errorf("%v", err)
	}
	if n := s.Objects(); n != 2 {
		t.Errorf("%d objects: the second may be of a version that comes yet", n)
	}
	w.rotate(k)
	if err := w.use(k)(); err != nil {
		t.Error(err)
	}
}

// TestHSMMissing: a server without a token has keys of others in it, and says so; an object that somebody destroyed in the token is missing, and nothing else opens instead.
func TestHSMMissing(t *testing.T) {
	w, s := tokenWorld(t)
	k := w.create("k", suite.MAC, inToken)
	check := w.use(k)
	token := w.hsm
	w.hsm = nil
	bare := w.serve()
	_, _, err := bare.MAC(t.Context(), alice, w.ref(k), text)
	wantCode(t, err, fault.Unavailable)
	_, err = bare.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "n", Purpose: suite.MAC, Custody: keyring.CustodyHSM})
	wantCode(t, err, fault.Unavailable)
	id := must(hex.DecodeString(string(k.ID)))(t)
	id = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(id, 1), k.At(0).Handle)
	if was, err := token.Destroy(t.Context(), string(id)); err != nil || !was {
		t.Fatal(was, err)
	}
	wantCode(t, check(), fault.NotFound)
	if s.Objects() != 0 {
		t.Error("an object came back")
	}
}

// TestHSMReplicas: two servers on one store and one token; what one makes the other uses, and an object is destroyed though both destroy it.
func TestHSMReplicas(t *testing.T) {
	w, s := tokenWorld(t)
	other := w.serve()
	k := w.create("k", suite.Encrypt, inToken)
	ref := w.ref(k)
	m, _, err := other.Encrypt(t.Context(), alice, ref, text, parts)
	if err != nil {
		t.Fatal(err)
	}
	must(other.Rotate(t.Context(), alice, ref, 0))(t)
	if err := w.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.distribute(k)
	must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
	for _, server := range []*kms.Service{w.Service, other} {
		if out, _, err := server.Decrypt(t.Context(), alice, ref, m, parts); err != nil || !bytes.Equal(out, text) {
			t.Errorf("%v", err)
		}
	}
	w.retire(k)
	w.destroy(k)
	w.gone(s, 1)
	for _, server := range []*kms.Service{w.Service, other} {
		if _, _, err := server.Decrypt(t.Context(), alice, ref, m, parts); fault.CodeOf(err) != fault.VersionDestroyed {
			t.Errorf("%v", err)
		}
	}
}

// TestHSMStalled: a token that takes a call and does not answer holds nobody longer than the caller waits, and no other key at all.
func TestHSMStalled(t *testing.T) {
	w, s := tokenWorld(t)
	k, other := w.create("k", suite.Encrypt, inToken), w.create("other", suite.Encrypt)
	check := w.use(k)
	asked, letGo := s.Stall()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, _, err := w.Encrypt(ctx, alice, w.ref(k), text, parts)
		done <- err
	}()
	<-asked
	if err := w.use(other)(); err != nil {
		t.Error(err)
	}
	cancel()
	wantCode(t, <-done, fault.Unavailable)
	letGo()
	if err := check(); err != nil {
		t.Errorf("when it answers again: %v", err)
	}
}
