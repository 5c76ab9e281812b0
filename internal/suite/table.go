package suite

import (
	"crypto"
	_ "crypto/sha256" // crypto.SHA256, which Spec.Hash names
	_ "crypto/sha512" // crypto.SHA384 and SHA512
	"slices"
)

// The symmetric algorithms.
const (
	XAES256GCM        Algorithm = "XAES-256-GCM"       // C2SP XAES-256-GCM: 32-byte key, 24-byte random nonce, 16-byte tag
	AES256GCM         Algorithm = "AES-256-GCM"        // SP 800-38D: 32-byte key, 12-byte random nonce, 16-byte tag
	AES128GCM         Algorithm = "AES-128-GCM"        // SP 800-38D: 16-byte key
	ChaCha20Poly1305  Algorithm = "ChaCha20-Poly1305"  // RFC 8439: 32-byte key, 12-byte random nonce, 16-byte tag
	XChaCha20Poly1305 Algorithm = "XChaCha20-Poly1305" // draft-irtf-cfrg-xchacha: 32-byte key, 24-byte random nonce, 16-byte tag
	HMACSHA256        Algorithm = "HMAC-SHA256"        // RFC 2104 with FIPS 180-4: 32-byte key and tag
	HMACSHA384        Algorithm = "HMAC-SHA384"        // 48-byte key and tag
	HMACSHA512        Algorithm = "HMAC-SHA512"        // 64-byte key and tag
)

// The signatures. ECDSA's are r||s (RFC 7518, 3.4), ML-DSA's are of FIPS 204 with an empty context.
const (
	Ed25519  Algorithm = "Ed25519"    // RFC 8032; JWS "EdDSA" (RFC 8037)
	ES256    Algorithm = "ES256"      // ECDSA P-256, SHA-256
	ES384    Algorithm = "ES384"      // ECDSA P-384, SHA-384
	ES512    Algorithm = "ES512"      // ECDSA P-521, SHA-512
	PS256    Algorithm = "PS256"      // RSASSA-PSS, SHA-256, MGF1 with SHA-256, salt as long as the hash; 3072 bits (RFC 7518, 3.5)
	PS256_2k Algorithm = "PS256-2048" // 2048 bits
	PS256_4k Algorithm = "PS256-4096" // 4096 bits
	PS512_4k Algorithm = "PS512-4096" // SHA-512, 4096 bits
	RS256    Algorithm = "RS256"      // RSASSA-PKCS1-v1_5, SHA-256, 3072 bits (RFC 7518, 3.3); for verifiers that know no other
	RS256_2k Algorithm = "RS256-2048" // 2048 bits
	RS256_4k Algorithm = "RS256-4096" // 4096 bits
	RS512_4k Algorithm = "RS512-4096" // SHA-512, 4096 bits
	MLDSA44  Algorithm = "ML-DSA-44"  // FIPS 204
	MLDSA65  Algorithm = "ML-DSA-65"
	MLDSA87  Algorithm = "ML-DSA-87"
)

// What serves the purpose Transit alone, so that it takes its hash and padding with each call.
const (
	RSA2048 Algorithm = "RSA-2048" // RSAES-OAEP, RSASSA-PSS and RSASSA-PKCS1-v1_5 (RFC 8017)
	RSA3072 Algorithm = "RSA-3072"
	RSA4096 Algorithm = "RSA-4096"
	HMAC    Algorithm = "HMAC" // RFC 2104, with keys of 32 to 512 bytes
)

// Encryption to the holder of a private half, and encapsulation of shared secrets.
const (
	RSAOAEP256       Algorithm = "RSA-OAEP-256"       // RSAES-OAEP, SHA-256 and MGF1 with SHA-256, 3072 bits (RFC 8017, 7.1)
	RSAOAEP256_2k    Algorithm = "RSA-OAEP-256-2048"  // 2048 bits
	RSAOAEP256_4k    Algorithm = "RSA-OAEP-256-4096"  // 4096 bits
	RSAOAEP512_4k    Algorithm = "RSA-OAEP-512-4096"  // SHA-512 and MGF1 with SHA-512, 4096 bits
	HPKEX25519       Algorithm = "HPKE-X25519"        // RFC 9180 base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
	HPKEP256         Algorithm = "HPKE-P256"          // DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
	HPKEXWing        Algorithm = "HPKE-X-Wing"        // ML-KEM-768 with X25519 (draft-ietf-hpke-pq), HKDF-SHA256, AES-256-GCM
	HPKEMLKEM768P256 Algorithm = "HPKE-MLKEM768-P256" // ML-KEM-768 with P-256 (draft-ietf-hpke-pq), HKDF-SHA256, AES-256-GCM
	MLKEM768         Algorithm = "ML-KEM-768"         // FIPS 203
	MLKEM1024        Algorithm = "ML-KEM-1024"
)

// Spec is one row of the table.
type Spec struct {
	ID       Algorithm
	Purposes []Purpose
	Status   Status
	Standard string // where it is specified
	FIPS     bool   // approved as used here, and within Go's cryptographic module, so that it runs under GODEBUG=fips140=only
	Bits     int    // security strength against classical attacks (SP 800-57 Part 1, 5.6.1)
	Quantum  int    // category of SP 800-57/FIPS 203 against quantum computers, 1 to 5; 0: broken by one
	JWA      string // the JWS "alg" value (RFC 7518, RFC 8037); empty: not for tokens
	KeyBytes int    // length of symmetric material; 0 for key pairs
	KeyMax   int    // for material of several lengths the longest, and KeyBytes is the shortest; 0: KeyBytes is the one length
	RSABits  int    // length of the modulus; 0 for others
	Hash     crypto.Hash
	Message  byte   // suite byte of its messages (spec/message.md); 0: none
	Nonce    int    // length of the nonce of an AEAD, in bytes
	MaxUses  uint64 // how often one version may protect; 0: more often than anybody can
	Sunset   Sunset
}

// Sunset says from when on an algorithm should not, and must not, protect any more; dates are the last good day, empty: none is known.
type Sunset struct {
	Deprecated string // YYYY-MM-DD
	Disallowed string // YYYY-MM-DD
	Source     string
}

// randomNonceUses bounds how often a key protects under random nonces of 96 bits: the chance that two are the same stays below 2^-35 (SP 800-38D,
// 8.3 allows 2^32 calls).
const (
	randomNonceUses = 1 << 31
	ir8547          = "NIST IR 8547 (initial public draft), 4.1"
)

var (
	none = Sunset{}
	// classical is what a quantum computer breaks, at 128 bits and more; weak is at 112 bits.
	classical = Sunset{Disallowed: "2035-12-31", Source: ir8547}
	weak      = Sunset{Deprecated: "2030-12-31", Disallowed: "2035-12-31", Source: ir8547}
)

var table = slices.Concat(symmetric(), signatures(), encryptions(), generals())

// ByMessage finds the row of a message's suite byte (spec/message.md).
func ByMessage(b byte) (Spec, bool) {
	for _, s := range table {
		if s.Message == b && b != 0 {
			return s, true
		}
	}
	return Spec{}, false
}

func symmetric() []Spec {
	data, transit := []Purpose{Encrypt, Wrap}, []Purpose{Encrypt, Wrap, Transit}
	return []Spec{
		{ID: XAES256GCM, Purposes: data, Status: StatusDefault, Standard: "C2SP XAES-256-GCM", FIPS: true, Bits: 256, Quantum: 5, KeyBytes: 32, Message: 1, Nonce: 24},
		{ID: AES256GCM, Purposes: transit, Status: StatusAllowed, Standard: "SP 800-38D", FIPS: true, Bits: 256, Quantum: 5, KeyBytes: 32, Message: 3, Nonce: 12, MaxUses: randomNonceUses},
		{ID: AES128GCM, Purposes: transit, Status: StatusAllowed, Standard: "SP 800-38D", FIPS: true, Bits: 128, Quantum: 1, KeyBytes: 16, Message: 4, Nonce: 12, MaxUses: randomNonceUses},
		{ID: ChaCha20Poly1305, Purposes: transit, Status: StatusAllowed, Standard: "RFC 8439", Bits: 256, Quantum: 5, KeyBytes: 32, Message: 5, Nonce: 12, MaxUses: randomNonceUses},
		{ID: XChaCha20Poly1305, Purposes: transit, Status: StatusAllowed, Standard: "draft-irtf-cfrg-xchacha-03", Bits: 256, Quantum: 5, KeyBytes: 32, Message: 6, Nonce: 24},
		{ID: HMACSHA256, Purposes: []Purpose{MAC}, Status: StatusDefault, Standard: "RFC 2104, FIPS 180-4", FIPS: true, Bits: 256, Quantum: 5, KeyBytes: 32, Hash: crypto.SHA256},
		{ID: HMACSHA384, Purposes: []Purpose{MAC}, Status: StatusAllowed, Standard: "RFC 2104, FIPS 180-4", FIPS: true, Bits: 384, Quantum: 5, KeyBytes: 48, Hash: crypto.SHA384},
		{ID: HMACSHA512, Purposes: []Purpose{MAC}, Status: StatusAllowed, Standard: "RFC 2104, FIPS 180-4", FIPS: true, Bits: 512, Quantum: 5, KeyBytes: 64, Hash: crypto.SHA512},
	}
}

func signatures() []Spec {
	sign, transit := []Purpose{Sign}, []Purpose{Sign, Transit}
	rsa := func(id Algorithm, standard, jwa string, size, bits int, h crypto.Hash, s Sunset) Spec {
		return Spec{ID: id, Purposes: sign, Status: StatusAllowed, Standard: standard, FIPS: true, Bits: bits, JWA: jwa, RSABits: size, Hash: h, Sunset: s}
	}
	const pss, pkcs = "RFC 8017, 8.1 (RSASSA-PSS)", "RFC 8017, 8.2 (RSASSA-PKCS1-v1_5)"
	return []Spec{
		{ID: Ed25519, Purposes: transit, Status: StatusDefault, Standard: "RFC 8032", FIPS: true, Bits: 128, JWA: "EdDSA", Sunset: classical},
		{ID: ES256, Purposes: transit, Status: StatusAllowed, Standard: "FIPS 186-5 (ECDSA)", FIPS: true, Bits: 128, JWA: "ES256", Hash: crypto.SHA256, Sunset: classical},
		{ID: ES384, Purposes: transit, Status: StatusAllowed, Standard: "FIPS 186-5 (ECDSA)", FIPS: true, Bits: 192, JWA: "ES384", Hash: crypto.SHA384, Sunset: classical},
		{ID: ES512, Purposes: transit, Status: StatusAllowed, Standard: "FIPS 186-5 (ECDSA)", FIPS: true, Bits: 256, JWA: "ES512", Hash: crypto.SHA512, Sunset: classical},
		rsa(PS256, pss, "PS256", 3072, 128, crypto.SHA256, classical),
		rsa(PS256_2k, pss, "PS256", 2048, 112, crypto.SHA256, weak),
		rsa(PS256_4k, pss, "PS256", 4096, 150, crypto.SHA256, classical),
		rsa(PS512_4k, pss, "PS512", 4096, 150, crypto.SHA512, classical),
		rsa(RS256, pkcs, "RS256", 3072, 128, crypto.SHA256, classical),
		rsa(RS256_2k, pkcs, "RS256", 2048, 112, crypto.SHA256, weak),
		rsa(RS256_4k, pkcs, "RS256", 4096, 150, crypto.SHA256, classical),
		rsa(RS512_4k, pkcs, "RS512", 4096, 150, crypto.SHA512, classical),
		{ID: MLDSA44, Purposes: transit, Status: StatusAllowed, Standard: "FIPS 204", Bits: 128, Quantum: 2, Sunset: none},
		{ID: MLDSA65, Purposes: transit, Status: StatusAllowed, Standard: "FIPS 204", Bits: 192, Quantum: 3, Sunset: none},
		{ID: MLDSA87, Purposes: transit, Status: StatusAllowed, Standard: "FIPS 204", Bits: 256, Quantum: 5, Sunset: none},
	}
}

func encryptions() []Spec {
	decrypt, kem := []Purpose{Decrypt}, []Purpose{Decapsulate}
	oaep := func(id Algorithm, message byte, size, bits int, h crypto.Hash, s Sunset) Spec {
		return Spec{ID: id, Purposes: decrypt, Status: StatusAllowed, Standard: "RFC 8017, 7.1 (RSAES-OAEP)", FIPS: true, Bits: bits, RSABits: size, Hash: h, Message: message, Sunset: s}
	}
	const base, pq = "RFC 9180", "RFC 9180, draft-ietf-hpke-pq"
	return []Spec{
		{ID: HPKEXWing, Purposes: decrypt, Status: StatusDefault, Standard: pq, Bits: 128, Quantum: 3, Message: 18, Sunset: none},
		{ID: HPKEMLKEM768P256, Purposes: decrypt, Status: StatusAllowed, Standard: pq, FIPS: true, Bits: 128, Quantum: 3, Message: 19, Sunset: none},
		{ID: HPKEX25519, Purposes: decrypt, Status: StatusAllowed, Standard: base, Bits: 128, Message: 16, Sunset: classical},
		{ID: HPKEP256, Purposes: decrypt, Status: StatusAllowed, Standard: base, FIPS: true, Bits: 128, Message: 17, Sunset: classical},
		oaep(RSAOAEP256, 24, 3072, 128, crypto.SHA256, classical),
		oaep(RSAOAEP256_2k, 25, 2048, 112, crypto.SHA256, weak),
		oaep(RSAOAEP256_4k, 26, 4096, 150, crypto.SHA256, classical),
		oaep(RSAOAEP512_4k, 27, 4096, 150, crypto.SHA512, classical),
		{ID: MLKEM768, Purposes: kem, Status: StatusDefault, Standard: "FIPS 203", FIPS: true, Bits: 192, Quantum: 3, Sunset: none},
		{ID: MLKEM1024, Purposes: kem, Status: StatusAllowed, Standard: "FIPS 203", FIPS: true, Bits: 256, Quantum: 5, Sunset: none},
	}
}

func generals() []Spec {
	transit := []Purpose{Transit}
	rsa := func(id Algorithm, size, bits int, s Sunset) Spec {
		return Spec{ID: id, Purposes: transit, Status: StatusAllowed, Standard: "RFC 8017, 7.1, 8.1, 8.2", FIPS: true, Bits: bits, RSABits: size, Sunset: s}
	}
	return []Spec{
		rsa(RSA2048, 2048, 112, weak),
		rsa(RSA3072, 3072, 128, classical),
		rsa(RSA4096, 4096, 150, classical),
		{ID: HMAC, Purposes: transit, Status: StatusAllowed, Standard: "RFC 2104", FIPS: true, Bits: 256, Quantum: 5, KeyBytes: 32, KeyMax: 512},
	}
}
