//go:build services && pkcs11

package custody_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/rotorkms/rotor/internal/custody"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/testenv"
)

var text, data = []byte("attack at dawn"), []byte("row 7")

func open(t testing.TB, s *testenv.SoftHSM, cluster string) *custody.Keys {
	t.Helper()
	k, err := custody.Open(hsm.Config{Module: s.Module, Token: s.Label, PINFile: s.PINFile}, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestTable: every algorithm of the table that is said to run in a token does, and everything else is refused by name.
func TestTable(t *testing.T) {
	s := testenv.SoftHSM2(t)
	k := open(t, s, "table")
	type pair struct {
		id     string
		public []byte
	}
	ofSize := map[int]pair{} // RSA keys take seconds: all algorithms of one size take one
	for _, spec := range suite.All() {
		t.Run(string(spec.ID), func(t *testing.T) {
			id := rand.Text()
			var public []byte
			var err error
			if p, ok := ofSize[spec.RSABits]; ok && spec.Token() {
				id, public = p.id, p.public
			} else if public, err = k.Make(t.Context(), spec.ID, id); err == nil && spec.RSABits > 0 {
				ofSize[spec.RSABits] = pair{id, public}
			}
			if !spec.Token() {
				if fault.CodeOf(err) != fault.AlgorithmForbidden {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case spec.Nonce > 0:
				testAEAD(t, k, id)
			case spec.KeyBytes > 0:
				a, err := k.Sign(t.Context(), spec.ID, id, text)
				b, err2 := k.Sign(t.Context(), spec.ID, id, text)
				c, err3 := k.Sign(t.Context(), spec.ID, id, data)
				if err := errors.Join(err, err2, err3); err != nil || !bytes.Equal(a, b) || bytes.Equal(a, c) || len(a) != spec.Hash.Size() {
					t.Errorf("%x %x %x %v", a, b, c, err)
				}
			default:
				for _, msg := range [][]byte{nil, text, make([]byte, 1<<20)} {
					sig, err := k.Sign(t.Context(), spec.ID, id, msg)
					if err != nil {
						t.Fatal(err)
					}
					if err := suite.Verify(spec.ID, public, msg, sig); err != nil {
						t.Errorf("%d bytes: %v", len(msg), err)
					}
				}
			}
		})
	}
}

func testAEAD(t *testing.T, k *custody.Keys, id string) {
	for _, plain := range [][]byte{nil, text, make([]byte, 1<<20)} {
		box, err := k.Seal(t.Context(), id, plain, data)
		if err != nil || len(box) != len(plain)+28 {
			t.Fatalf("%d bytes of %d: %v", len(box), len(plain), err)
		}
		if out, err := k.Open(t.Context(), id, box, data); err != nil || !bytes.Equal(out, plain) {
			t.Errorf("%d bytes: %v", len(plain), err)
		}
		for name, bad := range map[string]func() ([]byte, []byte){
			"flipped": func() ([]byte, []byte) { b := bytes.Clone(box); b[len(b)/2] ^= 1; return b, data },
			"cut":     func() ([]byte, []byte) { return box[:len(box)-1], data },
			"short":   func() ([]byte, []byte) { return box[:20], data },
			"empty":   func() ([]byte, []byte) { return nil, data },
			"context": func() ([]byte, []byte) { return box, text },
		} {
			b, d := bad()
			if out, err := k.Open(t.Context(), id, b, d); out != nil || fault.CodeOf(err) != fault.DecryptFailed {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestSameFormats: a token and the algorithm's code in memory open each other's ciphertexts and make the same tags, under a key that both know.
func TestSameFormats(t *testing.T) {
	s := testenv.SoftHSM2(t)
	k := open(t, s, "formats")
	if _, err := k.Make(t.Context(), suite.AES256GCM, "another"); err != nil { // the process is logged in now
		t.Fatal(err)
	}
	aes, hmac := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	plant(t, s, "rotor formats", "aes", pkcs11.CKK_AES, aes, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT)
	plant(t, s, "rotor formats", "hmac", pkcs11.CKK_GENERIC_SECRET, hmac, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY)
	a, err := suite.NewAEAD(suite.AES256GCM, secret.Copy(aes))
	if err != nil {
		t.Fatal(err)
	}
	box, err := k.Seal(t.Context(), "aes", text, data)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := suite.Open(a, nil, box, data); err != nil || !bytes.Equal(out, text) {
		t.Errorf("of the token: %v", err)
	}
	if out, err := k.Open(t.Context(), "aes", suite.Seal(a, nil, text, data), data); err != nil || !bytes.Equal(out, text) {
		t.Errorf("of memory: %v", err)
	}
	tag, err := k.Sign(t.Context(), suite.HMACSHA256, "hmac", text)
	if err != nil {
		t.Fatal(err)
	}
	if err := suite.VerifyTag(suite.HMACSHA256, secret.Copy(hmac), text, tag); err != nil {
		t.Error(err)
	}
}

// plant puts a known key into the token. The library is the one that the process has loaded and begun.
func plant(t *testing.T, s *testenv.SoftHSM, label, id string, kind int, value []byte, may ...uint) {
	t.Helper()
	lib := pkcs11.New(s.Module)
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := lib.GetTokenInfo(slot); err != nil || info.Label != s.Label {
			continue
		}
		session, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		a := []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		}
		for _, m := range may {
			a = append(a, pkcs11.NewAttribute(m, true))
		}
		if _, err := lib.CreateObject(session, a); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the token is not there")
}

// TestNothingLeaves: the token gives no value of an object that it made, and does nothing with one that it is not for.
func TestNothingLeaves(t *testing.T) {
	s := testenv.SoftHSM2(t)
	k := open(t, s, "leaves")
	for i, a := range []suite.Algorithm{suite.AES256GCM, suite.HMACSHA256, suite.ES256, suite.PS256_2k} {
		if _, err := k.Make(t.Context(), a, string(rune('a'+i))); err != nil {
			t.Fatal(err)
		}
	}
	lib := pkcs11.New(s.Module)
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	session, err := lib.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "rotor leaves")}); err != nil {
		t.Fatal(err)
	}
	found, _, err := lib.FindObjects(session, 100)
	if err = errors.Join(err, lib.FindObjectsFinal(session)); err != nil || len(found) != 4 {
		t.Fatalf("%d objects, %v", len(found), err)
	}
	for _, h := range found {
		for _, attribute := range []uint{pkcs11.CKA_VALUE, pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1} {
			if got, err := lib.GetAttributeValue(session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)}); err == nil {
				t.Errorf("attribute %#x: %d bytes", attribute, len(got[0].Value))
			}
		}
		if err := lib.SetAttributeValue(session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true)}); err == nil {
			t.Error("it can be made extractable")
		}
	}
	if _, err := k.Seal(t.Context(), "b", text, data); err == nil {
		t.Error("a MAC key encrypts")
	}
	if _, err := k.Sign(t.Context(), suite.HMACSHA256, "a", text); err == nil {
		t.Error("an AES key makes tags")
	}
}

// TestObjects: each cluster has its own; what is destroyed is gone, and destroyed again without an error.
func TestObjects(t *testing.T) {
	s := testenv.SoftHSM2(t)
	one, two := open(t, s, "one"), open(t, s, "two")
	if err := one.Alive(t.Context()); err != nil {
		t.Errorf("an empty token: %v", err)
	}
	for _, id := range []string{"a", "b"} {
		if _, err := one.Make(t.Context(), suite.ES256, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := two.Make(t.Context(), suite.AES256GCM, "a"); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if was, err := one.Destroy(t.Context(), "a"); err != nil || was != (i == 0) {
			t.Fatal(was, err)
		}
	}
	if n := s.Objects(); n != 2 {
		t.Errorf("%d objects", n)
	}
	if _, err := one.Sign(t.Context(), suite.ES256, "a", text); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := two.Seal(t.Context(), "a", text, nil); err != nil {
		t.Error(err)
	}
	s.Remove()
	for name, call := range map[string]func() error{
		"make":    func() error { _, err := one.Make(t.Context(), suite.ES256, "c"); return err },
		"sign":    func() error { _, err := one.Sign(t.Context(), suite.ES256, "b", text); return err },
		"seal":    func() error { _, err := two.Seal(t.Context(), "a", text, nil); return err },
		"open":    func() error { _, err := two.Open(t.Context(), "a", make([]byte, 40), nil); return err },
		"alive":   func() error { return one.Alive(t.Context()) },
		"destroy": func() error { _, err := one.Destroy(t.Context(), "b"); return err },
	} {
		if err := call(); fault.CodeOf(err) != fault.Unavailable || strings.Contains(err.Error(), "dawn") {
			t.Errorf("%s while it is away: %v", name, err)
		}
	}
	s.Insert()
	if _, err := one.Sign(t.Context(), suite.ES256, "b", text); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

// BenchmarkToken compares operations in the token with the same in memory.
func BenchmarkToken(b *testing.B) {
	s := testenv.SoftHSM2(b)
	k := open(b, s, "bench")
	for _, a := range []suite.Algorithm{suite.AES256GCM, suite.HMACSHA256, suite.Ed25519, suite.ES256, suite.PS256} {
		id := string(a)
		if _, err := k.Make(b.Context(), a, id); err != nil {
			b.Fatal(err)
		}
		spec, err := suite.Lookup(a)
		if err != nil {
			b.Fatal(err)
		}
		m, _, err := suite.Generate(a)
		if err != nil {
			b.Fatal(err)
		}
		memory, token := func() { _, _ = suite.Tag(a, m, text) }, func() error { _, err := k.Sign(b.Context(), a, id, text); return err }
		switch {
		case spec.Nonce > 0:
			aead, err := suite.NewAEAD(a, m)
			if err != nil {
				b.Fatal(err)
			}
			memory, token = func() { suite.Seal(aead, nil, text, data) }, func() error { _, err := k.Seal(b.Context(), id, text, data); return err }
		case spec.KeyBytes == 0:
			signer, err := suite.NewSigner(a, m)
			if err != nil {
				b.Fatal(err)
			}
			memory = func() { _, _ = signer.Sign(text) }
		}
		b.Run(id+"/token", func(b *testing.B) {
			for b.Loop() {
				if err := token(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
		})
		b.Run(id+"/memory", func(b *testing.B) {
			for b.Loop() {
				memory()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
		})
	}
}

// TestConcurrent: operations on some keys go on while others are made and destroyed, and while the library has to begin again.
func TestConcurrent(t *testing.T) {
	s := testenv.SoftHSM2(t)
	k := open(t, s, "concurrent")
	algorithms := []suite.Algorithm{suite.AES256GCM, suite.HMACSHA256, suite.ES256, suite.Ed25519}
	public := map[suite.Algorithm][]byte{}
	for _, a := range algorithms {
		p, err := k.Make(t.Context(), a, string(a))
		if err != nil {
			t.Fatal(err)
		}
		public[a] = p
	}
	want, err := k.Sign(t.Context(), suite.HMACSHA256, string(suite.HMACSHA256), text)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for range 100 {
				switch a := algorithms[i%len(algorithms)]; a {
				case suite.AES256GCM:
					box, err := k.Seal(t.Context(), string(a), text, data)
					if err != nil {
						t.Errorf("seal: %v", err)
						return
					}
					if out, err := k.Open(t.Context(), string(a), box, data); err != nil || !bytes.Equal(out, text) {
						t.Errorf("open: %v", err)
						return
					}
				default:
					sig, err := k.Sign(t.Context(), a, string(a), text)
					if err == nil && a == suite.HMACSHA256 && !bytes.Equal(sig, want) || err == nil && public[a] != nil && suite.Verify(a, public[a], text, sig) != nil {
						t.Errorf("%s: a wrong signature", a)
						return
					}
					if err != nil {
						t.Errorf("%s: %v", a, err)
						return
					}
				}
			}
		})
	}
	for i := range 3 {
		wg.Go(func() {
			for n := range 10 {
				id, a := fmt.Sprintf("%d %d", i, n), algorithms[n%len(algorithms)]
				if _, err := k.Make(t.Context(), a, id); err != nil {
					t.Errorf("make %s: %v", a, err)
					return
				}
				if was, err := k.Destroy(t.Context(), id); err != nil || !was {
					t.Errorf("destroy %s: %v", a, err)
					return
				}
				if _, err := k.Sign(t.Context(), a, id, text); fault.CodeOf(err) != fault.NotFound && fault.CodeOf(err) != fault.AlgorithmForbidden { // which begins the library again
					t.Errorf("sign with what is gone: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := s.Objects(); n != len(algorithms) {
		t.Errorf("%d objects", n)
	}
}
