package server_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

// want fails the test unless an answer has a status, and a text in it.
func (a answer) want(t *testing.T, what string, status int, text string) answer {
	t.Helper()
	if a.status != status || !strings.Contains(a.text, text) {
		t.Errorf("%s: %d %.400s, want %d with %q", what, a.status, a.text, status, text)
	}
	return a
}

// data is a member of an answer's data, by names between dots.
func (a answer) data(path string) any {
	v := a.body["data"]
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// TestVaultStatus: what everybody may ask an open server, by the statuses that load balancers choose.
func TestVaultStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nobody := w.vault("")
	a := nobody.do("GET", "sys/health", nil).want(t, "health", 200, `"initialized":true`)
	if a.body["sealed"] != false || a.body["standby"] != false || !strings.HasSuffix(a.body["version"].(string), "+rotor."+server.Version) || len(a.body["cluster_id"].(string)) != 36 {
		t.Error(a.text)
	}
	nobody.do("HEAD", "sys/health", nil).want(t, "HEAD", 200, "")
	nobody.do("GET", "sys/health?activecode=299", nil).want(t, "activecode", 299, "initialized")
	nobody.do("GET", "sys/health?activecode=x", nil).want(t, "a code that is none", 400, `{"errors":[]}`)
	nobody.do("GET", "sys/health?standbyok=x", nil).want(t, "standbyok", 400, `{"errors":[]}`)
	nobody.do("DELETE", "sys/health", nil).want(t, "another method", 405, "unsupported operation")
	a = nobody.do("GET", "sys/seal-status", nil).want(t, "seal-status", 200, `"type":"local"`)
	if a.body["sealed"] != false || a.body["initialized"] != true || a.body["storage_type"] != "bolt" || a.body["recovery_seal"] != true {
		t.Error(a.text)
	}
	nobody.do("GET", "sys/leader", nil).want(t, "leader", 200, `"is_self":true`)
	nobody.do("GET", "sys/init", nil).want(t, "init", 200, `{"initialized":true}`)
	nobody.do("PUT", "sys/init", map[string]int{"secret_shares": 1}).want(t, "a second init", 400, "Vault is already initialized")
	nobody.do("PUT", "sys/unseal", map[string]any{}).want(t, "no key", 400, "'key' must be specified")
	nobody.do("PUT", "sys/unseal", map[string]any{"reset": true}).want(t, "reset", 400, "vault is unsealed")
	nobody.do("PUT", "sys/unseal", map[string]any{"key": "aa"}).want(t, "a share of an open server", 200, `"sealed":false`)
	nobody.do("PUT", "sys/seal", nil).want(t, "seal by nobody", 403, "permission denied")
	nobody.do("GET", "sys/mounts", nil).want(t, "mounts by nobody", 403, "permission denied")
}

// TestVaultUnseal is what people do with the vault command: status, share after share, and the server serves at the same address at once.
func TestVaultUnseal(t *testing.T) {
	t.Parallel()
	w, shares := sealedWorld(t, "shamir:2/3")
	v := w.vault("")
	status := func(what string, want map[string]any) {
		t.Helper()
		a := v.do("GET", "sys/seal-status", nil)
		for name, value := range want {
			if fmt.Sprint(a.body[name]) != fmt.Sprint(value) {
				t.Errorf("%s: %s is %v, want %v", what, name, a.body[name], value)
			}
		}
	}
	status("at first", map[string]any{"sealed": true, "type": "shamir", "t": 2, "n": 3, "progress": 0, "initialized": true, "storage_type": "bolt"})
	v.do("GET", "sys/health", nil).want(t, "health", 503, `"sealed":true`)
	v.do("GET", "sys/health?sealedcode=204", nil).want(t, "sealedcode", 204, "")
	v.do("GET", "sys/leader", nil).want(t, "leader", 503, "Vault is sealed")
	v.do("GET", "sys/init", nil).want(t, "init", 200, `{"initialized":true}`)
	for _, path := range []string{"transit/encrypt/a", "sys/mounts", "auth/token/lookup-self", "sys/wrapping/unwrap", "nowhere"} {
		v.do("POST", path, map[string]any{}).want(t, path, 503, `{"errors":["Vault is sealed"]}`)
	}
	put := func(body map[string]any) answer { return v.do("PUT", "sys/unseal", body) }
	put(map[string]any{}).want(t, "no key", 400, "'key' must be specified in request body as JSON, or 'reset' set to true")
	put(map[string]any{"key": "5f2c"}).want(t, "what is no share", 400, "a share begins with rs1-")
	put(map[string]any{"key": shares[0], "migrate": true}).want(t, "migrate", 400, "nothing is migrated")
	a := put(map[string]any{"key": shares[0]}).want(t, "a share", 200, `"progress":1`)
	put(map[string]any{"key": shares[0]}).want(t, "the same share", 200, `"progress":1`)
	status("to everybody", map[string]any{"progress": 1, "nonce": ""})
	put(map[string]any{"reset": true}).want(t, "reset by guessing", 400, "reset or has ended")
	put(map[string]any{"reset": true, "nonce": a.body["nonce"]}).want(t, "reset", 200, `"progress":0`)
	put(map[string]any{"key": shares[2]}).want(t, "a share", 200, `"progress":1`)
	put(map[string]any{"key": shares[1]}).want(t, "the last share", 200, `"sealed":false`)
	v.do("GET", "sys/health", nil).want(t, "health, at once", 200, `"sealed":false`)
	w.Opened()
	w.operator().do("PUT", "sys/seal", nil).want(t, "seal", 204, "")
	if err := w.Wait(); !server.StartsAgain(err) {
		t.Error(err)
	}
}

// TestVaultUnsealWrong: whoever tries shares is stopped after a number of wrong ones.
func TestVaultUnsealWrong(t *testing.T) {
	t.Parallel()
	w, _ := sealedWorld(t, "shamir:2/3")
	v := w.vault("")
	for i := range 30 {
		a := v.do("PUT", "sys/unseal", map[string]any{"key": "rs1-x"})
		if want := 400; i < 20 && a.status != want || i >= 20 && a.status != http.StatusTooManyRequests {
			t.Fatalf("wrong share %d: %d %s", i+1, a.status, a.text)
		}
	}
}

// TestVaultMounts: engines and ways to log in are mounted, tuned, listed and unmounted as in Vault.
func TestVaultMounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	a := op.do("GET", "sys/mounts", nil).want(t, "mounts", 200, `"transit/"`)
	if top, _ := a.body["transit/"].(map[string]any); a.data("transit/.type") != "transit" || top["type"] != "transit" || a.data("sys/.type") != "system" || a.data("token/") != nil {
		t.Error(a.text)
	}
	op.do("POST", "sys/mounts/team/a", map[string]any{
		"type": "transit", "description": "of a", "config": map[string]any{"default_lease_ttl": "1h", "max_lease_ttl": "2h", "audit_non_hmac_request_keys": []string{"x"}, "unknown": 1}, "options": map[string]any{"v": 2},
	}).want(t, "enable", 204, "")
	a = op.do("GET", "sys/mounts/team/a", nil).want(t, "show", 200, `"transit"`)
	if a.data("config.default_lease_ttl") != 3600.0 || a.data("config.max_lease_ttl") != 7200.0 || a.data("options.v") != "2" || a.data("description") != "of a" || fmt.Sprint(a.data("config.audit_non_hmac_request_keys")) != "[x]" {
		t.Error(a.text)
	}
	op.do("PUT", "sys/mounts/team/a/tune", map[string]any{"max_lease_ttl": "30m"}).want(t, "tune", 400, "backend max lease TTL of 1800 would be less than backend default lease TTL of 3600")
	op.do("PUT", "sys/mounts/team/a/tune", map[string]any{"default_lease_ttl": "system", "max_lease_ttl": 60, "description": "", "listing_visibility": "unauth"}).want(t, "tune", 204, "")
	a = op.do("GET", "sys/mounts/team/a/tune", nil).want(t, "tuned", 200, `"listing_visibility":"unauth"`)
	if a.data("default_lease_ttl") != 60.0 || a.data("max_lease_ttl") != 60.0 || a.data("description") != "" {
		t.Error(a.text)
	}
	for _, c := range []struct {
		method, path string
		body         map[string]any
		status       int
		text         string
	}{
		{"POST", "sys/mounts/team/a", map[string]any{"type": "transit"}, 400, "path is already in use at team/a/"},
		{"POST", "sys/mounts/team", map[string]any{"type": "transit"}, 400, "path is already in use at team/a/"},
		{"POST", "sys/mounts/kv", map[string]any{"type": "kv"}, 400, "plugin not found in the catalog: kv"},
		{"POST", "sys/mounts/x", map[string]any{}, 400, "backend type must be specified as a string"},
		{"POST", "sys/mounts/sys/a", map[string]any{"type": "transit"}, 400, `cannot mount \"sys/a/\"`},
		{"POST", "sys/mounts/x", map[string]any{"type": "token"}, 400, `mount type of \"token\" is not mountable`},
		{"POST", "sys/mounts/x", map[string]any{"type": "transit", "config": map[string]any{"token_type": "batch"}}, 400, "can only be modified on auth mounts"},
		{"GET", "sys/mounts/none", nil, 400, "No secret engine mount at none/"},
		{"GET", "sys/auth/none", nil, 400, "No auth engine at none/"},
		{"GET", "sys/mounts/none/tune", nil, 400, `cannot fetch sysview for path \"none/\"`},
		{"POST", "sys/mounts/none/tune", map[string]any{"description": "x"}, 400, `tune of path \"none/\" failed: no mount entry found`},
		{"POST", "sys/mounts/sys/tune", map[string]any{"description": "x"}, 400, `cannot tune \"sys/\"`},
		{"DELETE", "sys/mounts/none", nil, 204, ""},
		{"DELETE", "sys/mounts/sys", nil, 400, `cannot unmount \"sys/\"`},
		{"DELETE", "sys/auth/token", nil, 400, "token credential backend cannot be disabled"},
		{"POST", "sys/auth/approle", map[string]any{"type": "approle"}, 204, ""},
		{"POST", "sys/auth/approle", map[string]any{"type": "approle"}, 400, "path is already in use at approle/"},
		{"GET", "sys/auth/approle", nil, 200, `"token_type":"default-service"`},
		{"GET", "sys/auth", nil, 200, `"approle/"`},
		{"PUT", "sys/auth/token/tune", map[string]any{"max_lease_ttl": "1h"}, 204, ""},
		{"GET", "sys/auth/token/tune", nil, 200, `"max_lease_ttl":3600`},
		{"POST", "sys/remount", map[string]any{"from": "team/none", "to": "team/b"}, 400, `no matching mount at \"team/none/\"`},
		{"POST", "sys/remount", map[string]any{"from": "sys", "to": "team/b"}, 400, `cannot remount \"sys/\"`},
		{"POST", "team/a/keys/x", nil, 200, ""},
		{"POST", "sys/remount", map[string]any{"from": "team/a", "to": "team/b"}, 200, `"migration_id"`},
		{"GET", "team/b/keys/x", nil, 200, `"latest_version":1`},
		{"GET", "team/a/keys/x", nil, 404, "no handler for route"},
		{"GET", "sys/remount/status/none", nil, 404, ""},
		{"POST", "team/b/keys/x/config", map[string]any{"deletion_allowed": true}, 200, ""},
		{"POST", "sys/remount", map[string]any{"from": "team/b", "to": "team/a"}, 200, `"migration_id"`},
		{"POST", "sys/remount", map[string]any{"from": "auth/approle", "to": "auth/apps"}, 200, `"migration_id"`},
		{"POST", "sys/remount", map[string]any{"from": "auth/apps", "to": "apps"}, 400, "cannot remount auth mount to non-auth mount"},
		{"GET", "auth/apps/role/x", nil, 404, `{"errors":[]}`},
		{"GET", "sys/internal/ui/mounts", nil, 200, `"team/a/"`},
		{"GET", "sys/internal/ui/mounts/team/a/keys/x", nil, 200, `"path":"team/a/"`},
		{"GET", "sys/internal/ui/mounts/nowhere/x", nil, 403, `grant access to path \"nowhere/x/\"`},
		{"DELETE", "sys/mounts/team/a", nil, 204, ""},
		{"GET", "sys/mounts/team/a", nil, 400, "No secret engine mount at team/a/"},
		{"GET", "team/a/keys/x", nil, 404, "no handler for route"},
		{"GET", "sys/nothing", nil, 404, "unsupported path"},
	} {
		op.do(c.method, c.path, c.body).want(t, c.method+" "+c.path, c.status, c.text)
	}
}

// TestVaultVisible: a stranger sees what is mounted for strangers, and no more of it than what it is.
func TestVaultVisible(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.do("POST", "sys/auth/approle", map[string]any{"type": "approle", "config": map[string]any{"listing_visibility": "unauth"}}).want(t, "enable", 204, "")
	a := w.vault("").do("GET", "sys/internal/ui/mounts", nil).want(t, "by a stranger", 200, `"approle/"`)
	if fmt.Sprint(a.data("secret")) != "map[]" || strings.Contains(a.text, "accessor") || strings.Contains(a.text, "token/") {
		t.Error(a.text)
	}
	w.vault("").do("GET", "sys/internal/ui/mounts/transit", nil).want(t, "one by a stranger", 403, "permission denied")
}

// TestVaultNamespaces: a namespace is made, is in the header, and is deleted.
func TestVaultNamespaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.do("LIST", "sys/namespaces", nil).want(t, "none yet", 404, `{"errors":[]}`)
	op.do("GET", "sys/namespaces/prod", nil).want(t, "not there", 404, `{"errors":[]}`)
	op.header.Set("X-Vault-Namespace", "prod")
	op.do("GET", "sys/mounts", nil).want(t, "in a namespace that is not there", 404, "there is no such namespace")
	op.header.Del("X-Vault-Namespace")
	op.do("POST", "sys/namespaces/prod", map[string]any{}).want(t, "make", 200, `"path":"prod/"`)
	op.do("POST", "sys/namespaces/prod", map[string]any{}).want(t, "make again", 200, `"path":"prod/"`)
	op.do("POST", "sys/namespaces/Prod", map[string]any{}).want(t, "a bad name", 400, "invalid namespace")
	if a := op.do("LIST", "sys/namespaces", nil).want(t, "list", 200, "key_info"); fmt.Sprint(a.data("keys")) != "[prod/]" {
		t.Error(a.text)
	}
	op.do("DELETE", "sys/namespaces/none", nil).want(t, "delete what is not there", 204, "")
	for _, name := range []string{"prod", "prod/", "/prod"} {
		op.header.Set("X-Vault-Namespace", name)
		op.do("GET", "sys/mounts", nil).want(t, name, 200, `"transit/"`)
	}
	op.do("POST", "sys/mounts/own", map[string]any{"type": "transit"}).want(t, "mount there", 204, "")
	op.header.Del("X-Vault-Namespace")
	op.do("GET", "sys/mounts/own", nil).want(t, "elsewhere", 400, "No secret engine mount")
	op.do("DELETE", "sys/namespaces/prod", nil).want(t, "delete", 204, "")
	op.do("LIST", "sys/namespaces", nil).want(t, "none any more", 404, `{"errors":[]}`)
}

// TestVaultTools: random bytes and hashes, in each form of the call.
func TestVaultTools(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	for _, c := range []struct {
		path string
		body map[string]any
		n    int // bytes; 0: refused
		text string
	}{
		{"random", nil, 32, ""}, {"random/16", nil, 16, ""}, {"random", map[string]any{"bytes": "8"}, 8, ""}, {"random/platform", map[string]any{"bytes": 9}, 9, ""}, {"random/all/10", nil, 10, ""},
		{"random/seal/11", nil, 11, ""}, {"random/0", nil, 0, `\"bytes\" cannot be less than 1`}, {"random/131073", nil, 0, "should be less than 131072"}, {"random/131072", nil, 131072, ""},
		{"random/x", nil, 0, "error parsing url-set byte count"}, {"random/nowhere/8", nil, 0, "unsupported entropy source"}, {"random", map[string]any{"format": "x"}, 0, "unsupported encoding format"},
	} {
		a := op.do("POST", "sys/tools/"+c.path, c.body)
		b, _ := a.data("random_bytes").(string)
		got, err := base64.StdEncoding.DecodeString(b)
		if c.n > 0 && (err != nil || len(got) != c.n) || c.n == 0 && (a.status != 400 || !strings.Contains(a.text, c.text)) {
			t.Errorf("%s: %d %.200s", c.path, a.status, a.text)
		}
	}
	if a := op.do("POST", "sys/tools/random/4", map[string]any{"format": "hex"}); len(fmt.Sprint(a.data("random_bytes"))) != 8 {
		t.Error(a.text)
	}
	for path, want := range map[string]string{ // FIPS 180-4 and FIPS 202 of "abc"
		"hash":          "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"hash/sha2-224": "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
		"hash/sha3-256": "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
	} {
		op.do("POST", "sys/tools/"+path, map[string]any{"input": "YWJj"}).want(t, path, 200, `"sum":"`+want+`"`)
	}
	op.do("POST", "sys/tools/hash", map[string]any{"input": "YWJj", "algorithm": "sha2-512", "format": "base64"}).want(t, "base64", 200, `"sum":"3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw=="`)
	op.do("POST", "sys/tools/hash", map[string]any{"input": "%"}).want(t, "no base64", 400, "unable to decode input as base64")
	op.do("POST", "sys/tools/hash/md5", map[string]any{"input": ""}).want(t, "md5", 400, "unsupported algorithm md5")
	w.vault("").do("POST", "sys/tools/random", nil).want(t, "a stranger", 403, "permission denied")
}

// TestVaultRoot: the rest of sys/, of the root of trust and the server.
func TestVaultRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.do("GET", "sys/key-status", nil).want(t, "key-status", 200, `"term":1`)
	op.do("POST", "sys/rotate", nil).want(t, "rotate", 204, "")
	op.do("GET", "sys/key-status", nil).want(t, "key-status", 200, `"term":2`)
	op.do("GET", "sys/audit", nil).want(t, "audit", 200, `"rotor/"`)
	op.do("PUT", "sys/audit/file", map[string]any{"type": "file"}).want(t, "another device", 400, "always on")
	op.do("DELETE", "sys/audit/rotor", nil).want(t, "no device", 400, "always on")
	op.do("LIST", "sys/version-history", nil).want(t, "versions", 200, "rotor."+server.Version)
	op.do("GET", "sys/config/cors", nil).want(t, "cors", 200, `"enabled":false`)
	op.do("GET", "sys/ha-status", nil).want(t, "ha-status", 200, `"active_node":true`)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, op.address+"sys/metrics?format=prometheus", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", op.token)
	resp, err := op.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), "# TYPE rotor_") {
		t.Errorf("metrics: %s, %v\n%s", resp.Status, err, text)
	}
	op.do("GET", "sys/metrics?format=json", nil).want(t, "metrics in another form", 400, "prometheus is")
	op.do("GET", "sys/host-info", nil).want(t, "host-info", 400, "host-info is not supported")
	op.do("GET", "sys/internal/counters/requests", nil).want(t, "counters", 400, "counters of clients are not kept")
	for _, path := range []string{"ha-status", "metrics", "host-info", "internal/counters/activity"} {
		w.vault("").do("GET", "sys/"+path, nil).want(t, path+" for a stranger", 403, "permission denied")
	}
	op.do("PUT", "sys/leases/lookup", map[string]any{"lease_id": "x"}).want(t, "lease", 400, "invalid lease")
	op.do("PUT", "sys/leases/renew", map[string]any{"lease_id": "x"}).want(t, "lease", 400, "lease not found")
	op.do("PUT", "sys/leases/revoke", map[string]any{"lease_id": "x"}).want(t, "lease", 204, "")
	op.do("GET", "transit?help=1", nil).want(t, "help of an engine", 200, "keys/:name/rotate")
	a := op.do("GET", "sys/mounts?help=1", nil).want(t, "help", 200, "Lists the secret engines")
	if _, ok := a.body["help"].(string); !ok {
		t.Error(a.text)
	}
}

// TestVaultUnmount: an engine goes with its keys, which are not lost, and not while one of them does not allow deletion.
func TestVaultUnmount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.do("POST", "sys/mounts/team", map[string]any{"type": "transit"}).want(t, "enable", 204, "")
	op.do("POST", "team/keys/k", nil).want(t, "create", 200, "")
	op.do("DELETE", "sys/mounts/team", nil).want(t, "unmount", 400, "deletion is not allowed")
	op.do("GET", "team/keys/k", nil).want(t, "show", 200, "")
	op.do("POST", "team/keys/k/config", map[string]any{"deletion_allowed": true}).want(t, "config", 200, "")
	op.do("DELETE", "sys/mounts/team", nil).want(t, "unmount", 204, "")
	op.do("POST", "sys/mounts/team", map[string]any{"type": "transit"}).want(t, "enable again", 204, "")
	op.do("GET", "team/keys/k", nil).want(t, "show", 404, "")
	op.do("LIST", "team/keys", nil).want(t, "list", 404, "")
}

// TestVaultHelp: each path of the surface says what it is for, to whoever has a token.
func TestVaultHelp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	for _, engine := range []string{"approle", "userpass", "jwt", "kubernetes", "cert"} {
		op.must("POST", "sys/auth/"+engine, m{"type": engine})
	}
	asked := 0
	for _, l := range vault.Surface() {
		for _, path := range paths(l, "x") {
			asked++
			if a := op.do("GET", path+"?help=1", nil); a.status != 200 || !strings.Contains(fmt.Sprint(a.body["help"]), l.Doc) {
				t.Errorf("%s: %d %.300s", path, a.status, a.text)
			}
		}
	}
	if asked < 100 {
		t.Errorf("only %d were asked", asked)
	}
	w.vault("").do("GET", "transit/keys/a?help=1", nil).want(t, "by a stranger", 403, "permission denied")
}
