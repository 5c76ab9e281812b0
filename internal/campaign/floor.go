package campaign

import (
	"context"
	"fmt"
	"slices"

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
	for _, v := range k.Versions {
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
		d, err := s.edit(ctx, t, []guard.Cond{cond}, func(d DataSet) DataSet {
			d.Floor = Floor{Key: string(k.ID), Incarnation: k.Epoch.Incarnation, Sequence: d.Floor.Sequence + 1, Reject: reject}
			d.Raised = false
			return d
		})
		if fault.CodeOf(err) == fault.Conflict {
			continue
		}
		if err != nil {
			return err
		}
		if err := t.adapter.SetFloor(ctx, d.Floor); err != nil {
			return err
		}
		_, err = s.edit(ctx, t, nil, func(d DataSet) DataSet {
			d.Raised = true
			return d
		})
		return err
	}
}

// NotReady names the data sets that would refuse ciphertext of the key's target, or may, and starts to lower their floors. A
// promotion waits for them.
func (s *Service) NotReady(ctx context.Context, k keyring.Key) []string {
	v, err := k.Version(k.Target)
	if err != nil || v.Phase != keyring.PhaseDecryptOnly {
		return nil // a version that never was demoted is in no floor
	}
	var names []string
	for _, t := range s.of(k.ID) {
		d := t.now()
		if d.Floor.Sequence == 0 || d.Raised && !slices.Contains(d.Floor.Reject, hexHandle(v.Handle)) {
			continue
		}
		names = append(names, "data set "+d.Name)
		s.lower(ctx, t)
	}
	return names
}

// lower brings a floor down in the background, one at a time for each data set.
func (s *Service) lower(ctx context.Context, t *set) {
	name := t.now().Name
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lowering[name] {
		return
	}
	s.lowering[name] = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	go func() { // ends when the data set has answered, or after callTime
		defer cancel()
		if err := s.raise(ctx, t); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "floor not lowered", "data_set", name, "error", err)
		}
		s.mu.Lock()
		delete(s.lowering, name)
		s.mu.Unlock()
	}()
}
