//go:build fips

package suite_test

import (
	"bytes"
	"crypto/fips140"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestFIPS runs every algorithm that the table says runs in FIPS mode, in a process that refuses all else. One that needed what the module does not
// approve would fail or panic.
func TestFIPS(t *testing.T) {
	if !fips140.Enforced() {
		t.Fatal("run with GODEBUG=fips140=only (make test-fips)")
	}
	n, refused := 0, []suite.Algorithm(nil)
	pairs := map[int]secret.Bytes{} // of RSA, whose keys take long to make, one of each size
	for _, s := range suite.All() {
		if !s.FIPS {
			continue
		}
		if err := (suite.Policy{FIPSOnly: true}).Allows(s.ID, s.Purposes[0]); err != nil {
			refused = append(refused, s.ID)
			continue
		}
		n++
		m, made := pairs[s.RSABits]
		if !made {
			m = first(suite.Generate(s.ID))
			if s.RSABits > 0 {
				pairs[s.RSABits] = m
			}
		}
		public, err := suite.PublicOf(s.ID, m)
		if err != nil {
			t.Errorf("%s: %v", s.ID, err)
			continue
		}
		switch s.Purposes[0] {
		case suite.Encrypt:
			a := must(suite.NewAEAD(s.ID, m))
			box := suite.Seal(a, nil, []byte("x"), []byte("data"))
			if got, err := suite.Open(a, nil, box, []byte("data")); err != nil || string(got) != "x" || len(box) != s.Nonce+1+16 {
				t.Errorf("%s: %v", s.ID, err)
			}
		case suite.MAC:
			if err := suite.VerifyTag(s.ID, m, []byte("x"), must(suite.Tag(s.ID, m, []byte("x")))); err != nil {
				t.Errorf("%s: %v", s.ID, err)
			}
		case suite.Sign:
			if err := suite.Verify(s.ID, public, []byte("x"), must(must(suite.NewSigner(s.ID, m)).Sign([]byte("x")))); err != nil {
				t.Errorf("%s: %v", s.ID, err)
			}
		case suite.Decrypt:
			box := must(suite.EncryptTo(s.ID, public, []byte("x"), []byte("data")))
			if got, err := must(suite.NewDecrypter(s.ID, m)).Decrypt(box, []byte("data")); err != nil || string(got) != "x" {
				t.Errorf("%s: %v", s.ID, err)
			}
		case suite.Decapsulate:
			shared, ct, err := suite.Encapsulate(s.ID, public)
			if got, derr := must(suite.NewDecapsulator(s.ID, m)).Decapsulate(ct); err != nil || derr != nil || !got.Equal(shared) {
				t.Errorf("%s: %v, %v", s.ID, err, derr)
			}
		}
	}
	want := []suite.Algorithm(nil)
	if fips140.Version() == "v1.0.0" { // it has no HPKE under only
		want = []suite.Algorithm{suite.HPKEMLKEM768P256, suite.HPKEP256}
	}
	slices.Sort(refused)
	slices.Sort(want)
	if n+len(refused) < 20 || !slices.Equal(refused, want) {
		t.Errorf("%d algorithms run with %s, refused are %v", n, fips140.Version(), refused)
	}
	transports := 0
	for _, tr := range suite.Transports() {
		if (suite.Policy{FIPSOnly: true}).AllowsTransport(tr) != nil {
			continue
		}
		transports++
		private, public, err := suite.GenerateTransport(tr)
		if err != nil {
			t.Fatal(err)
		}
		key := first(suite.Generate(suite.AES256GCM))
		if got, err := suite.OpenKey(tr, private, "l", must(suite.SealKey(tr, public, "l", key))); err != nil || !got.Equal(key) {
			t.Errorf("%s: %v", tr, err)
		}
	}
	if transports != 3-len(want) { // RSA, and HPKE with two KEMs
		t.Errorf("%d transports run", transports)
	}
}

// TestFIPSRefuses: what the table says does not run in FIPS mode is refused there by Go's module, where the module has a say.
func TestFIPSRefuses(t *testing.T) {
	for _, a := range []suite.Algorithm{suite.HPKEX25519} {
		if _, _, err := suite.Generate(a); err == nil {
			t.Errorf("%s runs", a)
		}
	}
}

// TestFIPSXAES: the messages of C2SP's vectors open with a cipher that makes its own nonces.
func TestFIPSXAES(t *testing.T) {
	a, err := suite.NewAEAD(suite.XAES256GCM, first(suite.Generate(suite.XAES256GCM)))
	if err != nil || a.NonceSize() != 0 {
		t.Fatalf("%v", err)
	}
	b, err := os.ReadFile("../../spec/vectors/xaes.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct{ Name, Key, Nonce, Plaintext, Data, Sealed string }
	}
	if err := json.Unmarshal(b, &file); err != nil || len(file.Cases) < 2 {
		t.Fatalf("%d cases, %v", len(file.Cases), err)
	}
	for _, c := range file.Cases {
		a := must(suite.NewXAES(secret.Take(bytesOf(t, c.Key))))
		box := append(bytesOf(t, c.Nonce), bytesOf(t, c.Sealed)...)
		if got, err := suite.Open(a, nil, box, bytesOf(t, c.Data)); err != nil || !bytes.Equal(got, bytesOf(t, c.Plaintext)) {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}
