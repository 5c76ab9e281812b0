package vault

import (
	"cmp"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/mounts"
)

// Line is one route of the surface, for the reference and for whoever asks each path.
type Line struct {
	Pattern   string // :name is one segment, *name one or more, (/…) may be left out
	Engine    string // whose mounts it is below; empty: from the root
	Methods   []string
	Doc       string
	Differs   string // from Vault
	Fields    []FieldLine
	Rights    []RightLine
	Stranger  bool // it answers without a token
	Creates   bool // POST takes create where nothing is there yet, and update else
	Sudo      bool // needs the capability sudo
	Enveloped bool
}

// RightLine is what a method of a route takes.
type RightLine struct {
	Methods []string
	Action  string // that rotor's rules name; empty: none
	Own     bool   // it is about the caller alone: a session of rotor's has it, a token by its policies
	Open    bool   // every known caller is answered
}

// FieldLine is one parameter of a route.
type FieldLine struct {
	Name, Kind, Doc string
	Required        bool
}

// Surface lists all routes, those of one engine together, in the order in which the tables have them.
func Surface() []Line {
	all := Config{}.routes()
	out := make([]Line, len(all))
	for i, r := range all {
		out[i] = Line{Pattern: r.pattern, Engine: r.engine, Methods: methods(r), Doc: r.doc, Differs: r.differs, Stranger: r.stranger || r.login, Sudo: r.sudo, Enveloped: !r.raw, Rights: rights(r), Creates: r.exists != nil}
		for _, f := range r.fields {
			out[i].Fields = append(out[i].Fields, FieldLine{f.name, f.kind, f.doc, f.required})
		}
	}
	slices.SortStableFunc(out, func(a, b Line) int { return cmp.Compare(a.group(), b.group()) })
	return out
}

// group is what a route is told of under.
func (l Line) group() string {
	if l.Engine != "" {
		return l.Engine
	}
	first, rest, _ := strings.Cut(l.Pattern, "/")
	if first == "auth" {
		second, _, _ := strings.Cut(rest, "/")
		return "auth/" + second
	}
	return first
}

// verbs are the HTTP methods of the operations.
var verbs = []struct {
	op    operation
	names []string
}{{opRead, []string{"GET"}}, {opList, []string{"LIST"}}, {opUpdate, []string{"POST", "PUT"}}, {opPatch, []string{"PATCH"}}, {opDelete, []string{"DELETE"}}}

// methods are the HTTP methods of a route.
func methods(r route) (out []string) {
	for _, m := range verbs {
		if r.ops[m.op] != nil {
			out = append(out, m.names...)
		}
	}
	return out
}

// rights are what the methods of a route take; those that take the same together.
func rights(r route) (out []RightLine) {
	for _, m := range verbs {
		n, ok := r.needs.of(m.op)
		if r.ops[m.op] == nil || !ok {
			continue
		}
		line := RightLine{m.names, string(n.action), n.own, n.open}
		at := slices.IndexFunc(out, func(o RightLine) bool { return o.Action == line.Action && o.Own == line.Own && o.Open == line.Open })
		if at < 0 {
			out = append(out, line)
			continue
		}
		out[at].Methods = slices.Concat(out[at].Methods, m.names)
	}
	return out
}

// Reference is docs/reference/vault.md.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceBegin)
	group := ""
	for _, l := range Surface() {
		if g := l.group(); g != group {
			group = g
			b.WriteString("\n## " + group + "\n")
			if l.Engine != "" {
				b.WriteString("\nBelow each mount of type " + l.Engine + ".\n")
			}
		}
		l.write(&b)
	}
	b.WriteString(referenceEnd)
	return b.String()
}

func (l Line) write(b *strings.Builder) {
	b.WriteString("\n### `" + l.Pattern + "`\n\n" + strings.Join(l.Methods, ", ") + ". " + sentenceOf(l.Doc))
	if l.Stranger {
		b.WriteString(" Answers without a token.")
	}
	b.WriteString(l.rights())
	if l.Sudo {
		b.WriteString(" A policy has to give `sudo` too.")
	}
	b.WriteString("\n")
	if l.Differs != "" {
		b.WriteString("\nDiffers from Vault: " + sentenceOf(l.Differs) + "\n")
	}
	if len(l.Fields) == 0 {
		return
	}
	b.WriteString("\n| field | kind | meaning |\n|---|---|---|\n")
	for _, f := range l.Fields {
		kind := f.Kind
		if f.Required {
			kind += ", needed"
		}
		b.WriteString("| `" + f.Name + "` | " + kind + " | " + strings.ReplaceAll(strings.TrimSuffix(f.Doc, "."), "|", "\\|") + " |\n")
	}
}

// rights tells what rotor's rules have to give.
func (l Line) rights() string {
	var all []string
	for _, r := range l.Rights {
		text := "`" + r.Action + "`"
		if r.Own || r.Open {
			text = "nothing"
		}
		if len(l.Rights) > 1 {
			text += " (" + strings.Join(r.Methods, ", ") + ")"
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		return ""
	}
	return " By rotor's rules it takes " + strings.Join(all, ", ") + "."
}

// sentenceOf ends a text with a point.
func sentenceOf(s string) string { return strings.TrimSuffix(s, ".") + "." }

const referenceBegin = `# Vault's API

Generated from the routes of the server (` + "`go test ./internal/wire/vault -run TestVaultReference -update`" + `). Clients of HashiCorp Vault and OpenBao reach them at ` + "`/v1/…`" + ` of the server's
address. ` + "`GET …?help=1`" + ` tells of each path.

PUT is POST; LIST is a method and ` + "`GET …?list=true`" + `. The token comes in X-Vault-Token or as Authorization: Bearer; a session of rotor's own (rotor_session_…) is one, too, and goes by
rotor's [rules](rules.md). A client certificate names nobody here. X-Vault-Namespace, if it is there, is the namespace; there is one level of them. Unknown members of a request are ignored, those of a
transit path with a warning, and numbers, booleans and their texts are taken for one another. An empty list and a read of what is not there are 404 with ` + "`{\"errors\":[]}`" + `. Bounds are in [limits.md](limits.md).
`

var referenceEnd = `
## What is not there

| | |
|---|---|
| secret engines other than transit, and auth methods other than token, ` + strings.Join(mounts.Types(true), ", ") + ` | they cannot be mounted |
| key types managed_key, hybrid, slh-dsa, and those for CMAC and CBC | ` + "`unknown key type`" + ` |
| padding ` + "`pkcs1v15`" + ` of RSA ciphertexts (RSAES-PKCS1-v1_5) | refused: it has been broken for as long as it has been used without care |
| leases, replication, plugins, quotas, identity entities and groups, raft, Vault Enterprise's features | not here; several servers share one store instead |
`
