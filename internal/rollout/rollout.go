// Package rollout drives rotations: it is the only committer of gated steps, at the one server that leads. It looks at a key whenever the key, its members or
// the clock may have opened a gate, and takes every step whose gate holds.
package rollout

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/rotation"
)

// tick is how often clocks are looked at: leases that end, margins, windows.
const tick = 100 * time.Millisecond

// maxConflicts is how often in a row a step is decided anew at once.
const maxConflicts = 16

// Floors keeps the floors of data sets.
type Floors interface {
	// NotReady names the data sets that would refuse ciphertext of the key's target, and starts to lower their floors.
	NotReady(ctx context.Context, k keyring.Key) []string
}

// Config is what a Loop needs.
type Config struct {
	KMS    *kms.Service
	Fleet  *fleet.Fleet
	Floors Floors // nil: there are no data sets
	// Lead says whether this server takes the steps, and the condition under which each of them stands. nil: it always does.
	Lead func() (guard.Cond, bool)
	Now  func() time.Time
	Log  *slog.Logger
	// Elapsed is a clock that only goes forward, whatever is done to Now's. nil: since New.
	Elapsed func() time.Duration
}

// Loop is the loop.
type Loop struct {
	Config
	wake     chan struct{}
	nextLook time.Duration // of schedules, by Elapsed; of Run's goroutine

	mu       sync.Mutex // guards dirty and attempts
	dirty    map[keyring.KeyID]bool
	attempts map[keyring.KeyID]attempt // to begin scheduled rotations; of keys with a schedule

	due       due                        // Run's
	scheduled map[keyring.KeyID]struct{} // Run's: the keys that have a schedule
}

// New makes a loop; Run starts it.
func New(c Config) *Loop {
	if c.Elapsed == nil {
		start := time.Now()
		c.Elapsed = func() time.Duration { return time.Since(start) }
	}
	return &Loop{
		Config: c, wake: make(chan struct{}, 1), dirty: map[keyring.KeyID]bool{}, due: due{at: map[keyring.KeyID]time.Time{}},
		attempts: map[keyring.KeyID]attempt{}, scheduled: map[keyring.KeyID]struct{}{},
	}
}

// Look asks for a key to be looked at.
func (l *Loop) Look(id keyring.KeyID) {
	l.mu.Lock()
	l.dirty[id] = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run takes steps until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	for k := range l.KMS.All() {
		l.note(k)
	}
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
			l.mu.Lock()
			ids := l.dirty
			l.dirty = map[keyring.KeyID]bool{}
			l.mu.Unlock()
			for id := range ids {
				l.look(ctx, id)
			}
		case <-clock.C:
			l.schedules(ctx)
			for _, id := range l.due.pop(l.Now()) {
				l.look(ctx, id)
			}
		}
	}
}

// note takes over when the clock may open a gate of a key, and whether it has a schedule.
func (l *Loop) note(k keyring.Key) {
	l.due.note(k)
	if k.Schedule.IsZero() {
		delete(l.scheduled, k.ID)
	} else {
		l.scheduled[k.ID] = struct{}{}
	}
}

// look takes the steps of one key until it has to wait.
func (l *Loop) look(ctx context.Context, id keyring.KeyID) {
	defer func() {
		if k, ok := l.KMS.Key(id); ok {
			l.note(k)
		}
	}()
	for conflicts := 0; ctx.Err() == nil; {
		again, err := l.step(ctx, id)
		switch {
		case err == nil && again:
			continue
		case fault.CodeOf(err) == fault.Conflict && conflicts < maxConflicts:
			conflicts++
			continue // key or membership changed; decide again
		case fault.CodeOf(err) == fault.Conflict:
			// memory is behind the store; the next tick looks again
		case err != nil && fault.CodeOf(err) != fault.GateClosed && ctx.Err() == nil:
			l.Log.WarnContext(ctx, "rotation step failed", "key_id", id, "error", err)
		}
		return
	}
}

// errNothing ends a step that found nothing to do in the record as it is now.
var errNothing = errors.New("rollout: nothing to do")

// step takes one step if its gate holds.
func (l *Loop) step(ctx context.Context, id keyring.KeyID) (again bool, err error) {
	k, ok := l.KMS.Key(id)
	if !ok {
		return false, nil
	}
	now := l.Now().UTC()
	if next, _ := rotation.Next(k, nil, now); next == rotation.StepNone || l.waits(k) { // what there is to do depends on no member
		return false, nil
	}
	members, cond := l.Fleet.Members(id)
	next, late := rotation.Next(k, members, now)
	if next == rotation.StepWait { // each server fences the members whose leases it grants, the others those of a dead server
		return l.fence(ctx, k, late)
	}
	lead, leads := l.lead()
	if !leads {
		return false, nil
	}
	switch next {
	case rotation.StepReplace:
		_, err = l.KMS.Replace(ctx, id, lead)
	case rotation.StepDistribute:
		_, err = l.KMS.Step(ctx, id, lead, rotation.Distribute)
	case rotation.StepPromote:
		if v, err := k.Version(k.Target); err == nil && rotation.Emergency(k) {
			late = rotation.Waiting(members, v.Distributed) // they fetch it when they meet it
		}
		if l.Floors != nil && len(l.Floors.NotReady(ctx, k)) > 0 {
			return false, nil // looked at again at the next tick
		}
		_, err = l.KMS.Step(ctx, id, cond, func(k keyring.Key, now time.Time) (keyring.Key, error) {
			return rotation.Promote(k, members, now, rotation.Emergency(k))
		}, lead)
		if err == nil {
			l.Log.InfoContext(ctx, "promoted", "key", k.Name, "version", k.Target, "emergency", rotation.Emergency(k), "behind", late)
		}
	case rotation.StepSettle:
		_, err = l.KMS.Step(ctx, id, lead, func(k keyring.Key, now time.Time) (keyring.Key, error) {
			next, changed := rotation.Settle(k, now)
			if !changed {
				return k, errNothing
			}
			return next, nil
		})
	default:
		return false, nil
	}
	if errors.Is(err, errNothing) {
		return false, nil
	}
	return err == nil, err
}

// waits says whether a rotation waits for members that are not fenced. It is asked with every acknowledgement, of ten thousand members too.
func (l *Loop) waits(k keyring.Key) bool {
	v, err := k.Version(k.Target)
	if err != nil || v.Phase == keyring.PhaseStaged || rotation.Emergency(k) || k.Rotation.Defaults().Silence == keyring.Fence {
		return false
	}
	return l.Fleet.Lags(k.ID, v.Distributed)
}

// lead says whether this server takes steps, and under which condition.
func (l *Loop) lead() (guard.Cond, bool) {
	if l.Lead == nil {
		return guard.Cond{}, true
	}
	return l.Lead()
}

// fence makes the silent members leave that a rotation waits for, where the key says so.
func (l *Loop) fence(ctx context.Context, k keyring.Key, late []string) (again bool, err error) {
	if k.Rotation.Defaults().Silence != keyring.Fence {
		return false, nil
	}
	for _, name := range l.Fleet.Silent(k.ID, late) {
		if err := l.Fleet.Drop(ctx, k.ID, name); err != nil {
			return false, err
		}
		again = true
	}
	return again, nil
}

// Progress says how far a key's rotation is.
type Progress struct {
	Key     keyring.Key
	Step    rotation.Step
	Waiting []string // members, or rotation.MarginName
	Members int
	Behind  []string // members that have not acknowledged the last promotion
	Paused  bool     // waited longer than MaxWait

	Schedule Schedule
}

// Progress looks at a key without changing anything.
func (l *Loop) Progress(ctx context.Context, k keyring.Key) Progress {
	members, _ := l.Fleet.Members(k.ID)
	now := l.Now()
	p := Progress{Key: k, Members: len(members), Schedule: l.schedule(k, now)}
	p.Step, p.Waiting = rotation.Next(k, members, now)
	if p.Step == rotation.StepPromote && l.Floors != nil {
		if sets := l.Floors.NotReady(ctx, k); len(sets) > 0 {
			p.Step, p.Waiting = rotation.StepWait, sets
		}
	}
	if v, err := k.Version(k.Primary); err == nil {
		p.Behind = rotation.Waiting(members, v.Promoted)
	}
	p.Paused = k.Target != 0 && now.Sub(k.Since) > k.Rotation.Defaults().MaxWait
	return p
}
