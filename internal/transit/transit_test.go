package transit_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// pool are algorithms with a version of each, made once for all tests. The larger RSA keys are as the shorter one.
var pool = map[suite.Algorithm]secret.Bytes{}

func bundle(t testing.TB, a suite.Algorithm) secret.Bytes {
	t.Helper()
	if b, ok := pool[a]; ok {
		return b
	}
	b, _, err := suite.GenerateTransit(a, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool[a] = b
	return b
}

func key(t testing.TB, a suite.Algorithm, s transit.Settings) *transit.Key {
	t.Helper()
	k, err := transit.New(a, 7, bundle(t, a), nil, s)
	if err != nil {
		t.Fatalf("%s: %v", a, err)
	}
	return k
}

var (
	aeads   = []suite.Algorithm{suite.AES128GCM, suite.AES256GCM, suite.ChaCha20Poly1305, suite.XChaCha20Poly1305}
	signers = []suite.Algorithm{suite.ES256, suite.ES384, suite.ES512, suite.Ed25519, suite.RSA2048, suite.MLDSA44, suite.MLDSA65, suite.MLDSA87}
	text    = []byte("attack at dawn")
	ctx     = []byte("tenant 7")
	ad      = []byte("row 3")
)

func wantText(t *testing.T, what string, err error, code fault.Code, words transit.Refusal) {
	t.Helper()
	if fault.CodeOf(err) != code || words != "" && transit.Text(err) != string(words) {
		t.Errorf("%s: %v", what, err)
	}
}

// TestCiphers: each encrypts and decrypts under every setting, and opens nothing that is changed or of another context, associated data or nonce.
func TestCiphers(t *testing.T) {
	for _, a := range aeads {
		spec, _ := suite.Lookup(a)
		wrong := transit.WrongCipher
		if strings.Contains(string(a), "ChaCha") {
			wrong = transit.WrongChaCha
		}
		for _, s := range []transit.Settings{
			{}, {Derived: true}, {Derived: true, Counter: true}, {Derived: true, Convergent: 3},
			{Derived: true, Convergent: 2}, {Derived: true, Convergent: 1}, {Derived: true, Counter: true, Convergent: 1},
		} {
			k := key(t, a, s)
			p := transit.Params{Context: ctx, Associated: ad}
			if s.Convergent == 1 {
				p.Nonce = make([]byte, spec.Nonce)
			}
			one, err := k.Encrypt(text, p)
			if err != nil || !strings.HasPrefix(one, "vault:v7:") {
				t.Fatalf("%s, %+v: %s, %v", a, s, one, err)
			}
			two, _ := k.Encrypt(text, p)
			if (one == two) != (s.Convergent > 0) {
				t.Errorf("%s, %+v: twice the same is %t", a, s, one == two)
			}
			n, body, err := transit.Parse(one)
			if nonce := spec.Nonce; err != nil || n != 7 || s.Convergent != 1 && len(body) != nonce+len(text)+16 || s.Convergent == 1 && len(body) != len(text)+16 {
				t.Errorf("%s, %+v: version %d, %d bytes, %v", a, s, n, len(body), err)
			}
			if got, err := k.Decrypt(body, p); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%s, %+v: %q, %v", a, s, got, err)
			}
			for i := range body {
				bad := bytes.Clone(body)
				bad[i] ^= 1
				_, err := k.Decrypt(bad, p)
				wantText(t, "changed", err, fault.DecryptFailed, wrong)
				_, err = k.Decrypt(body[:i], p)
				wantText(t, "cut", err, fault.DecryptFailed, "")
				if words := transit.Refusal(transit.Text(err)); words != wrong && (words != transit.TooShort || i >= spec.Nonce) {
					t.Errorf("%s cut to %d: %s", a, i, words)
				}
			}
			other := p
			other.Associated = nil
			_, err = k.Decrypt(body, other)
			wantText(t, "no associated data", err, fault.DecryptFailed, wrong)
			other = p
			other.Context = []byte("tenant 8")
			if _, err = k.Decrypt(body, other); (err != nil) != s.Derived {
				t.Errorf("%s, %+v: other context: %v", a, s, err)
			}
			other.Context = nil
			if _, err = k.Decrypt(body, other); s.Derived {
				wantText(t, "no context", err, fault.Invalid, transit.NoContext)
			}
			other = p
			other.Nonce = make([]byte, 12)
			if _, err = k.Encrypt(text, other); s.Convergent != 1 {
				wantText(t, "a nonce", err, fault.Invalid, transit.WithNonce)
			}
		}
	}
}

// TestRSA: RSAES-OAEP opens what it made, and nothing that is changed, cut, too long or has associated data.
func TestRSA(t *testing.T) {
	k := key(t, suite.RSA2048, transit.Settings{})
	one, err := k.Encrypt(text, transit.Params{})
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := transit.Parse(one)
	if got, err := k.Decrypt(body, transit.Params{Nonce: nil}); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%q, %v", got, err)
	}
	for i := 0; i < len(body); i += 9 {
		bad := bytes.Clone(body)
		bad[i] ^= 1
		_, err := k.Decrypt(bad, transit.Params{})
		wantText(t, "changed", err, fault.DecryptFailed, transit.WrongRSA)
		_, err = k.Decrypt(body[:i], transit.Params{})
		wantText(t, "cut", err, fault.DecryptFailed, transit.WrongRSA)
	}
	_, err = k.Encrypt(make([]byte, 191), transit.Params{})
	wantText(t, "191 bytes", err, fault.TooLarge, "")
	_, err = k.Encrypt(text, transit.Params{Associated: ad})
	wantText(t, "associated data", err, fault.Invalid, "")
}

// options are every way to sign that an algorithm has.
func options(a suite.Algorithm) (all []transit.SignOptions) {
	for _, m := range []transit.Marshaling{transit.ASN1, transit.JWS} {
		if !transit.Hashes(a) {
			all = append(all, transit.SignOptions{Hash: transit.SHA256, Marshaling: m})
			continue
		}
		for _, name := range []string{"sha1", "sha2-224", "sha2-256", "sha2-384", "sha2-512", "sha3-224", "sha3-256", "sha3-384", "sha3-512"} {
			h, _ := transit.ParseHash(name)
			for _, pad := range []string{"", "pss", "pkcs1v15"} {
				all = append(all, transit.SignOptions{Hash: h, Padding: pad, Marshaling: m})
			}
		}
	}
	if a == suite.RSA2048 {
		for _, salt := range []int{transit.SaltHash, 1, 32, 222} {
			all = append(all, transit.SignOptions{Hash: transit.SHA256, Salt: salt})
		}
	}
	return all
}

// TestSignatures: what each makes in every way verifies, also given the hash alone, and not for another message or when changed.
func TestSignatures(t *testing.T) {
	for _, a := range signers {
		k := key(t, a, transit.Settings{})
		for _, o := range options(a) {
			sig, public, err := k.Sign(text, o)
			if err != nil || public != nil {
				t.Fatalf("%s, %+v: %v", a, o, err)
			}
			n, body, err := transit.ParseSignature(sig, o.Marshaling)
			if err != nil || n != 7 {
				t.Fatalf("%s: %v", sig, err)
			}
			verify := func(what string, input, body []byte, o transit.SignOptions, want bool) {
				t.Helper()
				if ok, err := k.Verify(input, body, o); err != nil || ok != want {
					t.Errorf("%s, %s, %+v: %t, %v", what, a, o, ok, err)
				}
			}
			verify("as it is", text, body, o, true)
			verify("another message", ctx, body, o, false)
			if transit.Hashes(a) {
				pre := o
				pre.Prehashed = true
				verify("hashed before", o.Hash.Sum(text), body, pre, true)
			}
			bad := bytes.Clone(body)
			bad[len(bad)-1] ^= 1
			verify("changed", text, bad, o, false)
		}
	}
}

// TestEd25519: derived keys, and the variants of RFC 8032.
func TestEd25519(t *testing.T) {
	k := key(t, suite.Ed25519, transit.Settings{Derived: true})
	o := transit.SignOptions{Context: ctx}
	sig, public, err := k.Sign(text, o)
	if err != nil || len(public) != 32 {
		t.Fatalf("%x, %v", public, err)
	}
	_, body, _ := transit.ParseSignature(sig, transit.ASN1)
	if ok, err := k.Verify(text, body, o); !ok || err != nil {
		t.Error(err)
	}
	if ok, _ := k.Verify(text, body, transit.SignOptions{Context: []byte("tenant 8")}); ok {
		t.Error("verifies under another context")
	}
	_, _, err = k.Sign(text, transit.SignOptions{})
	wantText(t, "no context", err, fault.Invalid, transit.NoContext)
	plain := key(t, suite.Ed25519, transit.Settings{})
	h, _ := transit.ParseHash("sha2-512")
	ways := []transit.SignOptions{{}, {Signature: ctx}, {Prehashed: true, Hash: h}, {Prehashed: true, Hash: h, Signature: ctx}}
	for i, o := range ways {
		in := text
		if o.Prehashed {
			in = h.Sum(text)
		}
		sig, _, err := plain.Sign(in, o)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := transit.ParseSignature(sig, transit.ASN1)
		for j, other := range ways {
			in := text
			if other.Prehashed {
				in = h.Sum(text)
			}
			if ok, err := plain.Verify(in, body, other); ok != (i == j) || err != nil {
				t.Errorf("%+v as %+v: %t, %v", o, other, ok, err)
			}
		}
	}
}

// TestRefusedOptions: what fits no key is refused, in signing as in verifying.
func TestRefusedOptions(t *testing.T) {
	h, _ := transit.ParseHash("sha2-512")
	for _, c := range []struct {
		a suite.Algorithm
		o transit.SignOptions
	}{
		{suite.AES256GCM, transit.SignOptions{Hash: h}}, {suite.HMAC, transit.SignOptions{Hash: h}},
		{suite.RSA2048, transit.SignOptions{}}, {suite.RSA2048, transit.SignOptions{Prehashed: true}}, {suite.ES256, transit.SignOptions{Padding: "pkcs1v15"}},
		{suite.RSA2048, transit.SignOptions{Hash: h, Padding: "pkcs1"}}, {suite.RSA2048, transit.SignOptions{Hash: h, Prehashed: true}},
		{suite.RSA2048, transit.SignOptions{Hash: h, Salt: -2}}, {suite.RSA2048, transit.SignOptions{Hash: h, Salt: 191}},
		{suite.Ed25519, transit.SignOptions{Prehashed: true, Hash: transit.SHA256}}, {suite.Ed25519, transit.SignOptions{Signature: make([]byte, 256)}},
		{suite.Ed25519, transit.SignOptions{Prehashed: true, Hash: h}}, {suite.MLDSA44, transit.SignOptions{Prehashed: true}}, {suite.ES256, transit.SignOptions{Hash: h, Signature: ctx}},
	} {
		k := key(t, c.a, transit.Settings{})
		_, _, err := k.Sign(text, c.o)
		wantText(t, string(c.a), err, fault.Invalid, "")
		_, err = k.Verify(text, text, c.o)
		wantText(t, string(c.a), err, fault.Invalid, "")
	}
	k := key(t, suite.RSA2048, transit.Settings{}) // a hash that is not named takes PKCS #1 v1.5 of what is hashed
	o := transit.SignOptions{Prehashed: true, Padding: "pkcs1v15"}
	sig, _, err := k.Sign(text, o)
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := transit.ParseSignature(sig, transit.ASN1)
	if ok, err := k.Verify(text, body, o); !ok || err != nil {
		t.Error(err)
	}
}

// TestHMAC: every key has HMACs of every hash; keys of type hmac have them of the key itself.
func TestHMAC(t *testing.T) {
	for _, a := range append([]suite.Algorithm{suite.HMAC, suite.AES256GCM}, signers...) {
		k := key(t, a, transit.Settings{})
		for _, name := range []string{"sha1", "sha2-256", "sha3-512"} {
			h, _ := transit.ParseHash(name)
			one, err := k.HMAC(h, text)
			n, sum, perr := transit.ParseHMAC(one)
			if err != nil || perr != nil || n != 7 {
				t.Fatalf("%s: %v, %v", one, err, perr)
			}
			if ok, err := k.VerifyHMAC(h, text, sum); !ok || err != nil {
				t.Error(err)
			}
			for _, bad := range [][]byte{nil, sum[1:], append(bytes.Clone(sum), 0), make([]byte, len(sum))} {
				if ok, _ := k.VerifyHMAC(h, text, bad); ok {
					t.Errorf("%x verifies", bad)
				}
			}
		}
		_, err := k.HMAC(0, text)
		wantText(t, "no hash", err, fault.Invalid, "")
	}
	raw := secret.Copy(bytes.Repeat([]byte{0xaa}, 131)) // RFC 4231, test case 6
	b, _, err := transit.Import(suite.HMAC, raw)
	if err != nil {
		t.Fatal(err)
	}
	k, err := transit.New(suite.HMAC, 1, b, nil, transit.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.HMAC(transit.SHA256, []byte("Test Using Larger Than Block-Size Key - Hash Key First"))
	if err != nil || got != "vault:v1:YOQxWR7gtn8Niiaqy/W3f44LxiE3KMUUBUYEDw7jf1Q=" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestSettings: constructions that an algorithm has not are refused before anything is made with them.
func TestSettings(t *testing.T) {
	for _, c := range []struct {
		a suite.Algorithm
		s transit.Settings
	}{
		{suite.RSA2048, transit.Settings{Derived: true}}, {suite.ES256, transit.Settings{Derived: true}}, {suite.HMAC, transit.Settings{Derived: true}},
		{suite.AES256GCM, transit.Settings{Convergent: 3}}, {suite.AES256GCM, transit.Settings{Derived: true, Convergent: 4}}, {suite.AES256GCM, transit.Settings{Derived: true, Convergent: -1}},
		{suite.AES256GCM, transit.Settings{Derived: true, Counter: true, Convergent: 3}}, {suite.Ed25519, transit.Settings{Derived: true, Counter: true}}, {suite.Ed25519, transit.Settings{Derived: true, Convergent: 3}},
	} {
		_, err := transit.New(c.a, 1, bundle(t, c.a), nil, c.s)
		wantText(t, string(c.a), err, fault.Invalid, "")
	}
	_, err := transit.New(suite.XAES256GCM, 1, bundle(t, suite.AES256GCM), nil, transit.Settings{})
	wantText(t, "no type", err, fault.AlgorithmForbidden, "")
	_, err = transit.New(suite.AES256GCM, 1, secret.Random(32), nil, transit.Settings{})
	wantText(t, "no bundle", err, fault.Invalid, "")
	_, err = transit.New(suite.AES128GCM, 1, bundle(t, suite.AES256GCM), nil, transit.Settings{})
	wantText(t, "another length", err, fault.Invalid, "")
}

// TestTypes: names, both spellings of ML-DSA, and what each type can do.
func TestTypes(t *testing.T) {
	for _, c := range []struct {
		name, set string
		a         suite.Algorithm
		shown     string
		shownSet  string
	}{
		{"aes256-gcm96", "", suite.AES256GCM, "aes256-gcm96", ""}, {"AES128-GCM96", "", suite.AES128GCM, "aes128-gcm96", ""}, {"rsa-4096", "", suite.RSA4096, "rsa-4096", ""},
		{"ml-dsa", "65", suite.MLDSA65, "ml-dsa", "65"}, {"mldsa-87", "", suite.MLDSA87, "mldsa-87", ""}, {"hmac", "", suite.HMAC, "hmac", ""},
	} {
		a, spelling, err := transit.ParseType(c.name, c.set)
		name, set := transit.Describe(a, spelling)
		if err != nil || a != c.a || name != c.shown || set != c.shownSet {
			t.Errorf("%s: %s, %s, %s, %v", c.name, a, name, set, err)
		}
	}
	for _, c := range [][2]string{{"", ""}, {"aes", ""}, {"ml-dsa", ""}, {"ml-dsa", "66"}, {"XAES-256-GCM", ""}, {"managed_key", ""}} {
		if _, _, err := transit.ParseType(c[0], c[1]); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v: %v", c, err)
		}
	}
	if n := len(transit.Types()); n != 16 {
		t.Errorf("%d names", n)
	}
}

// TestTexts: what is not a text is refused in the words that clients match.
func TestTexts(t *testing.T) {
	for in, want := range map[string]transit.Refusal{
		"": "invalid ciphertext: no prefix", "vault:1:aaaa": "invalid ciphertext: no prefix", "vault:v1": "invalid ciphertext: wrong number of fields",
		"vault:vx:aaaa": "invalid ciphertext: version number could not be decoded", "vault:v:aaaa": "invalid ciphertext: version number could not be decoded",
		"vault:v1:a": "invalid ciphertext: could not decode base64", "vault:v-1:aaaa": transit.TooOld, "vault:v99999999999:aaaa": transit.TooNew,
		"vault:v99999999999999999999:aaaa": "invalid ciphertext: version number could not be decoded",
	} {
		_, _, err := transit.Parse(in)
		if transit.Text(err) != string(want) {
			t.Errorf("%s: %v", in, err)
		}
	}
	if n, body, err := transit.Parse("vault:v0:YQ=="); n != 1 || string(body) != "a" || err != nil {
		t.Errorf("%d, %s, %v", n, body, err)
	}
	if n, _, err := transit.ParseSignature("vault:v0:YQ", transit.JWS); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "vault:v1:YQ==", "vault:v0:YQ==", "vault:v+1:", "vault:v2147483648:YQ=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, body, err := transit.Parse(s)
		if err != nil {
			if transit.Text(err) == "" {
				t.Error(err)
			}
			return
		}
		if again, b, err := transit.Parse(transit.Format(n, body)); err != nil || again != n || !bytes.Equal(b, body) {
			t.Errorf("%d, %v", again, err)
		}
	})
}

// TestImport: what an importer wraps comes in, and nothing else does.
func TestImport(t *testing.T) {
	wrapping, public, err := suite.Generate(suite.RSA4096)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []suite.Algorithm{suite.AES128GCM, suite.AES256GCM, suite.HMAC, suite.ES384, suite.Ed25519, suite.RSA2048, suite.MLDSA65} {
		k := key(t, a, transit.Settings{})
		portable, err := k.Portable()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"", "sha1", "SHA224", "SHA256", "SHA384", "SHA512"} {
			h, err := transit.ParseWrapHash(name)
			if err != nil {
				t.Fatal(err)
			}
			blob, err := transit.Wrap(public, portable, h)
			if err != nil {
				t.Fatal(err)
			}
			got, err := transit.Unwrap(wrapping, blob, h)
			if err != nil || !got.Equal(portable) {
				t.Errorf("%s, %s: %v", a, name, err)
			}
			if name == "SHA512" {
				_, err = transit.Unwrap(wrapping, blob, transit.SHA256)
				wantText(t, "another hash", err, fault.DecryptFailed, transit.WrongRSA)
				bad := blob[:len(blob)-8] + "AAAAAAA="
				_, err = transit.Unwrap(wrapping, bad, h)
				wantText(t, "changed", err, fault.DecryptFailed, transit.WrongRSA)
			}
		}
		b, _, err := transit.Import(a, portable)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		again, err := transit.New(a, 1, b, nil, transit.Settings{})
		if err != nil {
			t.Fatal(err)
		}
		if p, _ := again.Portable(); !p.Equal(portable) {
			t.Errorf("%s: another key", a)
		}
		for _, other := range []suite.Algorithm{suite.ES256, suite.RSA3072, suite.XChaCha20Poly1305} {
			if _, _, err := transit.Import(other, portable); other != suite.XChaCha20Poly1305 || portable.Len() != 32 {
				wantText(t, string(a)+" as "+string(other), err, fault.Invalid, "")
			}
		}
	}
	for _, bad := range []string{"", "x", "AAAA", base64.StdEncoding.EncodeToString(make([]byte, 512)), strings.Repeat("A", 65<<10)} {
		if _, err := transit.Unwrap(wrapping, bad, transit.SHA256); err == nil {
			t.Errorf("%d bytes unwrap", len(bad))
		}
	}
}

// TestPublicOnly: a version of which the public half alone is known verifies and encrypts, and its key can follow.
func TestPublicOnly(t *testing.T) {
	for _, a := range []suite.Algorithm{suite.RSA2048, suite.ES256, suite.Ed25519} {
		whole := key(t, a, transit.Settings{})
		der, err := suite.PublicOfBundle(a, bundle(t, a))
		if err != nil {
			t.Fatal(err)
		}
		shown, err := whole.PublicText()
		if err != nil {
			t.Fatal(err)
		}
		if a != suite.Ed25519 {
			if got, err := transit.ImportPublic(a, []byte(shown)); err != nil || !bytes.Equal(got, der) {
				t.Errorf("%s: %v", a, err)
			}
		}
		half, err := transit.ImportPublicOnly()
		if err != nil {
			t.Fatal(err)
		}
		k, err := transit.New(a, 7, half, der, transit.Settings{})
		if err != nil || k.HasPrivate() {
			t.Fatal(err)
		}
		o := transit.SignOptions{Hash: transit.SHA256}
		sig, _, err := whole.Sign(text, o)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := transit.ParseSignature(sig, transit.ASN1)
		if ok, err := k.Verify(text, body, o); !ok || err != nil {
			t.Errorf("%s: %v", a, err)
		}
		_, _, err = k.Sign(text, o)
		wantText(t, "sign", err, fault.Invalid, transit.NoPrivate)
		portable, _ := whole.Portable()
		next, err := transit.AddPrivate(a, half, der, portable)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := transit.AddPrivate(a, next, der, portable); fault.CodeOf(err) != fault.Invalid {
			t.Error(err)
		}
		other, _, _ := suite.Generate(a)
		_, err = transit.AddPrivate(a, half, der, other)
		wantText(t, "another key", err, fault.Invalid, "cannot import key, key pair does not match")
		if k, err = transit.New(a, 7, next, der, transit.Settings{}); err != nil || !k.HasPrivate() {
			t.Error(err)
		}
	}
}

// TestAgree: both ends find the same secret.
func TestAgree(t *testing.T) {
	for _, a := range []suite.Algorithm{suite.ES256, suite.ES384, suite.ES512} {
		b, _, err := suite.GenerateTransit(a, 0)
		if err != nil {
			t.Fatal(err)
		}
		other, err := transit.New(a, 1, b, nil, transit.Settings{})
		if err != nil {
			t.Fatal(err)
		}
		k := key(t, a, transit.Settings{})
		pa, _ := k.PublicText()
		pb, _ := other.PublicText()
		x, err := k.Agree([]byte(pb), 32)
		y, err2 := other.Agree([]byte(pa), 32)
		if err != nil || err2 != nil || !x.Equal(y) || x.Len() != 32 {
			t.Errorf("%s: %v, %v", a, err, err2)
		}
	}
	p, _ := key(t, suite.ES384, transit.Settings{}).PublicText()
	if _, err := key(t, suite.ES256, transit.Settings{}).Agree([]byte(p), 32); err == nil {
		t.Error("another curve")
	}
	if _, err := key(t, suite.RSA2048, transit.Settings{}).Agree([]byte(p), 32); err == nil {
		t.Error("RSA agrees")
	}
}

// TestBackup: what is written is read again, with versions that have no material left out.
func TestBackup(t *testing.T) {
	when := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, a := range append(append([]suite.Algorithm{suite.HMAC, suite.RSA2048}, aeads...), signers...) {
		public, err := suite.PublicOfBundle(a, bundle(t, a))
		if err != nil {
			t.Fatal(err)
		}
		b := transit.Backup{
			Name: "orders", Algorithm: a, MinDecryption: 3, MinEncryption: 4, MinAvailable: 2, Latest: 5, Exportable: true, PlaintextBackup: true, AutoRotate: time.Hour,
			Versions: []transit.BackupVersion{{Number: 2, Bundle: bundle(t, a), Public: public, Created: when}, {Number: 5, Bundle: bundle(t, a), Public: public, Created: when}},
		}
		coded, err := b.Text(when)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		got, err := transit.ParseBackup(coded)
		if err != nil || len(got.Versions) != 2 || got.Algorithm != a || got.MinDecryption != 3 || got.Latest != 5 || got.MinAvailable != 2 || got.AutoRotate != time.Hour || got.Versions[1].Number != 5 {
			t.Fatalf("%s: %+v, %v", a, got, err)
		}
		v := got.Versions[0]
		if a != suite.HMAC && !v.Bundle.Equal(bundle(t, a)) || !bytes.Equal(v.Public, public) || !v.Created.Equal(when) {
			t.Errorf("%s: %+v", a, v)
		}
	}
}

// TestBackupRefused: what is no backup, or one of half a key.
func TestBackupRefused(t *testing.T) {
	b := transit.Backup{Name: "k", Algorithm: suite.AES256GCM, Latest: 2, Versions: []transit.BackupVersion{{Number: 1, Bundle: bundle(t, suite.AES256GCM)}, {Number: 2, Bundle: bundle(t, suite.AES256GCM)}}}
	whole, err := b.Text(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := base64.StdEncoding.DecodeString(string(whole.Reveal()))
	for _, change := range [][2]string{
		{`"latest_version":2`, `"latest_version":3`}, {`"latest_version":2`, `"latest_version":0`}, {`"latest_version":2`, `"latest_version":2000000000`}, {`"type":0`, `"type":8`}, {`"type":0`, `"type":1`}, {`"type":0`, `"type":99`},
		{`"version_template":""`, `"version_template":"x{{version}}:"`}, {`"kdf":1`, `"kdf":2`}, {`"min_available_version":0`, `"min_available_version":3`}, {`"min_decryption_version":1`, `"min_decryption_version":-1`},
		{`"hmac_key":"`, `"hmac_key":"AAAA`}, {`{"policy"`, `{"polic"`},
	} {
		bad := strings.Replace(string(plain), change[0], change[1], 1)
		if bad == string(plain) {
			t.Fatalf("%v changes nothing", change)
		}
		if _, err := transit.ParseBackup(secret.Take([]byte(base64.StdEncoding.EncodeToString([]byte(bad))))); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v: %v", change, err)
		}
	}
	if _, err := transit.ParseBackup(secret.Take(make([]byte, transit.MaxBackup+1))); fault.CodeOf(err) != fault.TooLarge {
		t.Error(err)
	}
}

func FuzzBackup(f *testing.F) {
	var file struct{ Cases []struct{ Backup string } }
	if b, err := os.ReadFile("testdata/vault.json"); err == nil && json.Unmarshal(b, &file) == nil {
		for _, c := range file.Cases {
			plain, _ := base64.StdEncoding.DecodeString(c.Backup)
			f.Add(plain)
		}
	}
	f.Add([]byte(`{"policy":{"name":"k","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","keys":{}}}`))
	f.Fuzz(func(t *testing.T, plain []byte) {
		b, err := transit.ParseBackup(secret.Take([]byte(base64.StdEncoding.EncodeToString(plain))))
		if err != nil {
			return
		}
		text, err := b.Text(time.Unix(1e9, 0))
		if err != nil {
			t.Fatal(err)
		}
		again, err := transit.ParseBackup(text)
		if err != nil || len(again.Versions) != len(b.Versions) {
			t.Fatal(err)
		}
		for i, v := range again.Versions {
			if b.Algorithm != suite.HMAC && !v.Bundle.Equal(b.Versions[i].Bundle) {
				t.Error("another key")
			}
		}
	})
}

func FuzzImport(f *testing.F) {
	for _, a := range []suite.Algorithm{suite.AES256GCM, suite.Ed25519, suite.ES256, suite.RSA2048} {
		p, _ := key(f, a, transit.Settings{}).Portable()
		f.Add(p.Reveal())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range []suite.Algorithm{suite.AES256GCM, suite.HMAC, suite.Ed25519, suite.ES256, suite.RSA2048, suite.MLDSA44} {
			made, public, err := transit.Import(a, secret.Copy(b))
			if err != nil {
				continue
			}
			if _, err := transit.New(a, 1, made, public, transit.Settings{}); err != nil {
				t.Errorf("%s: %v", a, err)
			}
		}
		_, _ = transit.ImportPublic(suite.ES256, b)
		k := key(t, suite.ES256, transit.Settings{})
		_, _ = k.Chain(string(b))
		_, _ = k.Request(string(b))
	})
}

// TestBackupTooLarge: a backup that could not be restored is refused, and says what helps.
func TestBackupTooLarge(t *testing.T) {
	bundle, public, err := suite.GenerateTransit(suite.AES256GCM, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := transit.Backup{Name: "k", Algorithm: suite.AES256GCM, Latest: 50_000, MinAvailable: 1}
	for n := range b.Latest {
		b.Versions = append(b.Versions, transit.BackupVersion{Number: n + 1, Bundle: bundle, Public: public})
	}
	if _, err := b.Text(time.Unix(1, 0)); fault.CodeOf(err) != fault.TooLarge || !strings.Contains(transit.Text(err), "raise min_decryption_version") {
		t.Error(err)
	}
	b.MinDecryption = b.Latest // the archive alone has the others
	if text, err := b.Text(time.Unix(1, 0)); err != nil || text.Len() > transit.MaxBackup {
		t.Errorf("%d bytes, %v", text.Len(), err)
	}
}

// TestTypesOfBackups: the numbers that Vault and OpenBao give to their types (sdk/helper/keysutil of both), of which one is HMAC there and XChaCha20-Poly1305 here.
func TestTypesOfBackups(t *testing.T) {
	text := func(number, size int, key []byte) secret.Bytes {
		b, err := json.Marshal(map[string]any{"policy": map[string]any{
			"name": "k", "type": number, "key_size": size, "latest_version": 1, "min_decryption_version": 1, "kdf": 1, "keys": map[string]any{"1": map[string]any{"key": key, "hmac_key": make([]byte, 32)}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return secret.Copy([]byte(base64.StdEncoding.EncodeToString(b)))
	}
	for name, c := range map[string]struct {
		number, size int
		want         suite.Algorithm
	}{
		"HMAC of Vault": {11, 32, suite.HMAC}, "HMAC of OpenBao": {10, 32, suite.HMAC}, "XChaCha20-Poly1305 of OpenBao": {11, 0, suite.XChaCha20Poly1305},
		"a managed key of Vault": {10, 0, ""}, "AES-CMAC of Vault": {12, 0, ""}, "ChaCha20-Poly1305": {5, 0, suite.ChaCha20Poly1305},
	} {
		b, err := transit.ParseBackup(text(c.number, c.size, make([]byte, 32)))
		if b.Algorithm != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", name, b.Algorithm, err)
		}
	}
	for _, a := range []suite.Algorithm{suite.HMAC, suite.XChaCha20Poly1305} { // and what is written here comes back as what it was
		m, public, err := suite.GenerateTransit(a, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := transit.Backup{Name: "k", Algorithm: a, Latest: 1, Versions: []transit.BackupVersion{{Number: 1, Bundle: m, Public: public}}}
		text, err := b.Text(time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		if back, err := transit.ParseBackup(text); err != nil || back.Algorithm != a || (back.KeyBytes == 32) != (a == suite.HMAC) {
			t.Errorf("%s: %q, %d, %v", a, back.Algorithm, back.KeyBytes, err)
		}
	}
}
