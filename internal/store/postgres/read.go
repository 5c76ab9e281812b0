package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rotorkms/rotor/internal/store"
)

// The first and the longest pause between two attempts.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// pause waits, longer each time.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(min(firstPause<<min(n, 10), lastPause))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read runs a query that may be run again: a connection that broke is no error while the server can be reached within the time for it.
// limit bounds one try, which a network that swallows everything would keep waiting.
func (s *Store) read(ctx context.Context, limit time.Duration, f func(ctx context.Context) error) error {
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	end := time.Now().Add(s.timeout)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.failure(); err != nil {
			return err
		}
		try, done := context.WithTimeout(run, limit)
		err := f(try)
		done()
		if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCompacted) {
			return err
		}
		if err := s.failure(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !transient(err) || time.Now().After(end) {
			return plain(err)
		}
		_ = pause(run, n) // the loop looks why
	}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	r := store.Record{Key: key}
	err := s.read(ctx, s.timeout/2, func(ctx context.Context) error {
		err := s.pool.QueryRow(ctx, s.sql.get, []byte(key)).Scan(&r.Value, number{&r.Rev})
		if errors.Is(err, pgx.ErrNoRows) {
			return store.ErrNotFound
		}
		return err
	})
	if err != nil {
		return store.Record{}, err
	}
	return r, nil
}

// head reads the newest revision and the newest that the log no longer holds.
func (s *Store) head(ctx context.Context) (first, rev store.Rev, err error) {
	err = s.read(ctx, s.timeout/2, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, s.sql.head).Scan(number{&rev}, number{&first})
	})
	return first, rev, err
}

// List implements store.Store. One statement reads one snapshot, whole before the first record is yielded, so that a slow reader holds
// nothing open on the server.
func (s *Store) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	var rev store.Rev
	var found []store.Record
	err := s.read(ctx, statementTime, func(ctx context.Context) error {
		rev, found = 0, nil
		sql, args := s.sql.listAll, []any{}
		if end, ok := after(prefix); ok {
			sql, args = s.sql.list, []any{[]byte(prefix), end}
		} else if prefix != "" {
			sql, args = s.sql.listFrom, []any{[]byte(prefix)}
		}
		rows, err := s.pool.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key, value []byte
			var at *int64
			if err := rows.Scan(number{&rev}, &key, &value, &at); err != nil {
				return err
			}
			if at != nil { // else there is no record, and the row tells the revision alone
				found = append(found, store.Record{Key: string(key), Value: value, Rev: store.Rev(*at)})
			}
		}
		return rows.Err()
	})
	if err != nil {
		return 0, func(yield func(store.Record, error) bool) { yield(store.Record{}, fmt.Errorf("list: %w", err)) }
	}
	return rev, func(yield func(store.Record, error) bool) {
		for _, r := range found {
			r.Value = append([]byte{}, r.Value...)
			if !yield(r, nil) {
				return
			}
		}
	}
}
