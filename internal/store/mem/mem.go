// Package mem is the store in memory: for tests, never for data that must survive the process.
package mem

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/rotorkms/rotor/internal/store"
)

// DefaultHistory is how many commits a watch can look back.
const DefaultHistory = 100_000

// Store is an engine that keeps everything in memory.
type Store struct {
	history int

	mu      sync.Mutex // guards what follows
	closed  bool
	rev     store.Rev
	records map[string]store.Record
	keys    []string        // of the records, sorted
	log     [][]store.Event // of the commits rev-len(log)+1 … rev
	changed chan struct{}   // closed and replaced at each commit
}

// New makes an empty store that keeps DefaultHistory commits for watches.
func New() *Store { return NewHistory(DefaultHistory) }

// NewHistory makes an empty store that keeps n commits for watches.
func NewHistory(n int) *Store {
	return &Store{history: n, records: map[string]store.Record{}, changed: make(chan struct{})}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := ctx.Err(); err != nil {
		return store.Record{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.Record{}, store.ErrClosed
	}
	r, ok := s.records[key]
	if !ok {
		return store.Record{}, store.ErrNotFound
	}
	r.Value = bytes.Clone(r.Value)
	return r, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := ctx.Err()
	if s.closed {
		err = store.ErrClosed
	}
	if err != nil {
		return 0, func(yield func(store.Record, error) bool) { yield(store.Record{}, err) }
	}
	var found []store.Record
	first, _ := slices.BinarySearch(s.keys, prefix)
	for _, key := range s.keys[first:] {
		if !strings.HasPrefix(key, prefix) {
			break
		}
		r := s.records[key]
		r.Value = bytes.Clone(r.Value)
		found = append(found, r)
	}
	return s.rev, func(yield func(store.Record, error) bool) {
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	for _, c := range conds {
		if s.records[c.Key].Rev != c.Rev {
			return 0, store.ErrConflict
		}
	}
	s.rev++
	var events []store.Event
	for _, o := range ops {
		_, there := s.records[o.Key]
		at, _ := slices.BinarySearch(s.keys, o.Key)
		switch {
		case !o.Delete:
			value := append([]byte{}, o.Value...)
			s.records[o.Key] = store.Record{Key: o.Key, Value: value, Rev: s.rev}
			if !there {
				s.keys = slices.Insert(s.keys, at, o.Key)
			}
			events = append(events, store.Event{Key: o.Key, Value: value, Rev: s.rev})
		case there:
			delete(s.records, o.Key)
			s.keys = slices.Delete(s.keys, at, at+1)
			events = append(events, store.Event{Key: o.Key, Deleted: true, Rev: s.rev})
		}
	}
	s.log = append(s.log, events)
	if extra := len(s.log) - s.history; extra > 0 {
		s.log = slices.Delete(s.log, 0, extra)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return s.rev, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		after := after
		for {
			events, changed, err := s.next(ctx, prefix, &after)
			switch {
			case err != nil:
				yield(nil, err)
				return
			case len(events) > 0:
				if !yield(events, nil) {
					return
				}
			case changed != nil:
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
		}
	}
}

// next returns the events of the first commit after *after that touches prefix, or the channel to wait on.
func (s *Store) next(ctx context.Context, prefix string, after *store.Rev) ([]store.Event, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if s.closed {
		return nil, nil, store.ErrClosed
	}
	first := s.rev - store.Rev(len(s.log)) // the newest commit that is no longer kept
	if *after < first {
		return nil, nil, store.ErrCompacted
	}
	for *after < s.rev {
		commit := s.log[*after-first]
		*after++
		var events []store.Event
		for _, e := range commit {
			if strings.HasPrefix(e.Key, prefix) {
				e.Value = bytes.Clone(e.Value)
				events = append(events, e)
			}
		}
		if len(events) > 0 {
			return events, nil, nil
		}
	}
	return nil, s.changed, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return nil
}
