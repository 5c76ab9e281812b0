package envelope

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Stats counts what a rewrap did to storage, in bytes.
type Stats struct {
	Read, Written int64
}

// countingReader counts what is read.
type countingReader struct {
	r io.ReaderAt
	n *int64
}

func (c countingReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(b, off)
	*c.n += int64(n)
	return n, err
}

// Rewrap replaces the wraps of a file by what f makes of them: it writes the older of the two slots and syncs, so that a crash
// leaves the one or the other table. The payload is neither read nor written. f returning its argument unchanged writes nothing.
func Rewrap(ctx context.Context, path string, f func(ctx context.Context, immutable []byte, wraps []Wrap) ([]Wrap, bool, error)) (Stats, error) {
	return rewrite(path, func(h Header) ([]slotWrite, error) {
		wraps, changed, err := f(ctx, h.Raw, h.Wraps)
		if err != nil || !changed {
			return nil, err
		}
		slot, err := encodeSlot(h.Generation+1, wraps)
		return []slotWrite{{1 - h.newest, slot}}, err
	})
}

// Scrub writes the newest table into both slots, so that no wrap of an older one is left in the file.
func Scrub(_ context.Context, path string) (Stats, error) {
	return rewrite(path, func(h Header) ([]slotWrite, error) {
		slot, err := encodeSlot(h.Generation, h.Wraps)
		return []slotWrite{{1 - h.newest, slot}}, err
	})
}

type slotWrite struct {
	slot int
	data []byte
}

func rewrite(path string, f func(Header) ([]slotWrite, error)) (stats Stats, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return stats, fmt.Errorf("open encrypted file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil { // two rewraps must not choose the same slot
		return stats, fmt.Errorf("lock encrypted file: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return stats, fmt.Errorf("open encrypted file: %w", err)
	}
	h, err := ReadHeader(countingReader{file, &stats.Read}, info.Size())
	if err != nil {
		return stats, err
	}
	writes, err := f(h)
	if err != nil || len(writes) == 0 {
		return stats, err
	}
	for _, w := range writes {
		n, err := file.WriteAt(w.data, h.payload-2*slotSize+int64(w.slot)*slotSize)
		stats.Written += int64(n)
		if err != nil {
			return stats, diskFault(path, err)
		}
	}
	return stats, diskFaultOrNil(path, file.Sync())
}

func diskFaultOrNil(path string, err error) error {
	if err == nil {
		return nil
	}
	return diskFault(path, err)
}
