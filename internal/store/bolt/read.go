package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/rotorkms/rotor/internal/store"
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (r store.Record, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketData).Get([]byte(key))
		if b == nil {
			return store.ErrNotFound
		}
		r, err = decode([]byte(key), b)
		return err
	})
	return r, err
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
	return rev, func(yield func(store.Record, error) bool) {
		if err != nil {
			yield(store.Record{}, err)
			return
		}
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// watchBatch bounds the commits that a watch reads in one transaction.
const watchBatch = 256

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		for {
			s.mu.Lock()
			changed, newest := s.changed, s.rev
			s.mu.Unlock()
			if after < newest {
				commits, at, err := s.since(ctx, prefix, after, newest)
				if err != nil {
					yield(nil, err)
					return
				}
				after = at
				for _, events := range commits {
					if !yield(events, nil) {
						return
					}
				}
				continue
			}
			if err := s.failure(); err != nil {
				yield(nil, err)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

// since reads the commits after a revision, at most watchBatch, and returns the revision that it got to.
func (s *Store) since(ctx context.Context, prefix string, after, newest store.Rev) (commits [][]store.Event, at store.Rev, err error) {
	at = after
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		if after < number(tx.Bucket(bucketMeta).Get(keyFirst)) {
			return store.ErrCompacted
		}
		c := tx.Bucket(bucketLog).Cursor()
		for k, v := c.Seek(numbered(after + 1)); k != nil && number(k) <= newest && number(k) <= after+watchBatch; k, v = c.Next() {
			if number(k) != at+1 {
				return fmt.Errorf("%w: history has a gap at revision %d", store.ErrCorrupt, at+1)
			}
			at++
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

// appendEvent encodes an event: kind 1 (0 put, 1 delete), key length 2, key, value length 4, value.
func appendEvent(b []byte, key string, value []byte, deleted bool) []byte {
	kind := byte(0)
	if deleted {
		kind = 1
	}
	b = binary.BigEndian.AppendUint16(append(b, kind), uint16(len(key)))
	b = append(b, key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...)
}

func parseEvents(b []byte, rev store.Rev, prefix string) ([]store.Event, error) {
	var events []store.Event
	for len(b) > 0 {
		if len(b) < 3 {
			return nil, fmt.Errorf("%w: history of revision %d", store.ErrCorrupt, rev)
		}
		n := 3 + int(binary.BigEndian.Uint16(b[1:]))
		if len(b) < n+4 {
			return nil, fmt.Errorf("%w: history of revision %d", store.ErrCorrupt, rev)
		}
		end := n + 4 + int(binary.BigEndian.Uint32(b[n:]))
		if len(b) < end {
			return nil, fmt.Errorf("%w: history of revision %d", store.ErrCorrupt, rev)
		}
		e := store.Event{Key: string(b[3:n]), Deleted: b[0] == 1, Rev: rev}
		if !e.Deleted {
			e.Value = append([]byte{}, b[n+4:end]...)
		}
		if strings.HasPrefix(e.Key, prefix) {
			events = append(events, e)
		}
		b = b[end:]
	}
	return events, nil
}
