package mounts

import (
	"context"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// MaxNamespaces bounds the namespaces of a cluster.
const MaxNamespaces = 1000

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

// CreateNamespace makes a namespace, with a key of its own above its keys. They stay: keys are never forgotten. fault.Exists, Invalid, TooLarge, Denied.
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
	return s.Guard.CreateNamespace(ctx, p, string(ns))
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
