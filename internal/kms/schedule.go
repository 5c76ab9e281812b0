package kms

import (
	"context"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
)

// SetSchedule says when a key rotates by itself, in place of what was said before; the zero schedule: never. fault.Invalid.
func (s *Service) SetSchedule(ctx context.Context, c policy.Caller, ref Ref, to keyring.Schedule) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActConfigure, ref)
	if err != nil {
		return k, err
	}
	if err := s.agreed(replica.FormatPages, "a schedule of rotations"); err != nil {
		return k, err
	}
	return s.update(ctx, p, k.ID, map[string]string{"schedule": to.String()}, func(k keyring.Key) (keyring.Key, change, error) {
		k = k.Clone()
		k.Schedule = to
		return k, change{}, k.Validate()
	})
}

// RotateDue begins the rotation that a key's schedule asks for, for rollout. due says why, of the record as it is now; when it says nothing, nothing
// is done: another server was faster. What refuses a rotation that somebody asks for refuses this one.
func (s *Service) RotateDue(ctx context.Context, id keyring.KeyID, due func(keyring.Key, time.Time) string, conds ...guard.Cond) (begun bool, err error) {
	k, _, err := s.read(ctx, id)
	if err != nil {
		return false, err
	}
	p, detail := s.guard.System("rollout", policy.ActRotate, Resource(k)), map[string]string{}
	_, err = s.update(ctx, p, id, detail, func(k keyring.Key) (keyring.Key, change, error) {
		now := s.now().UTC()
		why := due(k, now)
		if begun = why != ""; !begun {
			return k, change{}, nil
		}
		next, made, err := s.further(ctx, k, detail, now, s.nextVersion)
		detail["schedule"] = why
		for _, c := range conds {
			if c.Path != "" {
				made.conds = append(made.conds, c)
			}
		}
		return next, made, err
	})
	return begun && err == nil, err
}
