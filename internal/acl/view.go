package acl

import (
	"fmt"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
)

// indexes are names by which records are found besides that of the record.
type indexes struct {
	accessors map[string]string // of tokens -> slot
	wraps     map[string]string // accessors of wrapping tokens -> slot
	roleIDs   map[string]string // mount's accessor/role ID -> ID of the role's entry
	secrets   map[string]string // role's entry/hash of a secret ID -> slot
	handles   map[string]string // role's entry/accessor of a secret ID -> slot
	children  map[string]map[string]bool
}

func newIndexes() indexes {
	return indexes{
		map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]map[string]bool{},
	}
}

// reindex takes a record's names out of the indexes, and gives the function that puts those of the record that is there then in. Call both with mu held.
func (s *Service) reindex(c guard.Change) func() {
	s.names(c.Path, func(index map[string]string, name, id string) {
		if index[name] == id {
			delete(index, name)
		}
	}, func(parent, slot string) {
		if delete(s.index.children[parent], slot); len(s.index.children[parent]) == 0 {
			delete(s.index.children, parent)
		}
	})
	return func() {
		if strings.HasPrefix(c.Path, policyPrefix) {
			clear(s.compiled)
		}
		s.names(c.Path, func(index map[string]string, name, id string) { index[name] = id }, func(parent, slot string) {
			if s.index.children[parent] == nil {
				s.index.children[parent] = map[string]bool{}
			}
			s.index.children[parent][slot] = true
		})
	}
}

// names tells of every name of the record at a path as it is known now.
func (s *Service) names(path string, tell func(index map[string]string, name, id string), child func(parent, slot string)) {
	if slot, ok := strings.CutPrefix(path, tokenPrefix); ok {
		if r, there := s.tokens.Get(slot); there {
			tell(s.index.accessors, r.Value.Accessor, slot)
			if r.Value.Parent != "" {
				child(r.Value.Parent, slot)
			}
		}
	} else if slot, ok := strings.CutPrefix(path, wrapPrefix); ok {
		if r, there := s.wraps.Get(slot); there {
			tell(s.index.wraps, r.Value.Accessor, slot)
		}
	} else if slot, ok := strings.CutPrefix(path, secretPrefix); ok {
		if r, there := s.secrets.Get(slot); there {
			tell(s.index.secrets, r.Value.Role+"/"+string(r.Value.Hash), slot)
			tell(s.index.handles, r.Value.Role+"/"+r.Value.Accessor, slot)
		}
	} else if id, ok := strings.CutPrefix(path, entryPrefix); ok {
		if r, there := s.entries.Get(id); there && r.Value.RoleID != "" {
			tell(s.index.roleIDs, mountOf(id)+"/"+r.Value.RoleID, id)
		}
	}
}

// about is the resource of everything in a namespace that is about no key.
func about(ns string) policy.Resource { return policy.Resource{Namespace: ns} }

// bad refuses what a client asked for, in words that it shows.
func bad(format string, args ...any) error {
	return fault.New(fault.Invalid, fmt.Sprintf(format, args...))
}
