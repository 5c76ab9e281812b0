package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/minio/sio"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// wrapKey wraps and unwraps data keys in this process, so that no server is measured.
type wrapKey struct{ cipher.AEAD }

func newWrapKey() (wrapKey, error) {
	aead, err := suite.NewAEAD(suite.XAES256GCM, secret.Copy(make([]byte, 32)))
	return wrapKey{aead}, err
}

// WrapDEK implements envelope.Wrapper.
func (k wrapKey) WrapDEK(_ context.Context, dek envelope.Secret, immutable []byte) (envelope.Wrap, error) {
	return envelope.SealDEK(k, envelope.Wrap{Type: envelope.WrapKMS, KeyID: "bench", Version: 1, Algorithm: suite.XAES256GCM, ProtectTime: epoch}, immutable, dek)
}

// UnwrapDEK implements envelope.Unwrapper.
func (k wrapKey) UnwrapDEK(_ context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	return envelope.OpenDEK(k, w, immutable)
}

func noise(n int64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // never fails
	return b
}

// files measures decryption of a file in the page cache into memory that is touched already, on one core, against minio/sio and age, and
// against what the machine can do at all.
func files(ctx context.Context, o options) ([]Row, error) {
	plain := noise(o.size)
	s, err := newSamples(ctx, o.dir, plain)
	if err != nil {
		return nil, err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	dst := make([]byte, o.size)
	copy(dst, plain) // touched
	mb := float64(o.size) / 1e6
	turn := func(name string, f func() error) *measured {
		return &measured{name: name, f: f, work: mb, unit: "MB/s"}
	}
	read := func(r io.Reader, err error) error {
		if err == nil {
			_, err = io.ReadFull(r, dst)
		}
		return err
	}
	ours := turn("rotor", func() error {
		f, err := envelope.OpenFile(ctx, s.rotor, s.key)
		if err != nil {
			return err
		}
		return errors.Join(f.ReadInto(ctx, dst, 1), f.Close())
	})
	stream := turn("rotor stream", s.from(s.rotor, func(f io.Reader) error { return read(envelope.NewReader(ctx, f, s.key)) }))
	minio := turn("sio", s.from(s.sio, func(f io.Reader) error { return read(sio.DecryptReader(f, s.config)) }))
	ageOf := turn("age", s.from(s.age, func(f io.Reader) error { return read(age.Decrypt(f, s.identity)) }))
	gcm := turn("bare AES-256-GCM", s.bareGCM(plain, dst))
	copied := turn("memory copy", func() error { copy(dst, plain); return nil })
	peers := []*measured{ours, stream, minio, ageOf}
	for _, m := range peers { // what is measured has to be right
		clear(dst)
		if err := m.f(); err != nil || !bytes.Equal(dst, plain) {
			return nil, fmt.Errorf("%s decrypts something else: %w", m.name, err)
		}
	}
	if err := takeTurns(ctx, o.rounds, append(peers, gcm, copied)...); err != nil {
		return nil, err
	}
	return []Row{
		atLeast("file_decrypt", *ours, *minio, "minio/sio", 1),
		atLeast("file_decrypt", *ours, *ageOf, "filippo.io/age", 2),
		atLeast("file_decrypt", *ours, *gcm, "bare AES-256-GCM in memory (limit)", 0),
		atLeast("file_decrypt", *ours, *copied, "memory copy (limit)", 0),
		atLeast("file_decrypt_stream", *stream, *minio, "minio/sio", 0),
	}, nil
}

// samples are one plaintext in the format of each.
type samples struct {
	rotor, sio, age string
	key             wrapKey
	config          sio.Config
	identity        *age.X25519Identity
}

func newSamples(ctx context.Context, dir string, plain []byte) (s samples, err error) {
	if s.key, err = newWrapKey(); err != nil {
		return s, err
	}
	if s.identity, err = age.GenerateX25519Identity(); err != nil {
		return s, err
	}
	s.config = sio.Config{Key: make([]byte, 32), CipherSuites: []byte{sio.AES_256_GCM}}
	s.rotor, s.sio, s.age = filepath.Join(dir, "rotor"), filepath.Join(dir, "sio"), filepath.Join(dir, "age")
	err = envelope.EncryptFile(ctx, s.rotor, bytes.NewReader(plain), envelope.Options{Wrappers: []envelope.Wrapper{s.key}})
	return s, errors.Join(err,
		write(s.sio, plain, func(w io.Writer) (io.WriteCloser, error) { return sio.EncryptWriter(w, s.config) }),
		write(s.age, plain, func(w io.Writer) (io.WriteCloser, error) { return age.Encrypt(w, s.identity.Recipient()) }))
}

func write(path string, plain []byte, through func(io.Writer) (io.WriteCloser, error)) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w, err := through(struct{ io.Writer }{f}) // sio closes what it can
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = w.Write(plain)
	return errors.Join(err, w.Close(), f.Close())
}

func (s samples) from(path string, use func(io.Reader) error) func() error {
	return func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(use(f), f.Close())
	}
}

// bareGCM opens chunks of 16 KiB from memory to memory; one sealed chunk stands for all, so that no second copy of the data is needed.
func (s samples) bareGCM(plain, dst []byte) func() error {
	const size = 16 << 10
	return func() error {
		block, err := aes.NewCipher(make([]byte, 32))
		if err != nil {
			return err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return err
		}
		nonce := make([]byte, 12)
		sealed := aead.Seal(nil, nonce, plain[:size], nil)
		for at := 0; at+size <= len(dst); at += size {
			if _, err := aead.Open(dst[at:at:at+size], nonce, sealed, nil); err != nil {
				return err
			}
		}
		return nil
	}
}

const sparse = 10 << 30

// rewrap counts what a rewrap of a 10 GB file, whose payload is a hole, reads and writes, by the kernel's count.
func rewrap(ctx context.Context, o options) ([]Row, error) {
	key, err := newWrapKey()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(o.dir, "sparse")
	if err := envelope.EncryptFile(ctx, path, bytes.NewReader(nil), envelope.Options{Wrappers: []envelope.Wrapper{key}}); err != nil {
		return nil, err
	}
	if err := os.Truncate(path, sparse); err != nil {
		return nil, err
	}
	empty, err := ioBetween(func() error { return nil })
	if err != nil {
		return nil, err
	}
	used, err := ioBetween(func() error {
		_, err := envelope.Rewrap(ctx, path, func(ctx context.Context, immutable []byte, wraps []envelope.Wrap) ([]envelope.Wrap, bool, error) {
			dek, err := key.UnwrapDEK(ctx, wraps[0], immutable)
			if err != nil {
				return nil, false, err
			}
			next, err := key.WrapDEK(ctx, dek, immutable)
			return []envelope.Wrap{next}, true, err
		})
		return err
	})
	return []Row{atMost("rewrap_10GB_io", float64(used-empty)/1024, "KiB", 64)}, err
}

// ioBetween is how many bytes this process read and wrote by system calls, while f ran and in looking at the count.
func ioBetween(f func() error) (int64, error) {
	before, err := ioOf("self")
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := ioOf("self")
	return after - before, err
}

func ioOf(process string) (sum int64, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", process, "io"))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		name, value, _ := strings.Cut(line, ": ")
		if name == "rchar" || name == "wchar" {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
