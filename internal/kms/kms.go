// Package kms holds the use cases on keys. Each begins with guard.Admit and writes through the permit alone. Reads go to an
// immutable ring of all keys that is replaced as a whole whenever the store's watch brings a change.
package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

const (
	room      = "key"
	keyPrefix = room + "/"
)

// Config is what a Service needs.
type Config struct {
	Guard *guard.Guard
	Now   func() time.Time
	// Fresh says whether this server may still act on its memory: no other server takes it for dead. Nothing is protected without. nil: always.
	Fresh func() bool
	// Quotas says what there is room for; nil: for everything.
	Quotas func() Quotas
	// Floors says what destructions need at least, whatever keys say; nil: what keys say.
	Floors func() Floors
	// Agreed says whether every server on the store knows the records of this build; nil: yes. What an older one would get wrong waits for it.
	Agreed func() bool
	// Suites narrows which algorithms new versions may have.
	Suites suite.Policy
	// HSM carries out what keys of custody hsm are for; nil: there is no token.
	HSM   HSM
	Log   *slog.Logger // default: none
	Block uint64       // uses of a version with a volume limit that are taken at a time; 0: DefaultBlock. A crash forfeits what is left of it
}

// Service serves the use cases on keys. It is safe for concurrent use once Run has started.
type Service struct {
	guard *guard.Guard
	now   func() time.Time
	fresh func() bool
	room  func() Quotas
	least func() Floors
	agree func() bool
	ring  atomic.Pointer[ring]
	vault materials

	volumes volumes
	suites  suite.Policy

	hsm   HSM
	log   *slog.Logger
	sweep chan struct{} // has one when something in the token may have to be destroyed

	tokenUp atomic.Bool // it answered when it was looked at last

	mu      sync.Mutex    // guards swap
	swap    chan struct{} // closed and replaced at each change of the ring
	changed func(keyring.Key)
}

// ring is every key as of one revision of the store.
type ring struct {
	rev    store.Rev
	byID   map[keyring.KeyID]keyring.Key
	byName map[string]keyring.KeyID // namespace + "/" + name
}

// New reads all keys. Run must follow to see changes.
func New(ctx context.Context, c Config) (*Service, error) {
	s := &Service{guard: c.Guard, now: c.Now, fresh: c.Fresh, room: c.Quotas, least: c.Floors, agree: c.Agreed, swap: make(chan struct{})}
	s.vault.cache, s.volumes.block, s.suites = map[materialID]opened{}, c.Block, c.Suites
	s.hsm, s.log, s.sweep = c.HSM, c.Log, make(chan struct{}, 1)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	records, rev, err := c.Guard.List(ctx, keyPrefix)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	r := &ring{rev: rev, byID: map[keyring.KeyID]keyring.Key{}, byName: map[string]keyring.KeyID{}}
	for _, rec := range records {
		var k keyring.Key
		if err := json.Unmarshal(rec.Value, &k); err != nil {
			return nil, fault.Wrap(fault.RecordTampered, rec.Path, err)
		}
		r.byID[k.ID], r.byName[nameOf(k.Namespace, k.Name)] = k, k.ID
	}
	s.ring.Store(r)
	return s, nil
}

// agreed refuses what servers of an older build, which would drop it or take it for something else, may still meet. fault.Unavailable.
func (s *Service) agreed(what string) error {
	if s.agree == nil || s.agree() {
		return nil
	}
	return fault.New(fault.Unavailable, what).
		WithHint("a server of an older build works on the store, or did a moment ago: rotor server status lists them; exchange it and try again")
}

// OnChange sets what is called, from Run's goroutine, with each key that changed. Set it before Run.
func (s *Service) OnChange(f func(keyring.Key)) { s.changed = f }

// Run follows the store until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for changes, err := range s.guard.Watch(ctx, keyPrefix, s.ring.Load().rev) {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch keys: %w", err)
		}
		if err := s.apply(changes); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) apply(changes []guard.Change) error {
	old := s.ring.Load()
	r := &ring{rev: old.rev, byID: maps.Clone(old.byID), byName: maps.Clone(old.byName)}
	var news []keyring.Key
	for _, c := range changes {
		r.rev = max(r.rev, c.Rev)
		if c.Deleted {
			continue // a key's record is never deleted: its versions are tombstones
		}
		var k keyring.Key
		if err := json.Unmarshal(c.Value, &k); err != nil {
			return fault.Wrap(fault.RecordTampered, c.Path, err)
		}
		if was, ok := r.byID[k.ID]; ok && was.Name != k.Name && r.byName[nameOf(was.Namespace, was.Name)] == k.ID {
			delete(r.byName, nameOf(was.Namespace, was.Name)) // it was renamed; in a later commit its name may be another key's
		}
		r.byID[k.ID], r.byName[nameOf(k.Namespace, k.Name)] = k, k.ID
		s.vault.forget(k)
		news = append(news, k)
	}
	s.ring.Store(r)
	s.mu.Lock()
	close(s.swap)
	s.swap = make(chan struct{})
	s.mu.Unlock()
	for _, k := range news {
		if k.Custody == keyring.CustodyHSM { // now that the ring has it
			s.wantSweep()
		}
		if s.changed != nil {
			s.changed(k)
		}
	}
	return nil
}

// await returns once the ring has caught up with a commit, so that a caller reads what it wrote.
func (s *Service) await(ctx context.Context, rev store.Rev) error {
	for {
		s.mu.Lock()
		swap := s.swap
		s.mu.Unlock()
		if s.ring.Load().rev >= rev {
			return nil
		}
		select {
		case <-swap:
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// CatchUp returns once the ring has every commit that was acknowledged before the call: a refusal must not rest on old news. It costs one
// read of the store for all who ask meanwhile. fault.Unavailable, Canceled when the store cannot be asked.
func (s *Service) CatchUp(ctx context.Context) error {
	rev, err := s.guard.CaughtUp(ctx, room)
	if err != nil {
		return err
	}
	return s.await(ctx, rev)
}

// Reached returns once the ring has every commit up to a revision.
func (s *Service) Reached(ctx context.Context, rev store.Rev) error {
	last, err := s.guard.Reached(ctx, rev, room)
	if err != nil {
		return err
	}
	return s.await(ctx, last)
}

// Seen is a revision up to which the ring has every commit.
func (s *Service) Seen() store.Rev {
	rev := s.guard.Seen() // before the others: they only grow
	if last := s.guard.LastOf(room); s.ring.Load().rev < last {
		return min(rev, s.ring.Load().rev)
	}
	return rev
}

// Lookup finds a key by name without asking whether anybody may; for the server's own loops.
func (s *Service) Lookup(ns keyring.Namespace, name string) (keyring.Key, bool) {
	r := s.ring.Load()
	k, ok := r.byID[r.byName[nameOf(ns, name)]]
	return k, ok
}

// Key finds a key by ID without asking whether anybody may; for the server's own loops.
func (s *Service) Key(id keyring.KeyID) (keyring.Key, bool) {
	k, ok := s.ring.Load().byID[id]
	return k, ok
}

// Keys returns every key, in no particular order, without asking whether anybody may; for the server's own loops.
func (s *Service) Keys() []keyring.Key {
	r := s.ring.Load()
	all := make([]keyring.Key, 0, len(r.byID))
	for _, k := range r.byID {
		all = append(all, k)
	}
	return all
}

// Ref names a key as callers do.
type Ref struct {
	Namespace keyring.Namespace
	Name      string
}

// admit finds the key and lets the caller through the door. A caller without the right gets the same answer whether the key
// exists or not.
func (s *Service) admit(ctx context.Context, c policy.Caller, a policy.Action, ref Ref, parts ...envelope.Part) (keyring.Key, *guard.Permit, error) {
	k, ok := s.Lookup(ref.Namespace, ref.Name)
	if !ok && !c.IsZero() && keyring.ValidKeyName(ref.Name) {
		if err := s.CatchUp(ctx); err != nil {
			return k, nil, err
		}
		k, ok = s.Lookup(ref.Namespace, ref.Name)
	}
	res := policy.Resource{Namespace: string(ref.Namespace), Key: ref.Name}
	if ok {
		res = Resource(k)
	}
	res.Context = contextOf(parts)
	p, err := s.guard.Admit(ctx, c, a, res)
	if err != nil {
		return keyring.Key{}, nil, err
	}
	if !ok {
		return k, nil, fault.New(fault.NotFound, "key "+ref.Name)
	}
	return k, p, nil
}

// contextOf is the associated data as policy sees it. A label that stands twice means nothing.
func contextOf(parts []envelope.Part) map[string]string {
	if len(parts) == 0 {
		return nil
	}
	out, twice := make(map[string]string, len(parts)), map[string]bool{}
	for _, p := range parts {
		_, twice[p.Label] = out[p.Label]
		out[p.Label] = string(p.Value)
	}
	for label, is := range twice {
		if is {
			delete(out, label)
		}
	}
	return out
}

// Resource is how policy sees a key.
func Resource(k keyring.Key) policy.Resource {
	return policy.Resource{Namespace: string(k.Namespace), Key: k.Name, Labels: k.Labels}
}

// update changes one key's record under the condition that nobody else did, and the extra conditions and writes; it reads
// again and repeats when only the key's own record was in the way. An edit that changes nothing writes nothing.
func (s *Service) update(ctx context.Context, p *guard.Permit, id keyring.KeyID, detail map[string]string, edit func(keyring.Key) (keyring.Key, change, error)) (keyring.Key, error) {
	for {
		k, rev, err := s.read(ctx, id)
		if err != nil {
			return k, err
		}
		next, with, err := edit(k)
		if err != nil {
			with.takeBack()
			return k, err
		}
		value, err := json.Marshal(next)
		if err != nil {
			with.takeBack()
			return k, fmt.Errorf("encode key %s: %w", id, err)
		}
		if was, err := json.Marshal(k); err == nil && bytes.Equal(was, value) && len(with.writes) == 0 {
			return k, nil
		}
		conds := append([]guard.Cond{{Path: keyPath(k), Rev: rev}}, with.conds...)
		writes := append([]guard.Write{{Path: keyPath(k), Value: value}}, with.writes...)
		at, err := s.settle(ctx, keyPath(k), value)(p.Commit(ctx, conds, writes, detail))
		if fault.CodeOf(err) == fault.Conflict {
			with.takeBack()
			if _, now, rerr := s.read(ctx, id); rerr == nil && now != rev {
				continue
			}
		}
		if err != nil {
			return k, err
		}
		return next, s.await(ctx, at)
	}
}

// settle answers a commit of unknown outcome by reading again: a record that holds what was to be written has been written. Otherwise
// the outcome stays unknown, as it may come yet; nothing is tried again blindly.
func (s *Service) settle(ctx context.Context, path string, value []byte) func(store.Rev, error) (store.Rev, error) {
	return func(rev store.Rev, err error) (store.Rev, error) {
		if fault.CodeOf(err) != fault.OutcomeUnknown {
			return rev, err
		}
		if r, rerr := s.guard.Get(ctx, path); rerr == nil && bytes.Equal(r.Value, value) {
			return r.Rev, nil
		}
		return rev, err
	}
}

// change is what goes into the same commit as a key's record.
type change struct {
	conds  []guard.Cond
	writes []guard.Write
	undo   func() // takes back what was made outside of the store, when the commit will certainly not be; nil: nothing was
}

// takeBack is for a change whose commit was not tried, or was refused. One of unknown outcome may be there yet, so it stays.
func (c change) takeBack() {
	if c.undo != nil {
		c.undo()
	}
}

// and adds what another change has.
func (c change) and(o change) change {
	undo := c.undo
	if undo == nil { // one of the two makes something at most
		undo = o.undo
	}
	return change{append(c.conds, o.conds...), append(c.writes, o.writes...), undo}
}

// read gets a key's record from the store, not from the ring.
func (s *Service) read(ctx context.Context, id keyring.KeyID) (keyring.Key, store.Rev, error) {
	k, ok := s.Key(id)
	if !ok {
		if err := s.CatchUp(ctx); err != nil {
			return k, 0, err
		}
		if k, ok = s.Key(id); !ok {
			return k, 0, fault.New(fault.NotFound, "key "+string(id))
		}
	}
	rec, err := s.guard.Get(ctx, keyPath(k))
	if err != nil {
		return k, 0, err
	}
	var fresh keyring.Key
	if err := json.Unmarshal(rec.Value, &fresh); err != nil {
		return k, 0, fault.Wrap(fault.RecordTampered, rec.Path, err)
	}
	return fresh, rec.Rev, nil
}

// Record reads a key linearizably, with the condition that it did not change since; for joins and gates.
func (s *Service) Record(ctx context.Context, id keyring.KeyID) (keyring.Key, guard.Cond, error) {
	k, rev, err := s.read(ctx, id)
	return k, guard.Cond{Path: keyPath(k), Rev: rev}, err
}

func keyPath(k keyring.Key) string { return keyPrefix + string(k.Namespace) + "/" + string(k.ID) }

func nameOf(ns keyring.Namespace, name string) string {
	return strings.Join([]string{string(ns), name}, "/")
}
