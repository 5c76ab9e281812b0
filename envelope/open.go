package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
)

// File is an encrypted file that is open for reading. Safe for concurrent use.
type File struct {
	header Header
	src    io.ReaderAt
	mapped []byte // the whole file, when it is mapped
	chunks *chunks
	size   int64 // of the plaintext
	closer func() error
}

// Open opens a file of a known size. The last chunk is verified before it returns, so that a truncated file is found now.
// fault.MalformedFile, TruncatedFile, DecryptFailed, and what the unwrapper returns.
func Open(ctx context.Context, r io.ReaderAt, size int64, u Unwrapper) (*File, error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{header: h, src: r, closer: func() error { return nil }}
	if f.size, err = plainSize(size - h.payload); err != nil {
		return nil, err
	}
	front := make([]byte, payloadFront)
	if err := readAt(r, front, h.payload, size); err != nil {
		return nil, err
	}
	dek, err := unwrap(ctx, h, u)
	if err != nil {
		return nil, err
	}
	defer dek.Destroy()
	if f.chunks, err = deriveChunks(dek, front[:saltSize], h.Raw, 0); err != nil {
		return nil, err
	}
	if !f.chunks.committed(front[saltSize:]) {
		return nil, fault.New(fault.DecryptFailed, "file")
	}
	last := make([]byte, chunkSize+tagSize)
	_, err = f.chunk(last, f.size/chunkSize)
	return f, err
}

// OpenFile opens a file by path and maps it into memory.
func OpenFile(ctx context.Context, path string, u Unwrapper) (*File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open encrypted file: %w", err)
	}
	defer func() { _ = src.Close() }() // the map keeps the file
	info, err := src.Stat()
	if err != nil {
		return nil, fmt.Errorf("open encrypted file: %w", err)
	}
	if info.Size() == 0 || !info.Mode().IsRegular() {
		return nil, fault.New(fault.MalformedFile, path)
	}
	mapped, err := unix.Mmap(int(src.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map encrypted file: %w", err)
	}
	f, err := Open(ctx, bytes.NewReader(mapped), info.Size(), u)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(mapped))
	}
	f.mapped = mapped
	f.closer = sync.OnceValue(func() error { return unix.Munmap(mapped) })
	return f, nil
}

// Size is the length of the plaintext in bytes.
func (f *File) Size() int64 { return f.size }

// Header is the file's header as it was when it was opened.
func (f *File) Header() Header { return f.header }

// Close releases the file; nothing may be read after it.
func (f *File) Close() error { return f.closer() }

// chunk decrypts chunk n; buf has room for a sealed chunk and holds the plaintext afterwards.
func (f *File) chunk(buf []byte, n int64) ([]byte, error) {
	size := min(f.size-n*chunkSize, chunkSize)
	sealed := buf[:size+tagSize]
	if _, err := f.src.ReadAt(sealed, f.header.payload+chunkAt(n)); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read chunk %d: %w", n, err)
	}
	return f.chunks.open(sealed[:0], n, sealed)
}

// ReadAt implements io.ReaderAt over the plaintext. Nothing unverified is returned.
func (f *File) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "offset")
	}
	done := 0
	buf := make([]byte, chunkSize+tagSize)
	for done < len(b) && off < f.size {
		plain, err := f.chunk(buf, off/chunkSize)
		if err != nil {
			return done, err
		}
		n := copy(b[done:], plain[off%chunkSize:])
		done, off = done+n, off+int64(n)
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

// batch is how many chunks a worker of ReadAll takes at a time: 1 MiB.
const batch = 64

// ReadAll decrypts the whole file into one slice, with a worker for each core.
func (f *File) ReadAll(ctx context.Context) ([]byte, error) {
	out := make([]byte, f.size, f.size+tagSize)
	err := f.ReadInto(ctx, out, runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ReadInto decrypts the whole file into b, whose length is Size, with a number of workers.
func (f *File) ReadInto(ctx context.Context, b []byte, workers int) error {
	if int64(len(b)) != f.size {
		return fault.New(fault.Invalid, "buffer").WithHint("it needs %d bytes", f.size)
	}
	total := f.size/chunkSize + 1
	var next atomic.Int64
	var wait sync.WaitGroup
	errs := make([]error, max(workers, 1))
	for i := range errs {
		wait.Go(func() {
			for errs[i] == nil {
				from := next.Add(batch) - batch
				if from >= total {
					return
				}
				if errs[i] = ctx.Err(); errs[i] == nil {
					errs[i] = f.run(b, from, min(from+batch, total))
				}
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// run decrypts chunks straight into their place. From a map nothing is copied; the AEAD writes only plaintext that it has verified.
func (f *File) run(b []byte, from, to int64) error {
	var buf []byte
	if f.mapped == nil {
		buf = make([]byte, chunkSize+tagSize)
	}
	for n := from; n < to; n++ {
		size := min(f.size-n*chunkSize, chunkSize)
		at := f.header.payload + chunkAt(n)
		var sealed []byte
		if f.mapped != nil {
			sealed = f.mapped[at : at+size+tagSize]
		} else {
			sealed = buf[:size+tagSize]
			if _, err := f.src.ReadAt(sealed, at); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read chunk %d: %w", n, err)
			}
		}
		dst := b[n*chunkSize : n*chunkSize : n*chunkSize+size]
		if _, err := f.chunks.open(dst, n, sealed); err != nil {
			return err
		}
	}
	return nil
}

// NewReader decrypts a stream. Each chunk is verified before it is returned; a truncated stream ends with fault.TruncatedFile.
func NewReader(ctx context.Context, r io.Reader, u Unwrapper) (io.Reader, error) {
	front := make([]byte, preludeSize)
	if _, err := io.ReadFull(r, front); err != nil {
		return nil, streamFault(err)
	}
	n := int(be32(front[len(magic):]))
	if string(front[:len(magic)]) != magic || n > maxImmutable {
		return nil, fault.New(fault.MalformedFile, "stream")
	}
	front = append(front, make([]byte, n+2*slotSize+payloadFront)...)
	if _, err := io.ReadFull(r, front[preludeSize:]); err != nil {
		return nil, streamFault(err)
	}
	h, err := ReadHeader(bytes.NewReader(front), int64(len(front)))
	if err != nil {
		return nil, err
	}
	dek, err := unwrap(ctx, h, u)
	if err != nil {
		return nil, err
	}
	defer dek.Destroy()
	tail := front[h.payload:]
	c, err := deriveChunks(dek, tail[:saltSize], h.Raw, 0)
	if err != nil {
		return nil, err
	}
	if !c.committed(tail[saltSize:payloadFront]) {
		return nil, fault.New(fault.DecryptFailed, "stream")
	}
	return &streamReader{r: r, chunks: c, buf: make([]byte, chunkSize+tagSize)}, nil
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func streamFault(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.New(fault.TruncatedFile, "stream")
	}
	return fmt.Errorf("read stream: %w", err)
}

// streamReader decrypts chunk after chunk until the short one.
type streamReader struct {
	r      io.Reader
	chunks *chunks
	buf    []byte
	plain  []byte
	n      int64
	last   bool
	err    error
}

// Read implements io.Reader.
func (s *streamReader) Read(b []byte) (int, error) {
	for len(s.plain) == 0 && s.err == nil {
		if s.last {
			return 0, io.EOF
		}
		s.next()
	}
	if s.err != nil {
		return 0, s.err
	}
	n := copy(b, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

func (s *streamReader) next() {
	got, err := io.ReadFull(s.r, s.buf)
	switch {
	case err == nil:
	case errors.Is(err, io.ErrUnexpectedEOF) && got >= tagSize:
		s.last = true
	default:
		s.err = streamFault(err)
		return
	}
	s.plain, s.err = s.chunks.open(s.buf[:0], s.n, s.buf[:got])
	s.n++
}
