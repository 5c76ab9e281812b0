package oidc_test

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/oidc"
)

// TestKeys: keys in PEM verify what one of them signed, with an algorithm of its own and of those that are wanted, and nothing else is looked at.
func TestKeys(t *testing.T) {
	p := newIDP(t)
	one, two, stranger := ec(t, elliptic.P256()), rsaKey(t, 2048), ec(t, elliptic.P256())
	var texts []string
	for _, key := range []any{one.Public(), two.Public()} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	k, err := oidc.NewKeys(oidc.KeysConfig{PEM: texts})
	if err != nil {
		t.Fatal(err)
	}
	claims := p.claims(map[string]any{"exp": 1, "groups": []string{"a", "b"}, "deep": map[string]any{"x/y": 7}})
	for what, c := range map[string]struct {
		token string
		algs  []string
		code  fault.Code
	}{
		"the first":         {sign(t, jose.ES256, "", one, claims), nil, ""},
		"the second":        {sign(t, jose.PS256, "any", two, claims), []string{"PS256"}, ""},
		"another algorithm": {sign(t, jose.RS256, "", two, claims), []string{"PS256"}, fault.TokenAlgorithm},
		"another key":       {sign(t, jose.ES256, "", stranger, claims), nil, fault.TokenInvalid},
		"no token":          {"x.y", nil, fault.TokenInvalid},
	} {
		got, err := k.Verify(t.Context(), now, c.token, c.algs)
		wants(t, what, err, c.code)
		if c.code != "" {
			continue
		}
		groups, there, err := got.Values("groups")
		if err != nil || !there || !slices.Equal(groups, []string{"a", "b"}) {
			t.Errorf("%s: %v, %t, %v", what, groups, there, err)
		}
		if deep, _, err := got.Values("/deep/x~1y"); err != nil || !slices.Equal(deep, []string{"7"}) {
			t.Errorf("%s: %v, %v", what, deep, err)
		}
		if _, there, err := got.Values("none"); there || err != nil {
			t.Errorf("%s: %t, %v", what, there, err)
		}
		_, _, err = got.Values("deep")
		wants(t, "an object", err, fault.TokenInvalid)
	}
	for what, c := range map[string]oidc.KeysConfig{
		"nothing": {}, "two": {Set: "https://a.example", PEM: texts}, "no TLS": {Set: "http://a.example"}, "no PEM": {PEM: []string{"x"}}, "two blocks": {PEM: []string{texts[0] + texts[1]}},
		"many": {PEM: slices.Repeat(texts, 40)}, "a discovery without TLS": {Discovery: "file:///etc/passwd"},
	} {
		_, err := oidc.NewKeys(c)
		wants(t, what, err, fault.Invalid)
	}
}
