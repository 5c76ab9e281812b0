package policy_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/policy"
)

func caps(names string) policy.Grants {
	var g policy.Grants
	for name := range strings.FieldsSeq(names) {
		g.Capabilities = append(g.Capabilities, policy.Operation(name))
	}
	return g
}

func stanza(path, capabilities string) policy.Stanza {
	return policy.Stanza{Path: path, Grants: caps(capabilities)}
}

func acl(stanzas ...policy.Stanza) *policy.ACL {
	return policy.NewACL("default", true, []policy.PathPolicy{{Name: "p", Stanzas: stanzas}})
}

// TestACLPriority has the examples of Vault's page on policies, "Policy syntax", "Priority matching".
func TestACLPriority(t *testing.T) {
	for _, c := range []struct {
		name    string
		stanzas []policy.Stanza
		path    string
		op      policy.Operation
		want    bool
	}{
		{"exact", []policy.Stanza{stanza("secret/foo", "read")}, "secret/foo", policy.OpRead, true},
		{"exact, another operation", []policy.Stanza{stanza("secret/foo", "read")}, "secret/foo", policy.OpUpdate, false},
		{"exact is no prefix", []policy.Stanza{stanza("secret/foo", "read")}, "secret/foobar", policy.OpRead, false},
		{"a slash at the begin", []policy.Stanza{stanza("secret/foo", "read")}, "/secret/foo", policy.OpRead, true},
		{"a second slash, which no path has", []policy.Stanza{stanza("/+", "read")}, "secret", policy.OpRead, false},
		{"prefix", []policy.Stanza{stanza("secret/bar/*", "read")}, "secret/bar/zip", policy.OpRead, true},
		{"prefix, deeper", []policy.Stanza{stanza("secret/bar/*", "read")}, "secret/bar/zip/zap", policy.OpRead, true},
		{"prefix, not the parent", []policy.Stanza{stanza("secret/bar/*", "read")}, "secret/bars/zip", policy.OpRead, false},
		{"prefix of a name", []policy.Stanza{stanza("secret/zip-*", "read")}, "secret/zip-zap/zong", policy.OpRead, true},
		{"a segment", []policy.Stanza{stanza("secret/+/teamb", "read")}, "secret/foo/teamb", policy.OpRead, true},
		{"a segment is one", []policy.Stanza{stanza("secret/+/teamb", "read")}, "secret/foo/bar/teamb", policy.OpRead, false},
		{"two segments", []policy.Stanza{stanza("secret/+/+/teamb", "read")}, "secret/foo/bar/teamb", policy.OpRead, true},
		{"a segment alone", []policy.Stanza{stanza("+", "read")}, "anything", policy.OpRead, true},
		{"a segment and a prefix", []policy.Stanza{stanza("secret/+/a*", "read")}, "secret/x/abc/d", policy.OpRead, true},
		{"exact before prefix", []policy.Stanza{stanza("secret/*", "create read update delete list"), stanza("secret/super", "deny")}, "secret/super", policy.OpRead, false},
		{"prefix beside the exact", []policy.Stanza{stanza("secret/*", "create read update delete list"), stanza("secret/super", "deny")}, "secret/superb", policy.OpRead, true},
		{"longer prefix", []policy.Stanza{stanza("secret/*", "deny"), stanza("secret/foo/*", "read")}, "secret/foo/x", policy.OpRead, true},
		{"first wildcard is later", []policy.Stanza{stanza("foo/+/bar/baz", "deny"), stanza("foo/bar/+/baz", "read")}, "foo/bar/bar/baz", policy.OpRead, true},
		{"prefix wins by its place", []policy.Stanza{stanza("foo/a*", "read"), stanza("foo/+", "deny")}, "foo/ab", policy.OpRead, true},
		{"no star at the end", []policy.Stanza{stanza("foo/+/bar", "read"), stanza("foo/+/ba*", "deny")}, "foo/x/bar", policy.OpRead, true},
		{"a segment before a prefix of the same place", []policy.Stanza{stanza("foo/+", "read"), stanza("foo/*", "deny")}, "foo/x", policy.OpRead, true},
		{"fewer segments", []policy.Stanza{stanza("foo/+/+/baz", "deny"), stanza("foo/+/bar/baz", "read")}, "foo/x/bar/baz", policy.OpRead, true},
		{"longer", []policy.Stanza{stanza("foo/+/bar/b*", "deny"), stanza("foo/+/bar/ba*", "read")}, "foo/x/bar/baz", policy.OpRead, true},
		{"list of what has no slash", []policy.Stanza{stanza("transit/keys", "list")}, "transit/keys/", policy.OpList, true},
		{"list without its slash", []policy.Stanza{stanza("transit/keys/", "list")}, "transit/keys", policy.OpList, true},
		{"read of what has a slash", []policy.Stanza{stanza("transit/keys/", "read")}, "transit/keys", policy.OpRead, false},
		{"all of it", []policy.Stanza{stanza("*", "read")}, "a/b/c", policy.OpRead, true},
		{"another namespace", []policy.Stanza{stanza("transit/*", "read")}, "ns:team/transit/keys/x", policy.OpRead, false},
		{"another namespace, named", []policy.Stanza{stanza("team/transit/*", "read")}, "ns:team/transit/keys/x", policy.OpRead, true},
		{"another namespace, by a star", []policy.Stanza{stanza("+/transit/keys/x", "read")}, "ns:team/transit/keys/x", policy.OpRead, true},
		{"nothing said", nil, "a", policy.OpRead, false},
	} {
		for range 2 {
			r := policy.Request{Namespace: "default", Path: c.path, Operation: c.op}
			if rest, ok := strings.CutPrefix(c.path, "ns:"); ok {
				r.Namespace, r.Path, _ = strings.Cut(rest, "/")
			}
			if v := acl(c.stanzas...).Decide(&r); v.Allowed != c.want || v.Allowed && v.Policy != "p" {
				t.Errorf("%s: %+v", c.name, v)
			}
			slices.Reverse(c.stanzas) // in which order they stand does not count
		}
	}
}

func TestACLDenies(t *testing.T) {
	a := policy.NewACL("default", true, []policy.PathPolicy{
		{Name: "a", Stanzas: []policy.Stanza{stanza("t/*", "read update")}}, {Name: "b", Stanzas: []policy.Stanza{stanza("t/*", "deny read")}},
		{Name: "c", Stanzas: []policy.Stanza{stanza("t/*", "delete")}},
	})
	for _, op := range []policy.Operation{policy.OpRead, policy.OpUpdate, policy.OpDelete} {
		if v := a.Decide(&policy.Request{Namespace: "default", Path: "t/x", Operation: op}); !v.Denied || v.Allowed {
			t.Errorf("%s: %+v", op, v)
		}
	}
	if v := a.Decide(&policy.Request{Namespace: "default", Path: "other", Operation: policy.OpRead}); v.Denied || v.Allowed {
		t.Errorf("silence: %+v", v)
	}
	if v := a.Decide(nil); v != (policy.Verdict{}) {
		t.Errorf("no request: %+v", v)
	}
	var none *policy.ACL
	if v := none.Decide(&policy.Request{Path: "x", Operation: policy.OpRead}); v != (policy.Verdict{}) {
		t.Errorf("no ACL: %+v", v)
	}
	if got := none.Capabilities("default", "x"); !slices.Equal(got, []string{"deny"}) {
		t.Errorf("no ACL: %v", got)
	}
}

// TestACLNamespace: only the namespace that the others are in reaches further than itself.
func TestACLNamespace(t *testing.T) {
	own := policy.NewACL("team", false, []policy.PathPolicy{{Name: "p", Stanzas: []policy.Stanza{stanza("*", "read")}}, {Name: policy.RootPolicy}})
	for ns, want := range map[string]bool{"team": true, "default": false, "other": false, "": false} {
		if v := own.Decide(&policy.Request{Namespace: ns, Path: "x", Operation: policy.OpRead}); v.Allowed != want {
			t.Errorf("%q: %+v", ns, v)
		}
		if got := own.Capabilities(ns, "x")[0] == "root"; got != want {
			t.Errorf("%q: capabilities %v", ns, own.Capabilities(ns, "x"))
		}
	}
}

func TestACLCapabilities(t *testing.T) {
	a := policy.NewACL("default", true, []policy.PathPolicy{
		{Name: "a", Stanzas: []policy.Stanza{stanza("t/x", "update read"), stanza("none", "")}}, {Name: "b", Stanzas: []policy.Stanza{stanza("t/x", "list sudo")}},
	})
	for path, want := range map[string][]string{"t/x": {"sudo", "read", "list", "update"}, "t/x/": {"sudo", "read", "list", "update"}, "none": {"deny"}, "z": {"deny"}} {
		if got := a.Capabilities("default", path); !slices.Equal(got, want) {
			t.Errorf("%s: %v", path, got)
		}
	}
	sudo := policy.Request{Namespace: "default", Path: "t/x", Operation: policy.OpRead, Sudo: true}
	if v := a.Decide(&sudo); !v.Allowed {
		t.Errorf("with sudo: %+v", v)
	}
	if v := acl(stanza("t/x", "read")).Decide(&sudo); v.Allowed {
		t.Errorf("without sudo: %+v", v)
	}
}

// TestACLParameters has the examples of Vault's page on policies, "Parameter constraints".
func TestACLParameters(t *testing.T) {
	g := func(allowed, denied string, required ...string) policy.Grants {
		out := caps("create update read delete")
		out.Required = required
		for _, m := range []struct {
			text string
			to   *map[string][]any
		}{{allowed, &out.Allowed}, {denied, &out.Denied}} {
			if m.text != "" {
				if err := json.Unmarshal([]byte(m.text), m.to); err != nil {
					t.Fatal(err)
				}
			}
		}
		return out
	}
	for _, c := range []struct {
		name   string
		grants policy.Grants
		body   string
		want   bool
	}{
		{"required", g("", "", "bar", "baz"), `{"bar":1,"baz":2}`, true},
		{"one of the required is missing", g("", "", "bar", "baz"), `{"bar":1}`, false},
		{"required, nothing sent", g("", "", "bar"), `{}`, false},
		{"only bar, any value", g(`{"bar":[]}`, ""), `{"bar":"x"}`, true},
		{"only bar, but foo too", g(`{"bar":[]}`, ""), `{"bar":"x","foo":1}`, false},
		{"nothing sent", g(`{"bar":[]}`, ""), `{}`, true},
		{"bar of two values", g(`{"bar":["zip","zap"]}`, ""), `{"bar":"zap"}`, true},
		{"bar of a third value", g(`{"bar":["zip","zap"]}`, ""), `{"bar":"zop"}`, false},
		{"bar of values, others any", g(`{"bar":["zip"],"*":[]}`, ""), `{"bar":"zip","foo":2}`, true},
		{"bar of another value, others any", g(`{"bar":["zip"],"*":[]}`, ""), `{"bar":"zop","foo":2}`, false},
		{"the star alone", g(`{"*":[]}`, ""), `{"foo":2}`, true},
		{"bar denied", g("", `{"bar":[]}`), `{"bar":"x"}`, false},
		{"bar denied, foo sent", g("", `{"bar":[]}`), `{"foo":"x"}`, true},
		{"value denied", g("", `{"bar":["zip"]}`), `{"bar":"zip"}`, false},
		{"another value", g("", `{"bar":["zip"]}`), `{"bar":"zap"}`, true},
		{"all denied", g("", `{"*":[]}`), `{"bar":1}`, false},
		{"all denied, nothing sent", g("", `{"*":[]}`), `{}`, true},
		{"denied counts before allowed", g(`{"*":[]}`, `{"bar":["zip"]}`), `{"bar":"zip"}`, false},
		{"glob at the end", g(`{"bar":["foo-*"]}`, ""), `{"bar":"foo-1"}`, true},
		{"glob at the begin", g(`{"bar":["*-foo"]}`, ""), `{"bar":"1-foo"}`, true},
		{"glob that does not fit", g(`{"bar":["foo-*"]}`, ""), `{"bar":"foo"}`, false},
		{"no glob inside", g(`{"bar":["f*o"]}`, ""), `{"bar":"foo"}`, false},
		{"a number", g("", `{"ttl":[5]}`), `{"ttl":5}`, false},
		{"a number that is text", g("", `{"ttl":[5]}`), `{"ttl":"5.0"}`, false},
		{"another number", g("", `{"ttl":[5]}`), `{"ttl":6}`, true},
		{"a boolean", g("", `{"exportable":[true]}`), `{"exportable":true}`, false},
		{"a boolean that is text", g("", `{"exportable":[true]}`), `{"exportable":"true"}`, false},
		{"a boolean that is a number", g("", `{"exportable":[true]}`), `{"exportable":1}`, false},
		{"a boolean in short", g("", `{"exportable":["true"]}`), `{"exportable":"T"}`, false},
		{"another boolean", g("", `{"exportable":[true]}`), `{"exportable":"0"}`, true},
		{"a number is no boolean", g("", `{"ttl":[1]}`), `{"ttl":"true"}`, true},
		{"a number in another base", g("", `{"n":[16]}`), `{"n":"0x10"}`, false},
		{"a boolean for a number", g("", `{"n":[1]}`), `{"n":true}`, false},
		{"another boolean for a number", g("", `{"n":[1]}`), `{"n":false}`, true},
		{"a list with what is denied", g("", `{"policies":["admin"]}`), `{"policies":["a",["admin"]]}`, false},
		{"a list in one text", g("", `{"policies":["admin"]}`), `{"policies":"a, admin"}`, false},
		{"a list in capital letters", g("", `{"policies":["adm*"]}`), `{"policies":["ADMIN "]}`, false},
		{"another list", g("", `{"policies":["admin"]}`), `{"policies":["a","administrators"]}`, true},
		{"a time", g("", `{"ttl":["1h"]}`), `{"ttl":3600}`, false},
		{"a time in another unit", g("", `{"ttl":["1h"]}`), `{"ttl":"60m"}`, false},
		{"another time", g("", `{"ttl":["1h"]}`), `{"ttl":"61m"}`, true},
		{"a large number", g("", `{"n":[9007199254740993]}`), `{"n":9007199254740994}`, true},
		{"what is allowed is compared strictly", g(`{"policies":["a"]}`, ""), `{"policies":"a,b"}`, false},
		{"a list whose begin fits a pattern", g(`{"policies":["app-*"]}`, ""), `{"policies":"app-a,admin"}`, false},
		{"a list whose end fits a pattern", g(`{"policies":["*-app"]}`, ""), `{"policies":"admin, a-app"}`, false},
		{"a list of which each part fits", g(`{"policies":["app-*"]}`, ""), `{"policies":"app-a, app-b"}`, true},
		{"a text with a comma that is allowed", g(`{"policies":["a,b"]}`, ""), `{"policies":"a,b"}`, true},
		{"a denied pattern with a comma", g("", `{"policies":["a, *"]}`), `{"policies":"a, b"}`, false},
		{"a number in eights", g(`{"n":[10]}`, ""), `{"n":"010"}`, false},
		{"a number with zeros", g("", `{"ttl":[10]}`), `{"ttl":"010"}`, false},
		{"nothing for a number", g("", `{"ttl":[0]}`), `{"ttl":""}`, false},
		{"null for a number", g("", `{"ttl":["0"]}`), `{"ttl":null}`, false},
		{"nothing for a boolean", g("", `{"bound":[false]}`), `{"bound":""}`, false},
		{"nothing for another number", g("", `{"ttl":[1]}`), `{"ttl":""}`, true},
		{"a name in other letters", g("", `{"exportable":[]}`), `{"EXPORTABLE":true}`, false},
		{"a name in letters that fold", g("", `{"associated_data":[]}`), "{\"a\u017f\u017fociated_data\":\"x\"}", false},
		{"a policy in capital letters", g("", `{"Exportable":[]}`), `{"exportable":true}`, false},
		{"a list", g(`{"tags":[["a","b"]]}`, ""), `{"tags":["a","b"]}`, true},
		{"a part of a list", g(`{"tags":[["a","b"]]}`, ""), `{"tags":["a"]}`, false},
		{"null", g(`{"x":["a"]}`, ""), `{"x":null}`, false},
		{"an object", g(`{"x":["a"]}`, ""), `{"x":{"a":1}}`, false},
	} {
		var body map[string]any
		d := json.NewDecoder(strings.NewReader(c.body))
		d.UseNumber()
		if err := d.Decode(&body); err != nil {
			t.Fatal(err)
		}
		a := acl(policy.Stanza{Path: "secret/*", Grants: c.grants})
		if v := a.Decide(&policy.Request{Namespace: "default", Path: "secret/x", Operation: policy.OpUpdate, Parameters: body}); v.Allowed != c.want {
			t.Errorf("%s: %+v", c.name, v)
		}
		if v := a.Decide(&policy.Request{Namespace: "default", Path: "secret/x", Operation: policy.OpDelete, Parameters: body}); !v.Allowed {
			t.Errorf("%s: a deletion has no parameters: %+v", c.name, v)
		}
	}
}

func TestACLMerge(t *testing.T) {
	one, two := caps("read"), caps("update")
	one.Allowed, two.Allowed = map[string][]any{"a": {"x"}, "b": {"y"}}, map[string][]any{"A": {"z"}, "b": {}}
	one.MinWrap, one.MaxWrap, two.MinWrap, two.MaxWrap = time.Minute, time.Hour, 2*time.Minute, 30*time.Minute
	one.Required, two.Required = []string{"a"}, []string{"a", "b"}
	a := policy.NewACL("default", true, []policy.PathPolicy{{Name: "one", Stanzas: []policy.Stanza{{Path: "s", Grants: one}}}, {Name: "two", Stanzas: []policy.Stanza{{Path: "s", Grants: two}}}})
	for _, c := range []struct {
		a, b string
		wrap time.Duration
		want bool
	}{
		{"x", "any", time.Minute, true}, {"z", "any", 30 * time.Minute, true}, {"q", "any", time.Minute, false}, {"x", "", time.Minute, false},
		{"x", "any", 31 * time.Minute, false}, {"x", "any", 59 * time.Second, false}, {"x", "any", 0, false},
	} {
		body := map[string]any{"a": c.a}
		if c.b != "" {
			body["b"] = c.b
		}
		for op, by := range map[policy.Operation]string{policy.OpRead: "one", policy.OpUpdate: "two"} {
			v := a.Decide(&policy.Request{Namespace: "default", Path: "s", Operation: op, Parameters: body, Wrap: c.wrap})
			if v.Allowed != c.want || v.Allowed && v.Policy != by {
				t.Errorf("%+v, %s: %+v", c, op, v)
			}
		}
	}
}

// TestDenyingRules: whatever allows, a rule that denies counts first, in whichever order they stand.
func TestDenyingRules(t *testing.T) {
	allow := "  - {name: allow, callers: [\"admin/*\"], actions: [\"*\"], keys: {namespace: \"**\", names: [\"**\"]}}\n"
	deny := "  - {name: deny, effect: deny, callers: [\"admin/some\"], actions: [destroy, audit.read], keys: {namespace: prod, names: [\"**\"], labels: {tier: gold}}}\n"
	for _, text := range []string{allow + deny, deny + allow, strings.Replace(allow, "callers", "effect: allow, callers", 1) + deny} {
		r := parse(t, "version: 1\nrules:\n"+text)
		gold := policy.Resource{Namespace: "prod", Key: "k", Labels: map[string]string{"tier": "gold"}}
		for _, c := range []struct {
			caller string
			a      policy.Action
			res    policy.Resource
			want   bool
		}{
			{"admin/some", policy.ActDestroy, gold, false}, {"admin/other", policy.ActDestroy, gold, true}, {"admin/some", policy.ActRotate, gold, true},
			{"admin/some", policy.ActDestroy, policy.Resource{Namespace: "test", Key: "k", Labels: gold.Labels}, true},
			{"admin/some", policy.ActDestroy, policy.Resource{Namespace: "prod", Key: "k"}, true}, {"admin/some", policy.ActAudit, policy.Resource{}, false},
		} {
			rule, ok := r.Allows(policy.Caller{Name: c.caller}, c.a, c.res)
			if ok != c.want || ok && rule != "allow" {
				t.Errorf("%+v: %q, %t", c, rule, ok)
			}
			// What is denied to whoever made a caller's token is denied to the caller; what is allowed to a maker is not handed on by a name.
			child := policy.Caller{Name: "admin/child", Makers: []policy.Maker{{Name: "admin/none"}, {Name: c.caller}}}
			if _, ok := r.Allows(child, c.a, c.res); ok != c.want {
				t.Errorf("%+v of a child: %t", c, ok)
			}
			child.Name = "other"
			if _, ok := r.Allows(child, c.a, c.res); ok {
				t.Errorf("%+v: allowed by the name of a maker", c)
			}
			if by, denied := r.Denies(policy.Caller{Name: c.caller}, c.a, c.res); denied == c.want || denied && by != "deny" {
				t.Errorf("%+v: denied %t by %q", c, denied, by)
			}
		}
	}
}

// TestACLWeighs: parameters are asked for where something is said of them, and nowhere else.
func TestACLWeighs(t *testing.T) {
	free, bound := stanza("transit/encrypt/a", "update"), stanza("transit/encrypt/b", "update")
	bound.Required = []string{"context"}
	a := acl(free, bound)
	for path, want := range map[string]bool{"transit/encrypt/a": false, "transit/encrypt/b": true, "transit/encrypt/c": false} {
		if got := a.Weighs(&policy.Request{Namespace: "default", Path: path, Operation: policy.OpUpdate}); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}

// TestACLReaches: whether a caller has anything to do below a path, whatever the form of the policies.
func TestACLReaches(t *testing.T) {
	for _, c := range []struct {
		path, prefix string
		want         bool
	}{
		{"transit/keys/a", "transit/", true}, {"transit/*", "transit/", true}, {"*", "transit/", true}, {"tr*", "transit/", true}, {"transit", "transit/", true},
		{"other/*", "transit/", false}, {"transit2/*", "transit/", false}, {"+/keys/a", "transit/", true}, {"+/keys/*", "transit/", true}, {"other/+/a", "transit/", false},
		{"+", "transit/", false}, {"team/+/keys", "team/a/", true}, {"team/+", "team/a/", false}, {"team/+/*", "team/a/", true}, {"team/b/+/x", "team/a/", false},
	} {
		if got := acl(stanza(c.path, "read")).Reaches("default", c.prefix); got != c.want {
			t.Errorf("%s of %s: %t", c.path, c.prefix, got)
		}
	}
	if acl(stanza("transit/*", "deny")).Reaches("default", "transit/") || acl(stanza("transit/*", "read")).Reaches("other", "transit/") {
		t.Error("a denial, or another namespace, reaches")
	}
	var none *policy.ACL
	if none.Reaches("default", "transit/") {
		t.Error("no list reaches")
	}
}
