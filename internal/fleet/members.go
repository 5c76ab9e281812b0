package fleet

import (
	"context"
	"encoding/json"
	"fmt"
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
	// ackDelay gathers the acknowledgements of a whole fleet into few commits, so that the promotion that they open does not queue
	// behind them. What a crash loses meanwhile is acknowledged again.
	ackDelay = 50 * time.Millisecond
	// tidyEvery is how often what failed is tried again: acknowledgements not stored, deliveries not made.
	tidyEvery = time.Second
)

// load replaces what memory has by what the store has. What instances proved since, and what is not stored yet, is true of
// the same process still.
func (f *Fleet) load(ctx context.Context) error {
	var count uint64
	rec, err := f.Guard.Get(ctx, membersPath)
	switch {
	case fault.CodeOf(err) == fault.NotFound:
	case err != nil:
		return fmt.Errorf("read members: %w", err)
	default:
		if err := json.Unmarshal(rec.Value, &count); err != nil {
			return fault.Wrap(fault.RecordTampered, membersPath, err)
		}
	}
	records, _, err := f.Guard.List(ctx, memberPrefix)
	if err != nil {
		return fmt.Errorf("read members: %w", err)
	}
	members := map[string]*member{}
	for _, r := range records {
		m := &member{rev: r.Rev}
		if err := json.Unmarshal(r.Value, m); err != nil {
			return fault.Wrap(fault.RecordTampered, r.Path, err)
		}
		members[m.Instance] = m
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, m := range members {
		if m.absorb(f.members[name]) {
			f.unsaved[name] = true
		}
	}
	f.rev, f.count, f.members = rec.Rev, count, members
	return nil
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

// Run stores acknowledgements in batches and tries again what failed, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	defer f.halt()
	again := time.NewTicker(tidyEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
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
	if err := f.refresh(ctx); err != nil {
		return err
	}
	for {
		batch := f.takeUnsaved()
		if len(batch) == 0 {
			return nil
		}
		p := f.Guard.System("fleet", policy.ActDeliver, policy.Resource{})
		rev, err := f.put(ctx, p, nil, nil, batch, "acknowledge")
		f.mu.Lock()
		for _, m := range batch {
			if err != nil {
				f.unsaved[m.Instance] = true
			} else {
				f.members[m.Instance].rev = rev // it is there: only who holds commits takes members away
			}
		}
		f.mu.Unlock()
		if err != nil {
			return f.failed(ctx, err)
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

// put writes member records under the condition that they did not change since they were read.
func (f *Fleet) put(ctx context.Context, p *guard.Permit, conds []guard.Cond, also []guard.Write, batch []*member, what string) (store.Rev, error) {
	for _, m := range batch {
		value, err := json.Marshal(m)
		if err != nil {
			return 0, fmt.Errorf("encode member %s: %w", m.Instance, err)
		}
		conds = append(conds, guard.Cond{Path: memberPrefix + m.Instance, Rev: m.rev})
		also = append(also, guard.Write{Path: memberPrefix + m.Instance, Value: value})
	}
	return p.Commit(ctx, conds, also, map[string]string{"change": what})
}

// bump is the condition and the write by which a join or leave changes the members record.
func (f *Fleet) bump() (guard.Cond, guard.Write) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, _ := json.Marshal(f.count + 1) // a number always encodes
	return guard.Cond{Path: membersPath, Rev: f.rev}, guard.Write{Path: membersPath, Value: value}
}

// admit stores a member that joins or changes what it holds. Call with commits held.
func (f *Fleet) admit(ctx context.Context, p *guard.Permit, next *member, what string, conds ...guard.Cond) error {
	cond, write := f.bump()
	rev, err := f.put(ctx, p, append(conds, cond), []guard.Write{write}, []*member{next}, what)
	if err != nil {
		return f.failed(ctx, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next.rev = rev
	next.absorb(f.members[next.Instance])
	f.members[next.Instance] = next
	f.rev, f.count = rev, f.count+1
	return nil
}

// leave deletes a member. Call with commits held.
func (f *Fleet) leave(ctx context.Context, m *member, what string) error {
	cond, write := f.bump()
	p := f.Guard.System("fleet", policy.ActRemove, policy.Resource{})
	path := memberPrefix + m.Instance
	rev, err := p.Commit(ctx, []guard.Cond{cond, {Path: path, Rev: m.rev}}, []guard.Write{write, {Path: path, Delete: true}}, map[string]string{"change": what})
	if err != nil {
		return f.failed(ctx, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.members, m.Instance)
	delete(f.unsaved, m.Instance)
	delete(f.heard, m.Instance)
	f.rev, f.count = rev, f.count+1
	return nil
}

// failed notes that memory may not be what the store has, and reads it again. Call with commits held.
func (f *Fleet) failed(ctx context.Context, cause error) error {
	f.stale = true
	if err := f.refresh(ctx); err != nil {
		f.Log.WarnContext(ctx, "members not read again", "error", err)
	}
	return cause
}

// refresh reads the members again if a commit failed since. Call with commits held.
func (f *Fleet) refresh(ctx context.Context) error {
	if !f.stale {
		return nil
	}
	if err := f.load(ctx); err != nil {
		return err
	}
	f.stale = false
	return nil
}

// whole gives a change of the membership the time that it needs, whatever becomes of who asked for it, but not past the server's end.
func (f *Fleet) whole(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	context.AfterFunc(f.life, cancel)
	return ctx, cancel
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
	if err := f.refresh(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	m := f.members[name]
	if m == nil || m.Keys[id] == nil || !f.over(name, id) {
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
	if err := f.admit(ctx, p, left, "fence "+name); err != nil {
		return err
	}
	f.Log.InfoContext(ctx, "member fenced", "instance", name, "key", k.Name)
	return nil
}

// Remove makes an instance leave everything at once and ends its stream.
func (f *Fleet) Remove(ctx context.Context, name string) error {
	f.commits.Lock()
	ctx, cancel := f.whole(ctx)
	defer cancel()
	f.mu.Lock()
	if s := f.sessions[name]; s != nil {
		f.end(s, fault.New(fault.Denied, "instance "+name))
	}
	f.mu.Unlock()
	m, err := f.goes(ctx, name, "remove "+name, func(*member) bool { return true })
	f.commits.Unlock()
	f.notify(m)
	return err
}

// goes makes a member leave if it is the one that is meant, again when somebody else changed the membership meanwhile. It returns
// who left. Call with commits held.
func (f *Fleet) goes(ctx context.Context, name, what string, meant func(*member) bool) (*member, error) {
	for {
		if err := f.refresh(ctx); err != nil {
			return nil, err
		}
		m := f.find(name)
		if m == nil || !meant(m) {
			return nil, nil
		}
		err := f.leave(ctx, m, what)
		if fault.CodeOf(err) == fault.Conflict && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		return m, nil
	}
}

func resource(k keyring.Key) policy.Resource {
	return policy.Resource{Namespace: string(k.Namespace), Key: k.Name, Labels: k.Labels}
}
