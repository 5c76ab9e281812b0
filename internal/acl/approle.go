package acl

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
)

// Bounds of secret IDs.
const (
	maxSecrets  = 100_000 // that are in force at a time
	maxSecretID = 4096    // bytes
	minSecretID = 8       // of one that a client chose
	maxRoleID   = 4096
)

// AppRole is a role of an AppRole mount.
type AppRole struct {
	BindSecretID   lenient.Bool     `json:"bind_secret_id"`
	SecretCIDRs    lenient.List     `json:"secret_id_bound_cidrs"`
	SecretUses     lenient.Int      `json:"secret_id_num_uses"`
	SecretTTL      lenient.Duration `json:"secret_id_ttl"`
	LocalSecretIDs lenient.Bool     `json:"local_secret_ids"`
	Params
}

func (r *AppRole) check() error {
	if !r.BindSecretID && len(r.SecretCIDRs)+len(r.BoundCIDRs) == 0 {
		return bad("at least one constraint should be enabled on the role")
	}
	if r.SecretUses < 0 {
		return bad("secret_id_num_uses cannot be negative")
	}
	if err := checkCIDRs(r.SecretCIDRs); err != nil {
		return err
	}
	return r.Params.check()
}

// secretID is the stored record of a secret ID.
type secretID struct {
	Role       string            `json:"role"` // ID of its entry
	Hash       []byte            `json:"hash"` // SHA-256
	Accessor   string            `json:"accessor"`
	Meta       map[string]string `json:"meta,omitempty"`
	CIDRs      []string          `json:"cidrs,omitempty"`
	TokenCIDRs []string          `json:"token_cidrs,omitempty"`
	Created    time.Time         `json:"created"`
	Updated    time.Time         `json:"updated"`
	Expires    time.Time         `json:"expires,omitzero"` // zero: never
	TTL        time.Duration     `json:"ttl_ns,omitempty"`
	Uses       int64             `json:"uses,omitempty"` // that are left; 0: any number; -1: none
}

func (r secretID) over(now time.Time) bool {
	return r.Uses < 0 || !r.Expires.IsZero() && !now.Before(r.Expires)
}

// SecretID is what is told of one, and what is asked for: Meta, CIDRs, TokenCIDRs, Uses, TTL.
type SecretID struct {
	Text              string // of a new one, shown once; of a custom one, asked for
	Accessor          string
	Meta              map[string]string
	CIDRs, TokenCIDRs []string
	Created, Updated  time.Time
	Expires           time.Time // zero: never
	TTL               time.Duration
	Uses              int64
	HasTTL, HasUses   bool // asked for; the role's else
}

func (r secretID) shown() SecretID {
	return SecretID{
		Accessor: r.Accessor, Meta: r.Meta, CIDRs: r.CIDRs, TokenCIDRs: r.TokenCIDRs, Created: r.Created, Updated: r.Updated, Expires: r.Expires, TTL: r.TTL, Uses: max(r.Uses, 0),
	}
}

// PutAppRole makes or changes a role; a new one gets a role ID, which a client may choose. fault.Invalid, Denied, TooLarge.
func (s *Service) PutAppRole(ctx context.Context, c policy.Caller, at At, roleID string, change func(Spec) error) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActAuthChange, about(at.Namespace))
	if err != nil {
		return err
	}
	at.Name = strings.ToLower(at.Name)
	return s.put(ctx, p, at, func(e *entry, spec Spec) error {
		switch {
		case len(roleID) > maxRoleID:
			return bad("role_id has at most %d bytes", maxRoleID)
		case roleID != "":
			e.RoleID = roleID
		case e.RoleID == "":
			e.RoleID = newUUID()
		}
		s.mu.RLock()
		other, taken := s.index.roleIDs[at.Mount.Accessor+"/"+e.RoleID]
		s.mu.RUnlock()
		if taken && other != at.id() {
			return bad("role_id is already in use by another role")
		}
		return change(spec)
	})
}

// RoleID is the role ID of a role. fault.Denied, NotFound.
func (s *Service) RoleID(ctx context.Context, c policy.Caller, at At) (string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActAuthShow, about(at.Namespace)); err != nil {
		return "", err
	}
	at.Name = strings.ToLower(at.Name)
	e, _, err := s.entry(at.id(), KindAppRole)
	return e.RoleID, err
}

// CreateSecretID makes a secret ID of a role, or takes the one in want.Text. fault.Invalid, Denied, NotFound, TooLarge.
func (s *Service) CreateSecretID(ctx context.Context, c policy.Caller, at At, want SecretID) (SecretID, error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActAuthChange, about(at.Namespace))
	if err != nil {
		return SecretID{}, err
	}
	at.Name = strings.ToLower(at.Name)
	_, spec, err := s.entry(at.id(), KindAppRole)
	if err != nil {
		return SecretID{}, err
	}
	role, _ := spec.(*AppRole) // it is of the kind
	r, err := s.newSecretID(at.id(), role, want)
	if err != nil {
		return SecretID{}, err
	}
	text := want.Text
	if text == "" {
		text = newUUID()
	}
	r.Hash = hashOf(text)
	err = again(ctx, func() error { return s.storeSecretID(ctx, p, r) })
	out := r.shown()
	out.Text = text
	return out, err
}

func (s *Service) storeSecretID(ctx context.Context, p *guard.Permit, r secretID) error {
	s.mu.RLock()
	_, taken := s.index.secrets[r.Role+"/"+string(r.Hash)]
	s.mu.RUnlock()
	if taken {
		return bad("SecretID is already registered")
	}
	_, cond, done, err := reserve(s, s.secrets, r.groups())
	if err != nil {
		return err
	}
	defer done()
	w, err := guard.Put(cond.Path, r)
	if err != nil {
		return err
	}
	return s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"event": "secret-id", "role": r.Role, "accessor": r.Accessor})
}

func (s *Service) newSecretID(id string, role *AppRole, want SecretID) (secretID, error) {
	now := s.Now().UTC()
	uses, ttl := int64(role.SecretUses), time.Duration(role.SecretTTL)
	if want.HasUses {
		if uses > 0 && (want.Uses == 0 || want.Uses > uses) {
			return secretID{}, bad("num_uses cannot be higher than the role's secret_id_num_uses")
		}
		uses = want.Uses
	}
	if want.HasTTL {
		if ttl > 0 && (want.TTL == 0 || want.TTL > ttl) {
			return secretID{}, bad("ttl cannot be longer than the role's secret_id_ttl")
		}
		ttl = want.TTL
	}
	if want.Text != "" && (len(want.Text) < minSecretID || len(want.Text) > maxSecretID) {
		return secretID{}, bad("secret_id has %d to %d bytes", minSecretID, maxSecretID)
	}
	if !role.BindSecretID {
		return secretID{}, bad("bind_secret_id is not set on the role")
	}
	for _, l := range []struct{ inner, outer []string }{{want.CIDRs, role.SecretCIDRs}, {want.TokenCIDRs, role.BoundCIDRs}} {
		if err := checkCIDRs(l.inner); err != nil {
			return secretID{}, err
		}
		if !cidrsWithin(l.inner, l.outer) {
			return secretID{}, bad("CIDR blocks of the secret ID must be within those of the role")
		}
	}
	if err := checkMeta(want.Meta, ""); err != nil {
		return secretID{}, err
	}
	r := secretID{
		Role: id, Accessor: newUUID(), Meta: want.Meta, CIDRs: want.CIDRs, TokenCIDRs: want.TokenCIDRs, Created: now, Updated: now, TTL: ttl, Uses: uses,
	}
	if ttl > 0 {
		r.Expires = now.Add(ttl)
	}
	return r, nil
}

// cidrsWithin says whether each network lies in one of others; none: everywhere.
func cidrsWithin(inner, outer []string) bool {
	if len(outer) == 0 {
		return true
	}
	return !slices.ContainsFunc(inner, func(text string) bool {
		n, err := parseCIDR(text)
		return err != nil || !slices.ContainsFunc(outer, func(o string) bool {
			m, err := parseCIDR(o)
			return err == nil && m.Bits() <= n.Bits() && m.Contains(n.Addr())
		})
	})
}

// secretOf finds a secret ID of a role by its text or accessor. fault.NotFound.
func (s *Service) secretOf(at At, text, accessor string) (slot string, r secretID, err error) {
	at.Name = strings.ToLower(at.Name)
	if _, _, err := s.entry(at.id(), KindAppRole); err != nil {
		return "", r, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	slot, ok := s.index.secrets[at.id()+"/"+string(hashOf(text))]
	if accessor != "" {
		slot, ok = s.index.handles[at.id()+"/"+accessor]
	}
	v, there := s.secrets.Get(slot)
	if !ok || !there || v.Value.over(s.Now()) {
		return "", r, fault.New(fault.NotFound, "secret ID")
	}
	return slot, v.Value, nil
}

// SecretIDOf tells of a secret ID. fault.Denied, NotFound.
func (s *Service) SecretIDOf(ctx context.Context, c policy.Caller, at At, text, accessor string) (SecretID, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActAuthShow, about(at.Namespace)); err != nil {
		return SecretID{}, err
	}
	_, r, err := s.secretOf(at, text, accessor)
	return r.shown(), err
}

// DestroySecretID ends a secret ID. One that is not there is no error for its text, as clients expect. fault.Denied, NotFound.
func (s *Service) DestroySecretID(ctx context.Context, c policy.Caller, at At, text, accessor string) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActAuthChange, about(at.Namespace))
	if err != nil {
		return err
	}
	slot, r, err := s.secretOf(at, text, accessor)
	if err != nil {
		return err
	}
	return again(ctx, func() error {
		now, cond, err := guard.Fetch[secretID](ctx, s.Guard, secretPrefix+slot)
		if err != nil || cond.Rev == 0 || now.Accessor != r.Accessor {
			return err
		}
		detail := map[string]string{"event": "destroy secret-id", "role": r.Role, "accessor": r.Accessor}
		return s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{{Path: cond.Path, Delete: true}}, detail)
	})
}

// SecretIDs lists the accessors of a role's secret IDs. fault.Denied, NotFound.
func (s *Service) SecretIDs(ctx context.Context, c policy.Caller, at At) ([]string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActAuthShow, about(at.Namespace)); err != nil {
		return nil, err
	}
	at.Name = strings.ToLower(at.Name)
	if _, _, err := s.entry(at.id(), KindAppRole); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for _, r := range s.secrets.Rows {
		if !r.Deleted && r.Value.Role == at.id() && !r.Value.over(s.Now()) {
			out = append(out, r.Value.Accessor)
		}
	}
	slices.Sort(out)
	return out, nil
}

// dropSecrets deletes secret IDs.
func (s *Service) dropSecrets(ctx context.Context, p *guard.Permit, pick func(secretID) bool) error {
	return dropAll(ctx, s, p, s.secrets.Table, "drop secret-ids", pick)
}

// invalidAppRole is the one answer to role IDs and secret IDs that do not fit, so that nobody learns which there are.
const invalidAppRole = "invalid role or secret ID"

// LoginAppRole exchanges a role ID and a secret ID for a token. A secret ID for a number of uses is used in the commit that makes the token. fault.Invalid.
func (s *Service) LoginAppRole(ctx context.Context, d Door, roleID, secret string) (Ticket, error) {
	var out Ticket
	err := again(ctx, func() error {
		v, err := s.proveAppRole(ctx, d, roleID, secret)
		if err != nil {
			return err
		}
		out, err = s.open(ctx, d, v)
		return err
	})
	return out, err
}

func (s *Service) proveAppRole(ctx context.Context, d Door, roleID, secret string) (visitor, error) {
	refuse := func() (visitor, error) { return visitor{}, s.refuse(ctx, d, notIn(invalidAppRole)) }
	if roleID == "" {
		return visitor{}, bad("missing role_id")
	}
	id, ok := s.roleOf(d, roleID)
	if !ok {
		if err := s.await(ctx); err != nil {
			return visitor{}, err
		}
		if id, ok = s.roleOf(d, roleID); !ok {
			return refuse()
		}
	}
	e, cond, err := guard.Fetch[entry](ctx, s.Guard, entryPrefix+id)
	if err != nil {
		return visitor{}, err
	}
	role := &AppRole{}
	if cond.Rev == 0 || e.RoleID != roleID {
		return refuse()
	}
	if err := json.Unmarshal(e.Spec, role); err != nil {
		return visitor{}, fault.Wrap(fault.RecordTampered, cond.Path, err)
	}
	v := visitor{
		caller: e.Name, display: strings.TrimSuffix(d.Mount.Path, "/"), source: id, params: &role.Params, conds: []guard.Cond{cond},
		meta: map[string]string{"role_name": e.Name},
	}
	if !admits(role.SecretCIDRs, d.Address) {
		return refuse()
	}
	if !role.BindSecretID {
		return v, nil
	}
	if secret == "" {
		return visitor{}, bad("missing secret_id")
	}
	ok, err = s.proveSecretID(ctx, d, &v, secret)
	if err != nil {
		return visitor{}, err
	}
	if !ok {
		return refuse()
	}
	return v, nil
}

func (s *Service) roleOf(d Door, roleID string) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, ok := s.index.roleIDs[d.Mount.Accessor+"/"+roleID]
	return id, ok
}

// proveSecretID checks a secret ID of a role, and adds what its use has to write.
func (s *Service) proveSecretID(ctx context.Context, d Door, v *visitor, text string) (bool, error) {
	find := func() (string, bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		slot, ok := s.index.secrets[v.source+"/"+string(hashOf(text))]
		return slot, ok
	}
	slot, ok := find()
	if !ok {
		if err := s.await(ctx); err != nil {
			return false, err
		}
		if slot, ok = find(); !ok {
			return false, nil
		}
	}
	r, cond, err := guard.Fetch[secretID](ctx, s.Guard, secretPrefix+slot)
	if err != nil {
		return false, err
	}
	if cond.Rev == 0 || r.Role != v.source || string(r.Hash) != string(hashOf(text)) || r.over(s.Now()) || !admits(r.CIDRs, d.Address) {
		return false, nil
	}
	v.conds, v.cidrs = append(v.conds, cond), r.TokenCIDRs
	for name, value := range r.Meta {
		v.meta[name] = value
	}
	v.meta["role_name"] = v.caller // whatever the secret ID says
	if r.Uses == 0 {
		return true, nil
	}
	if r.Uses--; r.Uses == 0 {
		r.Uses = -1
	}
	r.Updated = s.Now().UTC()
	w, err := guard.Put(cond.Path, r)
	if err != nil {
		return false, err
	}
	v.writes = append(v.writes, w)
	return true, nil
}
