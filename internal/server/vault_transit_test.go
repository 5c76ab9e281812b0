package server_test

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// members are those of the data of an answer.
func (a answer) members() map[string]any {
	d, _ := a.body["data"].(map[string]any)
	return d
}

// str is a member of data, in text.
func (a answer) str(name string) string { return fmt.Sprint(a.members()[name]) }

// batch is what became of the items of a batch.
func (a answer) batch() (out []map[string]any) {
	all, _ := a.members()["batch_results"].([]any)
	for _, one := range all {
		m, _ := one.(map[string]any)
		out = append(out, m)
	}
	return out
}

type m = map[string]any

// must is do that has to be answered with 200 or 204.
func (c *vaultClient) must(method, path string, body any) answer {
	c.t.Helper()
	a := c.do(method, path, body)
	if a.status != 200 && a.status != 204 {
		c.t.Fatalf("%s %s: %d %s", method, path, a.status, a.text)
	}
	return a
}

// refuses is do that has to be answered with a status and a text.
func (c *vaultClient) refuses(status int, text, method, path string, body any) answer {
	c.t.Helper()
	a := c.do(method, path, body)
	if a.status != status || text != "" && !strings.Contains(a.errors(), text) || text == "" && a.errors() != "" {
		c.t.Errorf("%s %s: %d %.300s, want %d %q", method, path, a.status, a.text, status, text)
	}
	return a
}

// TestVaultKeys: a key's life as clients of Vault see it.
func TestVaultKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	c.refuses(404, "", "LIST", "transit/keys", nil)
	c.refuses(404, "", "GET", "transit/keys?list=true", nil)
	c.refuses(404, "", "GET", "transit/keys/orders", nil)
	a := c.must("POST", "transit/keys/orders", m{"min_encryption_vrsn": 7, "key_size": 0, "type": "aes256-gcm96"})
	if a.str("name") != "orders" || a.str("type") != "aes256-gcm96" || a.str("latest_version") != "1" || a.body["mount_type"] != "transit" {
		t.Errorf("%s", a.text)
	}
	if a = c.must("PUT", "transit/keys/orders", nil); len(a.body["warnings"].([]any)) != 1 {
		t.Errorf("again: %s", a.text)
	}
	for _, how := range []string{"LIST transit/keys", "LIST transit/keys/", "GET transit/keys?list=true", "GET transit/keys/?list=true"} {
		method, path, _ := strings.Cut(how, " ")
		if a = c.must(method, path, nil); fmt.Sprint(a.members()["keys"]) != "[orders]" {
			t.Errorf("%s: %s", how, a.text)
		}
	}
	a = c.must("GET", "transit/keys/orders", nil)
	for name, want := range (m{
		"derived": false, "deletion_allowed": false, "min_available_version": 0.0, "min_decryption_version": 1.0, "min_encryption_version": 0.0, "exportable": false,
		"allow_plaintext_backup": false, "supports_encryption": true, "supports_decryption": true, "supports_signing": false, "supports_derivation": true,
		"auto_rotate_period": 0.0, "imported_key": false, "primary_version": 1.0,
	}) {
		if a.members()[name] != want {
			t.Errorf("%s: %v, want %v", name, a.members()[name], want)
		}
	}
	if keys, _ := a.members()["keys"].(m); len(keys) != 1 || keys["1"].(float64) < 1e9 {
		t.Errorf("keys: %s", a.text)
	}
	if a = c.must("POST", "transit/keys/orders/rotate", nil); a.str("latest_version") != "2" {
		t.Errorf("rotate: %s", a.text)
	}
	a = c.must("POST", "transit/keys/orders/config", m{"min_decryption_version": "2", "min_encryption_version": 2, "deletion_allowed": "true", "auto_rotate_period": "90d"})
	if a.str("min_decryption_version") != "2" || a.str("auto_rotate_period") != "7.776e+06" || len(a.members()["keys"].(m)) != 1 || len(a.members()["versions"].(m)) != 2 {
		t.Errorf("config: %s", a.text)
	}
	c.refuses(400, "cannot set min decryption version of 3, latest key version is 2", "POST", "transit/keys/orders/config", m{"min_decryption_version": 3})
	c.refuses(400, "min decryption version cannot be negative", "POST", "transit/keys/orders/config", m{"min_decryption_version": -1})
	if a = c.must("POST", "transit/keys/orders/trim", m{"min_available_version": 2}); a.str("min_available_version") != "2" {
		t.Errorf("trim: %s", a.text)
	}
	c.refuses(400, "minimum available version cannot be decremented", "POST", "transit/keys/orders/trim", m{"min_available_version": 1})
	c.refuses(400, "missing min_available_version", "POST", "transit/keys/orders/trim", m{})
	c.must("DELETE", "transit/keys/orders/soft-delete", nil)
	c.refuses(400, "soft", "POST", "transit/encrypt/orders", m{"plaintext": b64("x")})
	c.must("POST", "transit/keys/orders/soft-delete-restore", nil)
	c.must("POST", "transit/encrypt/orders", m{"plaintext": b64("x")})
	if a = c.must("DELETE", "transit/keys/orders", nil); a.status != 204 {
		t.Errorf("delete: %d", a.status)
	}
	c.refuses(404, "", "GET", "transit/keys/orders", nil)
	c.refuses(404, "", "LIST", "transit/keys", nil)
	c.refuses(400, "encryption key not found", "POST", "transit/decrypt/orders", m{"ciphertext": "vault:v1:AAAA"})
	if a = c.must("POST", "transit/keys/orders", nil); a.str("latest_version") != "1" {
		t.Errorf("its name is free: %s", a.text)
	}
	c.refuses(400, "error deleting policy orders: deletion is not allowed for this key", "DELETE", "transit/keys/orders", nil)
	c.refuses(400, "not found", "DELETE", "transit/keys/nothere", nil)
}

// TestVaultKeyTypes: what clients read of each type of key, and what is refused.
func TestVaultKeyTypes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	for _, k := range []struct {
		kind, set       string
		name            string // of a version
		encrypts, signs bool
		derives         bool
		begins          string // of its public key
	}{
		{"aes128-gcm96", "", "", true, false, true, ""}, {"chacha20-poly1305", "", "", true, false, true, ""}, {"xchacha20-poly1305", "", "", true, false, true, ""},
		{"ecdsa-p256", "", "P-256", false, true, false, "-----BEGIN PUBLIC KEY-----"}, {"ecdsa-p384", "", "P-384", false, true, false, "-----BEGIN PUBLIC KEY-----"},
		{"ecdsa-p521", "", "P-521", false, true, false, "-----BEGIN PUBLIC KEY-----"}, {"ed25519", "", "ed25519", false, true, true, ""},
		{"rsa-2048", "", "rsa-2048", true, true, false, "-----BEGIN PUBLIC KEY-----"}, {"hmac", "", "", false, false, false, ""},
		{"ml-dsa", "65", "ml-dsa-65", false, true, false, ""}, {"mldsa-44", "", "mldsa-44", false, true, false, ""},
	} {
		path := "transit/keys/k-" + k.kind
		c.must("POST", path, m{"type": k.kind, "parameter_set": k.set})
		a := c.must("GET", path, nil)
		if a.str("type") != k.kind || a.members()["supports_encryption"] != k.encrypts || a.members()["supports_signing"] != k.signs || a.members()["supports_derivation"] != k.derives {
			t.Errorf("%s: %s", k.kind, a.text)
		}
		if !k.signs {
			continue
		}
		v := a.members()["keys"].(m)["1"].(m)
		if v["name"] != k.name || !strings.HasPrefix(fmt.Sprint(v["public_key"]), k.begins) || v["public_key"] == "" || !strings.Contains(fmt.Sprint(v["creation_time"]), "T") {
			t.Errorf("%s: %v", k.kind, v)
		}
	}
	c.refuses(400, "unknown key type x", "POST", "transit/keys/x", m{"type": "x"})
	c.refuses(400, "invalid parameter set 7 for key type ml-dsa", "POST", "transit/keys/x", m{"type": "ml-dsa", "parameter_set": 7})
	c.refuses(400, "key_size is not valid for algorithm aes256-gcm96", "POST", "transit/keys/x", m{"key_size": 32})
	c.refuses(400, "invalid key_size 7", "POST", "transit/keys/x", m{"type": "hmac", "key_size": 7})
	c.refuses(400, "convergent encryption requires derivation to be enabled", "POST", "transit/keys/x", m{"convergent_encryption": true})
	c.refuses(400, "does not support", "POST", "transit/sign/k-aes128-gcm96", m{"input": b64("x")})
	c.refuses(400, "not supported", "POST", "transit/encrypt/k-ed25519", m{"plaintext": b64("x")})
}

// TestVaultEncrypt: encrypt, decrypt, rewrap and data keys, one by one and in batches.
func TestVaultEncrypt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	a := c.must("POST", "transit/encrypt/made", m{"plaintext": b64("hello")})
	if !strings.HasPrefix(a.str("ciphertext"), "vault:v1:") || a.str("key_version") != "1" {
		t.Fatalf("%s", a.text)
	}
	old := a.str("ciphertext")
	opens := func(ciphertext, plain string, more m) {
		t.Helper()
		body := m{"ciphertext": ciphertext}
		for k, v := range more {
			body[k] = v
		}
		if a := c.must("POST", "transit/decrypt/made", body); a.str("plaintext") != b64(plain) {
			t.Errorf("%s", a.text)
		}
	}
	opens(old, "hello", nil)
	opens(c.must("PUT", "transit/encrypt/made", m{"plaintext": ""}).str("ciphertext"), "", nil)
	opens(c.must("PUT", "transit/encrypt/made", m{"plaintext": b64("a"), "associated_data": b64("ad")}).str("ciphertext"), "a", m{"associated_data": b64("ad")})
	c.must("POST", "transit/keys/made/rotate", nil)
	opens(old, "hello", nil)
	a = c.must("POST", "transit/rewrap/made", m{"ciphertext": old})
	if !strings.HasPrefix(a.str("ciphertext"), "vault:v2:") || a.str("key_version") != "2" || a.str("changed") != "true" {
		t.Errorf("%s", a.text)
	}
	again := a.str("ciphertext")
	if a = c.must("POST", "transit/rewrap/made", m{"ciphertext": again}); a.str("ciphertext") != again || a.str("changed") != "false" {
		t.Errorf("a second time: %s", a.text)
	}
	opens(again, "hello", nil)
	opens(c.must("POST", "transit/encrypt/made", m{"plaintext": b64("x"), "key_version": "1"}).str("ciphertext"), "x", nil)
	for bits, size := range map[int]int{0: 32, 128: 16, 256: 32, 512: 64} {
		body := m{}
		if bits > 0 {
			body["bits"] = bits
		}
		a := c.must("POST", "transit/datakey/plaintext/made", body)
		plain, err := base64.StdEncoding.DecodeString(a.str("plaintext"))
		if err != nil || len(plain) != size {
			t.Errorf("%d bits: %s", bits, a.text)
		}
		opens(a.str("ciphertext"), string(plain), nil)
		if a = c.must("POST", "transit/datakey/wrapped/made", body); a.members()["plaintext"] != nil {
			t.Errorf("%s", a.text)
		}
	}
	c.refuses(400, "invalid bit length", "POST", "transit/datakey/plaintext/made", m{"bits": 77})
	c.refuses(400, "Invalid path, must be 'plaintext' or 'wrapped'", "POST", "transit/datakey/x/made", nil)
	c.refuses(400, "encryption key not found", "POST", "transit/datakey/plaintext/nothere", nil)
}

// TestVaultStrangeNames: a member that a path does not know does not count, and is named, as at Vault: one that is misspelt is not taken for one that does.
func TestVaultStrangeNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	const ignored = "Endpoint ignored these unrecognized parameters: "
	made := op.do("POST", "transit/keys/a", m{"name": "a", "type": "aes256-gcm96", "foo": 1, "bar": m{"type": 1}}).want(t, "of a key", 200, ignored+"[bar foo]")
	if strings.Contains(made.text, "[bar foo type") {
		t.Error(made.text)
	}
	op.do("POST", "transit/keys/a/config", m{"deletion_allowwed": true}).want(t, "of settings", 200, ignored+"[deletion_allowwed]")
	op.do("POST", "transit/encrypt/a", m{"plaintext": "eA==", "associated_dat": "eA=="}).want(t, "of encrypt", 200, ignored+"[associated_dat]")
	op.do("POST", "transit/encrypt/a", m{"batch_input": []m{{"plaintext": "eA==", "foo": 1}}, "plaintext": "a:b"}).want(t, "of an item", 200, `"warnings":null`)
	op.do("POST", "transit/hmac/a", m{"input": "eA==", "algorithm": "sha2-512"}).want(t, "an older name", 200, `"warnings":null`)
	op.do("POST", "transit/decrypt/a", m{"ciphertext": "x", "foo": 1}).want(t, "of what fails", 400, "no prefix")
	many := m{"plaintext": "eA=="}
	for i := range 100 {
		many[fmt.Sprintf("%03d", i)+strings.Repeat("x", 1000)] = i
	}
	if a := op.do("POST", "transit/encrypt/a", many).want(t, "many", 200, ignored+"[000xxx"); len(a.text) > 2000 {
		t.Errorf("an answer of %d bytes", len(a.text))
	}
}

// TestVaultBatches: bad items fail alone, and the status tells.
func TestVaultBatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	items := []m{{"plaintext": b64("a"), "reference": "r1"}, {"plaintext": "!", "reference": "r2"}, {"plaintext": b64("c"), "key_version": 9}}
	c.must("POST", "transit/keys/k", nil)
	a := c.do("POST", "transit/encrypt/k", m{"batch_input": items})
	out := a.batch()
	if a.status != 400 || len(out) != 3 || a.body["errors"] != nil {
		t.Fatalf("%d %s", a.status, a.text)
	}
	if out[0]["reference"] != "r1" || out[0]["ciphertext"] == nil || out[0]["key_version"] != 1.0 || out[1]["reference"] != "r2" || out[1]["error"] == nil || out[1]["ciphertext"] != nil || out[2]["error"] == nil {
		t.Errorf("%s", a.text)
	}
	if a = c.do("POST", "transit/encrypt/k", m{"batch_input": items, "partial_failure_response_code": 207}); a.status != 207 {
		t.Errorf("%d %s", a.status, a.text)
	}
	if a = c.do("POST", "transit/encrypt/k", m{"batch_input": items, "partial_failure_response_code": 7}); a.status != 400 || a.body["warnings"] == nil {
		t.Errorf("%d %s", a.status, a.text)
	}
	if a = c.do("POST", "transit/encrypt/k", m{"batch_input": items[1:2], "partial_failure_response_code": 207}); a.status != 400 {
		t.Errorf("all failed: %d %s", a.status, a.text)
	}
	a = c.do("POST", "transit/decrypt/k", m{"batch_input": []m{{"ciphertext": out[0]["ciphertext"], "reference": "x"}, {"ciphertext": "vault:v1:AAAA"}, {}}})
	got := a.batch()
	if a.status != 400 || len(got) != 3 || got[0]["plaintext"] != b64("a") || got[0]["reference"] != "x" || got[1]["error"] == nil || got[2]["error"] != "missing ciphertext to decrypt" {
		t.Errorf("%d %s", a.status, a.text)
	}
	a = c.do("POST", "transit/rewrap/k", m{"batch_input": []m{{"ciphertext": out[0]["ciphertext"]}, {"ciphertext": "x"}}})
	if got = a.batch(); a.status != 200 || got[0]["changed"] != false || got[1]["error"] != "invalid ciphertext: no prefix" {
		t.Errorf("%d %s", a.status, a.text)
	}
	c.refuses(400, "missing batch input to process", "POST", "transit/encrypt/k", m{"batch_input": []m{}})
	c.refuses(400, "missing plaintext to encrypt", "POST", "transit/encrypt/k", m{})
	c.refuses(400, "context should be set either in all the request blocks or in none", "POST", "transit/encrypt/k", m{"batch_input": []m{{"plaintext": "", "context": "eA=="}, {"plaintext": ""}}})
	c.refuses(400, "element count", "POST", "transit/encrypt/k", m{"batch_input": make([]m, 100_000)})
	c.must("POST", "transit/encrypt/k", m{"batch_input": many(10_000)})
}

func many(n int) []m {
	all := make([]m, n)
	for i := range all {
		all[i] = m{"plaintext": "eA=="}
	}
	return all
}

// TestVaultBadCiphertexts: each is refused in Vault's words, and the server goes on.
func TestVaultBadCiphertexts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	c.must("POST", "transit/keys/k", nil)
	c.must("POST", "transit/keys/other", nil)
	c.must("POST", "transit/keys/derived", m{"derived": true, "convergent_encryption": true})
	good := c.must("POST", "transit/encrypt/k", m{"plaintext": b64("p")}).str("ciphertext")
	for what, b := range map[string]struct{ text, want string }{
		"another key's": {c.must("POST", "transit/encrypt/other", m{"plaintext": b64("p")}).str("ciphertext"), "message authentication failed"},
		"version 7":     {strings.Replace(good, "v1", "v7", 1), "version is too new"}, "a huge one": {strings.Replace(good, "v1", "v99999999999", 1), "version"},
		"negative": {strings.Replace(good, "v1", "v-1", 1), "version"}, "no prefix": {"x", "no prefix"}, "no base64": {"vault:v1:!", "base64"}, "cut": {good[:20], ""},
		"empty": {"vault:v1:", ""}, "not text": {"\x00", "no prefix"},
	} {
		if a := c.do("POST", "transit/decrypt/k", m{"ciphertext": b.text}); a.status != 400 || !strings.Contains(a.errors(), b.want) || a.errors() == "" {
			t.Errorf("%s: %d %s, want %q", what, a.status, a.text, b.want)
		}
	}
	c.refuses(400, "missing 'context' for key derivation", "POST", "transit/encrypt/derived", m{"plaintext": b64("p")})
	one := c.must("POST", "transit/encrypt/derived", m{"plaintext": b64("p"), "context": b64("c")}).str("ciphertext")
	if two := c.must("POST", "transit/encrypt/derived", m{"plaintext": b64("p"), "context": b64("c")}).str("ciphertext"); one != two {
		t.Errorf("not convergent: %s, %s", one, two)
	}
	c.refuses(400, "message authentication failed", "POST", "transit/decrypt/derived", m{"ciphertext": one, "context": b64("d")})
	for _, name := range []string{"a%2Fb", "..", "a..b%20c", "%C3%A4", "-a", "a-", strings.Repeat("a", 200)} {
		if a := c.do("POST", "transit/keys/"+name, nil); a.status < 300 || a.status >= 500 {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}
	c.must("GET", "transit/keys/k", nil)
}

// TestVaultSign: HMACs and signatures, one by one and in batches.
func TestVaultSign(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	c.must("POST", "transit/keys/h", m{"type": "hmac"})
	c.must("POST", "transit/keys/ed", m{"type": "ed25519"})
	c.must("POST", "transit/keys/p", m{"type": "ecdsa-p256"})
	c.must("POST", "transit/keys/r", m{"type": "rsa-2048"})
	c.must("POST", "transit/keys/d", m{"type": "ed25519", "derived": true})
	sum := c.must("POST", "transit/hmac/h/sha2-512", m{"input": b64("x")}).str("hmac")
	valid := func(path string, body m, want bool) {
		t.Helper()
		if a := c.must("POST", "transit/verify/"+path, body); a.members()["valid"] != want {
			t.Errorf("%s: %s", path, a.text)
		}
	}
	valid("h/sha2-512", m{"input": b64("x"), "hmac": sum}, true)
	valid("h", m{"input": b64("x"), "hmac": sum, "algorithm": "sha2-512"}, true)
	valid("h", m{"input": b64("x"), "hmac": sum}, false)
	for _, s := range []struct {
		path string
		more m
	}{
		{"ed", nil}, {"p", nil}, {"p/sha2-512", nil}, {"p", m{"marshaling_algorithm": "jws"}}, {"r", nil}, {"r", m{"signature_algorithm": "pkcs1v15", "hash_algorithm": "sha2-384"}},
		{"r", m{"salt_length": "hash"}}, {"d", m{"context": b64("c")}}, {"p", m{"prehashed": true}},
	} {
		body := m{"input": b64("12345678901234567890123456789012")}
		for k, v := range s.more {
			body[k] = v
		}
		a := c.must("POST", "transit/sign/"+s.path, body)
		if !strings.HasPrefix(a.str("signature"), "vault:v1:") || a.str("key_version") != "1" || (a.members()["public_key"] != nil) != (s.path == "d") {
			t.Errorf("%s: %s", s.path, a.text)
		}
		body["signature"] = a.str("signature")
		valid(s.path, body, true)
		body["input"] = b64("another message, of 32 bytes ....")[:44]
		valid(s.path, body, false)
	}
	shown := c.must("GET", "transit/keys/d?context="+b64("c"), nil).members()["keys"].(m)["1"].(m)["public_key"]
	if signed := c.must("POST", "transit/sign/d", m{"input": "", "context": b64("c")}).str("public_key"); shown != signed {
		t.Errorf("public key of a context: %v shown, signed with %v", shown, signed)
	}
	a := c.do("POST", "transit/sign/ed", m{"batch_input": []m{{"input": b64("a"), "reference": "r"}, {"input": "!"}, {}}})
	got := a.batch()
	if a.status != 200 || len(got) != 3 || got[0]["signature"] == nil || got[0]["reference"] != "r" || got[1]["error"] == nil || got[2]["error"] != "missing input" {
		t.Fatalf("%d %s", a.status, a.text)
	}
	a = c.do("POST", "transit/verify/ed", m{"batch_input": []m{{"input": b64("a"), "signature": got[0]["signature"]}, {"input": b64("b"), "signature": got[0]["signature"]}}})
	if got = a.batch(); a.status != 200 || got[0]["valid"] != true || got[1]["valid"] != false {
		t.Errorf("%d %s", a.status, a.text)
	}
	c.refuses(400, "missing one of 'signature', 'hmac' or 'cmac' arguments to verify", "POST", "transit/verify/ed", m{"input": b64("a")})
	c.refuses(400, "must all provide either", "POST", "transit/verify/ed", m{"batch_input": []m{{"input": "", "hmac": "x"}, {"input": "", "signature": "x"}}})
	c.refuses(400, `invalid hash algorithm "md5"`, "POST", "transit/sign/p/md5", m{"input": ""})
	c.refuses(400, `unsupported algorithm "md5"`, "POST", "transit/hmac/h/md5", m{"input": ""})
	c.refuses(400, "missing input for HMAC", "POST", "transit/hmac/h", m{})
	c.refuses(400, "signing key not found", "POST", "transit/sign/nothere", m{"input": ""})
}

// TestVaultHangUps: whoever hangs up in the middle of a request or before its answer leaves nothing half done: what was sent whole is done or is not, and the rest
// goes on.
func TestVaultHangUps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	c.must("POST", "transit/keys/k", nil)
	for i := range 30 {
		conn, err := tls.Dial("tcp", w.Address(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		path, body := fmt.Sprintf("transit/keys/h%d", i), `{"type":"ed25519"}`
		if i%3 == 1 {
			path, body = "transit/keys/k/rotate", "{}"
		}
		size := len(body)
		if i%3 == 2 { // the rest never comes
			size = 1000
		}
		if _, err := fmt.Fprintf(conn, "POST /v1/%s HTTP/1.1\r\nHost: x\r\nX-Vault-Token: %s\r\nContent-Length: %d\r\n\r\n%s", path, c.token, size, body); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.must("POST", "transit/keys/last", nil)
	for _, name := range c.must("LIST", "transit/keys", nil).members()["keys"].([]any) {
		a := c.must("GET", "transit/keys/"+name.(string), nil)
		if a.str("type") == "ed25519" {
			c.must("POST", "transit/sign/"+name.(string), m{"input": ""})
		}
	}
	a := c.must("GET", "transit/keys/k", nil)
	for n := range a.members()["keys"].(m) {
		version, err := strconv.Atoi(n)
		if err != nil {
			t.Fatal(err)
		}
		text := c.must("POST", "transit/encrypt/k", m{"plaintext": b64("x"), "key_version": version}).str("ciphertext")
		c.must("POST", "transit/decrypt/k", m{"ciphertext": text})
	}
	for i := 2; i < 30; i += 3 {
		c.refuses(404, "", "GET", fmt.Sprintf("transit/keys/h%d", i), nil)
	}
}
