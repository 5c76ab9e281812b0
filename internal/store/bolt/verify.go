package bolt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"github.com/rotorkms/rotor/internal/store"
)

// bbolt trusts its pages: a damaged one sends it outside the memory map or round in circles, which no recover catches in the
// goroutine that it starts at open. So verify reads the file first, as bytes from outside: bbolt's format version 2 (its package
// internal/common has the structures), and rotor's records in it. Both meta pages must be good and be neighbours. bbolt would
// fall back to the older one, and with it drop a commit that may have been acknowledged; a meta page is written within one sector,
// so a crash does not tear it.

// Numbers of bbolt's format. All are in the byte order of the machine.
const (
	metaMagic      = 0xED0CDAED
	metaVersion    = 2
	flagBranch     = 1
	flagLeaf       = 2
	flagMeta       = 4
	noFreelist     = ^uint64(0)
	pageHeader     = 16 // id 8, flags 2, count 2, overflow 4
	elementBytes   = 16
	bucketHeader   = 16 // root page 8, sequence 8
	leafIsBucket   = 1
	maxDepth       = 64
	metaBytes      = 64
	metaChecksumAt = 56
)

// walker reads a file's pages.
type walker struct {
	f    io.ReaderAt
	page uint64 // bytes of a page
	high uint64 // number of pages that are in use or were
	seen []bool // pages reached

	// What the buckets held.
	meta               map[string]store.Rev
	sum                uint64
	logFirst, logCount store.Rev
}

// verify reads the whole file. store.ErrCorrupt names what it found.
func verify(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return verifyBytes(f, uint64(info.Size()))
}

func verifyBytes(f io.ReaderAt, size uint64) error {
	w := &walker{f: f, meta: map[string]store.Rev{}}
	root, err := w.metas(size)
	if err != nil {
		return err
	}
	if w.high > size/w.page {
		return damaged("the file is truncated")
	}
	w.seen = make([]bool, w.high)
	if err := w.tree(root, "", nil, nil, 0); err != nil {
		return err
	}
	return w.totals()
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{store.ErrCorrupt}, args...)...)
}

// metas checks both meta pages and returns the root page of the newer.
func (w *walker) metas(size uint64) (root uint64, err error) {
	var txid [2]uint64
	for i := range uint64(2) {
		b := make([]byte, pageHeader+metaBytes)
		if i == 1 {
			if w.page < 512 || w.page > 1<<16 || w.page&(w.page-1) != 0 {
				return 0, damaged("pages of %d bytes", w.page)
			}
		}
		if _, err := w.f.ReadAt(b, int64(i*w.page)); err != nil {
			return 0, damaged("meta page %d: %w", i, err)
		}
		flags, m := binary.NativeEndian.Uint16(b[8:]), b[pageHeader:]
		h := fnv.New64a()
		h.Write(m[:metaChecksumAt])
		switch {
		case h.Sum64() != binary.NativeEndian.Uint64(m[metaChecksumAt:]) || flags != flagMeta || binary.NativeEndian.Uint64(b) != i:
			return 0, damaged("meta page %d", i)
		case binary.NativeEndian.Uint32(m) != metaMagic || binary.NativeEndian.Uint32(m[4:]) != metaVersion:
			return 0, damaged("not a store")
		}
		page := uint64(binary.NativeEndian.Uint32(m[8:]))
		if i == 1 && page != w.page {
			return 0, damaged("meta pages differ")
		}
		w.page = page
		txid[i] = binary.NativeEndian.Uint64(m[48:])
		if i == 0 || txid[1] > txid[0] {
			root, w.high = binary.NativeEndian.Uint64(m[16:]), binary.NativeEndian.Uint64(m[40:])
			if binary.NativeEndian.Uint64(m[32:]) != noFreelist {
				return 0, damaged("meta page %d has a list of free pages", i)
			}
		}
	}
	if txid[0]+1 != txid[1] && txid[1]+1 != txid[0] {
		return 0, damaged("meta pages of transactions %d and %d", txid[0], txid[1])
	}
	return root, nil
}

// tree checks a page and all below. Its keys are >= low and, when high is not nil, < high. An empty bucket name is the root's.
func (w *walker) tree(id uint64, bucket string, low, high []byte, depth int) error {
	if id < 2 || id >= w.high || depth > maxDepth {
		return damaged("page %d is out of bounds", id)
	}
	head := make([]byte, pageHeader)
	if _, err := w.f.ReadAt(head, int64(id*w.page)); err != nil {
		return damaged("page %d: %w", id, err)
	}
	overflow := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || overflow >= w.high-id {
		return damaged("page %d", id)
	}
	for i := id; i <= id+overflow; i++ {
		if w.seen[i] {
			return damaged("page %d is used twice", i)
		}
		w.seen[i] = true
	}
	b := make([]byte, (overflow+1)*w.page)
	if _, err := w.f.ReadAt(b, int64(id*w.page)); err != nil {
		return damaged("page %d: %w", id, err)
	}
	return w.elements(id, b, bucket, low, high, depth)
}

// elements checks the elements of a page, which may be one that stands inline in a bucket's value.
func (w *walker) elements(id uint64, b []byte, bucket string, low, high []byte, depth int) error {
	if len(b) < pageHeader {
		return damaged("page %d is cut short", id)
	}
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	if flags != flagLeaf && flags != flagBranch || pageHeader+count*elementBytes > len(b) {
		return damaged("page %d", id)
	}
	if flags == flagBranch && count == 0 {
		return damaged("page %d is empty", id)
	}
	keys := make([][]byte, count)
	for i := range count {
		e := pageHeader + i*elementBytes
		pos, n := binary.NativeEndian.Uint32(b[e+4:]), binary.NativeEndian.Uint32(b[e+8:])
		if flags == flagBranch {
			pos, n = binary.NativeEndian.Uint32(b[e:]), binary.NativeEndian.Uint32(b[e+4:])
		}
		key, ok := cut(b, e, uint64(pos), uint64(n))
		if !ok || len(key) == 0 || i > 0 && bytes.Compare(keys[i-1], key) >= 0 || i == 0 && bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0 {
			return damaged("page %d, key %d", id, i)
		}
		keys[i] = key
	}
	for i, key := range keys {
		e := pageHeader + i*elementBytes
		var err error
		if flags == flagBranch {
			next := high
			if i+1 < count {
				next = keys[i+1]
			}
			err = w.tree(binary.NativeEndian.Uint64(b[e+8:]), bucket, key, next, depth+1)
		} else {
			pos := uint64(binary.NativeEndian.Uint32(b[e+4:])) + uint64(len(key))
			value, ok := cut(b, e, pos, uint64(binary.NativeEndian.Uint32(b[e+12:])))
			if !ok {
				return damaged("page %d, value %d", id, i)
			}
			err = w.leaf(id, bucket, binary.NativeEndian.Uint32(b[e:]), key, value, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cut returns n bytes at pos, which counts from the element at e.
func cut(b []byte, e int, pos, n uint64) ([]byte, bool) {
	from := uint64(e) + pos
	if from > uint64(len(b)) || n > uint64(len(b))-from {
		return nil, false
	}
	return b[from : from+n], true
}

// leaf checks one key and value of a bucket.
func (w *walker) leaf(id uint64, bucket string, flags uint32, key, value []byte, depth int) error {
	switch {
	case bucket == "" && flags == leafIsBucket && len(value) >= bucketHeader:
		root, name := binary.NativeEndian.Uint64(value), string(key)
		if name != string(bucketData) && name != string(bucketLog) && name != string(bucketMeta) {
			return damaged("bucket %q", name)
		}
		if root == 0 {
			return w.elements(id, value[bucketHeader:], name, nil, nil, maxDepth)
		}
		return w.tree(root, name, nil, nil, depth+1)
	case bucket == "" || flags != 0:
		return damaged("page %d, kind of %q", id, key)
	case bucket == string(bucketData):
		w.sum += share(key, value)
		_, err := decode(key, value)
		return err
	case bucket == string(bucketLog):
		rev := number(key)
		if w.logCount == 0 {
			w.logFirst = rev
		}
		if len(key) != 8 || rev != w.logFirst+w.logCount {
			return damaged("history has a gap at revision %d", w.logFirst+w.logCount)
		}
		w.logCount++
		_, err := parseEvents(value, rev, "")
		return err
	}
	if len(value) != 8 {
		return damaged("number %q", key)
	}
	w.meta[string(key)] = number(value)
	return nil
}

// totals compares what was found with what the meta bucket says.
func (w *walker) totals() error {
	rev, first := w.meta[string(keyRev)], w.meta[string(keyFirst)]
	switch {
	case len(w.meta) != 3:
		return damaged("%d numbers instead of 3", len(w.meta))
	case uint64(w.meta[string(keySum)]) != w.sum:
		return damaged("records are missing, or too many")
	case first > rev || w.logCount != rev-first || w.logCount > 0 && w.logFirst != first+1:
		return damaged("history of %d commits between revisions %d and %d", w.logCount, first, rev)
	}
	return nil
}
