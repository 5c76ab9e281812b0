// Package token is access tokens: JSON Web Signatures in compact form (RFC 7515, RFC 9068) and the key sets that verify them
// (RFC 7517, RFC 8037). It is pure; the issuer signs, the SDK fetches key sets. Profile: spec/tokens.md.
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

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds of foreign bytes.
const (
	maxToken = 8 << 10
	maxSet   = 1 << 20
	maxKeys  = 64
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
	if err != nil {
		return Claims{}, err
	}
	return c, c.check(now, want)
}

func (c Claims) check(now time.Time, want Expect) error {
	switch {
	case !now.Add(-want.Leeway).Before(time.Unix(c.Expires, 0)):
		return fault.New(fault.TokenExpired, "token")
	case now.Add(want.Leeway).Before(time.Unix(c.NotBefore, 0)):
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
	if len(token) > maxToken {
		return h, "", nil, bad
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return h, "", nil, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
	if err != nil || strict(b, &h) != nil || h.Type != Type {
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
	if err != nil || json.Unmarshal(b, &c) != nil {
		return c, fault.New(fault.TokenInvalid, "token")
	}
	return c, nil
}

// strict refuses unknown header members: "crit", "jwk", "jku" and their like are not understood, so not passed over.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// EncodeSet makes the JWKS document.
func EncodeSet(s Set) ([]byte, error) {
	out := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range s.Keys {
		spec, err := suite.Lookup(k.Algorithm)
		if err != nil {
			return nil, err
		}
		public, err := suite.ParsePublic(k.Algorithm, k.Public)
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, jose.JSONWebKey{Key: public, KeyID: k.ID, Algorithm: spec.JWA, Use: "sig"})
	}
	return json.Marshal(out)
}

// ParseSet reads a JWKS document; keys that are not for tokens of a known algorithm are left out. fault.Invalid, TooLarge.
func ParseSet(b []byte) (Set, error) {
	if len(b) > maxSet {
		return Set{}, fault.New(fault.TooLarge, "JWKS")
	}
	var in jose.JSONWebKeySet
	if err := json.Unmarshal(b, &in); err != nil {
		return Set{}, fault.New(fault.Invalid, "JWKS")
	}
	if len(in.Keys) > maxKeys {
		return Set{}, fault.New(fault.TooLarge, "JWKS")
	}
	var s Set
	for _, k := range in.Keys {
		for _, spec := range suite.All() {
			if spec.JWA == "" || spec.JWA != k.Algorithm || !k.IsPublic() {
				continue
			}
			public, err := suite.EncodePublic(spec.ID, k.Key)
			if err == nil && k.KeyID != "" {
				s.Keys = append(s.Keys, Key{k.KeyID, spec.ID, public})
			}
		}
	}
	return s, nil
}
