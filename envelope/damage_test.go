package envelope_test

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
)

// damageCodes are what a damaged file may give: it is malformed, cut off, does not open, or its readable header names a version that
// nobody knows.
var damageCodes = []fault.Code{fault.MalformedFile, fault.TruncatedFile, fault.DecryptFailed, fault.UnknownVersion, fault.NotFound}

// checkDamaged opens a damaged file in both ways. Each gives an error of the list, or exactly the plaintext and a report that a slot is
// torn. It returns the error of the first way.
func checkDamaged(t *testing.T, r ring, b, plain []byte, what string) error {
	t.Helper()
	got, err := readAll(t, r, b)
	if err == nil && !bytes.Equal(got, plain) {
		t.Fatalf("%s: other bytes", what)
	}
	if err != nil && !slices.Contains(damageCodes, fault.CodeOf(err)) {
		t.Fatalf("%s: %v", what, err)
	}
	streamed, streamErr := readStream(t, r, b)
	if !bytes.HasPrefix(plain, streamed) {
		t.Fatalf("%s: other bytes in the stream", what)
	}
	if (err == nil) != (streamErr == nil) {
		t.Fatalf("%s: file %v, stream %v", what, err, streamErr)
	}
	if streamErr != nil && !slices.Contains(damageCodes, fault.CodeOf(streamErr)) {
		t.Fatalf("%s: stream %v", what, streamErr)
	}
	return err
}

func readStream(t *testing.T, r ring, b []byte) ([]byte, error) {
	t.Helper()
	s, err := envelope.NewReader(t.Context(), bytes.NewReader(b), r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(s)
}

// TestFlippedBitInTheHeader flips a bit of every byte, and every bit where the fields are. The first slot holds version 1, the second
// version 2.
func TestFlippedBitInTheHeader(t *testing.T) {
	r := newRing(t, 1, 2)
	plain := plaintext(20)
	path := encryptFile(t, r, plain)
	if _, err := envelope.Rewrap(t.Context(), path, r.rewrapTo(2)); err != nil {
		t.Fatal(err)
	}
	b := readFile(t, path)
	payload := payloadAt(t, b)
	slots := payload - 2*slotSize
	for i := range payload {
		bits := []int{i % 8}
		if i < slots || (i-slots)%slotSize < 256 {
			bits = []int{0, 1, 2, 3, 4, 5, 6, 7}
		}
		for _, bit := range bits {
			b[i] ^= 1 << bit
			what := fmt.Sprintf("bit %d of byte %d", bit, i)
			if i < slots {
				if checkDamaged(t, r, b, plain, what) == nil {
					t.Fatalf("%s: opened", what)
				}
			} else {
				checkSlot(t, r, b, plain, (i-slots)/slotSize, what)
			}
			b[i] ^= 1 << bit
		}
	}
}

// checkSlot: the damaged slot is skipped and reported, and the other opens the file. That the stream does the same is seen once in a while.
func checkSlot(t *testing.T, r ring, b, plain []byte, slot int, what string) {
	t.Helper()
	f, err := open(t, r, b)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	h := f.Header()
	if !h.Torn[slot] || h.Torn[1-slot] || h.Slots[slot] != nil || h.Wraps[0].Version != uint32(2-slot) {
		t.Fatalf("%s: torn %v, version %d", what, h.Torn, h.Wraps[0].Version)
	}
	got := make([]byte, len(plain))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestBothSlotsDamaged(t *testing.T) {
	r := newRing(t, 1)
	b := encrypt(t, r, nil)
	payload := payloadAt(t, b)
	b[payload-1] ^= 1
	b[payload-slotSize-1] ^= 1
	_, err := open(t, r, b)
	wantCode(t, err, fault.MalformedFile)
	_, err = readStream(t, r, b)
	wantCode(t, err, fault.MalformedFile)
}

// TestFlippedBitInThePayload flips a bit of every byte of salt and commitment, of the last chunk, of all tags and around the borders, and
// of a sample of the rest. What was before the damaged chunk stays readable, at its place.
func TestFlippedBitInThePayload(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(2*chunkSize + 40)
	b := encrypt(t, r, plain)
	payload := payloadAt(t, b)
	for i := payload; i < len(b); i++ {
		at := i - payload - payloadFront
		if in := at % sealedChunk; at >= 20 && at < 2*sealedChunk && in > 4 && in < chunkSize-4 && i%211 > 0 {
			continue
		}
		b[i] ^= 1 << (i % 8)
		if checkDamaged(t, r, b, plain, fmt.Sprintf("byte %d", i)) == nil {
			t.Fatalf("byte %d: opened", i)
		}
		b[i] ^= 1 << (i % 8)
	}
}

// TestDamagedChunkLeavesTheOthers: an error in one chunk is no error in another.
func TestDamagedChunkLeavesTheOthers(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(3 * chunkSize)
	b := encrypt(t, r, plain)
	b[payloadAt(t, b)+payloadFront+sealedChunk] ^= 1
	f, err := open(t, r, b)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, chunkSize)
	for n := range 3 {
		_, err := f.ReadAt(got, int64(n)*chunkSize)
		if n == 1 {
			wantCode(t, err, fault.DecryptFailed)
		} else if err != nil || !bytes.Equal(got, plain[n*chunkSize:(n+1)*chunkSize]) {
			t.Errorf("chunk %d: %v", n, err)
		}
	}
}

// TestTruncated cuts a file at every length near a border and a sample of the others.
func TestTruncated(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(2*chunkSize + 40)
	b := encrypt(t, r, plain)
	payload := payloadAt(t, b)
	slots := payload - 2*slotSize
	borders := []int{preludeSize, slots, slots + slotSize, payload, payload + 24, payload + payloadFront}
	for n := range 3 {
		borders = append(borders, payload+payloadFront+n*sealedChunk, payload+payloadFront+n*sealedChunk+16)
	}
	near := func(n int) bool {
		return slices.ContainsFunc(borders, func(at int) bool { return n >= at-2 && n <= at+2 })
	}
	for n := range b {
		if n > slots && n%173 > 0 && n < len(b)-60 && !near(n) {
			continue
		}
		if checkDamaged(t, r, b[:n], plain, fmt.Sprintf("%d bytes", n)) == nil {
			t.Fatalf("%d bytes of %d: opened", n, len(b))
		}
	}
	for _, n := range []int{0, preludeSize - 1, slots - 1, slots + 1, payload - 1, payload + payloadFront - 1, payload + payloadFront, payload + payloadFront + 2*sealedChunk} {
		_, err := open(t, r, b[:n])
		wantCode(t, err, fault.TruncatedFile)
	}
	for _, n := range []int{len(b) - 1, len(b) - 40, payload + payloadFront + 2*sealedChunk - 1, payload + payloadFront + sealedChunk + 16} {
		_, err := open(t, r, b[:n]) // found at open, before anything is read
		wantCode(t, err, fault.DecryptFailed)
	}
}

// TestChunksMoved reorders, repeats, removes, appends and exchanges chunks.
func TestChunksMoved(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(3*chunkSize + 40)
	b, other := encrypt(t, r, plain), encrypt(t, r, plain)
	start := payloadAt(t, b) + payloadFront
	chunk := func(of []byte, n int) []byte { return of[start+n*sealedChunk : min(start+(n+1)*sealedChunk, len(of))] }
	c := [][]byte{chunk(b, 0), chunk(b, 1), chunk(b, 2), chunk(b, 3)}
	o := [][]byte{chunk(other, 0), chunk(other, 1), chunk(other, 2), chunk(other, 3)}
	with := func(chunks ...[]byte) []byte { return slices.Concat(append([][]byte{b[:start]}, chunks...)...) }
	if got, err := readAll(t, r, with(c...)); err != nil || !bytes.Equal(got, plain) {
		t.Fatal("the pieces are cut wrongly", err)
	}
	for name, damaged := range map[string][]byte{
		"exchanged":            with(c[1], c[0], c[2], c[3]),
		"repeated":             with(c[0], c[0], c[2], c[3]),
		"inserted":             with(c[0], c[0], c[1], c[2], c[3]),
		"first missing":        with(c[1], c[2], c[3]),
		"middle missing":       with(c[0], c[2], c[3]),
		"last missing":         with(c[0], c[1], c[2]),
		"last two missing":     with(c[0], c[1]),
		"all missing":          with(),
		"of another file":      with(c[0], o[1], c[2], c[3]),
		"last of another file": with(c[0], c[1], c[2], o[3]),
		"all of another file":  with(o...),
		"a byte appended":      append(with(c...), 0),
		"last repeated":        with(c[0], c[1], c[2], c[3], c[3]),
		"a chunk appended":     with(c[0], c[1], c[2], c[3], c[0]),
		"last made full":       with(c[0], c[1], c[2], append(slices.Clone(c[3]), make([]byte, sealedChunk-len(c[3]))...)),
		"a file appended":      append(with(c...), other...),
	} {
		if checkDamaged(t, r, damaged, plain, name) == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestHeaderOfAnotherFile: wrap and payload are bound to the immutable part.
func TestHeaderOfAnotherFile(t *testing.T) {
	r := newRing(t, 1)
	a, b := encrypt(t, r, []byte("a")), encrypt(t, r, []byte("b"))
	payload := payloadAt(t, a)
	slots := payload - 2*slotSize
	for name, mixed := range map[string][]byte{
		"payload":        slices.Concat(a[:payload], b[payload:]),
		"wraps":          slices.Concat(a[:slots], b[slots:payload], a[payload:]),
		"immutable part": slices.Concat(a[:slots], b[slots:]),
	} {
		if checkDamaged(t, r, mixed, []byte("a"), name) == nil {
			t.Errorf("%s of another file: opened", name)
		}
	}
}
