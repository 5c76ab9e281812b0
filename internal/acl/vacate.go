package acl

import (
	"context"
	"strings"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
)

// Vacate deletes all that is kept of a closed namespace: policies, tokens, wrapped answers, what is configured of its ways to log in. Nothing comes after it, as no
// commit about a closed namespace is made; see mounts.Config.Vacate. fault.Conflict when the namespace is not closed any more, or somebody else is at it.
func (s *Service) Vacate(ctx context.Context, p *guard.Permit, still guard.Cond, ns keyring.Namespace) error {
	if err := s.settled(ctx); err != nil {
		return err
	}
	if err := s.Mounts.Refresh(ctx, ns); err != nil {
		return err
	}
	of := map[string]bool{} // accessors
	for _, m := range s.Mounts.All(ns) {
		of[m.Accessor] = true
	}
	v := vacating{s, p, still, string(ns)}
	for _, drop := range []func(context.Context) error{
		func(ctx context.Context) error {
			return vacate(ctx, v, s.tokens.Table, func(_ string, t token) bool { return t.Namespace == v.namespace })
		},
		func(ctx context.Context) error {
			return vacate(ctx, v, s.wraps.Table, func(_ string, w wrap) bool { return w.Namespace == v.namespace })
		},
		func(ctx context.Context) error {
			return vacate(ctx, v, s.entries, func(id string, _ entry) bool { return of[mountOf(id)] })
		},
		func(ctx context.Context) error {
			return vacate(ctx, v, s.secrets.Table, func(_ string, sec secretID) bool { return of[mountOf(sec.Role)] })
		},
		func(ctx context.Context) error {
			return vacate(ctx, v, s.policies, func(name string, _ storedPolicy) bool { return strings.HasPrefix(name, v.namespace+"/") })
		},
	} {
		if err := drop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// vacating is a namespace that is being emptied.
type vacating struct {
	service   *Service
	permit    *guard.Permit
	still     guard.Cond
	namespace string
}

// vacate deletes the records of a table that are picked, some at a time.
func vacate[T any](ctx context.Context, v vacating, of guard.Table[T], pick func(key string, value T) bool) error {
	for {
		conds, writes := []guard.Cond{v.still}, []guard.Write(nil)
		v.service.mu.RLock()
		for key, r := range of.Rows {
			if !r.Deleted && len(writes) < batch && pick(key, r.Value) {
				conds = append(conds, guard.Cond{Path: of.Prefix + key, Rev: r.Rev})
				writes = append(writes, guard.Write{Path: of.Prefix + key, Delete: true})
			}
		}
		v.service.mu.RUnlock()
		if len(writes) == 0 {
			return nil
		}
		if err := v.service.commit(ctx, v.permit, conds, writes, map[string]string{"namespace": v.namespace, "event": "vacate"}); err != nil {
			return err
		}
	}
}

// settled waits until the tables have what the store had when it was called.
func (s *Service) settled(ctx context.Context) error {
	last, err := s.Guard.CaughtUp(ctx, strings.TrimSuffix(prefix, "/"))
	for err == nil && uint64(last) > s.heard.Load() {
		err = s.await(ctx)
		if cause := ctx.Err(); err == nil && cause != nil {
			err = cause
		}
	}
	return err
}
