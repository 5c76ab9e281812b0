package acl

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// row is a record as of the commit that wrote it. A deleted one stays until the watch has passed its deletion, so that nothing that comes late
// brings it back.
type row[T any] struct {
	value   T
	rev     store.Rev
	deleted bool
}

// table is the records under one prefix, by what follows it.
type table[T any] struct {
	prefix string
	rows   map[string]row[T]
}

func newTable[T any](prefix string) table[T] { return table[T]{prefix, map[string]row[T]{}} }

// get returns a record that is there.
func (t table[T]) get(id string) (row[T], bool) {
	r, ok := t.rows[id]
	return r, ok && !r.deleted
}

// takes says whether the record is of this table, and keeps it unless a later one is known. watched: it comes from the watch, in order.
func (t table[T]) takes(c guard.Change, watched bool) (bool, error) {
	id, ok := strings.CutPrefix(c.Path, t.prefix)
	if !ok {
		return false, nil
	}
	if t.rows[id].rev > c.Rev {
		return true, nil
	}
	r := row[T]{rev: c.Rev, deleted: c.Deleted}
	if c.Deleted && watched {
		delete(t.rows, id)
		return true, nil
	}
	if !c.Deleted {
		if err := json.Unmarshal(c.Value, &r.value); err != nil {
			return true, fault.Wrap(fault.RecordTampered, c.Path, err)
		}
	}
	t.rows[id] = r
	return true, nil
}

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
		if r, there := s.tokens.get(slot); there {
			tell(s.index.accessors, r.value.Accessor, slot)
			if r.value.Parent != "" {
				child(r.value.Parent, slot)
			}
		}
	} else if slot, ok := strings.CutPrefix(path, wrapPrefix); ok {
		if r, there := s.wraps.get(slot); there {
			tell(s.index.wraps, r.value.Accessor, slot)
		}
	} else if slot, ok := strings.CutPrefix(path, secretPrefix); ok {
		if r, there := s.secrets.get(slot); there {
			tell(s.index.secrets, r.value.Role+"/"+string(r.value.Hash), slot)
			tell(s.index.handles, r.value.Role+"/"+r.value.Accessor, slot)
		}
	} else if id, ok := strings.CutPrefix(path, entryPrefix); ok {
		if r, there := s.entries.get(id); there && r.value.RoleID != "" {
			tell(s.index.roleIDs, mountOf(id)+"/"+r.value.RoleID, id)
		}
	}
}

// fetch reads a record linearizably, with the condition that it does not change; the zero value when there is none.
func fetch[T any](ctx context.Context, g *guard.Guard, path string) (value T, cond guard.Cond, err error) {
	rec, err := g.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return value, guard.Cond{Path: path}, nil
	}
	if err != nil {
		return value, guard.Cond{}, err
	}
	if err := json.Unmarshal(rec.Value, &value); err != nil {
		return value, guard.Cond{}, fault.Wrap(fault.RecordTampered, path, err)
	}
	return value, guard.Cond{Path: path, Rev: rec.Rev}, nil
}

// put makes the write of a record.
func put(path string, value any) (guard.Write, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return guard.Write{}, fmt.Errorf("encode %s: %w", path, err)
	}
	return guard.Write{Path: path, Value: b}, nil
}

// about is the resource of everything in a namespace that is about no key.
func about(ns string) policy.Resource { return policy.Resource{Namespace: ns} }

// bad refuses what a client asked for, in words that it shows.
func bad(format string, args ...any) error {
	return fault.New(fault.Invalid, fmt.Sprintf(format, args...))
}
