package vault

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// operation is what a request does to a path, by the names of Vault's capabilities.
type operation = policy.Operation

// The operations. opCreate has no handler of its own: POST and PUT are opUpdate, and count as opCreate for who may do it when nothing is there yet.
const (
	opRead   = policy.OpRead
	opList   = policy.OpList
	opCreate = policy.OpCreate
	opUpdate = policy.OpUpdate
	opDelete = policy.OpDelete
	opPatch  = policy.OpPatch
)

// handler answers one request. A nil response is 204, of a read or a list 404.
type handler func(ctx context.Context, r *request) (*response, error)

// route is one line of the surface; the reference and the help are made of it.
type route struct {
	// pattern is a path: literal segments, :name for one segment, *name for one or more, and (/…) at the end for what may be left out. It is below a mount
	// of the engine, or from the root.
	pattern string
	engine  string // "transit", "approle"…; "": from the root
	ops     map[operation]handler
	needs   needs                                               // rights that the operations take
	exists  func(ctx context.Context, r *request) (bool, error) // whether POST is opUpdate and not opCreate; nil: it is. It looks at the path alone
	fields  []field
	doc     string // one sentence
	differs string // from Vault; "": nothing that is known

	stranger bool // it answers without a token
	login    bool // it says itself who comes
	sudo     bool // needs the capability sudo
	ofToken  bool // it is about the token that is shown, whose namespace counts and not the request's
	raw      bool // data is the whole answer, without the envelope
	direct   bool // the handler decodes the whole body, and no member is asked for by its name

	name string // that its requests are counted as
}

// field is one parameter of a route, in the body, the query or the path.
type field struct {
	name, kind, doc string // kind: string, base64, bool, int, duration, list, map, batch
	required        bool
}

// routes is the whole surface.
func (c Config) routes() []route {
	return slices.Concat(transitRoutes(c), sysRoutes(c), authRoutes(c), policyRoutes(c))
}

// compiled is a route as requests are compared with it.
type compiled struct {
	*route
	segments []string
}

// table finds routes by engine and path.
type table struct {
	byEngine map[string]map[string][]compiled // and by the first segment, "" when that is not literal
}

func newTable(all []route) *table {
	t := &table{map[string]map[string][]compiled{}}
	for i := range all {
		r := &all[i]
		r.name = prefix + cmp.Or(r.engine, "root") + "/" + r.pattern
		if t.byEngine[r.engine] == nil {
			t.byEngine[r.engine] = map[string][]compiled{}
		}
		heads := t.byEngine[r.engine]
		for _, pattern := range expand(r.pattern) {
			c := compiled{r, strings.Split(pattern, "/")}
			head := c.segments[0]
			if kindOf(head) > 0 {
				head = ""
			}
			heads[head] = append(heads[head], c)
		}
	}
	for _, heads := range t.byEngine {
		for _, some := range heads {
			slices.SortStableFunc(some, moreSpecial)
		}
	}
	return t
}

// expand gives the patterns that one with parts that may be left out stands for.
func expand(pattern string) []string {
	at := strings.Index(pattern, "(")
	if at < 0 {
		return []string{pattern}
	}
	rest := strings.TrimSuffix(pattern[at+1:], ")")
	return append(expand(pattern[:at]+rest), pattern[:at])
}

// kindOf orders segments: literal, one, many.
func kindOf(segment string) int {
	switch {
	case strings.HasPrefix(segment, ":"):
		return 1
	case strings.HasPrefix(segment, "*"):
		return 2
	}
	return 0
}

// moreSpecial puts the route first whose first different kind of segment is the more literal one, and of those the longer.
func moreSpecial(a, b compiled) int {
	for i := range min(len(a.segments), len(b.segments)) {
		if d := kindOf(a.segments[i]) - kindOf(b.segments[i]); d != 0 {
			return d
		}
	}
	return len(b.segments) - len(a.segments)
}

// find gives the route of a path of an engine, and what its variables are.
func (t *table) find(engine, path string) (*route, map[string]string, bool) {
	segments := strings.Split(path, "/")
	heads := t.byEngine[engine]
	for _, some := range [][]compiled{heads[segments[0]], heads[""]} {
		for _, c := range some {
			vars := map[string]string{}
			if fits(c.segments, segments, vars) {
				return c.route, vars, true
			}
		}
	}
	return nil, nil, false
}

// literal are the routes of an engine without variables.
func (t *table) literal(engine string) iter.Seq[compiled] {
	return func(yield func(compiled) bool) {
		for _, some := range t.byEngine[engine] {
			for _, c := range some {
				if !slices.ContainsFunc(c.segments, func(s string) bool { return kindOf(s) > 0 }) && !yield(c) {
					return
				}
			}
		}
	}
}

func fits(pattern, path []string, vars map[string]string) bool {
	for i, p := range pattern {
		switch kindOf(p) {
		case 2:
			return fitsMany(p[1:], pattern[i+1:], path[min(i, len(path)):], vars)
		case 1:
			if i >= len(path) || path[i] == "" {
				return false
			}
			vars[p[1:]] = path[i]
		default:
			if i >= len(path) || path[i] != p {
				return false
			}
		}
	}
	return len(pattern) == len(path)
}

// fitsMany gives a variable as many segments as what follows leaves over; what follows has as many as its pattern.
func fitsMany(name string, rest, path []string, vars map[string]string) bool {
	n := len(path) - len(rest)
	if n < 1 || slices.Contains(path[:n], "") || !fits(rest, path[n:], vars) {
		return false
	}
	vars[name] = strings.Join(path[:n], "/")
	return true
}

// mounted says which engine is mounted where a path leads, what the mount is called (transit, auth/approle), and what of the path is below it.
func (c Config) mounted(ns keyring.Namespace, path string) (engine, mount, rest string, ok bool) {
	m, rest, ok := c.Mounts.Find(ns, path)
	return m.Type, strings.TrimSuffix(m.Full(), "/"), rest, ok
}
