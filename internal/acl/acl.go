// Package acl keeps what clients of Vault come in with: policies about paths, tokens with their parents, uses and ends, and the ways to log in
// for one (AppRole, passwords, JSON Web Tokens, client certificates). Rights are decided by package policy, behind the guard; a token's caller
// brings its policies along. Of tokens and secrets only hashes are kept. Records are read from memory, which the watch of the store keeps up.
package acl

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// Prefixes of records.
const (
	prefix       = "acl/"
	policyPrefix = "acl/policy/" // NAMESPACE/NAME
	tokenPrefix  = "acl/token/"  // SLOT
	wrapPrefix   = "acl/wrap/"   // SLOT
	entryPrefix  = "acl/entry/"  // MOUNT'S ACCESSOR/KIND/NAME
	secretPrefix = "acl/secret/" // SLOT
)

// Config is what a Service needs.
type Config struct {
	Guard     *guard.Guard
	Authority *authn.Authority
	Mounts    *mounts.Service
	Now       func() time.Time
	Log       *slog.Logger // default: none

	// Lead says whether this server deletes what is over, and the condition under which it does. nil: it always does.
	Lead func() (guard.Cond, bool)

	// OnEnded, if set, is told when a token or policy changed so that somebody may not be let in any more. Set it before Run.
	OnEnded func()
}

// Service keeps policies, tokens and ways to log in. Safe for concurrent use.
type Service struct {
	Config
	home string // the namespace that the others are in

	mu       sync.RWMutex // guards what follows
	policies guard.Table[storedPolicy]
	tokens   *shelf[token]
	wraps    *shelf[wrap]
	entries  guard.Table[entry]
	secrets  *shelf[secretID]
	index    indexes
	compiled map[string]*policy.ACL // by the policies of a token

	signers signers
	from    store.Rev                     // that the tables were read at
	heard   atomic.Uint64                 // the last commit that is in them
	moved   atomic.Pointer[chan struct{}] // closed when heard moves on
}

// New opens the service.
func New(ctx context.Context, c Config) (*Service, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		Config: c, home: c.Authority.Namespace, policies: guard.NewTable[storedPolicy](policyPrefix), entries: guard.NewTable[entry](entryPrefix), index: newIndexes(),
		compiled: map[string]*policy.ACL{},
	}
	s.tokens = newShelf(tokenPrefix, "tokens", maxTokens, c.Now, s.over, token.groups)
	s.wraps = newShelf(wrapPrefix, "wrapped answers", maxWraps, c.Now, func(w wrap) bool { return !c.Now().Before(w.Expires) }, wrap.groups)
	s.secrets = newShelf(secretPrefix, "secret IDs", maxSecrets, c.Now, func(r secretID) bool { return r.over(c.Now()) }, secretID.groups)
	moved := make(chan struct{})
	s.moved.Store(&moved)
	records, rev, err := c.Guard.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("read tokens and policies: %w", err)
	}
	s.from = rev
	s.heard.Store(uint64(rev))
	for _, r := range records {
		if err := s.take(guard.Change{Record: r}, true); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run follows what this server and others commit until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	return s.Guard.Follow(ctx, prefix, s.from, func(changes []guard.Change) error {
		for _, c := range changes {
			if err := s.take(c, true); err != nil {
				return err
			}
		}
		s.hears(changes[len(changes)-1].Rev)
		return nil
	})
}

// Seen is a revision up to which the tables have every commit.
func (s *Service) Seen() store.Rev {
	heard := store.Rev(s.heard.Load())
	return s.Guard.SeenBy(strings.TrimSuffix(prefix, "/"), heard)
}

// hears notes how far the tables are.
func (s *Service) hears(rev store.Rev) {
	s.heard.Store(uint64(rev))
	next := make(chan struct{})
	close(*s.moved.Swap(&next))
}

// behind is how long a question waits for what another server has committed a moment ago.
const behind = 2 * time.Second

// await waits until the tables have what the store had when it was called, so that what another server made a moment ago is found here by any name.
// After a while it goes on without.
func (s *Service) await(ctx context.Context) error {
	last, err := s.Guard.CaughtUp(ctx, strings.TrimSuffix(prefix, "/"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, behind)
	defer cancel()
	for {
		moved := *s.moved.Load()
		if uint64(last) <= s.heard.Load() {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}

// take applies a change, and tells of what it can have ended.
func (s *Service) take(c guard.Change, watched bool) error {
	ends, err := s.apply(c, watched)
	if err == nil && ends && s.OnEnded != nil {
		s.OnEnded()
	}
	return err
}

func (s *Service) apply(c guard.Change, watched bool) (ends bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.reindex(c)()
	for _, takes := range []func(guard.Change, bool) (bool, error){s.tokens.Takes, s.secrets.Takes, s.wraps.Takes, s.entries.Takes, s.policies.Takes} {
		if ok, err := takes(c, watched); ok || err != nil {
			ends = c.Deleted && strings.HasPrefix(c.Path, tokenPrefix) || strings.HasPrefix(c.Path, policyPrefix)
			return ends, err
		}
	}
	return false, nil
}

// commit writes through a permit; what was written counts here at once, and elsewhere as soon as the watch brings it.
func (s *Service) commit(ctx context.Context, p *guard.Permit, conds []guard.Cond, writes []guard.Write, detail map[string]string) error {
	rev, err := p.Commit(ctx, conds, writes, detail)
	if fault.CodeOf(err) == fault.Conflict {
		for _, w := range writes { // another server was faster; what it wrote is looked at before the next try
			if err := s.refresh(ctx, w.Path); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	for _, w := range writes {
		if err := s.take(guard.Change{Record: guard.Record{Path: w.Path, Value: w.Value, Rev: rev}, Deleted: w.Delete}, false); err != nil {
			return err
		}
	}
	return nil
}

// refresh brings one record into the tables before the watch does.
func (s *Service) refresh(ctx context.Context, path string) error {
	rec, err := s.Guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return s.take(guard.Change{Record: rec}, false)
}

// again repeats a step while somebody else changes what it changes.
func again(ctx context.Context, step func() error) error {
	for {
		if err := step(); fault.CodeOf(err) != fault.Conflict {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, "", err)
		}
	}
}
