package kms_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
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
	if k.At(0).State != keyring.Deactivated {
		w.t.Fatalf("version 1 is %s", k.At(0).State)
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
	if !slices.Equal(k.At(0).Approved, []string{alice.Name}) {
		t.Errorf("approved by %v", k.At(0).Approved)
	}
	if !maps.Equal(records, w.raw()) || len(w.entries()) != entries {
		t.Error("an approval that changes nothing was written")
	}
	k = must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)
	if !slices.Equal(k.At(0).Approved, []string{alice.Name, bob.Name}) || len(w.entries()) != entries+1 {
		t.Errorf("approved by %v, %d entries more", k.At(0).Approved, len(w.entries())-entries)
	}
}

func TestDestroy(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	m, first := w.make(k, 1), k.At(0)
	_, err := w.Approve(t.Context(), alice, w.ref(k), 1)
	wantCode(t, err, fault.InUse)
	_, err = w.Retire(t.Context(), alice, w.ref(k), 1, w.census(k, 1), nil, w.member(k))
	wantCode(t, err, fault.InUse)
	w.rotate(k)
	full := w.census(k, 1)
	full.Remaining = 1
	_, err = w.Retire(t.Context(), alice, w.ref(k), 1, full, nil, w.member(k))
	wantCode(t, err, fault.InUse)
	_, err = w.Retire(t.Context(), alice, w.ref(k), 1, w.census(k, 1), nil, guard.Cond{Path: w.member(k).Path, Rev: 1})
	wantCode(t, err, fault.Conflict) // the membership changed since
	_, err = w.Unretire(t.Context(), alice, w.ref(k), 1)
	wantCode(t, err, fault.WrongState)
	w.retire(k)
	_, err = w.Material(t.Context(), must(w.Get(t.Context(), alice, w.ref(k)))(t), 1)
	wantCode(t, err, fault.VersionRetired)

	refused := func(why string, code fault.Code) {
		t.Helper()
		records := w.raw()
		_, err := w.tryDestroy(k)
		wantCode(t, err, code)
		if err != nil && !strings.Contains(err.Error(), why) || !maps.Equal(records, w.raw()) {
			t.Errorf("%v; want %q, and nothing written", err, why)
		}
	}
	refused("then for a census, and has 0 of 2 approvals", fault.GateClosed) // who asked first does not take the time for all that is missing
	w.pass(wait)
	refused("0 of 2 approvals", fault.GateClosed)
	for range 2 {
		must(w.Approve(t.Context(), alice, w.ref(k), 1))(t)
	}
	refused("1 of 2 approvals", fault.GateClosed)
	must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)

	// An attempt restarts the wait: by whatever way, and also when the caller has hung up.
	gone, hang := context.WithCancel(t.Context())
	hang()
	for name, attempt := range map[string]func() error{
		"decrypt":   func() error { _, _, err := w.Decrypt(t.Context(), alice, w.ref(k), m.message, parts); return err },
		"hung up":   func() error { _, _, err := w.Decrypt(gone, alice, w.ref(k), m.message, parts); return err },
		"opens":     func() error { _, err := w.Opens(t.Context(), k.ID, m.message, parts); return err },
		"reencrypt": func() error { _, _, err := w.Reencrypt(t.Context(), k.ID, 2, m.message, parts); return err },
	} {
		w.pass(wait)
		wantCode(t, attempt(), fault.VersionRetired)
		if now := must(w.Get(t.Context(), alice, w.ref(k)))(t); !now.At(0).Retired.Equal(w.now()) {
			t.Errorf("%s did not restart the wait", name)
		}
		refused("waits until", fault.GateClosed)
		w.pass(wait - time.Second)
		refused("waits until", fault.GateClosed)
	}
	w.pass(time.Second)

	path := "material/default/" + string(k.ID) + "/1"
	if w.raw()[path] == "" {
		t.Fatal("the material is gone too early")
	}
	_, err = w.Step(t.Context(), k.ID, guard.Cond{Path: w.member(k).Path, Rev: 1}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		return rotation.Destroy(k, 1, w.census(k, 1), nil, now)
	})
	wantCode(t, err, fault.Conflict) // the membership changed since
	k = must(w.tryDestroy(k))(t)
	if v := k.At(0); v.Phase != keyring.PhaseDestroyed || v.State != keyring.Destroyed || v.Handle != first.Handle || !v.Destroyed.Equal(w.now()) {
		t.Errorf("the tombstone: %+v", v)
	}
	if _, there := w.raw()[path]; there {
		t.Error("the material is still there")
	}
	w.used(k, first)
	wantCode(t, w.process(k, 1, m), fault.VersionDestroyed)
	_, err = w.Material(t.Context(), k, 1)
	wantCode(t, err, fault.VersionDestroyed)
	_, err = w.Approve(t.Context(), alice, w.ref(k), 1)
	wantCode(t, err, fault.VersionDestroyed)
	_, err = w.Unretire(t.Context(), alice, w.ref(k), 1)
	wantCode(t, err, fault.WrongState)

	if k = w.rotate(k); k.Primary != 3 || k.At(2).Handle == first.Handle {
		t.Errorf("a number or handle was used again: %d", k.Primary)
	}
	if k, _ = w.serve().Key(k.ID); k.At(0).Phase != keyring.PhaseDestroyed {
		t.Error("another start does not know of the destruction")
	}
}

func TestAttemptsOfStrangersRestartNothing(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.MAC)
	m := w.make(k, 1)
	w.rotate(k)
	w.retire(k)
	w.pass(time.Hour)
	records := w.raw()
	wantCode(t, w.Verify(t.Context(), mallory, w.ref(k), 1, text, m.tag), fault.Denied)
	if !maps.Equal(records, w.raw()) {
		t.Error("a stranger restarted the wait")
	}
	entries := len(w.entries())
	wantCode(t, w.process(k, 1, m), fault.VersionRetired)
	wantCode(t, w.process(k, 1, m), fault.VersionRetired) // within the same second
	log := w.entries()
	if len(log) != entries+1 || log[len(log)-1].Detail["attempt_of"] != alice.Name {
		t.Errorf("%d entries more, the last is %+v", len(log)-entries, log[len(log)-1])
	}
}

func TestUnretireForgetsTheApprovals(t *testing.T) {
	w := newWorld(t)
	k := w.retired("k", suite.Encrypt)
	must(w.Approve(t.Context(), alice, w.ref(k), 1))(t)
	must(w.Unretire(t.Context(), alice, w.ref(k), 1))(t)
	w.retire(k)
	k = must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)
	if !slices.Equal(k.At(0).Approved, []string{bob.Name}) {
		t.Errorf("approved by %v", k.At(0).Approved)
	}
}

// anybody lets everybody do everything.
type anybody struct{}

func (anybody) Allows(policy.Caller, policy.Action, policy.Resource) (string, bool) {
	return "test", true
}

// TestApproversAreWhoTheyAre: a caller whose name has another's in it is one approver in the evidence, and not that other.
func TestApproversAreWhoTheyAre(t *testing.T) {
	w := newWorld(t)
	w.guard.SetRules(anybody{})
	k := w.rotate(w.create("k", suite.Encrypt))
	census := func() rotation.Census {
		now := must(w.Get(t.Context(), alice, w.ref(k)))(t)
		return rotation.Census{Version: 1, Epoch: now.Epoch, Settled: true, Started: w.now()}
	}
	must(w.Retire(t.Context(), alice, w.ref(k), 1, census(), nil, guard.Cond{Path: "members/none"}))(t)
	forger := policy.Caller{Kind: policy.KindToken, Name: "token/ci/x, admin/alice"}
	must(w.Approve(t.Context(), forger, w.ref(k), 1))(t)
	must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)
	w.pass(8 * 24 * time.Hour)
	c := census()
	must(w.Destroyed(t.Context(), k.ID, 1, nil, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		return rotation.Destroy(k, 1, c, nil, now)
	}))(t)
	for _, e := range w.entries() {
		if by := strings.Split(e.Detail["approved_by"], ", "); e.Detail["destroyed"] == "true" && (len(by) != 2 || slices.Contains(by, alice.Name)) {
			t.Errorf("approved by %q", by)
		}
	}
}
