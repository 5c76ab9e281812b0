package server_test

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

// Routes whose rights are not those of a path. What is not in these lists takes a right.
var (
	strangersRoutes = []string{
		"approle login", "cert login", "jwt login", "kubernetes login", "userpass login/:username", " sys/health", " sys/init", " sys/internal/ui/mounts", " sys/leader", " sys/seal-status", " sys/unseal",
		" sys/wrapping/lookup", " sys/wrapping/rewrap", " sys/wrapping/unwrap",
	}
	openRoutes = []string{" sys/internal/ui/mounts/*path", " sys/internal/ui/namespaces"}
	ownRoutes  = []string{"token lookup-self", "token renew-self", "token revoke-self", " sys/capabilities-self", " sys/internal/ui/resultant-acl"}
)

// TestVaultRightsAreTold: every operation of every route says which right it takes, but for those that are listed here; a route that says nothing is closed.
func TestVaultRightsAreTold(t *testing.T) {
	t.Parallel()
	var strangers, open, own []string
	for _, l := range vault.Surface() {
		id, told := l.Engine+" "+l.Pattern, []string{}
		for _, r := range l.Rights {
			told = append(told, r.Methods...)
			if r.Open {
				open = append(open, id)
			} else if !slices.Contains(policy.Actions(), policy.Action(r.Action)) {
				t.Errorf("%s takes %q, which no rule can give", id, r.Action)
			}
			if r.Own {
				own = append(own, id)
			}
		}
		if l.Stranger {
			strangers = append(strangers, id)
		} else if !slices.Equal(slices.Sorted(slices.Values(told)), slices.Sorted(slices.Values(l.Methods))) {
			t.Errorf("%s says what %v take, and has %v", id, told, l.Methods)
		}
	}
	for _, c := range [][2][]string{{strangers, strangersRoutes}, {open, openRoutes}, {own, ownRoutes}} {
		slices.Sort(c[0])
		slices.Sort(c[1])
		if !slices.Equal(c[0], c[1]) {
			t.Errorf("%q, want %q", c[0], c[1])
		}
	}
}

// variables are what paths leave to the caller.
var variables = regexp.MustCompile(`[:*][a-z_]+`)

// paths are those that a route answers at, below a mount of its engine, about something with a name.
func paths(l vault.Line, name string) (out []string) {
	known := map[string]string{":urlalgorithm": "sha2-256", ":plaintext": "wrapped", ":type": "encryption-key", ":version": "1"}
	path := variables.ReplaceAllStringFunc(l.Pattern, func(variable string) string { return cmp.Or(known[variable], name) })
	if l.Engine == "transit" {
		path = "transit/" + path
	} else if l.Engine != "" {
		path = "auth/" + l.Engine + "/" + path
	}
	for {
		at := strings.LastIndex(path, "(")
		if at < 0 {
			return append(out, path)
		}
		out = append(out, strings.NewReplacer("(", "", ")", "").Replace(path))
		path = path[:at]
	}
}

// asking is one path of the surface, by one method.
type asking struct {
	line         vault.Line
	method, path string
}

// surface is everything that takes a right, each about something of a name of its own; what ends the server comes last.
func surface(name func(i int) string) (out []asking) {
	var last []asking
	for i, l := range vault.Surface() {
		if l.Stranger || slices.Contains(openRoutes, l.Engine+" "+l.Pattern) {
			continue
		}
		for _, path := range paths(l, name(i)) {
			for _, method := range l.Methods {
				if path == "sys/seal" {
					last = last[:0] // once
					last = append(last, asking{l, method, path})
				} else {
					out = append(out, asking{l, method, path})
				}
			}
		}
	}
	return append(out, last...)
}

// capability is what a method takes; create: nothing is there yet.
func (a asking) capability(create bool) policy.Operation {
	switch a.method {
	case http.MethodGet:
		return policy.OpRead
	case "LIST":
		return policy.OpList
	case http.MethodDelete:
		return policy.OpDelete
	case http.MethodPatch:
		return policy.OpPatch
	}
	if create && a.line.Creates {
		return policy.OpCreate
	}
	return policy.OpUpdate
}

// own says whether it is about the caller alone.
func (a asking) own() bool { return slices.Contains(ownRoutes, a.line.Engine+" "+a.line.Pattern) }

// body is one in which every parameter of the route is there, so that nothing but the right is missing.
func (a asking) body() m {
	switch {
	case a.line.Creates && a.line.Engine == "transit":
		return m{"plaintext": "eA=="}
	case a.line.Creates && (a.line.Engine == "approle" || a.line.Engine == "token"):
		return m{}
	case a.line.Creates && a.line.Engine == "userpass":
		return m{"password": "correct horse"}
	case a.line.Pattern == "sys/namespaces/:name":
		return m{}
	case a.line.Pattern == "derive-key/:name": // which takes a right to the base key, too: here the same path
		_, name, _ := strings.Cut(a.path, "derive-key/")
		return m{"base_key_name": name, "peer_public_key": "x"}
	}
	out := m{"plaintext": "eA==", "ciphertext": "vault:v1:AAAA", "input": "", "signature": "vault:v1:AAAA", "backup": "x", "type": "aes256-gcm96", "from": "none", "to": "y", "token": "x", "accessor": "x", "path": "x", "peer_public_key": "x", "public_key": "x"}
	for _, f := range a.line.Fields {
		if _, ok := out[f.Name]; ok {
			continue
		}
		switch f.Kind {
		case "bool":
			out[f.Name] = true
		case "int", "duration":
			out[f.Name] = 1
		case "string", "list":
			out[f.Name] = "x"
		}
	}
	return out
}

// engines mounts every way to log in.
func (c *vaultClient) engines() {
	for _, engine := range []string{"approle", "userpass", "jwt", "kubernetes", "cert"} {
		c.must("POST", "sys/auth/"+engine, m{"type": engine})
	}
}

// token makes a token with policies.
func (c *vaultClient) tokenWith(more m) string {
	c.t.Helper()
	more["no_default_policy"] = true
	text, _ := c.must("POST", "auth/token/create", more).auth("client_token").(string)
	return text
}

const (
	refusedStranger = `{"errors":["permission denied"]}` + "\n"
	refusedCaller   = `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}` + "\n"
)

// refused asks for something that has to be refused, in the words that say nothing.
func (c *vaultClient) refused(who, want, method, path string, body any) {
	c.t.Helper()
	if a := c.do(method, path, body); a.status != http.StatusForbidden || a.text != want {
		c.t.Errorf("%s: %s %s: %d %.300s", who, method, path, a.status, a.text)
	}
}

// TestVaultRightsOfNobody asks every path of the surface, by each method, as callers who have no right. All hear the same, whether what they ask for is there, and
// whatever is wrong with their request.
func TestVaultRightsOfNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.engines()
	op.must("POST", "transit/keys/there", nil)
	op.must("POST", "auth/approle/role/there", m{})
	op.must("POST", "auth/userpass/users/there", m{"password": "correct horse"})
	op.must("PUT", "sys/policies/acl/there", m{"policy": `path "elsewhere" { capabilities = ["read"] }`})
	strangers := map[string]*vaultClient{"no token": w.vault(""), "a token that is none": w.vault("s.abcdefghijklmnopqrstuvwx")}
	ended := func(who string, more m) string {
		more["policies"] = "root"
		text := op.tokenWith(more)
		strangers[who] = w.vault(text)
		return text
	}
	ended("an expired token", m{"ttl": "1m"})
	op.must("POST", "auth/token/revoke", m{"token": ended("a revoked token", m{})})
	w.vault(ended("a used-up token", m{"num_uses": 1})).must("GET", "transit/keys/there", nil)
	w.offset.Add(int64(2 * time.Minute))
	_, path := w.credential("nobody")
	callers := map[string]*vaultClient{
		"a token with a policy that gives nothing": w.vault(op.tokenWith(m{"policies": "there"})), "a session without rules": w.vault(w.session(path).Token()),
		"a wrapping token": w.vault(op.keeping(t, "5m", "GET", "transit/keys/there", nil)),
	}
	asked := 0
	for _, name := range []string{"there", "x"} {
		for _, a := range surface(func(int) string { return name }) {
			asked++
			for who, c := range strangers {
				c.refused(who, refusedStranger, a.method, a.path, a.body())
			}
			for who, c := range callers {
				if !a.own() || c.token != callers["a session without rules"].token {
					c.blind(who, a)
				}
			}
		}
	}
	if asked < 400 {
		t.Errorf("only %d were asked", asked)
	}
	for who, c := range callers {
		for _, path := range []string{"nowhere", "nowhere/x", "transit", "transit/", "transit/nope", "transit/keys/a%2Fb", "transit/keys/-a", "transit/keys/%C3%A4", "auth/token/nope", "auth/nope/login", "sys/nope"} {
			c.refused(who, refusedCaller, "GET", path, nil)
			c.refused(who, refusedCaller, "GET", path+"?help=1", nil)
			c.refused(who, refusedCaller, "POST", path, []byte("{"))
		}
	}
}

// blind asks in all the ways that are wrong.
func (c *vaultClient) blind(who string, a asking) {
	c.t.Helper()
	defer func() { c.header = http.Header{} }()
	ask := func(more, method, path string, body any) {
		c.t.Helper()
		c.refused(who+more, refusedCaller, method, path, body)
	}
	ask("", a.method, a.path, a.body())
	ask(", no JSON", a.method, a.path, []byte("{"))
	ask(", a list", a.method, a.path+"?list=perhaps&%zz", []byte("[]"))
	if a.method == "PUT" { // which is POST
		return
	}
	ask(", another method", "PATCH", a.path, nil)
	ask(", a method of nobody's", "BREW", a.path, nil)
	c.header = http.Header{"X-Vault-Wrap-Ttl": {"soon"}}
	ask(", wrapped until soon", a.method, a.path, nil)
	c.header = http.Header{"X-Vault-Namespace": {"none"}}
	ask(", in a namespace that is none", a.method, a.path, a.body())
}

// rule writes the policy of the token that tests ask with.
func (c *vaultClient) rule(text string) {
	c.t.Helper()
	c.must("PUT", "sys/policies/acl/case", m{"policy": text})
}

func stanza(path string, capabilities ...policy.Operation) string {
	quoted := make([]string, len(capabilities))
	for i, c := range capabilities {
		quoted[i] = fmt.Sprintf("%q", c)
	}
	return fmt.Sprintf("path %q { capabilities = [%s] }\n", path, strings.Join(quoted, ", "))
}

// without are all capabilities but some.
func without(some ...policy.Operation) []policy.Operation {
	return slices.DeleteFunc(policy.Capabilities(), func(c policy.Operation) bool { return c == policy.CapDeny || slices.Contains(some, c) })
}

// TestVaultRightsOfOthers: the right to every other path of the surface, with every capability, is no right to this one.
func TestVaultRightsOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.engines()
	op.must("POST", "transit/keys/x", nil)
	op.rule(stanza("nowhere", policy.OpRead))
	c := w.vault(op.tokenWith(m{"policies": "case"}))
	all := surface(func(int) string { return "x" })
	for i, a := range all {
		if i == 0 || all[i-1].path != a.path {
			text := strings.Builder{}
			for _, o := range all {
				if o.path != a.path {
					text.WriteString(stanza(o.path, without()...))
				}
			}
			op.rule(text.String())
		}
		c.refused("a token for all other paths", refusedCaller, a.method, a.path, a.body())
	}
}

// TestVaultRightsOfEach: for every path and method the capability that it takes is enough, and all others together are not.
func TestVaultRightsOfEach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.engines()
	op.rule(stanza("nowhere", policy.OpRead))
	fresh := func() *vaultClient { return w.vault(op.tokenWith(m{"policies": "case"})) }
	c := fresh()
	all := surface(func(i int) string { return fmt.Sprintf("n%d", i) })
	for _, lacks := range [][]policy.Operation{{policy.OpRead}, {policy.OpList}, {policy.OpUpdate, policy.OpCreate}, {policy.OpDelete}, {policy.OpPatch}, {policy.CapSudo}} {
		op.rule(stanza("*", without(lacks...)...))
		for _, a := range all {
			if slices.Contains(lacks, a.capability(true)) || lacks[0] == policy.CapSudo && a.line.Sudo {
				c.refused(fmt.Sprintf("a token with all but %v", lacks), refusedCaller, a.method, a.path, a.body())
			}
		}
	}
	made := map[string]bool{}
	for _, a := range all {
		caps := []policy.Operation{a.capability(true)}
		if a.line.Sudo {
			caps = append(caps, policy.CapSudo)
		}
		if a.method == "PUT" && made[a.path] { // by POST
			caps[0] = policy.OpUpdate
		}
		op.rule(stanza(a.path, caps...))
		got := c.do(a.method, a.path, a.body())
		if got.status == http.StatusForbidden && strings.Contains(got.text, "permission denied") {
			t.Errorf("%s %s with %v: %d %s", a.method, a.path, caps, got.status, got.text)
		}
		if a.method == "POST" && a.line.Creates && got.status/100 == 2 { // now it is there
			made[a.path] = true
			c.refused("a token that may create", refusedCaller, a.method, a.path, a.body())
		}
		if strings.HasSuffix(a.path, "revoke-self") {
			c = fresh()
		}
	}
	if len(made) < 5 {
		t.Errorf("only %v were made", made)
	}
}

// TestVaultRightsByRules: a session of rotor's that may do everything but one action is refused where the surface says that it takes this one.
func TestVaultRightsByRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.engines()
	op.must("POST", "transit/keys/x", nil)
	_, path := w.credential("most")
	c := w.vault(w.session(path).Token())
	by := map[string][]asking{}
	for _, a := range surface(func(int) string { return "x" }) {
		for _, r := range a.line.Rights {
			if slices.Contains(r.Methods, a.method) && !r.Own {
				by[r.Action] = append(by[r.Action], a)
			}
		}
	}
	for action, asked := range by {
		var rest []string
		for _, a := range policy.Actions() {
			if string(a) != action {
				rest = append(rest, fmt.Sprintf("%q", a))
			}
		}
		w.rules(fmt.Sprintf(adminOnly+`  - name: most
    callers: ["credential/most"]
    actions: [%s]
    keys: {namespace: "**", names: ["**"]}
`, strings.Join(rest, ", ")))
		for _, a := range asked {
			c.refused("a session without "+action, refusedCaller, a.method, a.path, a.body())
			c.refused("a session without "+action, refusedCaller, a.method, a.path, []byte("{"))
		}
	}
}

// TestVaultRightToRestoreOne: who may restore one key may name it in the body, and is told nothing else.
func TestVaultRightToRestoreOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	op := w.operator()
	op.must("POST", "transit/keys/from", m{"exportable": true, "allow_plaintext_backup": true})
	backup := op.must("GET", "transit/backup/from", nil).str("backup")
	_, path := w.credential("restorer")
	w.rules(adminOnly + `  - name: restores one
    callers: ["credential/restorer"]
    actions: ["key.restore", "key.import", "key.create"]
    keys: {namespace: "**", names: ["transit/orders"]}
`)
	c := w.vault(w.session(path).Token())
	for what, body := range map[string]any{
		"another key": m{"backup": backup}, "by name": m{"backup": backup, "name": "other"}, "no backup": m{}, "no text": m{"backup": "x", "name": "other"}, "no JSON": []byte("{"), "a path": m{"backup": "x", "name": "a/b"},
	} {
		c.refused(what, refusedCaller, "POST", "transit/restore", body)
	}
	c.refused("another key", refusedCaller, "POST", "transit/restore/other", m{"backup": backup})
	c.must("POST", "transit/restore", m{"backup": backup, "name": "orders"})
	c.refuses(400, "already exists", "POST", "transit/restore/orders", m{"backup": backup})
}
