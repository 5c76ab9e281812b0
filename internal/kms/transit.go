package kms

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// Refusals in the words that clients of Vault match. They are causes of faults.
const (
	ErrDeletionNotAllowed = transit.Refusal("deletion is not allowed for this key")
	ErrSoftDeleted        = transit.Refusal("key is soft deleted")
	ErrImported           = transit.Refusal("imported key does not allow rotation within Vault")
	ErrNotExportable      = transit.Refusal("private key material is not exportable")
	ErrNoPlaintextBackup  = transit.Refusal("plaintext backup is disallowed on the policy")
)

// TransitSpec is what the creator of a key of purpose transit chooses.
type TransitSpec struct {
	Ref
	Algorithm suite.Algorithm // empty: the default
	Transit   keyring.Transit // what is not a creator's to choose is ignored
	Labels    map[string]string
	Rotation  keyring.Rotation
	Schedule  keyring.Schedule
}

func (t TransitSpec) key() keyring.Key {
	return keyring.Key{
		Namespace: t.Namespace, Name: t.Name, Purpose: suite.Transit, Custody: keyring.CustodyServer, Algorithm: t.Algorithm,
		Labels: t.Labels, Rotation: t.Rotation, Schedule: t.Schedule, Transit: &t.Transit,
	}
}

// begun are the settings of a new key, of which its creator chose some.
func begun(t *keyring.Transit) *keyring.Transit {
	if t == nil {
		t = &keyring.Transit{}
	}
	return &keyring.Transit{
		Spelling: t.Spelling, KeyBytes: t.KeyBytes, Derived: t.Derived, Convergent: t.Convergent, Counter: t.Counter, MinDecryption: 1,
		DeletionAllowed: t.DeletionAllowed, PlaintextBackup: t.PlaintextBackup, Exportable: t.Exportable,
		Imported: t.Imported, RotationAllowed: t.RotationAllowed,
	}
}

// TransitCreate makes a key of purpose transit. One that is there already is answered as it is, with created false. fault.Invalid, Denied.
func (s *Service) TransitCreate(ctx context.Context, c policy.Caller, spec TransitSpec) (k keyring.Key, created bool, err error) {
	spec.Transit.Imported, spec.Transit.RotationAllowed = false, false
	if _, ok := s.Lookup(spec.Namespace, spec.Name); !ok {
		k, err = s.make(ctx, c, spec.key(), s.firstVersion)
		if fault.CodeOf(err) != fault.Exists {
			return k, err == nil, err
		}
	}
	k, _, err = s.transit(ctx, c, policy.ActCreate, spec.Ref)
	return k, false, err
}

// transit finds a key of purpose transit and lets the caller through the door. fault.NotFound also of a deleted one, WrongPurpose.
func (s *Service) transit(ctx context.Context, c policy.Caller, a policy.Action, ref Ref) (keyring.Key, *guard.Permit, error) {
	k, p, err := s.admit(ctx, c, a, ref)
	if err != nil {
		return keyring.Key{}, nil, err
	}
	if k.Purpose != suite.Transit {
		return keyring.Key{}, nil, wrongPurpose(k)
	}
	if k.Deleted() || !k.Transit.SoftDeleted.IsZero() { // another server may have brought it back a moment ago
		if err := s.CatchUp(ctx); err != nil {
			return keyring.Key{}, nil, err
		}
		if now, ok := s.Lookup(ref.Namespace, ref.Name); ok {
			k = now
		}
	}
	if k.Deleted() {
		return keyring.Key{}, nil, fault.New(fault.NotFound, "key "+k.Name)
	}
	return k, p, nil
}

// usable is transit of a key that is not put aside. fault.WrongState with ErrSoftDeleted.
func (s *Service) usable(ctx context.Context, c policy.Caller, a policy.Action, ref Ref) (keyring.Key, *guard.Permit, error) {
	k, p, err := s.transit(ctx, c, a, ref)
	if err == nil && !k.Transit.SoftDeleted.IsZero() {
		return keyring.Key{}, nil, fault.Wrap(fault.WrongState, "key "+k.Name, ErrSoftDeleted)
	}
	return k, p, err
}

// TransitExists says whether a name is taken, as of now and for nobody: a front end asks it to tell which right a request needs.
func (s *Service) TransitExists(ctx context.Context, ref Ref) (bool, error) {
	if _, ok := s.Lookup(ref.Namespace, ref.Name); ok {
		return true, nil
	}
	_, ok, err := s.lookLate(ctx, ref)
	return ok, err
}

// TransitGet returns a key's record as it is now. fault.NotFound.
func (s *Service) TransitGet(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	if _, _, err := s.transit(ctx, c, policy.ActShow, ref); err != nil {
		return keyring.Key{}, err
	}
	if err := s.CatchUp(ctx); err != nil {
		return keyring.Key{}, err
	}
	now, ok := s.Lookup(ref.Namespace, ref.Name)
	if !ok || now.Purpose != suite.Transit || now.Deleted() {
		return keyring.Key{}, fault.New(fault.NotFound, "key "+ref.Name)
	}
	return now, nil
}

// TransitList returns the names of the keys below a mount, sorted, without it. Who may list a mount sees all of them, as clients of other systems
// expect: key.show on the resource MOUNT/.
func (s *Service) TransitList(ctx context.Context, c policy.Caller, ns keyring.Namespace, mount string) ([]string, error) {
	if _, err := s.guard.Admit(ctx, c, policy.ActShow, policy.Resource{Namespace: string(ns), Key: mount + "/"}); err != nil {
		return nil, err
	}
	if err := s.CatchUp(ctx); err != nil {
		return nil, err
	}
	var names []string
	for _, k := range s.mounted(ns, mount) {
		_, name, _ := keyring.CutMount(k.Name)
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// mounted are the keys of a mount that clients see.
func (s *Service) mounted(ns keyring.Namespace, mount string) (out []keyring.Key) {
	for k := range s.All() {
		if k.Namespace != ns || k.Purpose != suite.Transit || k.Deleted() || !strings.HasPrefix(k.Name, mount+"/") {
			continue
		}
		if m, _, _ := keyring.CutMount(k.Name); m == mount {
			out = append(out, k)
		}
	}
	return out
}

// mountedKeys returns the keys of a mount as they are now, by name, without asking whether anybody may.
func (s *Service) mountedKeys(ctx context.Context, ns keyring.Namespace, mount string) ([]keyring.Key, error) {
	if err := s.CatchUp(ctx); err != nil {
		return nil, err
	}
	keys := s.mounted(ns, mount)
	slices.SortFunc(keys, func(a, b keyring.Key) int { return cmp.Compare(a.Name, b.Name) })
	return keys, nil
}

// TransitChange is what TransitConfigure changes; nil: nothing.
type TransitChange struct {
	MinDecryption, MinEncryption *uint32
	DeletionAllowed              *bool
	Exportable, PlaintextBackup  *bool // false changes nothing: what was allowed once may have left
	Schedule                     ScheduleChange
	Margin                       *time.Duration // of rotations, as Pace has it
}

// ScheduleChange is what of a schedule changes; nil: nothing.
type ScheduleChange struct {
	Every   *time.Duration // 0: it does not rotate by the clock
	Jitter  *int
	MaxUses *uint64
	Windows *[]keyring.Window
}

// Of is a schedule with the change. What has no meaning any more, and is not asked for, goes.
func (ch ScheduleChange) Of(s keyring.Schedule) keyring.Schedule {
	set(&s.MaxUses, ch.MaxUses)
	set(&s.Every, ch.Every)
	s = s.WithEvery(s.Every)
	set(&s.Jitter, ch.Jitter)
	set(&s.Windows, ch.Windows)
	return s
}

func (ch ScheduleChange) isZero() bool {
	return ch.Every == nil && ch.Jitter == nil && ch.MaxUses == nil && ch.Windows == nil
}

// TransitConfigure changes settings of a key. fault.Invalid names the field.
func (s *Service) TransitConfigure(ctx context.Context, c policy.Caller, ref Ref, ch TransitChange) (keyring.Key, error) {
	detail := ch.detail()
	return s.settings(ctx, c, policy.ActConfigure, ref, detail, func(k *keyring.Key, t *keyring.Transit) error {
		err := ch.apply(k, t)
		if !ch.Schedule.isZero() {
			detail["schedule"] = k.Schedule.String()
		}
		return err
	})
}

// settings changes what clients see of a key. It leaves versions as they are.
func (s *Service) settings(ctx context.Context, c policy.Caller, a policy.Action, ref Ref, detail map[string]string, edit func(k *keyring.Key, t *keyring.Transit) error) (keyring.Key, error) {
	k, p, err := s.usable(ctx, c, a, ref)
	if err != nil {
		return keyring.Key{}, err
	}
	return s.narrow(ctx, p, k.ID, detail, func(k keyring.Key) (keyring.Key, change, error) {
		if err := unmoved(k, ref); err != nil {
			return k, change{}, err
		}
		next := k.Clone()
		if err := edit(&next, next.Transit); err != nil {
			return k, change{}, err
		}
		return next, change{}, nil
	})
}

// unmoved refuses a key that was deleted or renamed since it was found.
func unmoved(k keyring.Key, ref Ref) error {
	switch {
	case k.Name != ref.Name || k.Deleted():
		return fault.New(fault.NotFound, "key "+ref.Name)
	case !k.Transit.SoftDeleted.IsZero():
		return fault.Wrap(fault.WrongState, "key "+k.Name, ErrSoftDeleted)
	}
	return nil
}

// pace is what changes of when a key rotates, which has had a schedule.
func (ch TransitChange) pace(was keyring.Schedule) Pace {
	to := Pace{Margin: ch.Margin}
	if !ch.Schedule.isZero() {
		s := ch.Schedule.Of(was)
		to.Schedule = &s
	}
	return to
}

func (ch TransitChange) apply(k *keyring.Key, t *keyring.Transit) error {
	was := *t
	if ch.MinDecryption != nil {
		t.MinDecryption = max(*ch.MinDecryption, 1)
		if t.MinDecryption > k.Primary {
			return invalid("min_decryption_version", "cannot set min decryption version of %d, latest key version is %d", t.MinDecryption, k.Primary)
		}
	}
	if ch.MinEncryption != nil {
		t.MinEncryption = *ch.MinEncryption
		if t.MinEncryption > k.Primary {
			return invalid("min_encryption_version", "cannot set min encryption version of %d, latest key version is %d", t.MinEncryption, k.Primary)
		}
	}
	if t.MinEncryption > 0 && t.MinEncryption < t.MinDecryption {
		return invalid("min_encryption_version", "cannot set min encryption/decryption values; min encryption version of %d must be greater than or equal to min decryption version of %d",
			t.MinEncryption, t.MinDecryption)
	}
	set(&t.DeletionAllowed, ch.DeletionAllowed)
	t.Exportable = t.Exportable || ch.Exportable != nil && *ch.Exportable
	t.PlaintextBackup = t.PlaintextBackup || ch.PlaintextBackup != nil && *ch.PlaintextBackup
	if pace := ch.pace(k.Schedule); pace != (Pace{}) {
		if err := pace.apply(k); err != nil {
			return err
		}
	}
	switch {
	case *t == was:
	case t.MinAvailable > t.MinEncryption:
		return invalid("min_encryption_version", "min encryption version should not be less than min available version")
	case t.MinAvailable > t.MinDecryption:
		return invalid("min_decryption_version", "min decryption version should not be less then min available version")
	}
	return nil
}

func set[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}

// detail is what the entry says.
func (ch TransitChange) detail() map[string]string {
	d := map[string]string{}
	say(d, "min_decryption_version", ch.MinDecryption)
	say(d, "min_encryption_version", ch.MinEncryption)
	say(d, "deletion_allowed", ch.DeletionAllowed)
	say(d, "exportable", ch.Exportable)
	say(d, "allow_plaintext_backup", ch.PlaintextBackup)
	say(d, "margin", ch.Margin)
	return d
}

func say[T any](d map[string]string, field string, to *T) {
	if to != nil {
		d[field] = fmt.Sprint(*to)
	}
}

// TransitTrim hides the versions before n from clients, for good. Their material stays until it is destroyed through the gates. fault.Invalid.
func (s *Service) TransitTrim(ctx context.Context, c policy.Caller, ref Ref, n uint32) (keyring.Key, error) {
	detail := map[string]string{"min_available_version": fmt.Sprint(n)}
	return s.settings(ctx, c, policy.ActConfigure, ref, detail, func(_ *keyring.Key, t *keyring.Transit) error {
		const field = "min_available_version"
		switch {
		case n < t.MinAvailable:
			return invalid(field, "minimum available version cannot be decremented")
		case t.MinEncryption == 0:
			return invalid(field, "minimum available version cannot be set when minimum encryption version is not set")
		case t.MinDecryption == 0:
			return invalid(field, "minimum available version cannot be set when minimum decryption version is not set")
		case n > t.MinEncryption:
			return invalid(field, "minimum available version cannot be greater than minmum encryption version")
		case n > t.MinDecryption:
			return invalid(field, "minimum available version cannot be greater than minimum decryption version")
		case n == 0:
			return invalid(field, "minimum available version should be positive")
		}
		t.MinAvailable = n
		return nil
	})
}

// TransitSoftDelete puts a key aside: nothing can be done with it until TransitUnsoftDelete. fault.WrongState with ErrDeletionNotAllowed.
func (s *Service) TransitSoftDelete(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	detail := map[string]string{"soft_deleted": "true"}
	return s.settings(ctx, c, policy.ActDelete, ref, detail, func(k *keyring.Key, t *keyring.Transit) error {
		if !t.DeletionAllowed {
			return fault.Wrap(fault.WrongState, "key "+k.Name, ErrDeletionNotAllowed)
		}
		t.SoftDeleted = s.now().UTC()
		return nil
	})
}

// TransitUnsoftDelete takes a key up again that was put aside. One that was not is left as it is.
func (s *Service) TransitUnsoftDelete(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	k, p, err := s.transit(ctx, c, policy.ActDelete, ref)
	if err != nil {
		return keyring.Key{}, err
	}
	return s.update(ctx, p, k.ID, map[string]string{"soft_deleted": "false"}, func(k keyring.Key) (keyring.Key, change, error) {
		if k.Name != ref.Name || k.Deleted() {
			return k, change{}, fault.New(fault.NotFound, "key "+ref.Name)
		}
		next := k.Clone()
		next.Transit.SoftDeleted = time.Time{}
		return next, change{}, nil
	})
}

// TransitRotate makes the next version. As nobody but the server holds the key it is primary in the same commit, unless the key's margin asks for a
// wait: then it is staged, and the answer has the primary of before. fault.WrongState with ErrImported, RotationInFlight.
func (s *Service) TransitRotate(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	return s.stage(ctx, c, ref, 0, "", s.nextVersion)
}

// notAside refuses to give a key a version that a client has deleted or put aside. fault.WrongState.
func notAside(k keyring.Key) error {
	switch {
	case k.Deleted():
		return fault.New(fault.WrongState, "key "+k.Name).WithHint("a client has deleted it, as %s; rotor key undelete brings it back", k.Transit.Former)
	case k.Transit != nil && !k.Transit.SoftDeleted.IsZero():
		return fault.Wrap(fault.WrongState, "key "+k.Name, ErrSoftDeleted)
	}
	return nil
}

// wrongPurpose refuses what a key is not for. One of purpose transit is used through its mount alone.
func wrongPurpose(k keyring.Key) error {
	err := fault.New(fault.WrongPurpose, "key "+k.Name+" is for "+string(k.Purpose))
	if k.Purpose == suite.Transit {
		mount, name, _ := keyring.CutMount(k.Name)
		return err.WithHint("clients of Vault use it, at /v1/%s/encrypt/%s and so on; rotor login --vault gives them what they need", mount, name)
	}
	return err
}

func invalid(field, words string, args ...any) error {
	text := fmt.Sprintf(words, args...)
	return fault.Wrap(fault.Invalid, field, transit.Refusal(text)).WithHint("%s", text)
}
