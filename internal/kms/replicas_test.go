package kms_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// slow is a store whose watches bring nothing while it is held up, and which tells when somebody asks for its revision.
type slow struct {
	store.Store
	held  atomic.Pointer[chan struct{}]
	asked chan struct{}
}

func (s *slow) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		for events, err := range s.Store.Watch(ctx, prefix, after) {
			if c := s.held.Load(); c != nil {
				select {
				case <-*c:
				case <-ctx.Done():
				}
			}
			if !yield(events, err) {
				return
			}
		}
	}
}

func (s *slow) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	rev, records := s.Store.List(ctx, prefix)
	select {
	case s.asked <- struct{}{}:
	default:
	}
	return rev, records
}

// hold holds the watches up; release lets them go on.
func (s *slow) hold() (release func()) {
	c := make(chan struct{})
	s.held.Store(&c)
	select {
	case <-s.asked: // before
	default:
	}
	return func() { s.held.Store(nil); close(c) }
}

// second is another server on the world's store.
func (w *world) second(fresh func() bool) (*kms.Service, *slow) {
	w.t.Helper()
	s := &slow{Store: w.store, asked: make(chan struct{}, 1)}
	g, err := guard.Open(w.t.Context(), guard.Config{Store: s, Sealers: []seal.Sealer{w.seal}, Rules: rules{}, Now: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(g.Run)
	k, err := kms.New(w.t.Context(), kms.Config{Guard: g, Now: w.now, Fresh: fresh})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(k.Run)
	return k, s
}

// TestServerBehind: a server that another one's changes have not reached yet refuses nothing before they have: a key that it does not know,
// a version that it does not know, a version that it takes for suspended, a destroyed one.
func TestServerBehind(t *testing.T) {
	w := newWorld(t)
	other, s := w.second(nil)
	k := w.create("k", suite.Encrypt)
	if err := other.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask := func(name string, change func(), use func() error) {
		t.Helper()
		release := s.hold()
		change()
		done := make(chan error, 1)
		go func() { done <- use() }()
		select {
		case <-s.asked: // it asks how old its memory is
			release()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case err := <-done:
			release()
			t.Errorf("%s: answered on old memory: %v", name, err)
		}
	}
	var message []byte
	decrypt := func() error {
		got, _, err := other.Decrypt(t.Context(), alice, w.ref(k), message, parts)
		if err == nil && string(got) != string(text) {
			t.Errorf("%q", got)
		}
		return err
	}
	ask("new version", func() {
		w.rotate(k)
		message, _, _ = w.Encrypt(t.Context(), alice, w.ref(k), text, parts)
	}, decrypt)
	must(w.Change(t.Context(), alice, w.ref(k), 2, keyring.Suspend, ""))(t)
	if err := other.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask("suspended version", func() { must(w.Change(t.Context(), alice, w.ref(k), 2, keyring.Resume, ""))(t) }, decrypt)
	var fresh keyring.Key
	ask("new key", func() { fresh = w.create("fresh", suite.Encrypt) }, func() error {
		_, _, err := other.Encrypt(t.Context(), alice, w.ref(fresh), text, parts)
		return err
	})
	ask("show", func() { w.rotate(fresh) }, func() error {
		got, err := other.Get(t.Context(), alice, w.ref(fresh))
		if got.Primary != 2 {
			t.Errorf("shows version %d as the primary", got.Primary)
		}
		return err
	})
}

// TestServerWithoutSession: a server that others may take for dead protects nothing, and goes on to process.
func TestServerWithoutSession(t *testing.T) {
	w := newWorld(t)
	var fresh atomic.Bool
	fresh.Store(true)
	other, _ := w.second(fresh.Load)
	k, wraps := w.create("k", suite.Encrypt), w.create("w", suite.Wrap)
	message, _, err := other.Encrypt(t.Context(), alice, w.ref(k), text, parts)
	if err != nil {
		t.Fatal(err)
	}
	wrap := must(other.Wrap(t.Context(), alice, w.ref(wraps), dek, immutable))(t)
	w.rotate(wraps)
	fresh.Store(false)
	_, _, err = other.Encrypt(t.Context(), alice, w.ref(k), text, parts)
	wantCode(t, err, fault.Unavailable)
	_, err = other.Wrap(t.Context(), alice, w.ref(wraps), dek, immutable)
	wantCode(t, err, fault.Unavailable)
	_, _, err = other.Rewrap(t.Context(), alice, wrap, immutable)
	wantCode(t, err, fault.Unavailable)
	if _, _, err := other.Decrypt(t.Context(), alice, w.ref(k), message, parts); err != nil {
		t.Error(err)
	}
	if _, err := other.Unwrap(t.Context(), alice, wrap, immutable); err != nil {
		t.Error(err)
	}
}

// withHeard is a server that waits for another one, as servers do by what they say of themselves.
func (w *world) withHeard(other *kms.Service) *kms.Service {
	w.t.Helper()
	s, err := kms.New(w.t.Context(), kms.Config{Guard: w.guard, Now: w.now, Heard: other.Reached})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(s.Run)
	return s
}

// TestDeletionIsHeardOf: a deletion, and whatever gives the name of a deleted key to another one, is answered when no server protects under the old key any
// more, so that nobody has a ciphertext by a name that does not open it.
func TestDeletionIsHeardOf(t *testing.T) {
	w := newWorld(t)
	other, s := w.second(nil)
	first := w.withHeard(other)
	spec := kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/k"}, Transit: keyring.Transit{DeletionAllowed: true, Exportable: true, PlaintextBackup: true}}
	id := func(s *kms.Service) keyring.KeyID { k, _ := s.Lookup(spec.Namespace, spec.Name); return k.ID }
	old := w.transit("k", "", leaves)
	text := must(w.TransitBackup(t.Context(), alice, spec.Ref))(t)
	must(w.TransitDelete(t.Context(), alice, spec.Ref))(t)
	gone := kms.Ref{Namespace: spec.Namespace, Name: old.DeletedName()}
	encrypts := func() error { // at the other server, which has a window of use and a block of uses after the first time
		_, err := other.TransitEncrypt(t.Context(), alice, spec.Ref, item(kms.TransitItem{Plaintext: []byte("x")}))
		return err
	}
	for _, c := range []struct {
		what string
		call func() error
		done func(k keyring.KeyID) bool // at the server that is asked; the name was the key's
	}{
		{"delete", func() error { _, err := first.TransitDelete(t.Context(), alice, spec.Ref); return err }, func(keyring.KeyID) bool { return id(first) == "" }},
		{"create", func() error { return second(first.TransitCreate(t.Context(), alice, spec)) }, func(k keyring.KeyID) bool { return id(first) != "" && id(first) != k }},
		{"restore", func() error {
			_, err := first.TransitRestore(t.Context(), alice, kms.TransitRestoring{Namespace: "default", Mount: "transit", Backup: text})
			return err
		}, func(k keyring.KeyID) bool { return id(first) != "" && id(first) != k }},
		{"undelete", func() error { _, err := first.TransitUndelete(t.Context(), alice, gone, ""); return err }, func(keyring.KeyID) bool { return id(first) == "" }}, // it waits before
	} {
		if err := w.CatchUp(t.Context()); err != nil { // it is a third server, which nobody waits for
			t.Fatal(err)
		}
		k := w.transit("k", "", leaves)
		if err := errors.Join(first.CatchUp(t.Context()), other.CatchUp(t.Context()), encrypts()); err != nil {
			t.Fatal(err)
		}
		release := s.hold()
		if c.what != "delete" {
			must(w.TransitDelete(t.Context(), alice, spec.Ref))(t) // without an answer that waits, as if it had been lost
			if err := first.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		answered := make(chan error, 1)
		go func() { answered <- c.call() }()
		w.await(c.what, func() bool { return c.done(k.ID) })
		if err := encrypts(); err != nil || id(other) != k.ID {
			t.Errorf("%s: the other server has %s, %v", c.what, id(other), err)
		}
		select {
		case err := <-answered:
			t.Fatalf("%s: answered while another server protects under the deleted key, %v", c.what, err)
		default:
		}
		release()
		if err := <-answered; err != nil || id(other) == k.ID {
			t.Errorf("%s: the other server still has the deleted key, %v", c.what, err)
		}
		if id(first) != "" {
			must(first.TransitDelete(t.Context(), alice, spec.Ref))(t)
		}
	}
}

// TestLessIsHeardOf: what takes something from a key is answered when no server goes by what the key allowed before, also when it is asked for again; what
// gives something back waits for nobody.
func TestLessIsHeardOf(t *testing.T) {
	w := newWorld(t)
	other, s := w.second(nil)
	first := w.withHeard(other)
	ref := kms.Ref{Namespace: "default", Name: "transit/k"}
	w.transit("k", "", deletable)
	for range 4 {
		must(w.TransitRotate(t.Context(), alice, ref))(t)
	}
	number := func(n uint32) *uint32 { return &n }
	change := func(n uint32, e keyring.Event) func(*kms.Service) error {
		return func(s *kms.Service) error { _, err := s.Change(t.Context(), alice, ref, n, e, "test"); return err }
	}
	configure := func(c kms.TransitChange) func(*kms.Service) error {
		return func(s *kms.Service) error { _, err := s.TransitConfigure(t.Context(), alice, ref, c); return err }
	}
	for _, c := range []struct {
		what  string
		less  bool
		call  func(*kms.Service) error
		again bool // it can be asked for twice
	}{
		{"suspend", true, change(2, keyring.Suspend), false},
		{"resume", false, change(2, keyring.Resume), false},
		{"compromise", true, change(1, keyring.Compromise), false},
		{"raise min_encryption_version", true, configure(kms.TransitChange{MinEncryption: number(4)}), true},
		{"raise min_decryption_version", true, configure(kms.TransitChange{MinDecryption: number(3)}), true},
		{"lower min_decryption_version", false, configure(kms.TransitChange{MinDecryption: number(2)}), false},
		{"trim", true, func(s *kms.Service) error { _, err := s.TransitTrim(t.Context(), alice, ref, 2); return err }, true},
		{"soft-delete", true, func(s *kms.Service) error { _, err := s.TransitSoftDelete(t.Context(), alice, ref); return err }, false},
		{"restore", false, func(s *kms.Service) error { _, err := s.TransitUnsoftDelete(t.Context(), alice, ref); return err }, false},
	} {
		if err := errors.Join(first.CatchUp(t.Context()), other.CatchUp(t.Context())); err != nil {
			t.Fatal(err)
		}
		k, _ := first.Lookup(ref.Namespace, ref.Name)
		release := s.hold()
		answers := make(chan error, 2)
		calls := 1
		go func() { answers <- c.call(first) }()
		w.await(c.what, func() bool { now, _ := first.Lookup(ref.Namespace, ref.Name); return now.Changed(k) })
		if c.again {
			calls = 2
			go func() { answers <- c.call(first) }()
		}
		if !c.less {
			if err := <-answers; err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			release()
			continue
		}
		if err := w.CatchUp(t.Context()); err != nil { // time enough for an answer that waits for nobody
			t.Fatal(err)
		}
		if now, _ := other.Lookup(ref.Namespace, ref.Name); now.Changed(k) {
			t.Fatalf("%s: the other server has heard of it", c.what)
		}
		select {
		case err := <-answers:
			t.Errorf("%s: answered while another server goes by what was, %v", c.what, err)
			answers <- err
		default:
		}
		release()
		for range calls {
			if err := <-answers; err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		if now, _ := other.Lookup(ref.Namespace, ref.Name); !now.Changed(k) {
			t.Errorf("%s: answered, and the other server has not heard of it", c.what)
		}
	}
}

// TestClearIsHeardOfOnce: a mount's keys are deleted one after the other, and waited for together.
func TestClearIsHeardOfOnce(t *testing.T) {
	w := newWorld(t)
	other, s := w.second(nil)
	first := w.withHeard(other)
	for i := range 5 {
		w.transit(fmt.Sprint("k", i), "", deletable)
	}
	if err := other.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	release, done := s.hold(), make(chan error)
	go func() { done <- first.TransitClear(t.Context(), alice, "default", "transit") }()
	w.await("deletions", func() bool {
		if err := w.CatchUp(t.Context()); err != nil {
			return false
		}
		for k := range w.All() {
			if k.Purpose == suite.Transit && !k.Deleted() {
				return false
			}
		}
		return true
	})
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
