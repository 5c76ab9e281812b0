package server_test

import (
	"encoding/base64"
	"strings"
	"testing"
)

// makes is a client with a new token, in the namespace of its maker.
func (c *vaultClient) makes(t *testing.T, ask m) *vaultClient {
	t.Helper()
	out := *c
	out.header, out.token = c.header.Clone(), c.do("POST", "auth/token/create", ask).login(t)
	return &out
}

// in is a client in a namespace.
func (c *vaultClient) in(namespace string) *vaultClient {
	out := *c
	out.header = c.header.Clone()
	out.header.Set("X-Vault-Namespace", namespace)
	return &out
}

// asked is a body as it is sent.
func asked(body string) []byte { return []byte(body) }

// TestVaultNamespaceIsNoCluster: whoever may do everything in a namespace does nothing to the server, the root key, the log or other namespaces.
func TestVaultNamespaceIsNoCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	root := op.makes(t, m{"policies": "root", "ttl": "1h"})
	root.must("POST", "sys/namespaces/team", nil)
	inTeam := root.in("team")
	team := inTeam.makes(t, m{"policies": "root", "ttl": "1h"})
	team.must("POST", "transit/keys/orders", nil)
	for _, q := range []struct{ method, path string }{
		{"POST", "sys/rotate"}, {"POST", "sys/seal"}, {"GET", "sys/audit"}, {"GET", "sys/key-status"}, {"LIST", "sys/namespaces"}, {"LIST", "sys/version-history"}, {"GET", "sys/config/cors"}, {"GET", "sys/ha-status"}, {"GET", "sys/metrics"},
	} {
		team.refuses(403, "permission denied", q.method, q.path, nil)
		inTeam.refuses(403, "permission denied", q.method, q.path, nil)
	}
	root.must("GET", "sys/namespaces/team", nil)
	for _, name := range []string{"team", "none"} { // one that there is and one that there is not
		team.refuses(404, "", "GET", "sys/namespaces/"+name, nil)
	}
	home := team.in("")
	home.refuses(403, "permission denied", "GET", "transit/keys/orders?help=1", nil)
	home.refuses(403, "permission denied", "GET", "transit/keys/orders", nil)
	root.must("GET", "sys/key-status", nil)
}

// TestVaultTellsNothingFirst: what cannot be read of a request is told to who has a right to its path.
func TestVaultTellsNothingFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nobody := w.operator().makes(t, m{"policies": "default"})
	for _, path := range []string{"transit/keys/orders", "none/keys/orders"} {
		nobody.refuses(403, "permission denied", "POST", path, asked(`{"type":`))
		nobody.refuses(403, "permission denied", "PATCH", path, m{})
		nobody.refuses(403, "permission denied", "GET", path+"?list=x", nil)
	}
}

// TestVaultBombs: short requests that stand for much are refused before they cost it, with and without the right.
func TestVaultBombs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	nobody := op.makes(t, m{"policies": "default"})
	backup := b64(`{"policy":{"name":"x"},"archived_keys":{"keys":[` + strings.Repeat("{},", 300_000) + `{}]}}`)
	nobody.refuses(403, "permission denied", "POST", "transit/restore/x", m{"backup": backup})
	nobody.refuses(403, "permission denied", "POST", "transit/restore", m{"backup": backup})
	op.refuses(400, "passes a limit", "POST", "transit/restore/x", m{"backup": backup})
	op.refuses(400, "passes a limit", "POST", "transit/restore/x", m{"backup": b64(`{"policy":{"keys":{"1":{"certificate_chain":[` + strings.Repeat(`"",`, 1_600_000) + `""]}}}}`)})
	nobody.refuses(400, "at most 10000 elements", "POST", "sys/capabilities-self", m{"paths": strings.Repeat("a,", 20_000)})
	nobody.refuses(400, "at most 1000 paths", "POST", "sys/capabilities-self", m{"paths": strings.Repeat("a,", 2_000)})
	op.refuses(400, "at most 10000 elements", "POST", "auth/token/create", m{"policies": strings.Repeat("a,", 20_000)})
	op.refuses(400, "at most 10000 elements", "POST", "auth/token/create", m{"meta": `{` + strings.Repeat(`"a":"b",`, 20_000) + `"c":"d"}`})
	op.refuses(400, "", "GET", "sys/health?activecode=101", nil)
	nobody.refuses(403, "permission denied", "POST", "transit/keys/x", m{"auto_rotate_windows": strings.Repeat(";", 20_000)})
	op.refuses(400, "windows", "POST", "transit/keys/x", m{"auto_rotate_windows": strings.Repeat(";", 20_000)})
}

// TestVaultDeniedParameters: what policies deny of a parameter is what the handler reads of it, also of a member that stands twice.
func TestVaultDeniedParameters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "transit/keys/sig", m{"type": "ecdsa-p256"})
	op.must("POST", "sys/policies/acl/some", m{"policy": `path "transit/sign/sig" { capabilities = ["update"]
denied_parameters = { "prehashed" = [true], "hash_algorithm" = ["sha1"] } }
path "auth/token/create" { capabilities = ["update", "sudo"]
denied_parameters = { "policies" = ["root", "admin"], "no_parent" = [] } }`})
	some := op.makes(t, m{"policies": "some"})
	some.must("POST", "transit/sign/sig", m{"input": b64("a")})
	for _, body := range []string{`"prehashed":true`, `"prehashed":1`, `"prehashed":"t"`, `"Prehashed":true`, `"hash_algorithm":"sha1"`, `"hash_algorithm":"SHA1"`} {
		some.refuses(403, "permission denied", "POST", "transit/sign/sig", asked(`{"input":"YQ==",`+body+`}`))
	}
	digest := b64(strings.Repeat("a", 20))
	plain := some.must("POST", "transit/sign/sig", asked(`{"input":"`+digest+`","prehashed":true,"prehashed":null,"hash_algorithm":"sha1","hash_algorithm":null}`)).str("signature")
	if v := op.must("POST", "transit/verify/sig", m{"input": digest, "signature": plain}); v.str("valid") != "true" {
		t.Error("a member that stands twice was signed by, though policies saw another")
	}
	for _, body := range []string{`"policies":"a,admin"`, `"policies":["a","Admin"]`, `"policies":["root"]`, `"no_parent":false`, `"no_parent":true,"no_parent":null`} {
		some.refuses(403, "permission denied", "POST", "auth/token/create", asked(`{`+body+`}`))
	}
}

// TestVaultWrapKeepsDigits: an answer that was kept comes back as it was.
func TestVaultWrapKeepsDigits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	kept := op.keeping(t, "60s", "POST", "sys/wrapping/wrap", asked(`{"n":12345678901234567890}`))
	if a := w.vault(kept).must("POST", "sys/wrapping/unwrap", nil); !strings.Contains(a.text, "12345678901234567890") {
		t.Error(a.text)
	}
}

// appRole is a client that has logged in by a role of an AppRole mount.
func (c *vaultClient) appRole(t *testing.T, mount, role string) *vaultClient {
	t.Helper()
	id := c.must("GET", mount+"/role/"+role+"/role-id", nil).str("role_id")
	secret := c.must("POST", mount+"/role/"+role+"/secret-id", nil).str("secret_id")
	out := *c
	out.token = ""
	out.token = out.do("POST", mount+"/login", m{"role_id": id, "secret_id": secret}).login(t)
	return &out
}

// TestVaultCallers: rules about a role are about that of its mount and namespace, and one that denies is also about the tokens that its bearer has made.
func TestVaultCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	w.rules(adminOnly + `  - {name: vault, callers: ["credential/operator"], actions: ["*"], keys: {namespace: "**", names: ["**"]}}
  - {name: trusted, callers: ["vault/approle/trusted"], actions: [encrypt], keys: {namespace: default, names: ["transit/orders"]}}
  - {name: blocked, effect: deny, callers: ["vault/approle/blocked", "vault/@team/**"], actions: [encrypt], keys: {namespace: "**", names: ["**"]}}
`)
	op.must("POST", "sys/policies/acl/all", m{"policy": `path "transit/*" { capabilities = ["create", "read", "update"] }
path "auth/token/create" { capabilities = ["update", "sudo"] }`})
	op.must("POST", "transit/keys/orders", nil)
	op.must("POST", "sys/namespaces/team", nil)
	team := op.in("team")
	for _, at := range []struct {
		*vaultClient
		mount string
	}{{op, "approle"}, {op, "other"}, {team, "approle"}} {
		at.must("POST", "sys/auth/"+at.mount, m{"type": "approle"})
		at.must("POST", "auth/"+at.mount+"/role/trusted", m{"token_policies": "default"})
		at.must("POST", "auth/"+at.mount+"/role/blocked", m{"token_policies": "all"})
	}
	text := m{"plaintext": "YQ=="}
	op.appRole(t, "auth/approle", "trusted").must("POST", "transit/encrypt/orders", text)
	op.appRole(t, "auth/other", "trusted").refuses(403, "permission denied", "POST", "transit/encrypt/orders", text)
	team.appRole(t, "auth/approle", "trusted").in("").refuses(403, "permission denied", "POST", "transit/encrypt/orders", text)
	op.appRole(t, "auth/other", "blocked").must("POST", "transit/encrypt/orders", text)

	blocked := op.appRole(t, "auth/approle", "blocked")
	blocked.refuses(403, "permission denied", "POST", "transit/encrypt/orders", text)
	child := blocked.makes(t, m{"display_name": "somebody-else"})
	orphan := child.makes(t, m{"no_parent": true})
	for _, c := range []*vaultClient{child, orphan} {
		c.refuses(403, "permission denied", "POST", "transit/encrypt/orders", text)
		c.must("GET", "transit/keys/orders", nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	orphan.address = "https://" + w.Address() + "/v1/"
	orphan.refuses(403, "permission denied", "POST", "transit/encrypt/orders", text)
	orphan.must("GET", "transit/keys/orders", nil)
}

// TestVaultChildren: a token hands on no network that it lacks, and what its role has given ends with the role.
func TestVaultChildren(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "sys/policies/acl/maker", m{"policy": `path "auth/token/create" { capabilities = ["update"] }
path "auth/token/create-orphan" { capabilities = ["update"] }`})
	op.must("POST", "auth/token/roles/bound", m{"token_bound_cidrs": "127.0.0.0/8", "allowed_policies": "maker", "token_period": "1h"})
	bound := w.vault(op.do("POST", "auth/token/create/bound", m{"policies": "maker"}).login(t))
	for _, path := range []string{"auth/token/create", "auth/token/create-orphan"} {
		child := w.vault(bound.do("POST", path, nil).login(t))
		child.do("GET", "auth/token/lookup-self", nil).want(t, path, 200, `"bound_cidrs":["127.0.0.0/8"]`)
	}
	bound.do("POST", "auth/token/renew-self", m{"increment": "9h"}).want(t, "by its period", 200, `"lease_duration":3600`)
	op.must("POST", "auth/token/roles/bound", m{"token_period": "2h"})
	bound.do("POST", "auth/token/renew-self", nil).want(t, "by the period that the role has now", 200, `"lease_duration":7200`)
	op.must("DELETE", "auth/token/roles/bound", nil)
	bound.refuses(400, "could not be found, not renewing", "POST", "auth/token/renew-self", nil)
}

// TestVaultDeriveKeyAsks: who may derive a key by one name uses no other key for it than one that it may.
func TestVaultDeriveKeyAsks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "transit/keys/secret", m{"type": "ecdsa-p256"})
	op.must("POST", "transit/keys/peer", m{"type": "ecdsa-p256"})
	op.must("POST", "sys/policies/acl/mine", m{"policy": `path "transit/+/mine" { capabilities = ["create", "read", "update"] }`})
	op.must("POST", "sys/policies/acl/both", m{"policy": `path "transit/derive-key/secret" { capabilities = ["update"] }`})
	read := op.must("GET", "transit/keys/peer", nil)
	pair, _ := read.members()["keys"].(m)
	first, _ := pair["1"].(m)
	ask := m{"base_key_name": "secret", "peer_public_key": first["public_key"]}
	op.makes(t, m{"policies": "mine"}).refuses(403, "permission denied", "POST", "transit/derive-key/mine", ask)
	op.makes(t, m{"policies": "mine,both"}).must("POST", "transit/derive-key/mine", ask)
}

// TestVaultNames: nobody takes a name that the house gives.
func TestVaultNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.refuses(400, "deleted keys", "POST", "transit/keys/orders.deleted-0123abcd", nil)
	op.must("POST", "transit/keys/orders.deleted-0123abc", nil)
	op.must("POST", "transit/keys/orders", m{"exportable": true, "allow_plaintext_backup": true})
	backup := op.must("GET", "transit/backup/orders", nil).str("backup")
	op.refuses(400, "deleted keys", "POST", "transit/restore/orders.deleted-0123abcd", m{"backup": backup})
	plain, err := base64.StdEncoding.DecodeString(backup)
	if err != nil {
		t.Fatal(err)
	}
	op.refuses(400, "cannot be paths", "POST", "transit/restore", m{"backup": b64(strings.Replace(string(plain), `"name":"orders"`, `"name":"a/b"`, 1))})
}

// TestVaultConfigIsWhole: a secret of a configuration goes to no other host than the one that it was given for.
func TestVaultConfigIsWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "sys/auth/kubernetes", m{"type": "kubernetes"})
	op.must("POST", "auth/kubernetes/config", m{"kubernetes_host": "https://one.invalid", "token_reviewer_jwt": "x"})
	op.must("POST", "auth/kubernetes/config", m{"kubernetes_host": "https://two.invalid"})
	if a := op.must("GET", "auth/kubernetes/config", nil); a.str("token_reviewer_jwt_set") != "false" {
		t.Error(a.text)
	}
}

// TestVaultNamespaceNames: no namespace has a name with which paths of the home namespace begin, and no mount there has that of a namespace: what a policy
// allows below the one would be everything in the other.
func TestVaultNamespaceNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	for _, name := range []string{"sys", "auth", "root", "transit", "identity", "cubbyhole", "audit"} {
		op.refuses(400, "paths of the namespace that the others are in begin with it", "POST", "sys/namespaces/"+name, nil)
	}
	op.must("POST", "sys/mounts/team/keys", m{"type": "transit"})
	op.refuses(400, "begin with it", "POST", "sys/namespaces/team", nil)
	op.must("POST", "sys/namespaces/prod", nil)
	op.refuses(400, "in use by the namespace prod", "POST", "sys/mounts/prod", m{"type": "transit"})
	op.refuses(400, "in use by the namespace prod", "POST", "sys/mounts/prod/keys", m{"type": "transit"})
	op.refuses(400, "in use by the namespace prod", "POST", "sys/remount", m{"from": "transit", "to": "prod/transit"})
	op.must("POST", "sys/mounts/default", m{"type": "transit"})
	op.in("prod").must("POST", "sys/mounts/prod", m{"type": "transit"})
}
