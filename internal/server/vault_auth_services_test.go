//go:build services

package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/testenv"
)

// authStep is one request of a conversation about tokens and logins. Texts may have $NAME of what was kept.
type authStep struct {
	method, path string
	body         m
	as           string // name of the token that it shows; "": the administrator's; "none": none
	keep         string // name under which the answer's token and accessor are kept, as NAME and NAME.accessor, or its members of data
	known        string // why the answers differ; "": they do not
}

// TestVaultPeerAuth asks a real Vault and rotor the same about policies, tokens and logins: statuses, error texts, and which members the answers have are the same.
func TestVaultPeerAuth(t *testing.T) {
	real := testenv.Vault(t)
	ours := newWorld(t).operator()
	ours.token = fmt.Sprint(ours.do("POST", "auth/token/create", m{"policies": []string{"root"}, "ttl": "1h"}).body["auth"].(map[string]any)["client_token"]) // of the kind that theirs is
	theirs := &vaultClient{t, real.Address + "/v1/", real.Root, http.Header{}, ours.http}
	kept := [2]map[string]string{{}, {}}
	for i, s := range authConversation() {
		var got [2]answer
		for j, c := range []*vaultClient{ours, theirs} {
			got[j] = s.ask(c, kept[j])
		}
		if diff := differs(got[0], got[1]); (diff != "") != (s.known != "") {
			t.Errorf("%d %s %s %v as %q: %s (known: %q)\n  rotor: %d %.900s\n  Vault: %d %.900s", i, s.method, s.path, s.body, s.as, diff, s.known, got[0].status, got[0].text, got[1].status, got[1].text)
		}
	}
}

func (s authStep) ask(c *vaultClient, kept map[string]string) answer {
	b, _ := json.Marshal(s.body)
	path, text := s.path, string(b)
	for name, value := range kept {
		path, text = strings.ReplaceAll(path, "$"+name+"$", value), strings.ReplaceAll(text, "$"+name+"$", value)
	}
	one := *c
	switch {
	case s.as == "none":
		one.token = ""
	case s.as != "":
		one.token = kept[s.as]
	}
	var body any
	if s.body != nil {
		body = []byte(text)
	}
	a := one.do(s.method, path, body)
	if s.keep == "" {
		return a
	}
	if auth, ok := a.body["auth"].(map[string]any); ok {
		kept[s.keep], kept[s.keep+".accessor"] = fmt.Sprint(auth["client_token"]), fmt.Sprint(auth["accessor"])
	}
	if data, ok := a.body["data"].(map[string]any); ok {
		kept[s.keep] = fmt.Sprint(data[s.keep])
	}
	return a
}

func authConversation() []authStep {
	get := func(path string) authStep { return authStep{method: "GET", path: path} }
	list := func(path string) authStep { return authStep{method: "LIST", path: path} }
	del := func(path string) authStep { return authStep{method: "DELETE", path: path} }
	post := func(path string, body m) authStep { return authStep{method: "POST", path: path, body: body} }
	keep := func(name string, s authStep) authStep { s.keep = name; return s }
	as := func(name string, s authStep) authStep { s.as = name; return s }
	known := func(why string, s authStep) authStep { s.known = why; return s }
	return []authStep{
		list("sys/policies/acl"), get("sys/policy"), get("sys/policies/acl/none"), post("sys/policies/acl/app", m{"policy": `path "transit/*" { capabilities = ["create", "update", "read"] }`}), get("sys/policies/acl/app"), get("sys/policy/app"),
		post("sys/policies/acl/bad", m{"policy": ``}), del("sys/policies/acl/none"), del("sys/policies/acl/default"), post("sys/policies/acl/root", m{"policy": `path "x" {}`}), get("sys/policies/acl/default"),
		post("sys/capabilities-self", m{"paths": []string{"transit/keys/a"}}), post("sys/capabilities-self", m{"paths": []string{"transit/keys/a", "b"}}), post("sys/capabilities-self", m{}),

		keep("t", post("auth/token/create", m{"policies": []string{"app"}, "ttl": "1h", "meta": m{"a": "b"}, "display_name": "x y"})), as("t", get("auth/token/lookup-self")), post("auth/token/lookup", m{"token": "$t$"}), post("auth/token/lookup-accessor", m{"accessor": "$t.accessor$"}),
		as("t", post("auth/token/renew-self", m{})), post("auth/token/renew", m{"token": "$t$", "increment": "5m"}), post("auth/token/renew-accessor", m{"accessor": "$t.accessor$"}), as("t", get("auth/token/lookup-self")), known("the policy default is shorter", as("t", get("sys/internal/ui/resultant-acl"))),
		as("t", post("sys/capabilities-self", m{"paths": []string{"transit/keys/a"}})), post("sys/capabilities", m{"token": "$t$", "paths": []string{"transit/keys/a"}}), post("sys/capabilities-accessor", m{"accessor": "$t.accessor$", "paths": []string{"x"}}),
		as("t", get("sys/policies/acl/app")), as("t", post("auth/token/create", m{"policies": []string{"root"}})), as("t", post("transit/keys/a/rotate", nil)), as("none", get("auth/token/lookup-self")), as("none", post("transit/keys/a", nil)),
		post("auth/token/lookup", m{"token": "none"}), post("auth/token/lookup-accessor", m{"accessor": "none"}), post("auth/token/renew", m{"token": "none"}), post("auth/token/create", m{"num_uses": -1}), post("auth/token/create", m{"type": "x"}),
		keep("p", post("auth/token/create", m{"policies": []string{"app"}, "period": "1h"})), as("p", get("auth/token/lookup-self")), keep("o", post("auth/token/create-orphan", m{"policies": []string{"app"}, "num_uses": 3})), as("o", get("auth/token/lookup-self")),
		as("o", post("auth/token/create", m{})), post("auth/token/revoke", m{"token": "$t$"}), as("t", get("auth/token/lookup-self")), post("auth/token/revoke-accessor", m{"accessor": "$p.accessor$"}), post("auth/token/revoke-accessor", m{"accessor": "none"}),

		keep("b", post("auth/token/create", m{"policies": []string{"app"}, "type": "batch", "ttl": "1h", "meta": m{"a": "b"}})), as("b", get("auth/token/lookup-self")), post("auth/token/lookup", m{"token": "$b$"}), as("b", post("auth/token/renew-self", m{})), as("b", post("auth/token/revoke-self", nil)),
		post("auth/token/renew", m{"token": "$b$"}), post("auth/token/revoke", m{"token": "$b$"}), as("b", post("auth/token/create", m{})), as("b", post("transit/encrypt/k", m{"plaintext": "YQ=="})), post("auth/token/create", m{"type": "batch"}), post("auth/token/create", m{"type": "batch", "num_uses": 1}),
		post("auth/token/create", m{"type": "batch", "period": "1h"}), post("auth/token/create", m{"type": "batch", "explicit_max_ttl": "1h"}),

		list("auth/token/roles"), get("auth/token/roles/none"), post("auth/token/roles/r", m{"allowed_policies": "app", "orphan": true}), get("auth/token/roles/r"), keep("r", post("auth/token/create/r", m{})), as("r", get("auth/token/lookup-self")), post("auth/token/create/none", m{}),
		post("auth/token/create/r", m{"policies": []string{"other"}}), post("auth/token/roles/b", m{"token_type": "batch"}), post("auth/token/roles/b", m{"token_type": "batch", "orphan": true}), post("auth/token/roles/b", m{"token_type": "batch", "orphan": true, "renewable": false, "allowed_policies": "app"}),
		keep("rb", post("auth/token/create/b", m{})), as("rb", get("auth/token/lookup-self")), del("auth/token/roles/r"), list("auth/token/roles"),

		post("sys/auth/approle", m{"type": "approle"}), list("auth/approle/role"), get("auth/approle/role/none"), post("auth/approle/role/a", m{"token_policies": "app", "token_ttl": "20m", "secret_id_num_uses": 2}), known("older names are shown, too", get("auth/approle/role/a")), keep("role_id", get("auth/approle/role/a/role-id")),
		keep("secret_id", post("auth/approle/role/a/secret-id", nil)), keep("l", as("none", post("auth/approle/login", m{"role_id": "$role_id$", "secret_id": "$secret_id$"}))), as("l", get("auth/token/lookup-self")), as("l", post("auth/token/renew-self", m{})), list("auth/approle/role/a/secret-id"),
		post("auth/approle/role/a/secret-id/lookup", m{"secret_id": "$secret_id$"}), known("the words of a newer Vault", as("none", post("auth/approle/login", m{"role_id": "$role_id$", "secret_id": "none"}))), known("the words of a newer Vault", as("none", post("auth/approle/login", m{"role_id": "none", "secret_id": "x"}))), known("it is the client that is wrong", as("none", post("auth/approle/login", m{}))), as("none", post("auth/approle/login", m{"role_id": "$role_id$"})),
		post("auth/approle/role/a", m{"token_type": "batch"}), keep("lb", as("none", post("auth/approle/login", m{"role_id": "$role_id$", "secret_id": "$secret_id$"}))), as("lb", get("auth/token/lookup-self")), post("auth/approle/role/a/secret-id/destroy", m{"secret_id": "$secret_id$"}), get("auth/approle/role/a/token-ttl"), known("older names are shown, too", get("auth/approle/role/a/policies")),
		del("auth/approle/role/a"), list("auth/approle/role"),

		post("sys/auth/userpass", m{"type": "userpass"}), list("auth/userpass/users"), post("auth/userpass/users/ana", m{"password": "a long password", "token_policies": "app"}), get("auth/userpass/users/ana"), list("auth/userpass/users"), keep("u", as("none", post("auth/userpass/login/ana", m{"password": "a long password"}))),
		as("u", get("auth/token/lookup-self")), as("u", post("auth/token/revoke-self", nil)), as("u", get("auth/token/lookup-self")), as("none", post("auth/userpass/login/ana", m{"password": "wrong"})), as("none", post("auth/userpass/login/bob", m{"password": "wrong"})), known("it is the client that is wrong", as("none", post("auth/userpass/login/ana", m{}))),
		post("auth/userpass/users/ana/password", m{"password": "another password"}), post("auth/userpass/users/ana/policies", m{"token_policies": "app,x"}), del("auth/userpass/users/ana"), get("auth/userpass/users/ana"),
	}
}
