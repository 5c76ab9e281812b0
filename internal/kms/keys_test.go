package kms_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/suite"
)

func TestCreate(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	if v := k.At(0); k.Primary != 1 || v.Phase != keyring.PhasePrimary || v.State != keyring.Active || k.Owner != alice.Name || k.Custody != keyring.CustodyServer {
		t.Errorf("made %+v", k)
	}
	records := w.raw()
	for name, spec := range map[string]keyring.Key{
		"no name":                 {Namespace: "default", Purpose: suite.Encrypt},
		"a path":                  {Namespace: "default", Name: "a/b", Purpose: suite.Encrypt},
		"capitals":                {Namespace: "default", Name: "Key", Purpose: suite.Encrypt},
		"too long":                {Namespace: "default", Name: strings.Repeat("k", keyring.MaxName+1), Purpose: suite.Encrypt},
		"no namespace":            {Name: "x", Purpose: suite.Encrypt},
		"a path as its namespace": {Namespace: "default/", Name: "x", Purpose: suite.Encrypt},
		"no purpose":              {Namespace: "default", Name: "x"},
		"a label that acts":       {Namespace: "default", Name: "x", Purpose: suite.Encrypt, Labels: map[string]string{"a": "\x1b[2J"}},
		"a signing key in fleets": {Namespace: "default", Name: "x", Purpose: suite.Sign, Custody: keyring.CustodyFleet},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Create(t.Context(), alice, spec)
			wantCode(t, err, fault.Invalid)
		})
	}
	_, err := w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "k", Purpose: suite.MAC})
	wantCode(t, err, fault.Exists)
	_, err = w.Create(t.Context(), alice, keyring.Key{Namespace: "none", Name: "k", Purpose: suite.MAC})
	wantCode(t, err, fault.NotFound)
	if !maps.Equal(records, w.raw()) {
		t.Error("what was refused left something in the store")
	}
}

// together calls f twice at once and returns both errors.
func together(f func(i int) error) (errs [2]error) {
	var wait sync.WaitGroup
	for i := range errs {
		wait.Go(func() { errs[i] = f(i) })
	}
	wait.Wait()
	return errs
}

// codes sorts the codes of two errors.
func codes(errs [2]error) []fault.Code {
	out := []fault.Code{fault.CodeOf(errs[0]), fault.CodeOf(errs[1])}
	slices.Sort(out)
	return out
}

// caughtUp waits until a service knows of a key what it should.
func (w *world) caughtUp(s *kms.Service, ref kms.Ref, knows func(keyring.Key) bool) (k keyring.Key) {
	for ok := false; !ok && w.t.Context().Err() == nil; runtime.Gosched() {
		k, ok = s.Lookup(ref.Namespace, ref.Name)
		ok = ok && knows(k)
	}
	return k
}

func TestTwoAtOnce(t *testing.T) {
	w := newWorld(t)
	other := w.serve() // another service on the same store, whose ring may be behind
	services := []*kms.Service{w.Service, other}
	for i := range 10 {
		name := "k" + string(rune('a'+i))
		spec := keyring.Key{Namespace: "default", Name: name, Purpose: suite.Encrypt}
		got := codes(together(func(i int) error { _, err := services[i].Create(t.Context(), alice, spec); return err }))
		if !slices.Equal(got, []fault.Code{"", fault.Exists}) {
			t.Fatalf("two creations: %q", got)
		}
		ref := kms.Ref{Namespace: "default", Name: name}
		k := w.caughtUp(w.Service, ref, func(keyring.Key) bool { return true })
		w.caughtUp(other, ref, func(keyring.Key) bool { return true })

		got = codes(together(func(i int) error { _, err := services[i].Rotate(t.Context(), alice, w.ref(k), 0); return err }))
		if !slices.Equal(got, []fault.Code{"", fault.RotationInFlight}) {
			t.Fatalf("two rotations: %q", got)
		}
		w.distribute(k)
		must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
		w.caughtUp(other, ref, func(k keyring.Key) bool { return k.Primary == 2 })
		errs := together(func(i int) error {
			_, err := services[i].Change(t.Context(), alice, w.ref(k), uint32(i+1), keyring.Suspend, "")
			return err
		})
		k, _, err := w.Record(t.Context(), k.ID)
		if errs != [2]error{} || err != nil || k.At(0).State != keyring.Suspended || k.At(1).State != keyring.Suspended || k.Len() != 2 {
			t.Fatalf("two suspensions: %v, %v, %+v", errs, err, k.Versions)
		}
	}
}

func TestRotateAndBack(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	_, err := w.Rotate(t.Context(), alice, w.ref(k), k.Epoch.Counter+1)
	wantCode(t, err, fault.Conflict)
	_, err = w.Back(t.Context(), alice, w.ref(k), 1, k.Epoch.Counter+1)
	wantCode(t, err, fault.Conflict)
	_, err = w.Back(t.Context(), alice, w.ref(k), 1, 0)
	wantCode(t, err, fault.GateClosed)

	k = must(w.Rotate(t.Context(), alice, w.ref(k), k.Epoch.Counter))(t)
	given, records := k.At(1), w.raw()
	path := "material/default/" + string(k.ID) + "/2"
	if k.Target != 2 || records[path] == "" {
		t.Fatalf("target %d, material %q", k.Target, records[path])
	}
	_, err = w.Rotate(t.Context(), alice, w.ref(k), 0)
	wantCode(t, err, fault.RotationInFlight)
	_, err = w.Back(t.Context(), alice, w.ref(k), 2, 0)
	wantCode(t, err, fault.RotationInFlight)

	k = must(w.Back(t.Context(), alice, w.ref(k), 1, k.Epoch.Counter))(t)
	if k.Target != 0 || k.Primary != 1 || k.At(1).Phase != keyring.PhaseDestroyed || w.raw()[path] != "" {
		t.Errorf("given up: %+v", k)
	}
	w.used(k, given)

	k = w.rotate(k)
	if k.Primary != 3 || k.Len() != 3 || k.At(2).Handle == given.Handle {
		t.Fatalf("rotated to %d", k.Primary)
	}
	m := w.make(k, 3)
	must(w.Back(t.Context(), alice, w.ref(k), 1, 0))(t)
	k = must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
	if k.Primary != 1 {
		t.Fatalf("back at %d", k.Primary)
	}
	wantCode(t, w.process(k, 3, m), "") // the newer version stays decrypt-enabled
	w.pass(25 * time.Hour)
	_, err = w.Back(t.Context(), alice, w.ref(k), 3, 0)
	wantCode(t, err, fault.WrongState)
	_, err = w.Back(t.Context(), alice, w.ref(k), 2, 0)
	wantCode(t, err, fault.WrongState)
}

// used holds number and handle of a version to be used for ever.
func (w *world) used(k keyring.Key, v keyring.Version) {
	w.t.Helper()
	path := fmt.Sprintf("handle/%s/%08x", k.Namespace, v.Handle)
	r := must(w.guard.Get(w.t.Context(), path))(w.t)
	if want := fmt.Sprintf("%s/%d", k.ID, v.Number); string(r.Value) != want {
		w.t.Errorf("%s is of %q, not of %q", path, r.Value, want)
	}
}

func TestChange(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Sign)
	change := func(n uint32, e keyring.Event, reason string) error {
		_, err := w.Change(t.Context(), alice, w.ref(k), n, e, reason)
		return err
	}
	for _, c := range []struct {
		n      uint32
		e      keyring.Event
		reason string
		want   fault.Code
	}{
		{1, keyring.Resume, "", fault.WrongState},
		{1, keyring.Destroy, "", fault.Invalid},
		{1, keyring.Activate, "", fault.Invalid},
		{1, keyring.Suspend, "a\nb", fault.Invalid},
		{1, keyring.Suspend, strings.Repeat("x", keyring.MaxLabel+1), fault.Invalid},
		{2, keyring.Suspend, "", fault.UnknownVersion},
		{1, keyring.Suspend, "lost laptop", ""},
		{1, keyring.Suspend, "", fault.WrongState},
		{1, keyring.Resume, "", ""},
		{1, keyring.Compromise, "leaked", ""},
		{1, keyring.Compromise, "", fault.WrongState},
		{1, keyring.Resume, "", fault.WrongState},
	} {
		wantCode(t, change(c.n, c.e, c.reason), c.want)
	}
	k, _ = w.Key(k.ID)
	if v := k.At(0); v.Reason != "leaked" || v.State != keyring.Compromised {
		t.Errorf("version 1 is %+v", v)
	}
	if w.raw()["material/default/"+string(k.ID)+"/1"] != "" {
		t.Error("the private half of a compromised signing version is still there")
	}
}

func TestReplaceACompromisedPrimary(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	records := w.raw()
	if k = must(w.Replace(t.Context(), k.ID))(t); k.Target != 0 || !maps.Equal(records, w.raw()) {
		t.Error("a sound primary was replaced")
	}
	must(w.Change(t.Context(), alice, w.ref(k), 1, keyring.Compromise, "leaked"))(t)
	wantCode(t, w.protect(k), fault.WrongState)
	if k = must(w.Replace(t.Context(), k.ID))(t); k.Target != 2 || k.At(1).Phase != keyring.PhaseStaged {
		t.Fatalf("target %d", k.Target)
	}
	records = w.raw()
	if k = must(w.Replace(t.Context(), k.ID))(t); k.Target != 2 || k.Len() != 2 || !maps.Equal(records, w.raw()) {
		t.Error("it was replaced twice")
	}
	w.distribute(k)
	k = must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
	if k.Primary != 2 {
		t.Fatalf("version %d is primary", k.Primary)
	}
	wantCode(t, w.protect(k), "")
	_, err := w.Replace(t.Context(), "none")
	wantCode(t, err, fault.NotFound)
}

func TestAnUnknownOutcomeIsAnsweredByReading(t *testing.T) {
	w := newWorld(t)
	w.store.lose.Store(loseAfter)
	k := w.create("k", suite.Encrypt)
	w.store.lose.Store(loseAfter)
	k = must(w.Rotate(t.Context(), alice, w.ref(k), 0))(t)
	if k.Target != 2 || k.Len() != 2 {
		t.Errorf("rotated to %d of %d", k.Target, k.Len())
	}
	records := w.raw()
	w.store.lose.Store(loseBefore)
	_, err := w.Back(t.Context(), alice, w.ref(k), 1, 0)
	wantCode(t, err, fault.OutcomeUnknown)
	w.store.lose.Store(loseBefore)
	_, err = w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "other", Purpose: suite.MAC})
	wantCode(t, err, fault.OutcomeUnknown)
	if !maps.Equal(records, w.raw()) {
		t.Error("an unknown outcome was tried again blindly")
	}
	must(w.Back(t.Context(), alice, w.ref(k), 1, 0))(t)
	w.create("other", suite.MAC)
}
