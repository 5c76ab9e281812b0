package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
)

func versions(slots [2][]envelope.Wrap) (out [2]uint32) {
	for i, wraps := range slots {
		if len(wraps) > 0 {
			out[i] = wraps[0].Version
		}
	}
	return out
}

func TestRewrapWritesTheOlderSlot(t *testing.T) {
	r := newRing(t, 1, 2, 3)
	plain := plaintext(chunkSize + 1)
	path := encryptFile(t, r, plain)
	before := readFile(t, path)
	payload := payloadAt(t, before)
	for _, c := range []struct {
		to     uint32
		scrub  bool
		want   [2]uint32
		number uint64
	}{
		{2, false, [2]uint32{1, 2}, 2},
		{3, false, [2]uint32{3, 2}, 3},
		{1, false, [2]uint32{3, 1}, 4},
		{0, true, [2]uint32{1, 1}, 4},
		{2, false, [2]uint32{1, 2}, 5},
	} {
		var stats envelope.Stats
		var err error
		if c.scrub {
			stats, err = envelope.Scrub(t.Context(), path)
		} else {
			stats, err = envelope.Rewrap(t.Context(), path, r.rewrapTo(c.to))
		}
		if err != nil {
			t.Fatal(err)
		}
		if stats.Written != slotSize || stats.Read != int64(payload) {
			t.Errorf("%+v", stats)
		}
		f, err := envelope.OpenFile(t.Context(), path, r)
		if err != nil {
			t.Fatal(err)
		}
		h := f.Header()
		if versions(h.Slots) != c.want || h.Generation != c.number || !h.Wraps[0].ProtectTime.Equal(protected) {
			t.Errorf("slots hold versions %v, generation %d, protected %v", versions(h.Slots), h.Generation, h.Wraps[0].ProtectTime)
		}
		if got, err := f.ReadAll(t.Context()); err != nil || !bytes.Equal(got, plain) {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	after := readFile(t, path)
	if !bytes.Equal(after[payload:], before[payload:]) || !bytes.Equal(after[:payload-2*slotSize], before[:payload-2*slotSize]) {
		t.Error("more than the slots was changed")
	}
}

// TestRewrapOf10GB: the payload is a hole, and nothing of it is read or written, as the kernel counts.
func TestRewrapOf10GB(t *testing.T) {
	r := newRing(t, 1, 2)
	path := encryptFile(t, r, nil)
	if err := os.Truncate(path, 10<<30); err != nil {
		t.Fatal(err)
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	before := blocks()
	stats, err := envelope.Rewrap(t.Context(), path, r.rewrapTo(2))
	if err != nil {
		t.Fatal(err)
	}
	if stats.Read+stats.Written > 64<<10 {
		t.Errorf("%+v", stats)
	}
	if after := blocks(); after > before+64<<10/512 {
		t.Errorf("the file takes %d blocks, %d before", after, before)
	}
}

// TestRewrapThatChangesNothing: an error, no change, or a table that could not be read again, leaves every byte as it was.
func TestRewrapThatChangesNothing(t *testing.T) {
	r := newRing(t, 1)
	path := encryptFile(t, r, plaintext(10))
	before := readFile(t, path)
	denied := fault.New(fault.Denied, "")
	large := wrapOf(1)
	large.Blob = make([]byte, 4<<10+1)
	for _, c := range []struct {
		name    string
		wraps   []envelope.Wrap
		changed bool
		err     error
		want    fault.Code
	}{
		{"refused", nil, true, denied, fault.Denied},
		{"no change", []envelope.Wrap{wrapOf(9)}, false, nil, ""},
		{"empty table", []envelope.Wrap{}, true, nil, fault.Invalid},
		{"too many", make([]envelope.Wrap, 65), true, nil, fault.Invalid},
		{"blob too large", []envelope.Wrap{large}, true, nil, fault.Invalid},
	} {
		stats, err := envelope.Rewrap(t.Context(), path, func(context.Context, []byte, []envelope.Wrap) ([]envelope.Wrap, bool, error) {
			return c.wraps, c.changed, c.err
		})
		wantCode(t, err, c.want)
		if stats.Written != 0 || !bytes.Equal(readFile(t, path), before) {
			t.Errorf("%s: the file was changed", c.name)
		}
	}
}

func TestRewrapOfWhatIsNoFile(t *testing.T) {
	r := newRing(t, 1)
	path := filepath.Join(t.TempDir(), "text")
	for _, content := range []string{"", "text", "rotorfile\x00v1\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := envelope.Rewrap(t.Context(), path, r.rewrapTo(1))
		wantCode(t, err, fault.MalformedFile, fault.TruncatedFile)
		if string(readFile(t, path)) != content {
			t.Error("a file that is none of rotor's was changed")
		}
	}
	if _, err := envelope.Rewrap(t.Context(), path+"x", r.rewrapTo(1)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	_, err := envelope.Rewrap(t.Context(), os.DevNull, r.rewrapTo(1))
	wantCode(t, err, fault.MalformedFile)
}

// TestLastGeneration: a made-up header with the highest generation cannot make the next table the older one.
func TestLastGeneration(t *testing.T) {
	r := newRing(t, 1, 2)
	b := encrypt(t, r, nil)
	slots := payloadAt(t, b) - 2*slotSize
	old := b[slots : slots+slotSize]
	n := int(old[14])<<8 | int(old[15])
	path := filepath.Join(t.TempDir(), "file")
	made := append(append(bytes.Clone(b[:slots]), slot(1<<64-1, uint32(n), old[16:16+n])...), b[slots+slotSize:]...)
	if err := os.WriteFile(path, made, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := envelope.Rewrap(t.Context(), path, r.rewrapTo(2))
	wantCode(t, err, fault.MalformedFile)
	if !bytes.Equal(readFile(t, path), made) {
		t.Error("the file was changed")
	}
}

// TestRewrapsTakeTurns: many rewraps of one file at a time, and readers in between, who see one table or the other.
func TestRewrapsTakeTurns(t *testing.T) {
	r := newRing(t, 1, 2, 3, 4)
	plain := plaintext(100)
	path := encryptFile(t, r, plain)
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			if i%2 == 0 {
				if _, err := envelope.Rewrap(t.Context(), path, r.rewrapTo(uint32(i/2%4+1))); err != nil {
					t.Error("rewrap:", err)
				}
				return
			}
			f, err := envelope.OpenFile(t.Context(), path, r)
			if err != nil {
				t.Error("open:", err)
				return
			}
			defer f.Close()
			if got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size())); err != nil || !bytes.Equal(got, plain) {
				t.Error("read:", err)
			}
		})
	}
	all.Wait()
	b := readFile(t, path)
	h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
	if err != nil || h.Generation != 7 || h.Torn != [2]bool{} {
		t.Errorf("generation %d, torn %v, %v: a rewrap overwrote another", h.Generation, h.Torn, err)
	}
}

// TestRewrapWaitsForItsTurnUntilCanceled: another process that holds the lock does not hold a caller who gives up.
func TestRewrapWaitsForItsTurnUntilCanceled(t *testing.T) {
	r := newRing(t, 1, 2)
	path := encryptFile(t, r, nil)
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = envelope.Rewrap(ctx, path, r.rewrapTo(2))
	wantCode(t, err, fault.Canceled)
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.Rewrap(t.Context(), path, r.rewrapTo(2)); err != nil {
		t.Error(err)
	}
}
