package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/rotorkms/rotor/internal/fault"
)

// Sizes of a payload in bytes (C2SP chunked-encryption v1 with SHA-512 and AEAD_AES_256_GCM, known as Cobblestone-256).
const (
	chunkSize    = 16 << 10
	tagSize      = 16
	saltSize     = 24
	commitSize   = 32
	payloadFront = saltSize + commitSize
	maxChunks    = int64(1) << 38
)

// chunks encrypts and decrypts the chunks of one payload; safe for concurrent use.
type chunks struct {
	aead   cipher.AEAD
	base   [12]byte
	commit [commitSize]byte
}

// deriveChunks derives key, base nonce and commitment of a part from the data key and its salt.
func deriveChunks(dek Secret, salt []byte, immutable []byte, part uint32) (*chunks, error) {
	sum := sha256.Sum256(immutable)
	info := "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + string(salt) + string(sum[:]) + string(binary.BigEndian.AppendUint32(nil, part))
	out, err := hkdf.Expand(sha512.New, dek.Reveal(), info, 32+12+commitSize)
	if err != nil {
		return nil, fmt.Errorf("derive payload key: %w", err)
	}
	defer clear(out[:32])
	block, err := aes.NewCipher(out[:32])
	if err != nil {
		return nil, fmt.Errorf("derive payload key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("derive payload key: %w", err)
	}
	c := &chunks{aead: aead}
	copy(c.base[:], out[32:44])
	copy(c.commit[:], out[44:])
	return c, nil
}

func (c *chunks) committed(b []byte) bool {
	return subtle.ConstantTimeCompare(b, c.commit[:]) == 1
}

// nonce of chunk n: the base XOR n as a big-endian integer.
func (c *chunks) nonce(n int64) [12]byte {
	nonce := c.base
	tail := binary.BigEndian.Uint64(nonce[4:]) ^ uint64(n)
	binary.BigEndian.PutUint64(nonce[4:], tail)
	return nonce
}

func (c *chunks) seal(dst []byte, n int64, plain []byte) []byte {
	nonce := c.nonce(n)
	return c.aead.Seal(dst, nonce[:], plain, nil)
}

// open appends the plaintext of chunk n to dst. fault.DecryptFailed.
func (c *chunks) open(dst []byte, n int64, sealed []byte) ([]byte, error) {
	nonce := c.nonce(n)
	out, err := c.aead.Open(dst, nonce[:], sealed, nil)
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, fmt.Sprintf("chunk %d of the file", n))
	}
	return out, nil
}

// plainSize is the length of the plaintext of a payload, front included in size. fault.TruncatedFile for a length that no payload has.
func plainSize(size int64) (int64, error) {
	body := size - payloadFront
	full, rest := body/(chunkSize+tagSize), body%(chunkSize+tagSize)
	if body < tagSize || rest < tagSize || full >= maxChunks {
		return 0, fault.New(fault.TruncatedFile, "file")
	}
	return full*chunkSize + rest - tagSize, nil
}

// chunkAt is where chunk n begins within the payload.
func chunkAt(n int64) int64 { return payloadFront + n*(chunkSize+tagSize) }

// payloadWriter encrypts what is written to it; Close writes the last, short chunk.
type payloadWriter struct {
	w      io.Writer
	chunks *chunks
	plain  []byte
	sealed []byte
	n      int64
	closed bool
	err    error
}

// errClosed is what writing after Close gives: another chunk after the short one would make the payload unreadable.
var errClosed = errors.New("write to a payload that is closed")

func newPayloadWriter(w io.Writer, c *chunks, salt []byte) (*payloadWriter, error) {
	p := &payloadWriter{w: w, chunks: c, plain: make([]byte, 0, chunkSize), sealed: make([]byte, 0, chunkSize+tagSize)}
	_, err := w.Write(append(append(make([]byte, 0, payloadFront), salt...), c.commit[:]...))
	return p, err
}

// Write implements io.Writer.
func (p *payloadWriter) Write(b []byte) (int, error) {
	if p.closed {
		return 0, errClosed
	}
	done := 0
	for len(b) > 0 && p.err == nil {
		n := min(len(b), chunkSize-len(p.plain))
		p.plain = append(p.plain, b[:n]...)
		b, done = b[n:], done+n
		if len(p.plain) == chunkSize {
			p.flush()
		}
	}
	return done, p.err
}

func (p *payloadWriter) flush() {
	if p.n >= maxChunks {
		p.err = fault.New(fault.TooLarge, "file")
		return
	}
	p.sealed = p.chunks.seal(p.sealed[:0], p.n, p.plain)
	p.n, p.plain = p.n+1, p.plain[:0]
	_, p.err = p.w.Write(p.sealed)
}

// Close implements io.Closer; it does not close the destination. Closing again repeats the outcome.
func (p *payloadWriter) Close() error {
	if p.closed {
		return p.err
	}
	p.closed = true
	if p.err == nil {
		p.flush()
	}
	clear(p.plain[:cap(p.plain)])
	return p.err
}
