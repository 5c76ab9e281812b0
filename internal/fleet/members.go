package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is how the membership changes: each change is decided on what the store has, committed under the condition that
// it still has it, and then followed in memory.

const (
	// commitTime bounds a commit whose caller may be gone: it is not given up with the stream that asked for it, because a
	// commit that is given up leaves its outcome unknown.
	commitTime = 10 * time.Second
	// ackBatch bounds the members per commit, below the store's bound of items.
	ackBatch = 40
	// maxConflicts bounds how often in a row acknowledgements are stored anew at once because another server changed a member meanwhile.
	maxConflicts = 8
	// ackDelay gathers the acknowledgements of a whole fleet into few commits, so that the promotion that they open does not queue
	// behind them. What a crash loses meanwhile is acknowledged again.
	ackDelay = 50 * time.Millisecond
	// tidyEvery is how often what failed is tried again: acknowledgements not stored, deliveries not made.
	tidyEvery = time.Second
)

// load reads the members as they are.
func (f *Fleet) load(ctx context.Context) error {
	records, rev, err := f.Guard.List(ctx, room+"/")
	if err != nil {
		return fmt.Errorf("read members: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		if err := f.see(guard.Change{Record: r}, nil); err != nil {
			return err
		}
	}
	f.applied = rev
	return nil
}

// follow keeps memory at what the store has until ctx ends: what this server commits and what others do comes the same way.
func (f *Fleet) follow(ctx context.Context) error {
	f.mu.Lock()
	after := f.applied
	f.mu.Unlock()
	return f.Guard.Follow(ctx, room+"/", after, f.take)
}

// take brings memory to the next commit, and tells of the keys whose holders it has changed.
func (f *Fleet) take(changes []guard.Change) error {
	touched := map[keyring.KeyID]bool{}
	f.mu.Lock()
	for _, c := range changes {
		if err := f.see(c, touched); err != nil {
			f.mu.Unlock()
			return err
		}
		f.applied = max(f.applied, c.Rev)
	}
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	for id := range touched {
		if f.OnChange != nil {
			f.OnChange(id)
		}
	}
	return nil
}

// see takes over one record. What instances proved since, and what is not stored yet, is true of the same process still. Call with mu held.
func (f *Fleet) see(c guard.Change, touched map[keyring.KeyID]bool) error {
	if c.Path == membersPath {
		f.rev = c.Rev
		if err := json.Unmarshal(c.Value, &f.count); err != nil {
			return fault.Wrap(fault.RecordTampered, c.Path, err)
		}
		return nil
	}
	name := strings.TrimPrefix(c.Path, memberPrefix)
	old, next := f.members[name], (*member)(nil)
	if c.Deleted {
		delete(f.members, name)
		delete(f.unsaved, name)
		delete(f.heard, name)
	} else {
		next = &member{rev: c.Rev}
		if err := json.Unmarshal(c.Value, next); err != nil {
			return fault.Wrap(fault.RecordTampered, c.Path, err)
		}
		if next.absorb(old) {
			f.unsaved[name] = true
		}
		f.members[name] = next
	}
	for _, m := range []*member{old, next} {
		if m != nil && touched != nil {
			for id := range m.Keys {
				touched[id] = true
			}
		}
	}
	f.unseat(name, old, next)
	return nil
}

// unseat ends the stream of a member that is no longer this server's to serve: another server has made it leave, or has taken it over. Call
// with mu held.
func (f *Fleet) unseat(name string, old, next *member) {
	s := f.sessions[name]
	switch {
	case s == nil:
	case next == nil:
		f.end(s, fault.New(fault.Denied, "instance "+name))
	case next.Incarnation != hexOf(s.address.Incarnation):
		f.end(s, fault.New(fault.IdentityInUse, "instance "+name))
	case f.Replicas != nil && (next.Home != f.Replicas.ID() || next.Away):
		f.end(s, fault.New(fault.Unavailable, "stream of instance "+name))
	case old != nil:
		for id := range old.Keys {
			if next.Keys[id] == nil && !s.dropped(id) {
				f.end(s, fault.New(fault.LeaseOver, "instance "+name)) // it has to join again
				return
			}
		}
	}
}

// await returns once memory has a commit.
func (f *Fleet) await(ctx context.Context, rev store.Rev) error {
	for {
		f.mu.Lock()
		applied, changed := f.applied, f.changed
		f.mu.Unlock()
		if applied >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// CatchUp returns once memory has every commit that was acknowledged before the call. fault.Unavailable, Canceled.
func (f *Fleet) CatchUp(ctx context.Context) error {
	rev, err := f.Guard.CaughtUp(ctx, room)
	if err != nil {
		return err
	}
	return f.await(ctx, rev)
}

// Reached returns once memory has every commit up to a revision.
func (f *Fleet) Reached(ctx context.Context, rev store.Rev) error {
	last, err := f.Guard.Reached(ctx, rev, room)
	if err != nil {
		return err
	}
	return f.await(ctx, last)
}

// absorb takes over what the same process has acknowledged meanwhile. It returns whether there was anything.
func (m *member) absorb(old *member) (news bool) {
	if old == nil || old.Incarnation != m.Incarnation {
		return false
	}
	for id, acked := range m.Keys {
		if was, ok := old.Keys[id]; ok && acked.Less(*was) {
			*acked, news = *was, true
		}
	}
	return news
}

// Run follows the store, commits changes of members, stores acknowledgements in batches and tries again what failed, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	defer f.halt()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var failed error
	var follow sync.WaitGroup
	follow.Go(func() {
		defer stop()
		failed = f.follow(ctx)
	})
	follow.Go(func() { f.settleAll(ctx) })
	again := time.NewTicker(tidyEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			follow.Wait()
			return failed
		case <-f.flush:
			pause(ctx, ackDelay)
		case <-again.C:
			f.resend(ctx)
		}
		if err := f.saveAcks(ctx); err != nil && ctx.Err() == nil {
			f.Log.WarnContext(ctx, "acknowledgements not stored", "error", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// saveAcks stores what was acknowledged since the last time. An acknowledgement that is lost in a crash is repeated by the
// instance when it connects again.
func (f *Fleet) saveAcks(ctx context.Context) error {
	f.commits.Lock()
	defer f.commits.Unlock()
	for conflicts := 0; ; {
		batch := f.takeUnsaved()
		if len(batch) == 0 {
			return nil
		}
		p := f.Guard.System("fleet", policy.ActDeliver, policy.Resource{})
		err := f.store(ctx, p, nil, nil, batch, "acknowledge")
		if err == nil {
			continue
		}
		f.mu.Lock()
		for _, m := range batch {
			f.unsaved[m.Instance] = true
		}
		f.mu.Unlock()
		if conflicts++; fault.CodeOf(err) != fault.Conflict || conflicts == maxConflicts {
			return err
		}
	}
}

// takeUnsaved copies the next members to be stored.
func (f *Fleet) takeUnsaved() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	var batch []*member
	for name := range f.unsaved {
		if len(batch) == ackBatch {
			break
		}
		delete(f.unsaved, name)
		if m := f.members[name]; m != nil {
			batch = append(batch, m.clone())
		}
	}
	return batch
}

// store writes member records under the condition that they did not change since they were read, and returns once memory has them. When it
// fails, memory has caught up with what the store has.
func (f *Fleet) store(ctx context.Context, p *guard.Permit, conds []guard.Cond, also []guard.Write, batch []*member, what string) error {
	for _, m := range batch {
		value, err := encodeMember(m)
		if err != nil {
			return err
		}
		conds = append(conds, guard.Cond{Path: memberPrefix + m.Instance, Rev: m.rev})
		also = append(also, guard.Write{Path: memberPrefix + m.Instance, Value: value})
	}
	return f.commit(ctx, p, conds, also, what)
}

func encodeMember(m *member) ([]byte, error) {
	value, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode member %s: %w", m.Instance, err)
	}
	return value, nil
}

func (f *Fleet) commit(ctx context.Context, p *guard.Permit, conds []guard.Cond, writes []guard.Write, what string) error {
	rev, err := p.Commit(ctx, conds, writes, map[string]string{"change": what})
	if err == nil {
		return f.await(ctx, rev)
	}
	if c := fault.CodeOf(err); c == fault.Conflict || c == fault.OutcomeUnknown {
		if err := f.CatchUp(ctx); err != nil {
			f.Log.WarnContext(ctx, "members not read again", "error", err)
		}
	}
	return err
}

// bump is the condition and the write by which a join or leave changes the members record.
func (f *Fleet) bump() (guard.Cond, guard.Write) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, _ := json.Marshal(f.count + 1) // a number always encodes
	return guard.Cond{Path: membersPath, Rev: f.rev}, guard.Write{Path: membersPath, Value: value}
}

// whole gives a change of the membership the time that it needs, whatever becomes of who asked for it, but not past the server's end.
func (f *Fleet) whole(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	forget := context.AfterFunc(f.life, cancel) // without which life, that is long, would keep it
	return ctx, func() { forget(); cancel() }
}

// find copies a member as memory has it; nil when there is none.
func (f *Fleet) find(name string) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.members[name]; m != nil {
		return m.clone()
	}
	return nil
}

// Drop makes a member whose lease is over leave one key (fence). Its stream is ended first, so that no later lease can revive
// what it had; it has to join again.
func (f *Fleet) Drop(ctx context.Context, id keyring.KeyID, name string) error {
	f.commits.Lock()
	defer f.commits.Unlock()
	ctx, cancel := f.whole(ctx)
	defer cancel()
	f.mu.Lock()
	m := f.members[name]
	if m == nil || m.Keys[id] == nil {
		f.mu.Unlock()
		return nil
	}
	over, conds := f.over(m, id)
	if !over {
		f.mu.Unlock()
		return nil
	}
	left := m.clone()
	delete(left.Keys, id)
	if s := f.sessions[name]; s != nil {
		f.end(s, fault.New(fault.LeaseOver, "instance "+name))
	}
	f.mu.Unlock()
	k, _ := f.Keys.Key(id)
	p := f.Guard.System("fleet", policy.ActRotate, resource(k))
	cond, write := f.bump()
	if err := f.store(ctx, p, append(conds, cond), []guard.Write{write}, []*member{left}, "fence "+name); err != nil {
		return err
	}
	f.Log.InfoContext(ctx, "member fenced", "instance", name, "key", k.Name)
	return nil
}

// Remove makes an instance leave everything at once and ends its stream.
func (f *Fleet) Remove(ctx context.Context, name string) error {
	ctx, cancel := f.whole(ctx)
	defer cancel()
	f.mu.Lock()
	if s := f.sessions[name]; s != nil {
		f.end(s, fault.New(fault.Denied, "instance "+name))
	}
	f.mu.Unlock()
	return f.goes(ctx, removes, name, func(*member) bool { return true })
}

// goes makes a member leave if it is the one that is meant. It looks at what the store has, because another server may have let it in.
func (f *Fleet) goes(ctx context.Context, k kind, name string, meant func(*member) bool) error {
	if err := f.CatchUp(ctx); err != nil {
		return err
	}
	return f.change(k, name, func(context.Context, *group) (verdict, error) {
		m := f.find(name)
		if m == nil || !meant(m) {
			return verdict{}, nil
		}
		return verdict{next: m, gone: true}, nil
	})
}

func resource(k keyring.Key) policy.Resource {
	return policy.Resource{Namespace: string(k.Namespace), Key: k.Name, Labels: k.Labels}
}
