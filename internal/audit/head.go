package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// Head is the size and root of the log as it is in memory: the commit that reached them is durable.
func (l *Log) Head() (size int64, root string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := tlog.TreeHash(l.size, l)
	if err != nil {
		return 0, "", fmt.Errorf("hash audit log: %w", err)
	}
	return l.size, r.String(), nil
}

// RootAt is the root that the log had at an earlier size. The store is asked only for a size that memory has not got; a log in the store that
// never had that size is fault.NotFound, one that has it is waited for.
func (l *Log) RootAt(ctx context.Context, size int64) (string, error) {
	if _, err := l.Behind(ctx, size); err != nil {
		return "", err
	}
	for {
		l.mu.Lock()
		advanced := l.advanced
		if l.size >= size {
			r, err := tlog.TreeHash(size, l)
			l.mu.Unlock()
			if err != nil {
				return "", fmt.Errorf("hash audit log: %w", err)
			}
			return r.String(), nil
		}
		l.mu.Unlock()
		select {
		case <-advanced:
		case <-l.over:
			return "", errOver()
		case <-ctx.Done():
			return "", fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// Behind says whether the store's log has a size that memory has not come to. fault.NotFound when neither has.
func (l *Log) Behind(ctx context.Context, size int64) (bool, error) {
	if have, _ := l.Stats(); have >= size {
		return false, nil
	}
	stored, _, err := l.stored(ctx)
	if err != nil {
		return false, err
	}
	if stored < size {
		return false, fault.New(fault.NotFound, fmt.Sprintf("log has %d entries, not %d", stored, size))
	}
	return true, nil
}

// stored is how far the log in the store says that it is.
func (l *Log) stored(ctx context.Context) (size int64, root string, err error) {
	r, err := l.store.Get(ctx, statePath)
	if errors.Is(err, store.ErrNotFound) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("read log state: %w", err)
	}
	var h head
	if err := json.Unmarshal(r.Value, &h); err != nil {
		return 0, "", fault.Wrap(fault.AuditBroken, "log state", err)
	}
	return h.Size, h.Root, nil
}

// Agrees says whether the store still holds the log that memory was read from, and how it does not: it has gone back, or its last entries
// are others.
func (l *Log) Agrees(ctx context.Context) (why string, err error) {
	size, root, err := l.Head() // before the store is asked, which can only be further then
	if err != nil || size == 0 {
		return "", err
	}
	stored, at, err := l.stored(ctx)
	switch {
	case err != nil:
		return "", err
	case stored < size:
		return fmt.Sprintf("the log had %d entries and the store has %d", size, stored), nil
	case stored == size && at != root:
		return fmt.Sprintf("the log's first %d entries are others in the store", size), nil
	}
	if _, err := l.entry(ctx, size-1); fault.CodeOf(err) == fault.AuditBroken {
		return fmt.Sprintf("entry %d is another in the store", size-1), nil
	} else if err != nil {
		return "", err
	}
	return "", nil
}

// Read verifies an exported log as Verify does, and calls each with every entry in order.
func Read(log fs.FS, vkey string, each func(Entry) error) (Report, error) {
	r := Report{each: each}
	return r.verify(log, vkey)
}
