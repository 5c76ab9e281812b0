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
	layout layout
	aead   cipher.AEAD
	base   [12]byte
	commit [commitSize]byte
	floe   *floe // of suite FLOE, and nothing else then
}

// layout is where the chunks of a suite lie, in bytes.
type layout struct {
	salt     int64 // at the beginning of the front, or behind FLOE's parameters
	front    int64 // before the first chunk
	overhead int64 // of a chunk
}

// layoutOf is the layout of a file's suite.
func layoutOf(fileSuite byte) layout {
	if fileSuite == suiteFLOE {
		return layout{salt: floeIV, front: floeFront, overhead: floeOverhead}
	}
	return layout{salt: saltSize, front: payloadFront, overhead: tagSize}
}

// chunkAt is where chunk n begins within the payload.
func (l layout) chunkAt(n int64) int64 { return l.front + n*(chunkSize+l.overhead) }

// payloadContext binds a part to its file: SHA-256 of the immutable part, and the part's number.
func payloadContext(immutable []byte, part uint32) []byte {
	sum := sha256.Sum256(immutable)
	return binary.BigEndian.AppendUint32(sum[:], part)
}

// openChunks reads the front of a payload. fault.DecryptFailed when it is not of this data key and file.
func openChunks(dek Secret, front []byte, h Header) (*chunks, error) {
	l := layoutOf(h.Suite)
	salt := front[:l.salt]
	if h.Suite == suiteFLOE {
		salt = front[floeParams : floeParams+floeIV]
	}
	c, err := deriveChunks(h.Suite, dek, salt, h.Raw, 0)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(front, c.head(salt)) != 1 {
		return nil, fault.New(fault.DecryptFailed, "file")
	}
	return c, nil
}

// head is the front of the payload: salt and commitment, or FLOE's header.
func (c *chunks) head(salt []byte) []byte {
	if c.floe != nil {
		return c.floe.front[:]
	}
	return append(append(make([]byte, 0, payloadFront), salt...), c.commit[:]...)
}

// deriveChunks derives the keys of a part from the data key and its salt.
func deriveChunks(fileSuite byte, dek Secret, salt []byte, immutable []byte, part uint32) (*chunks, error) {
	context := payloadContext(immutable, part)
	if fileSuite == suiteFLOE {
		f, err := newFLOE(dek, salt, context)
		return &chunks{layout: layoutOf(fileSuite), floe: f}, err
	}
	info := "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + string(salt) + string(context)
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
		return nil, fault.New(fault.AlgorithmForbidden, "suite of the file").WithHint("its nonces are not made at random, which FIPS mode does not allow; files that are made in FIPS mode use FLOE")
	}
	c := &chunks{layout: layoutOf(fileSuite), aead: aead}
	copy(c.base[:], out[32:44])
	copy(c.commit[:], out[44:])
	return c, nil
}

// nonce of chunk n: the base XOR n as a big-endian integer.
func (c *chunks) nonce(n int64) [12]byte {
	nonce := c.base
	tail := binary.BigEndian.Uint64(nonce[4:]) ^ uint64(n)
	binary.BigEndian.PutUint64(nonce[4:], tail)
	return nonce
}

// seal appends chunk n to dst. In Cobblestone the last chunk is known by its length, in FLOE it says so.
func (c *chunks) seal(dst []byte, n int64, plain []byte, last bool) ([]byte, error) {
	if c.floe != nil {
		return c.floe.seal(dst, n, plain, last)
	}
	nonce := c.nonce(n)
	return c.aead.Seal(dst, nonce[:], plain, nil), nil
}

// open appends the plaintext of chunk n to dst, which is sealed[:0] or apart from it. The last one is shorter than all others.
// fault.DecryptFailed.
func (c *chunks) open(dst []byte, n int64, sealed []byte) ([]byte, error) {
	if c.floe != nil {
		return c.floe.open(dst, n, sealed, len(sealed) < floeSegment)
	}
	nonce := c.nonce(n)
	out, err := c.aead.Open(dst, nonce[:], sealed, nil)
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, fmt.Sprintf("chunk %d of the file", n))
	}
	return out, nil
}

// plainSize is the length of the plaintext of a payload, front included in size. fault.TruncatedFile for a length that no payload has.
func (l layout) plainSize(size int64) (int64, error) {
	body := size - l.front
	full, rest := body/(chunkSize+l.overhead), body%(chunkSize+l.overhead)
	if body < l.overhead || rest < l.overhead || full >= maxChunks {
		return 0, fault.New(fault.TruncatedFile, "file")
	}
	return full*chunkSize + rest - l.overhead, nil
}

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
	p := &payloadWriter{w: w, chunks: c, plain: make([]byte, 0, chunkSize), sealed: make([]byte, 0, chunkSize+c.layout.overhead)}
	_, err := w.Write(c.head(salt))
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
			p.flush(false)
		}
	}
	return done, p.err
}

func (p *payloadWriter) flush(last bool) {
	if p.n >= maxChunks {
		p.err = fault.New(fault.TooLarge, "file")
		return
	}
	if p.sealed, p.err = p.chunks.seal(p.sealed[:0], p.n, p.plain, last); p.err != nil {
		return
	}
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
		p.flush(true)
	}
	clear(p.plain[:cap(p.plain)])
	return p.err
}
