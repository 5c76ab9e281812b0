package campaign

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
)

// A floor is a list of versions that a data set refuses. A list of what it accepts would have to be extended before each promotion,
// so that a data set that is down would stop every rotation. Only a rollback needs the floor to be lowered first.

func hexHandle(h uint32) string { return fmt.Sprintf("%08x", h) }

// rejected are the versions that nobody protects with any more: demoted, retired and destroyed, but for the target of a rollback.
func rejected(k keyring.Key) []string {
	var out []string
	for v := range k.All() {
		switch v.Phase {
		case keyring.PhaseDecryptOnly, keyring.PhaseRetired, keyring.PhaseDestroyed:
			if v.Number != k.Target {
				out = append(out, hexHandle(v.Handle))
			}
		}
	}
	slices.Sort(out)
	return out
}

// raise brings the floor of a data set to what the key says now, and returns when the data set has confirmed it. The intent is
// committed first, under the condition that the key did not change, so that a rollback that begins meanwhile sees it.
func (s *Service) raise(ctx context.Context, t *set) error {
	t.order.Lock()
	defer t.order.Unlock()
	for {
		k, cond, err := s.KMS.Record(ctx, t.now().Key)
		if err != nil {
			return err
		}
		reject := rejected(k)
		if d := t.now(); d.Raised && slices.Equal(d.Floor.Reject, reject) {
			return nil
		}
		d := t.now()
		if d.Floor.Sequence == 0 || d.Floor.Incarnation != k.Epoch.Incarnation || !slices.Equal(d.Floor.Reject, reject) { // else: sent before, not confirmed
			d, err = s.edit(ctx, t, []guard.Cond{cond}, func(d DataSet) DataSet {
				d.Floor = Floor{Key: string(k.ID), Incarnation: k.Epoch.Incarnation, Sequence: d.Floor.Sequence + 1, Reject: reject}
				d.Raised = false
				return d
			})
			if fault.CodeOf(err) == fault.Conflict && ctx.Err() == nil {
				continue
			}
			if err != nil {
				return err
			}
		}
		if err := t.adapter.SetFloor(ctx, d.Floor); err != nil {
			return err
		}
		_, err = s.edit(ctx, t, nil, func(now DataSet) DataSet {
			if now.Floor.Sequence == d.Floor.Sequence && now.Floor.Incarnation == d.Floor.Incarnation { // else another server has gone on
				now.Raised = true
			}
			return now
		})
		if fault.CodeOf(err) == fault.Conflict && ctx.Err() == nil {
			continue
		}
		return err
	}
}

// seenTime bounds the wait for data sets that other servers changed.
const seenTime = 2 * time.Second

// NotReady names the data sets that would refuse ciphertext of the key's target, or may, and starts to lower their floors. A
// promotion waits for them. It looks at every floor that was ever meant to be sent for the key as it is now, by whatever server: one that has not
// arrived yet would arrive after the promotion. (A floor is meant under the condition that the key has not changed.)
func (s *Service) NotReady(ctx context.Context, k keyring.Key) []string {
	v, err := k.Version(k.Target)
	if err != nil || v.Phase != keyring.PhaseDecryptOnly {
		return nil // a version that never was demoted is in no floor
	}
	ctx, cancel := context.WithTimeout(ctx, seenTime)
	defer cancel()
	if err := s.catchUp(ctx); err != nil {
		return []string{"data sets"}
	}
	var names []string
	for _, t := range s.of(k.ID) {
		d := t.now()
		if d.Floor.Sequence == 0 || d.Raised && !slices.Contains(d.Floor.Reject, hexHandle(v.Handle)) {
			continue
		}
		names = append(names, "data set "+d.Name)
		s.mu.Lock()
		if _, asked := s.lowering[d.Name]; !asked {
			s.lowering[d.Name] = false // Run does it
		}
		s.mu.Unlock()
		s.poke()
	}
	return names
}

// toLower takes the data sets whose floor is to be lowered and is not yet being lowered.
func (s *Service) toLower() (all []*set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, underWay := range s.lowering {
		if !underWay {
			s.lowering[name] = true
			all = append(all, s.sets[name])
		}
	}
	return all
}

// lower brings a floor down, one at a time for each data set. It gives up after callTime; a rollback that still waits asks again.
func (s *Service) lower(ctx context.Context, t *set) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	name := t.now().Name
	if err := s.raise(ctx, t); err != nil && ctx.Err() == nil {
		s.Log.WarnContext(ctx, "floor not lowered", "data_set", name, "error", err)
		pause(ctx, retryAfter)
	}
	s.mu.Lock()
	delete(s.lowering, name)
	s.mu.Unlock()
}
