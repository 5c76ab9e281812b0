package kms_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// transit makes a key of purpose transit at transit/NAME.
func (w *world) transit(name string, a suite.Algorithm, with ...func(*keyring.Transit)) keyring.Key {
	w.t.Helper()
	spec := kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/" + name}, Algorithm: a}
	for _, f := range with {
		f(&spec.Transit)
	}
	k, created, err := w.TransitCreate(w.t.Context(), alice, spec)
	if err != nil || !created {
		w.t.Fatalf("create %s: %t, %v", name, created, err)
	}
	return k
}

func deletable(t *keyring.Transit) { t.DeletionAllowed = true }

func TestTransitCreate(t *testing.T) {
	w := newWorld(t)
	k := w.transit("orders", "")
	if k.Algorithm != suite.AES256GCM || k.Primary != 1 || k.Transit.MinDecryption != 1 || k.Purpose != suite.Transit {
		t.Errorf("%+v", k)
	}
	again, created, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: w.ref(k), Algorithm: suite.Ed25519})
	if err != nil || created || again.ID != k.ID || again.Algorithm != suite.AES256GCM {
		t.Errorf("%v, %t, %v", again.Algorithm, created, err)
	}
	for _, name := range []string{"transit/", "transit/-a", "orders", "transit/../x", "transit/a b", strings.Repeat("m/", 100) + "k"} {
		_, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: name}})
		wantCode(t, err, fault.Invalid)
	}
	for a, want := range map[suite.Algorithm]fault.Code{
		suite.AES128GCM: "", suite.ChaCha20Poly1305: "", suite.XChaCha20Poly1305: "", suite.ES256: "", suite.ES384: "", suite.ES512: "", suite.Ed25519: "", suite.RSA2048: "",
		suite.HMAC: "", suite.MLDSA65: "", suite.XAES256GCM: fault.AlgorithmForbidden, suite.HPKEXWing: fault.AlgorithmForbidden, suite.PS256: fault.AlgorithmForbidden,
	} {
		_, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/" + string(a)}, Algorithm: a})
		wantCode(t, err, want)
	}
	if names := must(w.TransitList(t.Context(), alice, "default", "transit"))(t); len(names) != 11 || !slices.IsSorted(names) || !slices.Contains(names, "orders") {
		t.Errorf("%v", names)
	}
	w.older.Store(true)
	_, _, err = w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/late"}})
	wantCode(t, err, fault.Unavailable)
}

// TestTransitIsOneOfTheHouse: what works on every key works on these, and what is for one use alone does not.
func TestTransitIsOneOfTheHouse(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	ref := w.ref(k)
	for name, err := range map[string]error{
		"encrypt": second(w.Encrypt(t.Context(), alice, ref, []byte("x"), nil)),
		"sign":    second(w.Sign(t.Context(), alice, ref, []byte("x"))),
		"mac":     second(w.MAC(t.Context(), alice, ref, []byte("x"))),
	} {
		if wantCode(t, err, fault.WrongPurpose); !strings.Contains(hint(err), "/v1/transit/k") {
			t.Errorf("%s: %q", name, hint(err))
		}
	}
	_, err := w.Export(t.Context(), alice, ref, 1, suite.TransportRSA, nil)
	wantCode(t, err, fault.WrongPurpose)
	_, err = w.RotateTo(t.Context(), alice, ref, 0, suite.AES128GCM)
	wantCode(t, err, fault.AlgorithmForbidden)
	_, err = w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "k", Purpose: suite.Transit})
	wantCode(t, err, fault.Invalid)
	must(w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "transit/native", Purpose: suite.Transit}))(t)
	must(w.Change(t.Context(), alice, ref, 1, keyring.Suspend, "why"))(t)
	must(w.Change(t.Context(), alice, ref, 1, keyring.Resume, ""))(t)
	must(w.Backup(t.Context(), alice, ref, kms.BackupFor{Keep: 24 * time.Hour}))(t)
}

func second[A, B any](_ A, _ B, err error) error { return err }

func hint(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.HintText()
	}
	return ""
}

// TestTransitRotatesAtOnce: one commit, one entry, and the next version is primary; with a margin it is staged.
func TestTransitRotatesAtOnce(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	before := len(w.entries())
	k = must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	if k.Primary != 2 || k.Target != 0 || k.At(0).Phase != keyring.PhaseDecryptOnly || k.At(1).State != keyring.Active {
		t.Errorf("%+v", k)
	}
	changes := 0
	for _, e := range w.entries()[before:] {
		if e.Class == audit.ClassChange {
			changes++
		}
	}
	if changes != 1 {
		t.Errorf("%d entries tell of it", changes)
	}
	slow, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/slow"}, Rotation: keyring.Rotation{Margin: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	slow = must(w.TransitRotate(t.Context(), alice, w.ref(slow)))(t)
	if slow.Primary != 1 || slow.Target != 2 || slow.At(1).Phase != keyring.PhaseStaged {
		t.Errorf("%+v", slow)
	}
	_, err = w.TransitRotate(t.Context(), alice, w.ref(slow))
	wantCode(t, err, fault.RotationInFlight)
}

func TestTransitFloors(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	for range 3 {
		k = must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	}
	ref := w.ref(k)
	configure := func(dec, enc uint32) error {
		_, err := w.TransitConfigure(t.Context(), alice, ref, kms.TransitChange{MinDecryption: &dec, MinEncryption: &enc})
		return err
	}
	for _, c := range []struct {
		dec, enc uint32
		text     string // of the refusal; empty: none
	}{
		{5, 0, "cannot set min decryption version of 5, latest key version is 4"},
		{1, 5, "cannot set min encryption version of 5, latest key version is 4"},
		{3, 2, "min encryption version of 2 must be greater than or equal to min decryption version of 3"},
		{0, 0, ""},
		{2, 3, ""},
	} {
		err := configure(c.dec, c.enc)
		if (err == nil) != (c.text == "") || !strings.Contains(hint(err), c.text) {
			t.Errorf("%d, %d: %v, %s", c.dec, c.enc, err, hint(err))
		}
	}
	for _, c := range []struct {
		n    uint32
		text string
	}{
		{0, "should be positive"}, {3, "greater than minimum decryption version"}, {4, "greater than minmum encryption version"}, {2, ""}, {1, "cannot be decremented"}, {2, ""},
	} {
		_, err := w.TransitTrim(t.Context(), alice, ref, c.n)
		if (err == nil) != (c.text == "") || !strings.Contains(hint(err), c.text) {
			t.Errorf("trim %d: %v, %s", c.n, err, hint(err))
		}
	}
	if err := configure(1, 3); !strings.Contains(hint(err), "min available version") {
		t.Errorf("%v", err)
	}
	k = must(w.TransitGet(t.Context(), alice, ref))(t)
	if k.Len() != 4 || k.Transit.MinAvailable != 2 || k.At(0).Phase != keyring.PhaseDecryptOnly {
		t.Errorf("a trimmed version is not there any more: %+v", k)
	}
}

// TestTransitDelete: the name is free at once, nothing is lost, and the key comes back under any free name.
func TestTransitDelete(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	_, err := w.TransitDelete(t.Context(), alice, w.ref(k))
	if wantCode(t, err, fault.WrongState); !errors.Is(err, kms.ErrDeletionNotAllowed) {
		t.Error(err)
	}
	must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{DeletionAllowed: new(true)}))(t)
	must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	gone := must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	if gone.Name != "transit/k.deleted-"+string(k.ID)[:8] || gone.At(0).Phase != keyring.PhaseRetired || gone.At(1).Phase != keyring.PhaseRetired {
		t.Errorf("%+v", gone)
	}
	for _, ref := range []kms.Ref{w.ref(k), w.ref(gone)} { // for clients there is neither
		_, err = w.TransitGet(t.Context(), alice, ref)
		wantCode(t, err, fault.NotFound)
		_, err = w.TransitDelete(t.Context(), alice, ref)
		wantCode(t, err, fault.NotFound)
	}
	if names := must(w.TransitList(t.Context(), alice, "default", "transit"))(t); len(names) != 0 {
		t.Errorf("%v", names)
	}
	if got := must(w.Get(t.Context(), alice, w.ref(gone)))(t); got.ID != k.ID {
		t.Errorf("%+v", got)
	}
	_, err = w.Rotate(t.Context(), alice, w.ref(gone), 0)
	wantCode(t, err, fault.WrongState)
	_, err = w.Unretire(t.Context(), alice, w.ref(gone), 1)
	wantCode(t, err, fault.WrongState)
	other := w.transit("k", "", deletable)
	_, err = w.TransitUndelete(t.Context(), alice, w.ref(gone), "")
	wantCode(t, err, fault.Exists)
	_, err = w.TransitUndelete(t.Context(), alice, w.ref(gone), "k")
	wantCode(t, err, fault.Invalid)
	back := must(w.TransitUndelete(t.Context(), alice, w.ref(gone), "transit/back"))(t)
	if back.ID != k.ID || back.Primary != 2 || back.At(1).Phase != keyring.PhasePrimary || back.At(0).Phase != keyring.PhaseDecryptOnly || back.Deleted() {
		t.Errorf("%+v", back)
	}
	must(w.TransitDelete(t.Context(), alice, w.ref(other)))(t)
	second := w.transit("k", "", deletable)
	must(w.TransitDelete(t.Context(), alice, w.ref(second)))(t)
	if _, err := w.TransitUndelete(t.Context(), alice, kms.Ref{Namespace: "default", Name: "transit/nothing"}, ""); fault.CodeOf(err) != fault.NotFound {
		t.Error(err)
	}
}

// TestDeletedIsDestroyedThroughTheGates: approvals, the wait and a census; and whoever brings the key back after that has a new version.
func TestDeletedIsDestroyedThroughTheGates(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "", deletable)
	k = must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	gone := must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	destroy := func(n uint32) error {
		census := rotation.Census{Version: n, Epoch: must(w.Get(t.Context(), alice, w.ref(gone)))(t).Epoch, Settled: true, Started: w.now()}
		_, err := w.Destroyed(t.Context(), k.ID, n, nil, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
			return rotation.Destroy(w.Floored(k), n, census, nil, now)
		})
		return err
	}
	wantCode(t, destroy(2), fault.GateClosed)
	must(w.Approve(t.Context(), alice, w.ref(gone), 2))(t)
	must(w.Approve(t.Context(), bob, w.ref(gone), 2))(t)
	wantCode(t, destroy(2), fault.GateClosed) // it has to wait
	w.pass(8 * 24 * time.Hour)
	if err := destroy(2); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.raw()["material/default/"+string(k.ID)+"/2"]; ok {
		t.Error("the material is still there")
	}
	must(w.Approve(t.Context(), alice, w.ref(gone), 1))(t) // writes down that it is retired
	back := must(w.TransitUndelete(t.Context(), alice, w.ref(gone), ""))(t)
	phases := map[uint32]keyring.Phase{1: keyring.PhaseDecryptOnly, 2: keyring.PhaseDestroyed, 3: keyring.PhasePrimary}
	for v := range back.All() {
		if v.Phase != phases[v.Number] {
			t.Errorf("version %d is %s", v.Number, v.Phase)
		}
	}
	if back.Primary != 3 || back.Name != k.Name {
		t.Errorf("%+v", back)
	}
}

func TestTransitSoftDelete(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	_, err := w.TransitSoftDelete(t.Context(), alice, w.ref(k))
	if !errors.Is(err, kms.ErrDeletionNotAllowed) {
		t.Error(err)
	}
	must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{DeletionAllowed: new(true)}))(t)
	must(w.TransitSoftDelete(t.Context(), alice, w.ref(k)))(t)
	_, err = w.TransitRotate(t.Context(), alice, w.ref(k))
	if wantCode(t, err, fault.WrongState); !errors.Is(err, kms.ErrSoftDeleted) {
		t.Error(err)
	}
	_, err = w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{Exportable: new(true)})
	wantCode(t, err, fault.WrongState)
	must(w.TransitUnsoftDelete(t.Context(), alice, w.ref(k)))(t)
	must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
}

// TestRenameReachesTheOtherServer: a server that is behind finds a deleted key gone, and the key that has its name now.
func TestRenameReachesTheOtherServer(t *testing.T) {
	w := newWorld(t)
	other, _ := w.second(nil)
	k := w.transit("k", "", deletable)
	must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	_, err := other.TransitGet(t.Context(), alice, w.ref(k))
	wantCode(t, err, fault.NotFound)
	next := w.transit("k", "", deletable)
	if got := must(other.TransitGet(t.Context(), alice, w.ref(k)))(t); got.ID != next.ID {
		t.Errorf("%s is not %s", got.ID, next.ID)
	}
	must(other.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	if got := must(w.TransitUndelete(t.Context(), alice, kms.Ref{Namespace: "default", Name: k.DeletedName()}, ""))(t); got.ID != k.ID {
		t.Errorf("%s is not %s", got.ID, k.ID)
	}
}

// TestDeleteOfUnknownOutcome: an answer that is lost is found out, and what was not written is not claimed.
func TestDeleteOfUnknownOutcome(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "", deletable)
	w.store.lose.Store(loseBefore)
	_, err := w.TransitDelete(t.Context(), alice, w.ref(k))
	wantCode(t, err, fault.OutcomeUnknown)
	must(w.TransitGet(t.Context(), alice, w.ref(k)))(t)
	w.store.lose.Store(loseAfter)
	must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	_, err = w.TransitGet(t.Context(), alice, w.ref(k))
	wantCode(t, err, fault.NotFound)
}
