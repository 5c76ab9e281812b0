package kms_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// immutable is the immutable part of a file's header: suite 1, a file ID, no content type, no encryption context.
var immutable = append([]byte{1}, make([]byte, 16+4+4)...)

var (
	text  = []byte("attack at dawn")
	parts = []envelope.Part{{Label: "row", Value: []byte("7")}}
	dek   = secret.Copy(bytes.Repeat([]byte{7}, 32))
)

// made is what a version protected: what fits the key's purpose.
type made struct {
	message, sig, tag []byte
	wrap              envelope.Wrap
}

// make protects with the material of a version, whatever its phase.
func (w *world) make(k keyring.Key, n uint32) (out made) {
	w.t.Helper()
	k, _ = w.Key(k.ID)
	v := must(k.Version(n))(w.t)
	m := must(w.Material(w.t.Context(), k, n))(w.t)
	switch k.Purpose {
	case suite.Encrypt:
		mk := must(envelope.NewMessageKey(m, v.Handle, string(k.Namespace), string(k.ID)))(w.t)
		out.message = must(mk.Encrypt(nil, text, parts...))(w.t)
	case suite.Sign:
		out.sig = must(must(suite.NewSigner(v.Algorithm, m))(w.t).Sign(text))(w.t)
	case suite.MAC:
		out.tag = must(suite.Tag(v.Algorithm, m, text))(w.t)
	case suite.Wrap:
		head := envelope.Wrap{Type: envelope.WrapKMS, KeyID: string(k.ID), Version: n, Algorithm: v.Algorithm, ProtectTime: w.now().UTC()}
		out.wrap = must(envelope.SealDEK(must(suite.NewAEAD(v.Algorithm, m))(w.t), head, immutable, dek))(w.t)
	}
	return out
}

// protect protects with the primary version through the door.
func (w *world) protect(k keyring.Key) error {
	var err error
	switch k.Purpose {
	case suite.Encrypt:
		_, _, err = w.Encrypt(w.t.Context(), alice, w.ref(k), text, parts)
	case suite.Sign:
		_, _, err = w.Sign(w.t.Context(), alice, w.ref(k), text)
		_, _, terr := w.SignToken(w.t.Context(), alice, w.ref(k), func(keyring.Key, keyring.Version) ([]byte, error) { return text, nil })
		_, _, aerr := w.Authenticate(w.t.Context(), alice, w.ref(k), text)
		if fault.CodeOf(terr) != fault.CodeOf(err) || fault.CodeOf(aerr) != fault.CodeOf(err) {
			w.t.Errorf("sign: %v, sign a token: %v, authenticate: %v", err, terr, aerr)
		}
	case suite.MAC:
		_, _, err = w.MAC(w.t.Context(), alice, w.ref(k), text)
		if _, _, aerr := w.Authenticate(w.t.Context(), alice, w.ref(k), text); fault.CodeOf(aerr) != fault.CodeOf(err) {
			w.t.Errorf("mac: %v, authenticate: %v", err, aerr)
		}
	case suite.Wrap:
		var made envelope.Wrap
		made, err = w.Wrap(w.t.Context(), alice, w.ref(k), dek, immutable)
		if err == nil && !made.ProtectTime.Equal(w.now()) {
			w.t.Errorf("wrapped at %s, protect time %s", w.now(), made.ProtectTime)
		}
	}
	return err
}

// process processes what version n made, by every way that there is; all must answer the same.
func (w *world) process(k keyring.Key, n uint32, m made) error {
	w.t.Helper()
	switch ctx := w.t.Context(); k.Purpose {
	case suite.Encrypt:
		plain, by, err := w.Decrypt(ctx, alice, w.ref(k), m.message, parts)
		if err == nil && (!bytes.Equal(plain, text) || by != n) {
			w.t.Errorf("decrypted %q of version %d", plain, by)
		}
		if got, oerr := w.Opens(ctx, k.ID, m.message, parts); got != n || fault.CodeOf(oerr) != fault.CodeOf(err) {
			w.t.Errorf("opens: version %d, %v; decrypt: %v", got, oerr, err)
		}
		return err
	case suite.Sign:
		return w.Verify(ctx, alice, w.ref(k), n, text, m.sig)
	case suite.MAC:
		return w.Verify(ctx, alice, w.ref(k), n, text, m.tag)
	default:
		got, err := w.Unwrap(ctx, alice, m.wrap, immutable)
		if err == nil && !got.Equal(dek) {
			w.t.Error("unwrapped another data key")
		}
		return err
	}
}

// move moves what version n made to the primary version, for the purposes that can.
func (w *world) move(k keyring.Key, m made) (moved bool, err error) {
	w.t.Helper()
	k, _ = w.Key(k.ID)
	switch k.Purpose {
	case suite.Encrypt:
		var next []byte
		if next, moved, err = w.Reencrypt(w.t.Context(), k.ID, k.Primary, m.message, parts); moved {
			return true, w.process(k, k.Primary, made{message: next})
		}
	case suite.Wrap:
		var next envelope.Wrap
		if next, moved, err = w.Rewrap(w.t.Context(), alice, m.wrap, immutable); moved {
			if !next.ProtectTime.Equal(m.wrap.ProtectTime) {
				w.t.Error("a rewrap changed the protect time")
			}
			return true, w.process(k, k.Primary, made{wrap: next})
		}
	}
	return moved, err
}

// versionCase is a version in some phase and state, and what may be done with it.
type versionCase struct {
	name    string
	n       uint32
	periods keyring.Periods
	to      func(w *world, k keyring.Key) // brings the key there; version n has protected before
	protect fault.Code                    // by the key's primary version
	process fault.Code                    // of what was made without a protect time
	wrap    fault.Code                    // of what was made before the change, with a protect time
}

func versionCases() []versionCase {
	change := func(e keyring.Event) func(w *world, k keyring.Key) {
		return func(w *world, k keyring.Key) {
			w.pass(time.Hour)
			must(w.Change(w.t.Context(), alice, w.ref(k), 1, e, "test"))(w.t)
		}
	}
	rotated := func(then ...func(w *world, k keyring.Key)) func(w *world, k keyring.Key) {
		return func(w *world, k keyring.Key) {
			w.rotate(k)
			for _, f := range then {
				f(w, k)
			}
		}
	}
	day := keyring.Periods{Originator: 24 * time.Hour, Recipient: 48 * time.Hour}
	return []versionCase{
		{name: "staged", n: 2, to: func(*world, keyring.Key) {}, process: fault.WrongState, wrap: fault.WrongState},
		{name: "distributed", n: 2, to: func(w *world, k keyring.Key) { w.distribute(k) }, process: fault.WrongState, wrap: fault.WrongState}, // pre-activation
		{name: "promoted", n: 2, to: func(w *world, k keyring.Key) {
			w.distribute(k)
			must(w.Step(w.t.Context(), k.ID, guard.Cond{}, promote))(w.t)
		}},
		{name: "given up", n: 2, to: func(w *world, k keyring.Key) { must(w.Back(w.t.Context(), alice, w.ref(k), 1, 0))(w.t) }, process: fault.VersionDestroyed, wrap: fault.VersionDestroyed},
		{name: "primary", n: 1, to: func(*world, keyring.Key) {}},
		{name: "decrypt-only", n: 1, to: rotated()},
		{name: "deactivated", n: 1, to: rotated((*world).settle)},
		{name: "retired", n: 1, to: rotated((*world).retire), process: fault.VersionRetired, wrap: fault.VersionRetired},
		{name: "unretired", n: 1, to: rotated((*world).retire, func(w *world, k keyring.Key) { must(w.Unretire(w.t.Context(), alice, w.ref(k), 1))(w.t) })},
		{name: "destroyed", n: 1, to: rotated((*world).retire, (*world).destroy), process: fault.VersionDestroyed, wrap: fault.VersionDestroyed},
		{name: "suspended", n: 1, to: change(keyring.Suspend), protect: fault.WrongState, process: fault.WrongState},
		{name: "resumed", n: 1, to: func(w *world, k keyring.Key) { change(keyring.Suspend)(w, k); change(keyring.Resume)(w, k) }},
		{name: "suspended, decrypt-only", n: 1, to: rotated(change(keyring.Suspend)), process: fault.WrongState},
		{name: "compromised", n: 1, to: change(keyring.Compromise), protect: fault.WrongState, process: fault.WrongState, wrap: fault.WrongState},
		{name: "compromised, decrypt-only", n: 1, to: rotated(change(keyring.Compromise)), process: fault.WrongState, wrap: fault.WrongState},
		{name: "at the end of its originator period", n: 1, periods: day, to: func(w *world, _ keyring.Key) { w.pass(24*time.Hour - time.Second) }},
		{name: "past its originator period", n: 1, periods: day, to: func(w *world, _ keyring.Key) { w.pass(24 * time.Hour) }, protect: fault.PeriodOver},
		{name: "past its recipient period", n: 1, periods: day, to: func(w *world, _ keyring.Key) { w.pass(48 * time.Hour) }, protect: fault.PeriodOver, process: fault.PeriodOver, wrap: fault.PeriodOver},
	}
}

func TestUseInEveryPhaseAndState(t *testing.T) {
	w := newWorld(t)
	for i, c := range versionCases() {
		for _, p := range []suite.Purpose{suite.Encrypt, suite.Sign, suite.MAC, suite.Wrap} {
			t.Run(c.name+" "+string(p), func(t *testing.T) {
				w.t = t
				k := w.create(string(p)+string(rune('a'+i)), p, func(k *keyring.Key) { k.Periods = c.periods })
				if c.n == 2 {
					must(w.Rotate(t.Context(), alice, w.ref(k), 0))(t)
				}
				m := w.make(k, c.n)
				c.to(w, k)
				wantCode(t, w.protect(k), c.protect)
				want := c.process
				if p == suite.Wrap {
					want = c.wrap
				}
				wantCode(t, w.process(k, c.n, m), want)
				if p == suite.Sign || p == suite.MAC {
					return
				}
				k, _ = w.Key(k.ID)
				moved, err := w.move(k, m)
				if k.Primary == c.n && p == suite.Encrypt {
					want = "" // it is there already, and nobody looks at it
				}
				wantCode(t, err, want)
				if moved != (want == "" && k.Primary != c.n) {
					t.Errorf("moved: %t", moved)
				}
			})
		}
	}
	w.t = t
}

func TestSuspendedProcessesOnlyWhatIsOlder(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Wrap)
	w.pass(time.Hour)
	must(w.Change(t.Context(), alice, w.ref(k), 1, keyring.Suspend, ""))(t)
	m := w.make(k, 1) // made by a thief, at the second of the suspension
	wantCode(t, w.process(k, 1, m), fault.WrongState)
	m.wrap.ProtectTime = m.wrap.ProtectTime.Add(-time.Minute) // the protect time is authenticated
	wantCode(t, w.process(k, 1, m), fault.DecryptFailed)
}

func TestWrongPurpose(t *testing.T) {
	w := newWorld(t)
	keys := map[suite.Purpose]keyring.Key{}
	for _, p := range []suite.Purpose{suite.Encrypt, suite.Sign, suite.MAC, suite.Wrap} {
		keys[p] = w.create(string(p), p)
	}
	message := w.make(keys[suite.Encrypt], 1).message
	wrap := w.make(keys[suite.Wrap], 1).wrap
	for p, k := range keys {
		ctx, ref := t.Context(), w.ref(k)
		_, _, encrypt := w.Encrypt(ctx, alice, ref, text, nil)
		_, _, decrypt := w.Decrypt(ctx, alice, ref, message, parts)
		_, _, reencrypt := w.Reencrypt(ctx, k.ID, 1, message, parts)
		_, opens := w.Opens(ctx, k.ID, message, parts)
		_, _, sign := w.Sign(ctx, alice, ref, text)
		_, _, token := w.SignToken(ctx, alice, ref, func(keyring.Key, keyring.Version) ([]byte, error) { return text, nil })
		_, _, mac := w.MAC(ctx, alice, ref, text)
		_, seal := w.Wrap(ctx, alice, ref, dek, immutable)
		of := wrap
		of.KeyID = string(k.ID)
		_, unwrap := w.Unwrap(ctx, alice, of, immutable)
		_, _, rewrap := w.Rewrap(ctx, alice, of, immutable)
		for _, c := range []struct {
			name string
			err  error
			fits bool
		}{
			{"encrypt", encrypt, p == suite.Encrypt},
			{"decrypt", decrypt, p == suite.Encrypt},
			{"reencrypt", reencrypt, p == suite.Encrypt},
			{"opens", opens, p == suite.Encrypt},
			{"sign", sign, p == suite.Sign},
			{"token", token, p == suite.Sign},
			{"mac", mac, p == suite.MAC},
			{"wrap", seal, p == suite.Wrap},
			{"unwrap", unwrap, p == suite.Wrap},
			{"rewrap", rewrap, p == suite.Wrap},
		} {
			if want := map[bool]fault.Code{true: "", false: fault.WrongPurpose}[c.fits]; fault.CodeOf(c.err) != want {
				t.Errorf("%s with a key that is for %s: %v, want %q", c.name, p, c.err, want)
			}
		}
		if p == suite.Encrypt || p == suite.Wrap {
			wantCode(t, w.Verify(ctx, alice, ref, 1, text, nil), fault.WrongPurpose)
		}
	}
	wrap.Type = envelope.WrapKeyFile
	_, err := w.Unwrap(t.Context(), alice, wrap, immutable)
	wantCode(t, err, fault.WrongPurpose)
}

func TestForeignMessages(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	handleOf := func(k keyring.Key, message []byte) []byte {
		b := bytes.Clone(message)
		binary.BigEndian.PutUint32(b[1:], k.At(0).Handle)
		return b
	}
	other := w.make(w.create("other", suite.Encrypt), 1).message
	foreign := w.make(w.create("k", suite.Encrypt, func(k *keyring.Key) { k.Namespace = "other" }), 1).message
	mine := w.make(k, 1).message
	for _, c := range []struct {
		name    string
		message []byte
		parts   []envelope.Part
		want    fault.Code
	}{
		{"mine", mine, parts, ""},
		{"of another key", other, parts, fault.UnknownVersion},
		{"of another key, with a handle of this one", handleOf(k, other), parts, fault.DecryptFailed},
		{"of the same key of another namespace", foreign, parts, fault.UnknownVersion},
		{"of another namespace, with a handle of this one", handleOf(k, foreign), parts, fault.DecryptFailed},
		{"without its associated data", mine, nil, fault.DecryptFailed},
		{"with other associated data", mine, []envelope.Part{{Label: "row", Value: []byte("8")}}, fault.DecryptFailed},
		{"cut", mine[:len(mine)-1], parts, fault.DecryptFailed},
		{"no message", []byte("rotor"), parts, fault.Invalid},
		{"nothing", nil, parts, fault.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := w.Decrypt(t.Context(), alice, w.ref(k), c.message, c.parts)
			wantCode(t, err, c.want)
			_, err = w.Opens(t.Context(), k.ID, c.message, c.parts)
			wantCode(t, err, c.want)
		})
	}
	must(w.Rotate(t.Context(), alice, w.ref(k), 0))(t)
	_, _, err := w.Reencrypt(t.Context(), k.ID, 2, mine, parts) // staged: nobody could read it
	wantCode(t, err, fault.WrongState)
	_, _, err = w.Reencrypt(t.Context(), k.ID, 9, mine, parts)
	wantCode(t, err, fault.UnknownVersion)
	for _, id := range []keyring.KeyID{"", "none"} {
		_, _, err = w.Reencrypt(t.Context(), id, 1, mine, parts)
		wantCode(t, err, fault.NotFound)
		_, err = w.Opens(t.Context(), id, mine, parts)
		wantCode(t, err, fault.NotFound)
	}
}

func TestForeignWrapsAndSignatures(t *testing.T) {
	w := newWorld(t)
	k, other := w.create("k", suite.Wrap), w.create("other", suite.Wrap)
	another := bytes.Clone(immutable)
	another[3] = 1 // of another file
	for name, c := range map[string]struct {
		edit      func(*envelope.Wrap)
		immutable []byte
		want      fault.Code
	}{
		"mine":                {func(*envelope.Wrap) {}, immutable, ""},
		"of another key":      {func(w *envelope.Wrap) { w.KeyID = string(other.ID) }, immutable, fault.DecryptFailed},
		"of another file":     {func(*envelope.Wrap) {}, another, fault.DecryptFailed},
		"of no file":          {func(*envelope.Wrap) {}, nil, fault.MalformedFile},
		"other blob":          {func(w *envelope.Wrap) { w.Blob = bytes.Repeat([]byte{1}, len(w.Blob)) }, immutable, fault.DecryptFailed},
		"no blob":             {func(w *envelope.Wrap) { w.Blob = nil }, immutable, fault.DecryptFailed},
		"version 0":           {func(w *envelope.Wrap) { w.Version = 0 }, immutable, fault.UnknownVersion},
		"version not made":    {func(w *envelope.Wrap) { w.Version = 9 }, immutable, fault.UnknownVersion},
		"of a key that is no": {func(w *envelope.Wrap) { w.KeyID = "none" }, immutable, fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			m := w.make(k, 1).wrap
			c.edit(&m)
			_, err := w.Unwrap(t.Context(), alice, m, c.immutable)
			wantCode(t, err, c.want)
		})
	}
	_, err := w.Wrap(t.Context(), alice, w.ref(k), secret.Random(16), immutable)
	wantCode(t, err, fault.Invalid)
	_, err = w.Wrap(t.Context(), alice, w.ref(k), dek, nil)
	wantCode(t, err, fault.MalformedFile)

	for _, p := range []suite.Purpose{suite.Sign, suite.MAC} {
		k, other := w.create(string(p), p), w.create(string(p)+"-2", p)
		m := w.make(other, 1)
		wantCode(t, w.process(other, 1, m), "")
		wantCode(t, w.process(k, 1, m), fault.TokenInvalid)
		wantCode(t, w.process(k, 0, m), fault.UnknownVersion)
		wantCode(t, w.process(k, 2, m), fault.UnknownVersion)
		wantCode(t, w.Verify(t.Context(), alice, w.ref(k), 1, text, nil), fault.TokenInvalid)
	}
}

func TestTooLarge(t *testing.T) {
	w := newWorld(t)
	e, s, m := w.create("e", suite.Encrypt), w.create("s", suite.Sign), w.create("m", suite.MAC)
	for size, want := range map[int]fault.Code{kms.MaxMessage: "", kms.MaxMessage + 1: fault.TooLarge} {
		msg := make([]byte, size)
		message, _, err := w.Encrypt(t.Context(), alice, w.ref(e), msg, nil)
		wantCode(t, err, want)
		if err != nil {
			message = make([]byte, size+envelope.MessageOverhead)
		}
		_, _, err = w.Decrypt(t.Context(), alice, w.ref(e), message, nil)
		wantCode(t, err, want)
		sig, v, err := w.Sign(t.Context(), alice, w.ref(s), msg)
		wantCode(t, err, want)
		wantCode(t, w.Verify(t.Context(), alice, w.ref(s), max(1, v.Number), msg, sig), want)
		tag, n, err := w.MAC(t.Context(), alice, w.ref(m), msg)
		wantCode(t, err, want)
		wantCode(t, w.Verify(t.Context(), alice, w.ref(m), max(1, n), msg, tag), want)
	}
}
