package vault

import (
	"context"
	"encoding/base64"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// policyRoutes are those of policies, and of what they come to.
func policyRoutes(c Config) []route {
	old, now := policies{c, "rules", "sys/policy"}, policies{c, "policy", "sys/policies/acl"}
	return slices.Concat(old.routes(), now.routes(), capabilityRoutes(c))
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
