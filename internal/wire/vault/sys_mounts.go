package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
)

// Fields of what is mounted.
var (
	mountFields = []field{
		{"type", "string", strings.Join(mounts.Types(false), ", ") + "; of ways to log in " + strings.Join(mounts.Types(true), ", "), true}, {"description", "string", "for people", false},
		{"config", "map", "what can be tuned", false}, {"options", "map", "kept and shown", false}, {"local", "bool", "kept and shown", false}, {"seal_wrap", "bool", "kept and shown", false},
	}
	tuneFields = []field{
		{"default_lease_ttl", "duration", "of what a login gives; system: 768h", false}, {"max_lease_ttl", "duration", "at most", false}, {"description", "string", "for people", false},
		{"options", "map", "kept and shown", false}, {"audit_non_hmac_request_keys", "list", "kept and shown", false}, {"audit_non_hmac_response_keys", "list", "kept and shown", false},
		{"listing_visibility", "string", "unauth: strangers see it in sys/internal/ui/mounts; hidden", false}, {"passthrough_request_headers", "list", "kept and shown", false},
		{"allowed_response_headers", "list", "kept and shown", false}, {"allowed_managed_keys", "list", "kept and shown", false}, {"token_type", "string", "of a way to log in: default-service, default-batch, service, batch", false},
		{"user_lockout_config", "map", "kept and shown", false},
	}
)

// mountNeeds are the needs of what is about a mount.
var mountNeeds = readsAnd(right(policy.ActMounts), right(policy.ActMountChange))

// mountRoutes are about secret engines.
func mountRoutes(c Config) []route { return c.mountRoutes(false) }

// authMountRoutes are about ways to log in.
func authMountRoutes(c Config) []route { return c.mountRoutes(true) }

func (c Config) mountRoutes(auth bool) []route {
	base, what := "sys/mounts", "secret engines"
	if auth {
		base, what = "sys/auth", "ways to log in"
	}
	t := mountTable{c, auth}
	all := []route{
		{pattern: base, ops: map[operation]handler{opRead: t.list}, needs: every(right(policy.ActMounts)), sudo: auth, doc: "Lists the " + what + "."},
		{
			pattern: base + "/*path", ops: map[operation]handler{opRead: t.show, opUpdate: t.enable, opDelete: t.disable}, needs: mountNeeds, fields: mountFields, sudo: auth,
			doc: "Shows, mounts and unmounts one of the " + what + ".", differs: "paths have at most 96 bytes, of letters, digits, _, -, . and /",
		},
		{pattern: base + "/*path/tune", ops: map[operation]handler{opRead: t.tuned, opUpdate: t.tune}, needs: mountNeeds, fields: tuneFields, sudo: auth, doc: "Shows and changes what can be tuned of a mount."},
	}
	if !auth {
		all[1].differs += "; an engine with a key whose deletion_allowed is false stays; the other keys of one that goes wait, retired, for an administrator"
		all = append(all, route{
			pattern: "sys/remount", ops: map[operation]handler{opUpdate: c.remount}, needs: every(right(policy.ActMountChange)), sudo: true, doc: "Moves a mount with what is below it.", fields: []field{{"from", "string", "path", true}, {"to", "string", "path", true}},
			differs: "it has moved when the answer comes; meanwhile nothing below it is served; tokens of a way to log in that moves stay; not from one namespace to another",
		}, route{
			pattern: "sys/remount/status/:migration_id", ops: map[operation]handler{opRead: c.remounted}, needs: every(right(policy.ActMounts)), doc: "Tells of a move.", differs: "of the last one of each mount",
		})
	}
	return all
}

// mountTable is the mounts of one sort.
type mountTable struct {
	Config
	auth bool
}

func (t mountTable) list(ctx context.Context, r *request) (*response, error) {
	all, err := t.Mounts.List(ctx, r.caller, r.namespace)
	if err != nil {
		return nil, err
	}
	data := map[string]any{}
	for _, m := range all {
		if m.Auth == t.auth {
			data[m.Path] = t.info(ctx, m)
		}
	}
	return both(data), nil
}

// info is a mount as clients see it.
func (c Config) info(ctx context.Context, m mounts.Mount) map[string]any {
	config := map[string]any{"default_lease_ttl": m.Settings.DefaultLease, "max_lease_ttl": m.Settings.MaxLease, "force_no_cache": m.Settings.ForceNoCache}
	settings(config, m)
	if l := lockout(m.Settings); l != nil {
		config["user_lockout_config"] = l
	}
	out := map[string]any{
		"type": m.Type, "description": m.Description, "accessor": m.Accessor, "uuid": m.UUID, "local": m.Local, "seal_wrap": m.SealWrap, "external_entropy_access": false,
		"options": m.Options, "config": config, "plugin_version": "", "running_plugin_version": "v" + c.About(ctx).Version + "+builtin.rotor", "running_sha256": "",
	}
	if !m.BuiltIn {
		out["deprecation_status"] = "supported"
		if m.Options == nil {
			out["options"] = map[string]string{}
		}
	}
	return out
}

// settings adds the tuned settings that are not the leases.
func settings(out map[string]any, m mounts.Mount) {
	s := m.Settings
	for name, l := range map[string][]string{
		"audit_non_hmac_request_keys": s.AuditNonHMACRequest, "audit_non_hmac_response_keys": s.AuditNonHMACResponse, "passthrough_request_headers": s.PassthroughHeaders,
		"allowed_response_headers": s.AllowedResponseHeaders, "allowed_managed_keys": s.AllowedManagedKeys,
	} {
		if l != nil {
			out[name] = l
		}
	}
	if s.ListingVisibility != "" {
		out["listing_visibility"] = s.ListingVisibility
	}
	if m.Auth {
		out["token_type"] = "default-service"
		if s.TokenType != "" {
			out["token_type"] = s.TokenType
		}
	}
}

// lockout is what is kept of logins that fail; nil: nothing is.
func lockout(s mounts.Settings) map[string]any {
	if s.UserLockoutThreshold == 0 && s.UserLockoutDuration == 0 && s.UserLockoutCounterReset == 0 && !s.UserLockoutDisable {
		return nil
	}
	return map[string]any{
		"user_lockout_threshold": s.UserLockoutThreshold, "user_lockout_duration": s.UserLockoutDuration, "user_lockout_counter_reset_duration": s.UserLockoutCounterReset,
		"user_lockout_disable": s.UserLockoutDisable,
	}
}

// find finds the mount that a request names. It asks for the right first.
func (t mountTable) find(ctx context.Context, r *request, otherwise string) (mounts.Mount, error) {
	if _, err := t.permit(ctx, r, policy.ActMounts); err != nil {
		return mounts.Mount{}, err
	}
	m, ok := t.Mounts.Mounted(r.namespace, t.auth, r.vars["path"])
	if !ok {
		if err := t.Mounts.Refresh(ctx, r.namespace); err != nil { // another server may have mounted it just now
			return mounts.Mount{}, err
		}
		m, ok = t.Mounts.Mounted(r.namespace, t.auth, r.vars["path"])
	}
	if !ok {
		return mounts.Mount{}, bad(otherwise, r.vars["path"]+"/")
	}
	return m, nil
}

func (t mountTable) show(ctx context.Context, r *request) (*response, error) {
	otherwise := "No secret engine mount at %s"
	if t.auth {
		otherwise = "No auth engine at %s"
	}
	m, err := t.find(ctx, r, otherwise)
	if err != nil {
		return nil, err
	}
	return both(t.info(ctx, m)), nil
}

// tuned shows the settings with the leases that count.
func (t mountTable) tuned(ctx context.Context, r *request) (*response, error) {
	m, err := t.find(ctx, r, "cannot fetch sysview for path %q")
	if err != nil {
		return nil, err
	}
	usual, most := m.Leases()
	out := map[string]any{
		"description": m.Description, "default_lease_ttl": int64(usual / time.Second), "max_lease_ttl": int64(most / time.Second), "force_no_cache": m.Settings.ForceNoCache,
	}
	settings(out, m)
	maps.Copy(out, lockout(m.Settings))
	if len(m.Options) > 0 {
		out["options"] = m.Options
	}
	return both(out), nil
}

func (t mountTable) enable(ctx context.Context, r *request) (*response, error) {
	m := mounts.Mount{Path: r.vars["path"], Type: r.str("type"), Auth: t.auth, Description: r.str("description")}
	var err error
	if m.Local, err = r.is("local", false); err != nil {
		return nil, err
	}
	if m.SealWrap, err = r.is("seal_wrap", false); err != nil {
		return nil, err
	}
	if m.Options, err = texts(r, "options"); err != nil {
		return nil, err
	}
	if r.has("config") {
		var config body
		if err := json.Unmarshal(r.body["config"], &config); err != nil {
			return nil, bad("unable to parse given mount config information")
		}
		set, err := tuning(&request{body: config}, t.auth)
		if err != nil {
			return nil, err
		}
		set(&m.Settings)
	}
	_, err = t.Mounts.Enable(stays(ctx), r.caller, r.namespace, m)
	return nil, plainly(err)
}

// texts is a member that is a map of texts; nil when it is not there.
func texts(r *request, name string) (map[string]string, error) {
	in, err := member[map[string]lenient.Text](r, name)
	if err != nil || in == nil {
		return nil, err
	}
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[k] = string(v)
	}
	return out, nil
}

func (t mountTable) disable(ctx context.Context, r *request) (*response, error) {
	return nil, plainly(t.Mounts.Disable(stays(ctx), r.caller, r.namespace, t.auth, r.vars["path"]))
}

func (t mountTable) tune(ctx context.Context, r *request) (*response, error) {
	set, err := tuning(r, t.auth)
	if err != nil {
		return nil, err
	}
	change := mounts.Change{Settings: set}
	if r.has("description") {
		d := r.str("description")
		change.Description = &d
	}
	if change.Options, err = texts(r, "options"); err != nil {
		return nil, err
	}
	return nil, plainly(t.Mounts.Tune(stays(ctx), r.caller, r.namespace, t.auth, r.vars["path"], change))
}

// tuning reads the settings that a request changes, all of them before the first is.
func tuning(r *request, auth bool) (func(*mounts.Settings), error) {
	var sets []func(*mounts.Settings)
	for name, of := range map[string]func(*mounts.Settings) *int64{
		"default_lease_ttl": func(s *mounts.Settings) *int64 { return &s.DefaultLease }, "max_lease_ttl": func(s *mounts.Settings) *int64 { return &s.MaxLease },
	} {
		if r.str(name) == "" {
			continue
		}
		var d time.Duration
		if r.str(name) != "system" {
			var err error
			if d, err = r.span(name); err != nil {
				return nil, bad("unable to parse %s of %s", strings.ReplaceAll(name, "_lease_ttl", " TTL"), r.str(name))
			}
		}
		sets = append(sets, func(s *mounts.Settings) { *of(s) = int64(d / time.Second) })
	}
	for name, of := range map[string]func(*mounts.Settings) *[]string{
		"audit_non_hmac_request_keys":  func(s *mounts.Settings) *[]string { return &s.AuditNonHMACRequest },
		"audit_non_hmac_response_keys": func(s *mounts.Settings) *[]string { return &s.AuditNonHMACResponse },
		"passthrough_request_headers":  func(s *mounts.Settings) *[]string { return &s.PassthroughHeaders },
		"allowed_response_headers":     func(s *mounts.Settings) *[]string { return &s.AllowedResponseHeaders },
		"allowed_managed_keys":         func(s *mounts.Settings) *[]string { return &s.AllowedManagedKeys },
	} {
		if !r.has(name) {
			continue
		}
		l, err := r.list(name)
		if err != nil {
			return nil, err
		}
		if len(l) == 0 || len(l) == 1 && l[0] == "" {
			l = nil
		}
		sets = append(sets, func(s *mounts.Settings) { *of(s) = l })
	}
	more, err := scalars(r, auth)
	if err != nil {
		return nil, err
	}
	return func(s *mounts.Settings) {
		for _, set := range append(sets, more) {
			set(s)
		}
	}, nil
}

// scalars reads the settings that are no leases and no lists.
func scalars(r *request, auth bool) (func(*mounts.Settings), error) {
	if !auth && r.str("token_type") != "" {
		return nil, bad("'token_type' can only be modified on auth mounts")
	}
	noCache, err := r.is("force_no_cache", false)
	if err != nil {
		return nil, err
	}
	lockout, err := member[struct {
		Threshold *lenient.Int      `json:"lockout_threshold"`
		Duration  *lenient.Duration `json:"lockout_duration"`
		Reset     *lenient.Duration `json:"lockout_counter_reset"`
		Disable   *lenient.Bool     `json:"lockout_disable"`
	}](r, "user_lockout_config")
	if err != nil {
		return nil, err
	}
	return func(s *mounts.Settings) {
		if r.has("force_no_cache") {
			s.ForceNoCache = noCache
		}
		if r.has("listing_visibility") {
			s.ListingVisibility = r.str("listing_visibility")
		}
		if r.str("token_type") != "" {
			s.TokenType = r.str("token_type")
		}
		if lockout.Threshold != nil {
			s.UserLockoutThreshold = uint64(max(*lockout.Threshold, 0))
		}
		if lockout.Duration != nil {
			s.UserLockoutDuration = int64(time.Duration(*lockout.Duration) / time.Second)
		}
		if lockout.Reset != nil {
			s.UserLockoutCounterReset = int64(time.Duration(*lockout.Reset) / time.Second)
		}
		if lockout.Disable != nil {
			s.UserLockoutDisable = bool(*lockout.Disable)
		}
	}, nil
}

// remount moves a mount.
func (c Config) remount(ctx context.Context, r *request) (*response, error) {
	if _, err := c.permit(ctx, r, policy.ActMountChange); err != nil { // before it is told what is wrong with the request
		return nil, err
	}
	from, fromAuth := strings.CutPrefix(strings.Trim(r.str("from"), "/"), "auth/")
	to, toAuth := strings.CutPrefix(strings.Trim(r.str("to"), "/"), "auth/")
	switch {
	case from == "" || to == "":
		return nil, bad("both 'from' and 'to' path must be specified as a string")
	case fromAuth && !toAuth:
		return nil, bad("cannot remount auth mount to non-auth mount %q", to+"/")
	case toAuth && !fromAuth:
		return nil, bad("cannot remount to destination auth/%s/", to)
	}
	m, err := c.Mounts.Remount(stays(ctx), r.caller, r.namespace, fromAuth, from, to)
	if err != nil {
		return nil, plainly(err)
	}
	return both(map[string]any{"migration_id": m.Moved.ID}), nil
}

// remounted tells of a move.
func (c Config) remounted(ctx context.Context, r *request) (*response, error) {
	if _, err := c.permit(ctx, r, policy.ActMounts); err != nil {
		return nil, err
	}
	if err := c.Mounts.Refresh(ctx, r.namespace); err != nil {
		return nil, err
	}
	for _, m := range c.Mounts.All(r.namespace) {
		if m.Moved.ID != r.vars["migration_id"] {
			continue
		}
		status, target := "success", m
		if m.To != "" {
			status, target.Path = "in-progress", m.To
		}
		source := m
		source.Path = m.Moved.From
		return both(map[string]any{"migration_id": m.Moved.ID, "migration_info": map[string]any{"source_mount": source.Full(), "target_mount": target.Full(), "status": status}}), nil
	}
	return nil, nil
}

// plainly is an error of the mounts in Vault's words: they are the subject of the fault.
func plainly(err error) error {
	switch fault.CodeOf(err) {
	case fault.Invalid, fault.Exists, fault.NotFound, fault.NotBuilt:
	default:
		return err
	}
	if f, ok := err.(*fault.Error); ok { //nolint:errorlint // the mounts return it bare
		return &refusal{400, []string{f.Resource}, nil, err}
	}
	return err
}

// visibleRoutes tell clients what they could use.
func visibleRoutes(c Config) []route {
	return []route{
		{
			pattern: "sys/internal/ui/mounts", ops: map[operation]handler{opRead: c.visible}, stranger: true,
			doc: "Lists what the caller could use; to strangers what is mounted with listing_visibility unauth.",
		},
		{pattern: "sys/internal/ui/mounts/*path", ops: map[operation]handler{opRead: c.visibleOne}, needs: every(need{open: true}), doc: "Shows the mount that a path is below, to a caller who may do anything there."},
		{pattern: "sys/internal/ui/namespaces", ops: map[operation]handler{opRead: c.visibleNamespaces}, needs: every(need{open: true}), doc: "Lists the namespaces that the caller may list."},
	}
}

// usable says whether the caller can do anything below a mount.
func (c Config) usable(r *request, m mounts.Mount) bool {
	if r.caller.IsZero() {
		return false
	}
	if r.caller.ACL != nil && r.caller.ACL.Reaches(string(r.namespace), m.Full()) {
		return true
	}
	caller := r.caller
	caller.ACL, caller.Request = nil, nil // by the rules alone: the list of paths has been asked
	return c.Guard.Allows(caller, policy.ActMounts, policy.Resource{Namespace: string(r.namespace)})
}

func (c Config) visible(ctx context.Context, r *request) (*response, error) {
	secret, auth := map[string]any{}, map[string]any{}
	for _, m := range c.Mounts.All(r.namespace) {
		open := m.Settings.ListingVisibility == "unauth"
		if !open && !c.usable(r, m) {
			continue
		}
		info := map[string]any{"type": m.Type, "description": m.Description, "options": m.Options}
		if !r.caller.IsZero() {
			info = c.info(ctx, m)
		}
		if m.Auth {
			auth[m.Path] = info
		} else {
			secret[m.Path] = info
		}
	}
	return &response{data: map[string]any{"secret": secret, "auth": auth}}, nil
}

func (c Config) visibleOne(ctx context.Context, r *request) (*response, error) {
	path := r.vars["path"]
	m, _, ok := c.Mounts.Find(r.namespace, path)
	if !ok || !c.usable(r, m) {
		return nil, &refusal{403, []string{fmt.Sprintf("preflight capability check returned 403, please ensure client's policies grant access to path %q", path+"/")}, nil, fault.New(fault.Denied, "path")}
	}
	info := c.info(ctx, m)
	info["path"] = m.Path
	return &response{data: info}, nil
}
