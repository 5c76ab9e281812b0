package envelope

import (
	"bufio"
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

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
	Context     map[string]string // the encryption context: readable by all, bound to the data
	Wrappers    []Wrapper         // at least one
	Force       bool              // replace an existing file
	FLOE        bool              // C2SP FLOE in the place of Cobblestone-256; always so in FIPS mode
}

// EncryptFile encrypts what src gives into a new file. The file appears whole and durable or not at all: nothing is left after an
// error, a full disk or the end of ctx, and an existing file stays as it was. A new file has mode 0600; one that replaces another keeps its
// mode. fault.Exists without Force, Invalid for a path that is no regular file, DiskFull, Canceled.
func EncryptFile(ctx context.Context, path string, src io.Reader, o Options) error {
	path, mode, err := target(path, o.Force)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".rotor-*")
	if err != nil {
		return diskFault(path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if err := errors.Join(encryptTo(ctx, tmp, src, o), tmp.Chmod(mode), tmp.Close()); err != nil {
		return diskFault(path, err)
	}
	return publish(tmp.Name(), path, o.Force)
}

// target finds what a path stands for and the mode that the new file gets. With force a link is followed, so that the link stays, and
// what is no regular file is refused: a rename would put a file in the place of /dev/null.
func target(path string, force bool) (string, fs.FileMode, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return path, 0o600, nil
	} else if err != nil {
		return "", 0, diskFault(path, err)
	}
	if !force {
		return "", 0, fault.New(fault.Exists, path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", 0, diskFault(path, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", 0, diskFault(path, err)
	}
	if !info.Mode().IsRegular() {
		return "", 0, fault.New(fault.Invalid, path).WithHint("only a regular file can be replaced")
	}
	return real, info.Mode().Perm(), nil
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
		return 0, canceled(err)
	}
	return w.r.Read(b)
}

// publish gives the finished file its name. Without force nothing is replaced that appeared meanwhile; file systems that cannot
// promise it in a rename can in a hard link.
func publish(tmp, path string, force bool) error {
	var err error
	if force {
		err = os.Rename(tmp, path)
	} else if err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = os.Link(tmp, path)
	}
	if !force && errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, path)
	}
	if err != nil {
		return diskFault(path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return diskFault(path, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func diskFault(path string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) { // EFBIG: a limit of the process
		return fault.Wrap(fault.DiskFull, path, err)
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return fmt.Errorf("write %s: %w", path, err)
}

// suite is the suite of a new file. Cobblestone counts its nonces, which FIPS mode does not approve.
func (o Options) suite() byte {
	if o.FLOE || fips140.Enabled() {
		return suiteFLOE
	}
	return suiteFile
}

// NewWriter encrypts a stream: the header goes to w at once, data as it comes, and Close ends the payload. The result is valid only
// after Close returned nil.
func NewWriter(ctx context.Context, w io.Writer, o Options) (io.WriteCloser, error) {
	m := Immutable{Suite: o.suite(), ContentType: o.ContentType, Context: o.Context}
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
	salt := secret.Random(int(layoutOf(m.Suite).salt)).Reveal()
	c, err := deriveChunks(m.Suite, dek, salt, raw, 0)
	if err != nil {
		return nil, err
	}
	return newPayloadWriter(w, c, salt)
}

// unwrap opens the first wrap that the unwrapper can. A wrap that it may not or cannot open does not keep another from being tried; only
// what would stop them all does. The error is that of the first wrap whose key it knows.
func unwrap(ctx context.Context, h Header, u Unwrapper) (Secret, error) {
	var first error
	for _, w := range h.Wraps {
		dek, err := u.UnwrapDEK(ctx, w, h.Raw)
		if err == nil && dek.Len() != dekSize {
			err = fault.New(fault.DecryptFailed, "data key")
		}
		if err == nil {
			return dek, nil
		}
		code := fault.CodeOf(err)
		if first == nil && code != fault.NotFound {
			first = err
		}
		if code == fault.Unavailable || code == fault.Canceled || ctx.Err() != nil {
			break
		}
	}
	if first == nil {
		first = fault.New(fault.NotFound, "key of the file")
	}
	return Secret{}, first
}
