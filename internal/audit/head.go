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

// RootAt is the root that the log had at an earlier size. A log in the store that never had that size is fault.NotFound; one that has it is
// waited for.
func (l *Log) RootAt(ctx context.Context, size int64) (string, error) {
	stored, err := l.storedSize(ctx)
	if err != nil {
		return "", err
	}
	if stored < size {
		return "", fault.New(fault.NotFound, fmt.Sprintf("log has %d entries, not %d", stored, size))
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
		case <-ctx.Done():
			return "", fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

func (l *Log) storedSize(ctx context.Context) (int64, error) {
	r, err := l.store.Get(ctx, statePath)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read log state: %w", err)
	}
	var h head
	if err := json.Unmarshal(r.Value, &h); err != nil {
		return 0, fault.Wrap(fault.AuditBroken, "log state", err)
	}
	return h.Size, nil
}

// Read verifies an exported log as Verify does, and calls each with every entry in order.
func Read(log fs.FS, vkey string, each func(Entry) error) (Report, error) {
	r := Report{each: each}
	return r.verify(log, vkey)
}
