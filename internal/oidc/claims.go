package oidc

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotorkms/rotor/internal/fault"
)

// KeysConfig says where the keys are that tokens are signed with. One of Discovery, Set and PEM has to be set.
type KeysConfig struct {
	Name      string         // for errors
	Discovery string         // URL of the issuer, whose configuration names the key set; https
	Set       string         // URL of a key set (RFC 7517); https
	PEM       []string       // public keys or certificates, any of which may have signed
	CAs       *x509.CertPool // that the servers are checked with; nil: the system's
	Bearer    string         // shown to the server, as Kubernetes wants it; "": nothing is
}

// Keys verifies the signatures of tokens, for whoever has rules of its own about their claims. Safe for concurrent use.
type Keys struct {
	issuer *Issuer // nil: the keys are fixed
	fixed  []crypto.PublicKey
}

// MaxPEM bounds the keys that are given in PEM.
const MaxPEM = 64

// NewKeys checks a configuration. Nothing is fetched. fault.Invalid.
func NewKeys(c KeysConfig) (*Keys, error) {
	bad := func(what, hint string) error { return fault.New(fault.Invalid, what).WithHint("%s", hint) }
	given := 0
	for _, is := range []bool{c.Discovery != "", c.Set != "", len(c.PEM) > 0} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, bad("keys", "one of a discovery URL, the URL of a key set, and public keys")
	case c.Discovery != "" && !secure(c.Discovery):
		return nil, bad("discovery URL", "an https:// URL")
	case c.Set != "" && !secure(c.Set):
		return nil, bad("key set's URL", "an https:// URL")
	case len(c.PEM) > MaxPEM:
		return nil, bad("public keys", "at most "+strconv.Itoa(MaxPEM))
	}
	if len(c.PEM) > 0 {
		return fixedKeys(c.PEM)
	}
	i := &Issuer{Config: Config{Name: c.Name, URL: c.Discovery, Keys: c.Set, Refresh: refreshEvery, Stale: maxStale}, http: client(c.CAs), bearer: c.Bearer}
	return &Keys{issuer: i}, nil
}

func fixedKeys(texts []string) (*Keys, error) {
	out := &Keys{}
	for _, text := range texts {
		b, rest := pem.Decode([]byte(text))
		if b == nil || len(strings.TrimSpace(string(rest))) > 0 {
			return nil, fault.New(fault.Invalid, "public key").WithHint("one block in PEM")
		}
		key, err := x509.ParsePKIXPublicKey(b.Bytes)
		switch b.Type {
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(b.Bytes); err == nil {
				key = c.PublicKey
			}
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(b.Bytes)
		}
		if err != nil || len(algorithms(key)) == 0 {
			return nil, fault.New(fault.Invalid, "public key").WithHint("RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519")
		}
		out.fixed = append(out.fixed, key)
	}
	return out, nil
}

// Claims are those of a token whose signature is right. Nothing else of it was checked.
type Claims map[string]json.RawMessage

// Verify checks the signature of a token and nothing else. algorithms, if there are any, are those that it may be made with. fault.TokenInvalid, UnknownKeyID,
// TokenAlgorithm, Unavailable.
func (k *Keys) Verify(ctx context.Context, now time.Time, token string, algorithms []string) (Claims, error) {
	h, claims, err := split(token)
	if err != nil {
		return nil, err
	}
	allowed := len(algorithms) == 0
	for _, a := range algorithms {
		allowed = allowed || a == h.Algorithm
	}
	if !allowed {
		return nil, fault.New(fault.TokenAlgorithm, "token")
	}
	if k.issuer != nil {
		key, err := k.issuer.key(ctx, now, h.KeyID)
		if err != nil {
			return nil, err
		}
		return claims, verify(token, h, key)
	}
	failed := fault.New(fault.TokenAlgorithm, "token")
	for _, key := range k.fixed {
		err := verify(token, h, jose.JSONWebKey{Key: key})
		if err == nil {
			return claims, nil
		}
		if fault.CodeOf(err) == fault.TokenInvalid { // a key of that algorithm, but not the one
			failed = fault.New(fault.TokenInvalid, "token").WithHint("its signature is of none of the keys")
		}
	}
	return nil, failed
}

// Close lets go of the connections to the server of the keys.
func (k *Keys) Close() {
	if k.issuer != nil {
		k.issuer.Close()
	}
}

// Text is a claim that is a text; "" for none. fault.TokenInvalid.
func (c Claims) Text(name string) (string, error) { return text(c, name) }

// Moment is a claim that is a time. fault.TokenInvalid.
func (c Claims) Moment(name string) (t time.Time, there bool, err error) { return moment(c, name) }

// Audiences are those that the token is made out to. fault.TokenInvalid.
func (c Claims) Audiences() ([]string, error) { return audiences(c) }

// maxValues bounds the list of a claim.
const maxValues = 256

// Values are the claim at a path, by its name or as JSON Pointer (RFC 6901): one text, or the texts of a list. Whole numbers and truth values are told as
// text. There is false for a path that leads nowhere. fault.TokenInvalid for what is neither.
func (c Claims) Values(path string) (values []string, there bool, err error) {
	raw, there, err := member(c, path)
	if err != nil || !there {
		return nil, false, err
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		list = []json.RawMessage{raw}
	}
	if len(list) > maxValues {
		return nil, true, bad("a claim has too many values")
	}
	for _, e := range list {
		s, err := scalar(e)
		if err != nil {
			return nil, true, err
		}
		values = append(values, s)
	}
	return values, true, nil
}
