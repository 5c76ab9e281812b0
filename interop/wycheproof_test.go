package interop_test

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// hexBytes is bytes as Wycheproof writes them.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// group is the fields of all kinds of groups that are used here.
type group struct {
	KeySize      int         `json:"keySize"`
	IVSize       int         `json:"ivSize"`
	TagSize      int         `json:"tagSize"`
	SaltLength   int         `json:"sLen"`
	PublicDER    hexBytes    `json:"publicKeyDer"`
	PrivatePKCS8 hexBytes    `json:"privateKeyPkcs8"`
	Seed         hexBytes    `json:"privateSeed"`
	Public       any         `json:"publicKey"`
	Tests        []proofCase `json:"tests"`
}

// proofCase is the fields of all kinds of cases that are used here.
type proofCase struct {
	ID         int       `json:"tcId"`
	Comment    string    `json:"comment"`
	Flags      []string  `json:"flags"`
	Result     string    `json:"result"`
	Key        hexBytes  `json:"key"`
	IV         hexBytes  `json:"iv"`
	AAD        hexBytes  `json:"aad"`
	Message    hexBytes  `json:"msg"`
	Ciphertext hexBytes  `json:"ct"`
	Tag        hexBytes  `json:"tag"`
	Signature  hexBytes  `json:"sig"`
	Label      hexBytes  `json:"label"`
	Context    *hexBytes `json:"ctx"`
	Seed       hexBytes  `json:"seed"`
	Encaps     hexBytes  `json:"ek"`
	C          hexBytes  `json:"c"`
	Shared     hexBytes  `json:"K"`
}

// attempt runs one case: whether rotor takes it, and whether what it takes is right; run is false for a case that rotor has no way to express, such as
// a nonce of another size.
type attempt func(a suite.Algorithm, g group, c proofCase) (took, right, run bool)

// proofs say which files are for which algorithm, how they are run, and how many cases there are at least.
var proofs = []struct {
	algorithm suite.Algorithm
	check     attempt
	floor     int
	files     []string
}{
	{suite.AES128GCM, aead, 60, []string{"aes_gcm"}},
	{suite.AES256GCM, aead, 60, []string{"aes_gcm"}},
	{suite.ChaCha20Poly1305, aead, 300, []string{"chacha20_poly1305"}},
	{suite.XChaCha20Poly1305, aead, 250, []string{"xchacha20_poly1305"}},
	{suite.HMACSHA256, mac, 80, []string{"hmac_sha256"}},
	{suite.HMACSHA384, mac, 80, []string{"hmac_sha384"}},
	{suite.HMACSHA512, mac, 80, []string{"hmac_sha512"}},
	{suite.Ed25519, signature, 150, []string{"ed25519"}},
	{suite.ES256, signature, 260, []string{"ecdsa_secp256r1_sha256_p1363"}},
	{suite.ES384, signature, 260, []string{"ecdsa_secp384r1_sha384_p1363"}},
	{suite.ES512, signature, 260, []string{"ecdsa_secp521r1_sha512_p1363"}},
	{suite.PS256, signature, 100, []string{"rsa_pss_3072_sha256_mgf1_32"}},
	{suite.PS256_2k, signature, 100, []string{"rsa_pss_2048_sha256_mgf1_32"}},
	{suite.PS256_4k, signature, 100, []string{"rsa_pss_4096_sha256_mgf1_32"}},
	{suite.PS512_4k, signature, 150, []string{"rsa_pss_4096_sha512_mgf1_64"}},
	{suite.RS256, signature, 250, []string{"rsa_signature_3072_sha256"}},
	{suite.RS256_2k, signature, 250, []string{"rsa_signature_2048_sha256"}},
	{suite.RS256_4k, signature, 250, []string{"rsa_signature_4096_sha256"}},
	{suite.RS512_4k, signature, 250, []string{"rsa_signature_4096_sha512"}},
	{suite.MLDSA44, signature, 100, []string{"mldsa_44_verify"}},
	{suite.MLDSA65, signature, 100, []string{"mldsa_65_verify"}},
	{suite.MLDSA87, signature, 100, []string{"mldsa_87_verify"}},
	{suite.MLDSA44, signs, 50, []string{"mldsa_44_sign_seed"}},
	{suite.MLDSA65, signs, 50, []string{"mldsa_65_sign_seed"}},
	{suite.MLDSA87, signs, 50, []string{"mldsa_87_sign_seed"}},
	{suite.RSAOAEP256, oaep, 30, []string{"rsa_oaep_3072_sha256_mgf1sha256"}},
	{suite.RSAOAEP256_2k, oaep, 30, []string{"rsa_oaep_2048_sha256_mgf1sha256"}},
	{suite.RSAOAEP256_4k, oaep, 30, []string{"rsa_oaep_4096_sha256_mgf1sha256"}},
	{suite.RSAOAEP512_4k, oaep, 30, []string{"rsa_oaep_4096_sha512_mgf1sha512"}},
	{suite.MLKEM768, decapsulates, 190, []string{"mlkem_768"}},
	{suite.MLKEM1024, decapsulates, 190, []string{"mlkem_1024"}},
	{suite.MLKEM768, generates, 90, []string{"mlkem_768_keygen_seed"}},
	{suite.MLKEM1024, generates, 90, []string{"mlkem_1024_keygen_seed"}},
	{suite.MLKEM768, encapsulates, 200, []string{"mlkem_768_encaps"}},
	{suite.MLKEM1024, encapsulates, 200, []string{"mlkem_1024_encaps"}},
	{"AES-KWP", keyWrap, 250, []string{"aes_kwp"}},
}

// without are the algorithms that Wycheproof has no cases of: XAES has C2SP's own vectors (spec/vectors/xaes.json), HPKE those that the standard library
// is tested with, and the general keys of clients of Vault are tried against a real Vault (internal/transit); their primitives are those of other rows.
var without = []suite.Algorithm{suite.XAES256GCM, suite.HPKEXWing, suite.HPKEMLKEM768P256, suite.HPKEX25519, suite.HPKEP256, suite.RSA2048, suite.RSA3072, suite.RSA4096, suite.HMAC}

func TestWycheproof(t *testing.T) {
	total := 0
	covered := slices.Clone(without)
	for _, p := range proofs {
		covered = append(covered, p.algorithm)
		for _, name := range p.files {
			n, failed := prove(t, p.algorithm, p.check, name)
			t.Logf("%-20s %-40s %4d cases, %d failed", p.algorithm, name, n, failed)
			if n < p.floor {
				t.Errorf("%s, %s: only %d cases were run", p.algorithm, name, n)
			}
			total += n
		}
	}
	t.Logf("%d cases", total)
	if total < 5900 {
		t.Errorf("only %d cases", total)
	}
	for _, s := range suite.All() {
		if !slices.Contains(covered, s.ID) {
			t.Errorf("%s has no cases", s.ID)
		}
	}
}

// prove runs the cases of one file.
func prove(t *testing.T, a suite.Algorithm, f attempt, name string) (n, failed int) {
	t.Helper()
	b, err := fs.ReadFile(wycheproof.TestVectors, name+"_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []group `json:"testGroups"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, g := range file.Groups {
		for _, c := range g.Tests {
			took, right, run := f(a, g, c)
			if !run {
				continue
			}
			n++
			if slices.Contains(c.Flags, "SmallPublicKey") { // exponents below 65,537, which FIPS 186-5, A.1.1 does not allow, are refused in rotor
				c.Result = "invalid"
			}
			bad := c.Result == "valid" && !took || c.Result == "invalid" && took || took && !right
			if bad {
				failed++
				t.Errorf("%s, %s, case %d (%s, %s, %v): taken %t, right %t", a, name, c.ID, c.Result, c.Comment, c.Flags, took, right)
			}
		}
	}
	return n, failed
}

func aead(a suite.Algorithm, g group, c proofCase) (took, right, run bool) {
	s, _ := suite.Lookup(a)
	if g.KeySize != 8*s.KeyBytes || g.TagSize != 128 {
		return false, false, false
	}
	k, err := suite.NewAEAD(a, secret.Copy(c.Key))
	if err != nil {
		return false, false, true
	}
	box := slices.Concat(c.IV, c.Ciphertext, c.Tag)
	if len(c.IV) != s.Nonce { // rotor reads the nonce from the front of the message: of another length it is another nonce
		return false, false, false
	}
	got, err := suite.Open(k, nil, box, c.AAD)
	return err == nil, bytes.Equal(got, c.Message), true
}

func mac(a suite.Algorithm, g group, c proofCase) (took, right, run bool) {
	if s, _ := suite.Lookup(a); g.TagSize != 8*s.KeyBytes { // no truncated tags
		return false, false, false
	}
	err := suite.VerifyTag(a, secret.Copy(c.Key), c.Message, c.Tag)
	return err == nil, true, true
}

func signature(a suite.Algorithm, g group, c proofCase) (took, right, run bool) {
	if c.Context != nil && len(*c.Context) > 0 { // rotor's context is the empty one
		return false, false, false
	}
	return suite.Verify(a, g.PublicDER, c.Message, c.Signature) == nil, true, true
}

// signs: a seed makes the same key, and what it signs verifies; rotor signs hedged, so the bytes differ.
func signs(a suite.Algorithm, g group, c proofCase) (took, right, run bool) {
	if c.Context != nil && len(*c.Context) > 0 || c.Message == nil || c.Result != "valid" || len(g.PrivatePKCS8) == 0 {
		return false, false, false
	}
	m := secret.Copy(g.PrivatePKCS8)
	s, err := suite.NewSigner(a, m)
	if err != nil {
		return false, false, true
	}
	public, err := suite.PublicOf(a, m)
	if err != nil {
		return false, false, true
	}
	sig, err := s.Sign(c.Message)
	return err == nil, suite.Verify(a, public, c.Message, sig) == nil && suite.Verify(a, public, c.Message, c.Signature) == nil, true
}

func oaep(a suite.Algorithm, g group, c proofCase) (took, right, run bool) {
	d, err := suite.NewDecrypter(a, secret.Copy(g.PrivatePKCS8))
	if err != nil {
		return false, false, true
	}
	got, err := d.Decrypt(c.Ciphertext, c.Label)
	return err == nil, bytes.Equal(got, c.Message), true
}

// oids are those of RFC 9935; keys are put into its forms here, by other code than rotor's.
var oids = map[suite.Algorithm]asn1.ObjectIdentifier{
	suite.MLKEM768: {2, 16, 840, 1, 101, 3, 4, 4, 2}, suite.MLKEM1024: {2, 16, 840, 1, 101, 3, 4, 4, 3},
}

func seedKey(a suite.Algorithm, seed []byte) secret.Bytes {
	inner := append([]byte{0x80, byte(len(seed))}, seed...)
	der, _ := asn1.Marshal(struct { // of what always encodes
		V int
		A pkix.AlgorithmIdentifier
		K []byte
	}{0, pkix.AlgorithmIdentifier{Algorithm: oids[a]}, inner})
	return secret.Take(der)
}

func publicKey(a suite.Algorithm, ek []byte) []byte {
	der, _ := asn1.Marshal(struct {
		A pkix.AlgorithmIdentifier
		K asn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: oids[a]}, asn1.BitString{Bytes: ek, BitLength: 8 * len(ek)}})
	return der
}

func decapsulates(a suite.Algorithm, _ group, c proofCase) (took, right, run bool) {
	d, err := suite.NewDecapsulator(a, seedKey(a, c.Seed))
	if err != nil {
		return false, false, true
	}
	k, err := d.Decapsulate(c.C)
	return err == nil, k.Equal(secret.Copy(c.Shared)), true
}

func generates(a suite.Algorithm, _ group, c proofCase) (took, right, run bool) {
	public, err := suite.PublicOf(a, seedKey(a, c.Seed))
	return err == nil, bytes.Equal(public, publicKey(a, c.Encaps)), true
}

// encapsulates: of valid keys it cannot be made deterministic from outside of the library; that keys are refused that are none is what counts.
func encapsulates(a suite.Algorithm, _ group, c proofCase) (took, right, run bool) {
	shared, ct, err := suite.Encapsulate(a, publicKey(a, c.Encaps))
	return err == nil, shared.Len() == 32 && len(ct) > 0, true
}

func keyWrap(_ suite.Algorithm, _ group, c proofCase) (took, right, run bool) {
	k := secret.Copy(c.Key)
	got, err := suite.UnwrapKWP(k, c.Ciphertext)
	if err != nil {
		return false, false, true
	}
	again, err := suite.WrapKWP(k, secret.Copy(c.Message))
	return true, got.Equal(secret.Copy(c.Message)) && err == nil && bytes.Equal(again, c.Ciphertext), true
}
