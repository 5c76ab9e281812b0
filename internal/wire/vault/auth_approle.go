package vault

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
)

// olderAppRole are older names of an AppRole's fields.
var olderAppRole = map[string]string{"policies": "token_policies", "period": "token_period", "bound_cidr_list": "secret_id_bound_cidrs"}

// appRoleRoutes are those below a mount of approle.
func appRoleRoutes(c Config) []route {
	a := appRole{c, entries{Config: c, kind: acl.KindAppRole, name: "role_name", older: olderAppRole, show: showOlder}}
	role := a.entries.routes("approle", "role/:role_name", "role", "Shows, writes and deletes a role.", "secret IDs are kept as hashes; what has an older name is shown by both", append([]field{
		{"bind_secret_id", "bool", "a login needs a secret ID; true unless said", false}, {"secret_id_bound_cidrs", "list", "networks that a login comes from", false},
		{"secret_id_num_uses", "int", "logins with one secret ID; 0: any number", false}, {"secret_id_ttl", "duration", "life of a secret ID", false},
		{"local_secret_ids", "bool", "kept and shown", false}, {"role_id", "string", "role ID of the client's choice", false},
	}, tokenFields...))
	role[0].ops[opUpdate] = a.write
	by := func(text, accessor bool) func(r *request) (string, string) {
		return func(r *request) (string, string) {
			if accessor {
				return "", r.str("secret_id_accessor")
			}
			return r.str("secret_id"), ""
		}
	}
	text, accessor := by(true, false), by(false, true)
	secret := []field{
		{"metadata", "map", "texts that tokens of it carry", false}, {"cidr_list", "list", "networks that a login comes from", false}, {"token_bound_cidrs", "list", "networks that its tokens count from", false},
		{"num_uses", "int", "logins with it", false}, {"ttl", "duration", "life", false},
	}
	t := func(pattern, doc string, fields []field, ops map[operation]handler) route {
		return route{pattern: "role/:role_name/" + pattern, engine: "approle", ops: ops, needs: authNeeds, fields: fields, doc: doc}
	}
	shows := func(r route) route {
		r.needs = every(right(policy.ActAuthShow))
		return r
	}
	one, handle := []field{{"secret_id", "string", "secret ID", true}}, []field{{"secret_id_accessor", "string", "accessor of a secret ID", true}}
	gone := func(h handler) map[operation]handler { return map[operation]handler{opUpdate: h, opDelete: h} }
	return slices.Concat(role, []route{
		{pattern: "login", engine: "approle", ops: map[operation]handler{opUpdate: a.login}, stranger: true, login: true, doc: "Exchanges a role ID and a secret ID for a token.",
			fields: []field{{"role_id", "string", "role ID", true}, {"secret_id", "string", "secret ID", false}}},
		{pattern: "tidy/secret-id", engine: "approle", ops: map[operation]handler{opUpdate: c.tidy}, needs: every(right(policy.ActTokenRevoke)), doc: "Deletes the records of secret IDs that are over."},
		t("role-id", "Shows and sets the role ID.", []field{{"role_id", "string", "role ID of the client's choice", true}}, map[operation]handler{opRead: a.roleID, opUpdate: a.setRoleID}),
		t("secret-id", "Makes a secret ID; lists the accessors of the role's.", secret, map[operation]handler{opUpdate: a.secretID, opList: a.secretIDs}),
		t("custom-secret-id", "Takes a secret ID of the client's choice, of 8 bytes at least.", append(one, secret...), map[operation]handler{opUpdate: a.secretID}),
		shows(t("secret-id/lookup", "Shows a secret ID.", one, map[operation]handler{opUpdate: a.lookup(text)})),
		t("secret-id/destroy", "Ends a secret ID.", one, gone(a.destroy(text))),
		shows(t("secret-id-accessor/lookup", "Shows a secret ID.", handle, map[operation]handler{opUpdate: a.lookup(accessor)})),
		t("secret-id-accessor/destroy", "Ends a secret ID.", handle, gone(a.destroy(accessor))),
	}, a.parts())
}

// showOlder shows fields by their older names too: Vault does for a role that was written by them, and clients of before Vault 1.2, which write so, end without.
func showOlder(data map[string]any) {
	for old, now := range olderAppRole {
		data[old] = data[now]
	}
}

type appRole struct {
	Config
	entries entries
}

// parts are the fields of a role that have paths of their own.
func (a appRole) parts() (all []route) {
	for _, name := range []string{
		"policies", "token-policies", "local-secret-ids", "bind-secret-id", "secret-id-bound-cidrs", "token-bound-cidrs", "bound-cidr-list", "period", "token-period",
		"secret-id-num-uses", "secret-id-ttl", "token-num-uses", "token-ttl", "token-max-ttl", "token-explicit-max-ttl", "token-no-default-policy", "token-type",
	} {
		member := strings.ReplaceAll(name, "-", "_")
		stored := member
		if newer, ok := olderAppRole[member]; ok {
			stored = newer
		}
		all = append(all, route{
			pattern: "role/:role_name/" + name, engine: "approle", doc: "Shows, sets and resets a field of a role.", fields: []field{{member, "string", "as of the role", true}},
			ops: map[operation]handler{opRead: a.part(member, stored), opUpdate: a.setPart(member, stored), opDelete: a.resetPart(stored)}, needs: authNeeds,
		})
	}
	return all
}

// at names the role of a request; names count in small letters.
func (a appRole) at(r *request) acl.At {
	return a.Config.at(r, acl.KindAppRole, strings.ToLower(r.vars["role_name"]))
}

func (a appRole) write(ctx context.Context, r *request) (*response, error) {
	return nil, said(a.ACL.PutAppRole(stays(ctx), r.caller, a.at(r), r.str("role_id"), func(s acl.Spec) error { return acl.Decode(s, r.body, olderAppRole) }))
}

func (a appRole) part(member, stored string) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		spec, err := a.ACL.Get(ctx, r.caller, a.at(r))
		if err != nil {
			return nil, said(err)
		}
		data, err := members(spec)
		if err != nil {
			return nil, err
		}
		out := map[string]any{member: data[stored]}
		if stored != member {
			out[stored] = data[stored]
		}
		return &response{data: out}, nil
	}
}

func (a appRole) setPart(member, stored string) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		value, ok := r.body[member]
		if !ok {
			value, ok = r.body[stored]
		}
		if !ok {
			return nil, bad("missing %s", member)
		}
		return nil, said(a.change(ctx, r, map[string]json.RawMessage{stored: value}))
	}
}

func (a appRole) resetPart(stored string) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		value := json.RawMessage("null")
		switch stored {
		case "bind_secret_id":
			value = json.RawMessage("true")
		case "local_secret_ids", "token_no_default_policy":
			value = json.RawMessage("false")
		case "token_type":
			value = json.RawMessage(`"default"`)
		case "secret_id_num_uses", "token_num_uses":
			value = json.RawMessage("0")
		}
		return nil, said(a.change(ctx, r, map[string]json.RawMessage{stored: value}))
	}
}

// change sets fields of a role that is there. fault.NotFound.
func (a appRole) change(ctx context.Context, r *request, body map[string]json.RawMessage) error {
	if !a.ACL.Exists(a.at(r)) {
		if _, err := a.ACL.Get(ctx, r.caller, a.at(r)); err != nil {
			return err
		}
	}
	return a.ACL.PutAppRole(stays(ctx), r.caller, a.at(r), "", func(s acl.Spec) error { return acl.Decode(s, body, nil) })
}

func (a appRole) roleID(ctx context.Context, r *request) (*response, error) {
	id, err := a.ACL.RoleID(ctx, r.caller, a.at(r))
	if err != nil {
		return nil, said(err)
	}
	return &response{data: map[string]any{"role_id": id}}, nil
}

func (a appRole) setRoleID(ctx context.Context, r *request) (*response, error) {
	if r.str("role_id") == "" {
		return nil, bad("missing role_id")
	}
	if _, err := a.ACL.RoleID(ctx, r.caller, a.at(r)); err != nil && fault.CodeOf(err) == fault.NotFound {
		return nil, said(err)
	}
	return nil, said(a.ACL.PutAppRole(stays(ctx), r.caller, a.at(r), r.str("role_id"), func(acl.Spec) error { return nil }))
}

func (a appRole) secretID(ctx context.Context, r *request) (*response, error) {
	want := acl.SecretID{HasUses: r.has("num_uses"), HasTTL: r.has("ttl")}
	if strings.HasSuffix(r.path, "/custom-secret-id") {
		if want.Text = r.str("secret_id"); want.Text == "" {
			return nil, bad("missing secret_id")
		}
	}
	uses, err := r.whole("num_uses", 0)
	if err != nil {
		return nil, err
	}
	if uses < 0 {
		return nil, bad("num_uses cannot be negative")
	}
	want.Uses = uses
	if want.TTL, err = r.span("ttl"); err != nil {
		return nil, err
	}
	if want.CIDRs, err = r.list("cidr_list"); err != nil {
		return nil, err
	}
	if want.TokenCIDRs, err = r.list("token_bound_cidrs"); err != nil {
		return nil, err
	}
	meta, err := member[lenient.Map](r, "metadata")
	if err != nil {
		return nil, err
	}
	want.Meta = meta
	got, err := a.ACL.CreateSecretID(stays(ctx), r.caller, a.at(r), want)
	if err != nil {
		return nil, said(err)
	}
	return &response{data: map[string]any{
		"secret_id": got.Text, "secret_id_accessor": got.Accessor, "secret_id_ttl": seconds(got.TTL), "secret_id_num_uses": got.Uses,
	}}, nil
}

func (a appRole) secretIDs(ctx context.Context, r *request) (*response, error) {
	all, err := a.ACL.SecretIDs(ctx, r.caller, a.at(r))
	return keys(all), said(err)
}

func (a appRole) lookup(by func(*request) (text, accessor string)) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		text, accessor := by(r)
		got, err := a.ACL.SecretIDOf(ctx, r.caller, a.at(r), text, accessor)
		if fault.CodeOf(err) == fault.NotFound && accessor == "" && a.ACL.Exists(a.at(r)) {
			return nil, nil // 204, as clients expect
		}
		if err != nil {
			return nil, said(err)
		}
		expires := time.Time{}.Format(time.RFC3339)
		if !got.Expires.IsZero() {
			expires = got.Expires.Format(time.RFC3339Nano)
		}
		return &response{data: map[string]any{
			"secret_id_accessor": got.Accessor, "secret_id_num_uses": got.Uses, "secret_id_ttl": seconds(got.TTL), "creation_time": got.Created.Format(time.RFC3339Nano),
			"last_updated_time": got.Updated.Format(time.RFC3339Nano), "expiration_time": expires, "metadata": orEmpty(got.Meta), "cidr_list": orNone(got.CIDRs),
			"token_bound_cidrs": orNone(got.TokenCIDRs),
		}}, nil
	}
}

func (a appRole) destroy(by func(*request) (text, accessor string)) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		text, accessor := by(r)
		err := a.ACL.DestroySecretID(stays(ctx), r.caller, a.at(r), text, accessor)
		if fault.CodeOf(err) == fault.NotFound && accessor == "" {
			return nil, nil
		}
		return nil, said(err)
	}
}

func (a appRole) login(ctx context.Context, r *request) (*response, error) {
	return ticket(a.ACL.LoginAppRole(stays(ctx), a.door(ctx, r), strings.TrimSpace(r.str("role_id")), strings.TrimSpace(r.str("secret_id"))))
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
