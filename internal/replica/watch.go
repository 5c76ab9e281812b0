package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/store"
)

// This file follows the records of all servers.

// list reads every session and the leader. fault.StoreNewer.
func (k *Keeper) list(ctx context.Context) error {
	now := k.Clock()
	rev, records := k.Store.List(ctx, Prefix)
	var all []store.Record
	for r, err := range records {
		if err != nil {
			return fmt.Errorf("read sessions of servers: %w", err)
		}
		if r.Key == formatPath {
			if _, err := parseFormat(r.Value, k.Newest); err != nil {
				return err // the others moved on after Start had looked, or while no watch told
			}
		}
		all = append(all, r)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.sessions
	k.sessions, k.watched, k.term, k.leader = map[string]observed{}, rev, 0, leader{}
	for id, o := range old {
		if !o.gone {
			o.gone, o.changed, o.rev = true, now, 0 // unless it is among what was read
		}
		k.sessions[id] = o
	}
	for _, r := range all {
		if was, ok := old[strings.TrimPrefix(r.Key, sessionPrefix)]; ok && was.rev == r.Rev {
			k.sessions[strings.TrimPrefix(r.Key, sessionPrefix)] = was
			continue
		}
		k.see(store.Event{Key: r.Key, Value: r.Value, Rev: r.Rev}, now)
	}
	k.notify()
	return nil
}

// watch follows the records of all servers until ctx ends.
func (k *Keeper) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		k.mu.Lock()
		after := k.watched
		k.mu.Unlock()
		for events, err := range k.Store.Watch(ctx, Prefix, after) {
			if errors.Is(err, store.ErrCompacted) {
				if err := k.list(ctx); err != nil && ctx.Err() == nil {
					return err
				}
				break
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch servers: %w", err)
			}
			if err := k.observe(events); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *Keeper) observe(events []store.Event) error {
	now := k.Clock()
	k.mu.Lock()
	defer k.mu.Unlock()
	lead := k.term
	for _, e := range events {
		if e.Key == formatPath && !e.Deleted {
			if _, err := parseFormat(e.Value, k.Newest); err != nil {
				return err
			}
		}
		k.see(e, now)
		k.watched = max(k.watched, e.Rev)
	}
	if k.term != lead && k.leader.Session == k.id {
		k.Log.Info("this server leads", "session", k.id)
	}
	k.notify()
	return nil
}

// see takes over one record. Call with mu held.
func (k *Keeper) see(e store.Event, now time.Duration) {
	switch {
	case e.Key == leaderPath:
		k.leader, k.term = leader{}, 0
		if !e.Deleted && json.Unmarshal(e.Value, &k.leader) == nil {
			k.term = e.Rev
		}
	case e.Key == formatPath && !e.Deleted:
		if n, err := parseFormat(e.Value, k.Newest); err == nil {
			k.format, k.fmtRev = n, e.Rev
		}
	case strings.HasPrefix(e.Key, sessionPrefix):
		id := strings.TrimPrefix(e.Key, sessionPrefix)
		o := k.sessions[id]
		o.changed, o.rev, o.gone = now, e.Rev, e.Deleted
		if e.Deleted {
			o.rev = 0
		} else if r, err := parseSession(e.Value); err == nil {
			o.record = r
		}
		k.sessions[id] = o
	}
}
