package kms

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Create makes a key with its first version, primary at once because nobody can hold it yet. spec carries what the caller
// chooses; empty algorithm and custody take the default. fault.Invalid, Exists, Denied.
func (s *Service) Create(ctx context.Context, c policy.Caller, spec keyring.Key) (keyring.Key, error) {
	return s.make(ctx, c, spec, s.firstVersion)
}

func (s *Service) firstVersion(ctx context.Context, k keyring.Key, now time.Time) (keyring.Version, change, error) {
	return s.newVersion(ctx, k, 1, now)
}

// make makes a key whose first version comes from first.
func (s *Service) make(ctx context.Context, c policy.Caller, spec keyring.Key, first func(context.Context, keyring.Key, time.Time) (keyring.Version, change, error)) (keyring.Key, error) {
	p, err := s.guard.Admit(ctx, c, policy.ActCreate, policy.Resource{Namespace: string(spec.Namespace), Key: spec.Name, Labels: spec.Labels})
	if err != nil {
		return spec, err
	}
	now := s.now().UTC()
	k := keyring.Key{
		ID: newKeyID(), Namespace: spec.Namespace, Name: spec.Name, Purpose: spec.Purpose,
		Custody: cmp.Or(spec.Custody, keyring.CustodyServer), Algorithm: cmp.Or(spec.Algorithm, s.algorithmFor(spec)), Exportable: spec.Exportable,
		Labels: spec.Labels, Owner: cmp.Or(spec.Owner, c.Name), Periods: spec.Periods, Rotation: spec.Rotation, Schedule: spec.Schedule, Created: now,
	}
	if k.Purpose == suite.Transit {
		k.Transit = begun(spec.Transit)
	}
	if err := k.Validate(); err != nil {
		return k, err
	}
	if err := s.aboveFloors(k); err != nil {
		return k, err
	}
	if err := s.roomForKey(k.Namespace); err != nil {
		return k, err
	}
	if err := s.suites.Allows(k.Algorithm, k.Purpose); err != nil {
		return k, err
	}
	if err := s.kindKnown(k); err != nil {
		return k, err
	}
	if k.Custody == keyring.CustodyFleet {
		if err := s.suites.AllowsDelivery(); err != nil {
			return k, err
		}
	}
	v, made, err := first(ctx, k, now)
	if err != nil {
		return k, err
	}
	detail := map[string]string{}
	describe(detail, v)
	if !k.Schedule.IsZero() {
		detail["schedule"] = k.Schedule.String()
	}
	if k, err = rotation.First(k, v, now); err != nil {
		made.takeBack()
		return k, err
	}
	records, err := s.records(k)
	if err != nil {
		made.takeBack()
		return k, err
	}
	name := namePath(k.Namespace, k.Name)
	conds := append(made.conds, guard.Cond{Path: name}, guard.Cond{Path: keyPath(k)})
	writes := append(made.writes, guard.Write{Path: name, Value: []byte(k.ID)})
	writes = append(writes, records...)
	rev, err := s.settle(ctx, records)(p.Commit(ctx, conds, writes, detail))
	if fault.CodeOf(err) == fault.Conflict {
		made.takeBack()
		return k, fault.New(fault.Exists, "key "+k.Name)
	}
	if err == nil {
		err = s.await(ctx, rev)
	}
	if err != nil {
		return k, err
	}
	return k, s.dropped(ctx, k.Namespace, k.Name)
}

// Get returns a key's record as it is now, whichever server changed it last. It holds no material.
func (s *Service) Get(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	k, _, err := s.admit(ctx, c, policy.ActShow, ref)
	if err != nil {
		return k, err
	}
	if err := s.CatchUp(ctx); err != nil {
		return k, err
	}
	now, _ := s.Key(k.ID) // a key never goes
	return now, nil
}

// List returns the keys of a namespace that the caller may see, by name, as they are now.
func (s *Service) List(ctx context.Context, c policy.Caller, ns keyring.Namespace) ([]keyring.Key, error) {
	if c.IsZero() {
		return nil, fault.New(fault.Unauthenticated, "")
	}
	if err := s.CatchUp(ctx); err != nil {
		return nil, err
	}
	var seen []keyring.Key
	for _, k := range s.Keys() {
		if k.Namespace == ns && s.guard.Allows(c, policy.ActShow, Resource(k)) {
			seen = append(seen, k)
		}
	}
	slices.SortFunc(seen, func(a, b keyring.Key) int { return cmp.Compare(a.Name, b.Name) })
	return seen, nil
}

// Change suspends, resumes or marks a version as compromised.
func (s *Service) Change(ctx context.Context, c policy.Caller, ref Ref, n uint32, e keyring.Event, reason string) (keyring.Key, error) {
	action := policy.ActSuspend
	if e == keyring.Compromise {
		action = policy.ActCompromise
	}
	k, p, err := s.admit(ctx, c, action, ref)
	if err != nil {
		return k, err
	}
	if e != keyring.Suspend && e != keyring.Resume && e != keyring.Compromise {
		return k, fault.New(fault.Invalid, "event")
	}
	if !keyring.ValidReason(reason) {
		return k, fault.New(fault.Invalid, "reason").WithHint("at most %d bytes of printable text", keyring.MaxLabel)
	}
	return s.narrow(ctx, p, k.ID, versionDetail(n), func(k keyring.Key) (keyring.Key, change, error) {
		next, err := rotation.Change(k, n, e, reason, s.now().UTC())
		return next, s.withdraw(k, next), err
	})
}

// kindKnown refuses a kind of key that a server on the store does not know. fault.Unavailable.
func (s *Service) kindKnown(k keyring.Key) error {
	kind := "custody " + string(k.Custody) + " for " + string(k.Purpose)
	switch {
	case k.Purpose == suite.Transit:
		return s.agreed(replica.FormatPages, kind)
	case k.Custody == keyring.CustodyHSM:
		return s.agreed(replica.FormatBackups, kind)
	}
	return nil
}

// newVersion makes the material of version n and the writes that keep it. fault.AlgorithmForbidden.
func (s *Service) newVersion(ctx context.Context, k keyring.Key, n uint32, now time.Time) (keyring.Version, change, error) {
	if err := s.suites.Allows(k.Algorithm, k.Purpose); err != nil {
		return keyring.Version{}, change{}, err
	}
	if k.Custody == keyring.CustodyHSM {
		return s.newObject(ctx, k, keyring.Version{Number: n, Algorithm: k.Algorithm, Created: now})
	}
	material, err := generate(k)
	if err != nil {
		return keyring.Version{}, change{}, err
	}
	defer material.Destroy()
	return s.keep(ctx, k, keyring.Version{Number: n, Algorithm: k.Algorithm, Created: now}, material)
}

// generate makes fresh material of a key's next version.
func generate(k keyring.Key) (m secret.Bytes, err error) {
	if k.Purpose == suite.Transit {
		m, _, err = suite.GenerateTransit(k.Algorithm, k.Transit.KeyBytes)
	} else {
		m, _, err = suite.Generate(k.Algorithm)
	}
	return m, err
}

// publicOf checks material and returns its public half.
func publicOf(k keyring.Key, v keyring.Version, material secret.Bytes) ([]byte, error) {
	if k.Purpose == suite.Transit {
		return suite.PublicOfBundle(v.Algorithm, material)
	}
	return suite.PublicOf(v.Algorithm, material)
}

// keep gives a version a handle and its public half, and returns the writes that keep its material.
func (s *Service) keep(ctx context.Context, k keyring.Key, v keyring.Version, material secret.Bytes) (keyring.Version, change, error) {
	var err error
	if v.Public, err = publicOf(k, v, material); err != nil {
		return v, change{}, err
	}
	v, handle, err := s.newHandle(ctx, k, v)
	if err != nil {
		return v, change{}, err
	}
	w, err := s.place(ctx, k, v, material)
	return v, w.and(handle), err
}

// place returns the writes that keep a version's material.
func (s *Service) place(ctx context.Context, k keyring.Key, v keyring.Version, material secret.Bytes) (change, error) {
	f, err := s.facts(k, v)
	if err != nil {
		return change{}, fmt.Errorf("encode facts: %w", err)
	}
	blob, err := s.guard.SealMaterial(ctx, string(k.Namespace), f, material)
	if err != nil {
		return change{}, err
	}
	path := materialPath(k, v.Number)
	return change{conds: []guard.Cond{{Path: path}}, writes: []guard.Write{{Path: path, Value: blob}}}, nil
}

// namesByHandle says whether ciphertexts name versions of a key by their handles, so that none may be used twice in a namespace. Those of transit keys have the
// version's number instead; there a handle only tells the versions of one key apart, also such that two servers were about to make.
func namesByHandle(k keyring.Key) bool { return k.Purpose != suite.Transit }

// newHandle gives a version a handle, and returns the write that takes it, for ever, if there has to be one.
func (s *Service) newHandle(ctx context.Context, k keyring.Key, v keyring.Version) (keyring.Version, change, error) {
	for {
		var b [4]byte
		rand.Read(b[:])
		if v.Handle = binary.BigEndian.Uint32(b[:]); v.Handle == 0 {
			continue
		}
		if _, err := k.ByHandle(v.Handle); err == nil {
			continue
		}
		if !namesByHandle(k) {
			return v, change{}, nil
		}
		_, err := s.guard.Get(ctx, handlePath(k.Namespace, v.Handle))
		if fault.CodeOf(err) == fault.NotFound {
			return v, takeHandle(k, v), nil
		}
		if err != nil {
			return v, change{}, err
		}
	}
}

// takeHandle returns the write that takes a version's handle, for ever.
func takeHandle(k keyring.Key, v keyring.Version) change {
	path := handlePath(k.Namespace, v.Handle)
	return change{conds: []guard.Cond{{Path: path}}, writes: []guard.Write{{Path: path, Value: []byte(handleOwner(k, v.Number))}}}
}

func handleOwner(k keyring.Key, n uint32) string { return fmt.Sprintf("%s/%d", k.ID, n) }

func newKeyID() keyring.KeyID {
	var b [16]byte
	rand.Read(b[:])
	return keyring.KeyID(hex.EncodeToString(b[:]))
}

func versionDetail(n uint32) map[string]string {
	return map[string]string{"version": fmt.Sprint(n)}
}
