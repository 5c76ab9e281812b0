package sealing

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/seal"
)

// How often the roots are looked at, and how long each may take to answer. With a hold time both are at most a quarter of it, so that one slow
// answer does not seal a server, and a root that is gone seals it in time.
const (
	watchEvery = time.Minute
	askTime    = 10 * time.Second
	leastWait  = 50 * time.Millisecond
)

// Reason is why a server is sealed, as anybody may know it.
type Reason string

// The reasons.
const (
	Told   Reason = "told"   // somebody sealed it
	Held   Reason = "hold"   // no root of trust answered for the hold time
	People Reason = "shares" // people alone open it
	Away   Reason = "away"   // no root of trust could be reached when it was started
)

// Fault is the reason as an error: fault.Sealed.
func (r Reason) Fault() *fault.Error {
	hints := map[Reason]string{
		Told:   "somebody sealed it; bring shares, or start it again",
		Held:   "no root of trust answered for the hold time (seal_hold); it opens by itself when one does",
		People: "it waits for shares: rotor server unseal",
		Away:   "no root of trust that opens it can be reached; its log names them, and it opens by itself when one can",
	}
	return fault.New(fault.Sealed, "server").WithHint("%s", hints[r])
}

// Explain says why a server is sealed that has not opened: first is the reason that it sealed itself for, empty if it was just started.
func (k *Keeper) Explain(first Reason) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case first != "":
		k.why = first
	case len(k.set.Automatic) == 0 && len(k.set.Missing) == 0:
		k.why = People
	default:
		k.why = Away
	}
}

// Why is the reason that the server is sealed for, or seals itself for now; empty: it is open.
func (k *Keeper) Why() Reason {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.why
}

// seal seals the server, once. It is not waited for.
func (k *Keeper) seal(why Reason) {
	k.mu.Lock()
	sealed := k.why != ""
	if !sealed {
		k.why = why
	}
	k.mu.Unlock()
	if !sealed {
		k.Seal(why)
	}
}

// health is what the watch found of a member.
type health struct {
	opened time.Time
	err    string
}

// Health is what is known of a member that opens by itself.
type Health struct {
	ID, Kind string
	Up       bool
	Opened   time.Time // when it last did; zero: not since the start
}

// Health lists the members that open by themselves and were asked, and how long the server goes on if none of them does; hold is negative when it
// goes on for ever.
func (k *Keeper) Health() (members []Health, hold time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	up := false
	for _, s := range k.set.Automatic {
		h, asked := k.health[s.ID()]
		if !asked {
			continue
		}
		members = append(members, Health{ID: s.ID(), Kind: kind(s.ID()), Up: h.err == "", Opened: h.opened})
		up = up || h.err == ""
	}
	if k.Hold == 0 || up || len(members) == 0 {
		return members, -1
	}
	return members, max(0, k.since.Add(k.Hold).Sub(k.Now()))
}

// Run watches the roots until ctx ends: each member that opens by itself is made to, by a test unwrap. When none has for the hold time, the
// server is sealed.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		if err := k.Watch(ctx); err != nil && ctx.Err() == nil {
			k.Log.WarnContext(ctx, "wrap set not read", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(k.pause()):
		}
	}
}

// pause is how long to wait before the next look: no longer than the hold time lasts.
func (k *Keeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.Hold == 0 || k.why != "" {
		return k.Every
	}
	return min(k.Every, max(leastWait, k.since.Add(k.Hold).Sub(k.Now())))
}

// Watch looks once. While the store is away the wrap set that was read last is asked: a root that answers is there, whatever else is not.
func (k *Keeper) Watch(ctx context.Context) error {
	if k.Why() != "" { // it is being sealed
		return nil
	}
	g := k.opened()
	now, err := g.Wraps(ctx)
	if err == nil {
		k.refresh(now.Wraps)
	}
	k.mu.Lock()
	automatic, wraps := slices.Clone(k.set.Automatic), maps.Clone(k.Wraps)
	k.mu.Unlock()
	up := k.ask(ctx, g, automatic, wraps)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	k.mu.Lock()
	k.expire()
	if up || len(automatic) == 0 { // people are not asked every minute
		k.since = k.Now()
	}
	over := k.Hold > 0 && k.Now().Sub(k.since) >= k.Hold
	k.mu.Unlock()
	if over {
		k.Log.ErrorContext(ctx, "no root of trust for the hold time, the server seals itself", "hold", k.Hold)
		k.seal(Held)
	}
	return err
}

// ask has all members open their wraps at once, and says whether one did.
func (k *Keeper) ask(ctx context.Context, g *guard.Guard, members []seal.Sealer, wraps map[string][]byte) (up bool) {
	failed := make([]error, len(members))
	var all sync.WaitGroup
	for i, s := range members {
		all.Go(func() {
			limited, cancel := context.WithTimeout(ctx, min(askTime, k.Every))
			defer cancel()
			failed[i] = g.Opens(limited, s, wraps[s.ID()])
		})
	}
	all.Wait()
	for i, s := range members {
		if ctx.Err() != nil {
			return up
		}
		k.note(s.ID(), failed[i])
		if up = up || failed[i] == nil; failed[i] != nil {
			k.Log.WarnContext(ctx, "a root of trust does not open", "sealer", s.ID(), "error", failed[i])
		}
	}
	return up
}

func (k *Keeper) note(id string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.health[id]
	if h.err = ""; err == nil {
		h.opened = k.Now()
	} else {
		h.err = reason(err)
	}
	k.health[id] = h
}

func reason(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return string(f.Code)
	}
	return string(fault.Internal)
}

// Warning says what is wrong with the roots of trust now, for who may see the status; "" when nothing is. It asks nobody.
func (k *Keeper) Warning() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warning()
}

// warning says what is wrong with the roots now. Call with mu held.
func (k *Keeper) warning() string {
	var bad []string
	for _, s := range k.set.Automatic {
		if h := k.health[s.ID()]; h.err != "" {
			bad = append(bad, s.ID())
		}
	}
	switch {
	case len(bad) == 0:
		return ""
	case len(bad) < len(k.set.Automatic):
		return "does not open now: " + strings.Join(bad, ", ")
	case k.Hold == 0:
		return "no root of trust that opens by itself can be reached: the server goes on, and does not start again"
	}
	return "no root of trust that opens by itself can be reached: the server seals itself at " + k.since.Add(k.Hold).UTC().Format(time.RFC3339)
}
