package server_test

import (
	"net/http"
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
	w := newWorld(t)
	op := w.operator()
	root := op.makes(t, m{"policies": "root", "ttl": "1h"})
	root.must("POST", "sys/namespaces/team", nil)
	inTeam := root.in("team")
	team := inTeam.makes(t, m{"policies": "root", "ttl": "1h"})
	team.must("POST", "transit/keys/orders", nil)
	for _, q := range []struct{ method, path string }{
		{"POST", "sys/rotate"}, {"POST", "sys/seal"}, {"GET", "sys/audit"}, {"GET", "sys/key-status"}, {"LIST", "sys/namespaces"}, {"LIST", "sys/version-history"}, {"GET", "sys/config/cors"},
	} {
		team.refuses(403, "permission denied", q.method, q.path, nil)
		inTeam.refuses(403, "permission denied", q.method, q.path, nil)
	}
	home := team.in("")
	home.refuses(403, "permission denied", "GET", "transit/keys/orders?help=1", nil)
	home.refuses(403, "permission denied", "GET", "transit/keys/orders", nil)
	root.must("GET", "sys/key-status", nil)
}

// TestVaultTellsNothingFirst: what cannot be read of a request is told to who has a right to its path.
func TestVaultTellsNothingFirst(t *testing.T) {
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
	w := newWorld(t)
	op := w.operator()
	nobody := op.makes(t, m{"policies": "default"})
	backup := b64(`{"policy":{"name":"x"},"archived_keys":{"keys":[` + strings.Repeat("{},", 300_000) + `{}]}}`)
	nobody.refuses(403, "permission denied", "POST", "transit/restore/x", m{"backup": backup})
	nobody.refuses(403, "permission denied", "POST", "transit/restore", m{"backup": backup})
	op.refuses(http.StatusRequestEntityTooLarge, "too large", "POST", "transit/restore/x", m{"backup": backup})
	op.refuses(http.StatusRequestEntityTooLarge, "too large", "POST", "transit/restore/x", m{"backup": b64(`{"policy":{"keys":{"1":{"certificate_chain":[` + strings.Repeat(`"",`, 1_600_000) + `""]}}}}`)})
	nobody.refuses(400, "at most 10000 elements", "POST", "sys/capabilities-self", m{"paths": strings.Repeat("a,", 20_000)})
	nobody.refuses(400, "at most 1000 paths", "POST", "sys/capabilities-self", m{"paths": strings.Repeat("a,", 2_000)})
	op.refuses(400, "at most 10000 elements", "POST", "auth/token/create", m{"policies": strings.Repeat("a,", 20_000)})
	op.refuses(400, "at most 10000 elements", "POST", "auth/token/create", m{"meta": `{` + strings.Repeat(`"a":"b",`, 20_000) + `"c":"d"}`})
	op.refuses(400, "", "GET", "sys/health?activecode=101", nil)
}

// TestVaultDeniedParameters: what policies deny of a parameter is what the handler reads of it, also of a member that stands twice.
func TestVaultDeniedParameters(t *testing.T) {
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
	w := newWorld(t)
	op := w.operator()
	kept := op.keeping(t, "60s", "POST", "sys/wrapping/wrap", asked(`{"n":12345678901234567890}`))
	if a := w.vault(kept).must("POST", "sys/wrapping/unwrap", nil); !strings.Contains(a.text, "12345678901234567890") {
		t.Error(a.text)
	}
}
