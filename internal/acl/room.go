package acl

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is the room for tokens, wrapped answers and secret IDs: who may take how much of it, and how what is over leaves it.

// LeaseCount is what a refusal is about when there is no room for one more of whom it is for.
const LeaseCount = "lease count"

// groupParts: one that its group has counts for a record of that group as a whole one in so many parts.
const groupParts = 2

// recountEvery is how often, at most, a refusal looks at every record for what is over: whoever asks without end costs no more.
const recountEvery = time.Second

// maxFreeSearches is how many free slots are looked at for one whose deletion the watch has passed.
const maxFreeSearches = 64

// shelf is the records of one table, in numbered slots that are used again, because the log remembers every path for ever. Whoever has it guards it.
type shelf[T any] struct {
	guard.Table[T]
	what   string
	most   int              // records at a time
	now    func() time.Time // for counted
	over   func(T) bool     // it is not in force any more, and never will be
	groups func(T) []string // whom it counts for: namespace, mount, caller

	held    map[string]bool // slots whose record counts
	of      map[string]int  // how many of those, by group
	free    map[string]bool // slots below next whose record does not count, or that have none, and that nobody is about to take
	next    uint32          // the first slot that was never seen taken
	counted time.Time       // when what is over was looked for last
}

func newShelf[T any](prefix, what string, most int, now func() time.Time, over func(T) bool, groups func(T) []string) *shelf[T] {
	return &shelf[T]{
		Table: guard.NewTable[T](prefix), what: what, most: most, now: now, over: over, groups: groups, held: map[string]bool{}, of: map[string]int{}, free: map[string]bool{},
	}
}

// Takes is guard.Table's, and counts.
func (f *shelf[T]) Takes(c guard.Change, watched bool) (bool, error) {
	slot, ok := strings.CutPrefix(c.Path, f.Prefix)
	if !ok {
		return false, nil
	}
	if r := f.Rows[slot]; r.Rev > c.Rev || r.Rev == c.Rev && !c.Deleted { // nothing new, and what is over and does not count any more stays so
		return f.Table.Takes(c, watched)
	}
	f.discount(slot)
	_, err := f.Table.Takes(c, watched)
	f.count(slot)
	return true, err
}

// count counts the record of a slot, if there is one.
func (f *shelf[T]) count(slot string) {
	for n, err := strconv.ParseUint(slot, 16, 24); err == nil && n < uint64(f.most) && uint64(f.next) <= n; f.next++ {
		f.free[slotName(f.next)] = true
	}
	r, ok := f.Get(slot)
	if !ok {
		return
	}
	delete(f.free, slot)
	f.held[slot] = true
	for _, g := range f.groups(r.Value) {
		f.of[g]++
	}
}

// discount is the opposite: the slot is free. Call it before the record changes.
func (f *shelf[T]) discount(slot string) {
	if !f.held[slot] {
		return
	}
	delete(f.held, slot)
	f.free[slot] = true
	for _, g := range f.groups(f.Rows[slot].Value) {
		if f.of[g]--; f.of[g] == 0 {
			delete(f.of, g)
		}
	}
}

// fits says whether there is room for one more record of some groups. It needs a place for each that there is, and half a place more for each that any of
// its groups has. So whoever has many needs the more room the less there is, and leaves some for who has few, however many there are of either: the
// dynamic threshold of Choudhury and Hahne (Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, 1998), for groups in groups.
func (f *shelf[T]) fits(groups []string) bool {
	n := groupParts * len(f.held)
	for _, g := range groups {
		n += f.of[g]
	}
	return n < groupParts*f.most
}

// admit says whether there is room for one more. What is being made at this moment does not count yet, so there can be a few more than the shares allow,
// and never more than most. fault.QuotaReached.
func (f *shelf[T]) admit(groups []string) error {
	if f.fits(groups) {
		return nil
	}
	if now := f.now(); now.Sub(f.counted).Abs() >= recountEvery {
		f.counted = now
		for slot := range f.held {
			if f.over(f.Rows[slot].Value) {
				f.discount(slot)
			}
		}
	}
	if f.fits(groups) {
		return nil
	}
	return fault.New(fault.QuotaReached, LeaseCount).WithHint("there are too many %s of one caller, mount or namespace for the room that is left; they go when they expire or are revoked", f.what)
}

// take finds a slot for a new record: a free one, else the next. Give it back when it was taken, or not. fault.QuotaReached.
func (f *shelf[T]) take() (slot string, rev store.Rev, err error) {
	looked := 0
	for slot := range f.free {
		if r := f.Rows[slot]; !r.Deleted { // one that is waits for the watch
			delete(f.free, slot)
			return slot, r.Rev, nil
		}
		if looked++; looked == maxFreeSearches {
			break
		}
	}
	if int(f.next) >= f.most {
		return "", 0, fault.New(fault.QuotaReached, LeaseCount).WithHint("at most %d %s at a time", f.most, f.what)
	}
	f.next++
	return slotName(f.next - 1), 0, nil
}

// giveBack ends a take: the slot is free again, unless its record is there by now.
func (f *shelf[T]) giveBack(slot string) {
	if !f.held[slot] {
		f.free[slot] = true
	}
}

// reserve admits one more record of some groups and finds its slot. Call done when it was written, or not. fault.QuotaReached.
func reserve[T any](s *Service, f *shelf[T], groups []string) (slot string, cond guard.Cond, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := f.admit(groups); err != nil {
		return "", cond, nil, err
	}
	slot, rev, err := f.take()
	if err != nil {
		return "", cond, nil, err
	}
	done = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f.giveBack(slot)
	}
	return slot, guard.Cond{Path: f.Prefix + slot, Rev: rev}, done, nil
}

// groupsOf are those of what somebody has who logged in at a mount: who made nothing is its own owner, and all that was made of it counts for it. Who logged in at
// none is with those like it in the namespace, as mounts are of one, so that no namespace takes the room of another's.
func groupsOf(ns, mount, owner string) []string {
	mount = cmp.Or(mount, "of none in "+ns)
	return []string{"namespace " + ns, "mount " + mount, "caller " + owner}
}

// ownerOf is whom something counts for: who logged in, for all that was made of its token.
func ownerOf(caller string, makers []policy.Maker) string {
	if len(makers) > 0 {
		return makers[0].Name
	}
	return caller
}

func (t token) groups() []string { return groupsOf(t.Namespace, t.Mount, ownerOf(t.Caller, t.Makers)) }

func (w wrap) groups() []string { return groupsOf(w.Namespace, w.Mount, w.Owner) }

// groups of a secret ID are the mount, which is of one namespace, and the role.
func (r secretID) groups() []string { return []string{"mount " + mountOf(r.Role), "role " + r.Role} }

// sweepEvery is how often what is over is deleted.
const sweepEvery = 10 * time.Second

// Sweep deletes the records of what is over, until ctx ends. What was over the time before goes, as a token without uses left is there for the request that
// had the last one. Of servers that share a store the one that leads does it. What cannot be deleted now is later.
func (s *Service) Sweep(ctx context.Context) error {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	var last map[guard.Cond]bool
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
			last = s.sweep(ctx, last)
		}
	}
}

// sweep deletes what is over and was so the time before, and returns what is now.
func (s *Service) sweep(ctx context.Context, last map[guard.Cond]bool) (now map[guard.Cond]bool) {
	var lead []guard.Cond
	if s.Lead != nil {
		cond, ok := s.Lead()
		if !ok {
			return nil
		}
		lead = append(lead, cond)
	}
	now = map[guard.Cond]bool{}
	var gone []guard.Cond
	for _, c := range s.allOver() {
		now[c] = true
		if last[c] {
			gone = append(gone, c)
		}
	}
	if _, err := s.dropOver(ctx, s.Guard.System("acl", policy.ActTokenRevoke, about(s.home)), lead, gone); err != nil && ctx.Err() == nil {
		s.Log.WarnContext(ctx, "records of tokens, wrapped answers and secret IDs that are over wait to be deleted", "error", err)
	}
	return now
}

// Tidy deletes the records of what is over at once, for a client that asks. It returns how many there were. fault.Denied.
func (s *Service) Tidy(ctx context.Context, c policy.Caller, ns string) (int, error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActTokenRevoke, about(ns))
	if err != nil {
		return 0, err
	}
	return s.dropOver(ctx, p, nil, s.allOver())
}

// dropOver deletes records, some at a time. Of those of one commit none goes when one was changed meanwhile: the next time finds them again.
func (s *Service) dropOver(ctx context.Context, p *guard.Permit, under, all []guard.Cond) (n int, err error) {
	for some := range slices.Chunk(all, batch) {
		var writes []guard.Write
		for _, c := range some {
			writes = append(writes, guard.Write{Path: c.Path, Delete: true})
		}
		err := s.commit(ctx, p, append(slices.Clone(under), some...), writes, map[string]string{"event": "tidy"})
		if err == nil {
			n += len(writes)
		} else if fault.CodeOf(err) != fault.Conflict {
			return n, err
		}
	}
	return n, nil
}

// allOver are all records that are over, as they are known.
func (s *Service) allOver() []guard.Cond {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Concat(overs(s.tokens), overs(s.wraps), overs(s.secrets))
}

// overs are those of one table. Call with mu held.
func overs[T any](f *shelf[T]) (all []guard.Cond) {
	for slot, r := range f.Rows {
		if !r.Deleted && f.over(r.Value) {
			all = append(all, guard.Cond{Path: f.Prefix + slot, Rev: r.Rev})
		}
	}
	return all
}
