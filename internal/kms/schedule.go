package kms

import (
	"context"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
)

// Pace is when a key rotates; nil: as it was.
type Pace struct {
	Schedule *keyring.Schedule // by itself; the zero schedule: never
	Margin   *time.Duration    // how long a new version is shown before it protects; a version that is shown already goes by the new one
}

// apply sets what is said.
func (p Pace) apply(k *keyring.Key) error {
	set(&k.Schedule, p.Schedule)
	set(&k.Rotation.Margin, p.Margin)
	return k.Validate()
}

// SetSchedule says when a key rotates by itself, and how long a new version is shown first, in place of what was said before. fault.Invalid.
func (s *Service) SetSchedule(ctx context.Context, c policy.Caller, ref Ref, to Pace) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActConfigure, ref)
	if err != nil {
		return k, err
	}
	if to.Schedule != nil {
		if err := s.agreed(replica.FormatPages, "a schedule of rotations"); err != nil {
			return k, err
		}
	}
	detail := map[string]string{}
	say(detail, "schedule", to.Schedule)
	say(detail, "margin", to.Margin)
	return s.update(ctx, p, k.ID, detail, func(k keyring.Key) (keyring.Key, change, error) {
		k = k.Clone()
		return k, change{}, to.apply(&k)
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
