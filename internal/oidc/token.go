// Package oidc verifies JSON Web Tokens that foreign issuers signed (RFC 7519, OpenID Connect Core 1.0): Kubernetes, CI systems and other
// identity providers. It fetches an issuer's keys over TLS (OpenID Connect Discovery
// 1.0), keeps them for a bounded time, and believes a token only if its algorithm is one of the key that signed it.
package oidc

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"

	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of foreign bytes.
const (
	MaxToken   = 16 << 10
	maxSubject = 512
	maxText    = 512 // of a claim that becomes an attribute
	maxPath    = 8   // members of a claim's path
)

// header is what counts of a token's header. "crit" demands what is not understood; keys that a token brings along are not looked at.
type header struct {
	Algorithm string          `json:"alg"`
	KeyID     string          `json:"kid"`
	Critical  json.RawMessage `json:"crit"`
}

// bad is the one answer to a token that is malformed or whose signature is wrong.
func bad(why string) error { return fault.New(fault.TokenInvalid, "token").WithHint("%s", why) }

// split reads a token in compact form (RFC 7515, 7.1) without believing anything of it.
func split(token string) (h header, claims map[string]json.RawMessage, err error) {
	if len(token) > MaxToken {
		return h, nil, fault.New(fault.TooLarge, "token").WithHint("at most %d bytes", MaxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || strings.ContainsAny(token, "\r\n") {
		return h, nil, bad("it is no JSON Web Signature in compact form")
	}
	members, err := object(parts[0])
	if err != nil {
		return h, nil, bad("its header does not parse")
	}
	for name, to := range map[string]*string{"alg": &h.Algorithm, "kid": &h.KeyID} {
		if raw, there := members[name]; there && json.Unmarshal(raw, to) != nil {
			return h, nil, bad("its header does not parse")
		}
	}
	if _, there := members["crit"]; there {
		return h, nil, bad("its header demands extensions")
	}
	if _, there := members["b64"]; there {
		return h, nil, bad("its header demands extensions")
	}
	if claims, err = object(parts[1]); err != nil {
		return h, nil, bad("its claims do not parse")
	}
	return h, claims, nil
}

// object decodes a JSON object in base64url, in which no member stands twice and names are compared case for case (RFC 7519, 4).
func object(part string) (map[string]json.RawMessage, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("decode: no UTF-8")
	}
	var raw map[string]josejson.RawMessage
	if err := josejson.Unmarshal(b, &raw); err != nil || raw == nil {
		return nil, fmt.Errorf("decode: no object: %w", err)
	}
	out := make(map[string]json.RawMessage, len(raw))
	for name, value := range raw {
		out[name] = json.RawMessage(value)
	}
	return out, nil
}

// text reads a claim that is a string, and "" for none.
func text(claims map[string]json.RawMessage, name string) (string, error) {
	raw, there := claims[name]
	if !there {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", bad("claim " + name + " is no text")
	}
	return s, nil
}

// moment reads a claim that is a NumericDate (RFC 7519, 2).
func moment(claims map[string]json.RawMessage, name string) (t time.Time, there bool, err error) {
	raw, there := claims[name]
	if !there {
		return t, false, nil
	}
	var n float64
	if err := json.Unmarshal(raw, &n); err != nil || n < 0 || n > 1<<36 || math.IsNaN(n) {
		return t, true, bad("claim " + name + " is no time")
	}
	whole, part := math.Modf(n)
	return time.Unix(int64(whole), int64(part*1e9)), true, nil
}

// audiences reads "aud": one text or a list of them (RFC 7519, 4.1.3).
func audiences(claims map[string]json.RawMessage) ([]string, error) {
	raw, there := claims["aud"]
	if !there {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, bad("claim aud is no text and no list of texts")
	}
	return list, nil
}

// claim reads the claim at a path of members, as "/kubernetes.io/namespace" (JSON Pointer, RFC 6901), or by its name alone. Only texts, truth
// values and whole numbers are claims that an attribute can have; there is false for a path that leads nowhere.
func claim(claims map[string]json.RawMessage, path string) (value string, there bool, err error) {
	raw, there, err := member(claims, path)
	if err != nil || !there {
		return "", false, err
	}
	value, err = scalar(raw)
	return value, err == nil, err
}

// member follows the path of a claim. null is not there.
func member(claims map[string]json.RawMessage, path string) (raw json.RawMessage, there bool, err error) {
	names := []string{path}
	if strings.HasPrefix(path, "/") {
		names = strings.Split(path[1:], "/")
	}
	if len(names) > maxPath {
		return nil, false, fault.New(fault.Invalid, "claim "+path)
	}
	for i, name := range names {
		name = strings.ReplaceAll(strings.ReplaceAll(name, "~1", "/"), "~0", "~")
		raw, ok := claims[name]
		if !ok || string(raw) == "null" {
			return nil, false, nil
		}
		if i == len(names)-1 {
			return raw, true, nil
		}
		var next map[string]josejson.RawMessage
		if err := josejson.Unmarshal(raw, &next); err != nil {
			return nil, false, nil //nolint:nilerr // no object: the path leads nowhere
		}
		claims = make(map[string]json.RawMessage, len(next))
		for name, value := range next {
			claims[name] = json.RawMessage(value)
		}
	}
	return nil, false, nil
}

func scalar(raw json.RawMessage) (string, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", bad("a claim does not parse")
	}
	switch v := v.(type) {
	case string:
		if len(v) > maxText {
			return "", bad(fmt.Sprintf("a claim is longer than %d bytes", maxText))
		}
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return strconv.FormatInt(n, 10), nil
		}
	}
	return "", bad("a claim that an attribute is made of is no text, truth value or whole number")
}

// verify checks the signature with a key, whose kind decides which algorithms there are.
func verify(token string, h header, k jose.JSONWebKey) error {
	allowed := algorithms(k.Key)
	named := jose.SignatureAlgorithm(h.Algorithm)
	ok := false
	for _, a := range allowed {
		ok = ok || a == named && (k.Algorithm == "" || k.Algorithm == h.Algorithm)
	}
	if !ok {
		return fault.New(fault.TokenAlgorithm, "token")
	}
	s, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{named})
	if err != nil {
		return bad("it is no JSON Web Signature in compact form")
	}
	if _, err := s.Verify(k.Key); err != nil {
		return bad("its signature is wrong")
	}
	return nil
}
