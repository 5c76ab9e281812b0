package envelope_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// sizes are all kinds of borders: empty, around a chunk, around the window of chunks that is read at a time.
var sizes = []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2*chunkSize - 1, 2 * chunkSize, 2*chunkSize + 1, 16*chunkSize - 1, 16 * chunkSize, 16*chunkSize + 1, 33*chunkSize + 7}

func TestRoundTripOfEverySizeAndWay(t *testing.T) {
	r := newRing(t, 1)
	for _, size := range sizes {
		plain := plaintext(size)
		b := encrypt(t, r, plain)
		chunks := size/chunkSize + 1
		if want := payloadAt(t, b) + payloadFront + size + 16*chunks; len(b) != want {
			t.Errorf("%d bytes became %d, want %d", size, len(b), want)
		}
		f, err := open(t, r, b)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if f.Size() != int64(size) {
			t.Errorf("size %d, want %d", f.Size(), size)
		}
		for _, workers := range []int{-1, 1, 3, 100} {
			out := make([]byte, size)
			if err := f.ReadInto(t.Context(), out, workers); err != nil || !bytes.Equal(out, plain) {
				t.Errorf("%d bytes with %d workers: %v", size, workers, err)
			}
		}
		if got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size())); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", size, err)
		}
		for name, source := range map[string]func(io.Reader) io.Reader{"whole": same, "half": iotest.HalfReader, "with EOF": iotest.DataErrReader} {
			s, err := envelope.NewReader(t.Context(), source(bytes.NewReader(b)), r)
			if err != nil {
				t.Fatalf("%d bytes, %s: %v", size, name, err)
			}
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes, %s: %v", size, name, err)
			}
		}
	}
}

// TestReadersKeepTheirContracts: io.Reader, io.ReaderAt and io.Seeker in every detail.
func TestReadersKeepTheirContracts(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(chunkSize + 10)
	b := encrypt(t, r, plain)
	f, err := open(t, r, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(f, chunkSize-200, 210), plain[chunkSize-200:]); err != nil {
		t.Error(err)
	}
	s, err := envelope.NewReader(t.Context(), bytes.NewReader(b), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(s, plain); err != nil {
		t.Error(err)
	}
}

func same(r io.Reader) io.Reader { return r }

// TestWritesOfAnyLength: how the writer is fed does not matter.
func TestWritesOfAnyLength(t *testing.T) {
	r := newRing(t, 1)
	rapid.Check(t, func(rt *rapid.T) {
		lengths := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 50), rapid.IntRange(chunkSize-2, chunkSize+2), rapid.IntRange(0, 3*chunkSize)), 0, 6).Draw(rt, "writes")
		var out, plain bytes.Buffer
		w, err := envelope.NewWriter(t.Context(), &out, r.options())
		if err != nil {
			rt.Fatal(err)
		}
		all := plaintext(20 * chunkSize)
		for _, n := range lengths {
			piece := all[plain.Len() : plain.Len()+n]
			plain.Write(piece)
			if got, err := w.Write(piece); got != n || err != nil {
				rt.Fatal(got, err)
			}
		}
		if err := w.Close(); err != nil {
			rt.Fatal(err)
		}
		if got, err := readAll(t, r, out.Bytes()); err != nil || !bytes.Equal(got, plain.Bytes()) {
			rt.Fatalf("read %d bytes of %d: %v", len(got), plain.Len(), err)
		}
	})
}

func TestReadAtAnywhere(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(5*chunkSize + 100)
	f, err := open(t, r, encrypt(t, r, plain))
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.NewReader(plain)
	rapid.Check(t, func(rt *rapid.T) {
		off := rapid.OneOf(rapid.Int64Range(0, f.Size()+10), rapid.Map(rapid.Int64Range(0, 6), func(n int64) int64 { return n * chunkSize })).Draw(rt, "off")
		n := rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(chunkSize-1, chunkSize+1), rapid.IntRange(1, 6*chunkSize)).Draw(rt, "n")
		got, expected := make([]byte, n), make([]byte, n)
		gotN, gotErr := f.ReadAt(got, off)
		wantN, wantErr := want.ReadAt(expected, off)
		if gotN != wantN || !errors.Is(gotErr, wantErr) || !bytes.Equal(got, expected) {
			rt.Fatalf("read %d, %v at %d; want %d, %v", gotN, gotErr, off, wantN, wantErr)
		}
	})
	if _, err := f.ReadAt(make([]byte, 1), -1); fault.CodeOf(err) != fault.Invalid {
		t.Error(err)
	}
	if err := f.ReadInto(t.Context(), make([]byte, 5), 1); fault.CodeOf(err) != fault.Invalid {
		t.Error(err)
	}
}

// TestPayloadIsChunkedEncryption opens a payload with an implementation of its own, written from C2SP chunked-encryption v1 alone.
func TestPayloadIsChunkedEncryption(t *testing.T) {
	r := newRing(t, 1)
	for _, size := range []int{0, 5, chunkSize, 2*chunkSize + 9} {
		plain := plaintext(size)
		b := encrypt(t, r, plain)
		h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		dek, err := r.UnwrapDEK(t.Context(), h.Wraps[0], h.Raw)
		if err != nil {
			t.Fatal(err)
		}
		context := sha256.Sum256(h.Raw)
		got := openChunked(t, dek.Reveal(), append(context[:], 0, 0, 0, 0), b[h.PayloadOffset():])
		if !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: another plaintext", size)
		}
	}
}

func openChunked(t *testing.T, key, context, b []byte) []byte {
	t.Helper()
	salt, commitment, body := b[:24], b[24:56], b[56:]
	info := slices.Concat([]byte("c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"), salt, context)
	var okm, last []byte
	for i := byte(1); len(okm) < 32+12+32; i++ { // RFC 5869, 2.3
		mac := hmac.New(sha512.New, key)
		mac.Write(slices.Concat(last, info, []byte{i}))
		last = mac.Sum(nil)
		okm = append(okm, last...)
	}
	if !bytes.Equal(commitment, okm[44:76]) {
		t.Fatal("another commitment")
	}
	block, err := aes.NewCipher(okm[:32])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	var plain []byte
	for n := uint64(0); ; n++ {
		counter := append(make([]byte, 4), binary.BigEndian.AppendUint64(nil, n)...)
		for i := range counter {
			counter[i] ^= okm[32+i]
		}
		chunk := body[:min(len(body), 16400)]
		body = body[len(chunk):]
		out, err := aead.Open(nil, counter, chunk, nil)
		if err != nil {
			t.Fatal(n, err)
		}
		plain = append(plain, out...)
		if len(out) < 16384 {
			break
		}
	}
	if len(body) > 0 {
		t.Fatal("the last chunk is not short")
	}
	return plain
}

// TestNothingRepeats: two files of one plaintext share no file id, wrap, salt or chunk.
func TestNothingRepeats(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(100)
	a, b := encrypt(t, r, plain), encrypt(t, r, plain)
	ha, err := envelope.ReadHeader(bytes.NewReader(a), int64(len(a)))
	if err != nil {
		t.Fatal(err)
	}
	hb, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	at := ha.PayloadOffset()
	if ha.FileID == hb.FileID || bytes.Equal(ha.Wraps[0].Blob, hb.Wraps[0].Blob) || bytes.Equal(a[at:at+24], b[at:at+24]) || bytes.Equal(a[at+56:], b[at+56:]) {
		t.Error("two files have something random in common")
	}
}

func TestWriterIsClosedOnce(t *testing.T) {
	r := newRing(t, 1)
	var out bytes.Buffer
	w, err := envelope.NewWriter(t.Context(), &out, r.options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := w.Write([]byte("more")); n != 0 || err == nil {
		t.Error("written after Close")
	}
	if got, err := readAll(t, r, out.Bytes()); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
}

// full is a destination that takes so many bytes.
type full struct{ left int }

var errFull = errors.New("full")

func (f *full) Write(b []byte) (int, error) {
	n := min(f.left, len(b))
	f.left -= n
	if n < len(b) {
		return n, errFull
	}
	return n, nil
}

func TestWriterReportsADestinationThatFails(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(3 * chunkSize)
	whole := len(encrypt(t, r, plain))
	for left := 0; left < whole; left += 977 {
		w, err := envelope.NewWriter(t.Context(), &full{left}, r.options())
		if err == nil {
			_, err = w.Write(plain)
			err = errors.Join(err, w.Close())
		}
		if !errors.Is(err, errFull) {
			t.Fatalf("after %d bytes: %v", left, err)
		}
	}
}

func TestEncryptFileReplacesOnlyByForce(t *testing.T) {
	r := newRing(t, 1)
	path := encryptFile(t, r, []byte("old"))
	old := readFile(t, path)
	err := envelope.EncryptFile(t.Context(), path, strings.NewReader("new"), r.options())
	wantCode(t, err, fault.Exists)
	if !bytes.Equal(readFile(t, path), old) {
		t.Error("the old file was changed")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	o := r.options()
	o.Force = true
	if err := envelope.EncryptFile(t.Context(), link, strings.NewReader("new"), o); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, r, readFile(t, path)); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Error("the mode was not kept", info.Mode(), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("the link was replaced", err)
	}
	wantCode(t, envelope.EncryptFile(t.Context(), t.TempDir(), strings.NewReader("new"), o), fault.Invalid)
	onlyFiles(t, filepath.Dir(path), "model.rotor")
}

// TestEncryptFileDoesNotReplaceWhatAppears: a file that another process makes while this one encrypts stays.
func TestEncryptFileDoesNotReplaceWhatAppears(t *testing.T) {
	r := newRing(t, 1)
	path := filepath.Join(t.TempDir(), "model.rotor")
	src := io.MultiReader(strings.NewReader("mine"), readerFunc(func([]byte) (int, error) {
		return 0, errors.Join(os.WriteFile(path, []byte("theirs"), 0o600), io.EOF)
	}))
	err := envelope.EncryptFile(t.Context(), path, eofReader{src}, r.options())
	wantCode(t, err, fault.Exists)
	if string(readFile(t, path)) != "theirs" {
		t.Error("a file that appeared meanwhile was replaced")
	}
	onlyFiles(t, filepath.Dir(path), "model.rotor")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// eofReader unwraps io.EOF, which readers have to return as it is.
type eofReader struct{ r io.Reader }

func (e eofReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if errors.Is(err, io.EOF) {
		err = io.EOF
	}
	return n, err
}

func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v is left, want %v", got, want)
	}
}

// TestEncryptFileLeavesNothingAfterAnError: the source breaks, or the caller gives up, at any place.
func TestEncryptFileLeavesNothingAfterAnError(t *testing.T) {
	r := newRing(t, 1)
	broken := errors.New("broken")
	for _, before := range []int{0, 1, chunkSize, 2<<20 + 5} {
		for _, force := range []bool{false, true} {
			dir := t.TempDir()
			path := filepath.Join(dir, "model.rotor")
			o := r.options()
			o.Force = force
			var want []string
			if force {
				if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
				want = []string{"model.rotor"}
			}
			err := envelope.EncryptFile(t.Context(), path, io.MultiReader(bytes.NewReader(plaintext(before)), iotest.ErrReader(broken)), o)
			if !errors.Is(err, broken) {
				t.Error(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			stop := readerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
			err = envelope.EncryptFile(ctx, path, io.MultiReader(bytes.NewReader(plaintext(before)), stop), o)
			wantCode(t, err, fault.Canceled)
			onlyFiles(t, dir, want...)
			if force && string(readFile(t, path)) != "old" {
				t.Error("the old file is gone")
			}
		}
	}
}

// limited stands for a KMS that answers as told for a key.
type limited struct {
	ring
	answers map[string]error
	asked   []string
}

func (l *limited) UnwrapDEK(ctx context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	l.asked = append(l.asked, w.KeyID)
	if err := l.answers[w.KeyID]; err != nil {
		return envelope.Secret{}, err
	}
	return l.ring.UnwrapDEK(ctx, w, immutable)
}

type named struct {
	version
	name string
}

func (n named) WrapDEK(_ context.Context, dek envelope.Secret, immutable []byte) (envelope.Wrap, error) {
	w := wrapOf(n.number)
	w.KeyID = n.name
	return envelope.SealDEK(n.ring[n.number], w, immutable, dek)
}

// TestSeveralWraps: who may use one of a file's keys opens it, whatever the other keys' answers are.
func TestSeveralWraps(t *testing.T) {
	r := newRing(t, 1)
	var out bytes.Buffer
	o := r.options()
	o.Wrappers = []envelope.Wrapper{named{version{r, 1}, "other"}, named{version{r, 1}, "models"}}
	w, err := envelope.NewWriter(t.Context(), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		answers map[string]error
		want    fault.Code
		asked   int
	}{
		{"first unknown", map[string]error{"other": fault.New(fault.NotFound, "")}, "", 2},
		{"first denied", map[string]error{"other": fault.New(fault.Denied, "")}, "", 2},
		{"first destroyed", map[string]error{"other": fault.New(fault.VersionDestroyed, "")}, "", 2},
		{"server away", map[string]error{"other": fault.New(fault.Unavailable, "")}, fault.Unavailable, 1},
		{"first denied, second retired", map[string]error{"other": fault.New(fault.Denied, ""), "models": fault.New(fault.VersionRetired, "")}, fault.Denied, 2},
		{"first unknown, second retired", map[string]error{"other": fault.New(fault.NotFound, ""), "models": fault.New(fault.VersionRetired, "")}, fault.VersionRetired, 2},
		{"none known", map[string]error{"other": fault.New(fault.NotFound, ""), "models": fault.New(fault.NotFound, "")}, fault.NotFound, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &limited{ring: r, answers: c.answers}
			_, err := envelope.Open(t.Context(), bytes.NewReader(out.Bytes()), int64(out.Len()), l)
			wantCode(t, err, c.want)
			if len(l.asked) != c.asked {
				t.Errorf("asked for %v", l.asked)
			}
		})
	}
}

// TestDataKeyOfAnotherLength: a KMS that answers with something else is refused.
func TestDataKeyOfAnotherLength(t *testing.T) {
	r := newRing(t, 1)
	b := encrypt(t, r, nil)
	_, err := envelope.Open(t.Context(), bytes.NewReader(b), int64(len(b)), fixed(secret.Random(16)))
	wantCode(t, err, fault.DecryptFailed)
	_, err = envelope.Open(t.Context(), bytes.NewReader(b), int64(len(b)), fixed(secret.Random(32)))
	wantCode(t, err, fault.DecryptFailed) // the commitment
	_, err = envelope.NewReader(t.Context(), bytes.NewReader(b), fixed(secret.Random(32)))
	wantCode(t, err, fault.DecryptFailed)
}

type fixed envelope.Secret

func (f fixed) UnwrapDEK(context.Context, envelope.Wrap, []byte) (envelope.Secret, error) {
	return envelope.Secret(f), nil
}

func TestOpenFile(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(40*chunkSize + 3)
	path := encryptFile(t, r, plain)
	f, err := envelope.OpenFile(t.Context(), path, r)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for i := range 8 {
		readers.Go(func() {
			if i%2 == 0 {
				got, err := f.ReadAll(t.Context())
				if err != nil || !bytes.Equal(got, plain) {
					t.Error("ReadAll:", err)
				}
				return
			}
			got := make([]byte, 3*chunkSize)
			for off := 0; off+len(got) < len(plain); off += 2*chunkSize + 1 {
				if _, err := f.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, plain[off:off+len(got)]) {
					t.Error("ReadAt:", err)
				}
			}
		})
	}
	readers.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Error("read after Close:", err)
	}
	if _, err := f.ReadAll(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Error("read after Close:", err)
	}
	for _, bad := range []string{filepath.Dir(path), os.DevNull} {
		_, err := envelope.OpenFile(t.Context(), bad, r)
		wantCode(t, err, fault.MalformedFile)
	}
	if _, err := envelope.OpenFile(t.Context(), path+"x", r); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestFileChangesWhileItIsOpen: whoever can write the file can only make reading fail.
func TestFileChangesWhileItIsOpen(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(20 * chunkSize)
	path := encryptFile(t, r, plain)
	f, err := envelope.OpenFile(t.Context(), path, r)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt([]byte{1, 2, 3, 4}, f.Header().PayloadOffset()+payloadFront+18*sealedChunk); err != nil {
		t.Fatal(err)
	}
	out := bytes.Repeat([]byte{0xee}, len(plain))
	wantCode(t, f.ReadInto(t.Context(), out, 1), fault.DecryptFailed)
	if !bytes.Equal(out[:18*chunkSize], plain[:18*chunkSize]) || len(bytes.Trim(out[18*chunkSize:19*chunkSize], "\x00")) != 0 {
		t.Error("what was verified is not there, or what was not is")
	}
	if err := w.Truncate(f.Header().PayloadOffset() + payloadFront + 3*sealedChunk + 5); err != nil {
		t.Fatal(err)
	}
	_, err = f.ReadAll(t.Context())
	wantCode(t, err, fault.TruncatedFile)
	got := make([]byte, chunkSize)
	_, err = f.ReadAt(got, 3*chunkSize)
	wantCode(t, err, fault.TruncatedFile)
	if _, err := f.ReadAt(got, chunkSize); err != nil || !bytes.Equal(got, plain[chunkSize:2*chunkSize]) {
		t.Error("a chunk that is still there:", err)
	}
}

func TestReadAllEndsWithItsContext(t *testing.T) {
	r := newRing(t, 1)
	f, err := open(t, r, encrypt(t, r, plaintext(chunkSize)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.ReadAll(ctx)
	wantCode(t, err, fault.Canceled)
}

// TestDiskFull runs itself in a process that may write files of 200 KiB: the old file stays, nothing else is left, and the error says why.
func TestDiskFull(t *testing.T) {
	r := newRing(t, 1)
	if path := os.Getenv("ROTOR_TEST_DISK_FULL"); path != "" {
		signal.Ignore(unix.SIGXFSZ)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 200 << 10, Max: 200 << 10}); err != nil {
			t.Fatal(err)
		}
		o := r.options()
		o.Force = true
		err := envelope.EncryptFile(t.Context(), path, bytes.NewReader(plaintext(5<<20)), o)
		wantCode(t, err, fault.DiskFull)
		return
	}
	path := encryptFile(t, r, []byte("old"))
	old := readFile(t, path)
	child := exec.Command(os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
	child.Env = append(os.Environ(), "ROTOR_TEST_DISK_FULL="+path)
	if out, err := child.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestDiskFull")) {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Equal(readFile(t, path), old) {
		t.Error("the old file was changed")
	}
	onlyFiles(t, filepath.Dir(path), "model.rotor")
}
