//go:build services

package server_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/testenv"
)

// TestVaultPeerSys asks a real Vault and rotor the same of sys/: statuses, error texts, and which members the answers have, at every depth, are the same. What
// differs by intent is named.
func TestVaultPeerSys(t *testing.T) {
	real := testenv.Vault(t)
	w := newWorld(t)
	ours := w.operator()
	theirs := &vaultClient{t, real.Address + "/v1/", real.Root, ours.header, ours.http}
	for i, s := range sysConversation() {
		var body any
		if s.body != nil {
			body = s.body
		}
		a, b := ours.do(s.method, s.path, body), theirs.do(s.method, s.path, body)
		diff := differs(a, b)
		if (diff != "") != (s.known != "") {
			t.Errorf("%d %s %s %v: %s (known: %q)\n  rotor: %d %.900s\n  Vault: %d %.900s", i, s.method, s.path, s.body, diff, s.known, a.status, a.text, b.status, b.text)
		}
	}
}

// TestVaultPeerWrapping wraps, looks up, rewraps and opens an answer, and what was opened, at both.
func TestVaultPeerWrapping(t *testing.T) {
	real := testenv.Vault(t)
	ours := newWorld(t).operator()
	theirs := &vaultClient{t, real.Address + "/v1/", real.Root, http.Header{}, ours.http}
	var tokens [2]string
	for i, s := range []step{
		{method: "POST", path: "sys/wrapping/wrap", body: m{"a": "b"}, keep: "5m"}, {method: "POST", path: "sys/wrapping/lookup"}, {method: "POST", path: "sys/wrapping/rewrap"}, {method: "POST", path: "sys/wrapping/lookup"},
		{method: "POST", path: "sys/wrapping/unwrap"}, {method: "POST", path: "sys/wrapping/unwrap"}, {method: "POST", path: "sys/wrapping/lookup"}, {method: "POST", path: "sys/wrapping/rewrap"},
		{method: "POST", path: "sys/wrapping/wrap", body: m{"a": "b"}}, {method: "GET", path: "sys/mounts", keep: "60"}, {method: "POST", path: "sys/wrapping/unwrap"},
		{method: "POST", path: "sys/wrapping/unwrap", body: m{"token": "x"}}, {method: "POST", path: "sys/wrapping/unwrap", body: m{"token": ""}, known: "Vault says 500 of an empty token"},
	} {
		var got [2]answer
		for j, c := range []*vaultClient{ours, theirs} {
			c.header.Del("X-Vault-Wrap-TTL")
			if s.keep != "" {
				c.header.Set("X-Vault-Wrap-TTL", s.keep)
			}
			body := s.body
			if body == nil && s.method == "POST" {
				body = m{"token": tokens[j]}
			}
			got[j] = c.do(s.method, s.path, body)
			if info, ok := got[j].body["wrap_info"].(map[string]any); ok {
				tokens[j] = fmt.Sprint(info["token"])
			}
		}
		if diff := differs(got[0], got[1]); (diff != "") != (s.known != "") {
			t.Errorf("%d %s: %s (known: %q)\n  rotor: %d %.900s\n  Vault: %d %.900s", i, s.path, diff, s.known, got[0].status, got[0].text, got[1].status, got[1].text)
		}
	}
}

// differs says what of two answers differs; "": nothing that counts.
func differs(a, b answer) string {
	if a.status != b.status {
		return fmt.Sprintf("status %d, want %d", a.status, b.status)
	}
	if a.errors() != b.errors() {
		return fmt.Sprintf("errors %q, want %q", a.errors(), b.errors())
	}
	x, y := shape("", a.body), shape("", b.body)
	for _, more := range []string{".mount_type", ".enterprise", ".echo_duration_ms", ".clock_skew_ms", ".storage_type"} { // of newer releases, or of stores on a disk
		delete(x, more)
		delete(y, more)
	}
	for _, path := range slices.Sorted(maps.Keys(y)) {
		if !x[path] {
			return "without " + path
		}
	}
	for _, path := range slices.Sorted(maps.Keys(x)) {
		if !y[path] {
			return "with " + path
		}
	}
	return ""
}

// shape is the paths of all members.
func shape(at string, v any) map[string]bool {
	out := map[string]bool{}
	members, ok := v.(map[string]any)
	if !ok {
		return out
	}
	for name, value := range members {
		path := at + "." + name
		out[path] = true
		maps.Copy(out, shape(path, value))
	}
	return out
}

func sysConversation() []step {
	ok := func(method, path string, body m) step { return step{method: method, path: path, body: body} }
	known := func(why, method, path string, body m) step {
		return step{method: method, path: path, body: body, known: why}
	}
	long := strings.Repeat("x", 300)
	return []step{
		ok("GET", "sys/health", nil), ok("GET", "sys/health?activecode=299", nil), ok("GET", "sys/health?activecode=x", nil), ok("GET", "sys/health?standbyok=maybe", nil),
		ok("GET", "sys/seal-status", nil), ok("GET", "sys/leader", nil), ok("GET", "sys/init", nil), known("in Vault's words of another place", "PUT", "sys/init", m{"secret_shares": 1}),
		ok("PUT", "sys/unseal", m{}), ok("PUT", "sys/unseal", m{"reset": true}),
		ok("GET", "sys/mounts", nil), ok("GET", "sys/mounts/transit", nil), ok("GET", "sys/mounts/none", nil), ok("GET", "sys/mounts/transit/tune", nil), ok("GET", "sys/mounts/none/tune", nil),
		ok("POST", "sys/mounts/a/b", m{"type": "transit"}), ok("POST", "sys/mounts/a/b", m{"type": "transit"}), ok("POST", "sys/mounts/a", m{"type": "transit"}), ok("POST", "sys/mounts/a/b/c", m{"type": "transit"}),
		ok("POST", "sys/mounts/x", m{"type": "nothing"}), ok("POST", "sys/mounts/x", m{}), ok("POST", "sys/mounts/sys/a", m{"type": "transit"}), ok("POST", "sys/mounts/auth/a", m{"type": "transit"}), ok("POST", "sys/mounts/x", m{"type": "token"}),
		ok("POST", "sys/mounts/a/b/tune", m{"default_lease_ttl": "1h", "max_lease_ttl": "30m"}),
		ok("POST", "sys/mounts/a/b/tune", m{"default_lease_ttl": "1h", "max_lease_ttl": "3h", "description": "hello", "options": m{"a": "b"}, "audit_non_hmac_request_keys": []string{"x"}, "listing_visibility": "unauth"}),
		ok("GET", "sys/mounts/a/b/tune", nil), ok("GET", "sys/mounts/a/b", nil), ok("POST", "sys/mounts/sys/tune", m{"description": "x"}), ok("GET", "sys/mounts/sys/tune", nil),
		ok("POST", "sys/mounts/none/tune", m{"description": "x"}), ok("POST", "sys/mounts/a/b/tune", m{"token_type": "batch"}),
		ok("POST", "sys/mounts/c", m{"type": "transit", "config": m{"default_lease_ttl": "2h", "force_no_cache": true}, "local": true, "seal_wrap": true}), ok("GET", "sys/mounts/c", nil),
		known("Vault's word of a lease that is longer than the most", "POST", "sys/mounts/d", m{"type": "transit", "config": m{"default_lease_ttl": "3h", "max_lease_ttl": "2h"}}),
		ok("DELETE", "sys/mounts/c", nil), ok("DELETE", "sys/mounts/none", nil), ok("DELETE", "sys/mounts/sys", nil), ok("DELETE", "sys/mounts/a/b", nil), ok("GET", "sys/mounts/a/b", nil),
		ok("GET", "sys/auth", nil), ok("POST", "sys/auth/approle", m{"type": "approle"}), ok("POST", "sys/auth/approle", m{"type": "approle"}), ok("POST", "sys/auth/x", m{"type": "nothing"}), ok("GET", "sys/auth/approle", nil),
		ok("GET", "sys/auth/none", nil), ok("GET", "sys/auth/approle/tune", nil), ok("POST", "sys/auth/approle/tune", m{"token_type": "service", "user_lockout_config": m{"lockout_threshold": "5", "lockout_duration": "10m"}}),
		ok("GET", "sys/auth/approle/tune", nil), ok("GET", "sys/auth/token/tune", nil), ok("POST", "sys/auth/token/tune", m{"max_lease_ttl": "1h"}), ok("DELETE", "sys/auth/token", nil), ok("DELETE", "sys/auth/none", nil),
		ok("POST", "sys/auth/token/x", m{"type": "approle"}), ok("DELETE", "sys/auth/approle", nil),
		ok("GET", "sys/internal/ui/mounts", nil), ok("GET", "sys/internal/ui/mounts/transit", nil), ok("GET", "sys/internal/ui/mounts/nowhere/x", nil), ok("GET", "sys/internal/ui/mounts/auth/token", nil), ok("GET", "sys/internal/ui/namespaces", nil),
		ok("GET", "sys/key-status", nil), ok("POST", "sys/rotate", nil), known("the log is always on", "GET", "sys/audit", nil), known("keys are versions", "LIST", "sys/version-history", nil), ok("GET", "sys/version-history", nil),
		ok("GET", "sys/config/cors", nil), ok("PUT", "sys/leases/lookup", m{"lease_id": "x"}), ok("PUT", "sys/leases/renew", m{"lease_id": "x"}), ok("PUT", "sys/leases/revoke", m{"lease_id": "x"}),
		ok("GET", "sys/nothing", nil), ok("GET", "nowhere/x", nil), known("a path, without that operation", "LIST", "sys/mounts", nil), ok("GET", "sys/namespaces", nil), known("namespaces are free", "POST", "sys/namespaces/x", nil),
		ok("POST", "sys/tools/random", nil), ok("POST", "sys/tools/random/0", nil), ok("POST", "sys/tools/random/131073", nil), ok("POST", "sys/tools/random/x", nil), ok("POST", "sys/tools/random/nowhere/3", nil), ok("POST", "sys/tools/random", m{"format": "x"}),
		ok("POST", "sys/tools/random/seal", m{"bytes": 3}), ok("POST", "sys/tools/hash", m{"input": "YWJj"}), ok("POST", "sys/tools/hash/sha3-512", m{"input": "YWJj", "format": "base64"}), ok("POST", "sys/tools/hash", m{"input": "%"}),
		ok("POST", "sys/tools/hash/md5", m{"input": ""}), ok("POST", "sys/tools/hash", m{"input": "YWJj", "format": "x"}), ok("POST", "sys/remount", m{"from": "", "to": ""}), ok("POST", "sys/remount", m{"from": "none", "to": "b"}), ok("POST", "sys/remount", m{"from": "sys", "to": "b"}), ok("POST", "sys/remount", m{"from": "transit", "to": "sys/b"}), ok("POST", "sys/remount", m{"from": "auth/token", "to": "auth/b"}),
		ok("POST", "sys/remount", m{"from": "transit", "to": "transit"}), ok("POST", "sys/remount", m{"from": "transit", "to": "elsewhere"}), ok("GET", "sys/remount/status/none", nil),
		ok("GET", "sys/ha-status", nil), ok("GET", "sys/internal/ui/resultant-acl", nil), known("paths are short", "POST", "sys/mounts/"+long, m{"type": "transit"}),
	}
}
