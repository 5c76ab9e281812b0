package vault

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// policyRoutes are those of policies and capabilities.
func policyRoutes(c Config) []route {
	old, now := policies{c, "rules", "sys/policy"}, policies{c, "policy", "sys/policies/acl"}
	paths := field{"paths", "list", "paths", true}
	return slices.Concat(old.routes(), now.routes(), []route{
		{pattern: "sys/capabilities-self", ops: map[operation]handler{opUpdate: c.capabilitiesSelf}, needs: every(own(policy.ActTokens)), fields: []field{paths}, doc: "Says what the caller may do at some paths.",
			differs: "a session of rotor's own is told root if it may write policies, and deny else: its rights are about keys"},
		{pattern: "sys/capabilities", ops: map[operation]handler{opUpdate: c.capabilitiesOf(func(r *request) acl.Who { return acl.Who{Text: r.str("token")} })}, needs: every(right(policy.ActTokens)),
			fields: []field{paths, {"token", "string", "token", true}}, doc: "Says what a token may do at some paths."},
		{pattern: "sys/capabilities-accessor", ops: map[operation]handler{opUpdate: c.capabilitiesOf(func(r *request) acl.Who { return acl.Who{Accessor: r.str("accessor")} })}, needs: every(right(policy.ActTokens)),
			fields: []field{paths, {"accessor", "string", "accessor of a token", true}}, doc: "Says what a token may do at some paths."},
		{pattern: "sys/internal/ui/resultant-acl", ops: map[operation]handler{opRead: c.resultant}, needs: every(own(policy.ActTokens)), doc: "Shows what the caller's policies say of paths.",
			differs: "a session of rotor's own is root if it may write policies, and has no paths else"},
	})
}

// policies are the handlers of policies under one of their two paths.
type policies struct {
	Config
	member string // that has the text in a body
	base   string
}

func (p policies) routes() []route {
	fields := []field{{"policy", "string", "the policy, in HCL or JSON, also in base64", true}}
	return []route{
		{pattern: p.base, ops: map[operation]handler{opRead: p.list, opList: p.list}, needs: every(right(policy.ActPolicies)), doc: "Lists the policies."},
		{
			pattern: p.base + "/:name", ops: map[operation]handler{opRead: p.read, opUpdate: p.write, opDelete: p.delete}, needs: readsAnd(right(policy.ActPolicies), right(policy.ActPolicyChange)), fields: fields, doc: "Shows, writes and deletes a policy.",
			differs: "no templates in paths, no control groups, no methods of a second factor",
		},
	}
}

func (p policies) list(ctx context.Context, r *request) (*response, error) {
	names, err := p.ACL.Policies(ctx, r.caller, string(r.namespace))
	if err != nil {
		return nil, said(err)
	}
	data := map[string]any{"keys": names}
	if p.member != "rules" {
		return &response{data: data}, nil
	}
	data["policies"] = names
	return both(data), nil
}

func (p policies) read(ctx context.Context, r *request) (*response, error) {
	text, err := p.ACL.Policy(ctx, r.caller, string(r.namespace), r.vars["name"])
	if fault.CodeOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, said(err)
	}
	data := map[string]any{"name": r.vars["name"], p.member: text}
	if p.member != "rules" {
		return &response{data: data}, nil
	}
	return both(data), nil
}

func (p policies) write(ctx context.Context, r *request) (*response, error) {
	text := r.str("policy")
	if text == "" {
		text = r.str("rules")
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		text = string(b)
	}
	return nil, said(p.ACL.WritePolicy(stays(ctx), r.caller, string(r.namespace), r.vars["name"], text))
}

func (p policies) delete(ctx context.Context, r *request) (*response, error) {
	return nil, said(p.ACL.DeletePolicy(stays(ctx), r.caller, string(r.namespace), r.vars["name"]))
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

func (c Config) capabilitiesSelf(_ context.Context, r *request) (*response, error) {
	paths, err := askedPaths(r)
	if err != nil {
		return nil, err
	}
	return capable(c.ACL.Capabilities(r.caller, string(r.namespace), paths)), nil
}

func (c Config) capabilitiesOf(of func(*request) acl.Who) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		paths, err := askedPaths(r)
		if err != nil {
			return nil, err
		}
		who := of(r)
		if who == (acl.Who{}) {
			return nil, bad("missing token or accessor")
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

// resultant is what the user interface asks for. A session of rotor's own has no paths.
func (c Config) resultant(_ context.Context, r *request) (*response, error) {
	if r.caller.ACL.Root() || r.caller.ACL == nil && c.Guard.Allows(r.caller, policy.ActPolicyChange, policy.Resource{Namespace: string(r.namespace)}) {
		return &response{data: map[string]any{"root": true}}, nil
	}
	exact, globs := r.caller.ACL.Paths()
	return &response{data: map[string]any{"root": false, "exact_paths": pathsTold(exact), "glob_paths": pathsTold(globs)}}, nil
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
