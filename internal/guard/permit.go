package guard

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// Permit is the right to do one action on one resource. The zero Permit permits nothing.
type Permit struct {
	guard    *Guard
	caller   policy.Caller
	action   policy.Action
	resource policy.Resource
	rule     string
	recovers bool   // it commits also while something is detected
	within   string // the namespace without which nothing is committed; empty: none
	life     uint64 // of that namespace, when the permit was made
}

// Admit asks the rules. A refusal is in the log before the answer; repeated ones within a minute are counted in one entry.
// fault.Unauthenticated for nobody, fault.Denied.
func (g *Guard) Admit(ctx context.Context, c policy.Caller, a policy.Action, r policy.Resource) (*Permit, error) {
	if c.IsZero() {
		return nil, fault.New(fault.Unauthenticated, "")
	}
	if err := g.refuse(); err != nil && a != policy.ActStatus && a != policy.ActRecover {
		return nil, err
	}
	rule, ok := g.allows(c, a, r)
	if !ok {
		what := string(a)
		if r.Key != "" {
			what += " on key " + clean(r.Key, maxText)
		}
		if err := g.refused(ctx, c, a, r); err != nil {
			return nil, err
		}
		return nil, fault.New(fault.Denied, what)
	}
	if err := g.spend(ctx, rule); err != nil {
		return nil, err
	}
	p := &Permit{guard: g, caller: c, action: a, resource: r, rule: rule}
	if q := c.Request; q != nil && q.Namespace == r.Namespace {
		return p.WithinLife(r.Namespace, q.Life), nil
	}
	return p.Within(r.Namespace), nil
}

// spend tells a decider that counts uses that a rule was used.
func (g *Guard) spend(ctx context.Context, rule string) error {
	if s, ok := (*g.rules.Load()).(Spender); ok {
		return s.Spend(ctx, rule)
	}
	return nil
}

// Allows asks the rules without a permit and without an entry, for lists that show only what the caller may see.
func (g *Guard) Allows(c policy.Caller, a policy.Action, r policy.Resource) bool {
	_, ok := g.allows(c, a, r)
	return ok && !c.IsZero()
}

func (g *Guard) allows(c policy.Caller, a policy.Action, r policy.Resource) (string, bool) {
	d := g.rules.Load()
	if d == nil || *d == nil {
		return "", false
	}
	return (*d).Allows(c, a, r)
}

// System is a permit for a loop of the server itself.
func (g *Guard) System(name string, a policy.Action, r policy.Resource) *Permit {
	p := &Permit{guard: g, caller: policy.Caller{Kind: policy.KindSystem, Name: "system/" + name}, action: a, resource: r, rule: "built in"}
	return p.Within(r.Namespace)
}

// Vouch is a permit for what a caller may do whatever the rules say, because it concerns nobody else: to log in and out. grounds stand in the
// place of the rule. The zero Permit for nobody.
func (g *Guard) Vouch(c policy.Caller, a policy.Action, grounds string) *Permit {
	if c.IsZero() {
		return &Permit{}
	}
	return &Permit{guard: g, caller: c, action: a, rule: "built in: " + grounds}
}

// Refuse puts a refusal into the log that no rule made, such as that of a stranger who could not prove to be somebody. Like Admit's, the same
// one is written once a minute, and counted.
func (g *Guard) Refuse(ctx context.Context, c policy.Caller, a policy.Action) error {
	return g.refused(ctx, c, a, policy.Resource{})
}

// As is the same permit, whose entries name what is done more closely than the rule did.
func (p *Permit) As(a policy.Action) *Permit {
	as := *p
	as.action = a
	return &as
}

// Caller is who holds the permit.
func (p *Permit) Caller() policy.Caller { return p.caller }

// Resource is what the permit is about.
func (p *Permit) Resource() policy.Resource { return p.resource }

// Cond holds when the record at Path was last written by the commit Rev; 0: when there is none.
type Cond struct {
	Path string
	Rev  store.Rev
}

// Write puts Value at Path, or deletes the record.
type Write struct {
	Path   string
	Value  []byte
	Delete bool

	plain bool // the root record alone: it is not sealed, as it opens the seal
}

// Commit writes records and the audit entry about them in one commit, durable before it returns. A write to a path without a
// condition is conditioned on what the log knows of it. fault.Conflict, OutcomeUnknown, TooLarge.
func (p *Permit) Commit(ctx context.Context, conds []Cond, writes []Write, detail map[string]string) (store.Rev, error) {
	if p == nil || p.guard == nil {
		return 0, fault.New(fault.Denied, "no permit")
	}
	g := p.guard
	if err := g.refuse(); err != nil && !p.recovers {
		return 0, err
	}
	for {
		d := &draft{guard: g, roots: g.keys.Load(), present: map[string]bool{}, named: map[string]bool{}, marks: map[string]store.Rev{}}
		if err := d.conditions(ctx, conds); err != nil {
			return 0, err
		}
		if err := d.alive(ctx, p.within, p.life); err != nil {
			return 0, err
		}
		if err := d.write(ctx, writes); err != nil {
			return 0, err
		}
		e := p.entry(audit.ClassChange, "done", detail)
		e.Writes = d.noted
		op, err := g.audit.Op(e)
		if err != nil {
			return 0, fault.Wrap(fault.TooLarge, "audit entry", err)
		}
		rev, err := g.store.Commit(ctx, d.conds, append(d.ops, op))
		if errors.Is(err, store.ErrConflict) {
			moved, err := d.moved(ctx)
			if err != nil {
				return 0, err
			}
			if moved {
				continue // somebody else's deletion or another root key, which are no business of the caller's
			}
		}
		if err != nil {
			return 0, storeFault(string(p.action), err)
		}
		return rev, nil
	}
}

// condition waits until the index is as far as a condition: the counter of the next write follows the one that the index knows. For a
// record that must be absent that is its deletion, if there was one. fault.Conflict, RecordTampered.
func (g *Guard) condition(ctx context.Context, c Cond) error {
	if c.Rev != 0 {
		return g.index.wait(ctx, c.Rev)
	}
	there, err := g.absent(ctx, c.Path)
	if there {
		return fault.New(fault.Conflict, c.Path)
	}
	return err
}

// revOf is the revision of a record that Commit may condition on; the record is believed first.
func (g *Guard) revOf(ctx context.Context, path string) (store.Rev, error) {
	r, err := g.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return 0, nil
	}
	return r.Rev, err
}

// Release records that something left the server, durably before it returns.
func (p *Permit) Release(ctx context.Context, detail map[string]string) error {
	if p == nil || p.guard == nil {
		return fault.New(fault.Denied, "no permit")
	}
	if err := p.guard.refuse(); err != nil {
		return err
	}
	if err := p.guard.audit.Append(ctx, p.entry(audit.ClassRelease, "done", detail)); err != nil {
		return storeFault(string(p.action), err)
	}
	return nil
}

func (p *Permit) entry(class audit.Class, outcome string, detail map[string]string) audit.Entry {
	return audit.Entry{
		Action: string(p.action), Caller: clean(p.caller.Name, maxCaller), Class: class, Detail: cleanDetail(detail), Key: clean(p.resource.Key, maxText),
		Namespace: clean(p.resource.Namespace, maxText), Outcome: outcome, Rule: clean(p.rule, maxText), Time: p.guard.now().UTC().Truncate(time.Millisecond),
	}
}

// Bounds of what a caller can bring into an entry, in bytes. A longer or ill-formed name would be one that cannot be recorded.
const (
	maxText   = 256
	maxCaller = 2048 // of a SPIFFE ID
)

func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

func cleanDetail(detail map[string]string) map[string]string {
	out := make(map[string]string, len(detail))
	for name, value := range detail {
		out[clean(name, maxText)] = clean(value, maxCaller)
	}
	return out
}
