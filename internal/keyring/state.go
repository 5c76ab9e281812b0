package keyring

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// KeyType is a row of SP 800-57 Part 1, table 1 (5.3.6), by the id that testdata/sp800-57.json gives it.
type KeyType string

// The key types that rotor makes.
const (
	TypePrivateSignature KeyType = "private_signature"
	TypeAuthentication   KeyType = "symmetric_authentication"
	TypeDataEncryption   KeyType = "symmetric_data_encryption_rest"
	TypeKeyWrapping      KeyType = "symmetric_key_wrapping_storage"

	TypePrivateTransport     KeyType = "private_key_transport" // also of data: what is sent to a public key
	TypePrivateDecapsulation KeyType = "private_static_decapsulation"
)

// State is a key state of SP 800-57 Part 1 rev. 5, section 7.
type State string

// The states.
const (
	PreActivation State = "pre_activation" // 7.1
	Active        State = "active"         // 7.2
	Suspended     State = "suspended"      // 7.3
	Deactivated   State = "deactivated"    // 7.4
	Compromised   State = "compromised"    // 7.5
	Destroyed     State = "destroyed"      // 7.6
)

// Event moves a version from one state to another.
type Event string

// The events.
const (
	Activate   Event = "activate"
	Suspend    Event = "suspend"
	Resume     Event = "resume"
	Deactivate Event = "deactivate"
	Compromise Event = "compromise"
	Destroy    Event = "destroy"
)

// transitions holds the allowed moves (SP 800-57 Part 1 rev. 5, figure 5 and section 7; transitions 2 to 15).
func transitions(s State) map[Event]State {
	switch s {
	case PreActivation:
		return map[Event]State{Activate: Active, Compromise: Compromised, Destroy: Destroyed}
	case Active:
		return map[Event]State{Suspend: Suspended, Deactivate: Deactivated, Compromise: Compromised, Destroy: Destroyed}
	case Suspended:
		return map[Event]State{Resume: Active, Deactivate: Deactivated, Compromise: Compromised, Destroy: Destroyed}
	case Deactivated:
		return map[Event]State{Compromise: Compromised, Destroy: Destroyed}
	case Compromised:
		return map[Event]State{Destroy: Destroyed}
	default:
		return nil
	}
}

// Next is the state after an event. fault.WrongState when the standard forbids the move.
func Next(s State, e Event) (State, error) {
	next, ok := transitions(s)[e]
	if !ok {
		return s, fault.New(fault.WrongState, fmt.Sprintf("%s of a version that is %s", e, s))
	}
	return next, nil
}

// Apply moves a version by an event and stamps the time; the caller raises the epoch. A compromise that is found after the
// destruction is recorded and leaves the version destroyed (SP 800-57 Part 1 rev. 5, 7.6). fault.UnknownVersion, WrongState.
func (k Key) Apply(n uint32, e Event, reason string, now time.Time) (Key, error) {
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	if v.State == Destroyed && e == Compromise && v.Compromised.IsZero() {
		v.Compromised, v.Reason = now, cmp.Or(reason, v.Reason)
		k = k.Clone()
		return k.Put(v), nil
	}
	next, err := Next(v.State, e)
	if err != nil {
		return k, err
	}
	if e == Resume && k.originatorOver(v, now) {
		next = Deactivated // transition 10 ends with the originator-usage period; 12 takes its place
	}
	v.State = next
	switch next {
	case Active:
		if v.Activated.IsZero() {
			v.Activated = now
		}
	case Suspended:
		v.Suspended = now
	case Deactivated:
		v.Deactivated = now
	case Compromised:
		v.Compromised = now
	case Destroyed:
		v.Destroyed = now
	}
	if reason != "" {
		v.Reason = reason
	}
	k = k.Clone()
	return k.Put(v), nil
}

// MayProtect says whether the version may encrypt, wrap, sign or make a MAC now: the primary, active, within its
// originator-usage period. fault.WrongState, fault.PeriodOver.
func (k Key) MayProtect(v Version, now time.Time) error {
	if v.Phase != PhasePrimary || v.State != Active {
		return k.stateFault(v)
	}
	if k.originatorOver(v, now) {
		return fault.New(fault.PeriodOver, k.versionName(v.Number)+" to protect")
	}
	return nil
}

// MayProcess says whether the version may decrypt, unwrap or verify now. protectedAt is when the data was protected, zero when
// that is not known: a suspended version then processes nothing, and a compromised one needs allowCompromised, a right of its own.
// fault.WrongState, VersionRetired, VersionDestroyed, PeriodOver.
func (k Key) MayProcess(v Version, protectedAt, now time.Time, allowCompromised bool) error {
	switch {
	case v.Phase == PhaseDestroyed || v.State == Destroyed:
		return fault.New(fault.VersionDestroyed, k.versionName(v.Number))
	case v.Phase == PhaseRetired:
		return fault.New(fault.VersionRetired, k.versionName(v.Number))
	case v.Phase != PhaseDistributed && v.Phase != PhasePrimary && v.Phase != PhaseDecryptOnly:
		return k.stateFault(v)
	case v.State == Suspended && !protectedAt.IsZero() && protectedAt.Before(v.Suspended):
	case v.State == Compromised && allowCompromised:
	case v.State != Active && v.State != Deactivated:
		return k.stateFault(v)
	}
	if _, expires := k.periodsOf(v); !expires.IsZero() && !now.Before(expires) {
		return fault.New(fault.PeriodOver, k.versionName(v.Number)+" to process")
	}
	return nil
}

// KeepsMaterial says whether the material of a version is still of use. The private half of a signing pair is not once the version may
// never sign again: it is destroyed at the end of its cryptoperiod, and at once when compromised (SP 800-57 Part 1 rev. 5, 5.3.6 and
// 7.5, table 1 row 1), while the public half goes on verifying. All other material also processes, so it stays until destruction.
func (k Key) KeepsMaterial(v Version) bool {
	switch {
	case v.State == Destroyed || v.Phase == PhaseDestroyed:
		return false
	case k.Purpose == suite.Sign:
		return v.State != Deactivated && v.State != Compromised
	}
	return true
}

func (k Key) stateFault(v Version) error {
	switch v.State {
	case Destroyed:
		return fault.New(fault.VersionDestroyed, k.versionName(v.Number))
	default:
		return fault.New(fault.WrongState, fmt.Sprintf("%s is %s and %s", k.versionName(v.Number), v.State, v.Phase))
	}
}

func (k Key) versionName(n uint32) string { return fmt.Sprintf("key %s, version %d", k.Name, n) }

func (k Key) originatorOver(v Version, now time.Time) bool {
	end, _ := k.periodsOf(v)
	return !end.IsZero() && !now.Before(end)
}

// periodsOf returns the ends of the usage periods of a version; zero: unlimited or not activated yet.
func (k Key) periodsOf(v Version) (originator, recipient time.Time) {
	if v.Activated.IsZero() {
		return
	}
	from := v.Activated
	if !v.Originated.IsZero() && v.Originated.Before(from) {
		from = v.Originated
	}
	if p := k.Periods.Originator; p > 0 {
		originator = from.Add(p)
	}
	if p := k.Periods.Recipient; p > 0 {
		recipient = from.Add(p)
	}
	return
}

// States returns every state, for tables and tests.
func States() []State {
	return slices.Clone([]State{PreActivation, Active, Suspended, Deactivated, Compromised, Destroyed})
}

// Events returns every event, for tables and tests.
func Events() []Event {
	return slices.Clone([]Event{Activate, Suspend, Resume, Deactivate, Compromise, Destroy})
}
