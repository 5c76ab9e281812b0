package guard

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/policy"
)

// refusalKey is what repeated refusals are counted under.
type refusalKey struct {
	caller         string
	action         policy.Action
	namespace, key string
}

// maxRefusals bounds the refusals that are told apart in a minute; what comes beyond shares one counter.
const maxRefusals = 10_000

// maxOfCaller bounds those of one caller, so that its flood takes neither room nor name from another's.
const maxOfCaller = 1000

// others stands for the callers beyond maxRefusals.
const others = "others"

// refusal counts the same refusal within a minute.
type refusal struct {
	mu       sync.Mutex // guards what follows; held while the entry is written
	written  bool
	repeated uint64
	closed   bool
	permit   Permit
}

// refusals are the refusals of the present minute. Guarded by mu.
type refusals struct {
	mu     sync.Mutex
	minute int64
	all    map[refusalKey]*refusal
	counts map[string]int // how many of them each caller has
	ended  []*refusal     // of earlier minutes, to be closed
}

// of finds the counter of a refusal in the present minute.
func (rs *refusals) of(k refusalKey, p Permit, minute int64) *refusal {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.all == nil || rs.minute != minute {
		rs.turn(minute)
	}
	if rs.all[k] == nil && rs.counts[k.caller] >= maxOfCaller { // the caller's own rest
		k, p.resource, p.action = refusalKey{caller: k.caller}, policy.Resource{}, ""
	}
	if rs.all[k] == nil && len(rs.all) >= maxRefusals {
		k, p.caller, p.resource = refusalKey{caller: others}, policy.Caller{Name: others}, policy.Resource{}
	}
	r := rs.all[k]
	if r == nil {
		r = &refusal{permit: p}
		rs.all[k] = r
		rs.counts[k.caller]++
	}
	return r
}

// turn begins another minute. Call with mu held.
func (rs *refusals) turn(minute int64) {
	rs.ended = slices.AppendSeq(rs.ended, maps.Values(rs.all))
	rs.ended = rs.ended[max(0, len(rs.ended)-2*maxRefusals):] // bounded also while nobody closes
	rs.minute, rs.all, rs.counts = minute, map[refusalKey]*refusal{}, map[string]int{}
}

// end closes the minutes that are over, or all, and returns the entries of what was refused more than once in them.
func (rs *refusals) end(minute int64, all bool) []audit.Entry {
	rs.mu.Lock()
	if all || rs.minute != minute {
		rs.turn(minute)
	}
	ended := rs.ended
	rs.ended = nil
	rs.mu.Unlock()
	var entries []audit.Entry
	for _, r := range ended {
		r.mu.Lock()
		r.closed = true
		if r.repeated > 0 {
			entries = append(entries, r.permit.entry(audit.ClassRelease, "refused", map[string]string{"repeated": fmt.Sprint(r.repeated)}))
		}
		r.mu.Unlock()
	}
	return entries
}

// note writes or counts one refusal, unless the minute ended since it was looked up.
func (r *refusal) note(ctx context.Context) (noted bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return false, nil
	case r.written:
		r.repeated++
		return true, nil
	}
	if err := r.permit.guard.audit.Append(ctx, r.permit.entry(audit.ClassRelease, "refused", nil)); err != nil {
		return false, storeFault(string(r.permit.action), err)
	}
	r.written = true
	return true, nil
}

// refused writes the entry of a refusal before it returns, once a minute for the same one; CloseWindows writes how often it was repeated.
func (g *Guard) refused(ctx context.Context, c policy.Caller, a policy.Action, r policy.Resource) error {
	k := refusalKey{clean(c.Name, maxCaller), a, clean(r.Namespace, maxText), clean(r.Key, maxText)}
	p := Permit{guard: g, caller: policy.Caller{Name: k.caller}, action: a, resource: policy.Resource{Namespace: k.namespace, Key: k.key}}
	for {
		noted, err := g.refusals.of(k, p, g.minute()).note(ctx)
		if noted || err != nil {
			return err
		}
	}
}
