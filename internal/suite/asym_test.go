package suite_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

var (
	decrypters = []suite.Algorithm{suite.HPKEXWing, suite.HPKEMLKEM768P256, suite.HPKEX25519, suite.HPKEP256, suite.RSAOAEP256_2k}
	kems       = []suite.Algorithm{suite.MLKEM768, suite.MLKEM1024}
)

// TestEncryptTo: what is encrypted to a public key opens with its private half and the same data, and not otherwise.
func TestEncryptTo(t *testing.T) {
	for _, a := range decrypters {
		material, public, err := suite.Generate(a)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		d := must(suite.NewDecrypter(a, material))
		box, err := suite.EncryptTo(a, public, []byte("plaintext"), []byte("data"))
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		if got, err := d.Decrypt(box, []byte("data")); err != nil || string(got) != "plaintext" {
			t.Errorf("%s: %q, %v", a, got, err)
		}
		refused := func(what string, box, data []byte) {
			t.Helper()
			if _, err := d.Decrypt(box, data); fault.CodeOf(err) != fault.DecryptFailed {
				t.Errorf("%s, %s: %v", a, what, err)
			}
		}
		refused("other data", box, []byte("Data"))
		refused("nothing", nil, nil)
		for i := 0; i < len(box); i += 1 + len(box)/64 {
			bad := bytes.Clone(box)
			bad[i] ^= 1
			refused("changed", bad, []byte("data"))
			refused("cut", box[:i], []byte("data"))
		}
		other := must(suite.NewDecrypter(a, first(suite.Generate(a))))
		if _, err := other.Decrypt(box, []byte("data")); fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("%s: another key opens it: %v", a, err)
		}
		checkNormal(t, a, material, public)
	}
	_, err := suite.EncryptTo(suite.RSAOAEP256_2k, second(suite.Generate(suite.RSAOAEP256_2k)), make([]byte, 191), nil)
	if fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("191 bytes: %v", err)
	}
	for _, a := range []suite.Algorithm{suite.Ed25519, suite.MLKEM768, suite.XAES256GCM, "", "RSA1_5"} {
		_, err := suite.EncryptTo(a, nil, nil, nil)
		forbidden(t, "encrypt to "+string(a), err)
		_, err = suite.NewDecrypter(a, secret.Random(32))
		forbidden(t, "decrypt with "+string(a), err)
	}
}

func first(m secret.Bytes, _ []byte, err error) secret.Bytes {
	return must(m, err)
}

func second(_ secret.Bytes, p []byte, err error) []byte {
	return must(p, err)
}

// checkNormal: material has one encoding, and its public half is found again.
func checkNormal(t *testing.T, a suite.Algorithm, material secret.Bytes, public []byte) {
	t.Helper()
	n, err := suite.Normal(a, material)
	if err != nil || !n.Equal(material) {
		t.Errorf("%s: normal form: %v", a, err)
	}
	if p, err := suite.PublicOf(a, n); err != nil || !bytes.Equal(p, public) {
		t.Errorf("%s: public half: %v", a, err)
	}
	parsed, err := suite.ParsePublic(a, public)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := suite.EncodePublic(a, parsed); err != nil || !bytes.Equal(p, public) {
		t.Errorf("%s: encoded again: %v", a, err)
	}
	for _, bad := range []secret.Bytes{{}, secret.Random(31), secret.Copy(public), secret.Copy(append(bytes.Clone(material.Reveal()), 0))} {
		if _, err := suite.PublicOf(a, bad); err == nil {
			t.Errorf("%s: %d bytes are a key", a, bad.Len())
		}
	}
}

func TestEncapsulate(t *testing.T) {
	for _, a := range kems {
		material, public, err := suite.Generate(a)
		if err != nil {
			t.Fatal(err)
		}
		d := must(suite.NewDecapsulator(a, material))
		shared, ct, err := suite.Encapsulate(a, public)
		if err != nil || shared.Len() != 32 {
			t.Fatalf("%s: %v", a, err)
		}
		if got, err := d.Decapsulate(ct); err != nil || !got.Equal(shared) {
			t.Errorf("%s: %v", a, err)
		}
		bad := bytes.Clone(ct)
		bad[0] ^= 1
		if got, err := d.Decapsulate(bad); err != nil || got.Equal(shared) || got.Len() != 32 {
			t.Errorf("%s: implicit rejection: %v", a, err)
		}
		for _, c := range [][]byte{nil, ct[1:], append(bad, 0)} {
			if _, err := d.Decapsulate(c); fault.CodeOf(err) != fault.DecryptFailed {
				t.Errorf("%s: %d bytes: %v", a, len(c), err)
			}
		}
		checkNormal(t, a, material, public)
	}
	_, err := suite.NewDecapsulator(suite.MLKEM768, first(suite.Generate(suite.MLKEM1024)))
	if err == nil {
		t.Error("a key of 1024 decapsulates 768")
	}
}

// TestNoPKCS1Decryption: no algorithm of the table decrypts what RSAES-PKCS1-v1_5 encrypted, and none is called so.
func TestNoPKCS1Decryption(t *testing.T) {
	for _, s := range suite.All() {
		for _, p := range s.Purposes {
			if (p == suite.Decrypt || p == suite.Encrypt || p == suite.Wrap) && s.RSABits > 0 && s.Standard != "RFC 8017, 7.1 (RSAES-OAEP)" {
				t.Errorf("%s decrypts with RSA by %s", s.ID, s.Standard)
			}
		}
	}
}

func TestKeyWrap(t *testing.T) {
	kek := secret.Random(32)
	for n := range 70 {
		key := secret.Random(n)
		w, err := suite.WrapKWP(kek, key)
		if n == 0 {
			if err == nil {
				t.Error("nothing was wrapped")
			}
			continue
		}
		if err != nil || len(w) != 8+(n+7)/8*8 {
			t.Fatalf("%d bytes became %d: %v", n, len(w), err)
		}
		if got, err := suite.UnwrapKWP(kek, w); err != nil || !got.Equal(key) {
			t.Errorf("%d bytes: %v", n, err)
		}
		for i := range w {
			bad := bytes.Clone(w)
			bad[i] ^= 1
			if _, err := suite.UnwrapKWP(kek, bad); err == nil {
				t.Errorf("%d bytes, byte %d changed, unwraps", n, i)
			}
		}
	}
	if _, err := suite.WrapKWP(secret.Random(20), kek); err == nil {
		t.Error("wrapped under 20 bytes")
	}
}

func FuzzUnwrapKWP(f *testing.F) {
	kek := secret.Copy(make([]byte, 32))
	f.Add(must(suite.WrapKWP(kek, secret.Copy([]byte("7 bytes")))))
	f.Add(must(suite.WrapKWP(kek, secret.Copy(make([]byte, 32)))))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := suite.UnwrapKWP(kek, b)
		if err != nil {
			return
		}
		if again, err := suite.WrapKWP(kek, key); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x unwraps and is another wrap of the same key", b)
		}
	})
}

// FuzzPrivate: foreign private keys are refused or have one normal form, for which the public half is the same.
func FuzzPrivate(f *testing.F) {
	for _, a := range []suite.Algorithm{suite.Ed25519, suite.ES256, suite.RS256_2k, suite.MLDSA44, suite.MLKEM768, suite.HPKEX25519, suite.HPKEXWing} {
		f.Add(first(suite.Generate(a)).Reveal())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range suite.All() {
			n, err := suite.Normal(s.ID, secret.Copy(b))
			if err != nil {
				continue
			}
			p, err := suite.PublicOf(s.ID, secret.Copy(b))
			q, qerr := suite.PublicOf(s.ID, n)
			if err = errors.Join(err, qerr); err != nil || !bytes.Equal(p, q) {
				t.Errorf("%s: %v", s.ID, err)
			}
		}
	})
}

// FuzzDecrypt: nothing that somebody makes up opens.
func FuzzDecrypt(f *testing.F) {
	ds := map[suite.Algorithm]*suite.Decrypter{}
	for _, a := range []suite.Algorithm{suite.HPKEXWing, suite.HPKEP256, suite.RSAOAEP256_2k} {
		m, public, err := suite.Generate(a)
		if err != nil {
			f.Fatal(err)
		}
		ds[a] = must(suite.NewDecrypter(a, m))
		f.Add(must(suite.EncryptTo(a, public, []byte("x"), []byte("other data"))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for a, d := range ds {
			if _, err := d.Decrypt(b, nil); fault.CodeOf(err) != fault.DecryptFailed {
				t.Errorf("%s: %v", a, err)
			}
		}
	})
}

// FuzzOpenKey: no sealed key that somebody makes up opens; of those that are real the material comes back.
func FuzzOpenKey(f *testing.F) {
	privates := map[suite.Transport]secret.Bytes{}
	for _, tr := range []suite.Transport{suite.Transport(suite.HPKEXWing), suite.TransportRSA} {
		m, public, err := suite.GenerateTransport(tr)
		if err != nil {
			f.Fatal(err)
		}
		privates[tr] = m
		f.Add(must(suite.SealKey(tr, public, "other label", secret.Random(32)))[:40])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for tr, m := range privates {
			if _, err := suite.OpenKey(tr, m, "label", b); fault.CodeOf(err) != fault.DecryptFailed {
				t.Errorf("%s: %v", tr, err)
			}
		}
	})
}
