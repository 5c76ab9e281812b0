package kms

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
)

// Vacant refuses while a namespace has a key with material, or one of purpose transit that clients see: material goes through the gates of its key alone, and never
// with its namespace. What is left of destroyed keys does not count. fault.InUse names some of the keys.
func (s *Service) Vacant(ctx context.Context, ns keyring.Namespace) error {
	if err := s.CatchUp(ctx); err != nil {
		return err
	}
	var seen, kept []string
	for st := range s.ring.Load().all() {
		k := st.key
		switch {
		case k.Namespace != ns:
		case k.Transit != nil && !k.Deleted():
			seen = append(seen, k.Name)
		case hasMaterial(k):
			kept = append(kept, k.Name)
		}
	}
	switch {
	case len(seen) > 0:
		return fault.New(fault.InUse, fmt.Sprintf("namespace %s has %s", ns, some(seen, "key"))).WithHint("delete them, and destroy what is left of them through its gates: rotor key list --namespace %s", ns)
	case len(kept) > 0:
		return fault.New(fault.InUse, fmt.Sprintf("namespace %s has material of %s", ns, some(kept, "key"))).
			WithHint("material is destroyed through its gates alone: rotor key list --namespace %s, then rotor key retire and rotor key destroy for each version", ns)
	}
	return nil
}

// hasMaterial says whether a version of a key is not destroyed.
func hasMaterial(k keyring.Key) bool {
	for v := range k.All() {
		if v.State != keyring.Destroyed {
			return true
		}
	}
	return false
}

// some counts names, and says the first three in their order.
func some(names []string, what string) string {
	slices.Sort(names)
	if len(names) > 1 {
		what += "s"
	}
	more := ""
	if len(names) > 3 {
		more = ", …"
	}
	return fmt.Sprintf("%d %s: %s%s", len(names), what, strings.Join(names[:min(len(names), 3)], ", "), more)
}

// Vacate deletes the keys that wrap what is imported into a closed namespace; see mounts.Config.Vacate. fault.Conflict.
func (s *Service) Vacate(ctx context.Context, p *guard.Permit, still guard.Cond, ns keyring.Namespace) error {
	records, _, err := s.guard.List(ctx, importPrefix(ns))
	if err != nil {
		return err
	}
	last, err := s.guard.Get(ctx, lastingPath(ns))
	if err == nil {
		records = append(records, last)
	} else if fault.CodeOf(err) != fault.NotFound {
		return err
	}
	_, err = p.DeleteAll(ctx, still, records, map[string]string{"namespace": string(ns), "event": "vacate"})
	return err
}
