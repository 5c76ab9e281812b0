package acl

import (
	"context"
	"fmt"
	"maps"
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

// Ask is what a client wants of a new token.
type Ask struct {
	ID                    string // of its own choice: refused
	Policies              []string
	Meta                  map[string]string
	NoParent, NoDefault   bool
	Orphan                bool // by its path, without sudo
	NotRenewable          bool
	TTL, Explicit, Period time.Duration
	Display, Type, Role   string
	NumUses               int64
	Path                  string // that it is asked for at, below /v1/
}

// maker is whoever asks for a token: the bearer of another one, or a caller of rotor's own, who has no policies.
type maker struct {
	slot   string // of its token
	parent token
	caller policy.Caller
	own    bool // of rotor's own
	sudo   bool
	root   bool
}

// makers are who made a token of the maker's: the maker, and from whom that comes. Each stands once. fault.Invalid.
func (m maker) makers() ([]policy.Maker, error) {
	me := policy.Maker{Name: m.caller.Name, Attributes: m.caller.Attributes}
	all := slices.Clone(m.caller.Makers)
	if !slices.ContainsFunc(all, func(o policy.Maker) bool { return o.Name == me.Name && maps.Equal(o.Attributes, me.Attributes) }) {
		all = append(all, me)
	}
	n := 0
	for _, o := range all {
		n += len(o.Name)
		for name, value := range o.Attributes {
			n += len(name) + len(value)
		}
	}
	if len(all) > maxMakers || n > maxMakerText {
		return nil, bad("a token comes from at most %d different ones, with names and metadata of %d bytes", maxMakers, maxMakerText)
	}
	return all, nil
}

// Create makes a token below that of its maker. Its policies are among those of the maker's token, unless that has sudo on the path; the policy root
// comes from a token with it alone, or from a caller of rotor's own whom the rules let make tokens. fault.Invalid, Denied, QuotaReached.
func (s *Service) Create(ctx context.Context, c policy.Caller, ns string, ask Ask) (Ticket, error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActTokenCreate, about(ns))
	if err != nil {
		return Ticket{}, err
	}
	m, err := s.maker(c, ns, ask.Path)
	if err != nil {
		return Ticket{}, err
	}
	if m.own && len(ask.Policies) == 0 && ask.Role == "" && s.Guard.Allows(c, policy.ActPolicyChange, about(ns)) {
		// It could write itself any policy. Clients such as Terraform's ask for a short-lived token like their own.
		ask.Policies = []string{policy.RootPolicy}
		if ask.TTL == 0 {
			ask.TTL = ownLife
		}
	}
	if err := ask.check(m, ns); err != nil {
		return Ticket{}, err
	}
	var role *TokenRole
	if ask.Role != "" {
		if role, err = s.tokenRole(ns, ask.Role); err != nil {
			return Ticket{}, err
		}
	}
	batch, err := ask.batch(role)
	if err != nil {
		return Ticket{}, err
	}
	t, warnings, err := s.plan(m, ns, ask, role, batch)
	if err != nil {
		return Ticket{}, err
	}
	warnings = append(warnings, s.unknown(t)...)
	var out Ticket
	err = again(ctx, func() error {
		d, err := s.prepare(ctx, t)
		if err != nil {
			return err
		}
		defer d.done()
		detail := map[string]string{"accessor": d.Accessor, "policies": strings.Join(d.Policies, ","), "display_name": d.Display}
		conds, writes := d.changes(nil, nil)
		if err := s.commit(ctx, p, conds, writes, detail); err != nil {
			return err
		}
		out = d.ticket(s.Now(), warnings...)
		return nil
	})
	return out, err
}

// unknown warns of policies of a token that nobody has written: they give nothing until somebody does.
func (s *Service) unknown(t token) (warnings []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, name := range t.Policies {
		if _, ok := s.text(t.Namespace, name); !ok {
			warnings = append(warnings, fmt.Sprintf("Policy %q does not exist", name))
		}
	}
	return warnings
}

// ownLife is how long a token with every right lives that a caller of rotor's own asked for without saying which rights and how long.
const ownLife = 12 * time.Hour

// FirstLife is how long the token of an init lives: until whoever made the cluster has made other ways to come in.
const FirstLife = 24 * time.Hour

// First makes the token of an init, with the policy root.
func (s *Service) First(ctx context.Context) (out Ticket, err error) {
	now := s.Now().UTC()
	t := token{
		Namespace: s.home, Path: "sys/init", Display: "root", Caller: "vault/token/root", Policies: []string{policy.RootPolicy}, Created: now, TTL: FirstLife, Expires: now.Add(FirstLife),
	}
	err = again(ctx, func() error {
		d, err := s.prepare(ctx, t)
		if err != nil {
			return err
		}
		defer d.done()
		p := s.Guard.System("acl", policy.ActTokenCreate, about(s.home))
		if err := s.commit(ctx, p, []guard.Cond{d.cond}, []guard.Write{d.write}, map[string]string{"accessor": d.Accessor, "policies": policy.RootPolicy, "display_name": t.Display}); err != nil {
			return err
		}
		out = d.ticket(now)
		return nil
	})
	return out, err
}

// maker looks at who asks.
func (s *Service) maker(c policy.Caller, ns, path string) (maker, error) {
	if c.ACL == nil {
		return maker{caller: c, own: true, sudo: true, root: true}, nil
	}
	if strings.HasPrefix(c.Accessor, batchAccessor) {
		return maker{}, bad("batch tokens cannot create more tokens")
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	slot, ok := s.index.accessors[c.Accessor]
	r, there := s.tokens.Get(slot)
	if !ok || !there {
		return maker{}, notToken()
	}
	caps := c.ACL.Capabilities(ns, path)
	m := maker{slot: slot, parent: r.Value, caller: c, root: c.ACL.Root()}
	m.sudo = m.root || slices.Contains(caps, string(policy.CapSudo))
	chain := 0
	for t := r.Value; t.Parent != "" && chain <= maxChain; chain++ {
		up, _, _ := strings.Cut(t.Parent, "/")
		t = s.tokens.Rows[up].Value
	}
	if chain+1 >= maxChain {
		return maker{}, bad("at most %d tokens are below each other", maxChain)
	}
	return m, nil
}

// check refuses what a client may not ask for.
func (ask Ask) check(m maker, ns string) error {
	switch {
	case ask.ID != "":
		return bad("a token of the client's own choice is not supported: it would be no secret of the server's")
	case !slices.Contains([]string{"", "service", "batch"}, ask.Type):
		return bad("invalid 'token_type' value")
	case ask.NumUses < 0:
		return bad("number of uses cannot be negative")
	case m.parent.Uses != 0:
		return bad("restricted use token cannot generate child tokens")
	case ask.NoParent && !m.sudo:
		return bad("root or sudo privileges required to create orphan token")
	case ask.Period > 0 && !m.sudo && ask.Role == "":
		return bad("root or sudo privileges required to create periodic token")
	case !m.own && m.parent.Namespace != ns && !m.sudo:
		return bad("root or sudo privileges required to create a token of another namespace")
	}
	return checkMeta(ask.Meta, ask.Display)
}

// batch says whether a token that is asked for is a batch token. fault.Invalid when it cannot be one.
func (ask Ask) batch(role *TokenRole) (bool, error) {
	kind := ask.Type
	if role != nil {
		switch {
		case role.Type == "batch" || role.Type == "service":
			kind = role.Type
		case role.Type == "default-batch" && kind == "":
			kind = "batch"
		}
	}
	if kind != "batch" {
		return false, nil
	}
	const not = "batch tokens cannot have %q set"
	switch {
	case ask.Explicit != 0:
		return false, bad(not, "explicit_max_ttl")
	case ask.NumUses != 0:
		return false, bad(not, "num_uses")
	case ask.Period != 0:
		return false, bad(not, "period")
	}
	return true, nil
}

// plan makes the record of a token that was asked for.
func (s *Service) plan(m maker, ns string, ask Ask, role *TokenRole, batch bool) (t token, warnings []string, err error) {
	now := s.Now().UTC()
	t = token{
		Namespace: ns, Path: ask.Path, Meta: ask.Meta, Display: displayName(ask.Display), Created: now, Renewable: !ask.NotRenewable && !batch, Uses: ask.NumUses, Batch: batch,
		Explicit: ask.Explicit, Period: ask.Period, Mount: m.caller.Mount,
	}
	t.Caller = s.callerName(ns, "token", t.Display)
	if t.Makers, err = m.makers(); err != nil {
		return t, nil, err
	}
	if t.Policies, err = ask.policies(m, role); err != nil {
		return t, nil, err
	}
	orphan := ask.NoParent || ask.Orphan || m.own
	if role != nil {
		orphan = orphan || bool(role.Orphan)
		role.apply(&t, ask)
	}
	if !orphan {
		t.Parent = m.slot + "/" + m.parent.Accessor
	}
	if role == nil && (!orphan || !m.sudo) { // a role gives its own, and may give more than the maker has
		t.CIDRs = m.parent.CIDRs
	}
	if batch && (t.Uses != 0 || t.Period != 0) {
		return t, nil, bad("batch tokens cannot be periodic, or for a number of uses")
	}
	if batch && slices.Contains(t.Policies, policy.RootPolicy) {
		return t, nil, bad("batch tokens cannot be root tokens")
	}
	usual, most := s.leases(ns)
	if slices.Contains(t.Policies, policy.RootPolicy) && ask.TTL == 0 && t.Period == 0 && t.Explicit == 0 {
		if !m.own && !m.parent.Expires.IsZero() {
			return t, nil, bad("expiring root tokens cannot create non-expiring root tokens")
		}
		t.Renewable = false
		return t, nil, nil
	}
	ttl, warnings := term(ask.TTL, usual, most, &t)
	t.TTL, t.Expires = ttl, now.Add(ttl)
	return t, warnings, nil
}

// leases are the usual and the longest life of a namespace's tokens.
func (s *Service) leases(ns string) (usual, most time.Duration) {
	m, ok := s.Mounts.Mounted(keyring.Namespace(ns), true, "token/")
	if !ok {
		return mounts.DefaultLease, mounts.DefaultLease
	}
	return m.Leases()
}

// term is how long a token lives first: as asked for, or as usual, and no longer than it may.
func term(asked, usual, most time.Duration, t *token) (ttl time.Duration, warnings []string) {
	capped := func(at time.Duration, what string) {
		if ttl > at {
			if asked > at {
				warnings = append(warnings, fmt.Sprintf("TTL of %q exceeded the effective %s of %q; TTL value is capped accordingly", ttl, what, at))
			}
			ttl = at
		}
	}
	ttl = asked
	if ttl == 0 {
		ttl = usual
	}
	if t.Period > 0 {
		ttl = min(t.Period, lenient.MaxTime)
	} else {
		capped(most, "max_ttl")
	}
	if t.Explicit > 0 {
		capped(t.Explicit, "explicit_max_ttl")
	}
	return ttl, warnings
}

// policies are those of a new token.
func (ask Ask) policies(m maker, role *TokenRole) ([]string, error) {
	parents := m.parent.Policies
	wanted := ask.Policies
	switch {
	case len(wanted) > 0:
	case role != nil && len(role.Allowed) > 0:
		wanted = role.Allowed
	default:
		wanted = parents
		ask.NoDefault = ask.NoDefault || len(parents) > 0 && !slices.Contains(parents, defaultPolicy)
	}
	out, err := policiesOf(wanted, ask.NoDefault || role != nil && bool(role.NoDefault))
	if err != nil {
		return nil, err
	}
	if slices.Contains(out, policy.RootPolicy) {
		switch {
		case !m.root || role != nil:
			return nil, bad("root tokens may not be created without parent token being root")
		case len(out) > 1:
			return nil, bad("root tokens may not have other policies")
		}
		return out, nil
	}
	for _, name := range []string{"response-wrapping", "control-group"} {
		if slices.Contains(out, name) {
			return nil, bad("cannot assign policy %q", name)
		}
	}
	if role != nil {
		return role.filter(out, parents, m.sudo)
	}
	if !m.sudo && !within(out, parents) {
		return nil, bad("child policies must be subset of parent")
	}
	return out, nil
}

// within says whether policies are among others; default is among all.
func within(some, all []string) bool {
	return !slices.ContainsFunc(some, func(name string) bool { return name != defaultPolicy && !slices.Contains(all, name) })
}

// displayName is how a token that another one made is shown, in the characters that Vault leaves of it.
func displayName(asked string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, asked)
	if clean = strings.Trim(clean, "-"); clean == "" {
		return "token"
	}
	return "token-" + clean
}

// tokenOf finds a living token by its accessor. One of another namespace is not there, except for whom it is below; one that has no use left is there for the
// request that was its last. fault.NotFound.
func (s *Service) tokenOf(ctx context.Context, ns, accessor string, self bool) (slot string, t token, err error) {
	look := func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		slot = s.index.accessors[accessor]
		r, ok := s.tokens.Get(slot)
		t = r.Value
		alive, _ := s.living(t)
		return ok && alive && (t.Uses >= 0 || self) && (t.Namespace == ns || ns == s.home)
	}
	if look() {
		return slot, t, nil
	}
	if err := s.await(ctx); err != nil {
		return "", token{}, err
	}
	if look() {
		return slot, t, nil
	}
	return "", token{}, fault.New(fault.NotFound, "invalid accessor")
}

// tokenBy finds a living token by its text. fault.NotFound.
func (s *Service) tokenBy(ctx context.Context, ns, text string) (slot string, t token, err error) {
	kind := byte(kindToken)
	if isBatch(text) {
		t, err = s.openBatch(ctx, text)
	} else if kind, slot, err = parseToken(text); err == nil && kind == kindToken {
		t, err = s.find(ctx, slot, hashOf(text))
	}
	if err != nil && fault.CodeOf(err) != fault.Unauthenticated {
		return "", token{}, err
	}
	if err != nil || kind != kindToken || t.Uses < 0 || t.Namespace != ns && ns != s.home {
		return "", token{}, fault.New(fault.NotFound, "bad token")
	}
	return slot, t, nil
}

// Who names a token: by its text, by its accessor, or that of the caller, whose text is needed beside if it is a batch token.
type Who struct {
	Text, Accessor string
	Self           bool
}

func (s *Service) which(ctx context.Context, c policy.Caller, ns string, w Who) (string, token, error) {
	switch {
	case w.Self && c.Accessor == "":
		return "", token{}, bad("the request showed no token of this kind")
	case w.Self && strings.HasPrefix(c.Accessor, batchAccessor):
		return s.tokenBy(ctx, s.home, w.Text)
	case w.Self:
		return s.tokenOf(ctx, s.home, c.Accessor, true)
	case w.Accessor != "":
		return s.tokenOf(ctx, ns, w.Accessor, false)
	}
	return s.tokenBy(ctx, ns, w.Text)
}

// Lookup tells of a token. fault.NotFound, Denied.
func (s *Service) Lookup(ctx context.Context, c policy.Caller, ns string, w Who) (Token, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActTokens, about(ns)); err != nil {
		return Token{}, err
	}
	_, t, err := s.which(ctx, c, ns, w)
	return t.shown(s.Now()), err
}

// Accessors lists the accessors of a namespace's living tokens. fault.Denied.
func (s *Service) Accessors(ctx context.Context, c policy.Caller, ns string) ([]string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActTokens, about(ns)); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for _, r := range s.tokens.Rows {
		if alive, _ := s.living(r.Value); alive && !r.Deleted && r.Value.Uses >= 0 && r.Value.Namespace == ns {
			out = append(out, r.Value.Accessor)
		}
	}
	slices.Sort(out)
	return out, nil
}

// CapabilitiesOf are what another token may do at some paths. fault.NotFound, Denied.
func (s *Service) CapabilitiesOf(ctx context.Context, c policy.Caller, ns string, w Who, paths []string) (map[string][]string, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActTokens, about(ns)); err != nil {
		return nil, err
	}
	_, t, err := s.which(ctx, c, ns, w)
	if err != nil {
		return nil, err
	}
	acl, err := s.acl(t.Namespace, t.Policies)
	if err != nil {
		return nil, err
	}
	return s.Capabilities(t.caller(acl), ns, paths), nil
}

// Renew gives a token more time: what is asked for, or what is usual, and no more than it may live in all. fault.Invalid, NotFound, Denied.
func (s *Service) Renew(ctx context.Context, c policy.Caller, ns string, w Who, increment time.Duration) (Ticket, error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActTokenCreate, about(ns))
	if err != nil {
		return Ticket{}, err
	}
	slot, known, err := s.which(ctx, c, ns, w)
	if err != nil {
		return Ticket{}, err
	}
	if known.Batch {
		return Ticket{}, bad("batch tokens cannot be renewed")
	}
	out := Ticket{Text: w.Text}
	err = again(ctx, func() error {
		t, cond, err := guard.Fetch[token](ctx, s.Guard, tokenPrefix+slot)
		if err != nil {
			return err
		}
		if cond.Rev == 0 || t.Accessor != known.Accessor {
			return fault.New(fault.NotFound, "bad token")
		}
		if out.Warnings, err = s.prolong(&t, increment); err != nil {
			return err
		}
		out.Token = t.shown(s.Now())
		if t.Expires.IsZero() {
			return nil
		}
		write, err := guard.Put(cond.Path, t)
		if err != nil {
			return err
		}
		return s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{write}, map[string]string{"accessor": t.Accessor, "event": "renew"})
	})
	return out, err
}

// prolong sets the end of a token anew. fault.Invalid when it cannot be renewed.
func (s *Service) prolong(t *token, increment time.Duration) (warnings []string, err error) {
	if t.Expires.IsZero() {
		return nil, nil
	}
	now := s.Now().UTC()
	if !t.Renewable {
		return nil, bad("lease is not renewable")
	}
	if !now.Before(t.Expires) {
		return nil, fault.New(fault.NotFound, "bad token")
	}
	as, err := s.terms(*t)
	if err != nil {
		return nil, err
	}
	ttl := increment
	if ttl == 0 {
		ttl = as.usual
	}
	last := t.Created.Add(as.most)
	if as.period > 0 {
		ttl, last = as.period, now.Add(lenient.MaxTime)
	}
	if t.Explicit > 0 && t.Created.Add(t.Explicit).Before(last) {
		last = t.Created.Add(t.Explicit)
	}
	end := now.Add(min(ttl, lenient.MaxTime))
	if end.After(last) {
		end = last
		warnings = append(warnings, fmt.Sprintf("TTL of %q exceeded the effective max_ttl of %q; TTL value is capped accordingly", ttl, max(last.Sub(now), 0).Truncate(time.Second)))
	}
	if !end.After(now) {
		return nil, bad("past max TTL, cannot renew")
	}
	t.Expires, t.Renewed = end, now
	return warnings, nil
}

// terms are how long tokens live: usually, and with all renewals; or for a period after each of them.
type terms struct{ usual, most, period time.Duration }

// terms are those of a token that is there, as what it comes from has them now. Usual is for one that another token made what it was given last, so
// that a short one stays short. fault.Invalid when what it comes from is gone.
func (s *Service) terms(t token) (out terms, err error) {
	if t.Source != "" {
		return s.entryTerms(t)
	}
	_, out.most = s.leases(t.Namespace)
	since := t.Created
	if !t.Renewed.IsZero() {
		since = t.Renewed
	}
	out.usual = t.Expires.Sub(since)
	if out.period = t.Period; t.Role != "" {
		role, err := s.tokenRole(t.Namespace, t.Role)
		if fault.CodeOf(err) == fault.Invalid {
			return out, bad("original token role %q could not be found, not renewing", t.Role)
		}
		if err != nil {
			return out, err
		}
		out.period = time.Duration(role.Period)
	}
	return out, nil
}

// Revoke ends a token, and with it all that are below it; with orphans those live on without a parent. fault.NotFound, Denied.
func (s *Service) Revoke(ctx context.Context, c policy.Caller, ns string, w Who, orphans bool) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActTokenRevoke, about(ns))
	if err != nil {
		return err
	}
	slot, t, err := s.which(ctx, c, ns, w)
	if err != nil {
		return err
	}
	if t.Batch {
		return bad("batch tokens cannot be revoked")
	}
	if orphans {
		if err := s.orphan(ctx, p, slot+"/"+t.Accessor); err != nil {
			return err
		}
	}
	return again(ctx, func() error {
		now, cond, err := guard.Fetch[token](ctx, s.Guard, tokenPrefix+slot)
		if err != nil || cond.Rev == 0 || now.Accessor != t.Accessor {
			return err
		}
		detail := map[string]string{"accessor": t.Accessor, "event": "revoke"}
		return s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{{Path: cond.Path, Delete: true}}, detail)
	})
}

// batch is how many records one commit of many changes has. A deletion is a condition, a write and a mark, of the 100 that a commit has.
const batch = 30

// orphan takes the parent from the tokens directly below one, some at a time. A crash between leaves some of them orphans of a token that is there still.
func (s *Service) orphan(ctx context.Context, p *guard.Permit, parent string) error {
	return again(ctx, func() error {
		for {
			s.mu.RLock()
			var conds []guard.Cond
			var writes []guard.Write
			for slot := range s.index.children[parent] {
				r := s.tokens.Rows[slot]
				r.Value.Parent = ""
				w, err := guard.Put(tokenPrefix+slot, r.Value)
				if err != nil {
					s.mu.RUnlock()
					return err
				}
				conds, writes = append(conds, guard.Cond{Path: w.Path, Rev: r.Rev}), append(writes, w)
				if len(writes) == batch {
					break
				}
			}
			s.mu.RUnlock()
			if len(writes) == 0 {
				return nil
			}
			if err := s.commit(ctx, p, conds, writes, map[string]string{"event": "orphan"}); err != nil {
				return err
			}
		}
	})
}
