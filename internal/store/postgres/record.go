package postgres

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/rotorkms/rotor/internal/store"
)

// The events of a commit, as the log holds them. An event: kind 1 (0 put, 1 delete), key length 2, key, value length 4, value; numbers
// big-endian. PostgreSQL has checksums of its own where they are switched on; whoever edits the tables is found by the audit log.

func appendEvent(b []byte, e store.Event) []byte {
	kind := byte(0)
	if e.Deleted {
		kind = 1
	}
	b = binary.BigEndian.AppendUint16(append(b, kind), uint16(len(e.Key)))
	b = append(b, e.Key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Value)))
	return append(b, e.Value...)
}

// parseEvents returns all events of a commit. store.ErrCorrupt.
func parseEvents(b []byte, rev store.Rev) ([]store.Event, error) {
	bad := fmt.Errorf("%w: history of revision %d", store.ErrCorrupt, rev)
	var events []store.Event
	for len(b) > 0 {
		if len(b) < 3 || b[0] > 1 {
			return nil, bad
		}
		n := 3 + int(binary.BigEndian.Uint16(b[1:]))
		if len(b) < n+4 {
			return nil, bad
		}
		size := int64(binary.BigEndian.Uint32(b[n:]))
		end := int64(n) + 4 + size
		if int64(len(b)) < end || b[0] == 1 && size > 0 {
			return nil, bad
		}
		e := store.Event{Key: string(b[3:n]), Deleted: b[0] == 1, Rev: rev}
		if !e.Deleted {
			e.Value = append([]byte{}, b[n+4:end]...)
		}
		events = append(events, e)
		b = b[end:]
	}
	return events, nil
}

// under returns copies of the events under prefix, for a caller to keep.
func under(events []store.Event, prefix string) (found []store.Event) {
	for _, e := range events {
		if strings.HasPrefix(e.Key, prefix) {
			if !e.Deleted {
				e.Value = append([]byte{}, e.Value...)
			}
			found = append(found, e)
		}
	}
	return found
}

// after is the smallest key that is greater than every key with the prefix; false when there is none.
func after(prefix string) ([]byte, bool) {
	b := []byte(prefix)
	for len(b) > 0 {
		if last := len(b) - 1; b[last] < 0xFF {
			b[last]++
			return b, true
		}
		b = b[:len(b)-1]
	}
	return nil, false
}

// number scans a revision.
type number struct{ rev *store.Rev }

// ScanInt64 implements pgtype.Int64Scanner.
func (n number) ScanInt64(v pgtype.Int8) error {
	if !v.Valid || v.Int64 < 0 {
		return fmt.Errorf("%w: a revision is no number", store.ErrCorrupt)
	}
	*n.rev = store.Rev(v.Int64)
	return nil
}
