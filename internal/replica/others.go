package replica

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// This file says what is known of the other servers' sessions.

// DeadFor says whether a session is over, for how long by this server's clock, and the condition that it is still: what is decided on a
// session's end must be committed under it. A session that nobody knows ended before this server began.
func (k *Keeper) DeadFor(id string) (since time.Duration, cond store.Cond, dead bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dead(id)
}

// dead is DeadFor with mu held. Silence counts up to the last own sign of life that came back: what others committed before it has been
// seen, and what they committed since has not.
func (k *Keeper) dead(id string) (since time.Duration, cond store.Cond, dead bool) {
	cond = store.Cond{Key: sessionPrefix + id}
	if id == k.id {
		return 0, cond, false
	}
	o, known := k.sessions[id]
	if !known {
		return k.Clock() - k.began, cond, k.fresh()
	}
	cond.Rev = o.rev
	if o.gone {
		return k.Clock() - o.changed, cond, true
	}
	since = k.heard - (o.changed + o.TTL + o.TTL/margin)
	return since, cond, since >= 0
}

// Behind names the servers, by address, that may act on memory that is older than a revision. Who is dead and comes back catches up first,
// and not only with the revision but with the sign of life that it comes back by; this server has to have given one since as well, to know
// who is dead.
func (k *Keeper) Behind(rev store.Rev) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	if !k.fresh() || k.heardRev < rev {
		names = append(names, "server "+k.Address)
	}
	for id, o := range k.sessions {
		if _, _, dead := k.dead(id); id == k.id || dead || o.Seen >= rev {
			continue
		}
		names = append(names, "server "+o.Address)
	}
	slices.Sort(names)
	return names
}

// Heard returns once no server acts on memory that is older than a revision. One that is silent does not count from when it is dead. fault.Unavailable when
// this server's own session ends meanwhile, or somebody else stays behind.
func (k *Keeper) Heard(ctx context.Context, rev store.Rev) error {
	ctx, cancel := context.WithTimeout(ctx, patience*k.TTL)
	defer cancel()
	for {
		k.mu.Lock()
		changed := k.changed
		k.mu.Unlock()
		behind := k.Behind(rev)
		if len(behind) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, strings.Join(behind, ", "))
		}
	}
}

// patience is how many TTLs Heard waits: a server that is silent is dead after one and a tenth, and a sign of life of this one has to follow.
const patience = 3

// Info describes a session.
type Info struct {
	ID, Address, Version string
	Issuer               string
	Format               int // the newest that it knows
	Started              time.Time
	Alive, Leads, Self   bool
}

// Sessions describes all sessions that are stored, by address.
func (k *Keeper) Sessions() []Info {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []Info
	for id, o := range k.sessions {
		if o.gone {
			continue
		}
		_, _, dead := k.dead(id)
		alive := !dead
		if id == k.id {
			alive = k.fresh()
		}
		all = append(all, Info{id, o.Address, o.Version, o.Issuer, o.Format, o.Started, alive, alive && k.term != 0 && k.leader.Session == id, id == k.id})
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.ID, b.ID)) })
	return all
}
