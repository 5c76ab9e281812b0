package rotation

import (
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// Asked says why the schedule of a key asks for a new version, whatever its windows say; empty: it does not. uses is how often the primary has
// protected, as far as that is counted. Nothing is asked for while a rotation is in flight, nor while the primary is not active: who suspends
// it wants the key to stand still, and for a compromised one there is StepReplace.
func Asked(k keyring.Key, uses uint64, now time.Time) (why string) {
	s := k.Schedule
	v, err := k.Version(k.Primary)
	if err != nil || s.IsZero() || v.State != keyring.Active || k.Target != 0 || aside(k) || now.Before(turnedBack(k, now)) {
		return ""
	}
	if end := k.PeriodEnds(now); !end.IsZero() && !now.Before(end) {
		return "every " + keyring.Days(s.Every)
	}
	if s.MaxUses > 0 && uses >= s.MaxUses {
		return fmt.Sprintf("after %d uses", s.MaxUses)
	}
	return ""
}

// Begins is Asked within the schedule's windows: why a rotation begins now.
func Begins(k keyring.Key, uses uint64, now time.Time) (why string) {
	if why = Asked(k, uses, now); why != "" && k.Schedule.Open(now) {
		return why
	}
	return ""
}

// Required says why a key should have another primary version than it has, or will have in a moment: what its schedule asks for, in or outside of
// its windows; a cryptoperiod that is over; a primary that may be compromised; a newer version that is on its way. None: nothing to do.
func Required(k keyring.Key, uses uint64, now time.Time) (why []string) {
	v, err := k.Version(k.Primary)
	if err != nil || aside(k) {
		return nil
	}
	if asked := Asked(k, uses, now); asked != "" {
		why = append(why, "its schedule asks for a rotation "+asked)
	}
	if k.Target > k.Primary {
		why = append(why, fmt.Sprintf("version %d is about to be primary", k.Target))
	}
	if v.State == keyring.Compromised {
		why = append(why, "the primary version is compromised")
	}
	if fault.CodeOf(k.MayProtect(v, now)) == fault.PeriodOver {
		why = append(why, "the originator-usage period is over")
	}
	return why
}

// NextDue is when the schedule of a key begins its next rotation, if nothing else happens; zero: not by time, as far as is known.
func NextDue(k keyring.Key, uses uint64, now time.Time) time.Time {
	v, err := k.Version(k.Primary)
	if err != nil || v.State != keyring.Active || k.Target != 0 || aside(k) {
		return time.Time{}
	}
	at := k.PeriodEnds(now)
	if m := k.Schedule.MaxUses; m > 0 && uses >= m {
		at = now
	}
	if at.IsZero() {
		return at
	}
	for _, t := range []time.Time{turnedBack(k, now), now} {
		if at.Before(t) {
			at = t
		}
	}
	return k.Schedule.Opens(at)
}

// aside says whether a key is not in service: it is being restored, or clients have deleted it.
func aside(k keyring.Key) bool {
	return k.Restoring != "" || k.Deleted() || k.Transit != nil && !k.Transit.SoftDeleted.IsZero()
}

// turnedBack is until when a schedule leaves a key alone because somebody turned its last rotation back or gave it up: the rollback window,
// from then on. Zero: nobody did, or by a clock that was wrong.
func turnedBack(k keyring.Key, now time.Time) time.Time {
	last, ok := k.Last()
	if !ok || last.Number == k.Primary {
		return time.Time{}
	}
	at := last.Demoted
	if at.Before(last.Destroyed) && last.Promoted == (keyring.Epoch{}) {
		at = last.Destroyed
	}
	window := k.Rotation.Defaults().Window
	if at.IsZero() || at.Sub(now) > window {
		return time.Time{}
	}
	return at.Add(window)
}
