package envelope

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// Wrapper wraps a fresh data key under one key. The immutable part is what the wrap is bound to.
type Wrapper interface {
	// WrapDEK returns a complete wrap.
	WrapDEK(ctx context.Context, dek Secret, immutable []byte) (Wrap, error)
}

// Unwrapper opens a wrap that it knows; fault.NotFound for a type or key that it does not know, so that the next wrap is tried.
type Unwrapper interface {
	// UnwrapDEK returns the data key.
	UnwrapDEK(ctx context.Context, w Wrap, immutable []byte) (Secret, error)
}

// Options say how a file is encrypted.
type Options struct {
	ContentType string            // for example "application/onnx"
	Context     map[string]string // the encryption context: readable by all, bound to the data, seen by policy
	Wrappers    []Wrapper         // at least one
	Force       bool              // replace an existing file
}

// EncryptFile encrypts what src gives into a new file. The file appears whole and durable or not at all: nothing is left after an
// error, a full disk or the end of ctx, and an existing file stays as it was. fault.Exists without Force, DiskFull, Canceled.
func EncryptFile(ctx context.Context, path string, src io.Reader, o Options) error {
	if _, err := os.Lstat(path); err == nil && !o.Force {
		return fault.New(fault.Exists, path)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".rotor-*")
	if err != nil {
		return diskFault(path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if err := errors.Join(encryptTo(ctx, tmp, src, o), tmp.Close()); err != nil {
		return diskFault(path, err)
	}
	return publish(tmp.Name(), path, o.Force)
}

func encryptTo(ctx context.Context, f *os.File, src io.Reader, o Options) error {
	out := bufio.NewWriterSize(f, 1<<20)
	w, err := NewWriter(ctx, out, o)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(w, whileAlive{ctx, src}, make([]byte, 1<<20)); err != nil {
		return err
	}
	return errors.Join(w.Close(), out.Flush(), f.Sync())
}

// whileAlive stops reading when ctx ends.
type whileAlive struct {
	ctx context.Context
	r   io.Reader
}

func (w whileAlive) Read(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, fault.Wrap(fault.Canceled, "", err)
	}
	return w.r.Read(b)
}

// publish gives the finished file its name. Without force a hard link is used, because a rename would replace what appeared
// meanwhile.
func publish(tmp, path string, force bool) error {
	if force {
		if err := os.Rename(tmp, path); err != nil {
			return diskFault(path, err)
		}
	} else if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, path)
	} else if err != nil {
		return diskFault(path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return diskFault(path, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func diskFault(path string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.Wrap(fault.DiskFull, path, err)
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return fmt.Errorf("write %s: %w", path, err)
}

// NewWriter encrypts a stream: the header goes to w at once, data as it comes, and Close ends the payload. The result is valid only
// after Close returned nil.
func NewWriter(ctx context.Context, w io.Writer, o Options) (io.WriteCloser, error) {
	m := Immutable{Suite: suiteFile, ContentType: o.ContentType, Context: o.Context}
	copy(m.FileID[:], secret.Random(fileIDSize).Reveal())
	raw := m.encode()
	if _, err := parseImmutable(raw); err != nil {
		return nil, fault.Wrap(fault.TooLarge, "encryption context", err)
	}
	dek := secret.Random(dekSize)
	defer dek.Destroy()
	var wraps []Wrap
	for _, wrapper := range o.Wrappers {
		wrap, err := wrapper.WrapDEK(ctx, dek, raw)
		if err != nil {
			return nil, err
		}
		wraps = append(wraps, wrap)
	}
	header, err := encodeHeader(m, wraps)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(header); err != nil {
		return nil, err
	}
	salt := secret.Random(saltSize).Reveal()
	c, err := deriveChunks(dek, salt, raw, 0)
	if err != nil {
		return nil, err
	}
	return newPayloadWriter(w, c, salt)
}

// unwrap opens the first wrap that the unwrapper knows.
func unwrap(ctx context.Context, h Header, u Unwrapper) (Secret, error) {
	var last error = fault.New(fault.NotFound, "key of the file")
	for _, w := range h.Wraps {
		dek, err := u.UnwrapDEK(ctx, w, h.Raw)
		if err == nil {
			if dek.Len() != dekSize {
				return Secret{}, fault.New(fault.DecryptFailed, "data key")
			}
			return dek, nil
		}
		last = err
		if fault.CodeOf(err) != fault.NotFound {
			break
		}
	}
	return Secret{}, last
}
