package clients_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// sops is the program sops, whose data keys the engine encrypts.
func sops(t *testing.T, j job) {
	const mount = "interop/sops"
	dir, sops := t.TempDir(), tree(t, ".cache/interop/sops")
	plain, sealed := filepath.Join(dir, "plain.yaml"), filepath.Join(dir, "sealed.yaml")
	uri := j.address + "/v1/" + mount + "/keys/orders"
	var e transit
	var token string
	run := func(c check, args ...string) string {
		out, err := j.program(dir, token, append([]string{sops}, args...)...)
		c.ok(err, "run it")
		return out
	}
	j.step(t, "keys", func(c check) { e = j.owner(c, mount, "orders", nil) })
	j.step(t, "login", func(c check) { token = j.comesIn(c, user(mount, "orders")) })
	j.step(t, "use", func(c check) {
		c.ok(os.WriteFile(plain, []byte("password: secret\n"), 0o600), "write")
		c.ok(os.WriteFile(sealed, []byte(run(c, "encrypt", "--hc-vault-transit", uri, plain)), 0o600), "write")
		c.same(run(c, "decrypt", sealed), "password: secret\n", "what is decrypted")
		c.same(run(c, "decrypt", "--extract", `["password"]`, sealed), "secret", "what is extracted")
	})
	j.step(t, "rotate", func(c check) { // of the engine's key, and of the data key in the file
		e.write("keys/orders/rotate", nil)
		c.same(run(c, "decrypt", sealed), "password: secret\n", "what is decrypted")
		run(c, "rotate", "--in-place", sealed)
		b, err := os.ReadFile(sealed)
		c.ok(err, "read")
		if !contains(b, "vault:v2:") || contains(b, "vault:v1:") {
			c.fail("the data key is not of version 2:\n%s", b)
		}
	})
	j.step(t, "old", func(c check) {
		old := filepath.Join(dir, "old.yaml")
		c.ok(os.WriteFile(old, []byte(run(c, "encrypt", "--hc-vault-transit", uri, plain)), 0o600), "write")
		for range 3 {
			e.write("keys/orders/rotate", nil)
		}
		c.same(run(c, "decrypt", old), "password: secret\n", "what is decrypted")
		run(c, "set", old, `["user"]`, `"ana"`)
		c.same(run(c, "decrypt", "--extract", `["user"]`, old), "ana", "what was set")
	})
	j.step(t, "rewrap", func(c check) { // of the data key in the file, by the owner of the key
		b, err := os.ReadFile(sealed)
		c.ok(err, "read")
		old := regexp.MustCompile(`vault:v2:[A-Za-z0-9+/=]+`).Find(b)
		b = bytes.Replace(b, old, e.rewrapped("orders", string(old), "5"), 1)
		c.ok(os.WriteFile(sealed, b, 0o600), "write")
		c.same(run(c, "decrypt", sealed), "password: secret\n", "what is decrypted")
	})
	j.step(t, "denied", func(c check) {
		_, err := j.program(dir, token, sops, "encrypt", "--hc-vault-transit", j.address+"/v1/"+mount+"/keys/others", plain)
		c.says(err, "permission denied", "use another key")
		_, err = j.program(dir, "revoked", sops, "decrypt", sealed)
		c.says(err, "permission denied", "decrypt without a token")
	})
}

func contains(b []byte, text string) bool { return bytes.Contains(b, []byte(text)) }
