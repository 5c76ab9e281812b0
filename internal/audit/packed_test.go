package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/pack"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// at is the record of an entry.
func at(t *testing.T, s store.Store, i int) store.Record {
	t.Helper()
	r, err := s.Get(t.Context(), fmt.Sprintf("log/entry/%016x", i))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func isPacked(r store.Record) bool { return r.Value[0] != '{' }

// TestEntriesPackedOrNot: a log that has entries of both kinds, as after an upgrade or a step back, is one log: for the server that wrote it, for one
// that follows, and for one that starts.
func TestEntriesPackedOrNot(t *testing.T) {
	s := mem.New()
	var packs atomic.Bool
	follower := open(t, s, false) // puts nothing into order itself
	followed := make(chan error, 1)
	go func() { followed <- follower.Follow(follower.ctx, 0, func(audit.Commit) error { return nil }) }() // ends with ctx
	writer := openPacking(t, s, packs.Load)
	for i, on := range []bool{false, true, false, true} {
		packs.Store(on)
		writer.write(t, 10*i, 10*i+10)
		if err := writer.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := follower.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*running{writer, follower} {
		r.ordered(t, 40)
		r.stop()
	}
	if err := <-followed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if a, b := at(t, s, 5), at(t, s, 15); isPacked(a) || !isPacked(b) {
		t.Errorf("%q, %q", a.Value, b.Value)
	}
	again := open(t, s, false)
	again.ordered(t, 40)
	size, root, err := again.Head()
	was, rootWas, err2 := writer.Head()
	if err != nil || err2 != nil || size != was || root != rootWas {
		t.Errorf("%d %s after a start, %d %s before, %v, %v", size, root, was, rootWas, err, err2)
	}
}

// TestWhenEntriesArePacked: as soon as it may be, and not before.
func TestWhenEntriesArePacked(t *testing.T) {
	for _, on := range []bool{false, true} {
		s := mem.New()
		l := openPacking(t, s, func() bool { return on })
		l.write(t, 0, 3)
		if err := l.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.stop()
		for i := range 3 {
			if got := isPacked(at(t, s, i)); got != on {
				t.Errorf("entry %d is packed: %v, want %v", i, got, on)
			}
		}
	}
}

// TestPackedEntryChanged: what comes out of a packed entry has to be what was put into order, at the start and whenever it is read.
func TestPackedEntryChanged(t *testing.T) {
	other := func(i int) []byte {
		b, err := used(i).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, change := range map[string]func(was []byte) []byte{
		"another entry, packed":     func([]byte) []byte { return pack.Pack(other(8)) },
		"another entry, not packed": func([]byte) []byte { return other(8) },
		"cut":                       func(b []byte) []byte { return b[:len(b)-1] },
		"something behind it":       func(b []byte) []byte { return append(bytes.Clone(b), 'x') },
		"flipped":                   func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 16; return b },
		"emptied":                   func([]byte) []byte { return nil },
		"longer than an entry is":   func([]byte) []byte { return pack.Pack(bytes.Repeat([]byte(" "), audit.MaxEntry+1)) },
	} {
		s := mem.New()
		l := openPacking(t, s, func() bool { return true })
		l.write(t, 0, 10)
		if err := l.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.stop()
		r := at(t, s, 7)
		if !isPacked(r) {
			t.Fatalf("%q", r.Value)
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: r.Key, Value: change(r.Value)}}); err != nil {
			t.Fatal(err)
		}
		if err := l.Tail(t.Context(), 7, false, func(int64, []byte) error { return nil }); fault.CodeOf(err) != fault.AuditBroken {
			t.Errorf("%s: read with %v", name, err)
		}
		_, _, err := audit.Load(t.Context(), s, secret.Take([]byte(theMAC)), func(audit.Entry, store.Rev) error { return nil })
		if fault.CodeOf(err) != fault.AuditBroken {
			t.Errorf("%s: loaded with %v", name, err)
		}
	}
}
