package kms

import (
	"hash/maphash"
	"iter"
	"maps"
	"slices"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/store"
)

// shards is in how many pieces a ring is kept. A change copies the pieces that it touches, so that one of a hundred thousand keys costs little.
const shards = 256

// ring is every key as of one revision of the store. It never changes.
type ring struct {
	rev   store.Rev
	count int
	byID  [shards]map[keyring.KeyID]*state
	names [shards]map[string]keyring.KeyID // namespace + "/" + name

	formers [shards]map[string][]keyring.KeyID // deleted keys by the names that they had, namespace + "/" + name
}

// state is a key and what its records say beside it.
type state struct {
	key keyring.Key
	rev store.Rev // of the commit that wrote its head
	at  store.Rev // it was read from the store as of this revision; 0: it came with the changes

	narrowed store.Rev // the last commit after which it allowed less, or up to which it was read at the start
}

// seed spreads keys over the shards.
var seed = maphash.MakeSeed()

func shardOf(s string) int { return int(maphash.String(seed, s) % shards) }

func (r *ring) get(id keyring.KeyID) *state { return r.byID[shardOf(string(id))][id] }

func (r *ring) find(ns keyring.Namespace, name string) *state {
	n := nameOf(ns, name)
	return r.get(r.names[shardOf(n)][n])
}

// former are the deleted keys that had a name.
func (r *ring) former(ns keyring.Namespace, name string) (out []*state) {
	n := nameOf(ns, name)
	for _, id := range r.formers[shardOf(n)][n] {
		out = append(out, r.get(id))
	}
	return out
}

// all goes through the keys, in no particular order.
func (r *ring) all() iter.Seq[*state] {
	return func(yield func(*state) bool) {
		for _, shard := range r.byID {
			for _, s := range shard {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// edit is a ring in the making.
type edit struct {
	ring
	own, ownNames, ownFormers [shards]bool // pieces that are copied already
}

func (r *ring) edit() *edit { return &edit{ring: *r} }

func (e *edit) put(s *state) {
	i := shardOf(string(s.key.ID))
	if !e.own[i] {
		e.byID[i], e.own[i] = cloned(e.byID[i]), true
	}
	name := nameOf(s.key.Namespace, s.key.Name)
	if was := e.byID[i][s.key.ID]; was == nil {
		e.count++
	} else if old := nameOf(was.key.Namespace, was.key.Name); old != name && e.names[shardOf(old)][old] == s.key.ID {
		delete(e.namesOf(old), old) // it was renamed, and its name may be another key's
	}
	e.putFormer(e.byID[i][s.key.ID], s)
	e.byID[i][s.key.ID] = s
	e.namesOf(name)[name] = s.key.ID
}

// putFormer follows which names deleted keys had.
func (e *edit) putFormer(was, now *state) {
	old, next := formerOf(was), formerOf(now)
	if old == next {
		return
	}
	if old != "" {
		m := e.formersOf(old)
		if m[old] = slices.DeleteFunc(slices.Clone(m[old]), func(id keyring.KeyID) bool { return id == now.key.ID }); len(m[old]) == 0 {
			delete(m, old)
		}
	}
	if next != "" {
		m := e.formersOf(next)
		m[next] = append(slices.Clone(m[next]), now.key.ID)
	}
}

// formersOf is the piece of a name that deleted keys had, to be changed.
func (e *edit) formersOf(name string) map[string][]keyring.KeyID {
	i := shardOf(name)
	if !e.ownFormers[i] {
		e.formers[i], e.ownFormers[i] = cloned(e.formers[i]), true
	}
	return e.formers[i]
}

// formerOf is the name that a deleted key had; empty: it is not deleted.
func formerOf(s *state) string {
	if s == nil || !s.key.Deleted() {
		return ""
	}
	return nameOf(s.key.Namespace, s.key.Transit.Former)
}

// namesOf is the piece of a name, to be changed.
func (e *edit) namesOf(name string) map[string]keyring.KeyID {
	i := shardOf(name)
	if !e.ownNames[i] {
		e.names[i], e.ownNames[i] = cloned(e.names[i]), true
	}
	return e.names[i]
}

func cloned[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}
