package server_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/policy"
)

// told are the capabilities that a caller is told of paths.
func (c *vaultClient) told(paths []string) map[string][]string {
	c.t.Helper()
	out := map[string][]string{}
	for part := range slices.Chunk(paths, 500) {
		data := c.must("POST", "sys/capabilities-self", m{"paths": part}).members()
		for _, path := range part {
			all, _ := data[path].([]any)
			for _, one := range all {
				out[path] = append(out[path], fmt.Sprint(one))
			}
		}
	}
	return out
}

// TestVaultCapabilitiesOfSessions: a session of rotor's own is told of every path of the surface what the rules give it there, and what it does then is answered or
// refused accordingly. Its questions leave nothing in the log, and tell nothing of what it has no right to.
func TestVaultCapabilitiesOfSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.engines()
	for _, name := range []string{"mine", "other"} {
		op.must("POST", "transit/keys/"+name, m{"exportable": true, "allow_plaintext_backup": true})
	}
	w.rules(adminOnly + operatorRules + `  - {name: own keys, callers: ["credential/watcher"], keys: {namespace: default, names: ["transit/mine"]},
     actions: [key.show, encrypt, decrypt, mac, verify, key.export, key.backup, key.configure, rotate]}
  - {name: looks, callers: ["credential/watcher"], actions: [mount.list, policy.list, vault.token.list, vault.auth.list, status, tools]}
  - {name: not that, effect: deny, callers: ["credential/watcher"], actions: [decrypt], keys: {namespace: default, names: ["transit/mine"]}}
  - {name: everything, callers: ["credential/almost"], actions: ["*"], keys: {namespace: "**", names: ["**"]}}
  - {name: but, effect: deny, callers: ["credential/almost"], actions: [decrypt], keys: {namespace: default, names: ["transit/other"]}}
`)
	login := func(name string) *vaultClient {
		_, path := w.credential(name)
		return w.vault(w.session(path).Token())
	}
	watcher, almost, nobody := login("watcher"), login("almost"), login("nobody")
	var all []asking
	var paths []string
	for _, name := range []string{"mine", "other", "none"} {
		for _, a := range surface(func(int) string { return name }) {
			all, paths = append(all, a), append(paths, a.path)
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	before := w.entries()
	told, nothing := watcher.told(paths), nobody.told(append(paths, "nowhere", "nowhere/x", ""))
	operator, most := op.told(paths), almost.told(paths)
	if after := w.entries(); after != before {
		t.Errorf("questions are in the log: %s", strings.TrimPrefix(after, before))
	}
	for path, caps := range nothing {
		own := slices.ContainsFunc(ownRoutes, func(id string) bool {
			engine, pattern, _ := strings.Cut(id, " ")
			return path == pattern || path == "auth/"+engine+"/"+pattern
		})
		if !own && !slices.Equal(caps, []string{"deny"}) {
			t.Errorf("nobody is told %v of %q", caps, path)
		}
	}
	given := 0
	for _, a := range all {
		if caps := operator[a.path]; !slices.Equal(caps, []string{"root"}) {
			t.Errorf("who may do everything is told %v of %s", caps, a.path)
		}
		if has := slices.Contains(most[a.path], string(a.capability(false))); has == strings.HasPrefix(a.path, "transit/decrypt/other") || slices.Contains(most[a.path], "root") {
			t.Errorf("who may do almost everything is told %v of %s", most[a.path], a.path)
		}
		if watcher.holds(a, told[a.path]) {
			given++
		}
	}
	if given < 60 {
		t.Errorf("only %d rights are given", given)
	}
	if got := fmt.Sprint(told["transit/keys/mine"], told["transit/keys"], told["transit/encrypt/mine"], told["transit/decrypt/mine"], told["sys/mounts"]); got != "[read] [deny] [update create] [deny] [read]" {
		t.Error(got)
	}
}

// holds says whether a caller was told that it may do something, and tries it.
func (c *vaultClient) holds(a asking, caps []string) bool {
	c.t.Helper()
	told := slices.Contains(caps, string(a.capability(false)))
	switch {
	case a.capability(true) == policy.OpCreate && told != slices.Contains(caps, string(policy.OpCreate)),
		a.line.Sudo && slices.Contains(caps, "deny") == slices.Contains(caps, "sudo"):
		c.t.Errorf("%v of %s", caps, a.path)
	case told && strings.HasSuffix(a.path, "-self"): // which would end it
		return true
	}
	if got := c.do(a.method, a.path, a.body()); told == (got.status == http.StatusForbidden && strings.Contains(got.text, "permission denied")) {
		c.t.Errorf("told %v, and %s %s is answered %d %.200s", caps, a.method, a.path, got.status, got.text)
	}
	return told
}

// TestVaultResultantOfSessions: the user interface hears of paths at which a session of rotor's own may do something, and that it is root only where it may do everything.
func TestVaultResultantOfSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	w.rules(adminOnly + operatorRules + `  - {name: writes policies, callers: ["credential/author"], actions: [policy.change, policy.list]}
  - {name: lists keys, callers: ["credential/author"], actions: [key.show], keys: {namespace: default, names: ["transit/**"]}}
`)
	_, path := w.credential("author")
	author := w.vault(w.session(path).Token())
	if got := op.must("GET", "sys/internal/ui/resultant-acl", nil).members()["root"]; got != true {
		t.Error(got)
	}
	a := author.must("GET", "sys/internal/ui/resultant-acl", nil)
	exact, _ := a.members()["exact_paths"].(m)
	if a.members()["root"] != false || exact["sys/policies/acl"] == nil || exact["transit/keys"] == nil || exact["sys/mounts"] != nil || exact["transit/random"] != nil {
		t.Error(a.text)
	}
	a = op.must("POST", "sys/capabilities", m{"token": op.token, "paths": []string{"transit/keys/x"}})
	a.want(t, "its own session", 200, `"transit/keys/x":["root"]`)
	op.do("POST", "sys/capabilities", m{"token": author.token, "paths": []string{"transit/keys/x"}}).want(t, "a session of another", 400, "invalid token")
}
