package authn

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// prefix of everything that the store knows of who may come in.
const prefix = "authn/"

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

// ending is the part of a join token's record that is kept in memory.
type ending struct {
	Expires time.Time `json:"expires"`
}

// Ended tells of what may not go on: an instance that was removed, an administrator that was, or a session that was revoked.
type Ended struct{ Instance, Admin, Session string }

// Of says whether a caller is meant.
func (e Ended) Of(c policy.Caller) bool {
	switch {
	case e.Session != "":
		return c.Session == e.Session
	case e.Instance != "":
		return c.Instance == e.Instance
	}
	return e.Admin != "" && c.Kind == policy.KindAdmin && c.Name == "admin/"+e.Admin
}

// read fills the tables from one snapshot of the store.
func (a *Authority) read(ctx context.Context) error {
	records, rev, err := a.Guard.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("read callers: %w", err)
	}
	a.from = rev
	a.heard.Store(uint64(rev))
	for _, r := range records {
		if _, err := a.apply(guard.Change{Record: r}, true); err != nil {
			return err
		}
	}
	return nil
}

// Run follows what this server and others commit until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	for changes, err := range a.Guard.Watch(ctx, prefix, a.from) {
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was told to stop
			}
			return fmt.Errorf("watch callers: %w", err)
		}
		for _, c := range changes {
			if err := a.take(c, true); err != nil {
				return err
			}
		}
		a.heard.Store(uint64(changes[len(changes)-1].Rev))
	}
	return nil
}

// take applies a change and tells of what it ends.
func (a *Authority) take(c guard.Change, watched bool) error {
	ended, err := a.apply(c, watched)
	if err == nil && ended != (Ended{}) && a.OnEnded != nil {
		a.OnEnded(ended)
	}
	return err
}

func (a *Authority) apply(c guard.Change, watched bool) (Ended, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ended Ended
	if slot, ok := strings.CutPrefix(c.Path, sessionPrefix); ok {
		if r, ok := a.sessions.get(slot); ok && r.rev < c.Rev { // its slot is free, or of another now
			if ended.Session = r.value.ID; !c.Deleted && sameSession(c.Value, r.value.ID) {
				ended.Session = ""
			}
		}
	}
	defer a.noteGrant(strings.TrimPrefix(c.Path, grantPrefix), c)
	for _, takes := range []func(guard.Change, bool) (bool, error){
		a.removed.takes, a.tokens.takes, a.enrolments.takes, a.admins.takes, a.sessions.takes, a.credentials.takes, a.grants.takes,
	} {
		if ok, err := takes(c, watched); ok || err != nil {
			if !c.Deleted && err == nil {
				ended.Instance, _ = strings.CutPrefix(c.Path, removedPrefix)
				if ended.Instance == c.Path {
					ended.Instance = ""
				}
				if name, ok := strings.CutPrefix(c.Path, adminPrefix); ok && !a.admins.rows[name].value.Removed.IsZero() {
					ended.Admin = name
				}
			}
			return ended, err
		}
	}
	return ended, nil
}

// noteGrant keeps the index by grantee, which never changes for an ID. Call with mu held.
func (a *Authority) noteGrant(id string, c guard.Change) {
	if id == c.Path {
		return
	}
	if r, ok := a.grants.get(id); ok {
		if a.granted[r.value.Grantee] == nil {
			a.granted[r.value.Grantee] = map[string]bool{}
		}
		a.granted[r.value.Grantee][id] = true
		return
	}
	for grantee, ids := range a.granted {
		if delete(ids, id); len(ids) == 0 {
			delete(a.granted, grantee)
		}
	}
}

func sameSession(value []byte, id string) bool {
	var s session
	return json.Unmarshal(value, &s) == nil && s.ID == id
}

// commit writes through a permit; what was written counts here at once, and elsewhere as soon as the watch brings it.
func (a *Authority) commit(ctx context.Context, p *guard.Permit, conds []guard.Cond, writes []guard.Write, detail map[string]string) (store.Rev, error) {
	rev, err := p.Commit(ctx, conds, writes, detail)
	if err != nil {
		return 0, err
	}
	for _, w := range writes {
		if err := a.take(guard.Change{Record: guard.Record{Path: w.Path, Value: w.Value, Rev: rev}, Deleted: w.Delete}, false); err != nil {
			return rev, err
		}
	}
	return rev, nil
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
