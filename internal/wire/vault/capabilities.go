package vault

import (
	"context"
	"crypto/subtle"
	"net/http"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// capabilityRoutes are those of what callers may do.
func capabilityRoutes(c Config) []route {
	paths := field{"paths", "list", "paths", true}
	const byRules = "a session of rotor's own is told the capabilities of what it may do at a path by the rules, sudo with them where the path takes that, and root where that is everything; a right that depends on the body is not among them. A token is told what its policies say: a rule of rotor's that denies it something more is not told"
	return []route{
		{pattern: "sys/capabilities-self", ops: map[operation]handler{opUpdate: c.capabilitiesSelf}, needs: every(own(policy.ActTokens)), fields: []field{paths}, doc: "Says what the caller may do at some paths.", differs: byRules},
		{pattern: "sys/capabilities", ops: map[operation]handler{opUpdate: c.capabilitiesOf(func(r *request) acl.Who { return acl.Who{Text: r.str("token")} })}, needs: every(right(policy.ActTokens)),
			fields: []field{paths, {"token", "string", "token", true}}, doc: "Says what a token may do at some paths.", differs: "of the sessions of rotor's own it knows the caller's alone"},
		{pattern: "sys/capabilities-accessor", ops: map[operation]handler{opUpdate: c.capabilitiesOf(func(r *request) acl.Who { return acl.Who{Accessor: r.str("accessor")} })}, needs: every(right(policy.ActTokens)),
			fields: []field{paths, {"accessor", "string", "accessor of a token", true}}, doc: "Says what a token may do at some paths."},
		{pattern: "sys/internal/ui/resultant-acl", ops: map[operation]handler{opRead: c.resultant}, needs: every(own(policy.ActTokens)), doc: "Shows what the caller's policies say of paths.",
			differs: "a session of rotor's own is root where the rules give it everything, and has else the paths without names in them that they give it something at"},
	}
}

// maxPaths bounds the paths that capabilities are asked of at once: each is compared with every path of every policy of the token.
const maxPaths = 1000

// askedPaths are the paths that capabilities are asked of.
func askedPaths(r *request) ([]string, error) {
	all, err := r.list("paths")
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		if all, err = r.list("path"); err != nil {
			return nil, err
		}
	}
	switch {
	case len(all) == 0:
		return nil, bad("paths must be supplied")
	case len(all) > maxPaths:
		return nil, bad("at most %d paths", maxPaths)
	}
	return all, nil
}

// capable is the answer about capabilities: each path beside the others, and those of a single one also by that name.
func capable(all map[string][]string) *response {
	data := map[string]any{}
	for path, caps := range all {
		data[path] = caps
		if len(all) == 1 {
			data["capabilities"] = caps
		}
	}
	return &response{data: data, top: data}
}

func (c Config) capabilitiesSelf(ctx context.Context, r *request) (*response, error) {
	paths, err := askedPaths(r)
	if err != nil {
		return nil, err
	}
	if r.caller.ACL != nil {
		return capable(c.ACL.Capabilities(r.caller, string(r.namespace), paths)), nil
	}
	return c.capableByRules(ctx, r, paths)
}

// capableByRules is the answer about capabilities of a caller without policies. It tells what it would be allowed, if it asked now, and so no more of what is
// there than that; questions leave no entry, as nothing is done.
func (c Config) capableByRules(ctx context.Context, r *request, paths []string) (*response, error) {
	if err := c.fresh(ctx, r); err != nil {
		return nil, err
	}
	root := c.everything(r)
	out := map[string][]string{}
	for _, path := range paths {
		caps, whole := c.capabilitiesAt(ctx, r, path)
		switch {
		case root && whole:
			out[path] = []string{policy.RootPolicy}
		case len(caps) == 0:
			out[path] = []string{string(policy.CapDeny)}
		default:
			out[path] = caps
		}
	}
	return capable(out), nil
}

// fresh has the server know the keys and mounts that others have made, once for all paths that a request asks about.
func (c Config) fresh(ctx context.Context, r *request) error {
	if err := c.KMS.CatchUp(ctx); err != nil {
		return err
	}
	return c.Mounts.Refresh(ctx, r.namespace)
}

// everything says whether the rules give a caller every action in a namespace, on whatever key; a rule may yet deny a single one.
func (c Config) everything(r *request) bool {
	for _, a := range policy.Actions() {
		for _, on := range []policy.Resource{{Namespace: string(r.namespace)}, {Namespace: string(r.namespace), Key: "any/key"}} {
			if !c.Guard.Allows(r.caller, a, on) {
				return false
			}
		}
	}
	return true
}

// capabilitiesAt are those that the rights of a path's routes come to for a caller without policies, as they are shown; whole: there is nothing at the path that it
// may not do.
func (c Config) capabilitiesAt(ctx context.Context, r *request, path string) (caps []string, whole bool) {
	to := target{namespace: r.namespace, path: strings.TrimLeft(path, "/")}
	if err := r.table.lead(c, &to); err != nil {
		return nil, true
	}
	return c.capabilitiesOn(ctx, r, to)
}

// capabilitiesOn is capabilitiesAt of a route.
func (c Config) capabilitiesOn(ctx context.Context, r *request, to target) (caps []string, whole bool) {
	given := map[operation]bool{}
	whole = true
	for op := range to.ops {
		as := &request{caller: r.caller, namespace: to.namespace, mount: to.mount, path: to.path, op: op, vars: to.vars, header: r.header, known: true}
		may := to.stranger || to.login
		if n, ok := to.needs.of(op); ok && !may {
			a, err := c.asked(ctx, as, n)
			may = err == nil && c.may(to, as, a, op)
		}
		if !may {
			whole = false
			continue
		}
		given[op] = true
		given[opCreate] = given[opCreate] || op == opUpdate && to.exists != nil
		given[policy.CapSudo] = given[policy.CapSudo] || to.sudo
	}
	for _, one := range policy.Capabilities() {
		if given[one] {
			caps = append(caps, string(one))
		}
	}
	return caps, whole
}

// ofItself says whether a caller without policies asks about the session that it shows.
func (r *request) ofItself(who acl.Who) bool {
	shown, _, err := token(r.header)
	return err == nil && r.caller.ACL == nil && subtle.ConstantTimeCompare([]byte(shown), []byte(who.Text)) == 1
}

func (c Config) capabilitiesOf(of func(*request) acl.Who) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		paths, err := askedPaths(r)
		if err != nil {
			return nil, err
		}
		who := of(r)
		switch {
		case who == (acl.Who{}):
			return nil, bad("missing token or accessor")
		case r.ofItself(who):
			return c.capableByRules(ctx, r, paths)
		}
		all, err := c.ACL.CapabilitiesOf(ctx, r.caller, string(r.namespace), who, paths)
		if fault.CodeOf(err) == fault.NotFound {
			return nil, &refusal{http.StatusBadRequest, []string{"invalid token"}, nil, err}
		}
		if err != nil {
			return nil, said(err)
		}
		return capable(all), nil
	}
}

// resultant is what the user interface asks for.
func (c Config) resultant(ctx context.Context, r *request) (*response, error) {
	if r.caller.ACL.Root() || r.caller.ACL == nil && c.everything(r) {
		return &response{data: map[string]any{"root": true}}, nil
	}
	exact, globs := r.caller.ACL.Paths()
	if r.caller.ACL == nil {
		exact = c.literalPaths(ctx, r)
	}
	return &response{data: map[string]any{"root": false, "exact_paths": pathsTold(exact), "glob_paths": pathsTold(globs)}}, nil
}

// literalPaths are the paths without a variable at which the rules give a caller something. What it may do with single keys has no form in a list of paths.
func (c Config) literalPaths(ctx context.Context, r *request) map[string]policy.Grants {
	out := map[string]policy.Grants{}
	add := func(engine, mount string) {
		for one := range r.table.literal(engine) {
			to := target{route: one.route, engine: engine, mount: mount, namespace: r.namespace, path: strings.Join(one.segments, "/")}
			if mount != "" {
				to.path = mount + "/" + to.path
			}
			caps, _ := c.capabilitiesOn(ctx, r, to)
			var grants policy.Grants
			for _, one := range caps {
				grants.Capabilities = append(grants.Capabilities, policy.Operation(one))
			}
			if len(caps) > 0 {
				out[to.path] = grants
			}
		}
	}
	add("", "")
	for _, m := range c.Mounts.All(r.namespace) {
		add(m.Type, strings.TrimSuffix(m.Full(), "/"))
	}
	return out
}

// pathsTold is what policies say of paths, as the user interface reads it.
func pathsTold(all map[string]policy.Grants) map[string]any {
	out := map[string]any{}
	for path, g := range all {
		told := map[string]any{"capabilities": g.Capabilities}
		for name, v := range map[string]map[string][]any{"allowed_parameters": g.Allowed, "denied_parameters": g.Denied} {
			if len(v) > 0 {
				told[name] = v
			}
		}
		if len(g.Required) > 0 {
			told["required_parameters"] = g.Required
		}
		for name, d := range map[string]time.Duration{"min_wrapping_ttl": g.MinWrap, "max_wrapping_ttl": g.MaxWrap} {
			if d > 0 {
				told[name] = seconds(d)
			}
		}
		out[path] = told
	}
	return out
}
