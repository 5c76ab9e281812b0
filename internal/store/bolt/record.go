package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"strings"

	"github.com/rotorkms/rotor/internal/store"
)

// bbolt guards its meta pages alone, so each record and each entry of the log carries a checksum, and the meta bucket the sum of
// all records, which shows the ones that vanished. These find accidents; whoever edits the file is found by the audit log.

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	ecma       = crc64.MakeTable(crc64.ECMA)
)

// headerBytes is the length of a record's header: revision 8, CRC-32C of revision, value and key 4. The value follows.
const headerBytes = 12

func encode(key []byte, rev store.Rev, value []byte) []byte {
	b := make([]byte, headerBytes, headerBytes+len(value))
	binary.BigEndian.PutUint64(b, uint64(rev))
	b = append(b, value...)
	binary.BigEndian.PutUint32(b[8:], checksum(key, b))
	return b
}

func checksum(key, b []byte) uint32 {
	sum := crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, b[headerBytes:])
	return crc32.Update(sum, castagnoli, key)
}

func decode(key, b []byte) (store.Record, error) {
	if len(b) < headerBytes || binary.BigEndian.Uint32(b[8:]) != checksum(key, b) {
		return store.Record{}, fmt.Errorf("%w: record %q", store.ErrCorrupt, key)
	}
	return store.Record{Key: string(key), Value: append([]byte{}, b[headerBytes:]...), Rev: store.Rev(binary.BigEndian.Uint64(b))}, nil
}

// share is what a record adds to the sum of all records.
func share(key, b []byte) uint64 {
	return crc64.Update(crc64.Checksum(b[:min(headerBytes, len(b))], ecma), ecma, key)
}

// The log's entry of a commit: CRC-32C of revision and events 4, events. An event: kind 1 (0 put, 1 delete), key length 2, key,
// value length 4, value.
const logHeader = 4

// newEvents begins an entry; sealEvents ends it. Between the two its first bytes hold the revision's checksum.
func newEvents(rev store.Rev) []byte {
	return binary.BigEndian.AppendUint32(nil, crc32.Checksum(numbered(rev), castagnoli))
}

func sealEvents(b []byte) []byte {
	binary.BigEndian.PutUint32(b, crc32.Update(binary.BigEndian.Uint32(b), castagnoli, b[logHeader:]))
	return b
}

func appendEvent(b []byte, key string, value []byte, deleted bool) []byte {
	kind := byte(0)
	if deleted {
		kind = 1
	}
	b = binary.BigEndian.AppendUint16(append(b, kind), uint16(len(key)))
	b = append(b, key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...)
}

// parseEvents returns the events under prefix. store.ErrCorrupt.
func parseEvents(b []byte, rev store.Rev, prefix string) ([]store.Event, error) {
	bad := fmt.Errorf("%w: history of revision %d", store.ErrCorrupt, rev)
	if len(b) < logHeader {
		return nil, bad
	}
	sum := crc32.Update(crc32.Checksum(numbered(rev), castagnoli), castagnoli, b[logHeader:])
	if sum != binary.BigEndian.Uint32(b) {
		return nil, bad
	}
	var events []store.Event
	for b = b[logHeader:]; len(b) > 0; {
		if len(b) < 3 {
			return nil, bad
		}
		n := 3 + int(binary.BigEndian.Uint16(b[1:]))
		if len(b) < n+4 {
			return nil, bad
		}
		end := n + 4 + int(binary.BigEndian.Uint32(b[n:]))
		if len(b) < end {
			return nil, bad
		}
		e := store.Event{Key: string(b[3:n]), Deleted: b[0] == 1, Rev: rev}
		if !e.Deleted {
			e.Value = append([]byte{}, b[n+4:end]...)
		}
		if strings.HasPrefix(e.Key, prefix) {
			events = append(events, e)
		}
		b = b[end:]
	}
	return events, nil
}
