// Package kms holds the use cases on keys. Each begins with guard.Admit and writes through the permit alone. Reads go to an
// immutable ring of all keys that is replaced as a whole whenever the store's watch brings a change.
package kms

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
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
	// Heard returns once no server acts on memory that is older than a revision. nil: there are no others.
	Heard func(ctx context.Context, rev store.Rev) error
	// Quotas says what there is room for; nil: for everything.
	Quotas func() Quotas
	// Floors says what destructions need at least, whatever keys say; nil: what keys say.
	Floors func() Floors
	// Knows says whether every server on the store knows a format of records (package replica); nil: yes. What an older one would get wrong waits for it.
	Knows func(format int) bool
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
	heard func(context.Context, store.Rev) error
	room  func() Quotas
	least func() Floors
	knows func(format int) bool
	ring  atomic.Pointer[ring]
	vault materials

	volumes volumes
	usage   usage
	suites  suite.Policy

	hsm   HSM
	log   *slog.Logger
	sweep chan struct{} // has one when something in the token may have to be destroyed

	tokenUp atomic.Bool // it answered when it was looked at last

	mu      sync.Mutex    // guards swap
	swap    chan struct{} // closed and replaced at each change of the ring
	changed func(keyring.Key)
	narrows func()
}

// New reads all keys. Run must follow to see changes.
func New(ctx context.Context, c Config) (*Service, error) {
	if c.Knows == nil {
		c.Knows = func(int) bool { return true }
	}
	s := &Service{guard: c.Guard, now: c.Now, fresh: c.Fresh, heard: c.Heard, room: c.Quotas, least: c.Floors, knows: c.Knows, swap: make(chan struct{})}
	s.vault.cache, s.volumes.block, s.suites = map[materialID]opened{}, c.Block, c.Suites
	s.hsm, s.log, s.sweep = c.HSM, c.Log, make(chan struct{}, 1)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	records, rev, err := c.Guard.List(ctx, keyPrefix)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	r := (&ring{}).edit()
	r.rev = rev
	all, err := sorted(changesOf(records))
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		st, err := p.key(nil)
		if err != nil {
			return nil, fault.Wrap(fault.RecordTampered, p.path, err)
		}
		st.narrowed = rev
		r.put(st)
	}
	s.ring.Store(&r.ring)
	return s, s.loadUses(ctx)
}

// agreed refuses what servers that do not know a format, which would drop it or take it for something else, may still meet. fault.Unavailable.
func (s *Service) agreed(format int, what string) error {
	if s.knows(format) {
		return nil
	}
	return fault.New(fault.Unavailable, what).
		WithHint("a server of an older build works on the store, or did a moment ago: rotor server status lists them; exchange it and try again")
}

// OnChange sets what is called, from Run's goroutine, with each key that changed. Set it before Run.
func (s *Service) OnChange(f func(keyring.Key)) { s.changed = f }

// OnNarrower sets what is called, from Run's goroutine, when a key allows less than before: somebody may wait to hear that this server knows (narrow).
// Set it before Run.
func (s *Service) OnNarrower(f func()) { s.narrows = f }

// Run follows the store until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	uses := make(chan error, 1)
	go func() {
		defer stop() // the one does not go on without the other
		uses <- s.followUses(ctx)
	}()
	err := s.followKeys(ctx)
	stop()
	return errors.Join(err, <-uses)
}

func (s *Service) followKeys(ctx context.Context) error {
	for changes, err := range s.guard.WatchAll(ctx, keyPrefix, s.ring.Load().rev) {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch keys: %w", err)
		}
		if err := s.apply(ctx, changes); err != nil {
			return err
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
	st := s.ring.Load().find(ns, name)
	if st == nil {
		return keyring.Key{}, false
	}
	return st.key, true
}

// Key finds a key by ID without asking whether anybody may; for the server's own loops.
func (s *Service) Key(id keyring.KeyID) (keyring.Key, bool) {
	st := s.ring.Load().get(id)
	if st == nil {
		return keyring.Key{}, false
	}
	return st.key, true
}

// All goes through every key, in no particular order, without asking whether anybody may; for the server's own loops.
func (s *Service) All() iter.Seq[keyring.Key] {
	return func(yield func(keyring.Key) bool) {
		for st := range s.ring.Load().all() {
			if !yield(st.key) {
				return
			}
		}
	}
}

// Count is how many keys there are.
func (s *Service) Count() int { return s.ring.Load().count }

// Keys returns what All goes through.
func (s *Service) Keys() []keyring.Key {
	return slices.AppendSeq(make([]keyring.Key, 0, s.Count()), s.All())
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
	if !ok && !c.IsZero() {
		var err error
		if k, ok, err = s.lookLate(ctx, ref); err != nil {
			return k, nil, err
		}
	}
	res := resourceOf(ref, k, ok)
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

// lookLate finds a key that this server did not know a moment ago.
func (s *Service) lookLate(ctx context.Context, ref Ref) (keyring.Key, bool, error) {
	if !keyring.ValidKeyName(ref.Name) {
		return keyring.Key{}, false, nil
	}
	if err := s.CatchUp(ctx); err != nil {
		return keyring.Key{}, false, err
	}
	k, ok := s.Lookup(ref.Namespace, ref.Name)
	return k, ok, nil
}

// ResourceOf is how policy sees the key of a name, also where there is none: for a front end that asks for a right before it looks at a request.
func (s *Service) ResourceOf(ctx context.Context, ref Ref) (policy.Resource, error) {
	k, ok := s.Lookup(ref.Namespace, ref.Name)
	if !ok {
		var err error
		if k, ok, err = s.lookLate(ctx, ref); err != nil {
			return policy.Resource{}, err
		}
	}
	return resourceOf(ref, k, ok), nil
}

// KnownResource is ResourceOf by what this server knows.
func (s *Service) KnownResource(ref Ref) policy.Resource {
	k, ok := s.Lookup(ref.Namespace, ref.Name)
	return resourceOf(ref, k, ok)
}

func resourceOf(ref Ref, k keyring.Key, there bool) policy.Resource {
	if there {
		return Resource(k)
	}
	return policy.Resource{Namespace: string(ref.Namespace), Key: ref.Name}
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

func nameOf(ns keyring.Namespace, name string) string {
	return strings.Join([]string{string(ns), name}, "/")
}
