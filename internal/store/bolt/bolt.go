// Package bolt is the default engine: one file (go.etcd.io/bbolt), one process. Commits that arrive together share one
// transaction and its sync; a lone commit is not delayed.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/rotorkms/rotor/internal/store"
)

var (
	bucketData = []byte("data") // key -> revision 8, CRC-32C 4, value
	bucketLog  = []byte("log")  // revision -> events, for watches
	bucketMeta = []byte("meta")
	keyRev     = []byte("rev")
	keyFirst   = []byte("first") // newest revision that the log no longer holds
)

// Options change how a store is opened; the zero value is good.
type Options struct {
	History int // commits that a watch can look back; default 100,000
}

// maxBatch bounds the commits that share one transaction.
const maxBatch = 512

// Store is an open file. It is safe for concurrent use.
type Store struct {
	db      *bbolt.DB
	history store.Rev
	queue   chan *pending
	stop    chan struct{}
	writer  sync.WaitGroup
	closing sync.Once

	mu      sync.Mutex // guards what follows
	failed  error      // set for good after a failed sync
	rev     store.Rev  // of the newest durable commit
	changed chan struct{}
}

// pending is a commit that waits for its transaction.
type pending struct {
	conds []store.Cond
	ops   []store.Op
	rev   store.Rev
	err   error
	done  chan struct{}
}

// Open opens or creates the file with mode 0600. store.ErrLocked when another process has it open, store.ErrCorrupt when it
// is damaged.
func Open(path string, o Options) (_ *Store, err error) {
	defer corrupt(&err)
	if o.History == 0 {
		o.History = 100_000
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of store: %w", err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 50 * time.Millisecond, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: %w", path, store.ErrLocked)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("open %s: %w: %w", path, store.ErrCorrupt, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &Store{
		db: db, history: store.Rev(o.History), queue: make(chan *pending, maxBatch), stop: make(chan struct{}),
		changed: make(chan struct{}),
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.writer.Add(1)
	go s.write()
	return s, nil
}

func (s *Store) prepare() error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketData, bucketLog, bucketMeta} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		s.rev = number(tx.Bucket(bucketMeta).Get(keyRev))
		return nil
	})
}

// corrupt turns what bbolt and the memory map do on a damaged page into an error.
func corrupt(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %v", store.ErrCorrupt, r)
	}
}

// view runs a read-only transaction and survives damaged pages.
func (s *Store) view(ctx context.Context, f func(tx *bbolt.Tx) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.failure(); err != nil {
		return err
	}
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer corrupt(&err)
	tx, err := s.db.Begin(false)
	if err != nil {
		return closedOr(err)
	}
	defer func() { _ = tx.Rollback() }() // a read-only transaction has nothing to lose
	return f(tx)
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func closedOr(err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	return err
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	p := &pending{conds: conds, ops: ops, done: make(chan struct{})}
	select {
	case <-s.stop:
		return 0, store.ErrClosed
	case s.queue <- p:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-p.done: // once queued it will be decided soon, so waiting is better than not knowing
		return p.rev, p.err
	case <-s.stop:
		s.writer.Wait()
		select {
		case <-p.done:
			return p.rev, p.err
		default:
			return 0, store.ErrClosed
		}
	}
}

// write is the one writer: it takes all commits that wait, and decides them in one transaction.
func (s *Store) write() {
	defer s.writer.Done()
	for {
		var batch []*pending
		select {
		case <-s.stop:
			return
		case p := <-s.queue:
			batch = append(batch, p)
		}
	more:
		for len(batch) < maxBatch {
			select {
			case p := <-s.queue:
				batch = append(batch, p)
			default:
				break more
			}
		}
		s.decide(batch)
	}
}

func (s *Store) decide(batch []*pending) {
	rev, err := s.transact(batch)
	if err == nil && rev > s.rev {
		s.mu.Lock()
		s.rev = rev
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	for _, p := range batch {
		if err != nil && (p.err == nil || !errors.Is(p.err, store.ErrConflict)) {
			p.rev, p.err = 0, err
		}
		close(p.done)
	}
}

// transact writes the commits of a batch whose conditions hold, each with its own revision. An error after the write began
// leaves the outcome unknown, and the store stops for good (a sync that failed once must not be trusted again).
func (s *Store) transact(batch []*pending) (rev store.Rev, err error) {
	if err := s.failure(); err != nil {
		return 0, err
	}
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer corrupt(&err)
	tx, err := s.db.Begin(true)
	if err != nil {
		return 0, closedOr(err)
	}
	rev = s.rev
	for _, p := range batch {
		p.err = s.one(tx, p, rev+1)
		if p.err == nil {
			rev++
			p.rev = rev
		} else if !errors.Is(p.err, store.ErrConflict) {
			return 0, errors.Join(p.err, tx.Rollback())
		}
	}
	if rev == s.rev {
		return rev, tx.Rollback()
	}
	if err := s.trim(tx, rev); err != nil {
		return 0, errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return 0, s.fail(err)
	}
	return rev, nil
}

// fail decides what a failed transaction means. A full disk is found while the file grows, before anything is
// published, and is survivable; anything else stops the store.
func (s *Store) fail(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("write store: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = fmt.Errorf("%w: stopped after %w", store.ErrClosed, err)
	close(s.changed)
	s.changed = make(chan struct{})
	return fmt.Errorf("%w: %w", store.ErrUnknown, err)
}

// one applies a commit inside the transaction, or reports ErrConflict having written nothing.
func (s *Store) one(tx *bbolt.Tx, p *pending, rev store.Rev) error {
	data := tx.Bucket(bucketData)
	for _, c := range p.conds {
		if revision(data.Get([]byte(c.Key))) != c.Rev {
			return store.ErrConflict
		}
	}
	var log []byte
	for _, o := range p.ops {
		key := []byte(o.Key)
		if o.Delete {
			if data.Get(key) == nil {
				continue
			}
			if err := data.Delete(key); err != nil {
				return fmt.Errorf("delete record: %w", err)
			}
			log = appendEvent(log, o.Key, nil, true)
			continue
		}
		if err := data.Put(key, encode(rev, o.Value)); err != nil {
			return fmt.Errorf("put record: %w", err)
		}
		log = appendEvent(log, o.Key, o.Value, false)
	}
	if err := tx.Bucket(bucketLog).Put(numbered(rev), log); err != nil {
		return fmt.Errorf("put history: %w", err)
	}
	return tx.Bucket(bucketMeta).Put(keyRev, numbered(rev))
}

// trim forgets the commits that no watch may ask for any more.
func (s *Store) trim(tx *bbolt.Tx, rev store.Rev) error {
	if rev <= s.history {
		return nil
	}
	first := rev - s.history
	c := tx.Bucket(bucketLog).Cursor()
	for k, _ := c.First(); k != nil && number(k) <= first; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return fmt.Errorf("trim history: %w", err)
		}
	}
	return tx.Bucket(bucketMeta).Put(keyFirst, numbered(first))
}

// Close implements store.Store. Commits that wait are decided first or get ErrClosed.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.stop)
		s.writer.Wait()
		s.mu.Lock()
		if s.failed == nil {
			s.failed = store.ErrClosed
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		err = s.db.Close()
	})
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encode(rev store.Rev, value []byte) []byte {
	b := make([]byte, 12, 12+len(value))
	binary.BigEndian.PutUint64(b, uint64(rev))
	b = append(b, value...)
	binary.BigEndian.PutUint32(b[8:], crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, value))
	return b
}

func decode(key, b []byte) (store.Record, error) {
	if len(b) < 12 || binary.BigEndian.Uint32(b[8:]) != crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, b[12:]) {
		return store.Record{}, fmt.Errorf("%w: record %q", store.ErrCorrupt, key)
	}
	return store.Record{Key: string(key), Value: append([]byte{}, b[12:]...), Rev: store.Rev(binary.BigEndian.Uint64(b))}, nil
}

func revision(b []byte) store.Rev {
	if len(b) < 12 {
		return 0
	}
	return store.Rev(binary.BigEndian.Uint64(b))
}

func number(b []byte) store.Rev {
	if len(b) != 8 {
		return 0
	}
	return store.Rev(binary.BigEndian.Uint64(b))
}

func numbered(r store.Rev) []byte { return binary.BigEndian.AppendUint64(nil, uint64(r)) }
