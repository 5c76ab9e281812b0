package kms

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// Rotate stages a new version and leaves the gated steps to rollout. expected is the epoch counter that the caller's plan was
// made for, 0 for any. fault.RotationInFlight, Conflict.
func (s *Service) Rotate(ctx context.Context, c policy.Caller, ref Ref, expected uint64) (keyring.Key, error) {
	return s.RotateTo(ctx, c, ref, expected, "")
}

// RotateTo is Rotate to an algorithm of the same purpose, for the new version and those after it; empty: as before. Older versions keep theirs.
// The new one is not weaker: that takes a new key. fault.AlgorithmForbidden, Invalid for one that the custody does not go with.
func (s *Service) RotateTo(ctx context.Context, c policy.Caller, ref Ref, expected uint64, a suite.Algorithm) (keyring.Key, error) {
	return s.stage(ctx, c, ref, expected, a, s.nextVersion)
}

// nextVersion is newVersion, but of an imported key whose importer does not allow that. fault.WrongState with ErrImported.
func (s *Service) nextVersion(ctx context.Context, k keyring.Key, n uint32, now time.Time) (keyring.Version, change, error) {
	if t := k.Transit; t != nil && t.Imported && !t.RotationAllowed {
		return keyring.Version{}, change{}, fault.Wrap(fault.WrongState, "key "+k.Name, ErrImported)
	}
	return s.newVersion(ctx, k, n, now)
}

// turned is a key whose next version has another algorithm.
func turned(k keyring.Key, a suite.Algorithm) (keyring.Key, error) {
	if a == "" || a == k.Algorithm {
		return k, nil
	}
	was, err := suite.Lookup(k.Algorithm)
	if err != nil {
		return k, err
	}
	if k.Purpose == suite.Transit {
		return k, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)).WithHint("clients know the key as %s: make a new key", k.Algorithm)
	}
	next, err := suite.ForPurpose(a, k.Purpose)
	if err != nil {
		return k, err
	}
	if next.Bits < was.Bits || next.Quantum < was.Quantum {
		return k, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)).WithHint("it is weaker than %s; a weaker key is a new one", was.ID)
	}
	k = k.Clone()
	k.Algorithm = a
	return k, k.Validate()
}

// stage makes the next version of a key by make and stages it. a: its algorithm; empty: as before.
func (s *Service) stage(ctx context.Context, c policy.Caller, ref Ref, expected uint64, a suite.Algorithm, make func(context.Context, keyring.Key, uint32, time.Time) (keyring.Version, change, error)) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActRotate, ref)
	if err != nil {
		return k, err
	}
	now, detail := s.now().UTC(), map[string]string{}
	return s.update(ctx, p, k.ID, detail, func(k keyring.Key) (keyring.Key, change, error) {
		if err := planned(k, expected); err != nil {
			return k, change{}, err
		}
		k, err := turned(k, a)
		if err != nil {
			return k, change{}, err
		}
		return s.further(ctx, k, detail, now, make)
	})
}

// further makes the next version of a key by make, and stages it or makes it primary. It notes the version in detail.
func (s *Service) further(
	ctx context.Context, k keyring.Key, detail map[string]string, now time.Time, make func(context.Context, keyring.Key, uint32, time.Time) (keyring.Version, change, error),
) (keyring.Key, change, error) {
	if err := s.MayTurn(k); err != nil {
		return k, change{}, err
	}
	v, made, err := make(ctx, k, k.NextNumber(), now)
	if err != nil {
		return k, change{}, err
	}
	describe(detail, v)
	block, err := s.firstBlock(k, &v, detail)
	if err != nil {
		return k, made, err
	}
	next, err := rotation.Turn(k, v, now)
	return next, made.and(block), err
}

// MayTurn says what stands against another version of a key. fault.RotationInFlight, WrongState, QuotaReached, TooLarge, AlgorithmForbidden.
func (s *Service) MayTurn(k keyring.Key) error {
	if k.Target != 0 {
		return fault.New(fault.RotationInFlight, "key "+k.Name)
	}
	if err := notAside(k); err != nil {
		return err
	}
	if err := s.roomForVersion(k); err != nil {
		return err
	}
	if err := s.roomInRecord(k); err != nil {
		return err
	}
	return s.suites.Allows(k.Algorithm, k.Purpose)
}

// describe notes a new version for its audit entry.
func describe(detail map[string]string, v keyring.Version) {
	detail["version"], detail["algorithm"] = fmt.Sprint(v.Number), string(v.Algorithm)
	if v.Origin != "" {
		detail["origin"] = v.Origin
	}
	if !v.Originated.IsZero() {
		detail["originated"] = v.Originated.Format(time.RFC3339)
	}
}

// Replace stages a new version in place of a compromised primary, for rollout; somebody else's rotation in flight will do as well.
func (s *Service) Replace(ctx context.Context, id keyring.KeyID, conds ...guard.Cond) (keyring.Key, error) {
	k, _, err := s.read(ctx, id)
	if err != nil {
		return k, err
	}
	p := s.guard.System("rollout", policy.ActRotate, Resource(k))
	return s.update(ctx, p, id, map[string]string{"reason": "the primary version is compromised"}, func(k keyring.Key) (keyring.Key, change, error) {
		if k.Target != 0 || !rotation.Emergency(k) || k.Deleted() {
			return k, change{}, nil
		}
		now := s.now().UTC()
		v, made, err := s.newVersion(ctx, k, k.NextNumber(), now)
		if err != nil {
			return k, change{}, err
		}
		for _, c := range conds {
			if c.Path != "" {
				made.conds = append(made.conds, c)
			}
		}
		next, err := rotation.Turn(k, v, now)
		return next, made, err
	})
}

// Bounds of a key before a rotation.
const (
	// maxRecord is of its head, in bytes, and of all of it while there are servers that know no pages. A commit takes 1 MiB (store.MaxBytes); the rest
	// is kept free, so that a version can always be suspended, compromised and destroyed.
	maxRecord = 512 << 10
	// maxVersions is of all its versions, destroyed ones too.
	maxVersions = 100_000
)

// roomInRecord says whether there can be another version of a key. fault.TooLarge.
func (s *Service) roomInRecord(k keyring.Key) error {
	tooLarge := fault.New(fault.TooLarge, "key "+k.Name)
	switch {
	case k.Holdable() && k.Len() >= keyring.MaxHeld:
		return tooLarge.WithHint("it has %d versions, which is all that an instance takes of a key; make a new key", k.Len())
	case k.Len() >= maxVersions:
		return tooLarge.WithHint("it has %d versions, and no key has more; make a new key", k.Len())
	case s.shape(k).paged:
		return nil
	}
	if record, err := json.Marshal(k); err != nil || len(record) > maxRecord {
		return tooLarge.WithHint("it has %d versions, which is all that its record takes while a server of an older build works on the store", k.Len())
	}
	return nil
}

// Back aims a key at an earlier version, or gives up the rotation in flight (rotation.Back).
func (s *Service) Back(ctx context.Context, c policy.Caller, ref Ref, n uint32, expected uint64) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActRollback, ref)
	if err != nil {
		return k, err
	}
	return s.update(ctx, p, k.ID, versionDetail(n), func(k keyring.Key) (keyring.Key, change, error) {
		if err := planned(k, expected); err != nil {
			return k, change{}, err
		}
		next, err := rotation.Back(k, n, s.now().UTC())
		return next, s.withdraw(k, next), err
	})
}

func planned(k keyring.Key, expected uint64) error {
	if expected != 0 && k.Epoch.Counter != expected {
		return fault.New(fault.Conflict, "key "+k.Name).WithHint("the key changed since the plan was made; make a new plan")
	}
	return nil
}

// withdraw deletes the material that a change makes useless, in the same commit: of what it destroys, and the private half of a signing
// version that it deactivates or compromises.
func (s *Service) withdraw(was, next keyring.Key) change {
	var w change
	for v := range next.ChangedSince(was) {
		if old, err := was.Version(v.Number); err == nil && was.KeepsMaterial(old) && !next.KeepsMaterial(v) {
			w.writes = append(w.writes, guard.Write{Path: materialPath(was, v.Number), Delete: true})
		}
	}
	return w
}

// Step takes a gated step of a rotation for rollout, under conditions: that the membership did not change by which it was decided, that the
// server which decided still leads. One without a path is none. It returns the key unchanged when there was nothing to do.
func (s *Service) Step(ctx context.Context, id keyring.KeyID, members guard.Cond, step func(keyring.Key, time.Time) (keyring.Key, error), conds ...guard.Cond) (keyring.Key, error) {
	return s.step(ctx, policy.ActRotate, id, map[string]string{}, members, step, conds...)
}

// Destroyed is Step for the destruction of a version. What it rests on stands in the log, for the certificate: the census, and who approved.
func (s *Service) Destroyed(
	ctx context.Context, id keyring.KeyID, n uint32, grounds map[string]string, members guard.Cond, step func(keyring.Key, time.Time) (keyring.Key, error), conds ...guard.Cond,
) (keyring.Key, error) {
	detail := versionDetail(n)
	maps.Copy(detail, grounds)
	return s.step(ctx, policy.ActDestroy, id, detail, members, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		if v, err := k.Version(n); err == nil {
			detail["destroyed"], detail["key_id"], detail["algorithm"] = "true", string(k.ID), string(v.Algorithm)
			detail["approved_by"] = joined(v.Approved)
		}
		return step(k, now)
	}, conds...)
}

// joined joins names of callers. Those of tokens can have anything printable in them, and the separator in one would make two approvals of it.
func joined(callers []string) string {
	out := make([]string, len(callers))
	for i, name := range callers {
		out[i] = strings.ReplaceAll(name, ", ", ",%20")
	}
	return strings.Join(out, ", ")
}

func (s *Service) step(
	ctx context.Context, a policy.Action, id keyring.KeyID, detail map[string]string, members guard.Cond, step func(keyring.Key, time.Time) (keyring.Key, error), conds ...guard.Cond,
) (keyring.Key, error) {
	k, _, err := s.read(ctx, id)
	if err != nil {
		return k, err
	}
	p := s.guard.System("rollout", a, Resource(k))
	return s.update(ctx, p, id, detail, func(k keyring.Key) (keyring.Key, change, error) {
		next, err := step(k, s.now().UTC())
		w := s.withdraw(k, next)
		for _, c := range append(conds, members) {
			if c.Path != "" {
				w.conds = append(w.conds, c)
			}
		}
		return next, w, err
	})
}

// Retire withdraws a version for a caller with the evidence of a census; members as in Step.
func (s *Service) Retire(ctx context.Context, c policy.Caller, ref Ref, n uint32, census rotation.Census, members []rotation.Member, cond guard.Cond) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActRetire, ref)
	if err != nil {
		return k, err
	}
	return s.narrow(ctx, p, k.ID, versionDetail(n), func(k keyring.Key) (keyring.Key, change, error) {
		next, err := rotation.Retire(k, n, census, members, s.now().UTC())
		w := s.withdraw(k, next)
		w.conds = append(w.conds, cond)
		return next, w, err
	})
}

// Unretire brings a retired version back.
func (s *Service) Unretire(ctx context.Context, c policy.Caller, ref Ref, n uint32) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActRetire, ref)
	if err != nil {
		return k, err
	}
	return s.update(ctx, p, k.ID, versionDetail(n), func(k keyring.Key) (keyring.Key, change, error) {
		if k.Deleted() {
			return k, change{}, notAside(k)
		}
		next, err := rotation.Unretire(k, n)
		return next, change{}, err
	})
}

// Approve notes the caller's wish to destroy a version. fault.InUse with the reason when it is not retired.
func (s *Service) Approve(ctx context.Context, c policy.Caller, ref Ref, n uint32) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActDestroy, ref)
	if err != nil {
		return k, err
	}
	return s.update(ctx, p, k.ID, versionDetail(n), func(k keyring.Key) (keyring.Key, change, error) {
		next, err := rotation.Approve(k, n, c.Name)
		return next, change{}, err
	})
}

// MayAsk says whether a caller may do an action on a key, without doing anything; the refusal is audited like any other.
func (s *Service) MayAsk(ctx context.Context, c policy.Caller, a policy.Action, ref Ref) (keyring.Key, error) {
	k, _, err := s.admit(ctx, c, a, ref)
	return k, err
}

// MayStatus says whether a caller may ask how the server is.
func (s *Service) MayStatus(ctx context.Context, c policy.Caller) error {
	_, err := s.guard.Admit(ctx, c, policy.ActStatus, policy.Resource{})
	return err
}

// attempted restarts the destruction wait of a retired version that somebody tried to use. Failing to is no reason to answer
// the caller differently; the refusal itself stands in the answer.
func (s *Service) attempted(ctx context.Context, who string, k keyring.Key, n uint32) {
	v, err := k.Version(n)
	if err != nil || v.Phase != keyring.PhaseRetired || s.now().Sub(v.Retired) < attemptGrain {
		return
	}
	ctx = context.WithoutCancel(ctx) // who hangs up has tried all the same
	_ = s.noteAttempts(ctx, who, k, n, 1)
}

// HolderAttempts is attempted of a process that holds the key and refused to use a retired version by itself so many times; for the
// fleet, which has proven who it is. What comes within attemptGrain of another one is not counted.
func (s *Service) HolderAttempts(ctx context.Context, who string, id keyring.KeyID, n uint32, count uint64) error {
	k, ok := s.Key(id)
	if !ok {
		return nil
	}
	v, err := k.Version(n)
	if err != nil || v.Phase != keyring.PhaseRetired || s.now().Sub(v.Retired) < attemptGrain {
		return nil //nolint:nilerr // nothing to restart
	}
	return s.noteAttempts(ctx, who, k, n, min(max(count, 1), maxAttempts))
}

// maxAttempts bounds what one report counts.
const maxAttempts = 1 << 32

func (s *Service) noteAttempts(ctx context.Context, who string, k keyring.Key, n uint32, count uint64) error {
	p := s.guard.System("kms", policy.ActRetire, Resource(k))
	detail := versionDetail(n)
	detail["attempt_of"], detail["attempts"] = who, fmt.Sprint(count)
	_, err := s.update(ctx, p, k.ID, detail, func(k keyring.Key) (keyring.Key, change, error) {
		next, ok := rotation.Attempted(k, n, s.now().UTC())
		if ok {
			v, _ := next.Version(n) // it was there
			v.Attempts += count
			next = next.Put(v)
		}
		return next, change{}, nil
	})
	return err
}

// attemptGrain bounds how often attempts on a retired version are written.
const attemptGrain = time.Second
