package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
)

// tokenRoutes are those of auth/token.
func tokenRoutes(c Config) []route {
	ask := []field{
		{"policies", "list", "policies; those of the maker's token when left out", false}, {"meta", "map", "texts that are shown with the token and stand in the audit log", false},
		{"no_parent", "bool", "an orphan; needs sudo", false}, {"no_default_policy", "bool", "leaves out the policy default", false}, {"renewable", "bool", "true unless said", false},
		{"ttl", "duration", "life at first", false}, {"explicit_max_ttl", "duration", "life with all renewals", false}, {"period", "duration", "life after each renewal, without an end; needs sudo", false},
		{"display_name", "string", "name that is shown", false}, {"num_uses", "int", "uses; 0: any number", false}, {"type", "string", "service or batch", false},
	}
	one := []field{{"token", "string", "token", true}}
	accessor := []field{{"accessor", "string", "accessor of a token", true}}
	more := field{"increment", "duration", "life from now", false}
	make := func(orphan bool) handler {
		return func(ctx context.Context, r *request) (*response, error) { return c.create(ctx, r, orphan) }
	}
	text := func(r *request) acl.Who { return acl.Who{Text: r.str("token")} }
	by := func(r *request) acl.Who { return acl.Who{Accessor: r.str("accessor")} }
	t := func(pattern, doc string, n need, fields []field, ops map[operation]handler) route {
		return route{pattern: pattern, engine: "token", ops: ops, needs: every(n), fields: fields, doc: doc, ofToken: strings.HasSuffix(pattern, "-self")}
	}
	shows, makes, ends := right(policy.ActTokens), right(policy.ActTokenCreate), right(policy.ActTokenRevoke)
	update := func(h handler) map[operation]handler { return map[operation]handler{opUpdate: h} }
	create := t("create(/:role_name)", "Makes a token below that of the caller, or by a role.", makes, ask, update(make(false)))
	create.differs = "no id of the caller's choice; a role without allowed_policies gives no policies that the caller's token lacks"
	orphans := t("revoke-orphan", "Ends a token; those below it live on.", ends, one, update(c.revoke(text, true)))
	orphans.sudo = true
	all := t("accessors", "Lists the accessors of the living tokens.", shows, nil, map[operation]handler{opList: c.accessors})
	all.sudo = true
	return []route{
		create, orphans, all,
		t("create-orphan", "Makes a token without a parent.", makes, ask, update(make(true))),
		t("lookup", "Shows a token.", shows, one, map[operation]handler{opUpdate: c.lookup(text), opRead: c.lookup(text)}),
		t("lookup-self", "Shows the caller's token.", own(policy.ActTokens), nil, map[operation]handler{opRead: c.lookup(self), opUpdate: c.lookup(self)}),
		t("lookup-accessor", "Shows a token, but not its text.", shows, accessor, update(c.lookup(by))),
		t("renew", "Gives a token more time.", makes, append(one, more), update(c.renew(text))),
		t("renew-self", "Gives the caller's token more time.", own(policy.ActTokenCreate), []field{more}, update(c.renew(self))),
		t("renew-accessor", "Gives a token more time.", makes, append(accessor, more), update(c.renew(by))),
		t("revoke", "Ends a token and those below it.", ends, one, update(c.revoke(text, false))),
		t("revoke-self", "Ends the caller's token and those below it.", own(policy.ActTokenRevoke), nil, update(c.revoke(self, false))),
		t("revoke-accessor", "Ends a token and those below it.", ends, accessor, update(c.revoke(by, false))),
		t("tidy", "Deletes the records of tokens that are over.", ends, nil, update(c.tidy)),
	}
}

// self names the caller's own token.
func self(r *request) acl.Who {
	own, _, _ := token(r.header) // it was read before
	return acl.Who{Self: true, Text: own}
}

// roleRoutes are those of auth/token/roles.
func roleRoutes(c Config) []route {
	e := entries{Config: c, kind: acl.KindTokenRole, name: "role_name", older: map[string]string{
		"bound_cidrs": "token_bound_cidrs", "explicit_max_ttl": "token_explicit_max_ttl", "period": "token_period",
	}}
	e.show = func(data map[string]any) {
		for _, name := range []string{"token_max_ttl", "token_ttl", "token_policies"} { // of other roles
			delete(data, name)
		}
		if uses, _ := data["token_num_uses"].(float64); uses == 0 { // which a role shows when they are set
			delete(data, "token_num_uses")
		}
		if networks, _ := data["token_bound_cidrs"].([]any); len(networks) == 0 {
			delete(data, "token_bound_cidrs")
		}
		data["explicit_max_ttl"], data["period"] = data["token_explicit_max_ttl"], data["token_period"]
	}
	out := e.routes("token", "roles/:role_name", "roles", "Says what tokens that are made by a role are like.", "no entity aliases", append([]field{
		{"allowed_policies", "list", "policies that can be asked for", false}, {"allowed_policies_glob", "list", "the same, with *", false},
		{"disallowed_policies", "list", "policies that cannot", false}, {"disallowed_policies_glob", "list", "the same, with *", false},
		{"orphan", "bool", "without a parent", false}, {"renewable", "bool", "true unless said", false}, {"path_suffix", "string", "end of the path that the tokens show", false},
	}, tokenFields...))
	named := out[0].ops[opRead]
	out[0].ops[opRead] = func(ctx context.Context, r *request) (*response, error) {
		got, err := named(ctx, r)
		if got != nil {
			got.data.(map[string]any)["name"] = r.vars["role_name"] //nolint:errcheck // entries.read made it
		}
		return got, err
	}
	return out
}

// asked is the body of a request for a token.
type asked struct {
	ID         lenient.Text     `json:"id"`
	Policies   lenient.List     `json:"policies"`
	Meta       lenient.Map      `json:"meta"`
	NoParent   lenient.Bool     `json:"no_parent"`
	NoDefault  lenient.Bool     `json:"no_default_policy"`
	Renewable  *lenient.Bool    `json:"renewable"`
	Lease      lenient.Duration `json:"lease"`
	TTL        lenient.Duration `json:"ttl"`
	Explicit   lenient.Duration `json:"explicit_max_ttl"`
	Period     lenient.Duration `json:"period"`
	Display    lenient.Text     `json:"display_name"`
	NumUses    lenient.Int      `json:"num_uses"`
	Type       lenient.Text     `json:"type"`
	EntityName json.RawMessage  `json:"entity_alias"`
}

func (c Config) create(ctx context.Context, r *request, orphan bool) (*response, error) {
	var in asked
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if len(in.EntityName) > 0 && string(in.EntityName) != `""` && string(in.EntityName) != "null" {
		return nil, bad("entity_alias is not supported: there are no entities")
	}
	if in.TTL == 0 {
		in.TTL = in.Lease
	}
	if in.TTL < 0 || in.Explicit < 0 || in.Period < 0 {
		return nil, bad("ttl, explicit_max_ttl and period must be positive")
	}
	return ticket(c.ACL.Create(stays(ctx), r.caller, string(r.namespace), acl.Ask{
		ID: string(in.ID), Policies: in.Policies, Meta: in.Meta, NoParent: bool(in.NoParent), NoDefault: bool(in.NoDefault), NotRenewable: in.Renewable != nil && !bool(*in.Renewable),
		TTL: time.Duration(in.TTL), Explicit: time.Duration(in.Explicit), Period: time.Duration(in.Period), Display: string(in.Display), NumUses: int64(in.NumUses),
		Type: string(in.Type), Role: r.vars["role_name"], Path: r.path, Orphan: orphan,
	}))
}

func (c Config) lookup(of func(*request) acl.Who) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		who := of(r)
		if who == (acl.Who{}) {
			who = self(r)
		}
		shown := who.Text
		if who.Self {
			if r.caller.Accessor == "" {
				return c.lookupOwn(ctx, r, shown)
			}
		}
		t, err := c.ACL.Lookup(ctx, r.caller, string(r.namespace), who)
		if fault.CodeOf(err) == fault.NotFound && who.Accessor != "" {
			return nil, noAccessor(err)
		}
		if err != nil {
			return nil, forbidden(err)
		}
		return &response{data: told(t, shown)}, nil
	}
}

// told is a token as clients read it.
func told(t acl.Token, text string) map[string]any {
	data := map[string]any{
		"accessor": t.Accessor, "creation_time": t.Created.Unix(), "creation_ttl": seconds(t.CreationTTL), "display_name": t.DisplayName, "entity_id": t.EntityID,
		"expire_time": nil, "explicit_max_ttl": seconds(t.ExplicitMaxTTL), "id": text, "meta": t.Meta, "num_uses": t.NumUses, "orphan": t.Orphan, "path": t.Path,
		"policies": t.Policies, "ttl": seconds(t.TTL), "type": tokenType(t),
	}
	if !t.Expires.IsZero() {
		data["expire_time"], data["issue_time"], data["renewable"] = t.Expires.Format(time.RFC3339Nano), t.Created.Format(time.RFC3339Nano), t.Renewable
	}
	if t.Period > 0 {
		data["period"] = seconds(t.Period)
	}
	if t.Role != "" {
		data["role"] = t.Role
	}
	if !t.Renewed.IsZero() {
		data["last_renewal"], data["last_renewal_time"] = t.Renewed.Format(time.RFC3339Nano), t.Renewed.Unix()
	}
	if len(t.CIDRs) > 0 {
		data["bound_cidrs"] = t.CIDRs
	}
	return data
}

// lookupOwn tells of a session of rotor's own that is shown as a token.
func (c Config) lookupOwn(ctx context.Context, r *request, text string) (*response, error) {
	s, err := c.Authority.Own(ctx, r.caller)
	if err != nil {
		return nil, forbidden(err)
	}
	policies := []string{"default"}
	if c.Guard.Allows(r.caller, policy.ActPolicyChange, policy.Resource{Namespace: string(r.namespace)}) {
		policies = []string{policy.RootPolicy}
	}
	return &response{data: map[string]any{
		"accessor": s.ID, "creation_time": s.Created.Unix(), "creation_ttl": seconds(s.Expires.Sub(s.Created)), "display_name": s.Caller, "entity_id": "",
		"expire_time": s.Expires.Format(time.RFC3339Nano), "explicit_max_ttl": seconds(s.Expires.Sub(s.Created)), "id": text, "issue_time": s.Created.Format(time.RFC3339Nano),
		"meta": r.caller.Attributes, "num_uses": 0, "orphan": true, "path": "auth/rotor/login", "policies": policies, "renewable": false,
		"ttl": seconds(s.Expires.Sub(c.Now())), "type": "service",
	}}, nil
}

// noAccessor is the answer to an accessor that is none.
func noAccessor(err error) error {
	return &refusal{http.StatusBadRequest, []string{"1 error occurred:\n\t* invalid accessor\n\n"}, nil, err}
}

func (c Config) renew(of func(*request) acl.Who) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		increment, err := r.span("increment")
		if err != nil {
			return nil, err
		}
		who := of(r)
		if (who.Self || who.Text == "" && who.Accessor == "") && r.caller.Accessor == "" {
			return nil, bad("a session of rotor's own is not renewed: log in again")
		}
		if who == (acl.Who{}) {
			who = self(r)
		}
		t, err := c.ACL.Renew(stays(ctx), r.caller, string(r.namespace), who, max(increment, 0))
		switch {
		case fault.CodeOf(err) != fault.NotFound:
			return ticket(t, err)
		case who.Accessor != "":
			return nil, noAccessor(err)
		}
		return nil, &refusal{http.StatusBadRequest, []string{"token not found"}, nil, err}
	}
}

func (c Config) revoke(of func(*request) acl.Who, orphans bool) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		who := of(r)
		if who.Self && r.caller.Accessor == "" {
			return nil, said(c.Authority.Logout(stays(ctx), r.caller))
		}
		if who == (acl.Who{}) {
			return nil, bad("missing token ID or accessor")
		}
		err := c.ACL.Revoke(stays(ctx), r.caller, string(r.namespace), who, orphans)
		switch { // one that is gone already, as a request that is repeated finds it
		case fault.CodeOf(err) != fault.NotFound:
			return nil, said(err)
		case who.Accessor != "":
			return &response{warnings: []string{"No token found with this accessor"}}, nil
		}
		return nil, nil
	}
}

func (c Config) accessors(ctx context.Context, r *request) (*response, error) {
	all, err := c.ACL.Accessors(ctx, r.caller, string(r.namespace))
	return keys(all), said(err)
}

func (c Config) tidy(ctx context.Context, r *request) (*response, error) {
	n, err := c.ACL.Tidy(stays(ctx), r.caller, string(r.namespace))
	if err != nil {
		return nil, said(err)
	}
	return &response{status: http.StatusAccepted, warnings: []string{fmt.Sprintf("%d records of tokens and secret IDs that were over are deleted.", n)}}, nil
}

// members are the fields of a spec, as JSON has them.
func members(spec any) (map[string]any, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return out, nil
}
