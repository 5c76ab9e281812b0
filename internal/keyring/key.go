// Package keyring is the pure model of keys and their versions: what they are, which state of SP 800-57 Part 1 rev. 5 each
// version is in, and what that allows. It has no clock, no store and no key bytes.
package keyring

import (
	"cmp"
	"maps"
	"time"

	"github.com/rotorkms/rotor/internal/suite"
)

// KeyID names a key for ever: 16 random bytes in lower-case hex. Names may change and be taken again, IDs not.
type KeyID string

// Namespace is the ID of a namespace; names of keys are unique within one.
type Namespace string

// Custody says where the material of a key may be.
type Custody string

// The custodies.
const (
	CustodyServer Custody = "server" // material never leaves the server
	CustodyFleet  Custody = "fleet"  // versions are delivered to the instances that hold the key
	CustodyHSM    Custody = "hsm"    // material is made in a PKCS #11 token and never leaves it; the server has operations carried out there
)

// Silence says what a rotation does about a member that does not answer.
type Silence string

// The two ways. See docs/explain/rotation.md, "A silent member".
const (
	Block Silence = "block" // rotation waits for it and names it
	Fence Silence = "fence" // it stops using the key at the end of its lease, and rotation goes on
)

// OriginImported is the origin of versions whose material came from outside.
const OriginImported = "imported"

// Epoch orders the states of one key: (incarnation of the cluster, counter in the key's record).
type Epoch struct {
	Incarnation uint32 `json:"i"`
	Counter     uint64 `json:"c"`
}

// Compare orders epochs.
func (e Epoch) Compare(o Epoch) int {
	return cmp.Or(cmp.Compare(e.Incarnation, o.Incarnation), cmp.Compare(e.Counter, o.Counter))
}

// Less says whether e comes before o.
func (e Epoch) Less(o Epoch) bool { return e.Compare(o) < 0 }

// Next is the following epoch of the same incarnation.
func (e Epoch) Next() Epoch { return Epoch{e.Incarnation, e.Counter + 1} }

// Phase is how far a version has come in its rotation (docs/explain/rotation.md, "The phases of a version").
type Phase string

// The phases, in order. A version goes back only from PhaseRetired to PhaseDistributed and by Promote of an older version.
const (
	PhaseStaged      Phase = "staged"       // durable, known to nobody else
	PhaseDistributed Phase = "distributed"  // delivered to holders, protects nothing yet
	PhasePrimary     Phase = "primary"      // the one that protects
	PhaseDecryptOnly Phase = "decrypt-only" // processes what it protected; verify-only for a signing key
	PhaseRetired     Phase = "retired"      // refused everywhere, material still there
	PhaseDestroyed   Phase = "destroyed"    // material gone, number and handle stay used
)

// Phases returns every phase, for tables and checks.
func Phases() []Phase {
	return []Phase{PhaseStaged, PhaseDistributed, PhasePrimary, PhaseDecryptOnly, PhaseRetired, PhaseDestroyed}
}

// Periods are the cryptoperiod of each version of a key, counted from its activation (SP 800-57 Part 1 rev. 5, 5.3.4); 0 is
// unlimited.
type Periods struct {
	Originator time.Duration `json:"originator,omitempty"` // may protect
	Recipient  time.Duration `json:"recipient,omitempty"`  // may process; at least as long as Originator
}

// Rotation is how a key rotates. The zero value of a field means its default (Defaults).
type Rotation struct {
	Silence   Silence       `json:"silence,omitempty"`           // default block
	MaxStale  time.Duration `json:"max_stale,omitempty"`         // an instance unheard of for so long stops; default 25 h
	MaxWait   time.Duration `json:"max_wait,omitempty"`          // a rotation that waits longer for a silent member is shown as paused; default 1 h
	Window    time.Duration `json:"window,omitempty"`            // how long a promotion can be rolled back; default 24 h
	Wait      time.Duration `json:"destroy_wait,omitempty"`      // between retirement and destruction; default 7 d
	Margin    time.Duration `json:"margin,omitempty"`            // signing keys: how long strangers may cache the JWKS (RFC 7583's margin); default 0
	Approvals int           `json:"destroy_approvals,omitempty"` // distinct callers that must ask for a destruction; default 2
}

// Defaults fills the zero fields.
func (r Rotation) Defaults() Rotation {
	r.Silence = cmp.Or(r.Silence, Block)
	r.MaxStale = cmp.Or(r.MaxStale, 25*time.Hour)
	r.MaxWait = cmp.Or(r.MaxWait, time.Hour)
	r.Window = cmp.Or(r.Window, 24*time.Hour)
	r.Wait = cmp.Or(r.Wait, 7*24*time.Hour)
	r.Approvals = cmp.Or(r.Approvals, 2)
	return r
}

// Version is one version of a key: numbered from 1, never renumbered.
type Version struct {
	Number      uint32          `json:"number"`
	Handle      uint32          `json:"handle"` // random; names the version in ciphertexts, and is unique in the namespace for ever; of a transit key, whose ciphertexts have the number, unique in the key
	Algorithm   suite.Algorithm `json:"algorithm"`
	State       State           `json:"state"`
	Phase       Phase           `json:"phase"`
	Public      []byte          `json:"public,omitempty"`    // public key of a pair: PKIX, or the encoding of HPKE for hybrids
	Origin      string          `json:"origin,omitempty"`    // empty: made here; OriginImported
	Originated  time.Time       `json:"originated,omitzero"` // imported: since when its originator has used it; its cryptoperiod counts from then
	Reason      string          `json:"reason,omitempty"`    // of the last suspension, compromise or destruction
	Created     time.Time       `json:"created"`
	Published   time.Time       `json:"published,omitzero"` // distributed for the first time
	Activated   time.Time       `json:"activated,omitzero"`
	Demoted     time.Time       `json:"demoted,omitzero"` // last time that another version became primary instead
	Deactivated time.Time       `json:"deactivated,omitzero"`
	Suspended   time.Time       `json:"suspended,omitzero"`
	Compromised time.Time       `json:"compromised,omitzero"`
	Retired     time.Time       `json:"retired,omitzero"`
	Destroyed   time.Time       `json:"destroyed,omitzero"`
	Distributed Epoch           `json:"distributed,omitzero"`    // a member that acknowledged this epoch or a later one can process it
	Promoted    Epoch           `json:"promoted,omitzero"`       // of the last promotion
	Withdrawn   Epoch           `json:"withdrawn,omitzero"`      // of the retirement
	Approved    []string        `json:"destroy_votes,omitempty"` // who asked for the destruction
	PublicOnly  bool            `json:"public_only,omitempty"`   // imported without its private half, which may come yet
	Convergent  int             `json:"convergent,omitempty"`    // imported: of another version of the construction than its key; 0: of that one
	Chain       [][]byte        `json:"chain,omitempty"`         // certificates of the public half, in DER, its own first
	Attempts    uint64          `json:"attempts,omitempty"`      // to use it while it was retired, as far as they were written down: at least so many
	Taken       uint64          `json:"taken,omitempty"`         // of the uses that its algorithm allows, by the commit that made it primary; a record of more has them all
}

// Key is a named key with all its versions, in the order of their numbers.
type Key struct {
	ID         KeyID             `json:"id"`
	Namespace  Namespace         `json:"namespace"`
	Name       string            `json:"name"`
	Purpose    suite.Purpose     `json:"purpose"`
	Custody    Custody           `json:"custody"`
	Algorithm  suite.Algorithm   `json:"algorithm"` // of the next version
	Labels     map[string]string `json:"labels,omitempty"`
	Owner      string            `json:"owner,omitempty"`
	Exportable bool              `json:"exportable,omitempty"` // versions may leave sealed to a recipient, where policy allows it
	Periods    Periods           `json:"periods,omitzero"`
	Rotation   Rotation          `json:"rotation,omitzero"`
	Schedule   Schedule          `json:"schedule,omitzero"` // when it rotates by itself
	Created    time.Time         `json:"created"`
	Epoch      Epoch             `json:"epoch"`
	Primary    uint32            `json:"primary"`          // 0 while the first version is being distributed
	Target     uint32            `json:"target,omitempty"` // the version that a rotation in flight will promote; 0: none
	Since      time.Time         `json:"since,omitzero"`   // start of the rotation in flight
	Above      uint32            `json:"above,omitempty"`  // numbers up to this one may be in use by what a recovery lost; the next version is above it
	Versions   Versions          `json:"versions"`

	BackedUp  time.Time `json:"backed_up,omitzero"`  // the last backup of this key alone
	Restoring string    `json:"restoring,omitempty"` // the backup that brings it back and is not done
	Transit   *Transit  `json:"transit,omitempty"`   // of a key of purpose transit
}

// Clone copies the key so that the copy can be changed. Versions never change and are shared.
func (k Key) Clone() Key {
	k.Labels = maps.Clone(k.Labels)
	if k.Transit != nil {
		t := *k.Transit
		k.Transit = &t
	}
	return k
}

// Recovered is the key as a recovery leaves it: of the cluster's new incarnation, versions without material destroyed, and the next version
// above every number that may have been used. A rotation towards one that is destroyed so is given up.
func (k Key) Recovered(incarnation, above uint32, hasMaterial func(n uint32) bool, now time.Time) Key {
	k = k.Clone()
	k.Epoch = Epoch{incarnation, k.Epoch.Counter + 1}
	k.Above = max(k.Above, above, k.NextNumber()-1)
	for v := range k.All() {
		if v.State == Destroyed || !k.KeepsMaterial(v) || hasMaterial(v.Number) {
			continue
		}
		v.State, v.Phase, v.Destroyed, v.Withdrawn, v.Reason = Destroyed, PhaseDestroyed, now, k.Epoch, "destroyed before a recovery, which found its tombstone"
		k = k.Put(v)
		if k.Target == v.Number {
			k.Target, k.Since = 0, time.Time{}
		}
	}
	return k
}

// Type is the row of SP 800-57 Part 1 rev. 5, table 1, that the key's (private) material belongs to.
func (k Key) Type() KeyType {
	switch k.Purpose {
	case suite.Wrap:
		return TypeKeyWrapping
	case suite.Sign:
		return TypePrivateSignature
	case suite.MAC:
		return TypeAuthentication
	case suite.Decrypt:
		return TypePrivateTransport
	case suite.Decapsulate:
		return TypePrivateDecapsulation
	default:
		return TypeDataEncryption
	}
}
