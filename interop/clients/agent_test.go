package clients_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// helper is vault agent or vault proxy beside an application, which has no token of its own.
type helper struct {
	vault          // the application, whose home keeps what the helper reads and writes
	admin vault    // an administrator at the server itself
	mount string   // of the engine
	log   *process // the helper
}

// agent and proxy are the verbs of the program vault that log in for an application and answer it at an address of its machine.
func agent(t *testing.T, j job) { j.helper(t, "agent") }
func proxy(t *testing.T, j job) { j.helper(t, "proxy") }

func (j job) helper(t *testing.T, verb string) {
	h := helper{mount: "interop/" + verb}
	h.admin = vault{job: j, binary: tree(t, ".cache/interop/vault"), home: t.TempDir(), token: j.token}
	h.vault = h.admin
	h.home, h.token = t.TempDir(), ""
	h.server = &server{ca: j.ca}
	step := func(name string, do func()) {
		j.step(t, name, func(c check) {
			h.check, h.admin.check = c, c
			do()
		})
	}
	var first string
	step("keys", func() { h.role(verb) })
	step("login", func() {
		h.starts(t, verb, "", verb == "agent")
		h.shows(h.run("token", "lookup"), "auth/approle/login", "interop-"+verb)
		h.shows(h.admin.run("token", "lookup", h.sink()), "auth/approle/login", "interop-"+verb)
	})
	step("use", func() {
		first = h.text("encrypt", "plaintext="+b64("one"))
		h.same(h.text("decrypt", "ciphertext="+first), b64("one"), "the plaintext")
	})
	step("rotate", func() {
		h.admin.run("write", "-f", h.mount+"/keys/orders/rotate")
		h.prefix(h.text("encrypt", "plaintext="+b64("two")), "2")
		if verb == "agent" {
			h.becomes(t, "rendered", "2 ")
		}
	})
	step("rewrap", func() { h.prefix(h.text("rewrap", "ciphertext="+first), "2") })
	step("renew", func() { h.renews(t) })
	step("old", func() { h.same(h.text("decrypt", "ciphertext="+first), b64("one"), "the plaintext") })
	step("denied", func() {
		h.refused("permission denied", "write", "-f", h.mount+"/keys/orders/rotate")
		own := h.vault
		own.token = "hvs.of-nobody" // its own token goes before the helper's
		own.refused("permission denied", "read", h.mount+"/keys/orders")
	})
	step("more", func() {
		h.recovers(t)
		h.caches()
	})
	step("newer", func() { h.namespace(t, verb) })
	step("batch", func() {
		h.admin.run("write", "auth/approle/role/"+verb, "token_type=batch", "token_policies=interop-"+verb, "token_ttl=3s", "token_max_ttl=6s")
		h.becomes(t, "token", "hvb.")
		h.same(h.text("decrypt", "ciphertext="+first), b64("one"), "the plaintext")
	})
}

// role makes an engine, a key, and a role whose secret ID only the helper can unwrap.
func (h helper) role(verb string) {
	h.admin.run("secrets", "enable", "-path="+h.mount, "transit")
	h.admin.run("write", "-f", h.mount+"/keys/orders")
	policy := filepath.Join(h.home, "policy.hcl")
	h.ok(os.WriteFile(policy, []byte(orders(h.mount)+`path "auth/token/create" { capabilities = ["update"] }`), 0o600), "write")
	h.admin.run("policy", "write", "interop-"+verb, policy)
	role := "auth/approle/role/" + verb
	h.admin.run("write", role, "token_policies=interop-"+verb, "token_ttl=3s", "token_max_ttl=6s")
	h.ok(os.WriteFile(filepath.Join(h.home, "role-id"), []byte(h.admin.run("read", "-field=role_id", role+"/role-id")), 0o600), "write")
	wrapped := h.admin.run("write", "-wrap-ttl=60s", "-field=wrapping_token", "-f", role+"/secret-id")
	h.ok(os.WriteFile(filepath.Join(h.home, "secret-id"), []byte(wrapped), 0o600), "write")
}

// namespace has another helper log in within a namespace, where what the application asks for is, too.
func (h helper) namespace(t *testing.T, verb string) {
	h.admin.run("namespace", "create", "interop-"+verb)
	h.home, h.server = t.TempDir(), &server{ca: h.ca, within: "interop-" + verb} // the helper passes on what the application names
	h.admin.server = &server{address: h.admin.address, ca: h.ca, within: "interop-" + verb}
	h.admin.run("auth", "enable", "approle")
	h.role(verb)
	h.starts(t, verb, "interop-"+verb, false)
	h.prefix(h.text("encrypt", "plaintext="+b64("one")), "1")
}

// starts starts the helper and waits until it has logged in, and rendered its template.
func (h *helper) starts(t *testing.T, verb, namespace string, template bool) {
	at := freeAddress(t)
	h.address = "http://" + at
	text := fmt.Sprintf(`
vault {
  address = %q
  ca_cert = %q
}
auto_auth {
  method "approle" {
    namespace = %q
    min_backoff = "100ms"
    config = {
      role_id_file_path = "role-id"
      secret_id_file_path = "secret-id"
      secret_id_response_wrapping_path = "auth/approle/role/%s/secret-id"
    }
  }
  sink "file" {
    config = { path = "token" }
  }
}
cache {}
api_proxy { use_auto_auth_token = true }
listener "tcp" {
  address = %q
  tls_disable = true
}
`, h.admin.address, h.ca, namespace, verb, at)
	if template {
		text += fmt.Sprintf(`
template_config { static_secret_render_interval = "1s" }
template {
  contents = "{{ with secret \"%[1]s/keys/orders\" }}{{ .Data.latest_version }} {{ .Data.type }}{{ end }} {{ with secret \"%[1]s/encrypt/orders\" \"plaintext=%[2]s\" }}{{ .Data.ciphertext }}{{ end }}"
  destination = "rendered"
}
`, h.mount, b64("of a template"))
	}
	h.ok(os.WriteFile(filepath.Join(h.home, "helper.hcl"), []byte(text), 0o600), "write the configuration")
	cmd := exec.Command(h.binary, verb, "-config=helper.hcl")
	cmd.Dir, cmd.Env = h.home, []string{"HOME=" + h.home}
	h.log = start(t, cmd)
	h.becomes(t, "token", "hv")
	if _, err := os.Stat(filepath.Join(h.home, "secret-id")); err == nil {
		h.fail("the file of the secret ID is left behind")
	}
	if template {
		h.becomes(t, "rendered", "1 aes256-gcm96 vault:v1:")
	}
}

// text uses the key through the helper.
func (h helper) text(verb, arg string) string {
	field := "ciphertext"
	if verb == "decrypt" {
		field = "plaintext"
	}
	return h.run("write", "-field="+field, h.mount+"/"+verb+"/orders", arg)
}

// sink is the token in the file.
func (h helper) sink() string {
	b, err := os.ReadFile(filepath.Join(h.home, "token"))
	h.ok(err, "read the token")
	return string(b)
}

// becomes waits until a file begins with a text.
func (h helper) becomes(t *testing.T, file, begin string) {
	h.log.await(t, func(context.Context) bool {
		b, err := os.ReadFile(filepath.Join(h.home, file))
		return err == nil && strings.HasPrefix(string(b), begin)
	})
}

// renews waits until the token was renewed and, at its last end, is another; the application works all the while.
func (h helper) renews(t *testing.T) {
	before := h.sink()
	h.log.await(t, func(context.Context) bool {
		h.prefix(h.text("encrypt", "plaintext="+b64("three")), "2")
		return strings.Contains(h.log.out.String(), "renewed auth token")
	})
	h.log.await(t, func(context.Context) bool {
		h.prefix(h.text("encrypt", "plaintext="+b64("three")), "2")
		return h.sink() != before
	})
}

// recovers revokes the helper's token; it logs in again at the next renewal.
func (h helper) recovers(t *testing.T) {
	before := h.sink()
	h.admin.run("token", "revoke", before)
	h.log.await(t, func(context.Context) bool { return h.sink() != before })
	h.shows(h.run("read", h.mount+"/keys/orders"), "aes256-gcm96")
}

// caches has the helper keep a token that was made through it, and forget it when that is revoked through it.
func (h helper) caches() {
	made := func() string { return h.run("token", "create", "-field=token", "-ttl=5m", "-display-name=cached") }
	first := made()
	h.same(made(), first, "the token that is made again")
	own := h.vault
	own.token = first
	own.shows(own.run("token", "lookup"), "cached")
	own.run("token", "revoke", "-self")
	if made() == first {
		h.fail("a revoked token is handed out")
	}
}
