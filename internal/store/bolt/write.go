package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"strings"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/store"
)

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

// errApply: a commit of the batch could not be applied to the transaction, which was given up before anything was written.
var errApply = errors.New("apply commit")

// decide writes a batch and answers everybody in it. When one of its commits cannot be applied (it met a damaged page), each is
// decided alone, so that the others do not suffer.
func (s *Store) decide(batch []*pending) {
	err := s.transact(batch)
	if errors.Is(err, errApply) && len(batch) > 1 {
		for _, p := range batch {
			s.decide([]*pending{p})
		}
		return
	}
	for _, p := range batch {
		if err != nil { // also a conflict is no longer one: it may have been with a commit that never happened
			p.rev, p.err = 0, err
		}
		close(p.done)
	}
}

// batchTx is a transaction that applies commits.
type batchTx struct {
	tx              *bbolt.Tx
	data, log, meta *bbolt.Bucket
	rev             store.Rev // of the newest commit applied
	sum             uint64    // of all records
}

// transact writes the commits of a batch whose conditions hold, each with its own revision; the others get store.ErrConflict. On
// an error nothing was written, except with store.ErrUnknown, and then the store has stopped.
func (s *Store) transact(batch []*pending) error {
	if err := s.failure(); err != nil {
		return err
	}
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	tx, err := s.begin(true)
	if err != nil {
		return err
	}
	durable := s.durable.Load()
	if uint64(tx.ID()) != durable+1 {
		err := fmt.Errorf("%w: transaction %d after %d", store.ErrCorrupt, tx.ID(), durable)
		s.halt(err, false)
		return errors.Join(err, rollback(tx))
	}
	rev, err := s.apply(tx, batch)
	if err != nil {
		return fmt.Errorf("%w: %w", errApply, errors.Join(err, rollback(tx)))
	}
	if rev == s.rev {
		return rollback(tx) // nothing but conflicts
	}
	size := tx.Size()
	if err := commit(tx); err != nil {
		return s.fail(durable, err)
	}
	s.durable.Store(durable + 1)
	stats := tx.Stats()
	s.unmap(size, stats.GetPageAlloc())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev = rev
	s.wake()
	return nil
}

// mappedBytes is how much may be written before what is mapped of the file is given back.
const mappedBytes = 2 << 20

// unmap gives back what is mapped of the file, from time to time: each page that was read once would count as memory of the process as long as it
// runs, though nearly all were replaced by a later transaction. What is read again is mapped again from the page cache. The writer alone calls it,
// and nobody else makes bbolt map the file anew.
func (s *Store) unmap(size, written int64) {
	if s.written += written; s.written < mappedBytes {
		return
	}
	s.written = 0
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.db.Info().Data, uintptr(size), unix.MADV_DONTNEED) // refused for memory that is locked, and of no other consequence
}

// begin starts a transaction. bbolt panics with its locks held when it finds no good meta page, and is of no use after that.
func (s *Store) begin(writable bool) (tx *bbolt.Tx, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", store.ErrCorrupt, r)
			s.halt(err, true)
		}
	}()
	tx, err = s.db.Begin(writable)
	return tx, closedOr(err)
}

// commit and rollback turn what bbolt and the memory map do on a damaged page into an error, and leave no lock held.
func commit(tx *bbolt.Tx) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(fmt.Errorf("%w: %v", store.ErrCorrupt, r), rollback(tx))
		}
	}()
	return tx.Commit()
}

func rollback(tx *bbolt.Tx) (err error) {
	defer corrupt(&err)
	return tx.Rollback()
}

// fail decides what a failed bbolt commit means. bbolt first makes the file longer, then writes data pages to places that nobody
// reads yet, syncs, writes the meta page, syncs. Room that ran out in a write harms nobody as long as the meta page is still the
// old one; bbolt has then found its free pages anew. Everything else stops the store: above all a sync that failed, for the
// kernel may have dropped what it could not write, and a second sync would report success.
func (s *Store) fail(durable uint64, err error) error {
	if full(err) && s.newest() == durable {
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	s.halt(err, false)
	return fmt.Errorf("%w: %w", store.ErrUnknown, err)
}

// full says whether a write, or making the file longer, found no room. A sync that reports it (network file systems and thin volumes
// do) is not meant: its error is the bare number.
func full(err error) bool {
	if strings.HasPrefix(err.Error(), "file resize error: ") { // bbolt does not wrap this one, the step before all writes
		return true
	}
	var p *fs.PathError
	return errors.As(err, &p) && p.Op == "write" && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT))
}

// newest is the transaction that the meta pages name; 0 when they name none.
func (s *Store) newest() uint64 {
	tx, err := s.begin(false)
	if err != nil {
		return 0
	}
	id := uint64(tx.ID())
	if rollback(tx) != nil {
		return 0
	}
	return id
}

// fill is how much of a page stays on the left when it is split. Most keys of a kind grow (revisions, numbers of entries and of versions), so what is left
// on the left stays as it is.
const fill = 0.75

// apply applies the commits of a batch to the transaction and returns the revision of the last.
func (s *Store) apply(tx *bbolt.Tx, batch []*pending) (rev store.Rev, err error) {
	defer corrupt(&err)
	b := batchTx{tx: tx, data: tx.Bucket(bucketData), log: tx.Bucket(bucketLog), meta: tx.Bucket(bucketMeta), rev: s.rev}
	b.sum = uint64(number(b.meta.Get(keySum)))
	b.data.FillPercent, b.log.FillPercent = fill, fill
	for _, p := range batch {
		p.rev, p.err = 0, b.conditions(p.conds)
		if errors.Is(p.err, store.ErrConflict) {
			continue
		}
		if p.err == nil {
			p.err = b.write(p.ops)
		}
		if p.err != nil {
			return 0, p.err
		}
		p.rev = b.rev
	}
	if b.rev == s.rev {
		return b.rev, nil
	}
	err = errors.Join(b.meta.Put(keyRev, numbered(b.rev)), b.meta.Put(keySum, binary.BigEndian.AppendUint64(nil, b.sum)))
	if err != nil {
		return 0, err
	}
	return b.rev, b.trim(s.unneeded(b.rev), trimAtLeast+2*int(b.rev-s.rev))
}

// unneeded is the newest commit that nobody has to be told any more when the store has reached a revision: no watch that is under way, as far
// as behind allows, and none that begins from what was listed a moment ago.
func (s *Store) unneeded(rev store.Rev) store.Rev {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := rev - min(rev, s.history)
	for _, at := range s.reached {
		first = min(first, at)
	}
	return max(first, rev-min(rev, s.behind))
}

// conditions reports store.ErrConflict when one does not hold.
func (b *batchTx) conditions(conds []store.Cond) error {
	for _, c := range conds {
		var rev store.Rev
		if old := b.data.Get([]byte(c.Key)); old != nil {
			r, err := decode([]byte(c.Key), old)
			if err != nil {
				return err
			}
			rev = r.Rev
		}
		if rev != c.Rev {
			return store.ErrConflict
		}
	}
	return nil
}

// write applies the operations of one commit under the next revision.
func (b *batchTx) write(ops []store.Op) error {
	b.rev++
	log := newEvents(b.rev)
	for _, o := range ops {
		key := []byte(o.Key)
		old := b.data.Get(key)
		if old != nil {
			b.sum -= share(key, old)
		}
		if o.Delete {
			if old == nil {
				continue
			}
			if err := b.data.Delete(key); err != nil {
				return fmt.Errorf("delete record: %w", err)
			}
			log = appendEvent(log, o.Key, nil, true)
			continue
		}
		value := encode(key, b.rev, o.Value)
		b.sum += share(key, value)
		if err := b.data.Put(key, value); err != nil {
			return fmt.Errorf("put record: %w", err)
		}
		log = appendEvent(log, o.Key, o.Value, false)
	}
	if err := b.log.Put(numbered(b.rev), sealEvents(log)); err != nil {
		return fmt.Errorf("put history: %w", err)
	}
	return nil
}

// trimAtLeast is how many commits a transaction may forget beside two for each that it makes: what a slow watch left goes bit by bit.
const trimAtLeast = 64

// trim forgets the commits up to one that no watch may ask for any more, at most a number of them.
func (b *batchTx) trim(last store.Rev, most int) error {
	first := number(b.meta.Get(keyFirst))
	c := b.log.Cursor()
	for k, _ := c.First(); k != nil && number(k) <= last && most > 0; k, _ = c.First() {
		first, most = number(k), most-1
		if err := c.Delete(); err != nil {
			return fmt.Errorf("trim history: %w", err)
		}
	}
	return b.meta.Put(keyFirst, numbered(first))
}
