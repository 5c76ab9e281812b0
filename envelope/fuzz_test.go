package envelope_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/rotorkms/rotor/envelope"
)

// FuzzParseImmutable: what is taken is canonical, and the header that a writer makes of it is the same bytes.
func FuzzParseImmutable(f *testing.F) {
	f.Add(immutable(1, "", 0))
	f.Add(immutable(1, "application/onnx", 2, "team", "vision", "tier", "gold"))
	f.Add(immutable(1, "x", 1, "a"))
	f.Add(immutable(2, "", 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := envelope.ParseImmutable(b)
		if err != nil {
			return
		}
		if len(m.Context) > 64 || len(b) > 16<<10 || m.Suite != 1 && m.Suite != 2 {
			t.Fatalf("%d bytes, %d entries, suite %d", len(b), len(m.Context), m.Suite)
		}
	})
}

// FuzzSlot: any body with a right checksum, beside a good slot.
func FuzzSlot(f *testing.F) {
	f.Add(uint64(2), uint32(83), wrapTable(1, "models", 4, 1))
	f.Add(uint64(1), uint32(4), []byte{255, 255, 255, 255})
	f.Add(uint64(1<<63), uint32(1<<31), []byte{})
	good := wrapTable(1, "models", 72, 1)
	raw := immutable(1, "", 0)
	f.Fuzz(func(t *testing.T, generation uint64, length uint32, body []byte) {
		b := header(raw, slot(generation, length, body[:min(len(body), slotSize-16)]), slot(1, uint32(len(good)), good))
		h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
		if err != nil || h.Torn[1] {
			t.Fatal(err, h.Torn)
		}
		if !h.Torn[0] && len(h.Slots[0]) == 0 || len(h.Slots[0]) > 64 {
			t.Fatalf("%d wraps", len(h.Slots[0]))
		}
	})
}

// FuzzHeader: any bytes as a header.
func FuzzHeader(f *testing.F) {
	good := wrapTable(1, "models", 72, 1)
	s := slot(1, uint32(len(good)), good)
	f.Add(header(immutable(1, "a", 0), s, s))
	f.Add([]byte("rotorfile\x00v1\n\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := envelope.ReadHeader(bytes.NewReader(b), int64(len(b)))
		if err == nil && (len(h.Wraps) == 0 || h.PayloadOffset() > int64(len(b))) {
			t.Fatalf("%+v", h)
		}
	})
}

// FuzzOpenFile edits an encrypted file: it opens with exactly its plaintext or not at all, in both ways of reading.
func FuzzOpenFile(f *testing.F) {
	r := newRing(f, 1)
	plain := plaintext(chunkSize + 50)
	good := encrypt(f, r, plain)
	payload := payloadAt(f, good)
	f.Add(uint32(0), byte(1), uint32(len(good)), []byte{})
	f.Add(uint32(payload-slotSize), byte(0x80), uint32(len(good)), []byte{})
	f.Add(uint32(payload+30), byte(1), uint32(payload+payloadFront+sealedChunk), []byte{0})
	f.Add(uint32(0), byte(0), uint32(payload+payloadFront), []byte("appended"))
	f.Fuzz(func(t *testing.T, at uint32, flip byte, length uint32, tail []byte) {
		b := bytes.Clone(good)
		b[at%uint32(len(b))] ^= flip
		b = append(b[:min(int(length), len(b))], tail...)
		if got, err := readAll(t, r, b); err == nil && !bytes.Equal(got, plain) {
			t.Fatal("other bytes")
		}
		s, err := envelope.NewReader(t.Context(), bytes.NewReader(b), r)
		if err != nil {
			return
		}
		if got, err := io.ReadAll(s); !bytes.HasPrefix(plain, got) || err == nil && len(got) != len(plain) {
			t.Fatal("other bytes in the stream")
		}
	})
}

// FuzzDecrypt: any bytes as a message open to nothing but the one plaintext that was ever encrypted, with its parts. (Each process of a
// fuzzing run makes a message of its own, so the bytes are not compared.)
func FuzzDecrypt(f *testing.F) {
	k := messageKey(f, 1, 9, "ns", "key")
	good := seal(f, k, "hello", part("id", "7"))
	f.Add(good, "id", []byte("7"))
	f.Add(good[:44], "id", []byte("7"))
	f.Add([]byte{1, 0, 0, 0, 9}, "", []byte{})
	f.Fuzz(func(t *testing.T, m []byte, label string, value []byte) {
		got, err := k.Decrypt(nil, m, envelope.Part{Label: label, Value: value})
		if err == nil && (label != "id" || string(value) != "7" || string(got) != "hello") {
			t.Fatalf("%q opened from % x", got, m)
		}
	})
}

// FuzzDecodeText: each message has one text.
func FuzzDecodeText(f *testing.F) {
	for _, s := range []string{"", "rk1.", "rk1.AAAA", "rk1.AA\nAA", "rk1.AAB", "rk1.+/==", "rk2.AAAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := envelope.DecodeText(s)
		if err == nil && envelope.EncodeText(b) != s {
			t.Fatalf("%q is % x, whose text is %q", s, b, envelope.EncodeText(b))
		}
	})
}
