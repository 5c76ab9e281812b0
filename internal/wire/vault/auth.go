package vault

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/wire"
)

// authRoutes are those of auth/.
func authRoutes(c Config) []route {
	return slices.Concat(tokenRoutes(c), roleRoutes(c), appRoleRoutes(c), userRoutes(c), foreignRoutes(c))
}

// said gives what the rooms say about what a client did wrong in their own words, which are Vault's where clients compare them.
func said(err error) error {
	var f *fault.Error
	if err == nil || !errors.As(err, &f) {
		return err
	}
	text := f.Resource
	if f.Hint != "" {
		text += ": " + f.Hint
	}
	switch f.Code {
	case fault.Invalid:
		return &refusal{http.StatusBadRequest, []string{text}, nil, err}
	case fault.NotFound:
		return &refusal{http.StatusNotFound, []string{}, nil, err}
	}
	return err
}

// forbidden is the answer to a token that is none, where one is named by who has the right to ask: 403.
func forbidden(err error) error {
	if fault.CodeOf(err) == fault.NotFound {
		return &refusal{http.StatusForbidden, []string{"bad token"}, nil, err}
	}
	return said(err)
}

// authNeeds are the needs of ways to log in and of what is kept for them.
var authNeeds = readsAnd(right(policy.ActAuthShow), right(policy.ActAuthChange))

// authOf is the block of an answer that carries a token.
func authOf(t acl.Ticket) *auth {
	return &auth{
		ClientToken: t.Text, Accessor: t.Accessor, Policies: t.Policies, TokenPolicies: t.Policies, Metadata: t.Meta, LeaseDuration: seconds(t.TTL),
		Renewable: t.Renewable, EntityID: t.EntityID, TokenType: tokenType(t.Token), Orphan: t.Orphan, NumUses: int(t.NumUses),
	}
}

// tokenType is the type of a token.
func tokenType(t acl.Token) string {
	if t.Batch {
		return "batch"
	}
	return "service"
}

func ticket(t acl.Ticket, err error) (*response, error) {
	if err != nil {
		return nil, said(err)
	}
	return &response{auth: authOf(t), warnings: t.Warnings}, nil
}

// seconds rounds up, so that what is left of a second is one.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// mountedAt is the mount that a request is below.
func (c Config) mountedAt(r *request) mounts.Mount {
	m, _, _ := c.Mounts.Find(r.namespace, r.mount+"/") // it was found before
	return m
}

// at names an entry of a mount.
func (c Config) at(r *request, kind, name string) acl.At {
	return acl.At{Namespace: string(r.namespace), Mount: c.mountedAt(r), Kind: kind, Name: name}
}

// door is where a login comes from.
func (c Config) door(ctx context.Context, r *request) acl.Door {
	return acl.Door{Namespace: string(r.namespace), Life: r.life, Mount: c.mountedAt(r), Address: r.address, From: wire.Network(ctx), TLS: wire.Connection(ctx)}
}

// entries are the handlers of the entries of one kind, which are read, written, listed and deleted alike.
type entries struct {
	Config
	kind  string
	name  string            // the variable of the path with the entry's name; "": there is one
	older map[string]string // older names of fields
	show  func(data map[string]any)
}

func (e entries) at(r *request) acl.At {
	if e.name == "" {
		return e.Config.at(r, e.kind, "config")
	}
	return e.Config.at(r, e.kind, r.vars[e.name])
}

func (e entries) exists(_ context.Context, r *request) (bool, error) {
	return e.ACL.Exists(e.at(r)), nil
}

func (e entries) read(ctx context.Context, r *request) (*response, error) {
	spec, err := e.ACL.Get(ctx, r.caller, e.at(r))
	if fault.CodeOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, said(err)
	}
	data, err := members(spec)
	if err != nil {
		return nil, err
	}
	if e.show != nil {
		e.show(data)
	}
	return &response{data: data}, nil
}

func (e entries) write(ctx context.Context, r *request) (*response, error) {
	return nil, said(e.ACL.Put(stays(ctx), r.caller, e.at(r), func(s acl.Spec) error { return acl.Decode(s, r.body, e.older) }))
}

func (e entries) list(ctx context.Context, r *request) (*response, error) {
	names, err := e.ACL.List(ctx, r.caller, e.at(r))
	return keys(names), said(err)
}

func (e entries) delete(ctx context.Context, r *request) (*response, error) {
	return nil, said(e.ACL.Delete(stays(ctx), r.caller, e.at(r)))
}

// routes are those of the kind: pattern names one, list all.
func (e entries) routes(engine, pattern, list, doc, differs string, fields []field) []route {
	all := []route{{
		pattern: pattern, engine: engine, ops: map[operation]handler{opRead: e.read, opUpdate: e.write, opDelete: e.delete}, needs: authNeeds, exists: e.exists, fields: fields, doc: doc, differs: differs,
	}}
	if list != "" {
		all = append(all, route{pattern: list, engine: engine, ops: map[operation]handler{opList: e.list}, needs: authNeeds, doc: "Lists them."})
	}
	return all
}

// olderNames are what the parameters of tokens were called before Vault 1.2.
var olderNames = map[string]string{
	"policies": "token_policies", "ttl": "token_ttl", "max_ttl": "token_max_ttl", "period": "token_period", "num_uses": "token_num_uses", "bound_cidrs": "token_bound_cidrs",
	"explicit_max_ttl": "token_explicit_max_ttl",
}

// tokenFields are the parameters of tokens that every way to log in has.
var tokenFields = []field{
	{"token_policies", "list", "policies of the tokens", false}, {"token_ttl", "duration", "life at first", false}, {"token_max_ttl", "duration", "life with all renewals", false},
	{"token_explicit_max_ttl", "duration", "the same, fixed when the token is made", false}, {"token_period", "duration", "life after each renewal, without an end", false},
	{"token_num_uses", "int", "uses of a token; 0: any number", false}, {"token_bound_cidrs", "list", "networks that a token counts from", false},
	{"token_no_default_policy", "bool", "leaves out the policy default", false}, {"token_type", "string", "default, service or batch", false},
}
