package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/rotorkms/rotor/internal/store"
)

// This file is the lead: who has it, who may take it, and what its holder does for all.

// stand takes the lead if nobody alive has it.
func (k *Keeper) stand(ctx context.Context) error {
	k.mu.Lock()
	conds, ok := k.vacant()
	k.mu.Unlock()
	if !ok {
		return nil
	}
	value, err := json.Marshal(leader{k.id})
	if err != nil {
		return fmt.Errorf("encode leader: %w", err)
	}
	_, err = k.Store.Commit(ctx, conds, []store.Op{{Key: leaderPath, Value: value}})
	if errors.Is(err, store.ErrConflict) {
		return nil // somebody else was faster, or is not dead
	}
	return err
}

// vacant says whether the lead can be taken, and under which conditions. Call with mu held.
func (k *Keeper) vacant() ([]store.Cond, bool) {
	if !k.fresh() {
		return nil, false
	}
	conds := []store.Cond{{Key: leaderPath, Rev: k.term}}
	if k.term == 0 {
		return conds, true
	}
	if k.leader.Session == k.id {
		return nil, false
	}
	_, session, dead := k.dead(k.leader.Session)
	return append(conds, session), dead
}

// tidy deletes, for who leads, the sessions that are long dead, and agrees on the newest format that all who live know.
func (k *Keeper) tidy(ctx context.Context) error {
	lead, ok := k.Lead()
	k.mu.Lock()
	if !ok {
		k.calm = 0
		k.mu.Unlock()
		return nil
	}
	conds, ops, format := []store.Cond{lead}, []store.Op(nil), k.Newest
	for id, o := range k.sessions {
		since, cond, dead := k.dead(id)
		switch {
		case o.gone && since > forgetTTL*k.TTL:
			delete(k.sessions, id) // unknown is dead as well
		case !dead:
			format = min(format, o.Format)
		case !o.gone && since > forgetTTL*k.TTL && len(ops) < 10:
			conds, ops = append(conds, cond), append(ops, store.Op{Key: sessionPrefix + id, Delete: true})
		}
	}
	if k.fmtRev != 0 && k.calmAt(format) {
		value, _ := json.Marshal(format) // a number always encodes
		conds, ops = append(conds, store.Cond{Key: formatPath, Rev: k.fmtRev}), append(ops, store.Op{Key: formatPath, Value: value})
	}
	k.mu.Unlock()
	if len(ops) == 0 {
		return nil
	}
	if _, err := k.Store.Commit(ctx, conds, ops); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}

// Lead says whether this server leads, and the condition under which each of its commits as a leader stands.
func (k *Keeper) Lead() (store.Cond, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return store.Cond{Key: leaderPath, Rev: k.term}, k.term != 0 && k.leader.Session == k.id && k.fresh()
}

// Turn is Lead for audit.Turn: change is closed when it may have changed.
func (k *Keeper) Turn() (mine bool, change <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.term != 0 && k.leader.Session == k.id && k.fresh(), k.changed
}
