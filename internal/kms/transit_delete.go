package kms

import (
	"cmp"
	"context"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// TransitDelete takes a key away from clients: it is missing, and its name free, at once. It is kept under DeletedName with every version retired, until
// TransitUndelete brings it back or its versions are destroyed through the gates. It returns when no server uses the key any more. fault.NotFound,
// WrongState with ErrDeletionNotAllowed, OutcomeUnknown when another server may go on for a moment.
func (s *Service) TransitDelete(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	k, err := s.delete(ctx, c, ref)
	if err != nil {
		return keyring.Key{}, err
	}
	return k, s.dropped(ctx, k.Namespace, ref.Name)
}

// delete is TransitDelete for this server alone.
func (s *Service) delete(ctx context.Context, c policy.Caller, ref Ref) (keyring.Key, error) {
	k, p, err := s.transit(ctx, c, policy.ActDelete, ref)
	if err != nil {
		return keyring.Key{}, err
	}
	detail := map[string]string{"renamed": k.DeletedName(), "key_id": string(k.ID)}
	return s.update(ctx, p, k.ID, detail, func(k keyring.Key) (keyring.Key, change, error) {
		switch {
		case k.Name != ref.Name || k.Deleted():
			return k, change{}, fault.New(fault.NotFound, "key "+ref.Name)
		case !k.Transit.DeletionAllowed:
			return k, change{}, fault.Wrap(fault.WrongState, "key "+k.Name, ErrDeletionNotAllowed)
		}
		next := k.Delete(s.now().UTC())
		w, err := s.rename(ctx, k, next)
		return next, w, err
	})
}

// dropped returns once every server knows that the deleted keys that had a name do not have it any more. A deletion, and whatever gives the name to another
// key, is answered only then: a server that has not heard of it yet may still protect under the old key, and what it answers before somebody knows
// of the deletion came before that. fault.OutcomeUnknown.
func (s *Service) dropped(ctx context.Context, ns keyring.Namespace, name string) error {
	if s.heard == nil {
		return nil
	}
	var rev store.Rev
	for _, old := range s.ring.Load().former(ns, name) {
		rev = max(rev, old.rev)
	}
	if rev == 0 {
		return nil
	}
	return s.everywhere(ctx, rev, name)
}

// everywhere returns once every server knows what happened to a key by a commit. What takes something from a key is answered only then. fault.OutcomeUnknown.
func (s *Service) everywhere(ctx context.Context, rev store.Rev, name string) error {
	if s.heard == nil {
		return nil
	}
	if err := s.heard(ctx, rev); err != nil {
		return fault.Wrap(fault.OutcomeUnknown, "key "+name, err).WithHint("it is done here, but a server may go on as before for a moment")
	}
	return nil
}

// narrow is update of a change that somebody asks for and that may take something from a key: it is answered when every server knows of that, also
// when it is asked for again because the answer was lost.
func (s *Service) narrow(ctx context.Context, p *guard.Permit, id keyring.KeyID, detail map[string]string, edit func(keyring.Key) (keyring.Key, change, error)) (keyring.Key, error) {
	k, err := s.update(ctx, p, id, detail, edit)
	if err != nil {
		return k, err
	}
	return k, s.everywhere(ctx, s.ring.Load().get(id).narrowed, k.Name)
}

// rename moves the record of a key's name, which says whose it is, to another that is free.
func (s *Service) rename(ctx context.Context, was, next keyring.Key) (change, error) {
	from, to := namePath(was.Namespace, was.Name), namePath(next.Namespace, next.Name)
	rec, err := s.guard.Get(ctx, from)
	if err != nil {
		return change{}, err
	}
	if string(rec.Value) != string(was.ID) {
		return change{}, fault.New(fault.Conflict, "key "+was.Name)
	}
	return change{
		conds:  []guard.Cond{{Path: from, Rev: rec.Rev}, {Path: to}},
		writes: []guard.Write{{Path: from, Delete: true}, {Path: to, Value: []byte(next.ID)}},
	}, nil
}

func namePath(ns keyring.Namespace, name string) string { return "name/" + nameOf(ns, name) }

// TransitUndelete brings a deleted key back, under the name that it had or another; empty: the one that it had. Where its primary version was destroyed
// meanwhile it gets a new one. It takes the right to both names. fault.Exists when the name is another key's by now.
func (s *Service) TransitUndelete(ctx context.Context, c policy.Caller, ref Ref, as string) (keyring.Key, error) {
	k, p, err := s.admit(ctx, c, policy.ActDelete, ref)
	if err != nil {
		return keyring.Key{}, err
	}
	if k.Purpose != suite.Transit {
		return keyring.Key{}, wrongPurpose(k)
	}
	if !k.Deleted() {
		return keyring.Key{}, fault.New(fault.WrongState, "key "+k.Name).WithHint("it is not deleted")
	}
	former := k.Transit.Former
	as = cmp.Or(as, former)
	if _, err := s.guard.Admit(ctx, c, policy.ActDelete, policy.Resource{Namespace: string(k.Namespace), Key: as, Labels: k.Labels}); err != nil {
		return keyring.Key{}, err
	}
	if err := s.dropped(ctx, k.Namespace, former); err != nil { // under another name it would not be known any more which servers still have it under this one
		return keyring.Key{}, err
	}
	detail := map[string]string{"renamed": as, "key_id": string(k.ID)}
	out, err := s.update(ctx, p, k.ID, detail, func(k keyring.Key) (keyring.Key, change, error) { return s.undelete(ctx, k, ref.Name, as, detail) })
	if fault.CodeOf(err) == fault.Conflict {
		if _, ok := s.Lookup(k.Namespace, as); ok {
			return keyring.Key{}, fault.New(fault.Exists, "key "+as).WithHint("another key has this name by now; bring it back under another one with --as")
		}
	}
	if err != nil {
		return out, err
	}
	return out, s.dropped(ctx, k.Namespace, as)
}

func (s *Service) undelete(ctx context.Context, k keyring.Key, from, as string, detail map[string]string) (keyring.Key, change, error) {
	if k.Name != from || !k.Deleted() {
		return k, change{}, fault.New(fault.NotFound, "key "+from)
	}
	next := k.Undelete(as)
	if err := next.Validate(); err != nil {
		return k, change{}, err
	}
	w, err := s.rename(ctx, k, next)
	if err != nil {
		return k, change{}, err
	}
	if v, err := next.Version(next.Primary); err != nil || v.Phase == keyring.PhasePrimary || next.Target != 0 {
		return next, w, err
	}
	now := s.now().UTC()
	v, made, err := s.newVersion(ctx, next, next.NextNumber(), now)
	if err != nil {
		return k, change{}, err
	}
	describe(detail, v)
	next, err = rotation.Turn(next, v, now)
	return next, w.and(made), err
}

// TransitClear deletes every key of a mount, before the mount goes. While one of them does not allow deletion it deletes none. It may be called again after a
// crash. fault.WrongState names the key.
func (s *Service) TransitClear(ctx context.Context, c policy.Caller, ns keyring.Namespace, mount string) error {
	if _, err := s.guard.Admit(ctx, c, policy.ActDelete, policy.Resource{Namespace: string(ns), Key: mount + "/"}); err != nil {
		return err
	}
	keys, err := s.mountedKeys(ctx, ns, mount)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if !k.Transit.DeletionAllowed {
			return fault.Wrap(fault.WrongState, "key "+k.Name, transit.Refusal("key "+k.Name+" is below the mount, and deletion is not allowed for it"))
		}
	}
	for _, k := range keys {
		if _, err := s.delete(ctx, c, Ref{ns, k.Name}); err != nil && fault.CodeOf(err) != fault.NotFound { // else somebody else has
			return err
		}
	}
	for _, k := range keys { // they have all been told of by now, so the first one waits for all
		if err := s.dropped(ctx, ns, k.Name); err != nil {
			return err
		}
	}
	return nil
}

// TransitMove gives every key below a mount its name below another, before the mount goes there; first it looks whether each may go. It may be called again after
// a crash, which finds fewer. Deleted keys keep their names. fault.Exists, Invalid, Denied.
func (s *Service) TransitMove(ctx context.Context, c policy.Caller, ns keyring.Namespace, from, to string) error {
	for _, mount := range []string{from, to} {
		if _, err := s.guard.Admit(ctx, c, policy.ActDelete, policy.Resource{Namespace: string(ns), Key: mount + "/"}); err != nil {
			return err
		}
	}
	keys, err := s.mountedKeys(ctx, ns, from)
	if err != nil {
		return err
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = to + strings.TrimPrefix(k.Name, from)
		if !keyring.ValidKeyName(names[i]) {
			return fault.New(fault.Invalid, "name "+names[i]).WithHint("it is too long")
		}
		if _, there := s.Lookup(ns, names[i]); there {
			return fault.New(fault.Exists, "key "+names[i])
		}
		for _, name := range []string{k.Name, names[i]} {
			if _, err := s.guard.Admit(ctx, c, policy.ActDelete, policy.Resource{Namespace: string(ns), Key: name, Labels: k.Labels}); err != nil {
				return err
			}
		}
	}
	for i, k := range keys {
		if err := s.transitRename(ctx, c, k, names[i]); err != nil && fault.CodeOf(err) != fault.NotFound { // else somebody else has
			return err
		}
	}
	return nil
}

// transitRename gives a key another name, which its caller may give it.
func (s *Service) transitRename(ctx context.Context, c policy.Caller, was keyring.Key, name string) error {
	p, err := s.guard.Admit(ctx, c, policy.ActDelete, policy.Resource{Namespace: string(was.Namespace), Key: name, Labels: was.Labels})
	if err != nil {
		return err
	}
	detail := map[string]string{"event": "move", "from": was.Name, "key_id": string(was.ID)}
	_, err = s.update(ctx, p, was.ID, detail, func(k keyring.Key) (keyring.Key, change, error) {
		if k.Name != was.Name || k.Deleted() {
			return k, change{}, fault.New(fault.NotFound, "key "+was.Name)
		}
		next := k.Clone()
		next.Name = name
		if err := next.Validate(); err != nil {
			return k, change{}, err
		}
		w, err := s.rename(ctx, k, next)
		return next, w, err
	})
	return err
}
