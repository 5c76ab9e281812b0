package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

type fields = map[string]any

// auth is a member of an answer's auth block.
func (a answer) auth(name string) any {
	m, _ := a.body["auth"].(map[string]any)
	return m[name]
}

// login gives the token of an answer.
func (a answer) login(t *testing.T) string {
	t.Helper()
	text, _ := a.auth("client_token").(string)
	if a.status != http.StatusOK || text == "" {
		t.Fatalf("%d %s", a.status, a.text)
	}
	return text
}

const appPolicy = `path "transit/encrypt/orders" { capabilities = ["update"] }
path "transit/keys" { capabilities = ["list"] }
path "auth/token/create" { capabilities = ["update"] }`

// TestVaultTokens: an administrator's session makes a token, which does what its policies say, hands on no more, and ends with its children.
func TestVaultTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.do("PUT", "sys/policies/acl/app", fields{"policy": appPolicy}).want(t, "policy", 204, "")
	op.do("PUT", "sys/policies/acl/bad", fields{"policy": "path {"}).want(t, "a bad policy", 400, "failed to parse policy")
	if a := op.do("GET", "sys/policies/acl/app", nil).want(t, "read", 200, `"name":"app"`); a.data("policy") != appPolicy {
		t.Error(a.text)
	}
	op.do("LIST", "sys/policies/acl", nil).want(t, "list", 200, `"keys":["app","default","root"]`)
	op.do("GET", "sys/policy", nil).want(t, "the old path", 200, `"policies":["app","default","root"]`)
	op.do("GET", "sys/policy/app", nil).want(t, "the old path", 200, `"rules":`)
	op.do("GET", "sys/policies/acl/none", nil).want(t, "none", 404, `{"errors":[]}`)
	op.do("DELETE", "sys/policies/acl/default", nil).want(t, "default", 400, "cannot delete")
	op.do("GET", "auth/token/lookup-self", nil).want(t, "lookup-self of a session", 200, `"policies":["root"]`)
	op.do("POST", "transit/keys/orders", nil)
	made := op.do("POST", "auth/token/create", fields{"policies": []string{"app"}, "ttl": "1h", "meta": fields{"team": "a"}, "display_name": "orders"})
	app := w.vault(made.login(t))
	for name, want := range (fields{"lease_duration": 3600.0, "renewable": true, "token_type": "service", "orphan": true, "num_uses": 0.0, "entity_id": "", "mfa_requirement": nil}) {
		if made.auth(name) != want {
			t.Errorf("%s: %v", name, made.auth(name))
		}
	}
	self := app.do("GET", "auth/token/lookup-self", nil).want(t, "lookup-self", 200, `"policies":["app","default"]`)
	for name, want := range (fields{
		"id": app.token, "accessor": made.auth("accessor"), "display_name": "token-orders", "path": "auth/token/create", "orphan": true, "type": "service", "explicit_max_ttl": 0.0, "creation_ttl": 3600.0,
		"renewable": true, "num_uses": 0.0,
	}) {
		if self.data(name) != want {
			t.Errorf("%s: %v", name, self.data(name))
		}
	}
	app.do("POST", "sys/capabilities-self", fields{"paths": []string{"transit/encrypt/orders", "transit/keys/orders"}}).want(t, "capabilities", 200, `"transit/encrypt/orders":["update"],"transit/keys/orders":["deny"]`)
	op.do("POST", "sys/capabilities-accessor", fields{"accessor": made.auth("accessor"), "path": "transit/keys"}).want(t, "capabilities", 200, `"capabilities":["list"]`)
	app.do("POST", "transit/encrypt/orders", fields{"plaintext": "YQ=="}).want(t, "encrypt", 200, "vault:v1:")
	for _, path := range []string{"transit/decrypt/orders", "transit/encrypt/other", "auth/token/lookup", "sys/policies/acl/app", "auth/token/accessors", "nowhere"} {
		app.do("POST", path, fields{}).want(t, path, 403, "permission denied")
	}
	child := w.vault(app.do("POST", "auth/token/create", fields{"ttl": 60}).login(t))
	app.do("POST", "auth/token/create", fields{"policies": "root"}).want(t, "root", 400, "root tokens may not be created without parent token being root")
	app.do("POST", "auth/token/create", fields{"policies": "other"}).want(t, "other policies", 400, "child policies must be subset of parent")
	app.do("POST", "auth/token/create", fields{"no_parent": true}).want(t, "orphan", 400, "root or sudo privileges required to create orphan token")
	app.do("POST", "auth/token/renew-self", fields{"increment": "2h"}).want(t, "renew-self", 200, `"lease_duration":7200`)
	op.do("POST", "auth/token/lookup-accessor", fields{"accessor": made.auth("accessor")}).want(t, "lookup-accessor", 200, `"id":""`)
	op.do("LIST", "auth/token/accessors", nil).want(t, "accessors", 200, made.auth("accessor").(string))
	op.do("POST", "auth/token/lookup", fields{"token": "hvs.none"}).want(t, "no token", 403, "bad token")
	app.do("POST", "auth/token/revoke-self", nil).want(t, "revoke-self", 204, "")
	for _, c := range []*vaultClient{app, child} {
		c.do("GET", "auth/token/lookup-self", nil).want(t, "a revoked token", 403, "permission denied")
	}
	op.do("POST", "auth/token/revoke", fields{"token": app.token}).want(t, "again", 204, "")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	child.address, op.address = "https://"+w.Address()+"/v1/", "https://"+w.Address()+"/v1/"
	child.do("GET", "auth/token/lookup-self", nil).want(t, "a revoked token after a restart", 403, "permission denied")
	root := w.vault(op.do("POST", "auth/token/create", nil).login(t))
	root.do("GET", "auth/token/lookup-self", nil).want(t, "a token like the session", 200, `"policies":["root"]`)
	root.do("GET", "sys/mounts", nil).want(t, "root", 200, "transit/")
}

// TestVaultAppRole is what an operator and an application do with AppRole.
func TestVaultAppRole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op, nobody := w.operator(), w.vault("")
	op.do("POST", "sys/auth/approle", fields{"type": "approle"}).want(t, "enable", 204, "")
	op.do("POST", "auth/approle/role/Orders", fields{
		"token_policies": "app", "token_ttl": "20m", "token_max_ttl": "30m", "secret_id_num_uses": 2, "secret_id_ttl": "1h", "token_bound_cidrs": []string{"127.0.0.0/8"},
	}).want(t, "role", 204, "")
	op.do("GET", "auth/approle/role/orders", nil).want(t, "read", 200, `"token_ttl":1200`)
	op.do("LIST", "auth/approle/role", nil).want(t, "list", 200, `"keys":["orders"]`)
	op.do("GET", "auth/approle/role/none", nil).want(t, "none", 404, `{"errors":[]}`)
	roleID := op.do("GET", "auth/approle/role/orders/role-id", nil).data("role_id")
	made := op.do("POST", "auth/approle/role/orders/secret-id", fields{"metadata": `{"host":"h1"}`}).want(t, "secret-id", 200, `"secret_id_num_uses":2`)
	login := func(role, secret any) answer {
		return nobody.do("POST", "auth/approle/login", fields{"role_id": role, "secret_id": secret})
	}
	first := login(roleID, made.data("secret_id")).want(t, "login", 200, `"policies":["app","default"]`)
	if m, _ := first.auth("metadata").(map[string]any); m["role_name"] != "orders" || m["host"] != "h1" || first.auth("lease_duration") != 1200.0 {
		t.Error(first.text)
	}
	app := w.vault(first.login(t))
	app.do("GET", "auth/token/lookup-self", nil).want(t, "lookup-self", 200, `"path":"auth/approle/login"`)
	for what, pair := range map[string][2]any{
		"a wrong secret ID": {roleID, "6f4b3c3c-7b3a-4c3e-8e55-000000000000"}, "a wrong role ID": {"x", made.data("secret_id")}, "both": {"x", "y"},
	} {
		login(pair[0], pair[1]).want(t, what, 400, `{"errors":["invalid role or secret ID"]}`)
	}
	login(roleID, "").want(t, "no secret ID", 400, "missing secret_id")
	login(roleID, made.data("secret_id")).want(t, "the second use", 200, "client_token")
	login(roleID, made.data("secret_id")).want(t, "the third use", 400, "invalid role or secret ID")
	w.offset.Add(int64(25 * time.Minute))
	app.do("GET", "auth/token/lookup-self", nil).want(t, "after its life", 403, "permission denied")
	custom := op.do("POST", "auth/approle/role/orders/custom-secret-id", fields{"secret_id": "chosen-by-a-client", "num_uses": 1, "ttl": 60})
	custom.want(t, "custom", 200, `"secret_id":"chosen-by-a-client"`)
	op.do("POST", "auth/approle/role/orders/custom-secret-id", fields{"secret_id": "chosen-by-a-client"}).want(t, "custom twice", 400, "already registered")
	op.do("POST", "auth/approle/role/orders/secret-id/lookup", fields{"secret_id": "chosen-by-a-client"}).want(t, "lookup", 200, `"secret_id_ttl":60`)
	op.do("POST", "auth/approle/role/orders/secret-id-accessor/lookup", fields{"secret_id_accessor": custom.data("secret_id_accessor")}).want(t, "lookup", 200, `"secret_id_num_uses":1`)
	op.do("LIST", "auth/approle/role/orders/secret-id", nil).want(t, "accessors", 200, custom.data("secret_id_accessor").(string))
	op.do("POST", "auth/approle/role/orders/secret-id-accessor/destroy", fields{"secret_id_accessor": custom.data("secret_id_accessor")}).want(t, "destroy", 204, "")
	login(roleID, "chosen-by-a-client").want(t, "destroyed", 400, "invalid role or secret ID")
	op.do("POST", "auth/approle/role/orders/secret-id", fields{"num_uses": 9}).want(t, "more than the role's", 400, "num_uses")
	op.do("POST", "auth/approle/role/orders/token-ttl", fields{"token_ttl": "5m"}).want(t, "a part", 204, "")
	op.do("GET", "auth/approle/role/orders/token-ttl", nil).want(t, "a part", 200, `"token_ttl":300`)
	op.do("DELETE", "auth/approle/role/orders/token-ttl", nil).want(t, "a part", 204, "")
	op.do("GET", "auth/approle/role/orders/token-ttl", nil).want(t, "a part", 200, `"token_ttl":0`)
	op.do("POST", "auth/approle/role/orders/policies", fields{"policies": "a,b"}).want(t, "policies", 204, "")
	op.do("GET", "auth/approle/role/orders/policies", nil).want(t, "policies", 200, `"token_policies":["a","b"]`)
	op.do("POST", "auth/approle/role/none/policies", fields{"policies": "a"}).want(t, "of no role", 404, "")
	op.do("POST", "auth/approle/role/orders/secret-id-bound-cidrs", fields{"secret_id_bound_cidrs": "192.0.2.0/24"}).want(t, "networks", 204, "")
	fresh := op.do("POST", "auth/approle/role/orders/secret-id", nil).data("secret_id")
	login(roleID, fresh).want(t, "from elsewhere", 400, "invalid role or secret ID")
	op.do("POST", "auth/approle/role/orders/role-id", fields{"role_id": "my-role"}).want(t, "role ID", 204, "")
	op.do("DELETE", "auth/approle/role/orders/secret-id-bound-cidrs", nil).want(t, "networks", 204, "")
	login("my-role", fresh).want(t, "by its own role ID", 200, "client_token")
	still := w.vault(login("my-role", fresh).login(t))
	op.do("DELETE", "auth/approle/role/orders", nil).want(t, "delete", 204, "")
	login("my-role", fresh).want(t, "no role", 400, "invalid role or secret ID")
	still.do("POST", "auth/token/renew-self", nil).want(t, "renewal without the role", 400, "cannot renew")
	op.do("DELETE", "sys/auth/approle", nil).want(t, "disable", 204, "")
	still.do("GET", "auth/token/lookup-self", nil).want(t, "a token of a mount that is gone", 403, "permission denied")
}

// TestVaultUserpass: names and passwords, and what somebody who tries them out finds.
func TestVaultUserpass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op, nobody := w.operator(), w.vault("")
	op.do("POST", "sys/auth/userpass", fields{"type": "userpass"}).want(t, "enable", 204, "")
	op.do("POST", "auth/userpass/users/Alice", fields{"password": "short"}).want(t, "a short password", 400, "at least 8")
	op.do("POST", "auth/userpass/users/alice", fields{"policies": "app"}).want(t, "no password", 400, "missing password")
	op.do("POST", "auth/userpass/users/Alice", fields{"password": "correct horse", "policies": "app", "ttl": "10m"}).want(t, "user", 204, "")
	op.do("GET", "auth/userpass/users/alice", nil).want(t, "read", 200, `"token_policies":["app"]`)
	login := func(name, password string) answer {
		return nobody.do("PUT", "auth/userpass/login/"+name, fields{"password": password})
	}
	a := login("ALICE", "correct horse").want(t, "login", 200, `"lease_duration":600`)
	if m, _ := a.auth("metadata").(map[string]any); m["username"] != "alice" {
		t.Error(a.text)
	}
	for what, pair := range map[string][2]string{"a wrong password": {"alice", "wrong horse"}, "a wrong name": {"bob", "correct horse"}} {
		login(pair[0], pair[1]).want(t, what, 400, `{"errors":["invalid username or password"]}`)
	}
	for range 5 {
		login("alice", "wrong horse")
	}
	login("alice", "correct horse").want(t, "locked", 400, "invalid username or password")
	w.offset.Add(int64(16 * time.Minute))
	login("alice", "correct horse").want(t, "after a while", 200, "client_token")
	op.do("POST", "auth/userpass/users/alice/password", fields{"password": "another horse"}).want(t, "password", 204, "")
	login("alice", "correct horse").want(t, "the old password", 400, "invalid username")
	login("alice", "another horse").want(t, "the new password", 200, "client_token")
	op.do("POST", "auth/userpass/users/bob/password", fields{"password": "another horse"}).want(t, "nobody's", 400, "username does not exist")
	op.do("LIST", "auth/userpass/users", nil).want(t, "list", 200, `"keys":["alice"]`)
	op.do("DELETE", "auth/userpass/users/Alice", nil).want(t, "delete", 204, "")
	login("alice", "another horse").want(t, "deleted", 400, "invalid username")
	if log := w.log.String(); strings.Contains(log, "horse") {
		t.Error("a password is in the log")
	}
	if fmt.Sprint(op.do("GET", "auth/userpass/users/alice", nil).status) != "404" {
		t.Error("it is still there")
	}
}
