package kms_test

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// generated makes material of an algorithm.
func generated(t *testing.T, a suite.Algorithm) (secret.Bytes, []byte) {
	t.Helper()
	m, p, err := suite.Generate(a)
	if err != nil {
		t.Fatal(err)
	}
	return m, p
}

// bring seals material to a fresh wrapping key for a name.
func (w *world) bring(name string, tr suite.Transport, m secret.Bytes) kms.Imported {
	w.t.Helper()
	wk := must(w.PrepareImport(w.t.Context(), alice, kms.Ref{Namespace: "default", Name: name}, tr))(w.t)
	blob := must(suite.SealKey(wk.Transport, wk.Public, wk.ID, m))(w.t)
	return kms.Imported{WrappingKey: wk.ID, Blob: blob}
}

// TestImport: material of every kind comes in by every way, is used, and its entry and record say where it is from.
func TestImport(t *testing.T) {
	w := newWorld(t)
	for i, a := range []suite.Algorithm{suite.XAES256GCM, suite.AES128GCM, suite.HMACSHA512, suite.Ed25519, suite.ES384, suite.RS256_2k, suite.MLDSA65, suite.HPKEXWing, suite.MLKEM768} {
		spec := must(suite.Lookup(a))(t)
		tr := suite.Transports()[i%len(suite.Transports())]
		m, public := generated(t, a)
		name := strings.ToLower(string(a))
		in := w.bring(name, tr, m)
		in.Originated = w.now().Add(-time.Hour)
		k, err := w.Import(t.Context(), alice, keyring.Key{Namespace: "default", Name: name, Purpose: spec.Purposes[0], Algorithm: a}, in)
		if err != nil {
			t.Fatalf("%s by %s: %v", a, tr, err)
		}
		v := k.At(0)
		if v.Origin != keyring.OriginImported || !v.Originated.Equal(in.Originated) || !bytes.Equal(v.Public, public) || k.Primary != 1 {
			t.Errorf("%s: %+v", a, v)
		}
		if got := must(w.Material(t.Context(), k, 1))(t); !got.Equal(m) {
			t.Errorf("%s: other material", a)
		}
		_, err = w.Import(t.Context(), alice, keyring.Key{Namespace: "default", Name: name + "2", Purpose: spec.Purposes[0], Algorithm: a}, in)
		wantCode(t, err, fault.NotFound) // the wrapping key is used up
	}
	n := 0
	for _, e := range w.entries() {
		if e.Detail["origin"] == keyring.OriginImported && e.Detail["originated"] != "" {
			n++
		}
	}
	if n != 9 {
		t.Errorf("%d entries name the origin", n)
	}
}

// TestImportFromElsewhere: what other code makes of the public key, as cloud customers and tokens do.
func TestImportFromElsewhere(t *testing.T) {
	w := newWorld(t)
	material := bytes.Repeat([]byte{7}, 32)
	spec := keyring.Key{Namespace: "default", Name: "k", Purpose: suite.Encrypt}
	wk := must(w.PrepareImport(t.Context(), alice, w.ref(spec), suite.TransportRSA))(t)
	public := must(x509.ParsePKIXPublicKey(wk.Public))(t).(*rsa.PublicKey)
	kek := bytes.Repeat([]byte{9}, 32)
	front := must(rsa.EncryptOAEP(sha256.New(), rand.Reader, public, kek, nil))(t)
	back := must(suite.WrapKWP(secret.Copy(kek), secret.Copy(material)))(t) // held to Wycheproof's cases in interop
	k := must(w.Import(t.Context(), alice, spec, kms.Imported{WrappingKey: wk.ID, Blob: append(front, back...)}))(t)
	if !must(w.Material(t.Context(), k, 1))(t).Equal(secret.Copy(material)) {
		t.Error("other material")
	}
	spec.Name = "h"
	wk = must(w.PrepareImport(t.Context(), alice, w.ref(spec), ""))(t)
	pk := must(hpke.MLKEM768X25519().NewPublicKey(wk.Public))(t)
	blob := must(hpke.Seal(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("rotor/key-transport/1\x00"+wk.ID), material))(t)
	k = must(w.Import(t.Context(), alice, spec, kms.Imported{WrappingKey: wk.ID, Blob: blob}))(t)
	if !must(w.Material(t.Context(), k, 1))(t).Equal(secret.Copy(material)) {
		t.Error("other material by HPKE")
	}
}

// TestImportRefuses: what is not for this caller, name, time or algorithm, or was changed, comes in nowhere and leaves nothing.
func TestImportRefuses(t *testing.T) {
	w := newWorld(t)
	m, _ := generated(t, suite.XAES256GCM)
	spec := keyring.Key{Namespace: "default", Name: "k", Purpose: suite.Encrypt}
	before := w.raw()
	refused := func(name string, spec keyring.Key, in kms.Imported, code fault.Code) {
		t.Helper()
		_, err := w.Import(t.Context(), alice, spec, in)
		if fault.CodeOf(err) != code {
			t.Errorf("%s: %v", name, err)
		}
	}
	in := w.bring("k", "", m)
	changed := in
	changed.Blob = bytes.Clone(in.Blob)
	changed.Blob[len(in.Blob)-1] ^= 1
	refused("changed", spec, changed, fault.DecryptFailed)
	refused("cut", spec, kms.Imported{WrappingKey: in.WrappingKey, Blob: in.Blob[:10]}, fault.DecryptFailed)
	refused("empty", spec, kms.Imported{WrappingKey: in.WrappingKey}, fault.DecryptFailed)
	refused("huge", spec, kms.Imported{WrappingKey: in.WrappingKey, Blob: make([]byte, 1<<17)}, fault.TooLarge)
	other := spec
	other.Name = "other"
	refused("another name", other, in, fault.NotFound)
	refused("no wrapping key", spec, kms.Imported{WrappingKey: "none", Blob: in.Blob}, fault.NotFound)
	future := in
	future.Originated = w.now().Add(time.Minute)
	refused("from the future", spec, future, fault.Invalid)
	hmac := spec
	hmac.Purpose, hmac.Algorithm = suite.MAC, suite.HMACSHA512
	refused("another length", hmac, in, fault.Invalid)
	pair := spec
	pair.Purpose, pair.Algorithm = suite.Sign, suite.ES256
	refused("another kind", pair, in, fault.Invalid)
	if _, err := w.Import(t.Context(), bob, spec, in); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("another caller: %v", err)
	}
	if !maps.Equal(before, w.raw()) {
		t.Error("a refused import left something")
	}
	w.pass(kms.ImportTTL)
	refused("late", spec, in, fault.NotFound)
	if _, err := w.PrepareImport(t.Context(), alice, w.ref(spec), "ROT13"); fault.CodeOf(err) != fault.AlgorithmForbidden {
		t.Errorf("%v", err)
	}
}

// TestImportVersion: a key of one's own rotates to material of one's own, by the same gates, and its cryptoperiod has begun where it was made.
func TestImportVersion(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt, func(k *keyring.Key) { k.Periods.Originator = 2 * time.Hour })
	m, _ := generated(t, suite.XAES256GCM)
	in := w.bring("k", "", m)
	in.Originated = w.now().Add(-time.Hour)
	k = must(w.ImportVersion(t.Context(), alice, w.ref(k), in))(t)
	if k.Target != 2 || k.At(1).Origin != keyring.OriginImported {
		t.Fatalf("%+v", k.Versions)
	}
	w.distribute(k)
	k = must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
	w.pass(59 * time.Minute)
	if err := w.protect(k); err != nil {
		t.Errorf("within the period: %v", err)
	}
	w.pass(2 * time.Minute)
	wantCode(t, w.protect(k), fault.PeriodOver)
}

// TestExport: only exportable keys leave, sealed to the recipient, and the entry stands before the answer.
func TestExport(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt, func(k *keyring.Key) { k.Exportable = true })
	stays := w.create("stays", suite.Encrypt)
	for _, tr := range suite.Transports() {
		private, public, err := suite.GenerateTransport(tr)
		if err != nil {
			t.Fatal(err)
		}
		blob := must(w.Export(t.Context(), alice, w.ref(k), 1, tr, public))(t)
		got, err := suite.OpenKey(tr, private, "", blob)
		if err != nil || !got.Equal(must(w.Material(t.Context(), k, 1))(t)) {
			t.Errorf("%s: %v", tr, err)
		}
		_, err = w.Export(t.Context(), alice, w.ref(stays), 1, tr, public)
		wantCode(t, err, fault.NotExportable)
		_, err = w.Export(t.Context(), alice, w.ref(k), 1, tr, public[1:])
		if err == nil {
			t.Errorf("%s: exported to no key", tr)
		}
	}
	n := 0
	for _, e := range w.entries() {
		if e.Action == "key.export" && e.Class == 2 && e.Outcome == "done" && len(e.Detail["recipient_sha256"]) == 64 {
			n++
		}
	}
	if n != len(suite.Transports()) {
		t.Errorf("%d releases in the log", n)
	}
	_, err := w.Export(t.Context(), alice, w.ref(k), 2, suite.TransportRSA, nil)
	wantCode(t, err, fault.UnknownVersion)
}

// TestPairs: what is encrypted and encapsulated for a key opens with the version that it was made for, also across a rotation and when made elsewhere.
func TestPairs(t *testing.T) {
	w := newWorld(t)
	for _, a := range []suite.Algorithm{suite.HPKEXWing, suite.HPKEP256, suite.RSAOAEP256_2k} {
		k := w.create(strings.ToLower(string(a)), suite.Decrypt, with(a))
		m, _, err := w.Encrypt(t.Context(), alice, w.ref(k), text, parts)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		foreign := must(suite.EncryptTo(a, k.At(0).Public, text, nil))(t)
		w.rotate(k)
		if got, v, err := w.Decrypt(t.Context(), alice, w.ref(k), m, parts); err != nil || v != 1 || !slices.Equal(got, text) {
			t.Errorf("%s: version %d, %q, %v", a, v, got, err)
		}
		_, _, err = w.Decrypt(t.Context(), alice, w.ref(k), m, nil)
		wantCode(t, err, fault.DecryptFailed)
		if got, err := w.DecryptForeign(t.Context(), alice, w.ref(k), 1, foreign); err != nil || !slices.Equal(got, text) {
			t.Errorf("%s, made elsewhere: %q, %v", a, got, err)
		}
		_, err = w.DecryptForeign(t.Context(), alice, w.ref(k), 2, foreign)
		wantCode(t, err, fault.DecryptFailed)
	}
	kem := w.create("kem", suite.Decapsulate)
	shared, ct, v, err := w.Encapsulate(t.Context(), alice, w.ref(kem))
	if err != nil || v != 1 {
		t.Fatal(err)
	}
	w.rotate(kem)
	if got, err := w.Decapsulate(t.Context(), alice, w.ref(kem), 1, ct); err != nil || !got.Equal(shared) {
		t.Errorf("%v", err)
	}
	if got, err := w.Decapsulate(t.Context(), alice, w.ref(kem), 2, ct); err != nil || got.Equal(shared) {
		t.Errorf("another version: %v", err)
	}
	_, _, err = w.Encrypt(t.Context(), alice, w.ref(kem), text, nil)
	wantCode(t, err, fault.WrongPurpose)
}

// TestNoPKCS1Decryption: what RSAES-PKCS1-v1_5 made opens nowhere.
func TestNoPKCS1Decryption(t *testing.T) {
	w := newWorld(t)
	k := w.create("rsa", suite.Decrypt, with(suite.RSAOAEP256_2k))
	public := must(x509.ParsePKIXPublicKey(k.At(0).Public))(t).(*rsa.PublicKey)
	ct := must(rsa.EncryptPKCS1v15(rand.Reader, public, text))(t) //nolint:staticcheck // to show that it is refused
	_, err := w.DecryptForeign(t.Context(), alice, w.ref(k), 1, ct)
	wantCode(t, err, fault.DecryptFailed)
}

// TestPolicyOfSuites: a server of a profile makes what the profile allows and nothing else, and its defaults are of it.
func TestPolicyOfSuites(t *testing.T) {
	w := newWorld(t)
	serve := func(p suite.Policy) *kms.Service {
		s := must(kms.New(t.Context(), kms.Config{Guard: w.guard, Now: w.now, Suites: p}))(t)
		w.run(s.Run)
		return s
	}
	fips := serve(suite.Policy{FIPSOnly: true})
	for i, c := range []struct {
		s         *kms.Service
		purpose   suite.Purpose
		algorithm suite.Algorithm
		want      suite.Algorithm // empty: refused
	}{
		{fips, suite.Decrypt, "", suite.HPKEMLKEM768P256},
		{fips, suite.Decrypt, suite.HPKEXWing, ""},
		{fips, suite.Encrypt, suite.XChaCha20Poly1305, ""},
		{fips, suite.Encrypt, "", suite.XAES256GCM},
		{fips, suite.Sign, suite.MLDSA65, ""},
		{serve(suite.Policy{CNSA2: true}), suite.Sign, "", suite.MLDSA87},
		{serve(suite.Policy{CNSA2: true}), suite.Encrypt, suite.AES128GCM, ""},
		{serve(suite.Policy{}.WithoutHardware()), suite.Encrypt, suite.AES256GCM, ""},
		{serve(suite.Policy{}.WithoutHardware()), suite.Encrypt, suite.XChaCha20Poly1305, suite.XChaCha20Poly1305},
		{serve(suite.Policy{SoftwareAES: true}.WithoutHardware()), suite.Encrypt, suite.AES256GCM, suite.AES256GCM},
	} {
		k, err := c.s.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "k" + string(rune('a'+i)), Purpose: c.purpose, Algorithm: c.algorithm})
		if c.want == "" {
			wantCode(t, err, fault.AlgorithmForbidden)
		} else if err != nil || k.Algorithm != c.want {
			t.Errorf("%d: %s, %v", i, k.Algorithm, err)
		}
	}
	if tr := (suite.Policy{FIPSOnly: true}).Transport(); !tr.FIPS() {
		t.Error(tr)
	}
}

// TestOneImporterTakesNotAll: a caller can have so many wrapping keys at a time, and others can import beside it.
func TestOneImporterTakesNotAll(t *testing.T) {
	w := newWorld(t)
	ref := kms.Ref{Namespace: "default", Name: "k"}
	for range 20 {
		must(w.PrepareImport(t.Context(), alice, ref, ""))(t)
	}
	_, err := w.PrepareImport(t.Context(), alice, ref, "")
	wantCode(t, err, fault.TooLarge)
	must(w.PrepareImport(t.Context(), bob, ref, ""))(t)
	w.pass(kms.ImportTTL)
	must(w.PrepareImport(t.Context(), alice, ref, ""))(t)
}
