package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// Changes of members that wait at the same time become one commit: every join bumps the one members record, so ten thousand processes that
// start at once would otherwise be ten thousand commits, one after the other. A lone change is not delayed. A commit is of one kind of change
// and names everybody in the audit log; each change in it is decided by its own rules, and answered when the commit is durable.

// kind is what changes of one commit have in common.
type kind struct {
	what   string // in the audit log, before the names
	action policy.Action
	bumps  bool // it changes who holds what, on which gates are conditioned
}

// The kinds.
var (
	joins   = kind{"join", policy.ActDeliver, true}
	holds   = kind{"hold", policy.ActDeliver, true}
	refuses = kind{"refuse", policy.ActDeliver, true}
	moves   = kind{"move", policy.ActDeliver, false}
	ends    = kind{"end of stream", policy.ActDeliver, false}
	leaves  = kind{"leave", policy.ActRemove, true}
	removes = kind{"remove", policy.ActRemove, true}
)

const (
	// maxGroup bounds the changes of a commit, so that the entry in the log has room for every name, as releaseBatch does.
	maxGroup = releaseBatch
	// maxItems bounds its conditions and writes: the store takes 100, of which the guard needs some: the root's condition, the entry, a
	// condition or mark for each record that appears or goes.
	maxItems = 96
)

// verdict is what becomes of a member.
type verdict struct {
	next  *member // nil: nothing
	gone  bool    // it leaves
	conds []guard.Cond
}

// change is one that waits.
type change struct {
	kind   kind
	name   string // of the instance
	decide func(ctx context.Context, g *group) (verdict, error)
	done   chan struct{}
	err    error // read after done
}

// change queues a change of one member and returns when it is durable. decide is called with commits held, again whenever the store turned out
// to have something else than memory had; its error is the answer. fault.Conflict, OutcomeUnknown, Unavailable, and what decide returns.
func (f *Fleet) change(k kind, name string, decide func(ctx context.Context, g *group) (verdict, error)) error {
	c := &change{kind: k, name: name, decide: decide, done: make(chan struct{})}
	f.queueMu.Lock()
	f.queue = append(f.queue, c)
	f.queueMu.Unlock()
	select {
	case f.queued <- struct{}{}:
	default:
	}
	select {
	case <-c.done:
		return c.err
	case <-f.life.Done():
		return fault.New(fault.Unavailable, "server")
	}
}

// settleAll makes commits of what waits until ctx ends.
func (f *Fleet) settleAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.queued:
		}
		for all := f.takeQueued(); len(all) > 0 && ctx.Err() == nil; all = f.takeQueued() {
			f.commits.Lock()
			f.settle(ctx, all)
			f.commits.Unlock()
		}
	}
}

// takeQueued takes the changes of the next commit: those of the kind of the first that waits, one of each member.
func (f *Fleet) takeQueued() []*change {
	f.queueMu.Lock()
	defer f.queueMu.Unlock()
	if len(f.queue) == 0 {
		return nil
	}
	var taken, rest []*change
	names, k := map[string]bool{}, f.queue[0].kind
	for i, c := range f.queue {
		if len(taken) == maxGroup {
			rest = append(rest, f.queue[i:]...)
			break
		}
		if c.kind != k || names[c.name] {
			rest = append(rest, c)
		} else {
			taken = append(taken, c)
		}
		names[c.name] = true // a later change of the same member waits for this one
	}
	f.queue = rest
	return taken
}

// again puts changes for which a commit had no room before all others.
func (f *Fleet) again(some []*change) {
	f.queueMu.Lock()
	defer f.queueMu.Unlock()
	f.queue = append(slices.Clone(some), f.queue...)
}

// settle makes one commit of changes, anew while the store has something else than memory. When that does not end, or the commit is too large,
// each is decided alone, so that none suffers from another. Call with commits held.
func (f *Fleet) settle(life context.Context, all []*change) {
	ctx, cancel := f.whole(life)
	defer cancel()
	for conflicts := 0; ; conflicts++ {
		g := &group{fleet: f, kind: all[0].kind, keys: map[keyring.KeyID]keyed{}, named: map[string]bool{}}
		if all = g.gather(ctx, all); len(all) == 0 {
			return
		}
		err := g.commit(ctx)
		code := fault.CodeOf(err)
		switch {
		case code == fault.Conflict && ctx.Err() == nil && (len(all) == 1 || conflicts < maxConflicts):
			continue
		case len(all) > 1 && (code == fault.Conflict || code == fault.TooLarge):
			for _, c := range all {
				f.settle(life, []*change{c})
			}
		default:
			for _, c := range all {
				c.answer(err)
			}
		}
		return
	}
}

func (c *change) answer(err error) {
	c.err = err
	close(c.done)
}

// group is one commit in the making.
type group struct {
	fleet *Fleet
	kind  kind
	names []string
	keys  map[keyring.KeyID]keyed
	conds []guard.Cond
	named map[string]bool // paths of conds
	also  []guard.Write
	items int
}

// keyed is a key as the store has it.
type keyed struct {
	key  keyring.Key
	cond guard.Cond
	err  error
}

// read returns keys as the store has them, each read once for a commit, which is under the condition that they stay so.
func (g *group) read(ctx context.Context, ids []keyring.KeyID) ([]keyring.Key, []guard.Cond, error) {
	var keys []keyring.Key
	var conds []guard.Cond
	for _, id := range ids {
		k, ok := g.keys[id]
		if !ok {
			k.key, k.cond, k.err = g.fleet.Keys.Record(ctx, id)
			g.keys[id] = k
		}
		if k.err != nil {
			return nil, nil, k.err
		}
		keys, conds = append(keys, k.key), append(conds, k.cond)
	}
	return keys, conds, nil
}

// gather decides changes and returns those that are in the commit. The others are answered, or wait for the next one.
func (g *group) gather(ctx context.Context, all []*change) []*change {
	if g.kind.bumps {
		cond, write := g.fleet.bump()
		g.add([]guard.Cond{cond}, write)
	}
	var in, full []*change
	for _, c := range all {
		v, err := c.decide(ctx, g)
		switch {
		case err != nil || v.next == nil:
			c.answer(err)
		case len(in) > 0 && g.items+g.size(v) > maxItems:
			full = append(full, c)
		default:
			if err := g.take(v); err != nil {
				c.answer(err)
				continue
			}
			g.names, in = append(g.names, c.name), append(in, c)
		}
	}
	g.fleet.again(full)
	return in
}

// size is how many items a verdict brings at most.
func (g *group) size(v verdict) int {
	n := 3 // condition, write, mark
	for _, c := range v.conds {
		if !g.named[c.Path] {
			n++
		}
	}
	return n
}

// take puts a verdict into the commit.
func (g *group) take(v verdict) error {
	path := memberPrefix + v.next.Instance
	w := guard.Write{Path: path, Delete: v.gone}
	if !v.gone {
		var err error
		if w.Value, err = encodeMember(v.next); err != nil {
			return err
		}
	}
	g.items++ // the mark
	g.add(append(v.conds, guard.Cond{Path: path, Rev: v.next.rev}), w)
	return nil
}

func (g *group) add(conds []guard.Cond, w guard.Write) {
	for _, c := range conds {
		if !g.named[c.Path] {
			g.named[c.Path] = true
			g.conds = append(g.conds, c)
			g.items++
		}
	}
	g.also = append(g.also, w)
	g.items++
}

func (g *group) commit(ctx context.Context) error {
	p := g.fleet.Guard.System("fleet", g.kind.action, policy.Resource{})
	return g.fleet.commit(ctx, p, g.conds, g.also, fmt.Sprintf("%s %s", g.kind.what, strings.Join(g.names, " ")))
}

// held says what a session's keys are, if its process holds them all already. They are read after the process was seen to hold them, and it is
// seen again after that, in a memory that has caught up meanwhile: another server may have made it leave.
func (s *Session) held(ctx context.Context, ids []keyring.KeyID) (keys []keyring.Key, all bool, err error) {
	f := s.fleet
	before, err := s.member()
	if err != nil || slices.ContainsFunc(ids, func(id keyring.KeyID) bool { return before.Keys[id] == nil }) {
		return nil, false, err
	}
	for _, id := range ids {
		k, err := f.records.do(id)
		if err != nil {
			return nil, false, err
		}
		keys = append(keys, k)
	}
	if _, err := f.catching.do(struct{}{}); err != nil {
		return nil, false, err
	}
	now, err := s.member()
	return keys, err == nil && now.rev == before.rev, err
}

// share makes what many sessions do at the same time work that they share.
func (f *Fleet) share() {
	f.records = newRounds(func(id keyring.KeyID, _ []struct{}) (keyring.Key, error) {
		ctx, cancel := f.whole(f.life)
		defer cancel()
		k, _, err := f.Keys.Record(ctx, id)
		return k, err
	})
	f.catching = newRounds(func(struct{}, []struct{}) (struct{}, error) {
		ctx, cancel := f.whole(f.life)
		defer cancel()
		return struct{}{}, f.CatchUp(ctx)
	})
	f.releases = newRounds(func(what released, to []string) (struct{}, error) {
		ctx, cancel := f.whole(f.life)
		defer cancel()
		return struct{}{}, f.release(ctx, what, to)
	})
}
