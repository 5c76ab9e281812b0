package guard

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is for rooms that keep the records under a prefix in memory, of which each is a value in JSON.

// Row is a record as of the commit that wrote it. A deleted one stays until the watch has passed its deletion, so that nothing that comes late
// brings it back.
type Row[T any] struct {
	Value   T
	Rev     store.Rev
	Deleted bool
}

// Table is the records under one prefix, by what follows it. Whoever has it guards it.
type Table[T any] struct {
	Prefix string
	Rows   map[string]Row[T]
}

// NewTable makes an empty one.
func NewTable[T any](prefix string) Table[T] { return Table[T]{prefix, map[string]Row[T]{}} }

// Get returns a record that is there.
func (t Table[T]) Get(id string) (Row[T], bool) {
	r, ok := t.Rows[id]
	return r, ok && !r.Deleted
}

// Takes says whether the record is of this table, and keeps it unless a later one is known. watched: it comes from the watch, in order.
// fault.RecordTampered.
func (t Table[T]) Takes(c Change, watched bool) (bool, error) {
	id, ok := strings.CutPrefix(c.Path, t.Prefix)
	if !ok {
		return false, nil
	}
	if t.Rows[id].Rev > c.Rev {
		return true, nil
	}
	r := Row[T]{Rev: c.Rev, Deleted: c.Deleted}
	if c.Deleted && watched {
		delete(t.Rows, id)
		return true, nil
	}
	if !c.Deleted {
		if err := json.Unmarshal(c.Value, &r.Value); err != nil {
			return true, fault.Wrap(fault.RecordTampered, c.Path, err)
		}
	}
	t.Rows[id] = r
	return true, nil
}

// Fetch reads a record linearizably, with the condition that it does not change; the zero value when there is none. fault.RecordTampered.
func Fetch[T any](ctx context.Context, g *Guard, path string) (value T, cond Cond, err error) {
	rec, err := g.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return value, Cond{Path: path}, nil
	}
	if err != nil {
		return value, Cond{}, err
	}
	if err := json.Unmarshal(rec.Value, &value); err != nil {
		return value, Cond{}, fault.Wrap(fault.RecordTampered, path, err)
	}
	return value, Cond{Path: path, Rev: rec.Rev}, nil
}

// Put makes the write of a record.
func Put(path string, value any) (Write, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return Write{}, fmt.Errorf("encode %s: %w", path, err)
	}
	return Write{Path: path, Value: b}, nil
}

// Follow hands each commit's changes under a prefix to take, in order and from a revision on, until ctx ends, which is no error.
func (g *Guard) Follow(ctx context.Context, prefix string, after store.Rev, take func([]Change) error) error {
	for changes, err := range g.Watch(ctx, prefix, after) {
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was told to stop
			}
			return fmt.Errorf("watch %s: %w", prefix, err)
		}
		if err := take(changes); err != nil {
			return err
		}
	}
	return nil
}
