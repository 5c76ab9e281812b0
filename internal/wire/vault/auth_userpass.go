package vault

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/fault"
)

// userRoutes are those below a mount of userpass.
func userRoutes(c Config) []route {
	u := users{c, entries{Config: c, kind: acl.KindUser, name: "username", older: olderNames}}
	password := field{"password", "string", "8 characters to 512 bytes", true}
	all := u.entries.routes("userpass", "users/:username", "users", "Shows, writes and deletes a user.", "password_hash is not taken; passwords have 8 characters at least, and are kept as Argon2id", append([]field{password}, tokenFields...))
	all[0].ops[opUpdate], all[0].exists = u.write, u.exists
	all[0].ops[opRead], all[0].ops[opDelete] = lower(u.entries.read), lower(u.entries.delete)
	return append(all,
		route{pattern: "users/:username/password", engine: "userpass", ops: map[operation]handler{opUpdate: u.password}, needs: authNeeds, fields: []field{password}, doc: "Sets a user's password."},
		route{pattern: "users/:username/policies", engine: "userpass", ops: map[operation]handler{opUpdate: u.policies}, needs: authNeeds, fields: tokenFields[:1], doc: "Sets the policies of a user's tokens."},
		route{
			pattern: "login/:username", engine: "userpass", ops: map[operation]handler{opUpdate: u.login}, stranger: true, login: true, fields: []field{password},
			doc: "Exchanges a password for a token.", differs: "after 5 wrong passwords in a row none is taken for 15 minutes, which user_lockout_config does not change",
		},
	)
}

type users struct {
	Config
	entries entries
}

// lower has the name of a user in small letters.
func lower(h handler) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		r.vars["username"] = strings.ToLower(r.vars["username"])
		return h(ctx, r)
	}
}

func (u users) at(r *request) acl.At {
	return u.Config.at(r, acl.KindUser, strings.ToLower(r.vars["username"]))
}

func (u users) exists(_ context.Context, r *request) (bool, error) { return u.ACL.Exists(u.at(r)), nil }

func (u users) put(ctx context.Context, r *request, body map[string]json.RawMessage) (*response, error) {
	if r.str("password_hash") != "" {
		return nil, bad("password_hash is not supported: give the password")
	}
	var password *string
	if r.has("password") {
		p := r.str("password")
		password = &p
	}
	return nil, said(u.ACL.PutUser(stays(ctx), r.caller, u.at(r), password, func(s acl.Spec) error { return acl.Decode(s, body, olderNames) }))
}

func (u users) write(ctx context.Context, r *request) (*response, error) {
	return u.put(ctx, r, r.body)
}

// there refuses what is about a user who is not there, to whom it may be told.
func (u users) there(ctx context.Context, r *request) error {
	_, err := u.ACL.Get(ctx, r.caller, u.at(r))
	if fault.CodeOf(err) == fault.NotFound {
		return bad("username does not exist")
	}
	return said(err)
}

func (u users) password(ctx context.Context, r *request) (*response, error) {
	if !r.has("password") {
		return nil, bad("missing password")
	}
	if err := u.there(ctx, r); err != nil {
		return nil, err
	}
	return u.put(ctx, r, nil)
}

func (u users) policies(ctx context.Context, r *request) (*response, error) {
	if err := u.there(ctx, r); err != nil {
		return nil, err
	}
	body := map[string]json.RawMessage{}
	for _, name := range []string{"policies", "token_policies"} {
		if value, ok := r.body[name]; ok {
			body[name] = value
		}
	}
	delete(r.body, "password")
	return u.put(ctx, r, body)
}

func (u users) login(ctx context.Context, r *request) (*response, error) {
	if r.str("password") == "" {
		return nil, bad("missing password")
	}
	return ticket(u.ACL.LoginUser(stays(ctx), u.door(ctx, r), r.vars["username"], r.str("password")))
}
