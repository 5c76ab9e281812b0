package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime/debug"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/rotorkms/rotor/internal/store"
)

// corrupt turns what bbolt and the memory map do on a damaged page into an error.
func corrupt(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %v", store.ErrCorrupt, r)
	}
}

func closedOr(err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	return err
}

// view runs a read-only transaction, survives damaged pages, and returns once what it saw is durable.
func (s *Store) view(ctx context.Context, f func(tx *bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.failure(); err != nil {
		return err
	}
	id, err := s.read(f)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return errors.Join(err, s.settled(ctx, id))
}

// read runs f and returns which transaction it saw.
func (s *Store) read(f func(tx *bbolt.Tx) error) (id uint64, err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	durable := s.durable.Load()
	tx, err := s.begin(false)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }() // a read-only transaction has nothing to lose
	defer corrupt(&err)
	if id = uint64(tx.ID()); id < durable { // bbolt falls back to the older meta page when the newer is damaged
		return 0, fmt.Errorf("%w: transaction %d is gone", store.ErrCorrupt, durable)
	}
	return id, f(tx)
}

// settled waits until a transaction is durable: bbolt's memory map shows it a sync earlier.
func (s *Store) settled(ctx context.Context, id uint64) error {
	for s.durable.Load() < id {
		s.mu.Lock()
		changed, failed := s.changed, s.failed
		s.mu.Unlock()
		if s.durable.Load() >= id {
			return nil
		}
		if failed != nil {
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	var r store.Record
	err := s.view(ctx, func(tx *bbolt.Tx) (err error) {
		b := tx.Bucket(bucketData).Get([]byte(key))
		if b == nil {
			return store.ErrNotFound
		}
		r, err = decode([]byte(key), b)
		return err
	})
	if err != nil {
		return store.Record{}, err
	}
	return r, nil
}

// List implements store.Store. The snapshot is read whole before the first record is yielded, so that a slow reader holds no
// transaction open.
func (s *Store) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	var rev store.Rev
	var found []store.Record
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		rev = number(tx.Bucket(bucketMeta).Get(keyRev))
		c := tx.Bucket(bucketData).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			r, err := decode(k, v)
			if err != nil {
				return err
			}
			found = append(found, r)
		}
		return nil
	})
	if err != nil {
		return 0, func(yield func(store.Record, error) bool) { yield(store.Record{}, err) }
	}
	return rev, func(yield func(store.Record, error) bool) {
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// watchBatch and watchBytes bound what a watch reads in one transaction: commits, and bytes of history with at most one commit above.
const (
	watchBatch = 256
	watchBytes = 1 << 20
)

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		after := after
		defer func() {
			s.mu.Lock()
			delete(s.reached, &after)
			s.mu.Unlock()
		}()
		for {
			s.mu.Lock()
			s.reached[&after] = after
			changed, newest, failed := s.changed, s.rev, s.failed
			s.mu.Unlock()
			switch {
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case failed != nil:
				yield(nil, failed)
				return
			case after >= newest:
				select {
				case <-changed:
				case <-ctx.Done():
				}
				continue
			}
			commits, at, err := s.since(ctx, prefix, after, newest)
			if err != nil {
				yield(nil, err)
				return
			}
			after = at
			for _, events := range commits {
				if err := ctx.Err(); err != nil {
					yield(nil, err)
					return
				}
				if !yield(events, nil) {
					return
				}
			}
		}
	}
}

// since reads the commits after a revision, within bounds, and returns the revision that it got to.
func (s *Store) since(ctx context.Context, prefix string, after, newest store.Rev) (commits [][]store.Event, at store.Rev, err error) {
	at = after
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		if after < number(tx.Bucket(bucketMeta).Get(keyFirst)) {
			return store.ErrCompacted
		}
		read := 0
		c := tx.Bucket(bucketLog).Cursor()
		for k, v := c.Seek(numbered(after + 1)); k != nil && at < newest && at < after+watchBatch && read < watchBytes; k, v = c.Next() {
			if number(k) != at+1 {
				return fmt.Errorf("%w: history has a gap at revision %d", store.ErrCorrupt, at+1)
			}
			at++
			read += len(v)
			events, err := parseEvents(v, at, prefix)
			if err != nil {
				return err
			}
			if len(events) > 0 {
				commits = append(commits, events)
			}
		}
		if at == after {
			return fmt.Errorf("%w: history ends at revision %d", store.ErrCorrupt, at)
		}
		return nil
	})
	return commits, at, err
}
