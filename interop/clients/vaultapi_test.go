package clients_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
	kwp "github.com/tink-crypto/tink-go/v2/kwp/subtle"
)

// values are the fields of a request.
type values = map[string]any

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// transit is an engine as the Go client sees it.
type transit struct {
	check
	client *api.Client
	mount  string
}

// write posts and returns what is in data; nil when nothing came.
func (e transit) write(path string, in values) values {
	s, err := e.client.Logical().Write(e.mount+"/"+path, in)
	e.ok(err, "write "+path)
	if s == nil {
		return nil
	}
	return s.Data
}

func (e transit) read(path string) values {
	s, err := e.client.Logical().Read(e.mount + "/" + path)
	e.ok(err, "read "+path)
	if s == nil {
		e.fail("read %s: there is nothing", path)
	}
	return s.Data
}

// refused writes what has to be refused with a text.
func (e transit) refused(path string, in values, text string) {
	_, err := e.client.Logical().Write(e.mount+"/"+path, in)
	e.says(err, text, "write "+path)
}

func (e transit) encrypt(key, plaintext string) string {
	text, _ := e.write("encrypt/"+key, values{"plaintext": b64(plaintext)})["ciphertext"].(string)
	return text
}

func (e transit) decrypts(key, ciphertext, plaintext string) {
	e.same(e.write("decrypt/"+key, values{"ciphertext": ciphertext})["plaintext"], b64(plaintext), "the plaintext")
}

// rewrapped has the owner of a key move a text to the newest version.
func (e transit) rewrapped(key, ciphertext, version string) []byte {
	text := e.write("rewrap/"+key, values{"ciphertext": ciphertext})["ciphertext"]
	e.prefix(text, version)
	return []byte(text.(string))
}

// prefix wants a ciphertext, signature or MAC of a version.
func (c check) prefix(text any, version string) {
	if s, _ := text.(string); !strings.HasPrefix(s, "vault:v"+version+":") {
		c.fail("%q is not of version %s", text, version)
	}
}

// orders is the policy of an application that uses one key.
func orders(mount string) string {
	var b strings.Builder
	for _, op := range []string{"encrypt", "decrypt", "rewrap", "datakey/plaintext", "sign", "verify", "hmac"} {
		b.WriteString(`path "` + mount + "/" + op + `/orders" { capabilities = ["update"] }` + "\n")
	}
	b.WriteString(`path "` + mount + `/keys/orders" { capabilities = ["read"] }` + "\n")
	return b.String()
}

// vaultAPI is github.com/hashicorp/vault/api with auth/approle.
func vaultAPI(t *testing.T, j job) {
	const mount = "interop/go"
	var first string // ciphertext of version 1
	engine := func(c check) transit { return transit{c, j.admin, mount} }
	j.step(t, "keys", func(c check) { goKeys(engine(c)) })
	j.step(t, "use", func(c check) {
		e := engine(c)
		first = e.encrypt("orders", "one")
		goUse(e)
		goSign(e)
	})
	j.step(t, "rotate", func(c check) { goRotate(engine(c), first) })
	j.step(t, "rewrap", func(c check) {
		e := engine(c)
		again := e.write("rewrap/orders", values{"ciphertext": first})
		e.prefix(again["ciphertext"], "3")
		e.decrypts("orders", again["ciphertext"].(string), "one")
		batch := e.write("rewrap/orders", values{"batch_input": []values{{"ciphertext": first}, {"ciphertext": first}}})
		c.same(len(batch["batch_results"].([]any)), 2, "the number of results")
	})
	j.step(t, "old", func(c check) { goOld(engine(c), first) })
	var token string
	j.step(t, "login", func(c check) { token = goLogin(c, j, mount) })
	j.step(t, "renew", func(c check) { goRenew(c, j, token) })
	j.step(t, "denied", func(c check) { goDenied(c, j, mount) })
	j.step(t, "more", func(c check) { goSystem(c, j, mount) })
	j.step(t, "batch", func(c check) { goBatch(c, j) })
	j.step(t, "newer", func(c check) { goNewer(engine(c)) })
}

// goKeys makes keys of every type, lists and deletes them.
func goKeys(e transit) {
	e.ok(e.client.Sys().Mount(e.mount, &api.MountInput{Type: "transit", Description: "of the Go client"}), "mount")
	s, err := e.client.Logical().List(e.mount + "/keys")
	e.ok(err, "list no keys")
	if s != nil {
		e.fail("a new engine has keys: %v", s.Data)
	}
	types := []string{"aes128-gcm96", "chacha20-poly1305", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "rsa-2048", "rsa-3072"}
	for _, kind := range types {
		e.write("keys/"+kind, values{"type": kind, "exportable": true, "allow_plaintext_backup": true})
		e.same(e.read("keys/" + kind)["type"], kind, "the type of a key")
	}
	e.write("keys/orders", nil)
	k := e.read("keys/orders")
	for field, want := range (values{
		"name": "orders", "type": "aes256-gcm96", "latest_version": 1, "min_decryption_version": 1, "min_encryption_version": 0, "min_available_version": 0,
		"deletion_allowed": false, "exportable": false, "derived": false, "allow_plaintext_backup": false, "auto_rotate_period": 0,
		"supports_encryption": true, "supports_decryption": true, "supports_derivation": true, "supports_signing": false, "imported_key": false,
	}) {
		e.same(k[field], want, field)
	}
	s, err = e.client.Logical().List(e.mount + "/keys")
	e.ok(err, "list keys")
	names := s.Data["keys"].([]any)
	if len(names) != len(types)+1 || !slices.Contains(names, any("orders")) {
		e.fail("the list of keys is %v", names)
	}
	goDelete(e)
}

// goDelete deletes a key, and finds it missing as clients do.
func goDelete(e transit) {
	e.write("keys/gone", nil)
	_, err := e.client.Logical().Delete(e.mount + "/keys/gone")
	e.says(err, "deletion is not allowed for this key", "delete a key")
	e.write("keys/gone/config", values{"deletion_allowed": true})
	_, err = e.client.Logical().Delete(e.mount + "/keys/gone")
	e.ok(err, "delete a key")
	s, err := e.client.Logical().Read(e.mount + "/keys/gone")
	e.ok(err, "read a missing key")
	if s != nil {
		e.fail("a deleted key is there: %v", s.Data)
	}
	e.refused("decrypt/gone", values{"ciphertext": "vault:v1:AAAA"}, "encryption key not found")
	var answer *api.ResponseError
	_, err = e.client.Logical().Write(e.mount+"/decrypt/gone", values{"ciphertext": "vault:v1:AAAA"})
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusBadRequest {
		e.fail("use of a missing key: %v", err)
	}
	e.write("keys/gone", nil) // its name is free again
	e.same(e.read("keys/gone")["latest_version"], 1, "the version of a key made anew")
}

// goUse encrypts in every way.
func goUse(e transit) {
	text := e.encrypt("orders", "hello")
	e.prefix(text, "1")
	e.decrypts("orders", text, "hello")
	e.decrypts("made", e.encrypt("made", "by use"), "by use") // encrypt makes a key where the policy allows to
	in := values{"plaintext": b64("x"), "associated_data": b64("row 1")}
	in["ciphertext"] = e.write("encrypt/orders", in)["ciphertext"]
	e.same(e.write("decrypt/orders", in)["plaintext"], b64("x"), "the plaintext")
	in["associated_data"] = b64("row 2")
	e.refused("decrypt/orders", in, "message authentication failed")

	e.write("keys/derived", values{"derived": true, "convergent_encryption": true})
	in = values{"plaintext": b64("x"), "context": b64("tenant 1")}
	e.same(e.write("encrypt/derived", in)["ciphertext"], e.write("encrypt/derived", in)["ciphertext"], "the second convergent ciphertext")
	e.refused("encrypt/derived", values{"plaintext": b64("x")}, "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key")

	batch := e.write("encrypt/orders", values{"batch_input": []values{{"plaintext": b64("a"), "reference": "r1"}, {"plaintext": b64("b")}}})["batch_results"].([]any)
	e.prefix(batch[1].(values)["ciphertext"], "1")
	e.same(batch[0].(values)["reference"], "r1", "the reference")
	e.same(batch[0].(values)["key_version"], 1, "the version")
	goBadItem(e, text)
	partial := e.write("decrypt/orders", values{"batch_input": []values{{"ciphertext": text}, {"ciphertext": "vault:v1:bad"}}, "partial_failure_response_code": 200})
	e.same(partial["batch_results"].([]any)[0].(values)["plaintext"], b64("hello"), "the good item of a batch")

	key := e.write("datakey/plaintext/orders", values{"bits": 256})
	e.same(e.write("decrypt/orders", values{"ciphertext": key["ciphertext"]})["plaintext"], key["plaintext"], "the data key")
	if key := e.write("datakey/wrapped/orders", nil); key["plaintext"] != nil {
		e.fail("a wrapped data key comes in the clear")
	}
	if n := len(e.write("random/32", nil)["random_bytes"].(string)); n != 44 {
		e.fail("32 random bytes are %d characters", n)
	}
	e.same(e.write("hash/sha2-256", values{"input": b64("abc"), "format": "hex"})["sum"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "the hash")
	for _, kind := range []string{"rsa-2048", "rsa-3072", "aes128-gcm96", "chacha20-poly1305"} {
		e.decrypts(kind, e.encrypt(kind, kind), kind)
	}
	mac := e.write("hmac/orders/sha2-512", values{"input": b64("m")})["hmac"]
	e.prefix(mac, "1")
	e.same(e.write("verify/orders/sha2-512", values{"input": b64("m"), "hmac": mac})["valid"], true, "the MAC's validity")
	e.same(e.write("verify/orders/sha2-512", values{"input": b64("n"), "hmac": mac})["valid"], false, "the validity of another's MAC")
}

// goBadItem sends a batch with a bad item: it is answered with an error's status and the results of all.
func goBadItem(e transit, text string) {
	r := e.client.NewRequest(http.MethodPost, "/v1/"+e.mount+"/decrypt/orders")
	e.ok(r.SetJSONBody(values{"batch_input": []values{{"ciphertext": text}, {"ciphertext": "vault:v1:bad"}}}), "encode")
	resp, err := e.client.RawRequest(r) //nolint:staticcheck // the one call that gives what comes with an error
	var answer *api.ResponseError
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusBadRequest || len(answer.Errors) != 0 {
		e.fail("a batch with a bad item: %v", err)
	}
	var body struct {
		Data struct {
			BatchResults []struct{ Plaintext, Error string } `json:"batch_results"`
		} `json:"data"`
	}
	e.ok(resp.DecodeJSON(&body), "decode")
	if r := body.Data.BatchResults; len(r) != 2 || r[0].Plaintext != b64("hello") || r[0].Error != "" || r[1].Error == "" {
		e.fail("the results are %+v", r)
	}
}

// goSign signs in every way.
func goSign(e transit) {
	for _, c := range []struct {
		key string
		in  values
	}{
		{"ed25519", values{}},
		{"ecdsa-p256", values{"hash_algorithm": "sha2-256"}},
		{"ecdsa-p256", values{"marshaling_algorithm": "jws"}},
		{"ecdsa-p384", values{"hash_algorithm": "sha2-384"}},
		{"ecdsa-p521", values{"hash_algorithm": "sha2-512"}},
		{"rsa-2048", values{"signature_algorithm": "pss"}},
		{"rsa-2048", values{"signature_algorithm": "pss", "salt_length": "hash"}},
		{"rsa-3072", values{"signature_algorithm": "pkcs1v15"}},
		{"rsa-2048", values{"signature_algorithm": "pkcs1v15", "prehashed": true, "hash_algorithm": "sha2-256"}},
	} {
		c.in["input"] = b64(strings.Repeat("m", 32))
		sig := e.write("sign/"+c.key, c.in)["signature"]
		e.prefix(sig, "1")
		c.in["signature"] = sig
		e.same(e.write("verify/"+c.key, c.in)["valid"], true, "the validity of a signature by "+c.key)
		c.in["input"] = b64(strings.Repeat("n", 32))
		e.same(e.write("verify/"+c.key, c.in)["valid"], false, "the validity of another's signature by "+c.key)
	}
	sig := e.write("sign/rsa-2048/sha2-512", values{"input": b64("m")})["signature"] // algorithm in the path
	e.same(e.write("verify/rsa-2048/sha2-512", values{"input": b64("m"), "signature": sig})["valid"], true, "the validity of a signature")
	batch := e.write("sign/ed25519", values{"batch_input": []values{{"input": b64("a")}, {"input": b64("b")}}})["batch_results"].([]any)
	e.prefix(batch[1].(values)["signature"], "1")
	public := e.read("keys/ed25519")["keys"].(values)["1"].(values)["public_key"]
	if raw, err := base64.StdEncoding.DecodeString(public.(string)); err != nil || len(raw) != 32 {
		e.fail("the public key is %v", public)
	}
	e.refused("sign/orders", values{"input": b64("m")}, "does not support signing")
	e.refused("encrypt/ecdsa-p256", values{"plaintext": b64("m")}, "message encryption not supported for key type ecdsa-p256")
	e.refused("encrypt/orders", values{"plaintext": "no base64"}, "illegal base64 data")
	e.refused("decrypt/orders", values{"ciphertext": "none"}, "invalid ciphertext: no prefix")
	e.refused("decrypt/orders", values{"ciphertext": "vault:v9:" + b64("0123456789012345678901234567890")}, "invalid ciphertext: version is too new")
}

// goRotate makes versions, and lets old ones be refused.
func goRotate(e transit, first string) {
	e.write("keys/orders/rotate", nil)
	e.prefix(e.encrypt("orders", "two"), "2")
	e.write("keys/orders/rotate", nil)
	e.same(e.read("keys/orders")["latest_version"], 3, "the latest version")
	e.same(len(e.read("keys/orders")["keys"].(values)), 3, "the number of versions")
	e.write("keys/orders/config", values{"min_encryption_version": 2})
	e.prefix(e.write("encrypt/orders", values{"plaintext": b64("x"), "key_version": 2})["ciphertext"], "2")
	e.refused("encrypt/orders", values{"plaintext": b64("x"), "key_version": 1}, "requested version for encryption is less than the minimum encryption key version")
	e.write("keys/orders/config", values{"min_decryption_version": 2})
	e.refused("decrypt/orders", values{"ciphertext": first}, "ciphertext or signature version is disallowed by policy (too old)")
	e.same(len(e.read("keys/orders")["keys"].(values)), 2, "the number of versions")
	e.write("keys/orders/config", values{"min_decryption_version": 1, "min_encryption_version": 0})
	e.decrypts("orders", first, "one")
	for field, in := range (values{
		"auto_rotate_period": "24h", "deletion_allowed": true, "exportable": true, "allow_plaintext_backup": true,
	}) {
		e.write("keys/made/config", values{field: in})
	}
	e.same(e.read("keys/made")["auto_rotate_period"], 24*60*60, "the period, in seconds")
	e.refused("keys/orders/config", values{"min_decryption_version": 9}, "cannot set min decryption version of 9, latest key version is 3")
}

// goOld has ciphertext and keys go through export, backup and restore.
func goOld(e transit, first string) {
	e.decrypts("orders", first, "one")
	backup := e.read("backup/made")["backup"].(string)
	text := e.encrypt("made", "before")
	_, err := e.client.Logical().Write(e.mount+"/restore/made", values{"backup": backup})
	e.says(err, "already exists", "restore over a key")
	e.write("restore/restored", values{"backup": backup})
	e.decrypts("restored", text, "before")
	key, _ := e.read("export/encryption-key/made")["keys"].(values)["1"].(string)
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != 32 {
		e.fail("the exported key is %q", key)
	}
	if key := e.read("export/signing-key/ecdsa-p256/latest")["keys"].(values)["1"].(string); !strings.HasPrefix(key, "-----BEGIN EC PRIVATE KEY-----") {
		e.fail("the exported key is no PEM")
	}
	_, err = e.client.Logical().Read(e.mount + "/export/encryption-key/orders")
	e.says(err, "private key material is not exportable", "export a key")
	goImport(e)
	e.write("keys/made/rotate", nil)
	e.write("keys/made/config", values{"min_decryption_version": 2, "min_encryption_version": 2})
	e.write("keys/made/trim", values{"min_available_version": 2})
	e.refused("decrypt/made", values{"ciphertext": text}, "ciphertext or signature version is disallowed by policy (too old)")
	e.same(e.read("keys/made")["min_available_version"], 2, "the oldest version")
}

// goImport brings a key along: wrapped by AES key wrap under a key that RSA-OAEP brings to the engine.
func goImport(e transit) {
	public, _ := e.read("wrapping_key")["public_key"].(string)
	block, _ := pem.Decode([]byte(public))
	if block == nil {
		e.fail("the wrapping key is %q", public)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	e.ok(err, "parse the wrapping key")
	key, ephemeral := make([]byte, 32), make([]byte, 32)
	rand.Read(key)
	rand.Read(ephemeral)
	wrap, err := kwp.NewKWP(ephemeral)
	e.ok(err, "make a key wrap")
	wrapped, err := wrap.Wrap(key)
	e.ok(err, "wrap a key")
	head, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, parsed.(*rsa.PublicKey), ephemeral, nil)
	e.ok(err, "encrypt the ephemeral key")
	blob := base64.StdEncoding.EncodeToString(append(head, wrapped...))
	e.write("keys/brought/import", values{"ciphertext": blob, "hash_function": "SHA256", "type": "aes256-gcm96", "exportable": true, "allow_rotation": true})
	e.same(e.read("keys/brought")["imported_key"], true, "whether the key was imported")
	e.same(e.read("export/encryption-key/brought")["keys"].(values)["1"], base64.StdEncoding.EncodeToString(key), "the key")
	e.decrypts("brought", e.encrypt("brought", "mine"), "mine")
	e.write("keys/brought/import_version", values{"ciphertext": blob, "hash_function": "SHA256"})
	e.same(e.read("keys/brought")["latest_version"], 2, "the version")
	e.refused("keys/bad/import", values{"ciphertext": blob[:40], "type": "aes256-gcm96"}, "Errors:")
}

// goNewer uses what servers have that are newer than Vault 1.14.
func goNewer(e transit) {
	e.write("keys/mac", values{"type": "hmac", "key_size": 32})
	mac := e.write("hmac/mac", values{"input": b64("m")})["hmac"]
	e.same(e.write("verify/mac", values{"input": b64("m"), "hmac": mac})["valid"], true, "the MAC's validity")
	for _, in := range []values{{"type": "ml-dsa", "parameter_set": "65"}, {"type": "mldsa-87"}} {
		name := in["type"].(string)
		e.write("keys/"+name, in)
		sig := e.write("sign/"+name, values{"input": b64("m")})["signature"]
		e.same(e.write("verify/"+name, values{"input": b64("m"), "signature": sig})["valid"], true, "the validity of a signature by "+name)
	}
	e.write("keys/x", values{"type": "xchacha20-poly1305"})
	e.decrypts("x", e.encrypt("x", "long nonces"), "long nonces")
	e.write("keys/soft", nil)
	text := e.encrypt("soft", "kept")
	e.write("keys/soft/config", values{"deletion_allowed": true})
	_, err := e.client.Logical().Delete(e.mount + "/keys/soft/soft-delete")
	e.ok(err, "soft-delete")
	e.refused("decrypt/soft", values{"ciphertext": text}, "Errors:")
	e.write("keys/soft/soft-delete-restore", nil)
	e.decrypts("soft", text, "kept")
	in := values{"ciphertext": e.write("encrypt/orders", values{"plaintext": b64("x"), "associated_data": b64("row 1")})["ciphertext"], "associated_data": b64("row 1")}
	same := e.write("rewrap/orders", in)
	if same["ciphertext"] != in["ciphertext"] || same["changed"] != false {
		e.fail("rewrap of the newest version is %v", same)
	}
	e.write("keys/orders/rotate", nil)
	again := e.write("rewrap/orders", in)
	in["ciphertext"] = again["ciphertext"]
	e.same(again["changed"], true, "whether the text changed")
	e.same(e.write("decrypt/orders", in)["plaintext"], b64("x"), "the plaintext")
	goNamespace(e)
}

// goNamespace works in a namespace of its own: keys of one name are two keys.
func goNamespace(e transit) {
	_, err := e.client.Logical().Write("sys/namespaces/tenant", nil)
	e.ok(err, "make a namespace")
	inside := transit{e.check, e.client.WithNamespace("tenant"), "transit"}
	inside.write("keys/orders", nil)
	text := inside.encrypt("orders", "ours")
	inside.decrypts("orders", text, "ours")
	e.refused("decrypt/orders", values{"ciphertext": text}, "message authentication failed")
	outside := transit{e.check, e.client.WithNamespace("nowhere"), "transit"}
	_, err = outside.client.Logical().Write("transit/keys/orders", nil)
	e.says(err, "Errors:", "write into a namespace that is not there")
	e.same(inside.read("keys/orders")["latest_version"], 1, "the version of the namespace's key")
}
