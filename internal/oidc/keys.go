package oidc

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of a key set and of its keys.
const (
	maxSet  = 1 << 20 // bytes
	maxKeys = 256
	minRSA  = 2048 // bits
	maxRSA  = 8192
)

// algorithms are what a key can sign with (RFC 7518, 3.1; RFC 8037, 3.1). Nothing is symmetric, and "none" is none.
func algorithms(key any) []jose.SignatureAlgorithm {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA || k.E < 3 {
			return nil
		}
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []jose.SignatureAlgorithm{jose.ES256}
		case elliptic.P384():
			return []jose.SignatureAlgorithm{jose.ES384}
		case elliptic.P521():
			return []jose.SignatureAlgorithm{jose.ES512}
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}
	}
	return nil
}

// parseSet reads a key set; keys that sign nothing are left out (RFC 7517, 5). fault.Invalid, also when two keys have one kid; TooLarge.
func parseSet(b []byte) (map[string]jose.JSONWebKey, error) {
	if len(b) > maxSet {
		return nil, fault.New(fault.TooLarge, "JWKS")
	}
	var in struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &in); err != nil || in.Keys == nil {
		return nil, fault.New(fault.Invalid, "JWKS").WithHint("the issuer's key set does not parse")
	}
	if len(in.Keys) > maxKeys {
		return nil, fault.New(fault.TooLarge, "JWKS").WithHint("at most %d keys", maxKeys)
	}
	out := map[string]jose.JSONWebKey{}
	for _, raw := range in.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || !k.IsPublic() || !k.Valid() || k.Use != "" && k.Use != "sig" || len(algorithms(k.Key)) == 0 {
			continue
		}
		if _, twice := out[k.KeyID]; twice {
			return nil, fault.New(fault.Invalid, "JWKS").WithHint("two keys have one kid")
		}
		out[k.KeyID] = k
	}
	return out, nil
}
