// Package board is the record store of the demo: small encrypted records over HTTP with conditional writes, in a file of its own. It
// knows no key. It has a floor: from the moment that rotor raises it, no ciphertext of an older key version is taken, however late its
// writer comes. Rotor counts and re-encrypts the records by the data-set protocol (spec/dataset.md).
package board

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/rotorkms/rotor/envelope"
)

// Bounds.
const (
	MaxRecord = 64 << 10 // bytes of one record
	MaxID     = 128
	maxPage   = 1000
	pageBytes = 4 << 20 // of messages; a page ends with the first one that passes it
	maxReject = 100_000
)

// The errors of the board.
var (
	ErrNotFound   = errors.New("no such record")
	ErrCondition  = errors.New("the record is at another revision")
	ErrBelowFloor = errors.New("below_floor: the record is encrypted under a version that is not taken any more")
	ErrOldFloor   = errors.New("the floor is newer already")
	ErrInvalid    = errors.New("not a record")
)

var (
	bucketRecords = []byte("records")
	bucketFloor   = []byte("floor")
)

// Floor says which ciphertexts of a key are refused. It is ordered by (Incarnation, Sequence).
type Floor struct {
	Key         string   `json:"key"`
	Incarnation uint32   `json:"incarnation"`
	Sequence    uint64   `json:"sequence"`
	Reject      []string `json:"reject"` // handles of key versions, 8 hex digits each
}

// Board is an open board. Safe for concurrent use.
type Board struct{ db *bbolt.DB }

// Open opens or makes the board's file.
func Open(path string) (*Board, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open board: %w", err)
	}
	db.MaxBatchDelay = time.Millisecond // writers that come together share one sync
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketRecords, bucketFloor} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open board: %w", err), db.Close())
	}
	return &Board{db}, nil
}

// Close closes the file.
func (b *Board) Close() error { return b.db.Close() }

// Parts are what a record's message is bound to.
func Parts(id string) []envelope.Part {
	return []envelope.Part{{Label: "record", Value: []byte(id)}}
}

// stored is revision 8 bytes, message.
func encode(revision uint64, message []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, revision), message...)
}

func decode(v []byte) (revision uint64, message []byte) {
	return binary.BigEndian.Uint64(v), bytes.Clone(v[8:])
}

// Get reads a record. ErrNotFound.
func (b *Board) Get(id string) (revision uint64, message []byte, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketRecords).Get([]byte(id))
		if v == nil {
			return ErrNotFound
		}
		revision, message = decode(v)
		return nil
	})
	return revision, message, err
}

// Put writes a record if it is at revision at (0: if there is none). The floor is looked at in the same transaction. It returns the new
// revision. ErrCondition, ErrBelowFloor, ErrInvalid.
func (b *Board) Put(id string, at uint64, message []byte) (revision uint64, err error) {
	if id == "" || len(id) > MaxID || len(message) > MaxRecord {
		return 0, ErrInvalid
	}
	handle, err := handleOf(message)
	if err != nil {
		return 0, ErrInvalid
	}
	err = b.db.Batch(func(tx *bbolt.Tx) error {
		revision = 0
		if err := accepts(tx, handle); err != nil {
			return err
		}
		records := tx.Bucket(bucketRecords)
		if v := records.Get([]byte(id)); v != nil {
			revision, _ = decode(v)
		}
		if revision != at {
			return ErrCondition
		}
		revision++
		return records.Put([]byte(id), encode(revision, message))
	})
	return revision, err
}

// Delete removes a record if it is at a revision. ErrNotFound, ErrCondition.
func (b *Board) Delete(id string, at uint64) error {
	return b.db.Batch(func(tx *bbolt.Tx) error {
		records := tx.Bucket(bucketRecords)
		v := records.Get([]byte(id))
		if v == nil {
			return ErrNotFound
		}
		if revision, _ := decode(v); revision != at {
			return ErrCondition
		}
		return records.Delete([]byte(id))
	})
}

// Item is one record with its identifier.
type Item struct {
	ID      string
	Message []byte
}

// List returns up to n records after an ID, fewer when they are large, in the order of their IDs; next is where to go on, "" at the end.
func (b *Board) List(after string, n int) (items []Item, next string, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		c, size := tx.Bucket(bucketRecords).Cursor(), 0
		for k, v := c.Seek([]byte(after)); k != nil; k, v = c.Next() {
			if string(k) == after {
				continue
			}
			if len(items) == n || size >= pageBytes {
				next = items[len(items)-1].ID
				return nil
			}
			_, message := decode(v)
			items, size = append(items, Item{string(k), message}), size+len(message)
		}
		return nil
	})
	return items, next, err
}

// Swap replaces a record's message if it is exactly old. The outcome is "swapped", "changed" or "gone".
func (b *Board) Swap(id string, old, fresh []byte) (outcome string, err error) {
	handle, err := handleOf(fresh)
	if err != nil || len(fresh) > MaxRecord {
		return "", ErrInvalid
	}
	err = b.db.Batch(func(tx *bbolt.Tx) error {
		if err := accepts(tx, handle); err != nil {
			return err
		}
		records := tx.Bucket(bucketRecords)
		v := records.Get([]byte(id))
		if v == nil {
			outcome = "gone"
			return nil
		}
		revision, message := decode(v)
		if !bytes.Equal(message, old) {
			outcome = "changed"
			return nil
		}
		outcome = "swapped"
		return records.Put([]byte(id), encode(revision+1, fresh))
	})
	return outcome, err
}

// Census counts the records by the handle of the version that encrypted them, from one snapshot.
func (b *Board) Census() (counts map[string]uint64, unreadable uint64, err error) {
	counts = map[string]uint64{}
	err = b.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketRecords).ForEach(func(_, v []byte) error {
			handle, err := handleOf(v[8:])
			if err != nil {
				unreadable++
				return nil //nolint:nilerr // it is counted
			}
			counts[handle]++
			return nil
		})
	})
	return counts, unreadable, err
}

// SetFloor sets the floor of a key if it is newer than the present one, durably before it returns. The same floor again is no error.
// ErrOldFloor, ErrInvalid.
func (b *Board) SetFloor(f Floor) error {
	if f.Key == "" || len(f.Key) > MaxID || len(f.Reject) > maxReject {
		return ErrInvalid
	}
	v, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode floor: %w", err)
	}
	return b.db.Update(func(tx *bbolt.Tx) error {
		floors := tx.Bucket(bucketFloor)
		var now Floor
		if old := floors.Get([]byte(f.Key)); old != nil {
			if err := json.Unmarshal(old, &now); err != nil {
				return fmt.Errorf("read floor: %w", err)
			}
			if bytes.Equal(old, v) {
				return nil
			}
		}
		if f.Incarnation < now.Incarnation || f.Incarnation == now.Incarnation && f.Sequence <= now.Sequence {
			return ErrOldFloor
		}
		return floors.Put([]byte(f.Key), v)
	})
}

// accepts looks at the floors of all keys: a handle names one version of one key.
func accepts(tx *bbolt.Tx, handle string) error {
	return tx.Bucket(bucketFloor).ForEach(func(_, v []byte) error {
		var f Floor
		if err := json.Unmarshal(v, &f); err != nil {
			return fmt.Errorf("read floor: %w", err)
		}
		if slices.Contains(f.Reject, handle) {
			return ErrBelowFloor
		}
		return nil
	})
}

func handleOf(message []byte) (string, error) {
	h, err := envelope.MessageHandle(message)
	return fmt.Sprintf("%08x", h), err
}
