package keyring

import (
	"cmp"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

// Lost returns the versions of a backup that a key does not have, the backup's primary first and then the youngest. Every number that the key has
// had is its own for good, so what is missing can only be what a recovery of the store lost: a number above those is not. The zero key has lost
// all. fault.Conflict when the two are not of one history.
func (k Key) Lost(backup Key) ([]Version, error) {
	var lost []Version
	for v := range backup.All() {
		have, err := k.Version(v.Number)
		switch {
		case err == nil && (have.Handle != v.Handle || have.Algorithm != v.Algorithm):
			return nil, fault.New(fault.Conflict, k.versionName(v.Number)).WithHint("the backup has another version of that number")
		case err == nil:
		case k.ID != "" && v.Number >= k.NextNumber():
			return nil, fault.New(fault.Conflict, k.versionName(v.Number)).WithHint("this server has not come to that number: the backup is of another history of the key")
		case k.takenByOther(v):
			return nil, fault.New(fault.Conflict, k.versionName(v.Number)).WithHint("its handle %08x names another version here", v.Handle)
		default:
			lost = append(lost, v)
		}
	}
	slices.SortStableFunc(lost, func(a, b Version) int {
		return cmp.Or(-compareBool(a.Number == backup.Primary, b.Number == backup.Primary), cmp.Compare(b.Number, a.Number))
	})
	return lost, nil
}

// takenByOther says whether another version has the handle of one.
func (k Key) takenByOther(v Version) bool {
	other, err := k.ByHandle(v.Handle)
	return err == nil && other.Number != v.Number
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Founded is the key as a restore begins it where there is none of its ID: its settings, no versions, and the next number above every one that
// the backup knows of and so many more, which may have been used since.
func (k Key) Founded(incarnation, more uint32) Key {
	last := k.NextNumber() - 1
	k = k.Clone()
	k.Epoch = Epoch{max(incarnation, 1), k.Epoch.Counter}
	k.Versions, k.Primary, k.Target, k.Since, k.BackedUp, k.Restoring = Versions{}, 0, 0, time.Time{}, time.Time{}, ""
	k.Above = last + more
	return k
}

// Restored adds a lost version. One that the log knows as destroyed comes back so, without its material. Nothing that comes back protects
// again, as nobody knows what took its place since, but for the primary of a key that has none. The caller raises the epoch first, once for all
// that one commit adds.
func (k Key) Restored(v Version, primary, dead bool, now time.Time) Key {
	k = k.Clone()
	v.Approved, v.Distributed = nil, k.Epoch
	if v.Promoted != (Epoch{}) {
		v.Promoted = k.Epoch
	}
	if v.Withdrawn != (Epoch{}) {
		v.Withdrawn = k.Epoch
	}
	switch {
	case v.State == Destroyed || v.Phase == PhaseDestroyed:
		v.State, v.Phase = Destroyed, PhaseDestroyed
	case dead:
		v.State, v.Phase, v.Destroyed, v.Withdrawn = Destroyed, PhaseDestroyed, now, k.Epoch
		v.Reason = "destroyed before it was restored from a backup"
	case v.Phase == PhaseRetired:
		v.Retired = now // its wait begins again
	case v.Phase == PhasePrimary && primary && k.Primary == 0:
		v.Promoted, k.Primary = k.Epoch, v.Number
	default:
		v = v.demoted(k.Epoch, now)
	}
	return k.Append(v)
}

// demoted is a version that may have protected and never does again. It is deactivated, unless it is suspended or compromised.
func (v Version) demoted(e Epoch, now time.Time) Version {
	v.Phase = PhaseDecryptOnly
	if v.Activated.IsZero() { // staged or distributed in the backup: it may have become primary since
		v.Activated, v.Published, v.Promoted = v.Created, v.Created, e
	}
	if v.Demoted.IsZero() {
		v.Demoted = now
	}
	if v.State == Active || v.State == PreActivation {
		v.State, v.Deactivated = Deactivated, now
	}
	return v
}
