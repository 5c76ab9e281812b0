// Package rotation is the server half of the rotation machine: pure functions from a key's record and its members to the
// key's next record, each refusing while its gate does not hold. It has no clock and no I/O; rollout commits what it returns
// under the condition that neither the key's record nor the membership changed meanwhile. The instance half is package
// holder. The phases and gates are those of docs/explain/rotation.md.
package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

// Member is one stored holder of a key.
type Member struct {
	Instance string        // its name
	Acked    keyring.Epoch // the newest epoch that it has proven to be able to use; zero: none yet
}

// Census is the evidence that a retirement or destruction rests on: what a full scan of every registered data set found.
type Census struct {
	Version     uint32        // the version that was counted
	Epoch       keyring.Epoch // the key's epoch when the scan started
	Settled     bool          // when it started, every member had acknowledged Epoch and each data set's floor (or in-flight time) excluded the version
	Started     time.Time
	Remaining   uint64   // ciphertexts under the version, in both header slots of files
	Unreachable []string // data sets that could not be scanned: the count is not known
}

// Waiting names the members that have not acknowledged the epoch, sorted.
func Waiting(members []Member, e keyring.Epoch) []string {
	var names []string
	for _, m := range members {
		if m.Acked.Less(e) {
			names = append(names, m.Instance)
		}
	}
	slices.Sort(names)
	return names
}

// Stage adds a new version, known to nobody yet, as the target of a rotation. v carries handle, algorithm and public key; the
// caller has made its material durable in the same commit. fault.RotationInFlight.
func Stage(k keyring.Key, v keyring.Version, now time.Time) (keyring.Key, error) {
	if k.Target != 0 {
		return k, fault.New(fault.RotationInFlight, "key "+k.Name)
	}
	k = k.Clone()
	v.Number = k.NextNumber()
	v.State, v.Phase, v.Created = keyring.PreActivation, keyring.PhaseStaged, now
	k = k.Append(v)
	k.Target, k.Since = v.Number, now
	return k, nil
}

// AtOnce says whether a new version of a key becomes primary in the commit that makes it: nobody but the server ever holds it, no data set has to
// be asked, and no stranger's cache has to end.
func AtOnce(k keyring.Key) bool { return k.Purpose == suite.Transit && k.Rotation.Margin == 0 }

// Turn is Stage, and Distribute and Promote with it if the key goes at once.
func Turn(k keyring.Key, v keyring.Version, now time.Time) (keyring.Key, error) {
	k, err := Stage(k, v, now)
	if err != nil || !AtOnce(k) {
		return k, err
	}
	if k, err = Distribute(k, now); err != nil {
		return k, err
	}
	return Promote(k, nil, now, false)
}

// First makes version 1 of a key that nobody can hold yet primary at once.
func First(k keyring.Key, v keyring.Version, now time.Time) (keyring.Key, error) {
	k.Epoch = keyring.Epoch{Incarnation: max(k.Epoch.Incarnation, 1)}
	k, err := Stage(k, v, now)
	if err != nil {
		return k, err
	}
	if k, err = Distribute(k, now); err != nil {
		return k, err
	}
	return Promote(k, nil, now, true) // nobody holds it, so the margin for strangers has nobody to protect
}

// Distribute publishes the staged target to the holders. fault.GateClosed.
func Distribute(k keyring.Key, now time.Time) (keyring.Key, error) {
	v, err := k.Version(k.Target)
	if err != nil || v.Phase != keyring.PhaseStaged {
		return k, fault.New(fault.GateClosed, "key "+k.Name+" has nothing staged")
	}
	k = raise(k)
	v.Phase, v.Distributed, v.Published = keyring.PhaseDistributed, k.Epoch, now
	return put(k, v), nil
}

// Promote makes the target the primary version, and the primary so far decrypt-only in the same step. Every member must have
// acknowledged the target's distribution, unless emergency is set (a compromised primary), which gives up S1 for those that
// have not. fault.GateClosed names them.
func Promote(k keyring.Key, members []Member, now time.Time, emergency bool) (keyring.Key, error) {
	v, err := k.Version(k.Target)
	if err != nil {
		return k, fault.New(fault.GateClosed, "key "+k.Name+" has no rotation in flight")
	}
	if v.Phase != keyring.PhaseDistributed && v.Phase != keyring.PhaseDecryptOnly {
		return k, fault.New(fault.GateClosed, fmt.Sprintf("key %s, version %d is %s", k.Name, v.Number, v.Phase))
	}
	if late := Waiting(members, v.Distributed); len(late) > 0 && !emergency {
		return k, fault.New(fault.GateClosed, "key "+k.Name+" waits for "+strings.Join(late, ", "))
	}
	if ready := v.Published.Add(k.Rotation.Margin); now.Before(ready) && !emergency {
		return k, fault.New(fault.GateClosed, "key "+k.Name+" waits until strangers' caches end at "+ready.UTC().Format(time.RFC3339))
	}
	if v.State == keyring.PreActivation {
		if k, err = k.Apply(v.Number, keyring.Activate, "", now); err != nil {
			return k, err
		}
		v, _ = k.Version(v.Number) // it was there
	}
	if v.State != keyring.Active {
		return k, fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d is %s", k.Name, v.Number, v.State))
	}
	if !usable(k, v, now) { // a rollback that waited for longer than the version's period
		return k, fault.New(fault.PeriodOver, fmt.Sprintf("key %s, version %d to protect", k.Name, v.Number))
	}
	k = raise(k)
	if old, err := k.Version(k.Primary); err == nil && old.Phase == keyring.PhasePrimary { // it may be destroyed, of a key that was deleted and brought back
		old.Phase, old.Demoted = keyring.PhaseDecryptOnly, now
		k = put(k, old)
	}
	v.Phase, v.Promoted = keyring.PhasePrimary, k.Epoch
	k.Primary, k.Target, k.Since = v.Number, 0, time.Time{}
	return put(k, v), nil
}

// Back aims the key at a version that it had before. While a rotation is in flight only the present primary can be named:
// the target is given up, and destroyed with a tombstone if it never protected anything. After a promotion an older version can be named while
// its window is open: it becomes the target, and Promote takes it once its gate holds; the newer version stays decrypt-enabled. Never
// towards a version that is not active or is past its originator-usage period, nor past a version that is retired.
// fault.WrongState, PeriodOver, GateClosed.
func Back(k keyring.Key, n uint32, now time.Time) (keyring.Key, error) {
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	if k.Target != 0 {
		return giveUp(k, n, now)
	}
	if n == k.Primary {
		return k, fault.New(fault.GateClosed, fmt.Sprintf("key %s, version %d is primary already", k.Name, n))
	}
	if v.Phase != keyring.PhaseDecryptOnly || v.State != keyring.Active {
		return k, fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d is %s and %s", k.Name, n, v.State, v.Phase)).
			WithHint("only an active version within its rollback window can become primary again; rotate to a new one instead")
	}
	if !WindowOpen(k, v, now) {
		return k, fault.New(fault.WrongState, fmt.Sprintf("the rollback window of key %s, version %d", k.Name, n))
	}
	if m := withdrawnAbove(k, n); m != 0 {
		return k, fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d was retired since", k.Name, m)).
			WithHint("data sets refuse what is older than it; rotate to a new version instead")
	}
	v.Phase = keyring.PhasePrimary // what MayProtect would say of it as the primary
	if err := k.MayProtect(v, now); err != nil {
		return k, err
	}
	k = k.Clone()
	k.Target, k.Since, k.Algorithm = n, now, v.Algorithm // the next version is of the kind that the key goes back to
	return k, nil
}

// withdrawnAbove returns a version after n that was used and is retired or destroyed; 0: none. Going back to n would lower the floors
// of the data sets below it, and a write under it, frozen since before its retirement, would be accepted again.
func withdrawnAbove(k keyring.Key, n uint32) uint32 {
	for v := range k.From(n + 1) {
		if v.Promoted != (keyring.Epoch{}) && (v.Phase == keyring.PhaseRetired || v.Phase == keyring.PhaseDestroyed) {
			return v.Number
		}
	}
	return 0
}

func giveUp(k keyring.Key, n uint32, now time.Time) (keyring.Key, error) {
	if n != k.Primary {
		return k, fault.New(fault.RotationInFlight, "key "+k.Name).WithHint("while it is in flight only version %d can be rolled back to", k.Primary)
	}
	target, err := k.Version(k.Target)
	if err != nil {
		return k, err
	}
	k = raise(k)
	k.Target, k.Since = 0, time.Time{}
	if v, err := k.Version(n); err == nil {
		k.Algorithm = v.Algorithm
	}
	if target.Promoted != (keyring.Epoch{}) {
		return k, nil // the target of a rollback, which protected before
	}
	if k, err = k.Apply(target.Number, keyring.Destroy, "rotation given up", now); err != nil {
		return k, err
	}
	target, _ = k.Version(target.Number) // it was there
	target.Phase, target.Withdrawn = keyring.PhaseDestroyed, k.Epoch
	return put(k, target), nil
}

// WindowOpen says whether a demoted version may become primary again.
func WindowOpen(k keyring.Key, v keyring.Version, now time.Time) bool {
	return v.Phase == keyring.PhaseDecryptOnly && v.State == keyring.Active && now.Before(v.Demoted.Add(k.Rotation.Defaults().Window))
}

// settleAtOnce bounds how many versions one step settles: each may take its material with it, and a commit has its bounds.
const settleAtOnce = 16

// Settle deactivates the demoted versions whose rollback window is over, so many of them at a time; for good, as SP 800-57 has no way back. It
// returns false when there is none. A version that is the target of a rollback in flight keeps its state.
func Settle(k keyring.Key, now time.Time) (keyring.Key, bool) {
	if at, ok := settles(k); !ok || now.Before(at) {
		return k, false
	}
	changed := 0
	for v := range k.Unsettled() {
		if v.Number == k.Target || WindowOpen(k, v, now) {
			continue
		}
		if next, err := k.Apply(v.Number, keyring.Deactivate, "", now); err == nil {
			k, changed = next, changed+1
		}
		if changed == settleAtOnce {
			break
		}
	}
	if changed > 0 {
		k = raise(k)
	}
	return k, changed > 0
}

// settles is when the first rollback window ends.
func settles(k keyring.Key) (time.Time, bool) {
	demoted, ok := k.FirstDemoted()
	return demoted.Add(k.Rotation.Defaults().Window), ok
}

// Due says when Next may have something to do with a key that does not change; false: never. It costs the same however many versions there are.
func Due(k keyring.Key) (at time.Time, ok bool) {
	if k.Deleted() {
		return time.Time{}, false
	}
	if k.Target != 0 || Emergency(k) {
		return time.Time{}, true
	}
	return settles(k)
}

// Counting says since when a census of a version may start: every member has acknowledged the promotion of the primary that
// took its place. It returns the members that have not.
func Counting(k keyring.Key, n uint32, members []Member) (late []string, err error) {
	v, err := k.Version(n)
	if err != nil {
		return nil, err
	}
	primary, err := k.Version(k.Primary)
	if err != nil {
		return nil, err
	}
	if (n == k.Primary || n == k.Target) && !k.Deleted() {
		return nil, fault.New(fault.InUse, fmt.Sprintf("key %s, version %d protects", k.Name, n))
	}
	return Waiting(members, later(primary.Promoted, v.Withdrawn)), nil
}

// Retire withdraws a demoted version from every holder: it is refused everywhere from now on, and can still be brought back.
// The census must have started after every member acknowledged that another version protects and after the floors were up,
// and be 0. fault.InUse with the count, GateClosed, WrongState.
func Retire(k keyring.Key, n uint32, c Census, members []Member, now time.Time) (keyring.Key, error) {
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	if v.Phase != keyring.PhaseDecryptOnly {
		if n == k.Primary {
			return k, fault.New(fault.InUse, fmt.Sprintf("key %s, version %d is primary", k.Name, n)).WithHint("rotate first")
		}
		return k, fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d is %s", k.Name, n, v.Phase))
	}
	if n == k.Target {
		return k, fault.New(fault.InUse, fmt.Sprintf("key %s, version %d is about to be primary again", k.Name, n))
	}
	if err := proven(k, n, c, members); err != nil {
		return k, err
	}
	if v.State == keyring.Active {
		if k, err = k.Apply(n, keyring.Deactivate, "", now); err != nil {
			return k, err
		}
		v, _ = k.Version(n) // it was there
	}
	k = raise(k)
	v.Phase, v.Retired, v.Withdrawn, v.Approved = keyring.PhaseRetired, now, k.Epoch, nil
	return put(k, v), nil
}

// proven says whether the census shows that nothing is left under version n, and can still be believed.
func proven(k keyring.Key, n uint32, c Census, members []Member) error {
	name := fmt.Sprintf("key %s, version %d", k.Name, n)
	late, err := Counting(k, n, members)
	if err != nil {
		return err
	}
	primary, err := k.Version(k.Primary)
	if err != nil {
		return err
	}
	counted, err := k.Version(n)
	if err != nil {
		return err
	}
	switch {
	case len(late) > 0:
		return fault.New(fault.GateClosed, name+" waits for "+strings.Join(late, ", "))
	case c.Version != n || !c.Settled || c.Epoch.Less(later(primary.Promoted, counted.Withdrawn)):
		return fault.New(fault.GateClosed, name+" has no census that started after its last use could have ended")
	case len(c.Unreachable) > 0:
		return fault.New(fault.GateClosed, name+": not counted: "+strings.Join(c.Unreachable, ", "))
	case c.Remaining > 0:
		return fault.New(fault.InUse, fmt.Sprintf("%s: %d ciphertexts are under it", name, c.Remaining))
	}
	return nil
}

// Unretire brings a retired version back to the holders, decrypt-only. fault.WrongState.
func Unretire(k keyring.Key, n uint32) (keyring.Key, error) {
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	if v.Phase != keyring.PhaseRetired {
		return k, fault.New(fault.WrongState, fmt.Sprintf("key %s, version %d is %s", k.Name, n, v.Phase))
	}
	k = raise(k)
	v.Phase, v.Distributed, v.Approved, v.Retired = keyring.PhaseDecryptOnly, k.Epoch, nil, time.Time{}
	return put(k, v), nil
}

// Attempted restarts the wait of a retired version that somebody tried to use. It returns false when there is nothing to do.
func Attempted(k keyring.Key, n uint32, now time.Time) (keyring.Key, bool) {
	v, err := k.Version(n)
	if err != nil || v.Phase != keyring.PhaseRetired || !now.After(v.Retired) {
		return k, false
	}
	v.Retired = now
	return put(k.Clone(), v), true
}

// Approve notes that somebody asks for the destruction of a version; asking twice counts once. A version in use is refused with
// the reason. fault.InUse, WrongState.
func Approve(k keyring.Key, n uint32, who string) (keyring.Key, error) {
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	switch v.Phase {
	case keyring.PhaseRetired:
	case keyring.PhaseDestroyed:
		return k, fault.New(fault.VersionDestroyed, fmt.Sprintf("key %s, version %d", k.Name, n))
	default:
		return k, fault.New(fault.InUse, fmt.Sprintf("key %s, version %d is %s", k.Name, n, v.Phase)).
			WithHint("rotate away from it, move its data with a campaign and retire it first")
	}
	if slices.Contains(v.Approved, who) {
		return k, nil
	}
	k = k.Clone()
	v.Approved = append(slices.Clone(v.Approved), who)
	return put(k, v), nil
}

// Destroy makes a retired version's material unreachable for ever; the caller deletes the material in the same commit. The
// wait is over, enough callers approved, every member acknowledged the retirement, and a second census, started after the wait, is 0.
// fault.GateClosed, InUse, WrongState.
func Destroy(k keyring.Key, n uint32, c Census, members []Member, now time.Time) (keyring.Key, error) {
	v, err := k.Version(n)
	if err != nil {
		return k, err
	}
	name, r := fmt.Sprintf("key %s, version %d", k.Name, n), k.Rotation.Defaults()
	if v.Phase != keyring.PhaseRetired {
		_, err := Approve(k, n, "")
		return k, err
	}
	asked := ""
	if len(v.Approved) < r.Approvals {
		asked = fmt.Sprintf(" has %d of %d approvals", len(v.Approved), r.Approvals)
	}
	if free := v.Retired.Add(r.Wait); now.Before(free) || c.Started.Before(free) {
		why := name + " waits until " + free.UTC().Format(time.RFC3339) + ", then for a census"
		if asked != "" {
			why += ", and" + asked
		}
		return k, fault.New(fault.GateClosed, why)
	}
	if asked != "" {
		return k, fault.New(fault.GateClosed, name+asked)
	}
	if err := proven(k, n, c, members); err != nil {
		return k, err
	}
	if k, err = k.Apply(n, keyring.Destroy, "", now); err != nil {
		return k, err
	}
	v, _ = k.Version(n) // it was there
	k = raise(k)
	v.Phase, v.Withdrawn = keyring.PhaseDestroyed, k.Epoch
	return put(k, v), nil
}

// Change applies an event of the state machine to a version (suspend, resume, compromise) and raises the epoch, so that
// holders hear of it. fault.WrongState.
func Change(k keyring.Key, n uint32, e keyring.Event, reason string, now time.Time) (keyring.Key, error) {
	k, err := k.Apply(n, e, reason, now)
	if err != nil {
		return k, err
	}
	return raise(k), nil
}

// Step is what a key's rotation can do next.
type Step string

// The steps that rollout takes by itself.
const (
	StepNone       Step = ""
	StepDistribute Step = "distribute"
	StepWait       Step = "wait" // for the members that Next names
	StepPromote    Step = "promote"
	StepSettle     Step = "settle"
	StepReplace    Step = "replace" // stage a version in place of a compromised primary
)

// Names that stand in Next's list beside those of members.
const (
	MarginName = "jwks-margin"       // the strangers whose cached JWKS may be older than the target
	TargetName = "target-not-usable" // the target is suspended, compromised or past its period: it has to be given up, or resumed
)

// Emergency says whether the primary version is compromised. Its successor is then promoted without waiting for anybody: S1 is
// given up for those that are behind, who fetch it when they meet it.
func Emergency(k keyring.Key) bool {
	v, err := k.Version(k.Primary)
	return err == nil && v.State == keyring.Compromised
}

// usable says whether a target can become primary, as far as its state goes.
func usable(k keyring.Key, v keyring.Version, now time.Time) bool {
	if v.State == keyring.PreActivation {
		return true
	}
	v.Phase = keyring.PhasePrimary // what MayProtect would say of it as the primary
	return k.MayProtect(v, now) == nil
}

// Next says which step a key can take now, and for whom it waits.
func Next(k keyring.Key, members []Member, now time.Time) (Step, []string) {
	if k.Deleted() {
		return StepNone, nil
	}
	if v, err := k.Version(k.Target); err == nil {
		if v.Phase == keyring.PhaseStaged {
			return StepDistribute, nil
		}
		if !usable(k, v, now) {
			return StepWait, []string{TargetName}
		}
		if Emergency(k) {
			return StepPromote, nil
		}
		if late := Waiting(members, v.Distributed); len(late) > 0 {
			return StepWait, late
		}
		if now.Before(v.Published.Add(k.Rotation.Margin)) {
			return StepWait, []string{MarginName}
		}
		return StepPromote, nil
	}
	if Emergency(k) {
		return StepReplace, nil
	}
	if _, ok := Settle(k, now); ok {
		return StepSettle, nil
	}
	return StepNone, nil
}

func raise(k keyring.Key) keyring.Key {
	k = k.Clone()
	k.Epoch = k.Epoch.Next()
	return k
}

// put replaces a version of a key that was cloned before.
func put(k keyring.Key, v keyring.Version) keyring.Key {
	return k.Put(v)
}

func later(a, b keyring.Epoch) keyring.Epoch {
	if a.Less(b) {
		return b
	}
	return a
}
