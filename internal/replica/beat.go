package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// This file keeps the own session.

// beat rewrites the own session. Only once that commit has come back through the watch, and memory has caught up with it, does the session
// last for another TTL, counted from before the commit: what this server does while it is fresh, it does on what was there when others may
// still have counted it dead.
func (k *Keeper) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.TTL)
	defer cancel()
	sent := k.Clock()
	at, err := k.renew(ctx)
	if err != nil || at == 0 {
		return err
	}
	for {
		k.mu.Lock()
		watched, changed := k.watched, k.changed
		k.mu.Unlock()
		if watched >= at {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("watch of the servers is behind: %w", ctx.Err())
		}
	}
	if k.Caught != nil {
		if err := k.Caught(ctx, at); err != nil {
			return err
		}
	}
	k.came(sent, at)
	return nil
}

// came notes a sign of life that has come back.
func (k *Keeper) came(sent time.Duration, at store.Rev) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heard, k.heardRev = sent, at
	k.notify()
}

// renew commits a sign of life; 0 after Close.
func (k *Keeper) renew(ctx context.Context) (store.Rev, error) {
	k.mu.Lock()
	next, rev, ended := k.own, k.rev, k.ended
	k.mu.Unlock()
	if ended {
		return 0, nil
	}
	next.Beat++
	if k.Seen != nil {
		next.Seen = k.Seen()
	}
	value, err := json.Marshal(next)
	if err != nil {
		return 0, fmt.Errorf("encode session: %w", err)
	}
	path := sessionPrefix + k.id
	at, err := k.Store.Commit(ctx, []store.Cond{{Key: path, Rev: rev}}, []store.Op{{Key: path, Value: value}})
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown) {
		at, err = k.reread(ctx, next, err)
	}
	if err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.own, k.rev = next, at
	return at, nil
}

// reread looks what became of a beat that failed: it was made after all, or the next one has another condition.
func (k *Keeper) reread(ctx context.Context, next record, cause error) (store.Rev, error) {
	r, err := k.Store.Get(ctx, sessionPrefix+k.id)
	if errors.Is(err, store.ErrNotFound) {
		r.Rev, err = 0, nil
	}
	if err != nil {
		return 0, errors.Join(cause, err)
	}
	if got, err := parseSession(r.Value); r.Rev != 0 && err == nil && got.Beat == next.Beat {
		return r.Rev, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rev = r.Rev
	return 0, cause
}

// Hurry has the next sign of life, which says what this server has seen, be given now.
func (k *Keeper) Hurry() {
	select {
	case k.hurry <- struct{}{}:
	default: // it is about to be
	}
}

// fresh says whether the own session lasts. Call with mu held.
func (k *Keeper) fresh() bool { return !k.ended && k.heardRev != 0 && k.Clock() < k.heard+k.TTL }

// Fresh says whether this server's own session lasts: no other server takes it for dead yet, and its memory is no older than its session.
func (k *Keeper) Fresh() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fresh()
}

// Await returns once the session is fresh.
func (k *Keeper) Await(ctx context.Context) error {
	for {
		k.mu.Lock()
		fresh, changed := k.fresh(), k.changed
		k.mu.Unlock()
		if fresh {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "session of this server", ctx.Err())
		}
	}
}
