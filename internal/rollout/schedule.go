package rollout

import (
	"context"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
)

// This file begins the rotations that schedules ask for. Only who leads does, under the condition that it still does, and of the record as it is in
// the store: a version that any server has made since is then the primary or the target, and nothing is due any more.

const (
	// scheduleEvery is how often schedules are looked at.
	scheduleEvery = time.Second
	// scheduleBatch is how many rotations one look begins at most, so that those in flight are not kept waiting.
	scheduleBatch = 16
	// A rotation that is refused is tried again after retryFirst, then after twice as long each time, up to retryMost.
	retryFirst, retryMost = 2 * time.Second, 10 * time.Minute
)

// attempt is what this server remembers of the rotation of a key that its schedule asked for last. It is lost with the process: then the next one
// tries at once, and is refused again or not.
type attempt struct {
	began   time.Duration // on the loop's clock, that of the last rotation which was begun; 0: none
	err     error         // why the last attempt came to nothing; nil: it did not
	retry   time.Duration // on the loop's clock, when it is tried again
	wait    time.Duration
	retryAt time.Time // the same as people read it
}

// schedules begins what is due, if it is time to look.
func (l *Loop) schedules(ctx context.Context) {
	elapsed := l.Elapsed()
	if elapsed < l.nextLook {
		return
	}
	l.nextLook = elapsed + scheduleEvery
	lead, leads := l.lead()
	if !leads {
		return
	}
	begun := 0
	for id := range l.scheduled {
		if begun == scheduleBatch || ctx.Err() != nil {
			return
		}
		k, ok := l.KMS.Key(id)
		if !ok || l.begins(k, l.Now()) == "" || l.rests(k, elapsed) {
			continue
		}
		begun++
		if did, err := l.KMS.RotateDue(ctx, id, l.begins, lead); did || err != nil {
			l.tried(ctx, k, elapsed, err)
		}
	}
}

// begins says why a rotation begins now.
func (l *Loop) begins(k keyring.Key, now time.Time) string {
	uses := uint64(0)
	if k.Schedule.MaxUses > 0 {
		uses = l.KMS.UsesOf(k, k.Primary).Protected
	}
	return rotation.Begins(k, uses, now)
}

// rests says whether a key is left alone for now: a moment ago its rotation was refused, or one was begun at half its time ago or less by a clock
// that nobody can set. However often the time of day jumps, it brings a key no more versions than that.
func (l *Loop) rests(k keyring.Key, elapsed time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.attempts[k.ID]
	if elapsed < a.retry {
		return true
	}
	byTime := k.Schedule.Every > 0 && !l.Now().Before(k.PeriodEnds(l.Now()))
	return a.began > 0 && byTime && elapsed-a.began < k.Schedule.Every/2
}

// tried notes how an attempt went.
func (l *Loop) tried(ctx context.Context, k keyring.Key, elapsed time.Duration, err error) {
	l.mu.Lock()
	a := l.attempts[k.ID]
	switch {
	case err == nil:
		a = attempt{began: elapsed}
	case fault.CodeOf(err) == fault.Conflict: // the lead or the key changed; the next look decides anew
	default:
		a.wait = min(max(2*a.wait, retryFirst), retryMost)
		a.err, a.retry, a.retryAt = err, elapsed+a.wait, l.Now().Add(a.wait)
	}
	l.attempts[k.ID] = a
	l.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		l.Log.WarnContext(ctx, "scheduled rotation not begun", "key", k.Name, "error", err, "retry_in", a.wait)
	} else if err == nil {
		l.Log.InfoContext(ctx, "scheduled rotation begun", "key", k.Name)
	}
}

// Schedule says what the schedule of a key does next.
type Schedule struct {
	Next    time.Time // when the next rotation begins by time; zero: it does not, or is in flight
	Refused error     // why a rotation that is due has not begun; nil: it was not refused
	Retry   time.Time // when it is tried again, if this server leads
}

// schedule looks at the schedule of a key.
func (l *Loop) schedule(k keyring.Key, now time.Time) Schedule {
	if k.Schedule.IsZero() {
		return Schedule{}
	}
	s := Schedule{Next: rotation.NextDue(k, l.KMS.UsesOf(k, k.Primary).Protected, now)}
	if l.begins(k, now) == "" {
		return s
	}
	l.mu.Lock()
	a := l.attempts[k.ID]
	l.mu.Unlock()
	if s.Refused, s.Retry = a.err, a.retryAt; a.err == nil {
		s.Refused = l.KMS.MayTurn(k) // also at a server that does not lead
	}
	return s
}
