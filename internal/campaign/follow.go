package campaign

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is how a server learns of data sets and campaigns that other servers made and changed, and how the work goes to the one that
// leads.

// glance is how often who leads is looked at.
const glance = 200 * time.Millisecond

// leads says whether this server does the work, and under which condition.
func (s *Service) leads() ([]guard.Cond, bool) {
	if s.Lead == nil {
		return nil, true
	}
	c, ok := s.Lead()
	return []guard.Cond{c}, ok
}

// follow brings the records under a prefix to see, from a revision on, until ctx ends.
func (s *Service) follow(ctx context.Context, prefix string, after store.Rev, see func(guard.Change) error) error {
	return s.Guard.Follow(ctx, prefix, after, func(changes []guard.Change) error {
		for _, c := range changes {
			if err := see(c); err != nil {
				return err
			}
		}
		return nil
	})
}

// seeSet takes over a data set that was registered or changed, by this server or another.
func (s *Service) seeSet(c guard.Change) error {
	defer s.reached(c.Rev)
	if c.Deleted {
		return nil // a data set's record is never deleted
	}
	var d DataSet
	if err := json.Unmarshal(c.Value, &d); err != nil {
		return fault.Wrap(fault.RecordTampered, c.Path, err)
	}
	t, known := s.named(d.Name)
	if !known {
		t = &set{d: d, rev: c.Rev}
		var err error
		if t.adapter, err = s.connect(d); err != nil {
			return err
		}
		s.mu.Lock()
		s.sets[d.Name] = t
		s.mu.Unlock()
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Rev > t.rev {
		t.d, t.rev = d, c.Rev
	}
	return nil
}

// reached notes that every change of a data set up to a revision is known.
func (s *Service) reached(rev store.Rev) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = max(s.known, rev)
	close(s.learnt)
	s.learnt = make(chan struct{})
}

// catchUp returns once every data set is known that was registered before the call, with any server: a census must not miss one.
func (s *Service) catchUp(ctx context.Context) error {
	rev, err := s.Guard.CaughtUp(ctx, strings.TrimSuffix(setPrefix, "/"))
	if err != nil {
		return err
	}
	for {
		s.mu.Lock()
		known, learnt := s.known, s.learnt
		s.mu.Unlock()
		if known >= rev {
			return nil
		}
		select {
		case <-learnt:
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// seeCampaign takes over a campaign that another server began or moves. What this server has stored it knows.
func (s *Service) seeCampaign(c guard.Change) error {
	if c.Deleted {
		return nil
	}
	var next Campaign
	if err := json.Unmarshal(c.Value, &next); err != nil {
		return fault.Wrap(fault.RecordTampered, c.Path, err)
	}
	s.mu.Lock()
	r := s.campaigns[next.ID]
	if r == nil {
		r = &running{}
		s.campaigns[next.ID] = r
	}
	s.mu.Unlock()
	r.mu.Lock()
	if c.Rev > r.rev {
		r.c, r.rev = next, c.Rev
	}
	r.mu.Unlock()
	s.poke()
	return nil
}
