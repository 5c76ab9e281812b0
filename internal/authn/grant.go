package authn

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

const grantPrefix = "authn/grant/"

// Bounds of grants.
const (
	DefaultGrantLife = 24 * time.Hour
	MaxGrantLife     = 90 * 24 * time.Hour
	maxGrants        = 10_000
	maxGrantContext  = 16
	maxGrantee       = 2048 // bytes
	keepGrant        = 24 * time.Hour
)

// grantable are the actions that can be delegated: uses, which end with the grant. Nothing that lets material leave, changes a key, counts
// persons, or makes somebody.
var grantable = []policy.Action{
	policy.ActShow, policy.ActEncrypt, policy.ActDecrypt, policy.ActWrap, policy.ActUnwrap, policy.ActRewrap, policy.ActSign, policy.ActVerify, policy.ActMAC,
}

// grant is the stored record.
type grant struct {
	Grantor    string            `json:"grantor"`
	Kind       policy.Kind       `json:"kind"` // of the grantor
	Attributes map[string]string `json:"attributes,omitempty"`
	Instance   string            `json:"instance,omitempty"`
	Generation uint64            `json:"generation,omitempty"` // of the grantor, if it is an instance or administrator

	Grantee   string            `json:"grantee"`
	Actions   []policy.Action   `json:"actions"`
	Namespace string            `json:"namespace"`
	Key       string            `json:"key"`
	Context   map[string]string `json:"context,omitempty"`
	Uses      uint32            `json:"uses,omitempty"` // 0: any number
	Used      uint32            `json:"used,omitempty"`
	Created   time.Time         `json:"created"`
	Expires   time.Time         `json:"expires"`
}

// Grant is what lists tell of one, and what a grantor asks for: Grantee, Actions, Context, Uses.
type Grant struct {
	ID, Grantor, Grantee string
	Actions              []policy.Action
	Namespace, Key       string
	Context              map[string]string
	Uses, Used           uint32
	Created, Expires     time.Time
}

func shownGrant(id string, g grant) Grant {
	return Grant{id, g.Grantor, g.Grantee, g.Actions, g.Namespace, g.Key, g.Context, g.Uses, g.Used, g.Created, g.Expires}
}

func (g grant) caller() policy.Caller {
	return policy.Caller{Kind: g.Kind, Name: g.Grantor, Attributes: g.Attributes, Instance: g.Instance}
}

// covers says whether a grant is about a request, apart from who asks.
func (g grant) covers(a policy.Action, r policy.Resource, now time.Time) bool {
	if !now.Before(g.Expires) || g.Uses > 0 && g.Used >= g.Uses || r.Key == "" || r.Key != g.Key || r.Namespace != g.Namespace || !slices.Contains(g.Actions, a) {
		return false
	}
	for label, want := range g.Context {
		if got, there := r.Context[label]; !there || got != want {
			return false
		}
	}
	return true
}

// Decider puts the grants behind the rules: what no rule allows a grant may, as long as the rules allow the same to the grantor, and let it
// delegate. A grant of a grantor who is removed is none. Grants do not make grantors.
func (a *Authority) Decider(rules guard.Decider) guard.Decider {
	a.rules.Store(&rules)
	return delegating{a, rules}
}

type delegating struct {
	*Authority
	rules guard.Decider
}

// grantRule is how the audit log names a grant in the place of a rule.
const grantRule = "grant "

// denier is a guard.Decider with rules that deny.
type denier interface {
	Denies(c policy.Caller, a policy.Action, r policy.Resource) (rule string, denied bool)
}

// Allows implements guard.Decider. A rule that denies counts before everything, then what the policies of the caller's token say, and then the
// rules that allow and the grants.
func (d delegating) Allows(c policy.Caller, a policy.Action, r policy.Resource) (string, bool) {
	if rules, ok := d.rules.(denier); ok {
		if _, denied := rules.Denies(c, a, r); denied {
			return "", false
		}
	}
	if c.ACL != nil {
		if rule, ok, final := d.byACL(c, r); final {
			return rule, ok
		}
	}
	if rule, ok := d.rules.Allows(c, a, r); ok || c.IsZero() || r.Key == "" {
		return rule, ok
	}
	d.mu.RLock()
	ids := slices.Sorted(maps.Keys(d.granted[c.Name]))
	var found []string
	for _, id := range ids {
		if g, ok := d.grants.Get(id); ok && g.Value.covers(a, r, d.Now()) && d.stands(g.Value, a, r) {
			if g.Value.Uses == 0 {
				found = []string{id}
				break
			}
			found = append(found, id)
		}
	}
	d.mu.RUnlock()
	if len(found) == 0 {
		return "", false
	}
	return grantRule + found[0], true
}

// policyRule is how the audit log names a policy in the place of a rule.
const policyRule = "policy "

// byACL asks the policies of a token. They are about the path that was asked for; what has no path, is of another namespace, or about a key that is
// of another mount than the path, they cannot be asked, and somebody made a mistake. What is of the whole cluster is asked for in the namespace that
// the others are in: whoever may do everything in another one does nothing outside of it. final: nobody else is asked.
func (a *Authority) byACL(c policy.Caller, r policy.Resource) (rule string, ok, final bool) {
	if c.IsZero() || c.Request == nil || cmp.Or(r.Namespace, a.Namespace) != c.Request.Namespace {
		return "", false, true
	}
	v := c.ACL.Decide(c.Request)
	switch {
	case v.Denied:
		return "", false, true
	case v.Allowed && (r.Key == "" || ofMount(r.Key, c.Request.Path)):
		return policyRule + v.Policy, true, true
	}
	return "", false, false
}

// ofMount says whether a key is one of the mount that a path is in, or that it is about: its name is that of the mount, a slash, and more. Whoever may move mounts
// may move any.
func ofMount(key, path string) bool {
	i := strings.LastIndexByte(key, '/')
	return i > 0 && (path == "sys/remount" || strings.HasPrefix(strings.TrimPrefix(path, "sys/mounts/")+"/", key[:i+1]))
}

// Spend implements guard.Spender: a grant for a number of uses is used once more, durably, before it counts. fault.Denied when it was used up.
func (d delegating) Spend(ctx context.Context, rule string) error {
	id, ok := strings.CutPrefix(rule, grantRule)
	if !ok {
		return nil
	}
	d.mu.RLock()
	g, there := d.grants.Get(id)
	d.mu.RUnlock()
	if !there || g.Value.Uses == 0 {
		return nil
	}
	return d.again(ctx, func() (store.Rev, error) {
		v, cond, err := guard.Fetch[grant](ctx, d.Guard, grantPrefix+id)
		if err != nil {
			return 0, err
		}
		if cond.Rev == 0 || v.Used >= v.Uses {
			return 0, fault.New(fault.Denied, "grant").WithHint("it was used as often as it was made for")
		}
		v.Used++
		w, err := guard.Put(cond.Path, v)
		if err != nil {
			return 0, err
		}
		p := d.Guard.Vouch(policy.Caller{Name: v.Grantee}, "grant.use", rule).Within(v.Namespace)
		return d.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"grant": id})
	})
}

// stands says whether the grantor is still somebody, and may do itself and delegate what it granted. Call with mu held.
func (d delegating) stands(g grant, a policy.Action, r policy.Resource) bool {
	for _, needed := range []policy.Action{policy.ActGrant, a} {
		if _, ok := d.rules.Allows(g.caller(), needed, r); !ok {
			return false
		}
	}
	kind, rest, _ := strings.Cut(g.Grantor, "/")
	configured, _, _ := strings.Cut(rest, "/")
	switch g.Kind {
	case policy.KindAdmin:
		v, ok := d.admins.Get(rest)
		return kind == "admin" && (!ok || v.Value.Generation == g.Generation && v.Value.Removed.IsZero())
	case policy.KindInstance:
		return d.removed.Rows[g.Instance].Value.Generation == g.Generation
	case policy.KindToken:
		return d.access.Load().issuer(configured) != nil
	case policy.KindCertificate:
		return d.access.Load().certificate(configured) != nil
	case policy.KindCredential:
		for _, c := range d.credentials.Rows {
			if !c.Deleted && c.Value.Name == rest && c.Value.Revoked.IsZero() && d.Now().Before(c.Value.Expires) {
				return true
			}
		}
	}
	return false
}

// CreateGrant delegates actions on one key, which the rules have to allow to the grantor beside the action "grant". ttl 0: DefaultGrantLife.
// fault.Invalid, Denied, TooLarge.
func (a *Authority) CreateGrant(ctx context.Context, c policy.Caller, r policy.Resource, want Grant, ttl time.Duration) (Grant, error) {
	p, err := a.Guard.Admit(ctx, c, policy.ActGrant, r)
	if err != nil {
		return Grant{}, err
	}
	ttl = cmp.Or(ttl, DefaultGrantLife)
	if err := want.check(c, r, ttl); err != nil {
		return Grant{}, err
	}
	for _, action := range want.Actions {
		if err := a.byRules(ctx, c, action, r); err != nil {
			return Grant{}, err
		}
	}
	now := a.Now().UTC()
	g := grant{
		Grantor: c.Name, Kind: c.Kind, Attributes: c.Attributes, Instance: c.Instance, Generation: c.Generation, Grantee: want.Grantee, Actions: want.Actions,
		Namespace: r.Namespace, Key: r.Key, Context: want.Context, Uses: want.Uses, Created: now, Expires: now.Add(ttl),
	}
	forget, err := a.overGrants()
	if err != nil {
		return Grant{}, err
	}
	id := hex.EncodeToString(secret.Random(idDigits / 2).Reveal())
	w, err := guard.Put(grantPrefix+id, g)
	if err != nil {
		return Grant{}, err
	}
	_, err = a.commit(ctx, p, []guard.Cond{{Path: w.Path}}, append(forget, w), map[string]string{"grant": id, "grantee": g.Grantee})
	return shownGrant(id, g), err
}

// byRules asks the rules alone, without the grants. fault.Denied.
func (a *Authority) byRules(ctx context.Context, c policy.Caller, action policy.Action, r policy.Resource) error {
	if rules := a.rules.Load(); rules != nil {
		if _, ok := (*rules).Allows(c, action, r); ok {
			return nil
		}
	}
	if err := a.Guard.Refuse(ctx, c, policy.ActGrant); err != nil {
		return err
	}
	return fault.New(fault.Denied, "grant of "+string(action)).WithHint("one can grant what the rules let one do oneself")
}

func (g Grant) check(c policy.Caller, r policy.Resource, ttl time.Duration) error {
	bad := func(what, hint string) error { return fault.New(fault.Invalid, what).WithHint("%s", hint) }
	switch {
	case r.Key == "" || r.Namespace == "":
		return bad("key", "a grant is about one key")
	case !policy.Nameable(g.Grantee) || len(g.Grantee) > maxGrantee || g.Grantee == c.Name || strings.Contains(g.Grantee, "*"):
		return bad("grantee", "the name of one other caller, as rotor whoami shows it: credential/NAME, admin/NAME, token/ISSUER/SUBJECT, spiffe://…")
	case len(g.Actions) == 0 || len(slices.Compact(slices.Sorted(slices.Values(g.Actions)))) != len(g.Actions):
		return bad("actions", "name at least one, and none twice")
	case ttl < time.Second || ttl > MaxGrantLife:
		return bad("ttl", "1 s to "+MaxGrantLife.String())
	case len(g.Context) > maxGrantContext:
		return fault.New(fault.TooLarge, "context").WithHint("at most %d", maxGrantContext)
	}
	for _, action := range g.Actions {
		if !slices.Contains(grantable, action) {
			return bad("action "+string(action), "only key.show and uses of a key can be granted")
		}
	}
	return checkAttributes(g.Context)
}

// overGrants finds what can be forgotten. fault.TooLarge.
func (a *Authority) overGrants() (forget []guard.Write, err error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for id, r := range a.grants.Rows {
		if !r.Deleted && a.Now().After(r.Value.Expires.Add(keepGrant)) && len(forget) < purgeBatch {
			forget = append(forget, guard.Write{Path: grantPrefix + id, Delete: true})
		}
	}
	if len(forget) == 0 && len(a.grants.Rows) >= maxGrants {
		return nil, fault.New(fault.TooLarge, "grants").WithHint("at most %d", maxGrants)
	}
	return forget, nil
}

// Grants lists the grants that the caller made or was given; with the right to "grant.list" all. fault.Unauthenticated.
func (a *Authority) Grants(c policy.Caller) ([]Grant, error) {
	if c.IsZero() {
		return nil, fault.New(fault.Unauthenticated, "")
	}
	all := a.Guard.Allows(c, policy.ActGrants, policy.Resource{})
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []Grant
	for id, r := range a.grants.Rows {
		if !r.Deleted && (all || r.Value.Grantor == c.Name || r.Value.Grantee == c.Name) {
			out = append(out, shownGrant(id, r.Value))
		}
	}
	slices.SortFunc(out, func(x, y Grant) int { return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID)) })
	return out, nil
}

// Vacate ends the grants on keys of a closed namespace; see mounts.Config.Vacate. fault.Conflict.
func (a *Authority) Vacate(ctx context.Context, p *guard.Permit, still guard.Cond, namespace string) error {
	records, _, err := a.Guard.List(ctx, grantPrefix)
	if err != nil {
		return err
	}
	var of []guard.Record
	for _, r := range records {
		var g grant
		if err := json.Unmarshal(r.Value, &g); err != nil {
			return fault.Wrap(fault.RecordTampered, r.Path, err)
		}
		if g.Namespace == namespace {
			of = append(of, r)
		}
	}
	rev, err := p.DeleteAll(ctx, still, of, map[string]string{"namespace": namespace, "event": "vacate"})
	for _, r := range of {
		if err == nil {
			err = a.take(guard.Change{Record: guard.Record{Path: r.Path, Rev: rev}, Deleted: true}, false)
		}
	}
	return err
}

// RevokeGrant ends a grant: the grantor may, and who has the right to "grant" on the key, as about describes it. Others get the answer for one
// that there is not. fault.NotFound.
func (a *Authority) RevokeGrant(ctx context.Context, c policy.Caller, id string, about func(namespace, key string) policy.Resource) error {
	if c.IsZero() {
		return fault.New(fault.Unauthenticated, "")
	}
	missing := fault.New(fault.NotFound, "grant")
	if !isID(id) {
		return missing
	}
	return a.again(ctx, func() (store.Rev, error) {
		g, cond, err := guard.Fetch[grant](ctx, a.Guard, grantPrefix+id)
		if err != nil {
			return 0, err
		}
		if cond.Rev == 0 {
			return 0, missing
		}
		p := a.Guard.Vouch(c, "grant.revoke", "own")
		if g.Grantor != c.Name {
			p, err = a.Guard.Admit(ctx, c, policy.ActGrant, about(g.Namespace, g.Key))
			if fault.CodeOf(err) == fault.Denied {
				return 0, missing
			}
			if err != nil {
				return 0, err
			}
		}
		return a.commit(ctx, p, []guard.Cond{cond}, []guard.Write{{Path: cond.Path, Delete: true}}, map[string]string{"grant": id, "event": "revoke"})
	})
}
