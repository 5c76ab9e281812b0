package kms_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// uses is what a service says of a version.
func (w *world) uses(s *kms.Service, k keyring.Key, n uint32) kms.Uses {
	w.t.Helper()
	return must(s.Usage(w.t.Context(), alice, w.ref(k)))(w.t).Versions[n]
}

func (w *world) encrypt(s *kms.Service, k keyring.Key) []byte {
	w.t.Helper()
	out, _, err := s.Encrypt(w.t.Context(), alice, w.ref(k), []byte("x"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) flush(s *kms.Service) {
	w.t.Helper()
	if err := s.FlushUses(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func TestUsesAreCountedByVersionAndKind(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	first := w.now().UTC()
	old := w.encrypt(w.Service, k)
	w.encrypt(w.Service, k)
	w.pass(10 * time.Second)
	w.rotate(k)
	w.encrypt(w.Service, k)
	w.pass(10 * time.Second)
	if _, _, err := w.Decrypt(t.Context(), alice, w.ref(k), old, nil); err != nil {
		t.Fatal(err)
	}
	want := map[uint32]kms.Uses{
		1: {Protected: 2, Processed: 1, LastProtected: first, LastProcessed: first.Add(20 * time.Second)},
		2: {Protected: 1, LastProtected: first.Add(10 * time.Second)},
	}
	for _, when := range []string{"in memory", "added", "added again"} {
		if d := cmp.Diff(want, must(w.Usage(t.Context(), alice, w.ref(k)))(t).Versions); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
		w.flush(w.Service)
	}
	if d := cmp.Diff(want, must(w.serve().Usage(t.Context(), alice, w.ref(k)))(t).Versions); d != "" {
		t.Errorf("after a restart (-want +got):\n%s", d)
	}
}

// TestUsesOfTransitKeys: each item of a batch is a use.
func TestUsesOfTransitKeys(t *testing.T) {
	w := newWorld(t)
	ref := kms.Ref{Namespace: "default", Name: "transit/orders"}
	if _, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: ref}); err != nil {
		t.Fatal(err)
	}
	items := make([]kms.TransitItem, 3)
	out := must(w.TransitEncrypt(t.Context(), alice, ref, items))(t)
	for i, r := range out {
		items[i].Ciphertext = r.Ciphertext
	}
	must(w.TransitDecrypt(t.Context(), alice, ref, items[:2]))(t)
	must(w.TransitRotate(t.Context(), alice, ref))(t)
	must(w.TransitRewrap(t.Context(), alice, ref, items))(t)
	u := must(w.Usage(t.Context(), alice, ref))(t)
	if one, two := u.Versions[1], u.Versions[2]; one.Protected != 3 || one.Processed != 5 || two.Protected != 3 || two.Processed != 0 {
		t.Errorf("%+v", u.Versions)
	}
}

func TestUsesOfServersAddUp(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	other := w.serve()
	for range 3 {
		w.encrypt(w.Service, k)
		w.encrypt(other, k)
		w.flush(w.Service)
		w.flush(other)
	}
	w.encrypt(other, k)
	w.flush(other)
	if got := w.uses(w.serve(), k, 1).Protected; got != 7 {
		t.Errorf("a server that starts counts %d of 7", got)
	}
}

// TestUsesBeforeAServerFollows: what another server added between the start of one and its first own addition is heard, though it is older than that.
func TestUsesBeforeAServerFollows(t *testing.T) {
	w := newWorld(t)
	a, b := w.create("a", suite.Encrypt), w.create("b", suite.Encrypt)
	late := must(kms.New(t.Context(), kms.Config{Guard: w.guard, Now: w.now}))(t)
	w.encrypt(w.Service, a)
	w.flush(w.Service)
	w.encrypt(late, b)
	w.flush(late)
	w.run(late.Run)
	w.await("the other server's count", func() bool { return w.uses(late, a, 1).Protected == 1 })
}

// TestUsesAreAddedOnce: an addition whose answer was lost is in the record or not, and is counted once in either case.
func TestUsesAreAddedOnce(t *testing.T) {
	for _, lose := range []int32{loseBefore, loseAfter} {
		w := newWorld(t)
		k := w.create("k", suite.Encrypt)
		w.encrypt(w.Service, k)
		w.store.room.Store("usage/")
		w.store.lose.Store(lose)
		if err := w.FlushUses(t.Context()); fault.CodeOf(err) != fault.OutcomeUnknown {
			t.Fatal(err)
		}
		w.encrypt(w.Service, k)
		if got := w.uses(w.Service, k, 1).Protected; got != 2 {
			t.Errorf("%d: %d uses while the outcome is unknown", lose, got)
		}
		w.flush(w.Service) // the one in flight
		w.flush(w.Service) // what was counted meanwhile
		for _, s := range []*kms.Service{w.Service, w.serve()} {
			if got := w.uses(s, k, 1).Protected; got != 2 {
				t.Errorf("%d: %d uses in the end", lose, got)
			}
		}
	}
}

func TestUsesOfManyVersionsAndKeys(t *testing.T) {
	w := newWorld(t)
	var keys []keyring.Key
	for _, name := range []string{"a", "b", "c"} {
		k := w.create(name, suite.Encrypt)
		keys = append(keys, k)
		for range 70 {
			w.encrypt(w.Service, k)
			k = w.rotate(k)
		}
	}
	w.flush(w.Service)
	again := w.serve()
	for _, k := range keys {
		u := must(again.Usage(t.Context(), alice, w.ref(k)))(t)
		if len(u.Versions) != 70 || u.Versions[70].Protected != 1 || u.Versions[1].Protected != 1 {
			t.Errorf("%s: %d versions were used", k.Name, len(u.Versions))
		}
	}
	rev, records := w.store.List(t.Context(), "usage/")
	n := 0
	for _, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if rev == store.Rev(0) || n != 6 {
		t.Errorf("%d records for three keys with versions 1 to 70", n)
	}
}

func TestUsageNeedsTheRightToSee(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	_, err := w.Usage(t.Context(), mallory, w.ref(k))
	wantCode(t, err, fault.Denied)
}
