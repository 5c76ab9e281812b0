// Package token is access tokens: JSON Web Signatures in compact form (RFC 7515, RFC 9068) and the key sets that verify them
// (RFC 7517, RFC 8037). It is pure; the issuer signs, the SDK fetches key sets. Profile: spec/token.md.
package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds of foreign bytes.
const (
	maxToken = 8 << 10
	maxSet   = 1 << 20
	maxKeys  = 1024
)

// Type is the "typ" of access tokens (RFC 9068, 2.1).
const Type = "at+jwt"

// Claims of an access token. Times are whole seconds.
type Claims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"`
	Audience  string `json:"aud"`
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	Expires   int64  `json:"exp"`
	ID        string `json:"jti"`
	Scope     string `json:"scope,omitempty"`
}

// header of a token.
type header struct {
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
	KeyID     string `json:"kid"`
}

// Input makes the bytes to be signed: header and claims.
func Input(a suite.Algorithm, kid string, c Claims) ([]byte, error) {
	spec, err := suite.Lookup(a)
	if err != nil {
		return nil, err
	}
	if spec.JWA == "" {
		return nil, fault.New(fault.AlgorithmForbidden, "tokens with "+string(a))
	}
	h, err := json.Marshal(header{spec.JWA, Type, kid})
	if err != nil {
		return nil, fmt.Errorf("encode token: %w", err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode token: %w", err)
	}
	return []byte(base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(b)), nil
}

// IsInput says whether some verifier could read bytes as the input of a signature of JWS: two parts, the first of which is a JSON object in
// base64. It is wider than split, for verifiers that take the other alphabet, skip what is in none, or do not look at what comes behind.
func IsInput(msg []byte) bool {
	first, _, found := bytes.Cut(msg, []byte("."))
	if !found {
		return false
	}
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '+':
			return '-'
		case r == '/':
			return '_'
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return -1
	}, string(first))
	if len(clean)%4 == 1 { // which is no length in base64: a prefix is enough to know an object by
		clean = clean[:len(clean)-1]
	}
	b, _ := base64.RawURLEncoding.DecodeString(clean) // of this alphabet and length all decodes
	return beginsObject(b)
}

// beginsObject says whether some parser could take bytes for a JSON object. There are ones that detect UTF-16 and UTF-32, with a byte order mark or
// without, that drop what is no UTF-8, that skip blanks which JSON does not have, comments, and the guard )]}' of answers to browsers.
func beginsObject(b []byte) bool {
	for {
		b = bytes.TrimLeftFunc(b, func(r rune) bool { return r <= ' ' || r >= 0x7f })
		end := -1 // of what is skipped
		switch {
		case bytes.HasPrefix(b, []byte("/*")):
			if end = bytes.Index(b[2:], []byte("*/")); end >= 0 {
				end += 4
			}
		case bytes.HasPrefix(b, []byte("//")), bytes.HasPrefix(b, []byte("#")):
			end = bytes.IndexAny(b, "\r\n")
		case bytes.HasPrefix(b, []byte(")]}'")):
			end = 4
		}
		if end < 0 {
			return bytes.HasPrefix(b, []byte("{"))
		}
		b = b[end:]
	}
}

// Assemble puts input and signature together.
func Assemble(input, signature []byte) string {
	return string(input) + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// Key is a published verification key.
type Key struct {
	ID        string
	Algorithm suite.Algorithm
	Public    []byte // PKIX
}

// Set is the keys that a verifier knows.
type Set struct {
	Keys []Key
}

// Find returns the key with an ID.
func (s Set) Find(kid string) (Key, bool) {
	i := slices.IndexFunc(s.Keys, func(k Key) bool { return k.ID == kid })
	if i < 0 {
		return Key{}, false
	}
	return s.Keys[i], true
}

// Expect is what a verifier demands.
type Expect struct {
	Issuer   string
	Audience string
	Leeway   time.Duration // for clocks; default 0
}

// KeyID reads the kid of a token without verifying anything, so that a verifier can fetch an unknown key. fault.TokenInvalid.
func KeyID(token string) (string, error) {
	h, _, _, err := split(token)
	return h.KeyID, err
}

// Verify checks a token. The algorithm is the key's; a token that names another is refused. fault.TokenInvalid, UnknownKeyID,
// TokenAlgorithm, TokenExpired, TokenNotYetValid, TokenAudience.
func Verify(now time.Time, token string, keys Set, want Expect) (Claims, error) {
	h, input, sig, err := split(token)
	if err != nil {
		return Claims{}, err
	}
	k, ok := keys.Find(h.KeyID)
	if !ok {
		return Claims{}, fault.New(fault.UnknownKeyID, "token")
	}
	spec, err := suite.Lookup(k.Algorithm)
	if err != nil {
		return Claims{}, err
	}
	if h.Algorithm != spec.JWA || spec.JWA == "" {
		return Claims{}, fault.New(fault.TokenAlgorithm, "token")
	}
	if err := suite.Verify(k.Algorithm, k.Public, []byte(input), sig); err != nil {
		return Claims{}, fault.New(fault.TokenInvalid, "token")
	}
	c, err := claims(input)
	if err == nil {
		err = c.check(now, want)
	}
	if err != nil {
		return Claims{}, err
	}
	return c, nil
}

func (c Claims) check(now time.Time, want Expect) error {
	switch {
	case now.Add(-want.Leeway).Unix() >= c.Expires:
		return fault.New(fault.TokenExpired, "token")
	case now.Add(want.Leeway).Unix() < c.NotBefore:
		return fault.New(fault.TokenNotYetValid, "token")
	case c.Audience != want.Audience || want.Audience == "":
		return fault.New(fault.TokenAudience, "token")
	case c.Issuer != want.Issuer:
		return fault.New(fault.TokenInvalid, "token")
	}
	return nil
}

func split(token string) (h header, input string, sig []byte, err error) {
	bad := fault.New(fault.TokenInvalid, "token")
	if len(token) > maxToken || strings.ContainsAny(token, "\r\n") { // which the decoder of base64 would skip
		return h, "", nil, bad
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return h, "", nil, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
	if err != nil {
		return h, "", nil, bad
	}
	if h, err = parseHeader(b); err != nil || h.Type != Type {
		return h, "", nil, bad
	}
	sig, err = base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil {
		return h, "", nil, bad
	}
	return h, parts[0] + "." + parts[1], sig, nil
}

func claims(input string) (Claims, error) {
	var c Claims
	_, body, _ := strings.Cut(input, ".")
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || josejson.Unmarshal(b, &c) != nil {
		return c, fault.New(fault.TokenInvalid, "token")
	}
	return c, nil
}

// parseHeader refuses what it does not know: "crit", "jwk", "jku", "x5c" and their like are not understood, so not passed over. Names
// are compared case for case and none may stand twice (RFC 7515, 4 and 10.12).
func parseHeader(b []byte) (header, error) {
	var members map[string]josejson.RawMessage
	if err := josejson.Unmarshal(b, &members); err != nil {
		return header{}, err
	}
	var h header
	fields := map[string]*string{"alg": &h.Algorithm, "typ": &h.Type, "kid": &h.KeyID}
	for name, value := range members {
		field := fields[name]
		if field == nil {
			return header{}, fmt.Errorf("header member %q is not known", name)
		}
		if err := josejson.Unmarshal(value, field); err != nil {
			return header{}, err
		}
	}
	return h, nil
}

// EncodeSet makes the JWKS document; keys whose algorithm has no name in JWS are left out.
func EncodeSet(s Set) ([]byte, error) {
	out := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range s.Keys {
		spec, err := suite.Lookup(k.Algorithm)
		if err != nil {
			return nil, err
		}
		if spec.JWA == "" {
			continue
		}
		public, err := suite.ParsePublic(k.Algorithm, k.Public)
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, jose.JSONWebKey{Key: public, KeyID: k.ID, Algorithm: spec.JWA, Use: "sig"})
	}
	return json.Marshal(out)
}

// EncodeKey makes the JWK (RFC 7517) of a public key that RSA, ECDSA or Ed25519 is for. fault.AlgorithmForbidden for the others, whose form
// is not settled.
func EncodeKey(k Key) ([]byte, error) {
	spec, err := suite.Lookup(k.Algorithm)
	if err != nil {
		return nil, err
	}
	public, err := suite.ParsePublic(k.Algorithm, k.Public)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(jose.JSONWebKey{Key: public, KeyID: k.ID, Algorithm: spec.JWA})
	if err != nil {
		return nil, fault.New(fault.AlgorithmForbidden, "JWK of "+string(k.Algorithm)).WithHint("use its PEM form")
	}
	return b, nil
}

// ParseSet reads a JWKS document; keys that are not for tokens of a known algorithm are left out (RFC 7517, 5). fault.Invalid, also when
// two keys have one kid; TooLarge.
func ParseSet(b []byte) (Set, error) {
	if len(b) > maxSet {
		return Set{}, fault.New(fault.TooLarge, "JWKS")
	}
	var in struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &in); err != nil || in.Keys == nil {
		return Set{}, fault.New(fault.Invalid, "JWKS")
	}
	if len(in.Keys) > maxKeys {
		return Set{}, fault.New(fault.TooLarge, "JWKS").WithHint("at most %d keys", maxKeys)
	}
	var s Set
	for _, raw := range in.Keys {
		k, ok := parseKey(raw)
		if !ok {
			continue
		}
		if _, twice := s.Find(k.ID); twice {
			return Set{}, fault.New(fault.Invalid, "JWKS").WithHint("two keys have one kid")
		}
		s.Keys = append(s.Keys, k)
	}
	return s, nil
}

func parseKey(raw []byte) (Key, bool) {
	var k jose.JSONWebKey
	if k.UnmarshalJSON(raw) != nil || !k.IsPublic() || k.KeyID == "" || k.Use != "" && k.Use != "sig" {
		return Key{}, false
	}
	for _, spec := range suite.All() {
		if spec.JWA == "" || spec.JWA != k.Algorithm {
			continue
		}
		if public, err := suite.EncodePublic(spec.ID, k.Key); err == nil { // of several sizes of RSA one fits
			return Key{k.KeyID, spec.ID, public}, true
		}
	}
	return Key{}, false
}
