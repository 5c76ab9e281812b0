package policy_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"a", "a", true}, {"a", "A", false}, {"a", "ab", false}, {"ab", "b", false},
		{"*", "", true}, {"*", "abc", true}, {"*", "a/b", false}, {"**", "a/b", true}, {"***", "a/b", true}, {"**", "", true},
		{"a*", "a", true}, {"a*", "abc", true}, {"a*", "a/c", false}, {"a*", "b", false}, {"*c", "abc", true}, {"*c", "c", true}, {"*c", "cb", false},
		{"a*c", "ac", true}, {"a*c", "abbc", true}, {"a*c", "ab/c", false}, {"a**c", "ab/c", true}, {"a*b*c", "aXbYc", true}, {"a*b*c", "abXc", true},
		{"a*b*c", "acb", false}, {"aa*a", "aa", false}, {"aa*a", "aaa", true}, {"*a*", "bab", true}, {"*ab*ab", "ab", false}, {"*ab*ab", "abab", true},
		{"a/*/c", "a/b/c", true}, {"a/*/c", "a/b/b/c", false}, {"a/**/c", "a/b/b/c", true}, {"a/**/c", "a/c", false}, {"*/*", "a/b", true}, {"*/*", "a/b/c", false},
		{"spiffe://example.org/instance/*", "spiffe://example.org/instance/web-1", true},
		{"spiffe://example.org/instance/*", "spiffe://example.org/instance/web/1", false},
		{"spiffe://example.org/instance/*", "spiffe://example.org.evil.net/instance/web", false},
		{"spiffe://*/instance/web", "spiffe://a/b/instance/web", false},
		{"?", "a", false}, {"[a]", "a", false}, {"a.c", "abc", false}, {`\*`, "*", false}, {"*", "**", true}, {"ä*", "äö", true},
		{"a*/", "ab/", true}, {"*/", "/", true}, {"**/x", "/x", true}, {"x**", "x/", true},
	} {
		if got := policy.Match(c.pattern, c.s); got != c.want {
			t.Errorf("Match(%q, %q) = %t", c.pattern, c.s, got)
		}
	}
}

// TestMatchHostile ends only if matching does not try each way to split the text.
func TestMatchHostile(t *testing.T) {
	s := strings.Repeat("a", 10_000)
	if policy.Match(strings.Repeat("*a", 200)+"*b", s) || policy.Match(strings.Repeat("**a", 200)+"b", s) {
		t.Error("matched")
	}
	if !policy.Match(strings.Repeat("*a", 200)+"*", s) {
		t.Error("not matched")
	}
}

// FuzzMatch compares with the regular expression that says the same.
func FuzzMatch(f *testing.F) {
	f.Add("a*b**c", "ab/c")
	f.Add("**/x*", "a/b/x")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 50 || len(s) > 200 {
			return
		}
		expr := regexp.QuoteMeta(strings.ToValidUTF8(pattern, "?"))
		s = strings.ToValidUTF8(s, "?")
		expr = regexp.MustCompile(`(\\\*){2,}`).ReplaceAllString(expr, "(?s:.*)")
		expr = strings.ReplaceAll(expr, `\*`, "[^/]*")
		want := regexp.MustCompile("^(?s:" + expr + ")$").MatchString(s)
		if got := policy.Match(strings.ToValidUTF8(pattern, "?"), s); got != want {
			t.Errorf("Match(%q, %q) = %t, the expression %s says %t", pattern, s, got, expr, want)
		}
	})
}

const rules = `version: 1
rules:
  - name: web
    callers: ["spiffe://example.org/instance/web-*"]
    actions: [encrypt, decrypt, status]
    keys: {namespace: prod, names: ["records-*"], labels: {team: "a*"}}
  - name: lists
    callers: ["admin/*"]
    actions: ["*"]
  - name: admin
    callers: ["admin/root"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
`

func parse(t testing.TB, text string) *policy.Rules {
	t.Helper()
	r, err := policy.Parse("rules.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAllows(t *testing.T) {
	r := parse(t, rules)
	web := policy.Caller{Kind: policy.KindInstance, Name: "spiffe://example.org/instance/web-1"}
	some, root := policy.Caller{Kind: policy.KindAdmin, Name: "admin/some"}, policy.Caller{Kind: policy.KindAdmin, Name: "admin/root"}
	key := func(ns, name string, labels map[string]string) policy.Resource {
		return policy.Resource{Namespace: ns, Key: name, Labels: labels}
	}
	team := map[string]string{"team": "alpha"}
	for _, c := range []struct {
		name   string
		caller policy.Caller
		action policy.Action
		res    policy.Resource
		rule   string // empty: denied
	}{
		{"all fits", web, policy.ActEncrypt, key("prod", "records-1", team), "web"},
		{"another action", web, policy.ActDeliver, key("prod", "records-1", team), ""},
		{"another namespace", web, policy.ActEncrypt, key("test", "records-1", team), ""},
		{"no namespace", web, policy.ActEncrypt, key("", "records-1", team), ""},
		{"another key", web, policy.ActEncrypt, key("prod", "models", team), ""},
		{"another label", web, policy.ActEncrypt, key("prod", "records-1", map[string]string{"team": "beta"}), ""},
		{"no label", web, policy.ActEncrypt, key("prod", "records-1", nil), ""},
		{"another caller", policy.Caller{Name: "spiffe://example.org/instance/db"}, policy.ActEncrypt, key("prod", "records-1", team), ""},
		{"no key asked for", web, policy.ActStatus, policy.Resource{}, "web"},
		{"a rule without keys covers what is about no key", some, policy.ActInvite, policy.Resource{Namespace: "prod"}, "lists"},
		{"a rule without keys covers no key", some, policy.ActDestroy, key("prod", "records-1", team), ""},
		{"all keys", root, policy.ActDestroy, key("prod", "models/big", nil), "admin"},
		{"nobody", policy.Caller{}, policy.ActStatus, policy.Resource{}, ""},
		{"unknown action", web, "unknown", policy.Resource{}, ""},
		{"the star is no action", root, "", policy.Resource{}, ""},
	} {
		rule, ok := r.Allows(c.caller, c.action, c.res)
		if ok != (c.rule != "") || rule != c.rule {
			t.Errorf("%s: %q, %t", c.name, rule, ok)
		}
	}
	var none *policy.Rules
	for _, r := range []*policy.Rules{none, parse(t, "version: 1"), parse(t, "version: 1\nrules: []")} {
		for _, a := range policy.Actions() {
			if _, ok := r.Allows(root, a, policy.Resource{}); ok {
				t.Errorf("no rules allow %s", a)
			}
		}
	}
}

func TestActions(t *testing.T) {
	seen := map[policy.Action]bool{}
	for _, a := range policy.Actions() {
		if a == "" || seen[a] {
			t.Errorf("%q stands twice or is empty", a)
		}
		seen[a] = true
		text := fmt.Sprintf("version: 1\nrules: [{name: n, callers: [\"**\"], actions: [%q], keys: {namespace: \"*\", names: [\"*\"]}}]", a)
		r := parse(t, text)
		for _, b := range policy.Actions() {
			for _, res := range []policy.Resource{{}, {Namespace: "n", Key: "k"}} {
				if _, ok := r.Allows(policy.Caller{Name: "x"}, b, res); ok != (a == b) {
					t.Errorf("a rule for %s, asked for %s: %t", a, b, ok)
				}
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	rule := func(s string) string { return "version: 1\nrules:\n  - " + s }
	var bomb strings.Builder
	bomb.WriteString("version: 1\na0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	var fields strings.Builder // a megabyte of them would take the decoder minutes
	fields.WriteString("version: 1\n")
	for i := range 60_000 {
		fmt.Fprintf(&fields, "field%d: 1\n", i)
	}
	many := func(n int) string {
		var b strings.Builder
		b.WriteString("version: 1\nrules:\n")
		for i := range n {
			fmt.Fprintf(&b, "  - {name: r%d, callers: [x], actions: [status]}\n", i)
		}
		return b.String()
	}
	parse(t, many(1000))
	for name, c := range map[string]struct {
		text string
		code fault.Code
		hint string // part of it
	}{
		"empty":                  {"", fault.Invalid, "version"},
		"comment alone":          {"# nothing", fault.Invalid, "version"},
		"no version":             {"rules: []", fault.Invalid, "version"},
		"other version":          {"version: 2", fault.Invalid, "version"},
		"version as text":        {"version: one", fault.Invalid, "line 1"},
		"not a map":              {"- version: 1", fault.Invalid, "line 1"},
		"not YAML":               {"version: 1\nrules: [", fault.Invalid, ""},
		"unknown field":          {"version: 1\nrule: []", fault.Invalid, "line 2"},
		"unknown field in rule":  {rule("{name: a, callers: [x], actions: [status], deny: true}"), fault.Invalid, "deny"},
		"unknown effect":         {rule("{name: a, effect: maybe, callers: [x], actions: [status]}"), fault.Invalid, "effect"},
		"unknown field in keys":  {rule("{name: a, callers: [x], actions: [status], keys: {namespace: n, names: [k], name: x}}"), fault.Invalid, "name"},
		"unknown action":         {rule("{name: a, callers: [x], actions: [encrypt, frobnicate]}"), fault.Invalid, "frobnicate"},
		"glob as action":         {rule("{name: a, callers: [x], actions: [\"key.*\"]}"), fault.Invalid, "key.*"},
		"no name":                {rule("{callers: [x], actions: [status]}"), fault.Invalid, "name"},
		"no callers":             {rule("{name: a, actions: [status]}"), fault.Invalid, "callers"},
		"no actions":             {rule("{name: a, callers: [x], actions: []}"), fault.Invalid, "actions"},
		"empty caller":           {rule("{name: a, callers: [\"\"], actions: [status]}"), fault.Invalid, "empty"},
		"keys without names":     {rule("{name: a, callers: [x], actions: [encrypt], keys: {namespace: n}}"), fault.Invalid, "names"},
		"keys without namespace": {rule("{name: a, callers: [x], actions: [encrypt], keys: {names: [n]}}"), fault.Invalid, "namespace"},
		"empty keys":             {rule("{name: a, callers: [x], actions: [encrypt], keys: {}}"), fault.Invalid, "namespace"},
		"a name twice":           {rule("{name: a, callers: [x], actions: [status]}\n  - {name: a, callers: [y], actions: [status]}"), fault.Invalid, "twice"},
		"a field twice":          {"version: 1\nversion: 1", fault.Invalid, "already"},
		"a second document":      {"version: 1\n---\nversion: 1", fault.Invalid, "second"},
		"a broken second":        {"version: 1\n---\n{", fault.Invalid, ""},
		"aliases":                {bomb.String(), fault.Invalid, "aliases"},
		"an alias as rules":      {strings.Replace(bomb.String(), "a11:", "rules:", 1), fault.Invalid, "aliases"},
		"one harmless alias":     {rule("{name: a, callers: &c [x], actions: [status]}\n  - {name: b, callers: *c, actions: [status]}"), fault.Invalid, "aliases"},
		"many fields":            {fields.String(), fault.Invalid, "100 fields"},
		"deep":                   {"version: 1\nrules: " + strings.Repeat("[", 100_000), fault.Invalid, ""},
		"too large":              {"version: 1\n#" + strings.Repeat("x", 1<<20), fault.TooLarge, ""},
		"too many rules":         {many(1001), fault.TooLarge, "1000"},
		"bytes that are no text": {"version: 1\nrules: \xFF\xFE", fault.Invalid, ""},
	} {
		r, err := policy.Parse("rules.yaml", []byte(c.text))
		var hint string
		if f, ok := err.(*fault.Error); ok { //nolint:errorlint // Parse returns it bare
			hint = f.HintText()
		}
		if r != nil || fault.CodeOf(err) != c.code || !strings.Contains(hint, c.hint) || !strings.Contains(err.Error(), "rules.yaml") {
			t.Errorf("%s: %v (%s)", name, err, hint)
		}
	}
}

// TestAttributes: a rule that names attributes covers callers that have all of them; to have none fits no pattern.
func TestAttributes(t *testing.T) {
	r, err := policy.Parse("rules", []byte(`version: 1
rules:
  - name: ci
    callers: ["token/ci/**"]
    attributes: {repository: acme/*, ref: refs/heads/main}
    actions: [status]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		attributes map[string]string
		want       bool
	}{
		{"token/ci/a/b", map[string]string{"repository": "acme/train", "ref": "refs/heads/main", "more": "x"}, true},
		{"token/ci/a/b", map[string]string{"repository": "acme/train", "ref": "refs/heads/other"}, false},
		{"token/ci/a/b", map[string]string{"repository": "acme/train/x", "ref": "refs/heads/main"}, false},
		{"token/ci/a/b", map[string]string{"repository": "acme/train"}, false},
		{"token/ci/a/b", nil, false},
		{"token/other/a", map[string]string{"repository": "acme/train", "ref": "refs/heads/main"}, false},
	} {
		if _, got := r.Allows(policy.Caller{Name: c.name, Attributes: c.attributes}, policy.ActStatus, policy.Resource{}); got != c.want {
			t.Errorf("%s with %v: %v", c.name, c.attributes, got)
		}
	}
	for _, bad := range []string{`{"": x}`, `[a]`, `{a: [b]}`} {
		if _, err := policy.Parse("rules", []byte("version: 1\nrules: [{name: a, callers: [b], actions: [status], attributes: "+bad+"}]")); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(rules))
	f.Add([]byte("version: 1\n---\nrules: []"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := policy.Parse("rules.yaml", b)
		if code := fault.CodeOf(err); err != nil && (r != nil || code != fault.Invalid && code != fault.TooLarge) {
			t.Errorf("%v, %v", r, err)
		}
		if _, ok := r.Allows(policy.Caller{}, policy.ActStatus, policy.Resource{}); ok {
			t.Error("nobody is allowed something")
		}
	})
}
