// Package holder is the instance half of the rotation machine: what a process may do with the keys that it was told about,
// and which news it may believe. It is pure: values in, values out, no clock and no I/O. The SDK, the model checker and the simulator
// run the same code.
package holder

import (
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
)

// Instant is a reading of the two clocks that a lease is held against, in nanoseconds: CLOCK_BOOTTIME, which counts suspended
// time, and CLOCK_REALTIME.
type Instant struct {
	Boot, Real int64
}

// Add moves both clocks.
func (i Instant) Add(d time.Duration) Instant {
	return Instant{i.Boot + int64(d), i.Real + int64(d)}
}

// Reached says whether either clock is at or past the other instant: a lease is over as soon as one clock says so.
func (i Instant) Reached(end Instant) bool { return i.Boot >= end.Boot || i.Real >= end.Real }

// Contact is what the process knows of its connection to the server. The zero Contact allows nothing.
type Contact struct {
	Lease Instant // end of the lease, margin taken off; zero: none
	Heard Instant // when the last answered request was sent
}

// Granted is the contact after a request, sent at sent, was answered with a lease of ttl. The process relies on ttl - margin.
func Granted(old Contact, sent Instant, ttl, margin time.Duration) Contact {
	end := sent.Add(ttl - margin)
	if end.Boot < old.Lease.Boot {
		end = old.Lease // a late answer never shortens what a newer one granted
	}
	if sent.Boot < old.Heard.Boot {
		sent = old.Heard
	}
	return Contact{Lease: end, Heard: sent}
}

// Key is one key as the process holds it: immutable, replaced as a whole by Apply.
type Key struct {
	Snapshot keyring.Snapshot
}

// Apply takes a snapshot over an older one (nil: none yet). It refuses what is not newer and what drops a version without its
// tombstone, brings one back from the dead or names two alike. fault.SnapshotRefused. An equal epoch is no news and no error: changed is
// false.
func Apply(old *Key, s keyring.Snapshot) (next *Key, changed bool, err error) {
	if err := distinct(s); err != nil {
		return old, false, err
	}
	if old == nil {
		return &Key{Snapshot: s}, true, nil
	}
	was := old.Snapshot
	if was.Key != s.Key || was.Namespace != s.Namespace || was.Purpose != s.Purpose || was.Custody != s.Custody {
		return old, false, fault.New(fault.SnapshotRefused, "key "+s.Name+" is another key")
	}
	switch s.Epoch.Compare(was.Epoch) {
	case 0:
		return old, false, nil
	case -1:
		return old, false, fault.New(fault.SnapshotRefused, fmt.Sprintf("key %s, epoch %d after %d", s.Name, s.Epoch.Counter, was.Epoch.Counter))
	}
	keeps := keepsAll
	if s.Epoch.Incarnation > was.Epoch.Incarnation {
		keeps = keepsDead // the cluster was recovered, and may have lost versions
	}
	if err := keeps(was, s); err != nil {
		return old, false, err
	}
	return &Key{Snapshot: s}, true, nil
}

// distinct: no two versions share a number or a handle, or a destroyed one could hide behind a live one.
func distinct(s keyring.Snapshot) error {
	numbers, handles := make(map[uint32]bool, len(s.Versions)), make(map[uint32]bool, len(s.Versions))
	for _, v := range s.Versions {
		if numbers[v.Number] || handles[v.Handle] {
			return fault.New(fault.SnapshotRefused, fmt.Sprintf("key %s, version %d is there twice", s.Name, v.Number))
		}
		numbers[v.Number], handles[v.Handle] = true, true
	}
	return nil
}

// keepsDead is what holds across incarnations: a version that was destroyed stays so.
func keepsDead(was, s keyring.Snapshot) error {
	dead := map[uint32]bool{}
	for _, v := range was.Versions {
		dead[v.Handle] = dead[v.Handle] || v.Phase == keyring.PhaseDestroyed
	}
	for _, v := range s.Versions {
		if dead[v.Handle] && v.Phase != keyring.PhaseDestroyed {
			return fault.New(fault.SnapshotRefused, fmt.Sprintf("key %s, version %d was destroyed", s.Name, v.Number))
		}
	}
	return nil
}

// keepsAll is the shrink guard: each version of the older snapshot is in the newer one, the same and not less dead.
func keepsAll(was, s keyring.Snapshot) error {
	now := make(map[uint32]keyring.SnapshotVersion, len(s.Versions))
	for _, v := range s.Versions {
		now[v.Number] = v
	}
	for _, v := range was.Versions {
		n, ok := now[v.Number]
		if !ok || n.Handle != v.Handle || n.Algorithm != v.Algorithm {
			return fault.New(fault.SnapshotRefused, fmt.Sprintf("key %s, version %d is missing or changed", s.Name, v.Number))
		}
		if v.Phase == keyring.PhaseDestroyed && n.Phase != keyring.PhaseDestroyed {
			return fault.New(fault.SnapshotRefused, fmt.Sprintf("key %s, version %d was destroyed", s.Name, v.Number))
		}
	}
	return nil
}

// Usable says whether the key may be used at all now. In fence mode the lease must be running; in block mode the server must
// have been heard within MaxStale. Fence mode asks before and after each operation. fault.LeaseOver, fault.Stale.
func (k *Key) Usable(c Contact, now Instant) error {
	if k.Snapshot.Silence == keyring.Fence {
		if c.Lease == (Instant{}) || now.Reached(c.Lease) {
			return fault.New(fault.LeaseOver, "key "+k.Snapshot.Name)
		}
		return nil
	}
	if c.Heard == (Instant{}) || now.Reached(c.Heard.Add(k.Snapshot.MaxStale)) {
		return fault.New(fault.Stale, "key "+k.Snapshot.Name)
	}
	return nil
}

// Protect finds the version that encrypts, signs or authenticates now. fault.WrongState, fault.PeriodOver.
func (k *Key) Protect(now time.Time) (keyring.SnapshotVersion, error) {
	for _, v := range k.Snapshot.Versions {
		if v.Number != k.Snapshot.Primary {
			continue
		}
		if v.State != keyring.Active || v.Phase != keyring.PhasePrimary {
			return v, fault.New(fault.WrongState, k.name(v)+" is "+string(v.State))
		}
		if !v.NotAfter.IsZero() && !now.Before(v.NotAfter) {
			return v, fault.New(fault.PeriodOver, k.name(v)+" to protect")
		}
		return v, nil
	}
	return keyring.SnapshotVersion{}, fault.New(fault.WrongState, "key "+k.Snapshot.Name+" has no primary version")
}

// Process finds the version that made a ciphertext, by its handle. A version that this process still sees as distributed
// processes too: another instance may have heard of its promotion first (S1). fault.UnknownVersion, VersionRetired,
// VersionDestroyed, WrongState, PeriodOver.
func (k *Key) Process(handle uint32, now time.Time) (keyring.SnapshotVersion, error) {
	for _, v := range k.Snapshot.Versions {
		if v.Handle == handle {
			return v, k.process(v, now)
		}
	}
	return keyring.SnapshotVersion{}, fault.New(fault.UnknownVersion, "key "+k.Snapshot.Name)
}

func (k *Key) process(v keyring.SnapshotVersion, now time.Time) error {
	switch {
	case v.Phase == keyring.PhaseDestroyed || v.State == keyring.Destroyed:
		return fault.New(fault.VersionDestroyed, k.name(v))
	case v.Phase == keyring.PhaseRetired:
		return fault.New(fault.VersionRetired, k.name(v))
	case !v.Live() || v.State != keyring.PreActivation && v.State != keyring.Active && v.State != keyring.Deactivated:
		return fault.New(fault.WrongState, fmt.Sprintf("%s is %s and %s", k.name(v), v.State, v.Phase))
	case !v.Expires.IsZero() && !now.Before(v.Expires):
		return fault.New(fault.PeriodOver, k.name(v)+" to process")
	}
	return nil
}

func (k *Key) name(v keyring.SnapshotVersion) string {
	return fmt.Sprintf("key %s, version %d", k.Snapshot.Name, v.Number)
}
