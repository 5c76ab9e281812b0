package envelope

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
)

// Stats counts what a rewrap did to storage, in bytes.
type Stats struct {
	Read, Written int64
}

// device is a file as a rewrap sees it.
type device interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns once everything written before is durable.
	Sync() error
}

// counted counts what goes through a device.
type counted struct {
	device
	stats *Stats
}

// ReadAt implements io.ReaderAt.
func (c counted) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.device.ReadAt(b, off)
	c.stats.Read += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt.
func (c counted) WriteAt(b []byte, off int64) (int, error) {
	n, err := c.device.WriteAt(b, off)
	c.stats.Written += int64(n)
	return n, err
}

// Rewrap replaces the wraps of a file by what f makes of them: it writes the older of the two slots and syncs, so that a crash
// leaves the one or the other table. The payload is neither read nor written. f returning its argument unchanged writes nothing.
func Rewrap(ctx context.Context, path string, f func(ctx context.Context, immutable []byte, wraps []Wrap) ([]Wrap, bool, error)) (Stats, error) {
	return locked(ctx, path, func(d device, size int64) error {
		return rewrite(d, size, func(h Header) (uint64, []Wrap, error) {
			wraps, changed, err := f(ctx, h.Raw, h.Wraps)
			if err != nil || !changed {
				return 0, nil, err
			}
			if h.Generation == math.MaxUint64 { // nobody rewraps so often: the header was made up, and the next one would be the older
				return 0, nil, fault.New(fault.MalformedFile, "header")
			}
			return h.Generation + 1, wraps, nil
		})
	})
}

// Scrub writes the newest table into both slots, so that no wrap of an older one is left in the file.
func Scrub(ctx context.Context, path string) (Stats, error) {
	return locked(ctx, path, func(d device, size int64) error {
		return rewrite(d, size, func(h Header) (uint64, []Wrap, error) { return h.Generation, h.Wraps, nil })
	})
}

// rewrite puts the table that f makes into the slot that is not the newest; none when f makes none. What was read may be in memory
// alone, left by a rewrap that died before its sync: it is made durable before the only other table is overwritten.
func rewrite(d device, size int64, f func(Header) (uint64, []Wrap, error)) error {
	h, err := ReadHeader(d, size)
	if err != nil {
		return err
	}
	generation, wraps, err := f(h)
	if err != nil || wraps == nil {
		return err
	}
	slot, err := encodeSlot(generation, wraps)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if _, err := d.WriteAt(slot, h.payload-2*slotSize+int64(1-h.newest)*slotSize); err != nil {
		return err
	}
	return d.Sync()
}

// locked runs f on a file, one at a time: two rewraps must not choose the same slot.
func locked(ctx context.Context, path string, f func(d device, size int64) error) (stats Stats, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return stats, fmt.Errorf("open encrypted file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := lock(ctx, file); err != nil {
		return stats, err
	}
	info, err := file.Stat()
	if err != nil {
		return stats, fmt.Errorf("open encrypted file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return stats, fault.New(fault.MalformedFile, path)
	}
	if err := f(counted{file, &stats}, info.Size()); err != nil {
		return stats, diskFault(path, err)
	}
	return stats, nil
}

// lockPause is how long to wait before the lock is tried again: the kernel's own wait could not be given up.
const lockPause = 10 * time.Millisecond

func lock(ctx context.Context, file *os.File) error {
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock encrypted file: %w", err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return canceled(ctx.Err())
		}
	}
}
