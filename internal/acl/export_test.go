package acl

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
)

// SetRoom makes the room small.
func (s *Service) SetRoom(tokens, wraps, secrets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens.most, s.wraps.most, s.secrets.most = tokens, wraps, secrets
}

// SweepOnce is one turn of Sweep, after one that found what is in last.
func (s *Service) SweepOnce(ctx context.Context, last map[guard.Cond]bool) map[guard.Cond]bool {
	return s.sweep(ctx, last)
}

// HearAgain has the service hear of every token once more, as the watch tells of what this server has written itself.
func (s *Service) HearAgain() error {
	s.mu.RLock()
	rows := maps.Clone(s.tokens.Rows)
	s.mu.RUnlock()
	for slot, r := range rows {
		if r.Deleted {
			continue
		}
		w, err := guard.Put(tokenPrefix+slot, r.Value)
		if err == nil {
			err = s.take(guard.Change{Record: guard.Record{Path: w.Path, Value: w.Value, Rev: r.Rev}}, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Slots are those that tokens are in.
func (s *Service) Slots() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []string
	for slot, r := range s.tokens.Rows {
		if !r.Deleted {
			all = append(all, slot)
		}
	}
	return slices.Sorted(slices.Values(all))
}

// Counted is how many tokens count, by group.
func (s *Service) Counted() map[string]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.tokens.of)
}

// NewRoom is an empty room for so many tokens, and put, which takes a place if it is given.
func NewRoom(most int) (put func(ns, mount, caller string) bool) {
	f := newShelf(tokenPrefix, "tokens", most, time.Now, func(token) bool { return false }, token.groups)
	return func(ns, mount, caller string) bool {
		t := token{Namespace: ns, Mount: mount, Caller: caller}
		if f.admit(t.groups()) != nil {
			return false
		}
		slot, _, err := f.take()
		if err != nil {
			return false
		}
		f.Rows[slot] = guard.Row[token]{Value: t, Rev: 1}
		f.count(slot)
		return true
	}
}
