package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
)

const (
	floeFront   = 10 + 32 + 32
	floeSegment = chunkSize + 32
)

func encryptFLOE(t testing.TB, r ring, plain []byte) []byte {
	t.Helper()
	o := r.options()
	o.FLOE = true
	var out bytes.Buffer
	w, err := envelope.NewWriter(t.Context(), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// expand is HKDF-Expand with SHA-384 (RFC 5869, 2.3), here built of HMAC.
func expand(prk, info []byte, n int) (out []byte) {
	var last []byte
	for i := byte(1); len(out) < n; i++ {
		h := hmac.New(sha512.New384, prk)
		h.Write(append(append(append([]byte{}, last...), info...), i))
		last = h.Sum(nil)
		out = append(out, last...)
	}
	return out[:n]
}

// openFLOE is C2SP FLOE's decryption, written down here from the specification: of other code than the writer's but for AES-GCM itself.
func openFLOE(t *testing.T, key, aad, b []byte) (plain []byte) {
	t.Helper()
	params := []byte{0, 0, 0, 0, 0x40, 0x20, 0, 0, 0, 32}
	if !bytes.Equal(b[:10], params) {
		t.Fatalf("parameters %x", b[:10])
	}
	iv := b[10:42]
	kdf := func(key []byte, purpose string, n int) []byte {
		return expand(key, bytes.Join([][]byte{params, iv, []byte(purpose), aad}, nil), n)
	}
	if !bytes.Equal(kdf(key, "HEADER_TAG:", 32), b[42:74]) {
		t.Fatal("header tag")
	}
	message := kdf(key, "MESSAGE_KEY:", 48)
	b = b[74:]
	for n := uint64(0); ; n++ {
		segment, tail := b, byte(1)
		if binary.BigEndian.Uint32(b) == 0xFFFFFFFF {
			segment, tail = b[:floeSegment], 0
		} else if int(binary.BigEndian.Uint32(b)) != len(b) {
			t.Fatal("length of the last segment")
		}
		block, err := aes.NewCipher(kdf(message, "DEK:"+string(binary.BigEndian.AppendUint64(nil, n&^(1<<20-1))), 32))
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		if plain, err = gcm.Open(plain, segment[4:16], segment[16:], append(binary.BigEndian.AppendUint64(nil, n), tail)); err != nil {
			t.Fatalf("segment %d: %v", n, err)
		}
		if tail == 1 {
			return plain
		}
		b = b[floeSegment:]
	}
}

// TestFLOE: files of every size are read back, whole, in parts and as a stream, and by code that follows the specification.
func TestFLOE(t *testing.T) {
	r := newRing(t, 1)
	for _, size := range sizes {
		plain := plaintext(size)
		b := encryptFLOE(t, r, plain)
		at := payloadAt(t, b)
		if want := at + floeFront + size + 32*(size/chunkSize+1); len(b) != want {
			t.Errorf("%d bytes became %d, want %d", size, len(b), want)
		}
		if got, err := readAll(t, r, b); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %v", size, err)
		}
		s, err := envelope.NewReader(t.Context(), bytes.NewReader(b), r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("stream of %d bytes: %v", size, err)
		}
		f, err := open(t, r, b)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, min(size, 100))
		if _, err := f.ReadAt(got, int64(size-len(got))); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, plain[size-len(got):]) {
			t.Errorf("end of %d bytes: %v", size, err)
		}
		raw := f.Header().Raw
		dek, err := r.UnwrapDEK(t.Context(), f.Header().Wraps[0], raw)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(raw)
		if !bytes.Equal(openFLOE(t, dek.Reveal(), append(sum[:], 0, 0, 0, 0), b[at:]), plain) {
			t.Errorf("%d bytes: the specification reads something else", size)
		}
	}
}

// TestFLOEDamage: a changed byte of the payload, a cut, and segments in another order are found.
func TestFLOEDamage(t *testing.T) {
	r := newRing(t, 1)
	plain := plaintext(2*chunkSize + 40)
	b := encryptFLOE(t, r, plain)
	at := payloadAt(t, b)
	bad := func(what string, b []byte) {
		t.Helper()
		got, err := readAll(t, r, b)
		if code := fault.CodeOf(err); got != nil || code != fault.DecryptFailed && code != fault.TruncatedFile {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
		if s, err := envelope.NewReader(t.Context(), bytes.NewReader(b), r); err == nil {
			if _, err := io.ReadAll(s); err == nil {
				t.Errorf("%s: the stream is taken", what)
			}
		}
	}
	for i := at; i < len(b); i += 1 + (i-at)/200*7 {
		c := bytes.Clone(b)
		c[i] ^= 1
		bad("a byte changed", c)
	}
	first := at + floeFront
	for _, n := range []int{first, first + 31, first + floeSegment, first + 2*floeSegment, len(b) - 1} {
		bad("cut", b[:n])
	}
	swapped := bytes.Clone(b)
	copy(swapped[first:], b[first+floeSegment:first+2*floeSegment])
	copy(swapped[first+floeSegment:], b[first:first+floeSegment])
	bad("swapped", swapped)
	bad("a segment less", append(bytes.Clone(b[:first]), b[first+floeSegment:]...))
	other := encryptFLOE(t, r, plain)
	copy(other[payloadAt(t, other):], b[at:])
	bad("payload of another file", other)
}
