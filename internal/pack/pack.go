// Package pack makes small what is kept ten thousand times over and alike, the entries of the audit log and the versions of keys: DEFLATE
// (RFC 1951) with a preset dictionary. What is packed stays what it was: whoever reads it checks the bytes that come out.
package pack

import (
	"bytes"
	"compress/flate"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"sync"
)

// mark is the first byte of what is packed with this dictionary. Everything that rotor keeps as it is is JSON, which never begins with it.
const mark = 1

// dictionary is the words of records, the most usual ones last. It is part of the format of the store: another one needs another mark.
//
//go:embed dictionary.txt
var dictionary []byte

// errDamaged: bytes that begin as if they were packed, and are not.
var errDamaged = errors.New("packed bytes are damaged")

// A writer has 800 KiB of tables and takes some 50 µs for a record, so all who pack share one.
var (
	mu     sync.Mutex
	writer *flate.Writer
)

// reader is what flate.NewReader returns.
type reader interface {
	io.Reader
	flate.Resetter
}

// readers have 40 KiB each.
var readers = sync.Pool{New: func() any { return flate.NewReader(nil) }}

// Pack returns b packed, or b itself where that gains nothing. Unpack returns what it was in either case.
func Pack(b []byte) []byte {
	out := bytes.NewBuffer(make([]byte, 0, len(b)/2+64))
	out.WriteByte(mark)
	mu.Lock()
	defer mu.Unlock()
	if writer == nil {
		writer, _ = flate.NewWriterDict(nil, flate.DefaultCompression, dictionary) // the level is one that there is
	}
	writer.Reset(out) // with the dictionary
	writer.Write(b)   //nolint:errcheck // a buffer takes everything
	writer.Close()    //nolint:errcheck // the same
	if out.Len() >= len(b) && !packed(b) {
		return b
	}
	return out.Bytes()
}

func packed(b []byte) bool { return len(b) > 0 && b[0] == mark }

// Unpack returns what Pack was given; what is not packed is returned as it is. Nothing may stand behind what is packed, and what comes out has
// at most limit bytes.
func Unpack(b []byte, limit int) ([]byte, error) {
	if !packed(b) {
		return b, nil
	}
	in := bytes.NewReader(b[1:])
	r, _ := readers.Get().(reader)
	defer readers.Put(r)
	if err := r.Reset(in, dictionary); err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil || in.Len() > 0 {
		return nil, errDamaged
	}
	if len(out) > limit {
		return nil, fmt.Errorf("packed bytes become more than %d", limit)
	}
	return out, nil
}
