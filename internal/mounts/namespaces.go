package mounts

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// Bounds of namespaces.
const (
	MaxNamespaces     = 1000   // of a cluster
	MaxNamespaceNames = 10_000 // that there are and were
)

// Namespaces lists all namespaces, sorted. fault.Denied.
func (s *Service) Namespaces(ctx context.Context, c policy.Caller) ([]keyring.Namespace, error) {
	if _, err := s.Guard.Admit(ctx, c, policy.ActNamespaces, policy.Resource{}); err != nil {
		return nil, err
	}
	var out []keyring.Namespace
	for _, ns := range s.Guard.Namespaces() {
		out = append(out, keyring.Namespace(ns))
	}
	return out, nil
}

// CreateNamespace makes a namespace, with a key of its own above its keys. One that was deleted is made again when every server knows of its deletion: there is
// nothing of the former in it but what is left of destroyed keys. fault.Exists, Invalid, TooLarge, Denied, InUse while it is being deleted.
func (s *Service) CreateNamespace(ctx context.Context, c policy.Caller, ns keyring.Namespace) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActNamespaceCreate, policy.Resource{}) // it is the cluster's: policies about it are those of the namespace that the others are in
	if err != nil {
		return err
	}
	if !keyring.ValidName(string(ns)) {
		return fault.New(fault.Invalid, "namespace").WithHint("lower-case letters, digits, and inside . _ -")
	}
	if s.named(ns) {
		return fault.New(fault.InUse, "name of a namespace").WithHint("paths of the namespace that the others are in begin with it")
	}
	if len(s.Guard.Namespaces()) >= MaxNamespaces {
		return fault.New(fault.TooLarge, "namespaces").WithHint("at most %d", MaxNamespaces)
	}
	if all := s.Guard.NamespaceNames(); len(all) >= MaxNamespaceNames && !slices.Contains(all, string(ns)) {
		return fault.New(fault.TooLarge, "names of namespaces").WithHint("there are and were %d; one of a namespace that was deleted can be given again", MaxNamespaceNames)
	}
	return s.Guard.CreateNamespace(ctx, p, string(ns), s.heard)
}

// heard is Heard, of a server that may be the only one.
func (s *Service) heard(ctx context.Context, rev store.Rev) error {
	if s.Heard == nil {
		return nil
	}
	if err := s.Heard(ctx, rev); err != nil {
		return fault.Wrap(fault.OutcomeUnknown, "namespace", err).WithHint("a server has not heard of it yet; ask again, which goes on where this ended")
	}
	return nil
}

// DeleteNamespace ends a namespace in which no key has material any more (Vacant): it is closed, which no commit about it outlives at any server, looked through
// again, emptied and noted as deleted, in this order, each step a commit or several. Whoever asks again goes on where a crash ended it; until then
// nobody comes in. One that is not there is no error. fault.Denied, Invalid for the namespace that the others are in, InUse, OutcomeUnknown when another
// server may go on for a moment.
func (s *Service) DeleteNamespace(ctx context.Context, c policy.Caller, ns keyring.Namespace) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActNamespaceDelete, policy.Resource{}) // the cluster's, as to make one
	if err != nil {
		return err
	}
	if ns == s.Home || ns == guard.First {
		return fault.New(fault.Invalid, "namespace "+string(ns)).WithHint("it is the one that the others are in")
	}
	if s.Agreed != nil && !s.Agreed() {
		return fault.New(fault.Unavailable, "namespace").WithHint("a server of an older build is on the store, which would go on in it; update it first")
	}
	if s.Vacant != nil && s.Has(ns) { // most refusals close nothing
		if err := s.Vacant(ctx, ns); err != nil {
			return err
		}
	}
	for {
		if err = s.end(ctx, p, ns); fault.CodeOf(err) != fault.Conflict || ctx.Err() != nil { // else somebody else has gone on with it, or the root key turned
			return err
		}
	}
}

// end is DeleteNamespace from the closing on.
func (s *Service) end(ctx context.Context, p *guard.Permit, ns keyring.Namespace) error {
	still, done, err := s.Guard.CloseNamespace(ctx, p, string(ns))
	if fault.CodeOf(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.heard(ctx, still.Rev); err != nil || done {
		return err
	}
	if s.Vacant != nil {
		if err := s.Vacant(ctx, ns); fault.CodeOf(err) == fault.InUse {
			return errors.Join(err, s.Guard.ReopenNamespace(ctx, p, string(ns), still))
		} else if err != nil { // it may be half empty since a crash, with the policies gone that deny
			return err
		}
	}
	if s.Vacate != nil {
		if err := s.Vacate(ctx, p, still, ns); err != nil {
			return err
		}
	}
	if err := s.forget(ctx, p, ns, still); err != nil {
		return err
	}
	rev, err := s.Guard.EndNamespace(ctx, p, string(ns), still)
	if err != nil {
		return err
	}
	return s.heard(ctx, rev)
}

// forget deletes the record of a namespace's mounts.
func (s *Service) forget(ctx context.Context, p *guard.Permit, ns keyring.Namespace, still guard.Cond) error {
	path := prefix + string(ns)
	r, err := s.Guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	rev, err := p.Commit(ctx, []guard.Cond{still, {Path: path, Rev: r.Rev}}, []guard.Write{{Path: path, Delete: true}}, map[string]string{"namespace": string(ns)})
	if err != nil {
		return err
	}
	return s.take(guard.Change{Record: guard.Record{Path: path, Rev: rev}, Deleted: true})
}

// named says whether paths of the home namespace begin with a name, now or for ever. Policies of that namespace name paths of the others behind the
// namespace's name: what one allows below a mount would be everything in a namespace that is called so.
func (s *Service) named(ns keyring.Namespace) bool {
	first := string(ns) + "/"
	return ns == "root" || slices.Contains(reserved, first) || slices.ContainsFunc(s.All(s.Home), func(m Mount) bool { return firstOf(m.Full())+"/" == first })
}

// ofNamespace refuses a path of the home namespace that begins with the name of another. fault.Exists.
func (s *Service) ofNamespace(ns keyring.Namespace, m Mount) error {
	if first := keyring.Namespace(firstOf(m.Full())); ns == s.Home && first != s.Home && s.Guard.HasNamespace(string(first)) {
		return fault.New(fault.Exists, "path is already in use by the namespace "+string(first))
	}
	return nil
}

// firstOf is the first segment of a path.
func firstOf(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}
