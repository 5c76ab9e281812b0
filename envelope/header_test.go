package envelope_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

func field(b []byte, f string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
}

// immutable makes an immutable part as spec/file.md says.
func immutable(suite byte, contentType string, count uint32, context ...string) []byte {
	b := field(append([]byte{suite}, make([]byte, 16)...), contentType)
	b = binary.BigEndian.AppendUint32(b, count)
	for _, f := range context {
		b = field(b, f)
	}
	return b
}

func TestParseImmutable(t *testing.T) {
	many := make([]string, 0, 130)
	for i := range 65 {
		many = append(many, string(rune('!'+i)), "")
	}
	long := strings.Repeat("x", 16<<10)
	for _, c := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"smallest", immutable(1, "", 0), true},
		{"two entries", immutable(1, "a/b", 2, "a", "1", "b", "2"), true},
		{"64 entries", immutable(1, "", 64, many[:128]...), true},
		{"65 entries", immutable(1, "", 65, many...), false},
		{"largest", immutable(1, long[:16<<10-25], 0), true},
		{"larger", immutable(1, long[:16<<10-24], 0), false},
		{"empty", nil, false},
		{"suite 0", immutable(0, "", 0), false},
		{"suite 2", immutable(2, "", 0), true},
		{"suite 3", immutable(3, "", 0), false},
		{"no content type", immutable(1, "", 0)[:17], false},
		{"context cut off", immutable(1, "", 1, "a"), false},
		{"more entries than it has", immutable(1, "", math.MaxUint32, "a", "1"), false},
		{"less entries than it has", immutable(1, "", 1, "a", "1", "b", "2"), false},
		{"not sorted", immutable(1, "", 2, "b", "2", "a", "1"), false},
		{"one name twice", immutable(1, "", 2, "a", "1", "a", "1"), false},
		{"a byte too many", append(immutable(1, "", 0), 0), false},
		{"field longer than everything", append(immutable(1, "", 0)[:17], 0xff, 0xff, 0xff, 0xff), false},
		{"content type is no text", immutable(1, "\xff", 0), false},
		{"context is no text", immutable(1, "", 1, "a", "\xff"), false},
		{"name is no text", immutable(1, "", 1, "\xff", "a"), false},
	} {
		m, err := envelope.ParseImmutable(c.b)
		if c.ok != (err == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			wantCode(t, err, fault.MalformedFile)
		} else if m.Suite != 1 && m.Suite != 2 {
			t.Errorf("%s: suite %d", c.name, m.Suite)
		}
	}
}

// TestWriterRefusesWhatReadersWould: nothing is written that could not be read.
func TestWriterRefusesWhatReadersWould(t *testing.T) {
	r := newRing(t, 1)
	for name, change := range map[string]func(*envelope.Options){
		"no wrapper":         func(o *envelope.Options) { o.Wrappers = nil },
		"65 wrappers":        func(o *envelope.Options) { o.Wrappers = slices.Repeat(o.Wrappers, 65) },
		"large context":      func(o *envelope.Options) { o.Context = map[string]string{"a": strings.Repeat("x", 16<<10)} },
		"large content type": func(o *envelope.Options) { o.ContentType = strings.Repeat("x", 16<<10) },
		"no text":            func(o *envelope.Options) { o.ContentType = "\xff" },
		"long key name": func(o *envelope.Options) {
			o.Wrappers = []envelope.Wrapper{named{version{r, 1}, strings.Repeat("x", slotSize)}}
		},
		"key name no text": func(o *envelope.Options) { o.Wrappers = []envelope.Wrapper{named{version{r, 1}, "\xff"}} },
	} {
		var out bytes.Buffer
		o := r.options()
		change(&o)
		_, err := envelope.NewWriter(t.Context(), &out, o)
		wantCode(t, err, fault.Invalid, fault.TooLarge)
		if err == nil || out.Len() > 0 {
			t.Errorf("%s: %d bytes were written", name, out.Len())
		}
	}
}

// slot makes a wrap table with a right checksum around any body.
func slot(generation uint64, length uint32, body []byte) []byte {
	b := make([]byte, slotSize)
	binary.BigEndian.PutUint64(b[4:], generation)
	binary.BigEndian.PutUint32(b[12:], length)
	copy(b[16:], body)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func wrapTable(count uint32, key string, blob int, time uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, count)
	for range min(count, 100) {
		b = field(append(b, 1), key)
		b = binary.BigEndian.AppendUint32(b, 1)
		b = field(b, "XAES-256-GCM")
		b = binary.BigEndian.AppendUint64(b, time)
		b = field(b, string(make([]byte, blob)))
	}
	return b
}

func header(raw []byte, first, second []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte("rotorfile\x00v1\n"), uint32(len(raw)))
	sum := sha256.Sum256(raw)
	return slices.Concat(b, sum[:], raw, first, second)
}

// TestSlotsWithRightChecksums: what a checksum does not protect against is bounded all the same. Each bad slot stands beside a good one,
// which is taken.
func TestSlotsWithRightChecksums(t *testing.T) {
	one := wrapTable(1, "models", 4, 1)
	good := slot(1, uint32(len(one)), one)
	length := func(b []byte) uint32 { return uint32(len(b)) }
	table := func(b []byte) []byte { return slot(2, length(b), b) }
	cut := one
	for _, c := range []struct {
		name string
		slot []byte
		torn bool
	}{
		{"good", table(wrapTable(1, "models", 72, 1)), false},
		{"64 wraps", table(wrapTable(64, "models", 72, 1)), false},
		{"largest blob", table(wrapTable(1, "models", 4<<10, 1)), false},
		{"larger blob", table(wrapTable(1, "models", 4<<10+1, 1)), true},
		{"no wraps", table(wrapTable(0, "", 0, 0)), true},
		{"65 wraps", table(wrapTable(65, "m", 4, 1)), true},
		{"more wraps than it has", table(append([]byte{0, 0, 0, 2}, cut[4:]...)), true},
		{"2^32 - 1 wraps", table(append([]byte{255, 255, 255, 255}, cut[4:]...)), true},
		{"bytes after the wraps", table(append(slices.Clone(cut), 0)), true},
		{"bytes after the length", slot(2, length(cut)-1, cut), true},
		{"padding that is not zero", slot(2, length(cut), append(slices.Clone(cut), 1)), true},
		{"longer than a slot", slot(2, slotSize, cut), true},
		{"length 2^31", slot(2, 1<<31, cut), true},
		{"length 2^32 - 1", slot(2, math.MaxUint32, cut), true},
		{"key name is no text", table(wrapTable(1, "\xff", 4, 1)), true},
		{"year 9999", table(wrapTable(1, "models", 4, 253402300799)), false},
		{"year 10000", table(wrapTable(1, "models", 4, 253402300800)), true},
		{"time below zero", table(wrapTable(1, "models", 4, math.MaxUint64)), true},
	} {
		for n, b := range [][]byte{header(immutable(1, "", 0), c.slot, good), header(immutable(1, "", 0), good, c.slot)} {
			h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if h.Torn[n] != c.torn || h.Torn[1-n] {
				t.Errorf("%s in slot %d: torn %v", c.name, n, h.Torn)
			}
			if want := map[bool]uint64{true: 1, false: 2}[c.torn]; h.Generation != want {
				t.Errorf("%s in slot %d: generation %d", c.name, n, h.Generation)
			}
		}
	}
}

// TestHeaderLengths: a length in the prelude is refused before anything of that size is made.
func TestHeaderLengths(t *testing.T) {
	good := slot(1, 4, nil)
	b := header(immutable(1, "", 0), good, good)
	for _, n := range []uint32{16<<10 + 1, 1 << 31, math.MaxUint32} {
		binary.BigEndian.PutUint32(b[13:], n)
		allocs := testing.AllocsPerRun(1, func() {
			_, err := envelope.ReadHeader(bytes.NewReader(b), math.MaxInt64)
			wantCode(t, err, fault.MalformedFile)
			_, err = envelope.NewReader(t.Context(), bytes.NewReader(b), nil)
			wantCode(t, err, fault.MalformedFile)
		})
		if allocs > 20 {
			t.Errorf("length %d: %v allocations", n, allocs)
		}
	}
}

// TestWrapIsBound: a wrap opens only as it was made, in its file. The associated data is made by hand, as spec/file.md says.
func TestWrapIsBound(t *testing.T) {
	r := newRing(t, 1)
	raw := immutable(1, "a", 0)
	copy(raw[1:], "0123456789abcdef")
	dek := secret.Random(32)
	made, err := version{r, 1}.WrapDEK(t.Context(), dek, raw)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	data := append(field(nil, "rotor/wrap/1"), 1)
	data = binary.BigEndian.AppendUint32(field(data, "models"), 1)
	data = binary.BigEndian.AppendUint64(field(data, "XAES-256-GCM"), uint64(protected.Unix()))
	data = field(field(field(data, ""), "0123456789abcdef"), string(sum[:]))
	got, err := r[1].Open(nil, made.Blob[:24], made.Blob[24:], data)
	if err != nil || !bytes.Equal(got, dek.Reveal()) {
		t.Errorf("another associated data: %v", err)
	}
	other := slices.Clone(raw)
	other[1] ^= 1
	for name, change := range map[string]func(*envelope.Wrap, *[]byte){
		"type":           func(w *envelope.Wrap, _ *[]byte) { w.Type = envelope.WrapKeyFile },
		"key":            func(w *envelope.Wrap, _ *[]byte) { w.KeyID = "model" },
		"version":        func(w *envelope.Wrap, _ *[]byte) { w.Version++ },
		"algorithm":      func(w *envelope.Wrap, _ *[]byte) { w.Algorithm = "" },
		"time":           func(w *envelope.Wrap, _ *[]byte) { w.ProtectTime = w.ProtectTime.Add(1e9) },
		"blob":           func(w *envelope.Wrap, _ *[]byte) { w.Blob = append(slices.Clone(w.Blob), 0) },
		"no blob":        func(w *envelope.Wrap, _ *[]byte) { w.Blob = nil },
		"file":           func(_ *envelope.Wrap, raw *[]byte) { *raw = other },
		"immutable part": func(_ *envelope.Wrap, raw *[]byte) { *raw = immutable(1, "b", 0) },
	} {
		w, in := made, raw
		change(&w, &in)
		if _, err := envelope.OpenDEK(r[1], w, in); fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("another %s: %v", name, err)
		}
	}
	_, err = envelope.SealDEK(r[1], wrapOf(1), raw, secret.Random(31))
	wantCode(t, err, fault.Invalid)
	_, err = envelope.SealDEK(r[1], wrapOf(1), raw[1:], dek)
	wantCode(t, err, fault.MalformedFile)
}
