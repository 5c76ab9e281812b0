package telemetry

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/store"
)

// maxWaiting bounds the commits whose way back through the watch is timed.
const maxWaiting = 1024

// timed is a store whose calls are timed.
type timed struct {
	store.Store
	m *Metrics

	mu      sync.Mutex              // guards what follows
	sent    map[store.Rev]time.Time // acknowledged commits that the watch of everything has not brought yet
	watched store.Rev
}

// Store times the calls of a store. What it returns behaves like the store in everything.
func (m *Metrics) Store(s store.Store) store.Store {
	return &timed{Store: s, m: m, sent: map[store.Rev]time.Time{}}
}

// Get implements store.Store.
func (t *timed) Get(ctx context.Context, key string) (store.Record, error) {
	began := time.Now()
	r, err := t.Store.Get(ctx, key)
	t.m.reads.WithLabelValues("get", readOutcome(err)).Observe(time.Since(began).Seconds())
	return r, err
}

// List implements store.Store.
func (t *timed) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	began := time.Now()
	rev, records := t.Store.List(ctx, prefix)
	t.m.reads.WithLabelValues("list", "ok").Observe(time.Since(began).Seconds())
	return rev, records
}

// Commit implements store.Store.
func (t *timed) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	began := time.Now()
	rev, err := t.Store.Commit(ctx, conds, ops)
	now := time.Now()
	t.m.commits.WithLabelValues(commitOutcome(err)).Observe(now.Sub(began).Seconds())
	if err == nil {
		t.committed(rev, now)
	}
	return rev, err
}

func (t *timed) committed(rev store.Rev, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if rev <= t.watched {
		t.m.lag.Observe(0) // the watch was as fast as the answer
		return
	}
	if len(t.sent) == maxWaiting { // the watch has passed over them, or is that far behind
		clear(t.sent)
	}
	t.sent[rev] = now
}

// Watch implements store.Store. The watch of everything, which the log follows, is the one that is timed.
func (t *timed) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	events := t.Store.Watch(ctx, prefix, after)
	if prefix != "" {
		return events
	}
	return func(yield func([]store.Event, error) bool) {
		for batch, err := range events {
			if len(batch) > 0 {
				t.brought(batch[0].Rev)
			}
			if !yield(batch, err) {
				return
			}
		}
	}
}

func (t *timed) brought(rev store.Rev) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watched = max(t.watched, rev)
	if at, ok := t.sent[rev]; ok {
		delete(t.sent, rev)
		t.m.lag.Observe(time.Since(at).Seconds())
	}
}

func readOutcome(err error) string {
	if errors.Is(err, store.ErrNotFound) {
		return "ok"
	}
	return outcome(err)
}

func commitOutcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, store.ErrConflict):
		return "conflict"
	case errors.Is(err, store.ErrUnknown):
		return "unknown"
	case errors.Is(err, store.ErrFull):
		return "full"
	}
	return "failed"
}
