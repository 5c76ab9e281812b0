package server_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/wire/vault"
)

// badInput is a request with which something is wrong, and its answer.
type badInput struct {
	what, method, path string
	body               any    // "$NAME" stands for what badWorld has made
	token              string // name of one that badWorld has made; "": the client's
	status             int
	text               string // of the errors
	known              string // why Vault answers otherwise; "": it does not
}

// badKeys are those of a badWorld, with what they were made of.
var badKeys = map[string]m{
	"k": nil, "other": nil, "d": {"derived": true}, "c": {"derived": true, "convergent_encryption": true}, "ed": {"type": "ed25519"}, "h": {"type": "hmac", "key_size": 32}, "rsa": {"type": "rsa-2048"},
}

// badWorld are keys, and what was made with them, at rotor or at a true Vault.
type badWorld struct {
	client *vaultClient
	kept   map[string]string
	tokens map[string]string
}

func newBadWorld(c *vaultClient) *badWorld {
	stays := *c.http
	stays.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	one := *c
	one.http, one.header = &stays, http.Header{}
	b := &badWorld{&one, map[string]string{}, map[string]string{}}
	for name, body := range badKeys {
		c.must("POST", "transit/keys/"+name, body)
	}
	keep := func(name, path, member string, body m) {
		b.kept[name] = c.must("POST", "transit/"+path, body).str(member)
	}
	keep("old", "encrypt/k", "ciphertext", m{"plaintext": b64("old")})
	c.must("POST", "transit/keys/k/rotate", nil)
	keep("new", "encrypt/k", "ciphertext", m{"plaintext": b64("new")})
	keep("another", "encrypt/other", "ciphertext", m{"plaintext": b64("another")})
	keep("derived", "encrypt/d", "ciphertext", m{"plaintext": b64("derived"), "context": b64("c")})
	keep("signature", "sign/ed", "signature", m{"input": b64("signed")})
	keep("hmac", "hmac/h", "hmac", m{"input": b64("summed")})
	c.must("POST", "transit/keys/floor", nil)
	keep("low", "encrypt/floor", "ciphertext", m{"plaintext": b64("low")})
	keep("lowsum", "hmac/floor", "hmac", m{"input": b64("low")})
	c.must("POST", "transit/keys/floor/rotate", nil)
	c.must("POST", "transit/keys/floor/config", m{"min_decryption_version": 2})
	b.kept["zero"], b.kept["beyond"] = strings.Replace(b.kept["old"], "v1:", "v0:", 1), strings.Replace(b.kept["old"], "v1:", "v3:", 1)
	b.kept["cut"], b.kept["short"] = b.kept["old"][:len(b.kept["old"])-8], b.kept["old"][:13]
	b.tokens["revoked"] = b.made(m{})
	c.must("POST", "auth/token/revoke", m{"token": b.tokens["revoked"]})
	b.tokens["used up"] = b.made(m{"num_uses": 1})
	used := *c
	used.token = b.tokens["used up"]
	used.must("GET", "auth/token/lookup-self", nil)
	used.header = http.Header{"X-Vault-Wrap-Ttl": {"5m"}}
	used.token = c.token
	for _, name := range []string{"wrapping", "opened"} {
		info, _ := used.must("GET", "transit/keys/k", nil).body["wrap_info"].(map[string]any)
		b.tokens[name], _ = info["token"].(string)
	}
	used.header, used.token = http.Header{}, b.tokens["opened"]
	used.must("POST", "sys/wrapping/unwrap", nil)
	return b
}

// made is a token with every right.
func (b *badWorld) made(more m) string {
	more["policies"], more["no_parent"] = "root", true
	return fmt.Sprint(b.client.must("POST", "auth/token/create", more).auth("client_token"))
}

// ask sends one.
func (b *badWorld) ask(in badInput) answer {
	b.client.t.Helper()
	c := *b.client
	if in.token != "" {
		c.token = b.tokens[in.token]
	}
	if _, raw := in.body.([]byte); raw || in.body == nil {
		return c.do(in.method, in.path, in.body)
	}
	text, err := json.Marshal(in.body)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, value := range b.kept {
		text = []byte(strings.ReplaceAll(string(text), `"$`+name+`"`, `"`+value+`"`))
	}
	return c.do(in.method, in.path, text)
}

// state is everything that can be lost, but for how often versions were used.
func (b *badWorld) state() string {
	b.client.t.Helper()
	out := fmt.Sprint(b.client.must("LIST", "transit/keys", nil).members()["keys"])
	for _, name := range slices.Sorted(maps.Keys(badKeys)) {
		data := b.client.must("GET", "transit/keys/"+name, nil).members()
		for _, v := range asMap(data["versions"]) {
			for _, count := range []string{"use_count", "protect_count", "process_count", "last_protected", "last_processed"} {
				delete(asMap(v), count)
			}
		}
		text, _ := json.Marshal(data) // it was JSON
		out += "\n" + string(text)
	}
	return out
}

func asMap(v any) map[string]any { out, _ := v.(map[string]any); return out }

// opens uses all that was made.
func (b *badWorld) opens() {
	b.client.t.Helper()
	for name, body := range map[string]m{"old": {}, "new": {}, "another": {}, "derived": {"context": b64("c")}} {
		key := map[string]string{"another": "other", "derived": "d"}[name]
		if key == "" {
			key = "k"
		}
		body["ciphertext"] = b.kept[name]
		if a := b.client.must("POST", "transit/decrypt/"+key, body); a.str("plaintext") != b64(name) {
			b.client.t.Errorf("%s: %s", name, a.text)
		}
	}
	for path, body := range map[string]m{"ed": {"input": b64("signed"), "signature": b.kept["signature"]}, "h": {"input": b64("summed"), "hmac": b.kept["hmac"]}} {
		if a := b.client.must("POST", "transit/verify/"+path, body); a.str("valid") != "true" {
			b.client.t.Errorf("%s: %s", path, a.text)
		}
	}
}

// badInputs is what can be wrong.
func badInputs() []badInput {
	return slices.Concat(badTexts(), badBodies(), badNames(), badKinds(), badMoves(), badTokens())
}

// adding collects some.
type adding []badInput

func (all *adding) add(what, method, path string, body any, status int, text, known string) {
	*all = append(*all, badInput{what, method, path, body, "", status, text, known})
}

func badTexts() (all adding) {
	add, decrypt := all.add, func(what string, body m, status int, text, known string) {
		all.add(what, "POST", "transit/decrypt/k", body, status, text, known)
	}
	decrypt("another key's ciphertext", m{"ciphertext": "$another"}, 400, "cipher: message authentication failed", "")
	decrypt("version 0", m{"ciphertext": "$zero"}, 200, "", "")
	decrypt("a version beyond the last", m{"ciphertext": "$beyond"}, 400, "invalid ciphertext: version is too new", "")
	add("a version below the floor", "POST", "transit/decrypt/floor", m{"ciphertext": "$low"}, 400, "ciphertext or signature version is disallowed by policy (too old)", "")
	add("an HMAC below the floor", "POST", "transit/verify/floor", m{"input": b64("low"), "hmac": "$lowsum"}, 400, "cannot verify HMAC: version is too old (disallowed by policy)", "")
	add("an HMAC by a version below the floor", "POST", "transit/hmac/floor", m{"input": "", "key_version": 1}, 400, "no such key version", "")
	decrypt("a version that is no number", m{"ciphertext": "vault:v1x:AAAA"}, 400, "invalid ciphertext: version number could not be decoded", "")
	decrypt("a version of 100 digits", m{"ciphertext": "vault:v" + strings.Repeat("9", 100) + ":AAAA"}, 400, "invalid ciphertext: version number could not be decoded", "")
	decrypt("cut", m{"ciphertext": "$cut"}, 400, "cipher: message authentication failed", "")
	decrypt("cut before the tag", m{"ciphertext": "$short"}, 400, "invalid ciphertext length", "")
	decrypt("nothing behind the version", m{"ciphertext": "vault:v1:"}, 400, "invalid ciphertext length", "")
	decrypt("no base64", m{"ciphertext": "vault:v1:%%%%"}, 400, "invalid ciphertext: could not decode base64", "")
	decrypt("base64 for URLs", m{"ciphertext": "vault:v1:____----"}, 400, "invalid ciphertext: could not decode base64", "")
	decrypt("no ciphertext", m{}, 400, "missing ciphertext to decrypt", "")
	decrypt("an empty ciphertext", m{"ciphertext": ""}, 400, "missing ciphertext to decrypt", "")
	decrypt("a number", m{"ciphertext": 7}, 400, `Field validation failed: error converting input number for field "ciphertext"`, "text is text")
	decrypt("associated data that was not there", m{"ciphertext": "$old", "associated_data": "YQ=="}, 400, "cipher: message authentication failed", "")
	decrypt("items of which one is another's", m{"batch_input": []m{{"ciphertext": "$old"}, {"ciphertext": "$another"}}}, 400, "", "")
	add("rewrap of another's", "POST", "transit/rewrap/k", m{"ciphertext": "$another"}, 400, "cipher: message authentication failed", "")
	return all
}

func badBodies() (all adding) {
	add := all.add
	add("a plaintext that is no base64", "POST", "transit/encrypt/k", m{"plaintext": "%"}, 400, "illegal base64 data at input byte 0", "")
	add("no plaintext", "POST", "transit/encrypt/k", m{}, 400, "missing plaintext to encrypt", "")
	add("a version that is not there", "POST", "transit/encrypt/k", m{"plaintext": "", "key_version": 9}, 400, "requested version for encryption is higher than the latest key version", "")
	add("no JSON", "POST", "transit/encrypt/k", []byte(`{"plaintext":`), 400, "error parsing JSON: failed to parse JSON input: unexpected end of JSON input", "it says what of it is none")
	add("a list for a body", "POST", "transit/encrypt/k", []byte(`[]`), 400, "error parsing JSON: failed to parse JSON input: expected an object", "it says what of it is none")
	add("no context", "POST", "transit/encrypt/d", m{"plaintext": ""}, 400, "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key", "")
	add("no context to decrypt", "POST", "transit/decrypt/d", m{"ciphertext": "$derived"}, 400, "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key", "")
	add("another context", "POST", "transit/decrypt/d", m{"ciphertext": "$derived", "context": "ZA=="}, 400, "cipher: message authentication failed", "")
	add("a context that is no base64", "POST", "transit/encrypt/d", m{"plaintext": "", "context": "%"}, 400, "illegal base64 data at input byte 0", "")
	add("a context in half of a batch", "POST", "transit/encrypt/d", m{"batch_input": []m{{"plaintext": "", "context": "Yw=="}, {"plaintext": ""}}}, 400, "context should be set either in all the request blocks or in none", "")
	add("a context in half of a batch to decrypt", "POST", "transit/decrypt/d", m{"batch_input": []m{{"ciphertext": "$derived", "context": "Yw=="}, {"ciphertext": "$derived"}}}, 400, "context should be set either in all the request blocks or in none", "")
	add("a batch without items", "POST", "transit/encrypt/k", m{"batch_input": []m{}}, 400, "missing batch input to process", "")
	add("a batch that is no list", "POST", "transit/encrypt/k", m{"batch_input": "x"}, 400, `Field validation failed: error converting input string for field "batch_input"`, "in other words")
	add("100,000 items", "POST", "transit/encrypt/k", m{"batch_input": many(100_000)}, 400, "error parsing JSON: failed to parse JSON input: JSON array or object exceeds allowed element count: at most 10000", "limits.md")
	add("32 MiB and a byte", "POST", "transit/encrypt/k", make([]byte, vault.MaxBody+1), 413, "error parsing JSON: failed to parse JSON input: http: request body too large", "the words of a newer Vault, which says so")
	return all
}

// badNames are names that no key has, however they are spelt.
func badNames() (all adding) {
	const unsupported = "1 error occurred:\n\t* unsupported path\n\n"
	for name, known := range map[string]string{
		"a/b": "", "a%2Fb": "", "a%252Fb": "", "%2e%2e": "", "%252e%252e": "", "..%2Fk": "", "k%2F..%2Fother": "", "%C3%A4": "", "%25C3%25A4": "", "a%20b": "", "-a": "", "a.": "", "a%3Bb": "",
		"a%00": "400 and nothing", "a%0A": "400 and nothing", "%E2%80%AEa": "400 and nothing", strings.Repeat("a", 300): "it is one",
	} {
		all.add("a key called "+name, "POST", "transit/keys/"+name, m{}, 404, unsupported, known)
		all.add("the key "+name, "GET", "transit/keys/"+name, nil, 404, unsupported, known)
		all.add("encrypt with "+name, "POST", "transit/encrypt/"+name, m{"plaintext": ""}, 404, unsupported, known)
	}
	for _, path := range []string{"transit/keys/..", "transit/keys/../encrypt/k", "transit/encrypt/./k"} { // to where it leads
		all.add(path, "POST", path, m{"plaintext": ""}, 307, "", "")
	}
	return all
}

func badKinds() (all adding) {
	add := all.add
	add("encrypt with a signing key", "POST", "transit/encrypt/ed", m{"plaintext": ""}, 400, "message encryption not supported for key type ed25519", "")
	add("encrypt with an HMAC key", "POST", "transit/encrypt/h", m{"plaintext": ""}, 400, "message encryption not supported for key type hmac", "")
	add("decrypt with a signing key", "POST", "transit/decrypt/ed", m{"ciphertext": "$old"}, 400, "message decryption not supported for key type ed25519", "")
	add("rewrap with a signing key", "POST", "transit/rewrap/ed", m{"ciphertext": "$old"}, 400, "message decryption not supported for key type ed25519", "")
	add("a data key of a signing key", "POST", "transit/datakey/plaintext/ed", m{}, 400, "message encryption not supported for key type ed25519", "")
	add("sign with a cipher's key", "POST", "transit/sign/k", m{"input": ""}, 400, "key type aes256-gcm96 does not support signing", "")
	add("sign with an HMAC key", "POST", "transit/sign/h", m{"input": ""}, 400, "key type hmac does not support signing", "")
	add("verify with a cipher's key", "POST", "transit/verify/k", m{"input": "", "signature": "$signature"}, 400, "key type aes256-gcm96 does not support verification", "")
	add("verify another's signature", "POST", "transit/verify/rsa", m{"input": "", "signature": "$signature"}, 200, "", "")
	add("export what may not be", "GET", "transit/export/encryption-key/k", nil, 400, "private key material is not exportable", "")
	add("export a signing key of a cipher's", "GET", "transit/export/signing-key/k", nil, 400, "private key material is not exportable", "")
	add("back up what may not be", "GET", "transit/backup/k", nil, 400, "exporting is disallowed on the policy", "")
	add("delete without deletion_allowed", "DELETE", "transit/keys/k", nil, 400, "error deleting policy k: deletion is not allowed for this key", "")
	add("delete what is not there", "DELETE", "transit/keys/none", nil, 400, "error deleting policy none: could not delete key; not found", "")
	add("create with a type that there is not", "POST", "transit/keys/x", m{"type": "aes"}, 400, "unknown key type aes", "")
	add("create a convergent RSA key", "POST", "transit/keys/x", m{"type": "rsa-2048", "derived": true, "convergent_encryption": true}, 400, "key derivation and convergent encryption not supported for keys of type rsa-2048", "")
	add("trim without a minimum", "POST", "transit/keys/k/trim", m{}, 400, "missing min_available_version", "")
	add("a floor above the latest", "POST", "transit/keys/k/config", m{"min_decryption_version": 9}, 400, "cannot set min decryption version of 9, latest key version is 2", "")
	add("use what is not there", "POST", "transit/decrypt/none", m{"ciphertext": "$old"}, 400, "encryption key not found", "")
	return all
}

func badMoves() (all adding) {
	add := all.add
	blob := b64(strings.Repeat("x", 512+40))
	add("import nothing", "POST", "transit/keys/x/import", m{}, 400, "one of the following fields, ciphertext and public_key, must be set", "in other words")
	add("import what is too short", "POST", "transit/keys/x/import", m{"ciphertext": "AAAA"}, 400, "failed to RSA decrypt the ciphertext: crypto/rsa: decryption error", "one answer to all that nobody wrapped")
	add("import what is no base64", "POST", "transit/keys/x/import", m{"ciphertext": "%%"}, 400, "failed to RSA decrypt the ciphertext: crypto/rsa: decryption error", "one answer to all that nobody wrapped")
	add("import what nobody wrapped", "POST", "transit/keys/x/import", m{"ciphertext": blob}, 400, "failed to RSA decrypt the ciphertext: crypto/rsa: decryption error", "one answer to all that nobody wrapped")
	add("import by a hash that there is not", "POST", "transit/keys/x/import", m{"ciphertext": blob, "hash_function": "MD5"}, 400, "unknown hash function: MD5", "")
	add("import over a key", "POST", "transit/keys/k/import", m{"ciphertext": blob}, 400, "the import path cannot be used with an existing key; use import-version to rotate an existing imported key", "")
	add("import a version of a key that was made here", "POST", "transit/keys/k/import_version", m{"ciphertext": blob}, 400, "the import_version endpoint can only be used with an imported key", "")
	add("restore what is no backup", "POST", "transit/restore/x", m{"backup": "%%"}, 400, "backup is not base64", "in other words")
	return all
}

func badTokens() (all adding) {
	by := func(what, token, method, path string, body any, status int, text string) {
		all = append(all, badInput{what, method, path, body, token, status, text, ""})
	}
	for _, token := range []string{"revoked", "used up", "opened", "expired"} {
		by("a token that is "+token, token, "POST", "transit/encrypt/k", m{"plaintext": ""}, 403, "permission denied")
		by("renewal of a token that is "+token, token, "POST", "auth/token/renew-self", nil, 403, "permission denied")
	}
	by("a wrapping token elsewhere", "wrapping", "POST", "transit/encrypt/k", m{"plaintext": ""}, 403, "1 error occurred:\n\t* permission denied\n\n")
	by("open what was opened", "opened", "POST", "sys/wrapping/unwrap", nil, 400, "wrapping token is not valid or does not exist")
	by("look at what was opened", "opened", "POST", "sys/wrapping/lookup", nil, 400, "wrapping token is not valid or does not exist")
	return all
}

// TestVaultBadInput: what is wrong with a request is answered as Vault's clients expect, and nothing is lost by it: keys are as they were, and all that was made with
// them opens. TestVaultPeerBadInput asks a true Vault the same.
func TestVaultBadInput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := newBadWorld(w.operator())
	b.tokens["expired"] = b.made(m{"ttl": "1m"})
	w.offset.Add(int64(2 * time.Minute))
	before := b.state()
	for _, in := range badInputs() {
		if a := b.ask(in); a.status != in.status || a.errors() != in.text {
			t.Errorf("%.60s: %d %.300q, want %d %q", in.what, a.status, a.errors(), in.status, in.text)
		}
		if after := b.state(); after != before {
			t.Fatalf("%.60s: %s\nit was\n%s", in.what, after, before)
		}
	}
	b.opens()
}
