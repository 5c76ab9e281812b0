package server

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/store"
)

// newKeeper makes this server's session among those that share the store. It does not run yet.
func (s *Server) newKeeper() *replica.Keeper {
	return replica.New(replica.Config{
		Store: s.store, Version: Version, TTL: s.config.SessionTTL, Now: s.config.Now, Log: s.config.Log,
		Caught: func(ctx context.Context, rev store.Rev) error {
			r := s.rooms.Load()
			return errors.Join(r.kms.Reached(ctx, rev), r.fleet.Reached(ctx, rev))
		},
		Seen: func() store.Rev {
			if r := s.rooms.Load(); r != nil {
				return min(r.kms.Seen(), r.acl.Seen(), r.mounts.Seen(), r.authority.Seen())
			}
			return 0
		},
	})
}

// introduce stores the session, under the address that clients know.
func (s *Server) introduce(ctx context.Context) error {
	if s.keeper == nil {
		if err := replica.MarkFormat(ctx, s.store); err != nil {
			return err
		}
		s.marked.Store(true)
		return nil
	}
	s.keeper.Introduce(s.Advertised(), s.issuer())
	if err := s.keeper.Start(ctx); err != nil {
		return err
	}
	s.compareIssuers(ctx)
	return nil
}

// settled returns once the session counts: from then on this server may protect and grant leases.
func (s *Server) settled(ctx context.Context) error {
	if s.keeper == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*s.config.SessionTTL)
	defer cancel()
	return s.keeper.Await(ctx)
}

// lead says whether this server leads, for the loops that one server runs for all; nil when there is no other.
func (s *Server) lead() func() (guard.Cond, bool) {
	if s.keeper == nil {
		return nil
	}
	return func() (guard.Cond, bool) {
		c, ok := s.keeper.Lead()
		return guard.Cond{Path: c.Key, Rev: c.Rev}, ok
	}
}

// fresh says whether this server may act on its memory; nil when there is no other.
func (s *Server) fresh() func() bool {
	if s.keeper == nil {
		return nil
	}
	return s.keeper.Fresh
}

// heard waits until no server acts on memory older than a revision; nil when there is no other.
func (s *Server) heard() func(context.Context, store.Rev) error {
	if s.keeper == nil {
		return nil
	}
	return func(ctx context.Context, rev store.Rev) error {
		if len(s.keeper.Behind(rev)) == 0 {
			return nil
		}
		s.keeper.Hurry()
		return s.keeper.Heard(ctx, rev)
	}
}

// lag is how old a key set may be that this server hands out.
func (s *Server) lag() time.Duration {
	if s.keeper == nil {
		return 0
	}
	return s.config.SessionTTL
}

// whenFresh answers strangers only while this server's memory is not older than its session.
func (s *Server) whenFresh(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.keeper != nil && !s.keeper.Fresh() {
			http.Error(w, "this server has lost the store; ask another", http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// resign ends the session and gives up the lead, so that nobody waits for its end.
func (s *Server) resign(ctx context.Context) {
	if s.keeper == nil {
		return
	}
	if err := s.keeper.Close(ctx); err != nil {
		s.config.Log.Warn("session left to end by itself", "error", err)
	}
}

// Leads says whether this server leads those that share its store.
func (s *Server) Leads() bool {
	if s.keeper == nil {
		return true
	}
	_, ok := s.keeper.Lead()
	return ok
}

// knows says whether every server on the store knows a format of records.
func (s *Server) knows(format int) bool {
	if s.keeper == nil {
		return s.marked.Load()
	}
	return s.keeper.Format() >= format
}

// issuer is what access tokens name as their issuer.
func (s *Server) issuer() string { return cmp.Or(s.config.Issuer, "https://"+s.Advertised()) }

// maxInvited bounds the addresses in a join token, in bytes and in number (identity.Addresses).
const (
	maxInvitedBytes = 1 << 10
	maxInvited      = 16
)

// inviteTo is the list of addresses that a join token names: this server's, and those of the others that live, once every server on the
// store can read such a token.
func (s *Server) inviteTo() string {
	all := []string{s.Advertised()}
	if s.keeper == nil || !s.knows(replica.FormatManyAddresses) {
		return all[0]
	}
	for _, other := range s.keeper.Sessions() {
		one, err := identity.Addresses(other.Address) // anybody who can write the store may have put it there
		if other.Alive && err == nil && len(one) == 1 && len(all) < maxInvited && !slices.Contains(all, other.Address) {
			all = append(all, other.Address)
		}
	}
	for len(strings.Join(all, ",")) > maxInvitedBytes && len(all) > 1 {
		all = all[:len(all)-1]
	}
	return strings.Join(all, ",")
}

// compareIssuers warns of servers whose access tokens name another issuer: who verifies those of one refuses those of the other.
func (s *Server) compareIssuers(ctx context.Context) {
	for _, other := range s.keeper.Sessions() {
		if other.Alive && !other.Self && other.Issuer != "" && other.Issuer != s.issuer() {
			s.config.Log.WarnContext(ctx, "access tokens of another server name another issuer: set the same issuer at all", "server", other.Address, "its", other.Issuer, "ours", s.issuer())
		}
	}
}
