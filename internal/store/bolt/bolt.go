// Package bolt is the default engine: one file (go.etcd.io/bbolt), one process. Commits that arrive together share one
// transaction and its sync; a lone commit is not delayed.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/store"
)

// The buckets and the keys of the meta bucket, all numbers big-endian of 8 bytes. What they hold: record.go.
var (
	bucketData = []byte("data") // key -> record
	bucketLog  = []byte("log")  // revision -> events, for watches
	bucketMeta = []byte("meta")
	keyRev     = []byte("rev")   // newest revision
	keyFirst   = []byte("first") // newest revision that the log no longer holds
	keySum     = []byte("sum")   // sum of all records
)

// Options change how a store is opened; the zero value is good.
type Options struct {
	History int // commits that a watch can look back when it begins; default 1,000
	Behind  int // commits that are kept for a watch that is under way and has not read them; default 100,000
}

// maxBatch bounds the commits that share one transaction.
const maxBatch = 512

// Store is an open file. It is safe for concurrent use.
type Store struct {
	db              *bbolt.DB
	history, behind store.Rev
	queue           chan *pending
	stop            chan struct{}
	writer          sync.WaitGroup
	closing         sync.Once
	written         int64 // bytes since the writer gave back what is mapped; the writer's own

	// durable is the newest transaction whose sync returned. Readers see a transaction in the memory map before that, and wait.
	durable atomic.Uint64

	mu      sync.Mutex // guards what follows
	failed  error      // set for good when the store stops
	stuck   bool       // bbolt panicked with its locks held, so even its Close would wait for ever
	rev     store.Rev  // of the newest durable commit; only the writer changes it
	changed chan struct{}
	reached map[*store.Rev]store.Rev // how far each watch that is under way has read
}

// pending is a commit that waits for its transaction.
type pending struct {
	conds []store.Cond
	ops   []store.Op
	rev   store.Rev
	err   error
	done  chan struct{}
}

// Open opens or creates the file with mode 0600, having verified the whole of it. store.ErrLocked when it is open already,
// store.ErrCorrupt when it is damaged.
func Open(path string, o Options) (*Store, error) {
	if o.History <= 0 {
		o.History = 1_000
	}
	if o.Behind <= 0 {
		o.Behind = 100_000
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of store: %w", err)
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("create %s: %w", path, err)
		}
	}
	s := &Store{
		history: store.Rev(o.History), behind: store.Rev(max(o.Behind, o.History)), queue: make(chan *pending, maxBatch),
		stop: make(chan struct{}), changed: make(chan struct{}), reached: map[*store.Rev]store.Rev{},
	}
	if err := s.open(path); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s.writer.Add(1)
	go s.write()
	return s, nil
}

// create makes an empty store beside path and links it there, so that a crash leaves no half-made file and two creators make one.
func create(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".store-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // path has its own link by then
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(f.Name(), 0o600, options(os.OpenFile))
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketData, bucketLog, bucketMeta} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyRev, numbered(0)), meta.Put(keyFirst, numbered(0)), meta.Put(keySum, numbered(0)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// options are bbolt's. The list of free pages is not written but found again at open, when verify reads the whole file anyway.
func options(open func(string, int, os.FileMode) (*os.File, error)) *bbolt.Options {
	return &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, NoStatistics: true, OpenFile: open}
}

// open locks the file, verifies it, and only then lets bbolt map it: what bbolt reads without checking cannot stop the process.
func (s *Store) open(path string) (err error) {
	var file *os.File
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(fmt.Errorf("%w: %v", store.ErrCorrupt, r), file.Close())
		}
	}()
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	s.db, err = bbolt.Open(path, 0o600, options(func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
		if err != nil {
			return nil, err
		}
		file = f
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = store.ErrLocked
		}
		if err == nil {
			err = verify(f)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}))
	if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
		return fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	}
	if err != nil {
		return err
	}
	return s.db.View(func(tx *bbolt.Tx) error {
		s.durable.Store(uint64(tx.ID()))
		s.rev = number(tx.Bucket(bucketMeta).Get(keyRev))
		return nil
	})
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// halt stops the store for good: what comes later gets store.ErrClosed, with the reason.
func (s *Store) halt(reason error, stuck bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = s.stuck || stuck
	if s.failed == nil {
		s.failed = fmt.Errorf("%w: stopped after: %w", store.ErrClosed, reason)
	}
	s.wake()
}

// wake tells watches and waiting readers that something changed. Call with mu held.
func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Commit implements store.Store. Once it is queued it is decided soon, so ctx no longer counts: waiting beats not knowing.
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
	case <-p.done:
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
		stuck := s.stuck
		s.wake()
		s.mu.Unlock()
		if !stuck {
			err = s.db.Close()
		}
	})
	return err
}

func number(b []byte) store.Rev {
	if len(b) != 8 {
		return 0
	}
	return store.Rev(binary.BigEndian.Uint64(b))
}

func numbered(r store.Rev) []byte { return binary.BigEndian.AppendUint64(nil, uint64(r)) }
