package clients_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// vault is Vault's own command with a token, or with none: then with the one that it keeps in its home.
type vault struct {
	check
	job
	binary, home, token string
}

// run runs it and returns what it printed, without the space around.
func (v vault) run(args ...string) string {
	out, err := v.try(args...)
	v.ok(err, "vault "+strings.Join(args, " "))
	return strings.TrimSpace(out)
}

func (v vault) try(args ...string) (string, error) {
	return v.program(v.home, v.token, append([]string{v.binary}, args...)...)
}

// refused wants it to fail with a text.
func (v vault) refused(text string, args ...string) {
	_, err := v.try(args...)
	v.says(err, text, "vault "+strings.Join(args, " "))
}

// shows wants the output to have each of some texts.
func (v vault) shows(out string, texts ...string) {
	for _, text := range texts {
		if !strings.Contains(out, text) {
			v.fail("%q is not in:\n%s", text, out)
		}
	}
}

// encrypt and decrypts use the key orders as people do.
func (v vault) encrypt(plaintext string) string {
	return v.run("write", "-field=ciphertext", "interop/command/encrypt/orders", "plaintext="+b64(plaintext))
}

func (v vault) decrypts(ciphertext, plaintext string) {
	v.same(v.run("write", "-field=plaintext", "interop/command/decrypt/orders", "ciphertext="+ciphertext), b64(plaintext), "the plaintext")
}

// command is the program vault.
func command(t *testing.T, j job) {
	binary, home := tree(t, ".cache/interop/vault"), t.TempDir()
	admin := func(c check) vault { return vault{c, j, binary, home, j.token} }
	var first, token string
	j.step(t, "keys", func(c check) { commandKeys(admin(c)) })
	j.step(t, "use", func(c check) {
		v := admin(c)
		first = v.encrypt("one")
		v.decrypts(first, "one")
		commandUse(v)
	})
	j.step(t, "rotate", func(c check) {
		v := admin(c)
		v.run("write", "-f", "interop/command/keys/orders/rotate")
		v.prefix(v.encrypt("two"), "2")
		v.same(v.run("read", "-field=latest_version", "interop/command/keys/orders"), "2", "the latest version")
	})
	j.step(t, "rewrap", func(c check) {
		v := admin(c)
		again := v.run("write", "-field=ciphertext", "interop/command/rewrap/orders", "ciphertext="+first)
		v.prefix(again, "2")
		v.decrypts(again, "one")
	})
	j.step(t, "old", func(c check) {
		v := admin(c)
		v.decrypts(first, "one")
		commandImport(v)
	})
	j.step(t, "login", func(c check) { token = commandLogin(admin(c)) })
	j.step(t, "renew", func(c check) { commandTokens(admin(c), token) })
	j.step(t, "denied", func(c check) {
		v := vault{c, j, binary, home, token}
		v.decrypts(first, "one")
		v.refused("permission denied", "write", "-f", "interop/command/keys/orders/rotate")
		v.refused("permission denied", "policy", "list")
		v.refused("permission denied", "secrets", "list")
		v.run("token", "revoke", "-self")
		v.refused("permission denied", "write", "interop/command/decrypt/orders", "ciphertext="+first)
	})
	j.step(t, "more", func(c check) { commandSystem(admin(c)) })
	j.step(t, "newer", func(c check) { commandNamespace(admin(c)) })
}

// commandKeys mounts an engine and makes, configures, lists, reads and deletes keys.
func commandKeys(v vault) {
	v.shows(v.run("status"), "Initialized ", "true", "Sealed ", "false", "Version ")
	v.run("secrets", "enable", "-path=interop/command", "-description=of the command", "transit")
	v.shows(v.run("secrets", "list"), "interop/command/", "transit", "of the command", "sys/")
	v.shows(v.run("secrets", "list", "-detailed"), "interop/command/", "Accessor")
	v.run("secrets", "tune", "-description=tuned", "interop/command")
	v.shows(v.run("read", "sys/mounts/interop/command/tune"), "tuned")
	v.refused("No value found at interop/command/keys", "list", "interop/command/keys")
	v.run("write", "-f", "interop/command/keys/orders")
	v.run("write", "interop/command/keys/orders/config", "auto_rotate_period=24h", "deletion_allowed=true")
	v.run("write", "interop/command/keys/gone", "type=ed25519", "exportable=true")
	v.shows(v.run("list", "interop/command/keys"), "gone", "orders")
	v.shows(v.run("read", "interop/command/keys/orders"), "aes256-gcm96", "auto_rotate_period", "24h")
	v.refused("deletion is not allowed for this key", "delete", "interop/command/keys/gone")
	v.run("write", "interop/command/keys/gone/config", "deletion_allowed=true")
	v.run("delete", "interop/command/keys/gone")
	v.refused("No value found at interop/command/keys/gone", "read", "interop/command/keys/gone")
	var names []string
	v.ok(json.Unmarshal([]byte(v.run("list", "-format=json", "interop/command/keys")), &names), "parse the list")
	v.same(names, "[orders]", "the list of keys")
}

// commandUse uses keys, with values from a file, standard input and JSON.
func commandUse(v vault) {
	plain := filepath.Join(v.home, "plain")
	v.ok(os.WriteFile(plain, []byte(b64("of a file")), 0o600), "write")
	v.decrypts(v.run("write", "-field=ciphertext", "interop/command/encrypt/orders", "plaintext=@"+plain), "of a file")
	v.ok(os.WriteFile(plain, []byte(`{"batch_input": [{"plaintext": "`+b64("a")+`"}, {"plaintext": "`+b64("b")+`"}]}`), 0o600), "write")
	v.shows(v.run("write", "-format=json", "interop/command/encrypt/orders", "@"+plain), "batch_results", "vault:v1:")
	v.shows(v.run("write", "-f", "interop/command/datakey/plaintext/orders"), "ciphertext", "plaintext", "key_version")
	mac := v.run("write", "-field=hmac", "interop/command/hmac/orders", "input="+b64("m"))
	v.same(v.run("write", "-field=valid", "interop/command/verify/orders", "input="+b64("m"), "hmac="+mac), "true", "the validity of a MAC")
	v.run("write", "interop/command/keys/signer", "type=ecdsa-p256")
	sig := v.run("write", "-field=signature", "interop/command/sign/signer/sha2-512", "input="+b64("m"))
	v.same(v.run("write", "-field=valid", "interop/command/verify/signer/sha2-512", "input="+b64("m"), "signature="+sig), "true", "the validity of a signature")
	v.same(len(v.run("write", "-field=random_bytes", "sys/tools/random/16", "format=hex")), "32", "the length of random bytes")
	v.refused("encryption key not found", "write", "interop/command/decrypt/none", "ciphertext=vault:v1:AAAA")
}

// commandImport brings a key along with the command's own wrapping.
func commandImport(v vault) {
	key := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	v.shows(v.run("transit", "import", "interop/command/keys/brought", key, "type=aes256-gcm96", "allow_rotation=true", "exportable=true"), "Success!")
	v.shows(v.run("transit", "import-version", "interop/command/keys/brought", key), "Success!")
	v.shows(v.run("read", "interop/command/export/encryption-key/brought/1"), key)
}

// commandLogin logs in by a password, a role and a token, and returns the role's token.
func commandLogin(v vault) string {
	policy := filepath.Join(v.home, "orders.hcl")
	v.ok(os.WriteFile(policy, []byte(orders("interop/command")), 0o600), "write")
	v.run("policy", "fmt", policy)
	v.run("policy", "write", "interop-command", policy)
	v.shows(v.run("policy", "list"), "interop-command", "default")
	v.shows(v.run("policy", "read", "interop-command"), "interop/command/encrypt/orders")
	v.run("auth", "enable", "-path=interop-command", "userpass")
	v.shows(v.run("auth", "list"), "interop-command/", "userpass", "approle/")
	v.run("write", "auth/interop-command/users/ana", "password=a long password", "token_policies=interop-command")
	stranger := v
	stranger.token = ""
	stranger.refused("invalid username or password", "login", "-method=userpass", "-path=interop-command", "username=ana", "password=another password")
	v.shows(stranger.run("login", "-method=userpass", "-path=interop-command", "username=ana", "password=a long password"), "Success!", "token_policies")
	v.shows(stranger.run("token", "lookup"), "ana", "auth/interop-command/login") // by the token that it has kept
	v.run("write", "auth/approle/role/command", "token_policies=interop-command", "token_ttl=20m", "token_max_ttl=1h")
	id := v.run("read", "-field=role_id", "auth/approle/role/command/role-id")
	wrapped := v.run("write", "-wrap-ttl=60s", "-field=wrapping_token", "-f", "auth/approle/role/command/secret-id")
	secret := v.run("unwrap", "-field=secret_id", wrapped)
	v.refused("wrapping token is not valid or does not exist", "unwrap", wrapped)
	token := stranger.run("write", "-field=token", "auth/approle/login", "role_id="+id, "secret_id="+secret)
	v.shows(stranger.run("login", token), "Success!", "interop-command")
	return token
}

// commandTokens makes, looks up, renews and revokes tokens.
func commandTokens(v vault, token string) {
	own := v
	own.token = token
	v.shows(own.run("token", "renew", "-increment=30m"), "token_duration", "30m")
	v.shows(own.run("token", "capabilities", "interop/command/encrypt/orders"), "update")
	v.shows(v.run("token", "capabilities", token, "interop/command/keys/orders"), "read")
	child := v.run("token", "create", "-field=token", "-policy=interop-command", "-ttl=10m", "-display-name=child", "-use-limit=5", "-metadata=team=a")
	v.shows(v.run("token", "lookup", child), "display_name", "token-child", "team:a", "num_uses")
	var looked struct{ Data struct{ Accessor string } }
	v.ok(json.Unmarshal([]byte(v.run("token", "lookup", "-format=json", child)), &looked), "parse the answer")
	accessor := looked.Data.Accessor
	v.shows(v.run("token", "lookup", "-accessor", accessor), "token-child")
	v.shows(v.run("token", "renew", "-accessor", accessor), "token_duration", "10m") // as much as it was given first, not what is usual
	v.shows(v.run("list", "auth/token/accessors"), accessor)
	v.run("token", "revoke", "-accessor", accessor)
	v.refused("bad token", "token", "lookup", child)
	v.run("write", "auth/token/roles/command", "allowed_policies=interop-command", "orphan=true")
	v.shows(v.run("token", "create", "-role=command", "-format=json"), `"client_token"`)
	periodic := v.run("token", "create", "-orphan", "-period=1h", "-policy=default", "-field=token")
	v.shows(v.run("token", "lookup", periodic), "period", "orphan")
	made := v.run("token", "create", "-role=command", "-ttl=10m", "-field=token")
	v.shows(v.run("token", "renew", made), "10m")
	v.run("delete", "auth/token/roles/command")
	v.refused("Error renewing token", "token", "renew", made)
}

// commandSystem asks what operators ask, and clears up.
func commandSystem(v vault) {
	v.shows(v.run("path-help", "interop/command/keys/orders"), "## DESCRIPTION")
	v.shows(v.run("path-help", "sys/mounts"), "## DESCRIPTION")
	v.shows(v.run("operator", "rotate"), "Success", "Key Term", "Install Time")
	v.shows(v.run("operator", "key-status"), "Key Term")
	v.shows(v.run("status", "-format=json"), `"sealed": false`, `"version":`)
	v.shows(v.run("version-history"), "Version")
	v.shows(v.run("auth", "help", "userpass"), "username")
	v.shows(v.run("write", "-output-curl-string", "-f", "interop/command/keys/orders"), "curl -X PUT")
	v.shows(v.run("operator", "members"), "Active Node", "true")
	v.shows(v.run("read", "sys/internal/ui/resultant-acl"), "root", "true")
	v.run("secrets", "enable", "-path=interop/before", "transit")
	v.run("write", "-f", "interop/before/keys/moved")
	text := v.run("write", "-field=ciphertext", "interop/before/encrypt/moved", "plaintext="+b64("m"))
	id := v.run("write", "-field=migration_id", "sys/remount", "from=interop/before", "to=interop/after") // secrets move looks each 10 s
	for range 200 {
		if strings.Contains(v.run("read", "sys/remount/status/"+id), "success") {
			break
		}
	}
	v.same(v.run("write", "-field=plaintext", "interop/after/decrypt/moved", "ciphertext="+text), b64("m"), "the plaintext")
	v.refused("interop/before/keys/moved", "read", "interop/before/keys/moved")
	v.run("write", "interop/after/keys/moved/config", "deletion_allowed=true")
	v.run("secrets", "disable", "interop/after")
	v.run("auth", "disable", "interop-command")
	v.run("policy", "delete", "interop-command")
	v.refused("No policy named: interop-command", "policy", "read", "interop-command")
}

// commandNamespace works in a namespace.
func commandNamespace(v vault) {
	v.run("namespace", "create", "interop-command")
	v.shows(v.run("namespace", "list"), "interop-command/")
	v.shows(v.run("namespace", "lookup", "interop-command"), "interop-command/")
	v.run("write", "-namespace=interop-command", "-f", "transit/keys/orders")
	v.shows(v.run("list", "-namespace=interop-command", "transit/keys"), "orders")
	v.refused("namespace interop-command has 1 key: transit/orders", "namespace", "delete", "interop-command")
	v.run("namespace", "create", "interop-command-2")
	v.run("auth", "enable", "-namespace=interop-command-2", "userpass")
	v.shows(v.run("namespace", "delete", "interop-command-2"), "Success! Namespace deleted at: interop-command-2/")
	v.run("namespace", "create", "interop-command-2")
	if out := v.run("auth", "list", "-namespace=interop-command-2"); strings.Contains(out, "userpass") {
		v.fail("a way to log in of the former namespace is there:\n%s", out)
	}
}

// TestOperatorCommand is what an operator types, from an empty directory on: init over the local socket, status, share after share, seal.
func TestOperatorCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket, address := filepath.Join(dir, "local"), freeAddress(t)
	p := start(t, exec.Command(buildRotor(t), "server", "run", "--dir", dir, "--listen", address, "--socket", socket))
	local := vault{job: job{server: &server{address: "unix://" + socket}, ctx: t.Context()}, binary: tree(t, ".cache/interop/vault"), home: dir}
	until := func(v vault, what string) {
		p.await(t, func(context.Context) bool { out, _ := v.try("status"); return strings.Contains(out, what) })
	}
	if err := run(func(c check) {
		local.check = c
		until(local, "Initialized        false")
		local.refused("permission denied", "operator", "init", "-key-shares=3", "-key-threshold=2")
		secret, err := os.ReadFile(filepath.Join(dir, "init-secret"))
		c.ok(err, "read the enrolment secret")
		local.token = strings.TrimSpace(string(secret))
		var made struct {
			Shares []string `json:"unseal_keys_b64"`
			Token  string   `json:"root_token"`
		}
		c.ok(json.Unmarshal([]byte(local.run("operator", "init", "-key-shares=3", "-key-threshold=2", "-format=json")), &made), "parse the answer")
		over := local
		over.server, over.token = &server{address: "https://" + address, ca: filepath.Join(dir, "ca.pem")}, ""
		until(over, "Initialized        true")
		over.shows(over.run("operator", "unseal", made.Shares[0]), "Unseal Progress", "1/2")
		over.shows(over.run("operator", "unseal", "-format=json", made.Shares[2]), `"sealed": false`)
		over.shows(over.run("login", made.Token), "Success!")
		over.shows(over.run("secrets", "list"), "transit/")
		over.run("operator", "seal")
	}); err != nil {
		t.Error(err)
	}
}
