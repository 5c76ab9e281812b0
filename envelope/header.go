package envelope

import (
	"bytes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Layout of a file, in bytes (spec/file.md): prelude, immutable part, two slots, payload.
const (
	magic        = "rotorfile\x00v1\n"
	preludeSize  = len(magic) + 4 + 32 // magic, length and SHA-256 of the immutable part
	slotSize     = 12 << 10
	slotHeader   = 4 + 8 + 4 // CRC-32C, generation, length
	maxImmutable = 16 << 10
	maxWraps     = 64
	maxBlob      = 4 << 10
	maxTime      = 253402300799 // the end of the year 9999, the last that RFC 3339 can write
	maxContext   = 64           // entries of the encryption context
	suiteFile    = byte(1)      // Cobblestone-256: chunked AES-256-GCM with HKDF-SHA-512
	suiteFLOE    = byte(2)      // FLOE: AES-256-GCM with random nonces, HKDF-SHA-384
	fileIDSize   = 16
	dekSize      = 32
)

// WrapType says what a data key is wrapped with. The others of the specification have numbers reserved.
type WrapType uint8

// The wrap types that are built.
const (
	WrapKMS     WrapType = 1 // a version of a wrap key in the KMS
	WrapKeyFile WrapType = 2 // a key file of the caller's
)

// Wrap is a data key under one key.
type Wrap struct {
	Type        WrapType
	KeyID       string
	Version     uint32
	Algorithm   suite.Algorithm
	ProtectTime time.Time // seconds; when the data was protected, kept by a rewrap
	Blob        []byte    // nonce (24 bytes, or as the algorithm has it), ciphertext 32, tag 16
}

// Immutable is the part of a header that never changes; wraps and payload are bound to its hash.
type Immutable struct {
	FileID      [fileIDSize]byte
	Suite       byte
	ContentType string
	Context     map[string]string // the encryption context: readable by all, bound to the data
}

// encode is deterministic: fields in order, the context sorted by key.
func (m Immutable) encode() []byte {
	b := append([]byte{m.Suite}, m.FileID[:]...)
	b = appendField(b, []byte(m.ContentType))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Context)))
	for _, k := range slices.Sorted(maps.Keys(m.Context)) {
		b = appendField(appendField(b, []byte(k)), []byte(m.Context[k]))
	}
	return b
}

// ParseImmutable reads an immutable part strictly. fault.MalformedFile.
func ParseImmutable(b []byte) (Immutable, error) {
	m, err := parseImmutable(b)
	if err != nil {
		return m, fault.Wrap(fault.MalformedFile, "header", err)
	}
	return m, nil
}

func parseImmutable(b []byte) (m Immutable, err error) {
	if len(b) > maxImmutable || len(b) < 1+fileIDSize {
		return m, errors.New("immutable part has a wrong length")
	}
	r := reader{b: b[1+fileIDSize:]}
	m.Suite = b[0]
	copy(m.FileID[:], b[1:])
	m.ContentType = string(r.field())
	n := r.number()
	if n > maxContext {
		return m, errors.New("encryption context is too large")
	}
	if n > 0 {
		m.Context = make(map[string]string, n)
	}
	for range n {
		k, v := r.field(), r.field()
		m.Context[string(k)] = string(v)
	}
	if r.bad || len(r.b) > 0 || !bytes.Equal(m.encode(), b) {
		return m, errors.New("immutable part is not canonical")
	}
	if !m.text() {
		return m, errors.New("content type and encryption context are not UTF-8")
	}
	if m.Suite != suiteFile && m.Suite != suiteFLOE {
		return m, fmt.Errorf("suite %d is not known", m.Suite)
	}
	return m, nil
}

// text says whether all that people and policy read is UTF-8: bytes that are not would look alike in an audit entry.
func (m Immutable) text() bool {
	for k, v := range m.Context {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return false
		}
	}
	return utf8.ValidString(m.ContentType)
}

// reader reads length-prefixed fields; after the first error everything is empty.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint32 {
	if len(r.b) < 4 {
		r.bad, r.b = true, nil
		return 0
	}
	n := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return n
}

func (r *reader) field() []byte {
	n := r.number()
	if uint64(n) > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	f := r.b[:n]
	r.b = r.b[n:]
	return f
}

// WrapAAD is what a wrap is bound to: all of it but the blob, the file and its immutable part.
func WrapAAD(w Wrap, fileID [16]byte, immutableHash [32]byte) []byte {
	b := appendField(nil, []byte("rotor/wrap/1"))
	b = append(b, encodeWrap(w, nil)...)
	b = appendField(b, fileID[:])
	return appendField(b, immutableHash[:])
}

func encodeWrap(w Wrap, blob []byte) []byte {
	b := []byte{byte(w.Type)}
	b = appendField(b, []byte(w.KeyID))
	b = binary.BigEndian.AppendUint32(b, w.Version)
	b = appendField(b, []byte(w.Algorithm))
	b = binary.BigEndian.AppendUint64(b, uint64(w.ProtectTime.Unix()))
	return appendField(b, blob)
}

// SealDEK wraps a data key; w carries everything but the blob.
func SealDEK(aead cipher.AEAD, w Wrap, immutable []byte, dek Secret) (Wrap, error) {
	m, err := ParseImmutable(immutable)
	if err != nil {
		return w, err
	}
	if dek.Len() != dekSize {
		return w, fault.New(fault.Invalid, "data key").WithHint("it has %d bytes", dekSize)
	}
	w.Blob = suite.Seal(aead, nil, dek.Reveal(), WrapAAD(w, m.FileID, sha256.Sum256(immutable)))
	return w, nil
}

// OpenDEK opens what SealDEK made. fault.DecryptFailed.
func OpenDEK(aead cipher.AEAD, w Wrap, immutable []byte) (Secret, error) {
	m, err := ParseImmutable(immutable)
	if err != nil {
		return Secret{}, err
	}
	n := aead.NonceSize()
	if len(w.Blob) != n+dekSize+aead.Overhead() {
		return Secret{}, fault.New(fault.DecryptFailed, "data key")
	}
	dek, err := suite.Open(aead, nil, w.Blob, WrapAAD(w, m.FileID, sha256.Sum256(immutable)))
	if err != nil {
		return Secret{}, fault.New(fault.DecryptFailed, "data key")
	}
	return secret.Take(dek), nil
}

// Header is a parsed header.
type Header struct {
	Immutable
	Raw        []byte    // the immutable part as it stands in the file
	Wraps      []Wrap    // of the newest valid slot
	Generation uint64    // of that slot
	Slots      [2][]Wrap // both; nil: torn
	Torn       [2]bool
	newest     int
	payload    int64 // where the payload begins
}

// PayloadOffset is where the payload begins, in bytes.
func (h Header) PayloadOffset() int64 { return h.payload }

// encodeSlot makes a slot of fixed size: CRC-32C of the rest, generation, length, count of wraps, wraps, zeros.
func encodeSlot(generation uint64, wraps []Wrap) ([]byte, error) {
	if len(wraps) == 0 || len(wraps) > maxWraps {
		return nil, fault.New(fault.Invalid, "wrap table").WithHint("1 to %d wraps", maxWraps)
	}
	body := binary.BigEndian.AppendUint32(nil, uint32(len(wraps)))
	for _, w := range wraps {
		body = append(body, encodeWrap(w, w.Blob)...)
	}
	if len(body) > slotSize-slotHeader {
		return nil, fault.New(fault.TooLarge, "wrap table")
	}
	b := make([]byte, slotSize)
	binary.BigEndian.PutUint64(b[4:], generation)
	binary.BigEndian.PutUint32(b[12:], uint32(len(body)))
	copy(b[slotHeader:], body)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	if _, _, err := parseSlot(b); err != nil { // what cannot be read again is never written
		return nil, fault.Wrap(fault.Invalid, "wrap table", err)
	}
	return b, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func parseSlot(b []byte) (generation uint64, wraps []Wrap, err error) {
	if len(b) != slotSize || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return 0, nil, errors.New("slot is torn")
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n > slotSize-slotHeader {
		return 0, nil, errors.New("slot has a wrong length")
	}
	if len(bytes.Trim(b[slotHeader+int(n):], "\x00")) > 0 {
		return 0, nil, errors.New("slot is not padded with zeros")
	}
	r := reader{b: b[slotHeader : slotHeader+int(n)]}
	count := r.number()
	if count == 0 || count > maxWraps {
		return 0, nil, errors.New("slot has a wrong number of wraps")
	}
	for range count {
		w, err := r.wrap()
		if err != nil {
			return 0, nil, err
		}
		wraps = append(wraps, w)
	}
	if r.bad || len(r.b) > 0 {
		return 0, nil, errors.New("slot is malformed")
	}
	return binary.BigEndian.Uint64(b[4:]), wraps, nil
}

func (r *reader) wrap() (Wrap, error) {
	if len(r.b) < 1 {
		return Wrap{}, errors.New("wrap is cut off")
	}
	w := Wrap{Type: WrapType(r.b[0])}
	r.b = r.b[1:]
	w.KeyID = string(r.field())
	w.Version = r.number()
	w.Algorithm = suite.Algorithm(r.field())
	protected := uint64(r.number())<<32 | uint64(r.number())
	w.ProtectTime = time.Unix(int64(protected), 0).UTC()
	blob := r.field()
	w.Blob = bytes.Clone(blob[:min(len(blob), maxBlob)])
	if r.bad || len(blob) > maxBlob || protected > maxTime || !utf8.ValidString(w.KeyID) || !utf8.ValidString(string(w.Algorithm)) {
		return Wrap{}, errors.New("wrap is malformed")
	}
	return w, nil
}

// ReadHeader reads a file's header: at most 16 KiB + two slots. fault.MalformedFile, TruncatedFile.
func ReadHeader(r io.ReaderAt, size int64) (Header, error) {
	prelude := make([]byte, preludeSize)
	if err := readAt(r, prelude, 0, size); err != nil {
		return Header{}, err
	}
	if string(prelude[:len(magic)]) != magic {
		return Header{}, fault.New(fault.MalformedFile, "file")
	}
	n := int64(binary.BigEndian.Uint32(prelude[len(magic):]))
	if n > maxImmutable {
		return Header{}, fault.New(fault.MalformedFile, "header")
	}
	raw := make([]byte, n)
	if err := readAt(r, raw, int64(preludeSize), size); err != nil {
		return Header{}, err
	}
	if sum := sha256.Sum256(raw); !bytes.Equal(sum[:], prelude[len(magic)+4:]) {
		return Header{}, fault.New(fault.MalformedFile, "header")
	}
	slots := make([]byte, 2*slotSize)
	if err := readAt(r, slots, int64(preludeSize)+n, size); err != nil {
		return Header{}, err
	}
	return parseHeader(raw, slots)
}

func parseHeader(raw, slots []byte) (Header, error) {
	m, err := ParseImmutable(raw)
	if err != nil {
		return Header{}, err
	}
	h := Header{Immutable: m, Raw: raw, newest: -1, payload: int64(preludeSize + len(raw) + 2*slotSize)}
	for i := range 2 {
		generation, wraps, err := parseSlot(slots[i*slotSize : (i+1)*slotSize])
		if err != nil {
			h.Torn[i] = true
			continue
		}
		h.Slots[i] = wraps
		if h.newest < 0 || generation > h.Generation {
			h.newest, h.Generation, h.Wraps = i, generation, wraps
		}
	}
	if h.newest < 0 {
		return h, fault.New(fault.MalformedFile, "header").WithHint("both slots of the wrap table are damaged")
	}
	return h, nil
}

func readAt(r io.ReaderAt, b []byte, at, size int64) error {
	if at+int64(len(b)) > size {
		return fault.New(fault.TruncatedFile, "file")
	}
	if _, err := r.ReadAt(b, at); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	return nil
}

func encodeHeader(m Immutable, wraps []Wrap) ([]byte, error) {
	raw := m.encode()
	if len(raw) > maxImmutable || len(m.Context) > maxContext {
		return nil, fault.New(fault.TooLarge, "encryption context")
	}
	slot, err := encodeSlot(1, wraps)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	b := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(raw)))
	b = append(append(append(b, sum[:]...), raw...), slot...)
	return append(b, slot...), nil // both slots hold the first table
}
