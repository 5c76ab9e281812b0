// Package store is the contract of the engines that keep rotor's sealed records. An engine knows neither keys
// nor secrets. Every engine passes the same suite, storetest.
package store

import (
	"context"
	"errors"
	"iter"
)

// Bounds of one commit and of a record's key, enforced by every engine with ErrTooLarge.
const (
	MaxItems    = 100     // conditions and operations together
	MaxBytes    = 1 << 20 // keys and values together
	MaxKeyBytes = 512
)

// The errors that engines return, possibly wrapped.
var (
	// ErrNotFound: no record has this key.
	ErrNotFound = errors.New("store: no such record")
	// ErrConflict: a condition did not hold; nothing was written.
	ErrConflict = errors.New("store: condition does not hold")
	// ErrUnknown: the outcome of a commit is unknown. Answer it by reading again, never by a blind retry. What a read does not show
	// yet may still come where the engine is another process, so what is tried again must have the same conditions.
	ErrUnknown = errors.New("store: outcome of the commit is unknown")
	// ErrCompacted: the watch starts before the oldest kept revision; List again.
	ErrCompacted = errors.New("store: revision was compacted away")
	// ErrTooLarge: the commit passes MaxItems, MaxBytes or MaxKeyBytes, has no operation, an empty key or a key that is written twice.
	ErrTooLarge = errors.New("store: commit or key out of bounds")
	// ErrFull: no room is left where the engine writes. Nothing was written; the store takes commits again once there is room.
	ErrFull = errors.New("store: no space left")
	// ErrUnavailable: the engine cannot be reached, or has no quorum, within the time that it gives a call. Nothing was written.
	ErrUnavailable = errors.New("store: engine not available")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("store: in use by another process")
	// ErrCorrupt: the engine's own file is damaged.
	ErrCorrupt = errors.New("store: damaged")
	// ErrClosed: the store was closed, or stopped for good after a failed sync.
	ErrClosed = errors.New("store: closed")
)

// Rev is a revision: each commit that writes gets a greater one than all before it, not always the next number (an engine may count
// what others write beside us). 0 stands for "absent", and for a store that nobody has committed to.
type Rev uint64

// Record is one value under its key, with the revision of the commit that wrote it.
type Record struct {
	Key   string
	Value []byte // the caller's to keep and change
	Rev   Rev
}

// Cond holds when the record at Key was last written by the commit Rev; Rev 0: when there is none.
type Cond struct {
	Key string
	Rev Rev
}

// Op puts Value at Key, or deletes the record there. Deleting what is not there is no error and no event.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Event is one written or deleted record of a commit.
type Event struct {
	Key     string
	Value   []byte // nil when Deleted
	Deleted bool
	Rev     Rev // the commit's
}

// Store keeps records in the order of their keys (bytewise).
type Store interface {
	// Get reads one record, linearizably: it sees every commit acknowledged before the call, and nothing that is not durable yet.
	// ErrNotFound.
	Get(ctx context.Context, key string) (Record, error)
	// List reads all records whose keys begin with prefix, in key order, from one durable snapshot. The returned revision is of the newest
	// commit in it, whatever the commit's prefix, so that a watch of everything reaches it. An error is yielded, alone or as the last.
	List(ctx context.Context, prefix string) (Rev, iter.Seq2[Record, error])
	// Commit writes all ops, durably before it returns, if all conds hold; else nothing. A key may appear once among
	// the ops. ErrConflict, ErrUnknown, ErrTooLarge, ErrFull, ErrUnavailable; any other error, too, says that nothing was written. It returns the
	// revision of the commit. It keeps neither conds nor ops.
	Commit(ctx context.Context, conds []Cond, ops []Op) (Rev, error)
	// Watch yields the events under prefix of every commit after the given revision, in commit order, one whole commit
	// at a time, without gap or repetition, until ctx ends (it then yields ctx's error last). ErrCompacted when after
	// is no longer kept. A slow reader loses nothing: it gets ErrCompacted at worst. A revision that is not there yet is waited
	// for, so after may be what List has just returned. An engine that is away for a while is waited for, too.
	Watch(ctx context.Context, prefix string, after Rev) iter.Seq2[[]Event, error]
	// Close releases the engine; later calls return ErrClosed.
	Close() error
}
