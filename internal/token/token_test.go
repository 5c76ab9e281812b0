package token_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/token"
)

var (
	now    = time.Unix(1_800_000_000, 0)
	expect = token.Expect{Issuer: "https://rotor", Audience: "b"}
	algs   = []suite.Algorithm{suite.Ed25519, suite.ES256, suite.ES384, suite.RS256}
)

func good() token.Claims {
	return token.Claims{
		Issuer: "https://rotor", Subject: "a", Audience: "b", IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: now.Unix() + 300, ID: "1", Scope: "x",
	}
}

// pair is a key that signs and its published half.
type pair struct {
	token.Key
	signer *suite.Signer
}

func newPair(t testing.TB, a suite.Algorithm, kid string) pair {
	t.Helper()
	m, public, err := suite.Generate(a)
	if err != nil {
		t.Fatal(err)
	}
	s, err := suite.NewSigner(a, m)
	if err != nil {
		t.Fatal(err)
	}
	return pair{token.Key{ID: kid, Algorithm: a, Public: public}, s}
}

func (p pair) issue(t testing.TB, c token.Claims) string {
	t.Helper()
	in, err := token.Input(p.Algorithm, p.ID, c)
	if err != nil {
		t.Fatal(err)
	}
	return p.sign(t, string(in))
}

func (p pair) sign(t testing.TB, input string) string {
	t.Helper()
	sig, err := p.signer.Sign([]byte(input))
	if err != nil {
		t.Fatal(err)
	}
	return token.Assemble([]byte(input), sig)
}

// raw signs any header over good claims: what a caller with the right to sign could make.
func (p pair) raw(t testing.TB, header string) string {
	t.Helper()
	body, err := json.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	return p.sign(t, b64(header)+"."+b64(string(body)))
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestIndependentReaderAndWriter(t *testing.T) {
	for _, a := range algs {
		t.Run(string(a), func(t *testing.T) {
			p := newPair(t, a, "k1")
			text := p.issue(t, good())
			doc, err := token.EncodeSet(token.Set{Keys: []token.Key{p.Key}})
			if err != nil {
				t.Fatal(err)
			}
			var set jose.JSONWebKeySet
			if err := json.Unmarshal(doc, &set); err != nil {
				t.Fatal(err)
			}
			if set.Keys[0].Use != "sig" || !set.Keys[0].Valid() || !set.Keys[0].IsPublic() {
				t.Fatalf("published key: %+v", set.Keys[0])
			}
			parsed, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(set.Keys[0].Algorithm)})
			if err != nil {
				t.Fatal(err)
			}
			var c jwt.Claims
			if err := parsed.Claims(set, &c); err != nil {
				t.Fatal(err)
			}
			if err := c.ValidateWithLeeway(jwt.Expected{Issuer: "https://rotor", Subject: "a", AnyAudience: jwt.Audience{"b"}, ID: "1", Time: now}, 0); err != nil {
				t.Fatal(err)
			}
			back, err := token.ParseSet(doc)
			if err != nil || len(back.Keys) != 1 || string(back.Keys[0].Public) != string(p.Public) {
				t.Fatalf("%+v, %v", back, err)
			}
			if got, err := token.Verify(now, text, back, expect); err != nil || got != good() {
				t.Fatalf("%+v, %v", got, err)
			}
		})
	}
}

func TestClaims(t *testing.T) {
	p := newPair(t, suite.Ed25519, "k1")
	set := token.Set{Keys: []token.Key{p.Key}}
	edit := func(f func(*token.Claims)) token.Claims { c := good(); f(&c); return c }
	for _, tt := range []struct {
		name string
		c    token.Claims
		want token.Expect
		code fault.Code
	}{
		{"good", good(), expect, ""},
		{"expires now", edit(func(c *token.Claims) { c.Expires = now.Unix() }), expect, fault.TokenExpired},
		{"expires in a second", edit(func(c *token.Claims) { c.Expires = now.Unix() + 1 }), expect, ""},
		{"no expiry", edit(func(c *token.Claims) { c.Expires = 0 }), expect, fault.TokenExpired},
		{"expiry below all numbers", edit(func(c *token.Claims) { c.Expires = -1 << 63 }), expect, fault.TokenExpired},
		{"expired within leeway", edit(func(c *token.Claims) { c.Expires = now.Unix() }), token.Expect{Issuer: expect.Issuer, Audience: "b", Leeway: time.Second}, ""},
		{"not yet valid", edit(func(c *token.Claims) { c.NotBefore = now.Unix() + 1 }), expect, fault.TokenNotYetValid},
		{"never valid", edit(func(c *token.Claims) { c.NotBefore = 1<<63 - 1 }), expect, fault.TokenNotYetValid},
		{"another audience", edit(func(c *token.Claims) { c.Audience = "c" }), expect, fault.TokenAudience},
		{"no audience wanted", edit(func(c *token.Claims) { c.Audience = "" }), token.Expect{Issuer: expect.Issuer}, fault.TokenAudience},
		{"another issuer", edit(func(c *token.Claims) { c.Issuer = "https://other" }), expect, fault.TokenInvalid},
	} {
		got, err := token.Verify(now, p.issue(t, tt.c), set, tt.want)
		if fault.CodeOf(err) != tt.code || err != nil && got != (token.Claims{}) {
			t.Errorf("%s: %+v, %v, want %q", tt.name, got, err, tt.code)
		}
	}
}

func TestHeaders(t *testing.T) {
	p, other := newPair(t, suite.ES256, "k1"), newPair(t, suite.Ed25519, "k2")
	set := token.Set{Keys: []token.Key{p.Key, other.Key}}
	ok := p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1"}`)
	if _, err := token.Verify(now, ok, set, expect); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(ok, ".")
	for _, tt := range []struct {
		name, text string
		code       fault.Code
	}{
		{"alg of another key", p.raw(t, `{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}`), fault.TokenAlgorithm},
		{"signed by one key, kid of another", p.raw(t, `{"alg":"EdDSA","typ":"at+jwt","kid":"k2"}`), fault.TokenInvalid},
		{"alg none", b64(`{"alg":"none","typ":"at+jwt","kid":"k1"}`) + "." + parts[1] + ".", fault.TokenAlgorithm},
		{"alg empty", p.raw(t, `{"alg":"","typ":"at+jwt","kid":"k1"}`), fault.TokenAlgorithm},
		{"HMAC with the public key", p.raw(t, `{"alg":"HS256","typ":"at+jwt","kid":"k1"}`), fault.TokenAlgorithm},
		{"unknown kid", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k3"}`), fault.UnknownKeyID},
		{"no kid", p.raw(t, `{"alg":"ES256","typ":"at+jwt"}`), fault.UnknownKeyID},
		{"typ JWT", p.raw(t, `{"alg":"ES256","typ":"JWT","kid":"k1"}`), fault.TokenInvalid},
		{"no typ", p.raw(t, `{"alg":"ES256","kid":"k1"}`), fault.TokenInvalid},
		{"crit", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1","crit":["exp"]}`), fault.TokenInvalid},
		{"b64 false", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1","b64":false,"crit":["b64"]}`), fault.TokenInvalid},
		{"jwk", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1","jwk":{"kty":"oct","k":"AA"}}`), fault.TokenInvalid},
		{"jku", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1","jku":"https://evil"}`), fault.TokenInvalid},
		{"x5c", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1","x5c":["AA"]}`), fault.TokenInvalid},
		{"x5u", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1","x5u":"https://evil"}`), fault.TokenInvalid},
		{"a member twice", p.raw(t, `{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"k1"}`), fault.TokenInvalid},
		{"names in capitals", p.raw(t, `{"ALG":"ES256","typ":"at+jwt","kid":"k1"}`), fault.TokenInvalid},
		{"something behind", p.raw(t, `{"alg":"ES256","typ":"at+jwt","kid":"k1"}{}`), fault.TokenInvalid},
		{"two signatures", ok + "." + parts[2], fault.TokenInvalid},
		{"JSON serialisation", `{"payload":"` + parts[1] + `","signatures":[]}`, fault.TokenInvalid},
		{"no signature", parts[0] + "." + parts[1] + ".", fault.TokenInvalid},
		{"signature cut", ok[:len(ok)-4], fault.TokenInvalid},
		{"padded", ok + "=", fault.TokenInvalid},
		{"huge", ok + strings.Repeat("A", 8<<10), fault.TokenInvalid},
		{"empty", "", fault.TokenInvalid},
	} {
		if got, err := token.Verify(now, tt.text, set, expect); fault.CodeOf(err) != tt.code || got != (token.Claims{}) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.code)
		}
	}
}

// TestEveryByteCounts changes each character of a token to another one of its alphabet.
func TestEveryByteCounts(t *testing.T) {
	p := newPair(t, suite.Ed25519, "k1")
	set := token.Set{Keys: []token.Key{p.Key}}
	text := p.issue(t, good())
	for i := range text {
		if text[i] == '.' {
			continue
		}
		b := []byte(text)
		b[i] = 'A'
		if text[i] == 'A' {
			b[i] = 'B'
		}
		if _, err := token.Verify(now, string(b), set, expect); err == nil {
			t.Fatalf("byte %d changed and the token is still good", i)
		}
	}
}

func TestSets(t *testing.T) {
	p := newPair(t, suite.Ed25519, "k1")
	doc, err := token.EncodeSet(token.Set{Keys: []token.Key{p.Key}})
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(doc, &set); err != nil {
		t.Fatal(err)
	}
	key := string(set.Keys[0])
	many := strings.TrimSuffix(strings.Repeat(key+",", 1025), ",")
	for _, tt := range []struct {
		name, doc string
		keys      int
		code      fault.Code
	}{
		{"one", fmt.Sprintf(`{"keys":[%s]}`, key), 1, ""},
		{"none", `{"keys":[]}`, 0, ""},
		{"unknown kinds beside it", fmt.Sprintf(`{"keys":[{"kty":"PQ","kid":"z"},%s,{"kty":"oct","k":"AAAA","kid":"s","alg":"HS256"},7]}`, key), 1, ""},
		{"for encryption", fmt.Sprintf(`{"keys":[%s]}`, strings.Replace(key, `"sig"`, `"enc"`, 1)), 0, ""},
		{"without kid", fmt.Sprintf(`{"keys":[%s]}`, strings.Replace(key, `"kid":"k1",`, ``, 1)), 0, ""},
		{"alg of another kind", fmt.Sprintf(`{"keys":[%s]}`, strings.Replace(key, `EdDSA`, `ES256`, 1)), 0, ""},
		{"kid twice", fmt.Sprintf(`{"keys":[%s,%s]}`, key, key), 0, fault.Invalid},
		{"too many", `{"keys":[` + many + `]}`, 0, fault.TooLarge},
		{"too large", `{"keys":[]}` + strings.Repeat(" ", 1<<20), 0, fault.TooLarge},
		{"no keys", `{}`, 0, fault.Invalid},
		{"no JSON", `<html>`, 0, fault.Invalid},
	} {
		got, err := token.ParseSet([]byte(tt.doc))
		if fault.CodeOf(err) != tt.code || len(got.Keys) != tt.keys {
			t.Errorf("%s: %d keys, %v", tt.name, len(got.Keys), err)
		}
	}
	if _, err := token.EncodeSet(token.Set{Keys: []token.Key{{ID: "x", Algorithm: suite.ES256, Public: p.Public}}}); fault.CodeOf(err) != fault.AlgorithmForbidden {
		t.Errorf("published under another algorithm: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	p := newPair(f, suite.Ed25519, "k1")
	set := token.Set{Keys: []token.Key{p.Key}}
	text := p.issue(f, good())
	f.Add(text)
	f.Add(p.raw(f, `{"alg":"EdDSA","typ":"at+jwt","kid":"k1","crit":[]}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := token.Verify(now, s, set, expect); err == nil && s != text {
			t.Fatal("forged")
		}
		if kid, err := token.KeyID(s); err != nil && fault.CodeOf(err) != fault.TokenInvalid {
			t.Fatalf("%q, %v", kid, err)
		}
	})
}

func FuzzParseSet(f *testing.F) {
	for _, a := range []suite.Algorithm{suite.Ed25519, suite.ES256} {
		doc, err := token.EncodeSet(token.Set{Keys: []token.Key{newPair(f, a, "k").Key}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add([]byte(`{"keys":[{"kty":"oct"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := token.ParseSet(b)
		if err != nil {
			return
		}
		doc, err := token.EncodeSet(s)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := token.ParseSet(doc)
		if err != nil || len(again.Keys) != len(s.Keys) {
			t.Fatalf("%d keys became %d, %v", len(s.Keys), len(again.Keys), err)
		}
	})
}
