package kms_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// census is one that found nothing, started now, after everything.
func (w *world) census(k keyring.Key, n uint32) rotation.Census {
	k, _ = w.Key(k.ID)
	return rotation.Census{Version: n, Epoch: k.Epoch, Settled: true, Started: w.now()}
}

// member is a condition that holds: the key itself did not change its name.
func (w *world) member(k keyring.Key) guard.Cond {
	w.t.Helper()
	path := "name/" + string(k.Namespace) + "/" + k.Name
	return guard.Cond{Path: path, Rev: must(w.guard.Get(w.t.Context(), path))(w.t).Rev}
}

// retired makes a key whose version 1 is retired.
func (w *world) retired(name string, p suite.Purpose) keyring.Key {
	w.t.Helper()
	k := w.rotate(w.create(name, p))
	w.retire(k)
	k, _ = w.Key(k.ID)
	return k
}

// retire retires version 1.
func (w *world) retire(k keyring.Key) {
	w.t.Helper()
	must(w.Retire(w.t.Context(), alice, w.ref(k), 1, w.census(k, 1), nil, w.member(k)))(w.t)
}

// settle lets the rollback window of version 1 end.
func (w *world) settle(k keyring.Key) {
	w.t.Helper()
	w.pass(25 * time.Hour)
	k = must(w.Step(w.t.Context(), k.ID, guard.Cond{}, settle))(w.t)
	if k.Versions[0].State != keyring.Deactivated {
		w.t.Fatalf("version 1 is %s", k.Versions[0].State)
	}
}

const wait = 7 * 24 * time.Hour

// destroy destroys the retired version 1.
func (w *world) destroy(k keyring.Key) {
	w.t.Helper()
	must(w.Approve(w.t.Context(), alice, w.ref(k), 1))(w.t)
	must(w.Approve(w.t.Context(), bob, w.ref(k), 1))(w.t)
	w.pass(wait)
	must(w.tryDestroy(k))(w.t)
}

func (w *world) tryDestroy(k keyring.Key) (keyring.Key, error) {
	return w.Step(w.t.Context(), k.ID, w.member(k), func(k keyring.Key, now time.Time) (keyring.Key, error) {
		return rotation.Destroy(k, 1, w.census(k, 1), nil, now)
	})
}

func TestTheSameApproverCountsOnceAndWritesNothing(t *testing.T) {
	w := newWorld(t)
	k := w.retired("k", suite.Encrypt)
	must(w.Approve(t.Context(), alice, w.ref(k), 1))(t)
	records, entries := w.raw(), len(w.entries())
	for range 3 {
		k = must(w.Approve(t.Context(), alice, w.ref(k), 1))(t)
	}
	if !slices.Equal(k.Versions[0].Approved, []string{alice.Name}) {
		t.Errorf("approved by %v", k.Versions[0].Approved)
	}
	if !maps.Equal(records, w.raw()) || len(w.entries()) != entries {
		t.Error("an approval that changes nothing was written")
	}
	k = must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)
	if !slices.Equal(k.Versions[0].Approved, []string{alice.Name, bob.Name}) || len(w.entries()) != entries+1 {
		t.Errorf("approved by %v, %d entries more", k.Versions[0].Approved, len(w.entries())-entries)
	}
}
