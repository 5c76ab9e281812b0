package keyring

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// MaxKeyName bounds the name of a key with a mount, in bytes.
const MaxKeyName = 192

// Transit is what clients of other systems set on a key of purpose transit, and see of it. The floors are theirs: they take effect at once and
// destroy nothing. Material stays until it is retired and destroyed through rotor's own gates.
type Transit struct {
	Spelling string `json:"spelling,omitempty"`  // what its creator called its type, where that has two names; empty: its usual one
	KeyBytes int    `json:"key_bytes,omitempty"` // HMAC keys: length of the next version; 0: 32

	Derived    bool `json:"derived,omitempty"`    // each context has a key of its own
	Convergent int  `json:"convergent,omitempty"` // the same plaintext and context give the same ciphertext, by this version of the construction; 0: no
	Counter    bool `json:"counter,omitempty"`    // derived by HMAC-SHA256 in counter mode (SP 800-108), as old keys of other systems are; else by HKDF

	MinDecryption uint32 `json:"min_decryption,omitempty"` // what older versions protected is refused; 0: 1
	MinEncryption uint32 `json:"min_encryption,omitempty"` // the oldest version that may protect when it is named; 0: any that is active
	MinAvailable  uint32 `json:"min_available,omitempty"`  // older versions are trimmed: clients do not see them any more

	DeletionAllowed bool `json:"deletion_allowed,omitempty"`
	PlaintextBackup bool `json:"plaintext_backup,omitempty"` // a backup in clear may leave; cannot be taken back
	Exportable      bool `json:"exportable,omitempty"`       // versions may leave in clear; cannot be taken back

	Imported        bool `json:"imported,omitempty"`         // the first version came from outside
	RotationAllowed bool `json:"rotation_allowed,omitempty"` // of an imported key: its next versions may be made here

	SoftDeleted time.Time `json:"soft_deleted,omitzero"` // nothing can be done with it until it is restored
	Deleted     time.Time `json:"deleted,omitzero"`      // for clients it is gone, and its name free
	DeletedAt   Epoch     `json:"deleted_at,omitzero"`   // epoch of the deletion
	Former      string    `json:"former,omitempty"`      // name before the deletion

	BackedUp *Passage `json:"backed_up,omitempty"` // the last backup in clear
	Restored *Passage `json:"restored,omitempty"`  // the backup in clear that it came from
}

// Passage is when a key left or came in, and with how many versions.
type Passage struct {
	At      time.Time `json:"at"`
	Version uint32    `json:"version"` // the latest
}

// ValidKeyName says whether a name of a key is well formed: ValidName, or, of a key of purpose transit, MOUNT/NAME of at most MaxKeyName bytes.
// The mount may have slashes inside; letters of both cases, digits and . _ - are allowed, and no segment is "." or "..". NAME begins and ends with a
// letter, a digit or _.
func ValidKeyName(s string) bool {
	mount, name, ok := CutMount(s)
	if !ok {
		return ValidName(s)
	}
	if len(s) > MaxKeyName || !wordy(name[0]) || !wordy(name[len(name)-1]) {
		return false
	}
	for _, part := range append(strings.Split(mount, "/"), name) {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, foreign) {
			return false
		}
	}
	return true
}

// CutMount splits MOUNT/NAME. ok: it has a slash with something behind the last.
func CutMount(s string) (mount, name string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 || i == len(s)-1 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

func foreign(r rune) bool { return r >= 0x80 || !wordy(byte(r)) && r != '.' && r != '-' }

func wordy(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// validName refuses a name that does not go with the purpose: those with a mount are of keys of purpose transit, and all of those have one.
func (k Key) validName() error {
	_, _, mounted := CutMount(k.Name)
	switch {
	case k.Purpose != suite.Transit && mounted:
		return invalid("name", "a name with a mount, such as %s, is of a key for clients of Vault: its purpose is transit", k.Name)
	case k.Purpose != suite.Transit && !ValidName(k.Name):
		return invalid("name", "a name has 1 to %d lower-case letters, digits, and inside . _ -", MaxName)
	case k.Purpose == suite.Transit && (!mounted || !ValidKeyName(k.Name)):
		return invalid("name", "a key of purpose transit is named MOUNT/NAME, for example transit/orders: at most %d letters, digits and . _ -", MaxKeyName)
	case k.Purpose == suite.Transit && !k.Deleted() && ofDeleted.MatchString(k.Name):
		return invalid("name", "names that end in .deleted- and 8 digits are those of deleted keys")
	}
	return nil
}

// ofDeleted are the names that DeletedName gives: a key that has one would keep another from being deleted.
var ofDeleted = regexp.MustCompile(`\.deleted-[0-9a-f]{8}$`)

// Bounds of HMAC keys of purpose transit, in bytes.
const (
	MinKeyBytes = 32
	MaxKeyBytes = 512
)

// validTransit checks what clients of other systems chose.
func (k Key) validTransit(spec suite.Spec) error {
	t := k.Transit
	switch {
	case k.Purpose != suite.Transit && t == nil:
		return nil
	case k.Purpose != suite.Transit:
		return invalid("transit", "a key of another purpose has no such settings")
	case t == nil:
		return invalid("transit", "a key of purpose transit has settings")
	case k.Custody != CustodyServer:
		return invalid("custody", "keys of purpose transit stay on the server")
	case k.Exportable:
		return invalid("exportable", "whether a key of purpose transit may leave is one of its transit settings")
	case t.Convergent != 0 && !t.Derived:
		return invalid("convergent", "convergent encryption requires derivation to be enabled")
	case t.KeyBytes != 0 && k.Algorithm != suite.HMAC:
		return invalid("key_size", "key_size is not valid for algorithm %s", k.Algorithm)
	case t.KeyBytes != 0 && (t.KeyBytes < MinKeyBytes || t.KeyBytes > MaxKeyBytes):
		return invalid("key_size", "%d to %d bytes", MinKeyBytes, MaxKeyBytes)
	case t.Derived && spec.Nonce == 0 && k.Algorithm != suite.Ed25519:
		return invalid("derived", "key derivation and convergent encryption not supported for keys of type %s", k.Algorithm)
	case t.Convergent != 0 && spec.Nonce == 0:
		return invalid("convergent", "key derivation and convergent encryption not supported for keys of type %s", k.Algorithm)
	case len(t.Spelling) > MaxName:
		return invalid("type", "at most %d bytes", MaxName)
	}
	return nil
}

// MayProtectAs is MayProtect for a version that the caller named: of a key of purpose transit also one that protected before and is active still,
// from the floor on that its settings have. fault.BelowFloor, and what MayProtect returns.
func (k Key) MayProtectAs(v Version, now time.Time) error {
	if t := k.Transit; t != nil && v.Number != k.Primary {
		if floor := max(t.MinEncryption, t.MinDecryption, t.MinAvailable); v.Number < floor {
			return fault.New(fault.BelowFloor, k.versionName(v.Number)).WithHint("only version %d and later ones may protect", floor)
		}
		if v.Phase == PhaseDecryptOnly && v.State == Deactivated { // for clients a floor as any other
			return fault.New(fault.BelowFloor, k.versionName(v.Number)).WithHint("its rollback window is over, or it was restored from a backup: it processes what it protected, and protects no more")
		}
		if v.Phase == PhaseDecryptOnly && v.State == Active { // others are refused as what they are
			v.Phase = PhasePrimary
		}
	}
	return k.MayProtect(v, now)
}

// Seen says whether clients of other systems see a version: it was published, and is neither trimmed nor withdrawn.
func (k Key) Seen(v Version) bool {
	live := v.Phase == PhasePrimary || v.Phase == PhaseDecryptOnly || v.Phase == PhaseDistributed && v.Promoted != (Epoch{})
	return live && (k.Transit == nil || v.Number >= k.Transit.MinAvailable)
}

// AboveFloor refuses a version that clients of other systems have closed by a floor. fault.BelowFloor.
func (k Key) AboveFloor(n uint32) error {
	if t := k.Transit; t != nil && n < max(t.MinDecryption, t.MinAvailable) {
		return fault.New(fault.BelowFloor, k.versionName(n)).WithHint("min_decryption_version is %d", max(t.MinDecryption, t.MinAvailable))
	}
	return nil
}

// Deleted says whether a client has deleted the key, so that it is gone for all of them.
func (k Key) Deleted() bool { return k.Transit != nil && !k.Transit.Deleted.IsZero() }

// Narrower says whether a key allows less than in an earlier state, because somebody wants it to: versions are suspended, compromised, retired or
// destroyed, or clients see less of it.
func (k Key) Narrower(was Key) bool {
	if k.Deleted() && !was.Deleted() || k.Transit.narrower(was.Transit) {
		return true
	}
	for v := range k.ChangedSince(was) {
		old, err := was.Version(v.Number)
		if err != nil {
			continue
		}
		stopped := v.State != old.State && (v.State == Suspended || v.State == Compromised || v.State == Destroyed)
		if stopped || v.Phase != old.Phase && (v.Phase == PhaseRetired || v.Phase == PhaseDestroyed) {
			return true
		}
	}
	return false
}

func (t *Transit) narrower(was *Transit) bool {
	return t != nil && was != nil && (t.MinDecryption > was.MinDecryption || t.MinEncryption > was.MinEncryption || t.MinAvailable > was.MinAvailable ||
		!t.SoftDeleted.IsZero() && was.SoftDeleted.IsZero())
}

// standing is a version as it stands: every one of a deleted key is retired, whatever its record says, so that to delete and to bring back are one
// small change each.
func (k Key) standing(v Version) Version {
	if k.Deleted() && v.Phase != PhaseRetired && v.Phase != PhaseDestroyed {
		v.Phase, v.Retired, v.Withdrawn = PhaseRetired, k.Transit.Deleted, k.Transit.DeletedAt
	}
	return v
}

// Delete withdraws a key of purpose transit whole, under the name DeletedName.
func (k Key) Delete(now time.Time) Key {
	k = k.Clone()
	k.Epoch = k.Epoch.Next()
	t := k.Transit
	t.Deleted, t.DeletedAt, t.Former, t.SoftDeleted = now, k.Epoch, k.Name, time.Time{}
	k.Name = k.DeletedName()
	return k
}

// Undelete takes a deletion back, under a name. Versions are as they were before it; what was destroyed since stays so, and what was retired before stays
// retired.
func (k Key) Undelete(name string) Key {
	k = k.Clone()
	k.Epoch = k.Epoch.Next()
	at := k.Transit.DeletedAt
	k.Name, k.Transit.Deleted, k.Transit.DeletedAt, k.Transit.Former = name, time.Time{}, Epoch{}, ""
	for v := range k.Versions.All() {
		if v.Phase != PhaseRetired || v.Withdrawn != at { // approvals and attempts have written down that it is retired
			continue
		}
		v.Phase, v.Retired, v.Withdrawn, v.Approved = PhaseDecryptOnly, time.Time{}, Epoch{}, nil
		switch {
		case v.Number == k.Primary:
			v.Phase = PhasePrimary
		case v.Promoted == (Epoch{}) && v.Distributed == (Epoch{}):
			v.Phase = PhaseStaged
		case v.Promoted == (Epoch{}):
			v.Phase = PhaseDistributed
		}
		k = k.Put(v)
	}
	return k
}

// DeletedName is what a deleted key of purpose transit is called, so that its name is free: MOUNT/NAME.deleted-ID with the first 8 characters of its
// ID. A name that would become too long is cut.
func (k Key) DeletedName() string {
	suffix := fmt.Sprintf(".deleted-%.8s", string(k.ID))
	return k.Name[:min(len(k.Name), MaxKeyName-len(suffix))] + suffix
}
