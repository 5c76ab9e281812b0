package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

func TestParsePathPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []policy.Stanza
	}{
		"empty":                {"", nil},
		"comment":              {"# nothing\n// nothing\n/* nothing */", nil},
		"a stanza":             {`path "secret/foo" { capabilities = ["read", "list"] }`, []policy.Stanza{stanza("secret/foo", "read list")}},
		"a slash at the begin": {`path "/secret/foo" { capabilities = ["read"] }`, []policy.Stanza{stanza("secret/foo", "read")}},
		"Windows":              {"path \"a\" {\r\n capabilities = [\"read\"]\r\n}\r\n", []policy.Stanza{stanza("a", "read")}},
		"several": {`
			name = "ignored"
			path "a/*" { capabilities = ["create", "update", "patch"] comment = "all" }
			path "a/+/b" { capabilities = ["deny"] }
			path "old" { policy = "write" }`,
			[]policy.Stanza{stanza("a/*", "create update patch"), stanza("a/+/b", "deny"), stanza("old", "create read update delete list")}},
		"a path twice":    {`path "a" { capabilities = ["read"] } path "a" { capabilities = ["list"] }`, []policy.Stanza{stanza("a", "read"), stanza("a", "list")}},
		"no capabilities": {`path "a" {}`, []policy.Stanza{{Path: "a"}}},
		"of newer builds": {`path "a" { capabilities = ["read", "subscribe", "recover"] }`, []policy.Stanza{stanza("a", "read")}},
		"parameters": {`path "a" {
				capabilities = ["update"]
				required_parameters = ["x"]
				allowed_parameters = { "Ttl" = [5, "1h"], "*" = [], "one" = "v" }
				denied_parameters { exportable = [true] weight = [1.5] }
				min_wrapping_ttl = "1m"
				max_wrapping_ttl = 90
			}`, []policy.Stanza{{Path: "a", Grants: policy.Grants{
			Capabilities: []policy.Operation{policy.OpUpdate}, Required: []string{"x"}, MinWrap: time.Minute, MaxWrap: 90 * time.Second,
			Allowed: map[string][]any{"ttl": {int64(5), "1h"}, "*": {}, "one": {"v"}}, Denied: map[string][]any{"exportable": {true}, "weight": {1.5}},
		}}}},
		"JSON":                {`{"path": {"a/*": {"capabilities": ["read"]}, "b": {"policy": "deny"}}}`, []policy.Stanza{stanza("a/*", "read"), stanza("b", "deny")}},
		"JSON, a list":        {`{"path": [{"a": {"capabilities": ["read"]}}, {"b": {"capabilities": ["list"]}}]}`, []policy.Stanza{stanza("a", "read"), stanza("b", "list")}},
		"JSON, a path twice":  {`{"path": {"a": {"capabilities": ["read"]}, "a": {"capabilities": ["deny"]}}}`, []policy.Stanza{stanza("a", "read"), stanza("a", "deny")}},
		"JSON, objects alone": {`{"path": {"a": {"allowed_parameters": {"x": ["y"]}}}}`, []policy.Stanza{{Path: "a", Grants: policy.Grants{Allowed: map[string][]any{"x": {"y"}}}}}},
		"JSON, escapes":       {`{"path": {"a\u002fb": {"capabilities": ["read"]}}}`, []policy.Stanza{stanza("a/b", "read")}},
	} {
		got, err := policy.ParsePathPolicy("p", c.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(policy.PathPolicy{Name: "p", Stanzas: c.want}, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestParsePathPolicyErrors(t *testing.T) {
	path := func(s string) string { return `path "a" { ` + s + ` }` }
	for name, c := range map[string]struct {
		text, hint string
		code       fault.Code
	}{
		"unknown at the top":         {`paths "a" {}`, "paths", fault.Invalid},
		"unknown in a path":          {path(`capability = ["read"]`), "capability", fault.Invalid},
		"unknown capability":         {path(`capabilities = ["write"]`), "write", fault.Invalid},
		"a capability that is none":  {path(`capabilities = [1]`), "texts", fault.Invalid},
		"old policy":                 {path(`policy = "all"`), "invalid policy", fault.Invalid},
		"wildcards":                  {`path "a/+*" {}`, "forbidden", fault.Invalid},
		"a template":                 {`path "a/{{identity.entity.id}}" {}`, "templates", fault.Invalid},
		"a template in JSON":         {`{"path":{"a/{{identity.entity.id}}":{}}}`, "templates", fault.Invalid},
		"control groups":             {path(`control_group = { ttl = "1h" }`), "control_group", fault.Invalid},
		"a second factor":            {path(`mfa_methods = ["x"]`), "mfa_methods", fault.Invalid},
		"capabilities twice":         {path(`capabilities = ["read"] capabilities = ["deny"]`), "", fault.Invalid},
		"capabilities twice in JSON": {`{"path":{"a":{"capabilities":["read"],"capabilities":["deny"]}}}`, "twice", fault.Invalid},
		"a parameter twice":          {path(`denied_parameters = { "a" = [], "A" = [1] }`), "twice", fault.Invalid},
		"wrapping":                   {path(`min_wrapping_ttl = "2h" max_wrapping_ttl = "1h"`), "less than", fault.Invalid},
		"a time":                     {path(`min_wrapping_ttl = "soon"`), "min_wrapping_ttl", fault.Invalid},
		"no braces":                  {`path "a" = ["read"]`, "", fault.Invalid},
		"no end":                     {`path "a" {`, "", fault.Invalid},
		"no text end":                {`path "a`, "", fault.Invalid},
		"heredoc":                    {"path \"a\" { comment = <<E\nx\nE\n}", "", fault.Invalid},
		"no HCL":                     {"= = =", "", fault.Invalid},
		"no UTF-8":                   {"path \"\xff\" {}", "", fault.Invalid},
		"deep":                       {path("comment = " + strings.Repeat("[", 50_000)), "brackets", fault.Invalid},
		"deep with texts":            {path("comment = " + strings.Repeat(`["]",`, 20_000)), "brackets", fault.Invalid},
		"deep JSON":                  {`{"path":` + strings.Repeat("[", 50_000), "brackets", fault.Invalid},
		"a huge number":              {path(`denied_parameters = { a = [99999999999999999999] }`), "number", fault.Invalid},
		"a long path":                {`path "` + strings.Repeat("a", 513) + `" {}`, "512", fault.Invalid},
		"many":                       {strings.Repeat(`path "a" {} `, 1001), "1000", fault.Invalid},
		"long":                       {"#" + strings.Repeat("x", policy.MaxPolicy), "", fault.TooLarge},
	} {
		p, err := policy.ParsePathPolicy("p", c.text)
		var hint string
		if f, ok := err.(*fault.Error); ok { //nolint:errorlint // it is returned bare
			hint = f.HintText()
		}
		if fault.CodeOf(err) != c.code || !strings.Contains(hint, c.hint) || len(p.Stanzas) > 0 {
			t.Errorf("%s: %v (%s)", name, err, hint)
		}
	}
}

func FuzzParsePathPolicy(f *testing.F) {
	f.Add(`path "secret/+/a*" { capabilities = ["read", "deny"] allowed_parameters = { "a" = ["*x", 1] } }`, "secret/b/abc")
	f.Add(`{"path": {"a/*": {"capabilities": ["read"], "denied_parameters": {"a": []}}}}`, "a/b")
	f.Add("path \"a\" { policy = <<-E\n x\n E\n }", "a")
	f.Fuzz(func(t *testing.T, text, path string) {
		p, err := policy.ParsePathPolicy("p", text)
		if err != nil {
			if code := fault.CodeOf(err); code != fault.Invalid && code != fault.TooLarge {
				t.Fatal(err)
			}
			return
		}
		a := policy.NewACL("default", true, []policy.PathPolicy{p})
		for _, op := range policy.Capabilities() {
			v := a.Decide(&policy.Request{Namespace: "default", Path: path, Operation: op, Parameters: map[string]any{"a": "b"}})
			if v.Allowed && v.Denied || v.Root || v.Allowed && !strings.Contains(text, "p") {
				t.Errorf("%+v", v)
			}
		}
	})
}

// FuzzACL compares with a slow reading of Vault's rules: every stanza that fits is found by trying, and the priorities choose among them.
func FuzzACL(f *testing.F) {
	f.Add("a/+/c a/b/* a/b/c a/*", "a/b/c")
	f.Add("+/b a/+ * a/b*", "a/b")
	f.Fuzz(func(t *testing.T, patterns, path string) {
		all := strings.Fields(patterns)
		if len(all) > 8 || len(path) > 60 || len(patterns) > 200 || strings.HasPrefix(path, "/") {
			return
		}
		var policies []policy.PathPolicy
		best := ""
		for _, p := range all {
			if p = strings.TrimPrefix(p, "/"); p == "" || strings.Contains(p, "+*") {
				continue
			}
			policies = append(policies, policy.PathPolicy{Name: p, Stanzas: []policy.Stanza{stanza(p, "read")}})
			if slowFits(p, path) && (best == "" || slowLess(best, p)) {
				best = p
			}
		}
		v := policy.NewACL("default", true, policies).Decide(&policy.Request{Namespace: "default", Path: path, Operation: policy.OpRead})
		if v.Policy != best && (best != "" || v.Allowed) {
			t.Errorf("%q at %q: %q, want %q", patterns, path, v.Policy, best)
		}
	})
}

func slowSegments(p string) bool {
	return p == "+" || strings.HasPrefix(p, "+/") || strings.Contains(p, "/+")
}

func slowFits(p, path string) bool {
	stem, prefix := strings.CutSuffix(p, "*")
	if !slowSegments(p) {
		return prefix && strings.HasPrefix(path, stem) || p == path && !prefix
	}
	want, got := strings.Split(stem, "/"), strings.Split(path, "/")
	if len(got) < len(want) || len(got) > len(want) && !prefix {
		return false
	}
	for i := range want {
		last := i == len(want)-1
		if want[i] != "+" && want[i] != got[i] && (!prefix || !last || !strings.HasPrefix(got[i], want[i])) {
			return false
		}
	}
	return true
}

// slowLess says whether p comes after b in the rising order of priority.
func slowLess(b, p string) bool {
	type rank struct {
		exact, first  int
		prefix        bool
		pluses, count int
		text          string
	}
	of := func(s string) rank {
		stem, prefix := strings.CutSuffix(s, "*")
		r := rank{first: len(stem), prefix: prefix, count: len(stem), text: stem}
		if slowSegments(s) {
			r.first = strings.IndexByte(s, '+')
			for _, part := range strings.Split(stem, "/") {
				if part == "+" {
					r.pluses++
				}
			}
		} else if !prefix {
			r.exact = 1
		}
		return r
	}
	x, y := of(b), of(p)
	switch {
	case x.exact != y.exact:
		return y.exact > x.exact
	case x.first != y.first:
		return y.first > x.first
	case x.prefix != y.prefix:
		return x.prefix
	case x.pluses != y.pluses:
		return y.pluses < x.pluses
	case x.count != y.count:
		return y.count > x.count
	}
	return y.text > x.text
}
