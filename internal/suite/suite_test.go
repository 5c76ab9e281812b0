package suite_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

var (
	purposes = append(suite.Purposes(), "", "other")
	signers  = []suite.Algorithm{
		suite.Ed25519, suite.ES256, suite.ES384, suite.ES512, suite.RS256, suite.RS256_2k, suite.PS256, suite.PS256_2k, suite.MLDSA44, suite.MLDSA65, suite.MLDSA87,
	}
	ciphers  = []suite.Algorithm{suite.XAES256GCM, suite.AES256GCM, suite.AES128GCM, suite.ChaCha20Poly1305, suite.XChaCha20Poly1305}
	macs     = []suite.Algorithm{suite.HMACSHA256, suite.HMACSHA384, suite.HMACSHA512}
	generals = []suite.Algorithm{suite.RSA2048, suite.RSA3072, suite.RSA4096, suite.HMAC}
	// large are as the others, and slow to make: Wycheproof's cases and import cover them.
	large = []suite.Algorithm{suite.PS256_4k, suite.PS512_4k, suite.RS256_4k, suite.RS512_4k}
)

// pair is a key pair of an algorithm, made once.
type pair struct {
	material secret.Bytes
	public   []byte
}

var pairs = sync.OnceValues(func() (map[suite.Algorithm]pair, error) {
	all := map[suite.Algorithm]pair{}
	for _, a := range signers {
		if of := map[suite.Algorithm]suite.Algorithm{suite.PS256: suite.RS256, suite.PS256_2k: suite.RS256_2k}[a]; of != "" {
			all[a] = all[of] // the same kind of key, which takes long to make
			continue
		}
		m, p, err := suite.Generate(a)
		if err != nil {
			return nil, err
		}
		all[a] = pair{m, p}
	}
	return all, nil
})

func keys(t testing.TB) map[suite.Algorithm]pair {
	t.Helper()
	all, err := pairs()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func forbidden(t *testing.T, what string, err error) {
	t.Helper()
	if fault.CodeOf(err) != fault.AlgorithmForbidden {
		t.Errorf("%s: %v", what, err)
	}
}

// TestTable: each algorithm is for its purposes and no other.
func TestTable(t *testing.T) {
	want := map[suite.Algorithm][]suite.Purpose{"AES-128-ECB": nil, "": nil, "none": nil, "RSAES-PKCS1-v1_5": nil, "RSA1_5": nil}
	for _, a := range ciphers {
		want[a] = []suite.Purpose{suite.Encrypt, suite.Wrap, suite.Transit}
	}
	want[suite.XAES256GCM] = []suite.Purpose{suite.Encrypt, suite.Wrap} // Vault has none
	for _, a := range generals {
		want[a] = []suite.Purpose{suite.Transit}
	}
	for _, a := range macs {
		want[a] = []suite.Purpose{suite.MAC}
	}
	for _, a := range slices.Concat(signers, large) {
		want[a] = []suite.Purpose{suite.Sign}
		if size(t, a) == 0 { // keys of RSA for signatures have one padding and one hash
			want[a] = append(want[a], suite.Transit)
		}
	}
	for _, a := range append(decrypters, suite.RSAOAEP256, suite.RSAOAEP256_4k, suite.RSAOAEP512_4k) {
		want[a] = []suite.Purpose{suite.Decrypt}
	}
	for _, a := range kems {
		want[a] = []suite.Purpose{suite.Decapsulate}
	}
	seen := map[suite.Algorithm]bool{}
	for _, s := range suite.All() {
		if _, known := want[s.ID]; !known || seen[s.ID] {
			t.Errorf("%s stands twice in the table or is not in the test", s.ID)
		}
		seen[s.ID] = true
		if s.Status == suite.StatusForbidden || s.Bits < 112 {
			t.Errorf("%s: %+v", s.ID, s)
		}
	}
	for a, allowed := range want {
		if (allowed != nil) != seen[a] {
			t.Errorf("%q: not in the table, or not expected there", a)
		}
		_, err := suite.Lookup(a)
		if (err == nil) != seen[a] {
			t.Errorf("lookup %q: %v", a, err)
		}
		for _, p := range purposes {
			spec, err := suite.ForPurpose(a, p)
			if slices.Contains(allowed, p) {
				if err != nil || spec.ID != a {
					t.Errorf("%s for %s: %+v, %v", a, p, spec, err)
				}
				continue
			}
			forbidden(t, string(a)+" for "+string(p), err)
		}
		if len(allowed) == 0 {
			_, _, err := suite.Generate(a)
			forbidden(t, "generate "+string(a), err)
		}
	}
	for p, a := range map[suite.Purpose]suite.Algorithm{
		suite.Encrypt: suite.XAES256GCM, suite.Wrap: suite.XAES256GCM, suite.Sign: suite.Ed25519, suite.MAC: suite.HMACSHA256,
		suite.Decrypt: suite.HPKEXWing, suite.Decapsulate: suite.MLKEM768, suite.Transit: suite.AES256GCM, "": "", "other": "",
	} {
		if suite.Default(p) != a {
			t.Errorf("default for %q is %q", p, suite.Default(p))
		}
	}
	suite.All()[0].ID = "changed"
	if suite.All()[0].ID == "changed" {
		t.Error("a caller changed the table")
	}
}

func TestGenerate(t *testing.T) {
	for _, s := range suite.All() {
		if s.KeyBytes == 0 {
			continue
		}
		a, public, err := suite.Generate(s.ID)
		if err != nil || public != nil || a.Len() != s.KeyBytes {
			t.Errorf("%s: %d bytes, public %x, %v", s.ID, a.Len(), public, err)
		}
		if b, _, _ := suite.Generate(s.ID); a.Equal(b) {
			t.Errorf("%s: the same key twice", s.ID)
		}
	}
	_, err := suite.NewAEAD(suite.HMACSHA256, secret.Random(32))
	forbidden(t, "HMAC as AEAD", err)
	_, err = suite.NewAEAD("", secret.Random(32))
	forbidden(t, "nothing as AEAD", err)
}

// size is the length of an RSA algorithm's modulus.
func size(t testing.TB, a suite.Algorithm) int {
	t.Helper()
	s, err := suite.Lookup(a)
	if err != nil {
		t.Fatal(err)
	}
	return s.RSABits
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSign(t *testing.T) {
	msg := []byte("message")
	lengths := map[suite.Algorithm]int{
		suite.Ed25519: 64, suite.ES256: 64, suite.ES384: 96, suite.ES512: 132, suite.RS256: 384, suite.PS256: 384, suite.RS256_2k: 256, suite.PS256_2k: 256,
		suite.MLDSA44: 2420, suite.MLDSA65: 3309, suite.MLDSA87: 4627,
	}
	for a, k := range keys(t) {
		s, err := suite.NewSigner(a, k.material)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			sig, err := s.Sign(msg)
			if err != nil || len(sig) != lengths[a] {
				t.Fatalf("%s: %d bytes, %v", a, len(sig), err)
			}
			if err := suite.Verify(a, k.public, msg, sig); err != nil {
				t.Errorf("%s: %v", a, err)
			}
			if err := suite.Verify(a, k.public, append(msg, '.'), sig); !errors.Is(err, suite.ErrSignature) {
				t.Errorf("%s: another message: %v", a, err)
			}
			for i := 0; i < len(sig); i += 1 + len(sig)/128 {
				bad := bytes.Clone(sig)
				bad[i] ^= 1
				if err := suite.Verify(a, k.public, msg, bad); !errors.Is(err, suite.ErrSignature) {
					t.Errorf("%s, byte %d: %v", a, i, err)
				}
			}
			for _, bad := range [][]byte{nil, {}, sig[:len(sig)-1], sig[1:], append(bytes.Clone(sig), 0), append([]byte{0}, sig...), slices.Insert(bytes.Clone(sig), len(sig)/2, 0), make([]byte, len(sig))} {
				if err := suite.Verify(a, k.public, msg, bad); !errors.Is(err, suite.ErrSignature) {
					t.Errorf("%s: %d bytes: %v", a, len(bad), err)
				}
			}
		}
		for b, other := range keys(t) { // each key with each other algorithm
			if a == b {
				continue
			}
			if size(t, a) != 0 && size(t, a) == size(t, b) { // the same kind of key: what differs is the padding
				if err := suite.Verify(b, k.public, msg, must(s.Sign(msg))); !errors.Is(err, suite.ErrSignature) {
					t.Errorf("%s verifies as %s: %v", a, b, err)
				}
				continue
			}
			_, err := suite.NewSigner(b, k.material)
			forbidden(t, string(a)+" key as "+string(b), err)
			forbidden(t, string(a)+" public key as "+string(b), suite.Verify(b, k.public, msg, nil))
			_, err = suite.ParsePublic(b, k.public)
			forbidden(t, string(a)+" parsed as "+string(b), err)
			if err := suite.Verify(b, other.public, msg, make([]byte, lengths[a])); !errors.Is(err, suite.ErrSignature) {
				t.Errorf("%v", err)
			}
		}
		for _, b := range []suite.Algorithm{"", "none", suite.HMACSHA256, suite.XAES256GCM} {
			forbidden(t, string(a)+" as "+string(b), suite.Verify(b, k.public, msg, nil))
			_, err := suite.NewSigner(b, k.material)
			forbidden(t, string(a)+" key as "+string(b), err)
		}
		parsed, err := suite.ParsePublic(a, k.public)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := suite.EncodePublic(a, parsed); err != nil || !bytes.Equal(again, k.public) {
			t.Errorf("%s: encoded again: %v", a, err)
		}
		if _, err := suite.NewSigner(a, secret.Copy(k.public)); err == nil {
			t.Errorf("%s: a public key signs", a)
		}
	}
}

// TestECDSAValues: r and s of 0 or of the group's order or more never verify; an s replaced by n-s does (ECDSA is malleable, RFC 7518
// does not ask for the lower one), so nobody may take a signature for the name of a message.
func TestECDSAValues(t *testing.T) {
	msg := []byte("message")
	for a, curve := range map[suite.Algorithm]elliptic.Curve{suite.ES256: elliptic.P256(), suite.ES384: elliptic.P384(), suite.ES512: elliptic.P521()} {
		k := keys(t)[a]
		s, err := suite.NewSigner(a, k.material)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := s.Sign(msg)
		if err != nil {
			t.Fatal(err)
		}
		size, n := len(sig)/2, curve.Params().N
		r, v := new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])
		join := func(r, v *big.Int) []byte {
			b := make([]byte, 2*size)
			r.FillBytes(b[:size])
			v.FillBytes(b[size:])
			return b
		}
		top := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(8*size)), big.NewInt(1))
		for _, bad := range []*big.Int{new(big.Int), n, new(big.Int).Add(n, big.NewInt(1)), top} {
			for _, sig := range [][]byte{join(bad, v), join(r, bad), join(bad, bad)} {
				if err := suite.Verify(a, k.public, msg, sig); !errors.Is(err, suite.ErrSignature) {
					t.Errorf("%s: %x: %v", a, sig, err)
				}
			}
		}
		if err := suite.Verify(a, k.public, msg, join(r, new(big.Int).Sub(n, v))); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		der, err := ecdsa.SignASN1(rand.Reader, private(t, k).(*ecdsa.PrivateKey), msg)
		if err != nil {
			t.Fatal(err)
		}
		if err := suite.Verify(a, k.public, msg, der); !errors.Is(err, suite.ErrSignature) {
			t.Errorf("%s: the ASN.1 form: %v", a, err)
		}
	}
}

func private(t *testing.T, k pair) any {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(k.material.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestOtherKeys: keys that the library parses and the table does not know are refused.
func TestOtherKeys(t *testing.T) {
	odd3072 := must(rsa.GenerateKey(rand.Reader, 2560))
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []crypto.Signer{odd3072, p224} {
		checkOther(t, k, k.Public())
	}
	checkOther(t, x25519, x25519.PublicKey())
	odd, _ := new(big.Int).SetString("1"+string(bytes.Repeat([]byte("0"), 300))+"1", 10) // an RSA modulus of 1000 bits
	public, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: odd, E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	if err := suite.Verify(suite.RS256, public, nil, nil); err == nil || errors.Is(err, suite.ErrSignature) {
		t.Errorf("short RSA: %v", err)
	}
	_, err = suite.EncodePublic(suite.RS256, &rsa.PublicKey{})
	forbidden(t, "an empty RSA key", err)
	_, err = suite.EncodePublic(suite.Ed25519, ed25519.PublicKey{1, 2, 3})
	forbidden(t, "a short Ed25519 key", err)
	_, err = suite.EncodePublic(suite.Ed25519, nil)
	forbidden(t, "no key", err)
}

func checkOther(t *testing.T, key, public any) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range signers {
		_, err := suite.NewSigner(a, secret.Take(der))
		forbidden(t, "private key as "+string(a), err)
		forbidden(t, "public key as "+string(a), suite.Verify(a, pub, nil, nil))
		_, err = suite.EncodePublic(a, public)
		forbidden(t, "encode as "+string(a), err)
	}
}

// TestKnownSignatures are RFC 8032, 7.1, test 2, and what other code makes of the same keys.
func TestKnownSignatures(t *testing.T) {
	seed := unhex(t, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
	key := ed25519.NewKeyFromSeed(seed)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := suite.NewSigner(suite.Ed25519, secret.Take(der))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := s.Sign([]byte{0x72})
	want := "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
	if err != nil || hex.EncodeToString(sig) != want {
		t.Errorf("%x, %v", sig, err)
	}
	rs := private(t, keys(t)[suite.RS256]).(*rsa.PrivateKey)
	sum := sha256.Sum256([]byte("message"))
	pss, err := rsa.SignPSS(rand.Reader, rs, crypto.SHA256, sum[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := suite.Verify(suite.RS256, keys(t)[suite.RS256].public, []byte("message"), pss); !errors.Is(err, suite.ErrSignature) {
		t.Errorf("PSS as PKCS1v15: %v", err)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTag(t *testing.T) {
	key := secret.Copy(bytes.Repeat([]byte{0x0b}, 20)) // RFC 4231, test case 1
	tag, err := suite.Tag(suite.HMACSHA256, key, []byte("Hi There"))
	if err != nil || hex.EncodeToString(tag) != "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7" {
		t.Errorf("%x, %v", tag, err)
	}
	if err := suite.VerifyTag(suite.HMACSHA256, key, []byte("Hi There"), tag); err != nil {
		t.Error(err)
	}
	for i := range tag {
		bad := bytes.Clone(tag)
		bad[i] ^= 0x10
		if err := suite.VerifyTag(suite.HMACSHA256, key, []byte("Hi There"), bad); !errors.Is(err, suite.ErrSignature) {
			t.Errorf("byte %d: %v", i, err)
		}
		if err := suite.VerifyTag(suite.HMACSHA256, key, []byte("Hi There"), tag[:i]); !errors.Is(err, suite.ErrSignature) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
	if err := suite.VerifyTag(suite.HMACSHA256, key, []byte("Hi there"), tag); !errors.Is(err, suite.ErrSignature) {
		t.Error(err)
	}
	for _, a := range []suite.Algorithm{"", suite.XAES256GCM, suite.Ed25519} {
		_, err := suite.Tag(a, key, nil)
		forbidden(t, "tag with "+string(a), err)
		forbidden(t, "tag with "+string(a), suite.VerifyTag(a, key, nil, nil))
	}
}

func FuzzParsePublic(f *testing.F) {
	for _, k := range keys(f) {
		f.Add(k.public)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first := suite.Algorithm("")
		for _, a := range signers {
			key, err := suite.ParsePublic(a, b)
			if err != nil {
				continue
			}
			if first != "" && (size(t, a) == 0 || size(t, a) != size(t, first)) {
				t.Errorf("one key is of %s and %s", first, a)
			}
			first = a
			if _, err := suite.EncodePublic(a, key); err != nil {
				t.Error(err)
			}
			if err := suite.Verify(a, b, nil, make([]byte, 64)); err == nil {
				t.Log("a signature of zeros verifies") // a key of low order; only its owner can make one
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("message"), []byte("signature"))
	f.Fuzz(func(t *testing.T, msg, sig []byte) {
		for a, k := range keys(t) {
			if err := suite.Verify(a, k.public, msg, sig); !errors.Is(err, suite.ErrSignature) {
				t.Errorf("%s: %v", a, err)
			}
		}
	})
}
