// Package transfer moves a store from one engine to another: record by record, verified, resumed after an interruption, and so that at no
// moment a server may run on both.
package transfer

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/store"
)

// The marker records. The audit log vouches for neither: whoever can write to a store can take it out of service anyway.
const (
	room        = "transfer/"
	outgoingKey = room + "outgoing" // in the source, from the begin of a copy on
	incomingKey = room + "incoming" // in the target, until the copy is whole
)

// What Copy, Abort and Check return, possibly wrapped.
var (
	// ErrMoved: the store was copied to another engine; the copy is the store now.
	ErrMoved = errors.New("transfer: the store has moved")
	// ErrMoving: a copy of the store was begun and has not ended.
	ErrMoving = errors.New("transfer: the store is being copied away")
	// ErrIncomplete: the store is the target of a copy that has not ended.
	ErrIncomplete = errors.New("transfer: the store is not whole yet")
	// ErrNotEmpty: the target holds something else than what an interrupted copy left.
	ErrNotEmpty = errors.New("transfer: the target is not empty")
	// ErrEmpty: there is nothing to copy.
	ErrEmpty = errors.New("transfer: the source is empty")
	// ErrChanged: somebody wrote to the source meanwhile. Nothing was moved; a new copy begins anew.
	ErrChanged = errors.New("transfer: the source has changed meanwhile")
	// ErrDiffers: what the target holds is not what was written to it.
	ErrDiffers = errors.New("transfer: the target differs from the source")
)

// movedError is ErrMoved or ErrMoving with the name of the target.
type movedError struct {
	kind error
	to   string
}

func (e movedError) Error() string { return e.kind.Error() + ": " + e.to }
func (e movedError) Unwrap() error { return e.kind }

// Target is the name of the target that an error of Check or Watch holds; "" when it holds none.
func Target(err error) string {
	var e movedError
	errors.As(err, &e)
	return e.to
}

// marker is the value of both records.
type marker struct {
	ID    string `json:"id"`              // of the copy, the same in source and target
	To    string `json:"to,omitempty"`    // in the source: where, for people; never a secret
	Moved bool   `json:"moved,omitempty"` // in the source: the target is whole

	rev store.Rev // of its record
}

// Config says how to copy.
type Config struct {
	From, To store.Store
	Name     string // of the target, for who finds the source later; never a secret
	// Leave says which records are not copied; nil: none.
	Leave func(key string) bool
	// Ordered begins the keys of records that are in the order of their commits, which the copy keeps.
	Ordered string
	// Progress is told how many records of all are there, now and then; may be nil.
	Progress func(done, all int)
}

// Result is what was copied and compared.
type Result struct {
	Records int
	Bytes   int64  // of keys and values
	Digest  string // SHA-256 over keys and the values' SHA-256, in order, in hex
	Resumed int    // records that an interrupted copy had left in the target
}

// Check says whether a server may run on a store. ErrMoved, ErrMoving, ErrIncomplete.
func Check(ctx context.Context, s store.Store) error {
	_, all, err := collect(ctx, s, room)
	if err != nil {
		return err
	}
	for _, r := range all {
		m, err := parse(r)
		switch {
		case err != nil:
			return err
		case r.Key == incomingKey:
			return ErrIncomplete
		case m.Moved:
			return movedError{ErrMoved, m.To}
		case r.Key == outgoingKey:
			return movedError{ErrMoving, m.To}
		}
	}
	return nil
}

// Watch returns what Check says as soon as it is no longer nil, for a server that runs while a copy begins; nil when ctx has ended.
func Watch(ctx context.Context, s store.Store) error {
	for ctx.Err() == nil {
		rev, _, err := collect(ctx, s, room)
		if err == nil {
			err = Check(ctx, s)
		}
		if err == nil {
			for _, err = range s.Watch(ctx, room, rev) {
				break
			}
		}
		if ctx.Err() == nil && err != nil && !errors.Is(err, store.ErrCompacted) && !errors.Is(err, store.ErrUnavailable) {
			return err
		}
	}
	return nil
}

func parse(r store.Record) (marker, error) {
	m := marker{rev: r.Rev}
	if err := json.Unmarshal(r.Value, &m); err != nil || m.ID == "" {
		return m, fmt.Errorf("marker %s is damaged", r.Key)
	}
	return m, nil
}

// find reads a marker; its ID is empty when there is none.
func find(ctx context.Context, s store.Store, key string) (marker, error) {
	r, err := s.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return marker{}, nil
	}
	if err != nil {
		return marker{}, fmt.Errorf("read marker: %w", err)
	}
	return parse(r)
}

// put writes a marker if the one that is there is still the one that was read.
func put(ctx context.Context, s store.Store, key string, old, m marker) (marker, error) {
	value, err := json.Marshal(m)
	if err != nil {
		return m, fmt.Errorf("encode marker: %w", err)
	}
	m.rev, err = s.Commit(ctx, []store.Cond{{Key: key, Rev: old.rev}}, []store.Op{{Key: key, Value: value}})
	if err != nil {
		return m, fmt.Errorf("write marker %s: %w", key, err)
	}
	return m, nil
}

// collect reads all records under a prefix.
func collect(ctx context.Context, s store.Store, prefix string) (store.Rev, []store.Record, error) {
	rev, records := s.List(ctx, prefix)
	var all []store.Record
	for r, err := range records {
		if err != nil {
			return 0, nil, fmt.Errorf("list: %w", err)
		}
		all = append(all, r)
	}
	return rev, all, nil
}

// Copy moves a store. From the first step on no server may run on the source, until the last none on the target: a server that runs sees
// the marker and stops. What is interrupted goes on with the same Copy. ErrEmpty, ErrNotEmpty, ErrChanged, ErrDiffers, ErrIncomplete
// when the source is itself a target.
func Copy(ctx context.Context, c Config) (Result, error) {
	out, in, err := c.begin(ctx)
	if err != nil {
		return Result{}, err
	}
	result, err := c.copy(ctx, out)
	if err != nil {
		return result, err
	}
	if !out.Moved {
		if err := c.hand(ctx, out); err != nil {
			return result, err
		}
	}
	_, err = c.To.Commit(ctx, []store.Cond{{Key: incomingKey, Rev: in.rev}}, []store.Op{{Key: incomingKey, Delete: true}})
	if err != nil {
		return result, fmt.Errorf("release the target: %w", err)
	}
	return result, nil
}

// begin marks source and target, or finds the marks of a copy that was interrupted.
func (c Config) begin(ctx context.Context) (out, in marker, err error) {
	if m, err := find(ctx, c.From, incomingKey); err != nil || m.ID != "" {
		return out, in, cmp.Or(err, fmt.Errorf("source: %w", ErrIncomplete))
	}
	if out, err = find(ctx, c.From, outgoingKey); err != nil {
		return out, in, err
	}
	if in, err = find(ctx, c.To, incomingKey); err != nil {
		return out, in, err
	}
	_, there, err := collect(ctx, c.To, "")
	if err != nil {
		return out, in, fmt.Errorf("target: %w", err)
	}
	if in.ID == "" && len(there) > 0 {
		return out, in, ErrNotEmpty
	}
	if out.Moved && out.ID != in.ID {
		return out, in, movedError{ErrMoved, out.To}
	}
	at, source, err := collect(ctx, c.From, "")
	switch {
	case err != nil:
		return out, in, fmt.Errorf("source: %w", err)
	case len(source) == 0:
		return out, in, ErrEmpty
	}
	if out.ID == "" || out.rev != at { // a first copy, or the source went on after an older one
		if out, err = put(ctx, c.From, outgoingKey, out, marker{ID: rand.Text(), To: c.Name}); err != nil {
			return out, in, err
		}
	}
	if in.ID == out.ID {
		return out, in, nil
	}
	if in, err = put(ctx, c.To, incomingKey, in, marker{ID: out.ID}); err != nil {
		return out, in, err
	}
	return out, in, c.clear(ctx, there)
}

// clear deletes what an older copy left in the target.
func (c Config) clear(ctx context.Context, there []store.Record) error {
	var ops []store.Op
	for _, r := range there {
		if !strings.HasPrefix(r.Key, room) {
			ops = append(ops, store.Op{Key: r.Key, Delete: true})
		}
	}
	for part := range slices.Chunk(ops, store.MaxItems) {
		if _, err := c.To.Commit(ctx, nil, part); err != nil {
			return fmt.Errorf("clear the target: %w", err)
		}
	}
	return nil
}

// copy writes what the target does not have, and compares all of it afterwards.
func (c Config) copy(ctx context.Context, out marker) (Result, error) {
	at, source, err := collect(ctx, c.From, "")
	if err != nil {
		return Result{}, fmt.Errorf("source: %w", err)
	}
	if at != out.rev {
		return Result{}, ErrChanged
	}
	have, err := c.digest(ctx, c.To)
	if err != nil {
		return Result{}, fmt.Errorf("target: %w", err)
	}
	source = slices.DeleteFunc(source, func(r store.Record) bool { return c.left(r.Key) })
	var todo []store.Record
	for _, r := range source {
		if sum, ok := have.sums[r.Key]; !ok || sum != sha256.Sum256(r.Value) {
			todo = append(todo, r)
		}
	}
	if err := c.write(ctx, todo, len(source)); err != nil {
		return Result{}, err
	}
	return c.compare(ctx, out, len(source)-len(todo))
}

// write puts records into the target: those that keep an order commit by commit, as they were written, the others as they fit.
func (c Config) write(ctx context.Context, todo []store.Record, all int) error {
	ordered := func(r store.Record) bool { return c.Ordered != "" && strings.HasPrefix(r.Key, c.Ordered) }
	slices.SortStableFunc(todo, func(a, b store.Record) int {
		if !ordered(a) || !ordered(b) {
			return cmp.Compare(number(ordered(a)), number(ordered(b)))
		}
		return cmp.Or(cmp.Compare(a.Rev, b.Rev), cmp.Compare(a.Key, b.Key))
	})
	done := all - len(todo)
	for len(todo) > 0 {
		n, size := 0, 0
		for n < len(todo) && n < store.MaxItems && (n == 0 || ordered(todo[n]) == ordered(todo[0]) && (!ordered(todo[n]) || todo[n].Rev == todo[0].Rev)) {
			if size += len(todo[n].Key) + len(todo[n].Value); size > store.MaxBytes {
				break
			}
			n++
		}
		var ops []store.Op
		for _, r := range todo[:max(n, 1)] {
			ops = append(ops, store.Op{Key: r.Key, Value: r.Value})
		}
		if _, err := c.To.Commit(ctx, nil, ops); err != nil {
			return fmt.Errorf("write to the target: %w", err)
		}
		todo = todo[len(ops):]
		if done += len(ops); c.Progress != nil {
			c.Progress(done, all)
		}
	}
	return nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// compare reads both stores again.
func (c Config) compare(ctx context.Context, out marker, resumed int) (Result, error) {
	from, err := c.digest(ctx, c.From)
	if err != nil {
		return Result{}, fmt.Errorf("source: %w", err)
	}
	if from.rev != out.rev {
		return Result{}, ErrChanged
	}
	to, err := c.digest(ctx, c.To)
	if err != nil {
		return Result{}, fmt.Errorf("target: %w", err)
	}
	for key, sum := range from.sums {
		if got, ok := to.sums[key]; !ok || got != sum {
			return Result{}, fmt.Errorf("%w: record %q", ErrDiffers, key)
		}
	}
	if len(to.sums) != len(from.sums) || to.digest != from.digest {
		return Result{}, fmt.Errorf("%w: %d records instead of %d", ErrDiffers, len(to.sums), len(from.sums))
	}
	return Result{Records: len(to.sums), Bytes: to.bytes, Digest: to.digest, Resumed: resumed}, nil
}

// summary is what a store holds besides the markers.
type summary struct {
	rev    store.Rev
	sums   map[string][sha256.Size]byte
	bytes  int64
	digest string
}

// left says that a record is a marker, or not to be copied.
func (c Config) left(key string) bool {
	return strings.HasPrefix(key, room) || c.Leave != nil && c.Leave(key)
}

func (c Config) digest(ctx context.Context, s store.Store) (summary, error) {
	rev, records := s.List(ctx, "")
	out, h := summary{rev: rev, sums: map[string][sha256.Size]byte{}}, sha256.New()
	for r, err := range records {
		if err != nil {
			return out, fmt.Errorf("list: %w", err)
		}
		if c.left(r.Key) {
			continue
		}
		sum := sha256.Sum256(r.Value)
		out.sums[r.Key] = sum
		out.bytes += int64(len(r.Key) + len(r.Value))
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(r.Key))))
		h.Write([]byte(r.Key))
		h.Write(sum[:])
	}
	out.digest = hex.EncodeToString(h.Sum(nil))
	return out, nil
}

// hand makes the target the store: the source says for good that it has moved. When somebody wrote between the comparison and that, the
// source says so no longer. ErrChanged.
func (c Config) hand(ctx context.Context, out marker) error {
	moved, err := put(ctx, c.From, outgoingKey, out, marker{ID: out.ID, To: out.To, Moved: true})
	if err != nil {
		return err
	}
	for events, err := range c.From.Watch(ctx, "", out.rev) {
		if err == nil && events[0].Rev == moved.rev {
			return nil
		}
		if _, undo := put(ctx, c.From, outgoingKey, moved, marker{ID: rand.Text(), To: out.To}); undo != nil {
			return fmt.Errorf("the source says that it has moved, and has not: %w", undo)
		}
		return cmp.Or(err, ErrChanged)
	}
	return fmt.Errorf("watch the source: %w", ctx.Err())
}

// Abort gives a copy up that has not ended: servers may run on the source again. What the target holds stays refused. ErrMoved when it has
// ended; ErrEmpty when none was begun.
func Abort(ctx context.Context, from store.Store) error {
	out, err := find(ctx, from, outgoingKey)
	switch {
	case err != nil:
		return err
	case out.ID == "":
		return fmt.Errorf("%w: no copy was begun", ErrEmpty)
	case out.Moved:
		return movedError{ErrMoved, out.To}
	}
	_, err = from.Commit(ctx, []store.Cond{{Key: outgoingKey, Rev: out.rev}}, []store.Op{{Key: outgoingKey, Delete: true}})
	if err != nil {
		return fmt.Errorf("take the marker away: %w", err)
	}
	return nil
}
