package envelope

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/rotorkms/rotor/internal/fault"
)

// File is an encrypted file that is open for reading. Safe for concurrent use. Ciphertext is copied before it is verified, never
// decrypted out of a map of the file: who can write the file could change it between verification and decryption, and a map of a file
// that shrinks ends the process.
type File struct {
	header Header
	src    io.ReaderAt
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
	l := layoutOf(h.Suite)
	if f.size, err = l.plainSize(size - h.payload); err != nil {
		return nil, err
	}
	front := make([]byte, l.front)
	if err := readAt(r, front, h.payload, size); err != nil {
		return nil, err
	}
	dek, err := unwrap(ctx, h, u)
	if err != nil {
		return nil, err
	}
	defer dek.Destroy()
	if f.chunks, err = openChunks(dek, front, h); err != nil {
		return nil, err
	}
	buf := borrow()
	defer giveBack(buf)
	last, err := f.chunk(*buf, f.size/chunkSize)
	if err != nil {
		return nil, err
	}
	clear(last)
	return f, nil
}

// OpenFile opens a file by path. It keeps the file open until Close; a file that replaces it meanwhile changes nothing.
func OpenFile(ctx context.Context, path string, u Unwrapper) (*File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open encrypted file: %w", err)
	}
	f, err := openRegular(ctx, src, u)
	if err != nil {
		_ = src.Close() // the first error is the one that counts
		return nil, err
	}
	f.closer = src.Close
	return f, nil
}

func openRegular(ctx context.Context, src *os.File, u Unwrapper) (*File, error) {
	info, err := src.Stat()
	if err != nil {
		return nil, fmt.Errorf("open encrypted file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.MalformedFile, src.Name())
	}
	return Open(ctx, src, info.Size(), u)
}

// Size is the length of the plaintext in bytes.
func (f *File) Size() int64 { return f.size }

// Header is the file's header as it was when it was opened.
func (f *File) Header() Header { return f.header }

// Close releases the file; reading fails after it.
func (f *File) Close() error { return f.closer() }

// window is how many chunks are read at a time: 256 KiB stay in a core's own cache between the copy and the decryption.
const window = 16

// windows are buffers of window sealed chunks. They hold ciphertext, and verified plaintext for a moment.
var windows = sync.Pool{New: func() any {
	b := make([]byte, window*(chunkSize+floeOverhead)) // the larger one
	return &b
}}

func borrow() *[]byte {
	b, ok := windows.Get().(*[]byte)
	if !ok {
		panic("envelope: the pool holds something else")
	}
	return b
}

func giveBack(b *[]byte) { windows.Put(b) }

// sealed reads chunks from, up to and not including to, into buf. fault.TruncatedFile when the file has become shorter.
func (f *File) sealed(buf []byte, from, to int64) ([]byte, error) {
	l := f.chunks.layout
	end := min(l.chunkAt(to), l.chunkAt(0)+f.size+(f.size/chunkSize+1)*l.overhead)
	b := buf[:end-l.chunkAt(from)]
	n, err := f.src.ReadAt(b, f.header.payload+l.chunkAt(from))
	if n == len(b) {
		return b, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fault.New(fault.TruncatedFile, "file")
	}
	return nil, fmt.Errorf("read chunk %d: %w", from, err)
}

// chunk decrypts chunk n; buf has room for a sealed chunk and holds the plaintext afterwards.
func (f *File) chunk(buf []byte, n int64) ([]byte, error) {
	sealed, err := f.sealed(buf, n, n+1)
	if err != nil {
		return nil, err
	}
	return f.chunks.open(sealed[:0], n, sealed)
}

// ReadAt implements io.ReaderAt over the plaintext. Nothing unverified is returned.
func (f *File) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "offset")
	}
	buf := borrow()
	defer giveBack(buf)
	done := 0
	for done < len(b) && off < f.size {
		plain, err := f.chunk(*buf, off/chunkSize)
		if err != nil {
			return done, err
		}
		n := copy(b[done:], plain[off%chunkSize:])
		clear(plain)
		done, off = done+n, off+int64(n)
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

// ReadAll decrypts the whole file into one slice, with a worker for each core.
func (f *File) ReadAll(ctx context.Context) ([]byte, error) {
	out := make([]byte, f.size)
	if err := f.ReadInto(ctx, out, runtime.GOMAXPROCS(0)); err != nil {
		return nil, err
	}
	return out, nil
}

// ReadInto decrypts the whole file into b, whose length is Size, with a number of workers. After an error b holds verified pieces and
// zeros or what it held before, never anything unverified.
func (f *File) ReadInto(ctx context.Context, b []byte, workers int) error {
	if int64(len(b)) != f.size {
		return fault.New(fault.Invalid, "buffer").WithHint("it needs %d bytes", f.size)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	total := f.size/chunkSize + 1
	var next atomic.Int64
	var wait sync.WaitGroup
	for range min(max(int64(workers), 1), (total+window-1)/window) {
		wait.Go(func() {
			buf := borrow()
			defer giveBack(buf)
			for ctx.Err() == nil {
				from := next.Add(window) - window
				if from >= total {
					return
				}
				if err := f.run(*buf, b, from, min(from+window, total)); err != nil {
					stop(err) // the first error ends all workers
				}
			}
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); err != nil {
		return canceled(err)
	}
	return nil
}

// canceled gives the end of a context its code; other errors stay what they are.
func canceled(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Wrap(fault.Canceled, "", err)
	}
	return err
}

// run decrypts at most a window of chunks straight into their place. The AEAD leaves zeros there when a chunk does not verify.
func (f *File) run(buf, b []byte, from, to int64) error {
	sealed, err := f.sealed(buf, from, to)
	if err != nil {
		return err
	}
	for n := from; n < to; n++ {
		size := min(f.size-n*chunkSize, chunkSize)
		dst := b[n*chunkSize : n*chunkSize : n*chunkSize+size]
		whole := size + f.chunks.layout.overhead
		if _, err := f.chunks.open(dst, n, sealed[:whole]); err != nil {
			return err
		}
		sealed = sealed[whole:]
	}
	return nil
}

// NewReader decrypts a stream. Each chunk is verified before it is returned; a truncated stream ends with fault.TruncatedFile.
func NewReader(ctx context.Context, r io.Reader, u Unwrapper) (io.Reader, error) {
	front := make([]byte, preludeSize)
	if _, err := io.ReadFull(r, front); err != nil {
		return nil, streamFault(err)
	}
	n := binary.BigEndian.Uint32(front[len(magic):])
	if string(front[:len(magic)]) != magic || n > maxImmutable {
		return nil, fault.New(fault.MalformedFile, "stream")
	}
	front = append(front, make([]byte, int(n)+2*slotSize)...)
	if _, err := io.ReadFull(r, front[preludeSize:]); err != nil {
		return nil, streamFault(err)
	}
	h, err := ReadHeader(bytes.NewReader(front), int64(len(front)))
	if err != nil {
		return nil, err
	}
	tail := make([]byte, layoutOf(h.Suite).front)
	if _, err := io.ReadFull(r, tail); err != nil {
		return nil, streamFault(err)
	}
	dek, err := unwrap(ctx, h, u)
	if err != nil {
		return nil, err
	}
	defer dek.Destroy()
	c, err := openChunks(dek, tail, h)
	if err != nil {
		return nil, err
	}
	return &streamReader{r: r, chunks: c, buf: make([]byte, chunkSize+c.layout.overhead)}, nil
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
	if s.n >= maxChunks {
		s.err = fault.New(fault.TooLarge, "stream")
		return
	}
	got, err := io.ReadFull(s.r, s.buf)
	switch {
	case err == nil:
	case errors.Is(err, io.ErrUnexpectedEOF) && int64(got) >= s.chunks.layout.overhead:
		s.last = true
	default:
		s.err = streamFault(err)
		return
	}
	s.plain, s.err = s.chunks.open(s.buf[:0], s.n, s.buf[:got])
	s.n++
}
