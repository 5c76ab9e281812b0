package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/pack"
	"github.com/rotorkms/rotor/internal/store"
)

// This file puts entries that wait into the order of the log.

// seqBatch and seqBytes bound one sequencer commit: each entry takes two operations of the store's 100, and keys and values together have
// 1 MiB, of which seqBytes leaves room for the keys and the state. One entry always fits.
const (
	seqBatch = 45
	seqBytes = store.MaxBytes - 1<<16
)

// tryAgain is how long the sequencer waits before it tries a store again that took nothing.
const tryAgain = time.Second

// Pack says when the sequencer may write entries packed: once nobody is left who could not read them. Call it before Sequence; until then, and
// without it, they are written as they are. What was written in either way is read.
func (l *Log) Pack(when func() bool) { l.packs = when }

// record is what the store gets of an entry.
func (l *Log) record(entry []byte) []byte {
	if l.packs == nil || !l.packs() {
		return entry
	}
	return pack.Pack(entry)
}

// Sequence moves waiting entries into the log until ctx ends. Several servers may do it at once, each step wins or loses as a whole; turn
// says whose turn it is, so that they do not all try, and what tells of the next change; nil: always this one's. While the store is full or
// out of reach entries keep waiting, durably, and it tries again after a pause; when another server was faster or the outcome of a step is
// unknown, as soon as Follow has seen what became of it. Only a store that is damaged or closed ends it.
func (l *Log) Sequence(ctx context.Context, turn Turn) error {
	for {
		var n int
		var err error
		mine, change := true, (<-chan struct{})(nil)
		if turn != nil {
			mine, change = turn()
		}
		_, handed := l.next() // before the step, so that what Follow brings meanwhile wakes
		if mine {
			n, err = l.sequenceOnce(ctx)
		}
		raced := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown)
		if ctx.Err() == nil && (errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrClosed) || fault.CodeOf(err) == fault.AuditBroken) {
			return err
		}
		if n > 0 || errors.Is(err, errMoved) {
			continue
		}
		more, again := l.more, (<-chan time.Time)(nil)
		if err != nil { // more entries change nothing
			more, again = nil, time.After(tryAgain)
		}
		if !raced {
			handed = nil
		}
		select {
		case <-more:
		case <-handed:
		case <-change:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// Turn says whether it is this server's turn to put the log into order; change is closed when that may have changed.
type Turn func() (mine bool, change <-chan struct{})

// errMoved: nothing was written, there are newer keys.
var errMoved = errors.New("audit: the keys of the log changed")

// sequenceOnce takes one batch into the log: entries in, waiting ones out, size and root forward, all in one commit.
func (l *Log) sequenceOnce(ctx context.Context) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, _ := l.next()
	if len(batch) == 0 {
		return 0, nil
	}
	k := l.keys.Load()
	hashes, size := len(l.hashes), l.size
	undo := func() { l.hashes, l.size = l.hashes[:hashes], size }
	var ops []store.Op
	for _, p := range batch {
		ops = append(ops, store.Op{Key: p.key, Delete: true}, store.Op{Key: entryPath(l.size), Value: l.record(p.entry)})
		if err := l.grow(p.entry); err != nil {
			undo()
			return 0, err
		}
	}
	h, err := l.head()
	if err != nil {
		undo()
		return 0, err
	}
	value, err := json.Marshal(h)
	if err != nil {
		undo()
		return 0, fmt.Errorf("encode log state: %w", err)
	}
	conds := append([]store.Cond{{Key: statePath, Rev: l.state}}, k.Fence...)
	rev, err := l.store.Commit(ctx, conds, append(ops, store.Op{Key: statePath, Value: value}))
	if err != nil {
		undo()
		if again, err := l.again(ctx, k, err); again {
			return 0, errMoved
		} else if err != nil && !errors.Is(err, store.ErrConflict) {
			return 0, err
		}
		return 0, fmt.Errorf("advance audit log: %w", err)
	}
	l.state = rev
	l.took(len(batch))
	return len(batch), nil
}

// next returns the entries of the next sequencer commit, which stay in the queue until it is durable, and what is closed when Follow has
// got further.
func (l *Log) next() (batch []pending, handed <-chan struct{}) {
	l.waiting.Lock()
	defer l.waiting.Unlock()
	n, size := 0, 0
	for n < min(len(l.queue), seqBatch) {
		if size += len(l.queue[n].entry); size > seqBytes {
			break
		}
		n++
	}
	return slices.Clone(l.queue[:n]), l.handed
}
