package acl

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
)

// Kinds of entries below a mount.
const (
	KindTokenRole  = "token-role"
	KindAppRole    = "approle"
	KindUser       = "user"
	KindJWTConfig  = "jwt-config"
	KindJWTRole    = "jwt-role"
	KindKubeConfig = "kubernetes-config"
	KindKubeRole   = "kubernetes-role"
	KindCert       = "cert"
)

// ConfigName names the one entry of a kind that a mount has one of.
const ConfigName = "config"

// Bounds of entries.
const (
	maxEntries = 20_000   // of all mounts and kinds
	maxSpec    = 64 << 10 // bytes of one
)

// entry is the stored record of a role, user, certificate or configuration below a mount. It is kept by the accessor of the mount, which is another
// one when something is mounted there again.
type entry struct {
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Spec      json.RawMessage `json:"spec"`
	RoleID    string          `json:"role_id,omitempty"`  // of an AppRole
	Password  string          `json:"password,omitempty"` // of a user: Argon2id, in PHC string format
	Failures  int             `json:"failures,omitempty"` // in a row, of a user
	Failed    time.Time       `json:"failed,omitzero"`    // the last of them
}

// Spec is what a client sets of an entry.
type Spec interface{ check() error }

// kind is what there is of a kind of entries.
type kind struct {
	spec  func() Spec // with what holds unless something else is said
	whole bool        // it is written as a whole, nothing is kept of what was there: so no secret of one goes to another host
}

var kinds = map[string]kind{
	KindTokenRole: {spec: func() Spec { return &TokenRole{Renewable: true, Params: Params{Type: "default-service"}} }},
	KindAppRole:   {spec: func() Spec { return &AppRole{BindSecretID: true, Params: Params{Type: "default"}} }},
	KindUser:      {spec: func() Spec { return &User{Params{Type: "default"}} }},
	KindJWTConfig: {spec: func() Spec { return &JWTConfig{} }, whole: true},
	KindJWTRole: {spec: func() Spec {
		return &JWTRole{Params: Params{Type: "default"}, RoleType: "jwt", BoundClaimsType: "string"}
	}},
	KindKubeConfig: {spec: func() Spec { return &KubeConfig{DisableIssuer: true} }, whole: true},
	KindKubeRole:   {spec: func() Spec { return &KubeRole{Params: Params{Type: "default"}, AliasSource: "serviceaccount_uid"} }},
	KindCert:       {spec: func() Spec { return &Cert{Params: Params{Type: "default"}} }},
}

// Params are what the tokens of a way to log in are like.
type Params struct {
	BoundCIDRs lenient.List     `json:"token_bound_cidrs"`
	Explicit   lenient.Duration `json:"token_explicit_max_ttl"`
	MaxTTL     lenient.Duration `json:"token_max_ttl"`
	NoDefault  lenient.Bool     `json:"token_no_default_policy"`
	NumUses    lenient.Int      `json:"token_num_uses"`
	Period     lenient.Duration `json:"token_period"`
	Policies   lenient.List     `json:"token_policies"`
	TTL        lenient.Duration `json:"token_ttl"`
	Type       string           `json:"token_type"`
}

func (p *Params) check() error {
	switch p.Type {
	case "", "default", "service", "default-service":
	case "batch", "default-batch":
		if p.Period != 0 {
			return bad("'token_type' cannot be 'batch' or 'default_batch' when set to generate periodic tokens")
		}
		if p.NumUses != 0 {
			return bad("'token_type' cannot be 'batch' or 'default_batch' when set to generate tokens with limited use count")
		}
	default:
		return bad("invalid 'token_type' value %q", p.Type)
	}
	if p.NumUses < 0 {
		return bad("'token_num_uses' cannot be negative")
	}
	if p.MaxTTL > 0 && p.TTL > p.MaxTTL {
		return bad("token_ttl should not be greater than token_max_ttl")
	}
	if slices.Contains(p.Policies, policy.RootPolicy) {
		return bad("root policy cannot be granted by an auth method")
	}
	names, err := policiesOf(p.Policies, true)
	if err != nil {
		return err
	}
	p.Policies = names
	return checkCIDRs(p.BoundCIDRs)
}

func (p *Params) params() *Params { return p }

// named are specs that say what tokens are like.
type named interface{ params() *Params }

// entryName is what an entry can be called.
var entryName = regexp.MustCompile(`^\w(([\w.@-]+)?\w)?$`)

func entryID(m mounts.Mount, kind, name string) string { return path.Join(m.Accessor, kind, name) }

// mountOf is the accessor of the mount of an entry's ID.
func mountOf(id string) string { return id[:strings.IndexByte(id+"/", '/')] }

// At says which entry is meant.
type At struct {
	Namespace string
	Mount     mounts.Mount
	Kind      string
	Name      string
}

func (a At) id() string { return entryID(a.Mount, a.Kind, a.Name) }

func (a At) valid() error {
	if !entryName.MatchString(a.Name) || len(a.Name) > 128 {
		return bad("a name has letters, digits, and inside _ - . @, at most 128")
	}
	return nil
}

// Decode sets what a body has of a spec; what it does not have is let be. Fields may stand under older names.
func Decode(into Spec, body map[string]json.RawMessage, older map[string]string) error {
	all := map[string]json.RawMessage{}
	for name, value := range body {
		if newer, ok := older[name]; ok {
			if _, both := body[newer]; both {
				continue
			}
			name = newer
		}
		all[name] = value
	}
	b, err := json.Marshal(all)
	if err != nil {
		return bad("Field validation failed: %s", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return bad("Field validation failed: %s", err)
	}
	return nil
}

// Put makes or changes an entry: change gets what there is, or what holds unless something is said. fault.Invalid, Denied, TooLarge.
func (s *Service) Put(ctx context.Context, c policy.Caller, at At, change func(Spec) error) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActAuthChange, about(at.Namespace))
	if err != nil {
		return err
	}
	return s.put(ctx, p, at, func(e *entry, spec Spec) error { return change(spec) })
}

func (s *Service) put(ctx context.Context, p *guard.Permit, at At, change func(*entry, Spec) error) error {
	if err := at.valid(); err != nil {
		return err
	}
	if err := s.roomForEntry(at); err != nil {
		return err
	}
	return again(ctx, func() error {
		e, cond, err := guard.Fetch[entry](ctx, s.Guard, entryPrefix+at.id())
		if err != nil {
			return err
		}
		e.Namespace, e.Name = at.Namespace, at.Name
		spec := kinds[at.Kind].spec()
		if e.Spec != nil && !kinds[at.Kind].whole {
			if err := json.Unmarshal(e.Spec, spec); err != nil {
				return fault.Wrap(fault.RecordTampered, cond.Path, err)
			}
		}
		if err := change(&e, spec); err != nil {
			return err
		}
		if err := spec.check(); err != nil {
			return err
		}
		if e.Spec, err = json.Marshal(spec); err != nil {
			return fmt.Errorf("encode %s: %w", cond.Path, err)
		}
		if len(e.Spec) > maxSpec {
			return fault.New(fault.TooLarge, at.Kind).WithHint("at most %d bytes", maxSpec)
		}
		w, err := guard.Put(cond.Path, e)
		if err != nil {
			return err
		}
		return s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"event": "write", "kind": at.Kind, "name": at.Name, "mount": at.Mount.Full()})
	})
}

func (s *Service) roomForEntry(at At) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, there := s.entries.Get(at.id()); there || len(s.entries.Rows) < maxEntries {
		return nil
	}
	return fault.New(fault.TooLarge, at.Kind).WithHint("at most %d roles, users and certificates", maxEntries)
}

// Exists says whether an entry is there, for whoever decides between create and update.
func (s *Service) Exists(at At) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.entries.Get(at.id())
	return ok
}

// Get shows an entry. fault.Denied, NotFound.
func (s *Service) Get(ctx context.Context, c policy.Caller, at At) (Spec, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActAuthShow, about(at.Namespace)); err != nil {
		return nil, err
	}
	_, spec, err := s.entry(at.id(), at.Kind)
	return spec, err
}

// entry finds an entry in memory. fault.NotFound.
func (s *Service) entry(id, kind string) (entry, Spec, error) {
	s.mu.RLock()
	r, ok := s.entries.Get(id)
	s.mu.RUnlock()
	k, known := kinds[kind] // a newer build may have more of them
	if !ok || !known {
		return entry{}, nil, fault.New(fault.NotFound, kind)
	}
	spec := k.spec()
	if err := json.Unmarshal(r.Value.Spec, spec); err != nil {
		return entry{}, spec, fault.Wrap(fault.RecordTampered, entryPrefix+id, err)
	}
	return r.Value, spec, nil
}

// List names the entries of a kind below a mount. fault.Denied.
func (s *Service) List(ctx context.Context, c policy.Caller, at At) ([]string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActAuthShow, about(at.Namespace)); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for id, r := range s.entries.Rows {
		if name, ok := strings.CutPrefix(id, at.Mount.Accessor+"/"+at.Kind+"/"); ok && !r.Deleted {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Delete forgets an entry, with the secret IDs of an AppRole; tokens that came of it live on and are not renewed. fault.Denied.
func (s *Service) Delete(ctx context.Context, c policy.Caller, at At) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActAuthChange, about(at.Namespace))
	if err != nil || at.valid() != nil {
		return err
	}
	return s.drop(ctx, p, at.id(), map[string]string{"event": "delete", "kind": at.Kind, "name": at.Name, "mount": at.Mount.Full()})
}

// drop deletes an entry and then the secret IDs of it, which without it are in force no more.
func (s *Service) drop(ctx context.Context, p *guard.Permit, id string, detail map[string]string) error {
	if err := s.remove(ctx, p, entryPrefix+id, detail); err != nil {
		return err
	}
	return s.dropSecrets(ctx, p, func(sec secretID) bool { return sec.Role == id })
}

// Clear forgets everything below a mount that goes; see mounts.Config.Clear. Its tokens end.
func (s *Service) Clear(ctx context.Context, c policy.Caller, ns keyring.Namespace, m mounts.Mount) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActMountChange, about(string(ns)))
	if err != nil {
		return err
	}
	s.mu.RLock()
	var ids []string
	for id, r := range s.entries.Rows {
		if mountOf(id) == m.Accessor && !r.Deleted {
			ids = append(ids, id)
		}
	}
	s.mu.RUnlock()
	for _, id := range ids {
		if err := s.drop(ctx, p, id, map[string]string{"event": "unmount", "mount": m.Full()}); err != nil {
			return err
		}
	}
	return s.endTokens(ctx, p, func(t token) bool { return t.Source != "" && mountOf(t.Source) == m.Accessor })
}

// endTokens revokes tokens.
func (s *Service) endTokens(ctx context.Context, p *guard.Permit, pick func(token) bool) error {
	return dropAll(ctx, s, p, s.tokens.Table, "revoke", pick)
}

// dropAll deletes the records of a table that are picked, some at a time.
func dropAll[T any](ctx context.Context, s *Service, p *guard.Permit, of guard.Table[T], event string, pick func(T) bool) error {
	for {
		var conds []guard.Cond
		var writes []guard.Write
		s.mu.RLock()
		for slot, r := range of.Rows {
			if !r.Deleted && pick(r.Value) && len(writes) < batch {
				conds = append(conds, guard.Cond{Path: of.Prefix + slot, Rev: r.Rev})
				writes = append(writes, guard.Write{Path: of.Prefix + slot, Delete: true})
			}
		}
		s.mu.RUnlock()
		if len(writes) == 0 {
			return nil
		}
		if err := s.commit(ctx, p, conds, writes, map[string]string{"event": event}); err != nil && fault.CodeOf(err) != fault.Conflict {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, event, err)
		}
	}
}

// TokenRole is one of auth/token/roles: what tokens that are made by it are like.
type TokenRole struct {
	Allowed        lenient.List `json:"allowed_policies"`
	AllowedGlob    lenient.List `json:"allowed_policies_glob"`
	Disallowed     lenient.List `json:"disallowed_policies"`
	DisallowedGlob lenient.List `json:"disallowed_policies_glob"`
	Aliases        lenient.List `json:"allowed_entity_aliases"`
	Orphan         lenient.Bool `json:"orphan"`
	Renewable      lenient.Bool `json:"renewable"`
	PathSuffix     string       `json:"path_suffix"`
	Params
}

func (r *TokenRole) check() error {
	if len(r.Aliases) > 0 {
		return bad("allowed_entity_aliases is not supported: there are no entities")
	}
	if !regexp.MustCompile(`^([\w][\w.-]*)?$`).MatchString(r.PathSuffix) || len(r.PathSuffix) > 64 {
		return bad("path_suffix has letters, digits, and inside _ - ., at most 64")
	}
	for _, l := range []*lenient.List{&r.Allowed, &r.Disallowed} {
		names, err := policiesOf(*l, true)
		if err != nil {
			return err
		}
		*l = names
	}
	if slices.Contains(r.Allowed, policy.RootPolicy) {
		return bad("root policy cannot be allowed by a role")
	}
	if r.Type == "batch" {
		const not = "'token_type' cannot be 'batch' when role is set to generate "
		switch {
		case !bool(r.Orphan):
			return bad(not + "non-orphan tokens")
		case r.Period != 0:
			return bad(not + "periodic tokens")
		case bool(r.Renewable):
			return bad(not + "renewable tokens")
		case r.Explicit != 0:
			return bad(not + "tokens with an explicit max TTL")
		}
	}
	return r.Params.check()
}

// tokenRole finds a role. fault.Invalid, in the words of Vault.
func (s *Service) tokenRole(ns, name string) (*TokenRole, error) {
	m, _ := s.Mounts.Mounted(keyring.Namespace(ns), true, "token/")
	_, spec, err := s.entry(entryID(m, KindTokenRole, name), KindTokenRole)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, bad("unknown role %s", name)
	}
	role, _ := spec.(*TokenRole) // it is of the kind
	return role, err
}

// apply makes a token what the role says.
func (r *TokenRole) apply(t *token, ask Ask) {
	t.Role = ask.Role
	t.Path = "auth/token/create/" + ask.Role
	if r.PathSuffix != "" {
		t.Path += "/" + r.PathSuffix
	}
	t.Renewable = t.Renewable && bool(r.Renewable)
	least := func(a, b time.Duration) time.Duration {
		if a == 0 || b > 0 && b < a {
			return b
		}
		return a
	}
	t.Explicit = least(t.Explicit, time.Duration(r.Explicit))
	if r.Period > 0 {
		t.Period = time.Duration(r.Period)
	} else {
		t.Period = 0
	}
	if r.NumUses > 0 && (t.Uses == 0 || t.Uses > int64(r.NumUses)) {
		t.Uses = int64(r.NumUses)
	}
	t.CIDRs = r.BoundCIDRs
}

// allows are the policies that can be asked for, with default.
func (r *TokenRole) allows() []string {
	if bool(r.NoDefault) || slices.Contains(r.Allowed, defaultPolicy) {
		return r.Allowed
	}
	return slices.Sorted(slices.Values(append(slices.Clone(r.Allowed), defaultPolicy)))
}

// filter says whether a role lets a token have some policies. fault.Invalid.
func (r *TokenRole) filter(names, parents []string, sudo bool) ([]string, error) {
	fits := func(name string, exact, globs lenient.List) bool {
		return slices.Contains(exact, name) || slices.ContainsFunc(globs, func(g string) bool { return policy.Globbed(g, name) })
	}
	if bool(r.NoDefault) || fits(defaultPolicy, r.Disallowed, r.DisallowedGlob) {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == defaultPolicy })
	}
	limited := len(r.Allowed)+len(r.AllowedGlob) > 0
	for _, name := range names {
		switch {
		case fits(name, r.Disallowed, r.DisallowedGlob):
			return nil, bad("token policy %q is disallowed by this role", name)
		case name == defaultPolicy:
		case limited && !fits(name, r.Allowed, r.AllowedGlob):
			return nil, bad("token policies (%q) must be subset of the role's allowed policies (%q) or glob policies (%q)", names, r.allows(), []string(r.AllowedGlob))
		case !limited && !sudo && !slices.Contains(parents, name):
			return nil, bad("child policies must be subset of parent")
		}
	}
	return names, nil
}

// entryTerms are the terms of a token that a login gave, as its role has them now. fault.Invalid when the role is gone.
func (s *Service) entryTerms(t token) (out terms, err error) {
	_, kind, _ := strings.Cut(t.Source, "/")
	kind, _, _ = strings.Cut(kind, "/")
	_, spec, err := s.entry(t.Source, kind)
	if fault.CodeOf(err) == fault.NotFound {
		return out, bad("role or user does not exist any more, cannot renew")
	}
	if err != nil {
		return out, err
	}
	out.usual, out.most = s.leases(t.Namespace)
	for _, m := range s.Mounts.All(keyring.Namespace(t.Namespace)) {
		if m.Accessor == mountOf(t.Source) {
			out.usual, out.most = m.Leases()
		}
	}
	if n, ok := spec.(named); ok {
		p := n.params()
		out.usual, out.most = lives(p, out.usual, out.most)
		out.period = time.Duration(p.Period)
	}
	return out, nil
}

// lives are the usual and the longest life of a token by its parameters and those of the mount.
func lives(p *Params, usual, most time.Duration) (time.Duration, time.Duration) {
	if p.MaxTTL > 0 {
		most = min(most, time.Duration(p.MaxTTL))
	}
	if p.TTL > 0 {
		usual = time.Duration(p.TTL)
	}
	return min(usual, most), most
}
