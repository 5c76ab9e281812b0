package keyring

import (
	"time"

	"github.com/rotorkms/rotor/internal/suite"
)

// Snapshot is what a holder is told about one key: the whole of its versions at an epoch. It carries no material; the
// delivery beside it does, sealed to the process.
type Snapshot struct {
	Key       KeyID             `json:"key"`
	Namespace Namespace         `json:"namespace"`
	Name      string            `json:"name"`
	Purpose   suite.Purpose     `json:"purpose"`
	Custody   Custody           `json:"custody"`
	Silence   Silence           `json:"silence"`
	MaxStale  time.Duration     `json:"max_stale"`
	Epoch     Epoch             `json:"epoch"`
	Primary   uint32            `json:"primary"`
	Versions  []SnapshotVersion `json:"versions"`
}

// SnapshotVersion is one version in a snapshot. Retired and destroyed versions stay in it as tombstones: a version that is
// missing where the holder had one is refused (shrink guard).
type SnapshotVersion struct {
	Number    uint32          `json:"number"`
	Handle    uint32          `json:"handle"`
	Algorithm suite.Algorithm `json:"algorithm"`
	Phase     Phase           `json:"phase"`
	State     State           `json:"state"`
	Public    []byte          `json:"public,omitempty"`
	NotAfter  time.Time       `json:"not_after,omitzero"` // end of the originator-usage period
	Expires   time.Time       `json:"expires,omitzero"`   // end of the recipient-usage period
}

// Live says whether a holder gets the material of the version and may process with it.
func (v SnapshotVersion) Live() bool {
	return v.Phase == PhaseDistributed || v.Phase == PhasePrimary || v.Phase == PhaseDecryptOnly
}

// MaxHeld is how many versions a key may have that instances can hold: each of them has them all.
const MaxHeld = 1024

// Holdable says whether instances can hold the key: its material, or the public halves of a signing key.
func (k Key) Holdable() bool { return k.Custody == CustodyFleet || k.Purpose == suite.Sign }

// Snapshot makes the holders' view of the key. Staged versions are not in it.
func (k Key) Snapshot() Snapshot {
	r := k.Rotation.Defaults()
	s := Snapshot{
		Key: k.ID, Namespace: k.Namespace, Name: k.Name, Purpose: k.Purpose, Custody: k.Custody,
		Silence: r.Silence, MaxStale: r.MaxStale, Epoch: k.Epoch, Primary: k.Primary,
	}
	for v := range k.All() {
		if v.Phase == PhaseStaged {
			continue
		}
		sv := SnapshotVersion{Number: v.Number, Handle: v.Handle, Algorithm: v.Algorithm, Phase: v.Phase, State: v.State, Public: v.Public}
		sv.NotAfter, sv.Expires = k.periodsOf(v)
		s.Versions = append(s.Versions, sv)
	}
	return s
}
