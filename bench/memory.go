package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/envelope"
)

// epoch is when the bench's files were protected.
var epoch = time.Unix(1_700_000_000, 0)

// childWord makes the process the one whose memory is measured.
const childWord = "memory-child"

// memory encrypts and reads a large file in every way, in a process of its own, and takes that process's peak from the kernel. The same for
// a small file shows what of it depends on the size.
func memory(ctx context.Context, o options) ([]Row, error) {
	large, err := peakOf(ctx, filepath.Join(o.dir, "large"), o.large)
	if err != nil {
		return nil, err
	}
	small, err := peakOf(ctx, filepath.Join(o.dir, "small"), 1<<20)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("file_memory_%dMB", o.large>>20)
	return []Row{
		atMost(name, large, "MB", 64),
		{name, large, "MB", "file of 1 MB", large / small, "", true, 0},
	}, nil
}

func peakOf(ctx context.Context, path string, size int64) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	c := exec.CommandContext(ctx, self, childWord, path, strconv.FormatInt(size, 10))
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

// child encrypts a file of a size, reads it as a stream and at every place, and prints its own peak of resident memory in MB.
func child(ctx context.Context, path, size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	key, err := newWrapKey()
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(path) }() // the parent removes the directory
	if err := envelope.EncryptFile(ctx, path, io.LimitReader(zeros{}, n), envelope.Options{Wrappers: []envelope.Wrapper{key}}); err != nil {
		return err
	}
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	r, err := envelope.NewReader(ctx, src, key)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	streamed, err := io.Copy(io.Discard, r)
	if err := errors.Join(err, src.Close()); err != nil {
		return err
	}
	f, err := envelope.OpenFile(ctx, path, key)
	if err != nil {
		return err
	}
	read, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(f, 0, f.Size()), make([]byte, 1<<20))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if streamed != n || read != n {
		return fmt.Errorf("%d and %d bytes were read of %d", streamed, read, n)
	}
	peak, err := peak()
	if err == nil {
		fmt.Println(peak)
	}
	runtime.KeepAlive(f)
	return err
}

// zeros is an endless file of zeros.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// peak is VmHWM of this process in MB (proc_pid_status(5)).
func peak() (float64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib * 1024 / 1e6, err
		}
	}
	return 0, errors.New("the kernel does not tell VmHWM")
}
