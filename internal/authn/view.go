package authn

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// prefix of everything that the store knows of who may come in.
const prefix = "authn/"

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
	return a.Guard.Follow(ctx, prefix, a.from, func(changes []guard.Change) error {
		for _, c := range changes {
			if err := a.take(c, true); err != nil {
				return err
			}
		}
		a.heard.Store(uint64(changes[len(changes)-1].Rev))
		return nil
	})
}

// Seen is a revision up to which the tables have every commit.
func (a *Authority) Seen() store.Rev {
	heard := store.Rev(a.heard.Load())
	return a.Guard.SeenBy(strings.TrimSuffix(prefix, "/"), heard)
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
		if r, ok := a.sessions.Get(slot); ok && r.Rev < c.Rev { // its slot is free, or of another now
			if ended.Session = r.Value.ID; !c.Deleted && sameSession(c.Value, r.Value.ID) {
				ended.Session = ""
			}
		}
	}
	defer a.noteGrant(strings.TrimPrefix(c.Path, grantPrefix), c)
	for _, takes := range []func(guard.Change, bool) (bool, error){
		a.removed.Takes, a.tokens.Takes, a.enrolments.Takes, a.admins.Takes, a.sessions.Takes, a.credentials.Takes, a.grants.Takes,
	} {
		if ok, err := takes(c, watched); ok || err != nil {
			if !c.Deleted && err == nil {
				ended.Instance, _ = strings.CutPrefix(c.Path, removedPrefix)
				if ended.Instance == c.Path {
					ended.Instance = ""
				}
				if name, ok := strings.CutPrefix(c.Path, adminPrefix); ok && !a.admins.Rows[name].Value.Removed.IsZero() {
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
	if r, ok := a.grants.Get(id); ok {
		if a.granted[r.Value.Grantee] == nil {
			a.granted[r.Value.Grantee] = map[string]bool{}
		}
		a.granted[r.Value.Grantee][id] = true
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
