package token_test

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/token"
)

var updateVectors = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../../spec/vectors/tokens.json"

type tokenVectors struct {
	Comment  string          `json:"comment"`
	JWKS     json.RawMessage `json:"jwks"`
	Issuer   string          `json:"issuer"`
	Audience string          `json:"audience"`
	Cases    []tokenVector   `json:"cases"`
}

type tokenVector struct {
	Name   string        `json:"name"`
	Token  string        `json:"token"`
	Now    int64         `json:"now"`
	Claims *token.Claims `json:"claims,omitempty"`
	Error  string        `json:"error,omitempty"`
}

const issued = 1767225600

func makeTokenVectors(t *testing.T) tokenVectors {
	out := tokenVectors{Comment: "spec/token.md. The private keys were made for the vectors and forgotten.", Issuer: "https://rotor.example:7420", Audience: "inference"}
	claims := token.Claims{Issuer: out.Issuer, Subject: "spiffe://rotor.example/instance/worker-7", Audience: "inference", IssuedAt: issued, NotBefore: issued, Expires: issued + 300, ID: "000102", Scope: "read write"}
	var set token.Set
	signers := map[suite.Algorithm]*suite.Signer{}
	for _, a := range []suite.Algorithm{suite.Ed25519, suite.ES256, suite.ES384, suite.RS256} {
		material, public, err := suite.Generate(a)
		if err != nil {
			t.Fatal(err)
		}
		if signers[a], err = suite.NewSigner(a, material); err != nil {
			t.Fatal(err)
		}
		set.Keys = append(set.Keys, token.Key{ID: "default-" + string(a), Algorithm: a, Public: public})
	}
	jwks, err := token.EncodeSet(set)
	if err != nil {
		t.Fatal(err)
	}
	out.JWKS = jwks
	raw := func(a suite.Algorithm, header, body string) string {
		input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(body))
		sig, err := signers[a].Sign([]byte(input))
		if err != nil {
			t.Fatal(err)
		}
		return token.Assemble([]byte(input), sig)
	}
	sign := func(a suite.Algorithm, kid string, c token.Claims) string {
		input, err := token.Input(a, kid, c)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := signers[a].Sign(input)
		if err != nil {
			t.Fatal(err)
		}
		return token.Assemble(input, sig)
	}
	good := func(name, tok string, now int64, c token.Claims) {
		out.Cases = append(out.Cases, tokenVector{Name: name, Token: tok, Now: now, Claims: &c})
	}
	bad := func(name, tok string, now int64, code fault.Code) {
		out.Cases = append(out.Cases, tokenVector{Name: name, Token: tok, Now: now, Error: string(code)})
	}
	for _, k := range set.Keys {
		tok := sign(k.Algorithm, k.ID, claims)
		good(string(k.Algorithm), tok, issued+10, claims)
		last := tok[len(tok)-10]
		bad(string(k.Algorithm)+", signature changed", tok[:len(tok)-10]+swap(last)+tok[len(tok)-9:], issued+10, fault.TokenInvalid)
	}
	ed := set.Keys[0].ID
	tok := sign(suite.Ed25519, ed, claims)
	good("first second", tok, issued, claims)
	good("last second", tok, issued+299, claims)
	bad("not yet valid", tok, issued-1, fault.TokenNotYetValid)
	bad("expired", tok, issued+300, fault.TokenExpired)
	other := claims
	other.Audience = "training"
	bad("other audience", sign(suite.Ed25519, ed, other), issued, fault.TokenAudience)
	other = claims
	other.Issuer = "https://other.example"
	bad("other issuer", sign(suite.Ed25519, ed, other), issued, fault.TokenInvalid)
	bad("unknown kid", sign(suite.Ed25519, "default-00000000", claims), issued, fault.UnknownKeyID)
	bad("another algorithm than the key's", sign(suite.ES256, ed, claims), issued, fault.TokenAlgorithm)
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	b := string(body)
	bad("alg none", raw(suite.Ed25519, `{"alg":"none","typ":"at+jwt","kid":"`+ed+`"}`, b), issued, fault.TokenAlgorithm)
	bad("alg HS256", raw(suite.Ed25519, `{"alg":"HS256","typ":"at+jwt","kid":"`+ed+`"}`, b), issued, fault.TokenAlgorithm)
	bad("typ JWT", raw(suite.Ed25519, `{"alg":"EdDSA","typ":"JWT","kid":"`+ed+`"}`, b), issued, fault.TokenInvalid)
	bad("crit", raw(suite.Ed25519, `{"alg":"EdDSA","typ":"at+jwt","kid":"`+ed+`","crit":["x"]}`, b), issued, fault.TokenInvalid)
	bad("jwk in the header", raw(suite.Ed25519, `{"alg":"EdDSA","typ":"at+jwt","kid":"`+ed+`","jwk":{}}`, b), issued, fault.TokenInvalid)
	bad("aud is a list", raw(suite.Ed25519, `{"alg":"EdDSA","typ":"at+jwt","kid":"`+ed+`"}`, strings.Replace(b, `"inference"`, `["inference"]`, 1)), issued, fault.TokenInvalid)
	bad("exp is text", raw(suite.Ed25519, `{"alg":"EdDSA","typ":"at+jwt","kid":"`+ed+`"}`, strings.Replace(b, `"exp":1767225900`, `"exp":"1767225900"`, 1)), issued, fault.TokenInvalid)
	bad("bytes after the header", raw(suite.Ed25519, `{"alg":"EdDSA","typ":"at+jwt","kid":"`+ed+`"}{}`, b), issued, fault.TokenInvalid)
	bad("a name twice in the header", raw(suite.Ed25519, `{"alg":"none","alg":"EdDSA","typ":"at+jwt","kid":"`+ed+`"}`, b), issued, fault.TokenInvalid)
	bad("name in another case", raw(suite.Ed25519, `{"ALG":"EdDSA","typ":"at+jwt","kid":"`+ed+`"}`, b), issued, fault.TokenInvalid)
	bad("two parts", strings.Join(strings.Split(tok, ".")[:2], "."), issued, fault.TokenInvalid)
	bad("four parts", tok+".", issued, fault.TokenInvalid)
	bad("padding", tok+"=", issued, fault.TokenInvalid)
	bad("line end in the signature", tok+"\n", issued, fault.TokenInvalid)
	bad("empty", "", issued, fault.TokenInvalid)
	bad("too long", tok+strings.Repeat("A", 8192), issued, fault.TokenInvalid)
	return out
}

func swap(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func TestTokenVectors(t *testing.T) {
	if *updateVectors {
		b, err := json.MarshalIndent(makeTokenVectors(t), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var all tokenVectors
	if err := json.Unmarshal(b, &all); err != nil || len(all.Cases) < 25 {
		t.Fatalf("%d cases, %v", len(all.Cases), err)
	}
	set, err := token.ParseSet(all.JWKS)
	if err != nil || len(set.Keys) != 4 {
		t.Fatalf("%d keys, %v", len(set.Keys), err)
	}
	for _, c := range all.Cases {
		got, err := token.Verify(time.Unix(c.Now, 0), c.Token, set, token.Expect{Issuer: all.Issuer, Audience: all.Audience})
		if string(fault.CodeOf(err)) != c.Error || c.Claims != nil && got != *c.Claims {
			t.Errorf("%s: %+v, %v, want %s", c.Name, got, err, c.Error)
		}
	}
}
