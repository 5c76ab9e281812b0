package acl

import (
	"cmp"
	"context"
	"crypto/tls"
	"maps"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
)

// Door is where and from where somebody logs in.
type Door struct {
	Namespace string
	Life      uint64 // of the namespace, when the request came (guard.Life)
	Mount     mounts.Mount
	Address   string // of the client, without the port
	From      string // what strangers there are counted as; empty: the address
	TLS       tls.ConnectionState
}

// visitor is somebody who was proven to be one.
type visitor struct {
	caller  string // the end of its name, behind that of the mount
	display string
	source  string // ID of the entry that let it in
	params  *Params
	cidrs   []string // besides those of params
	meta    map[string]string
	conds   []guard.Cond  // under which the proof holds
	writes  []guard.Write // that it was used
}

// callerName is what rules and the audit log call who came in at a mount (or by a token: "token"): vault/MOUNT/NAME, and of another namespace than that which
// the others are in vault/@NAMESPACE/MOUNT/NAME, which no mount can be called. So nobody who may make roles at one mount takes on the name of another's.
func (s *Service) callerName(ns, mount, name string) string {
	if ns != s.home {
		mount = "@" + ns + "/" + mount
	}
	return "vault/" + strings.TrimSuffix(mount, "/") + "/" + name
}

// notIn is the one answer to everybody who could not prove to be somebody, but for the words of each way.
func notIn(text string) error { return fault.New(fault.Invalid, text) }

// refuse puts a failed login into the log and returns the answer.
func (s *Service) refuse(ctx context.Context, d Door, answer error) error {
	stranger := policy.Caller{Name: "stranger/" + cmp.Or(d.From, d.Address)}
	if err := s.Guard.Refuse(ctx, stranger, "vault.login"); err != nil {
		return err
	}
	return answer
}

// open lets a visitor in: it commits a token together with what the proof has to write. fault.Conflict when the proof does not hold any more.
func (s *Service) open(ctx context.Context, d Door, v visitor) (Ticket, error) {
	if !admits(v.params.BoundCIDRs, d.Address) || !admits(v.cidrs, d.Address) {
		return Ticket{}, s.refuse(ctx, d, fault.New(fault.Unauthenticated, "login"))
	}
	if err := checkMeta(v.meta, v.display); err != nil {
		return Ticket{}, err
	}
	names, err := policiesOf(v.params.Policies, bool(v.params.NoDefault))
	if err != nil {
		return Ticket{}, err
	}
	usual, most := d.Mount.Leases()
	usual, most = lives(v.params, usual, most)
	now := s.Now().UTC()
	t := token{
		Namespace: d.Namespace, Life: d.Life, Policies: names, Caller: s.callerName(d.Namespace, d.Mount.Path, v.caller), Display: v.display, Path: d.Mount.Full() + "login", Meta: maps.Clone(v.meta), Source: v.source,
		Created: now, Uses: int64(v.params.NumUses), Renewable: true, Period: time.Duration(v.params.Period), Explicit: time.Duration(v.params.Explicit),
		MaxTTL: time.Duration(v.params.MaxTTL), CIDRs: v.cidrs, Mount: d.Mount.Accessor,
	}
	if len(t.CIDRs) == 0 { // those of the proof are within those of the role
		t.CIDRs = v.params.BoundCIDRs
	}
	if t.Batch = typeOf(d.Mount, v.params.Type); t.Batch {
		if t.Period > 0 || t.Uses > 0 {
			return Ticket{}, bad("batch tokens cannot be periodic, or for a number of uses")
		}
		t.Renewable, t.Explicit = false, 0
	}
	var warnings []string
	t.TTL, warnings = term(usual, usual, most, &t)
	t.Expires = now.Add(t.TTL)
	draft, err := s.prepare(ctx, t)
	if err != nil {
		return Ticket{}, err
	}
	defer draft.done()
	p := s.Guard.Vouch(draft.caller(nil), "vault.login", d.Mount.Full()).WithinLife(d.Namespace, d.Life)
	detail := map[string]string{"accessor": draft.Accessor, "policies": strings.Join(names, ","), "address": d.Address, "mount": d.Mount.Full()}
	conds, writes := draft.changes(v.conds, v.writes)
	if err := s.commit(ctx, p, conds, writes, detail); err != nil {
		return Ticket{}, err
	}
	return draft.ticket(s.Now(), warnings...), nil
}
