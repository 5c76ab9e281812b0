package kms_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
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
	w.known.Store(replica.FormatPages - 1)
	_, _, err = w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/late"}})
	wantCode(t, err, fault.Unavailable)
}

// TestHandlesOfTransitKeys: they tell versions of a key apart, and no record keeps them from others, as no ciphertext has them; those of other keys are
// taken for ever.
func TestHandlesOfTransitKeys(t *testing.T) {
	w := newWorld(t)
	ref := kms.Ref{Namespace: "default", Name: "transit/orders"}
	if _, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: ref}); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		must(w.TransitRotate(t.Context(), alice, ref))(t)
	}
	k := must(w.Get(t.Context(), alice, ref))(t)
	handles := map[uint32]bool{}
	for v := range k.All() {
		handles[v.Handle] = true
	}
	if len(handles) != 21 || handles[0] {
		t.Errorf("%d handles of 21 versions", len(handles))
	}
	taken := func() (n int) {
		for path := range w.raw() {
			if strings.HasPrefix(path, "handle/") {
				n++
			}
		}
		return n
	}
	if n := taken(); n != 0 {
		t.Errorf("%d handles are taken", n)
	}
	w.create("k", suite.Encrypt)
	if n := taken(); n != 1 {
		t.Errorf("%d handles are taken", n)
	}
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
		if wantCode(t, err, fault.WrongPurpose); !strings.Contains(hint(err), "/v1/transit/encrypt/k") {
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

// TestTransitMove: keys keep ID, versions and ciphertexts; none moves while one of them may not, or has no place; and a move that broke off goes on.
func TestTransitMove(t *testing.T) {
	w := newWorld(t)
	a, b := w.transit("a", ""), w.transit("b", "")
	ct := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(a), item(kms.TransitItem{Plaintext: []byte("hello")})))
	move := func(from, to string) error { return w.TransitMove(t.Context(), alice, "default", from, to) }
	at := func(name string) kms.Ref { return kms.Ref{Namespace: "default", Name: name} }
	taken, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: at("team/b")})
	wantCode(t, err, "")
	wantCode(t, move("transit", "team"), fault.Exists)
	wantCode(t, move("transit", strings.Repeat("x", 192)), fault.Invalid)
	if k := must(w.Get(t.Context(), alice, at("transit/a")))(t); k.ID != a.ID {
		t.Errorf("a move that was refused moved %+v", k)
	}
	may := true
	must(w.TransitConfigure(t.Context(), alice, at("team/b"), kms.TransitChange{DeletionAllowed: &may}))(t)
	must(w.TransitDelete(t.Context(), alice, at("team/b")))(t)
	wantCode(t, move("transit", "team"), "")
	wantCode(t, move("transit", "team"), "") // as after a crash
	k := must(w.Get(t.Context(), alice, at("team/a")))(t)
	if k.ID != a.ID || must(w.Get(t.Context(), alice, at("team/b")))(t).ID != b.ID || must(w.Get(t.Context(), alice, at(taken.DeletedName())))(t).ID != taken.ID {
		t.Errorf("%+v", k)
	}
	if p := one(t)(w.TransitDecrypt(t.Context(), alice, at("team/a"), item(kms.TransitItem{Ciphertext: ct.Ciphertext}))); string(p.Plaintext) != "hello" {
		t.Errorf("%q", p.Plaintext)
	}
	_, err = w.Get(t.Context(), alice, at("transit/a"))
	wantCode(t, err, fault.NotFound)
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

// one is the result of a request about one item.
func one(t *testing.T) func(out []kms.TransitResult, err error) kms.TransitResult {
	return func(out []kms.TransitResult, err error) kms.TransitResult {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if len(out) != 1 {
			t.Fatalf("%d results", len(out))
		}
		return out[0]
	}
}

func item(it kms.TransitItem) []kms.TransitItem { return []kms.TransitItem{it} }

func TestTransitEncrypt(t *testing.T) {
	w := newWorld(t)
	for _, a := range []suite.Algorithm{suite.AES128GCM, suite.AES256GCM, suite.ChaCha20Poly1305, suite.XChaCha20Poly1305, suite.RSA2048} {
		k := w.transit("k-"+string(a), a)
		ct := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), item(kms.TransitItem{Plaintext: []byte("hello")})))
		if ct.Err != nil || !strings.HasPrefix(ct.Ciphertext, "vault:v1:") {
			t.Fatalf("%s: %+v", a, ct)
		}
		must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
		pt := one(t)(w.TransitDecrypt(t.Context(), alice, w.ref(k), item(kms.TransitItem{Ciphertext: ct.Ciphertext})))
		if pt.Err != nil || string(pt.Plaintext) != "hello" {
			t.Errorf("%s: %+v", a, pt)
		}
		re := one(t)(w.TransitRewrap(t.Context(), alice, w.ref(k), item(kms.TransitItem{Ciphertext: ct.Ciphertext})))
		if re.Err != nil || !re.Changed || re.Version != 2 || !strings.HasPrefix(re.Ciphertext, "vault:v2:") || re.Plaintext != nil {
			t.Errorf("%s: %+v", a, re)
		}
		same := one(t)(w.TransitRewrap(t.Context(), alice, w.ref(k), item(kms.TransitItem{Ciphertext: re.Ciphertext})))
		if same.Err != nil || same.Changed || same.Ciphertext != re.Ciphertext || same.Version != 2 || same.Plaintext != nil {
			t.Errorf("%s: %+v", a, same)
		}
	}
}

func TestTransitRewrapWithAssociatedData(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "", func(t *keyring.Transit) { t.Derived, t.Convergent = true, 3 })
	it := kms.TransitItem{Plaintext: []byte("x"), Context: []byte("c"), AssociatedData: []byte("a")}
	it.Ciphertext = one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), item(it))).Ciphertext
	if again := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), item(it))); again.Ciphertext != it.Ciphertext {
		t.Error("it is not convergent")
	}
	must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	re := one(t)(w.TransitRewrap(t.Context(), alice, w.ref(k), item(it)))
	if re.Err != nil || !re.Changed {
		t.Fatalf("%+v", re)
	}
	it.Ciphertext = re.Ciphertext
	if same := one(t)(w.TransitRewrap(t.Context(), alice, w.ref(k), item(it))); same.Err != nil || same.Changed || same.Ciphertext != re.Ciphertext {
		t.Errorf("%+v", same)
	}
	for _, bend := range map[string]func(*kms.TransitItem){
		"other associated data": func(it *kms.TransitItem) { it.AssociatedData = []byte("b") },
		"none":                  func(it *kms.TransitItem) { it.AssociatedData = nil },
		"another context":       func(it *kms.TransitItem) { it.Context = []byte("d") },
	} {
		bent := it
		bend(&bent)
		wantCode(t, one(t)(w.TransitRewrap(t.Context(), alice, w.ref(k), item(bent))).Err, fault.DecryptFailed)
		wantCode(t, one(t)(w.TransitDecrypt(t.Context(), alice, w.ref(k), item(bent))).Err, fault.DecryptFailed)
	}
	bare := it
	bare.Context = nil
	if r := one(t)(w.TransitDecrypt(t.Context(), alice, w.ref(k), item(bare))); transit.Text(r.Err) != string(transit.NoContext) {
		t.Errorf("%v", r.Err)
	}
}

// TestTransitVersions: which versions protect and process, and in which words the others are refused.
func TestTransitVersions(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	ref := w.ref(k)
	var cts []string
	for range 4 {
		cts = append(cts, one(t)(w.TransitEncrypt(t.Context(), alice, ref, item(kms.TransitItem{Plaintext: []byte("x")}))).Ciphertext)
		must(w.TransitRotate(t.Context(), alice, ref))(t)
	}
	must(w.TransitConfigure(t.Context(), alice, ref, kms.TransitChange{MinDecryption: new(uint32(2)), MinEncryption: new(uint32(3))}))(t)
	encrypt := func(n uint32) error {
		return one(t)(w.TransitEncrypt(t.Context(), alice, ref, item(kms.TransitItem{Plaintext: []byte("x"), Version: n}))).Err
	}
	decrypt := func(ct string) error {
		return one(t)(w.TransitDecrypt(t.Context(), alice, ref, item(kms.TransitItem{Ciphertext: ct}))).Err
	}
	body := strings.TrimPrefix(cts[0], "vault:v1:")
	for what, c := range map[string]struct {
		err  error
		code fault.Code
		text string
	}{
		"encrypt under 2":  {encrypt(2), fault.BelowFloor, "requested version for encryption is less than the minimum encryption key version"},
		"encrypt under 3":  {encrypt(3), "", ""},
		"encrypt under 6":  {encrypt(6), fault.UnknownVersion, "requested version for encryption is higher than the latest key version"},
		"decrypt 1":        {decrypt(cts[0]), fault.BelowFloor, string(transit.TooOld)},
		"decrypt 2":        {decrypt(cts[1]), "", ""},
		"decrypt 6":        {decrypt("vault:v6:" + body), fault.UnknownVersion, string(transit.TooNew)},
		"decrypt 0":        {decrypt("vault:v0:" + body), fault.BelowFloor, string(transit.TooOld)},
		"another version":  {decrypt("vault:v3:" + body), fault.DecryptFailed, string(transit.WrongCipher)},
		"no prefix":        {decrypt(body), fault.Invalid, "invalid ciphertext: no prefix"},
		"wrong base64":     {decrypt("vault:v3:???"), fault.Invalid, "invalid ciphertext: could not decode base64"},
		"no base64 of 1":   {decrypt("vault:v1:???"), fault.BelowFloor, string(transit.TooOld)},
		"no base64 of 0":   {decrypt("vault:v0:???"), fault.BelowFloor, string(transit.TooOld)},
		"no base64 of 6":   {decrypt("vault:v6:???"), fault.UnknownVersion, string(transit.TooNew)},
		"of nothing":       {decrypt("vault:v3:"), fault.DecryptFailed, string(transit.TooShort)},
		"a number too big": {decrypt("vault:v99999999999:" + body), fault.UnknownVersion, string(transit.TooNew)},
	} {
		if fault.CodeOf(c.err) != c.code || transit.Text(c.err) != c.text {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	// What administrators do natively counts at once.
	must(w.Change(t.Context(), alice, ref, 2, keyring.Compromise, "leaked"))(t)
	wantCode(t, decrypt(cts[1]), fault.WrongState)
	wantCode(t, decrypt(cts[2]), "")
	must(w.Change(t.Context(), alice, ref, 4, keyring.Suspend, ""))(t)
	wantCode(t, encrypt(4), fault.WrongState)
	w.pass(25 * time.Hour)
	must(w.Step(t.Context(), k.ID, guard.Cond{}, settle))(t)
	if err := encrypt(3); fault.CodeOf(err) != fault.BelowFloor || transit.Text(err) != "requested version for encryption is less than the minimum encryption key version" {
		t.Errorf("deactivated: it protects nothing any more, and processes: %v", err)
	}
	wantCode(t, decrypt(cts[2]), "")
	wantCode(t, encrypt(0), "")
}

// TestTransitBatch: bad items fail by themselves, and a request is one entry and one count.
func TestTransitBatch(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	ref := w.ref(k)
	items := make([]kms.TransitItem, 100)
	for i := range items {
		items[i].Plaintext = []byte{byte(i)}
	}
	items[7].Version = 9
	out := must(w.TransitEncrypt(t.Context(), alice, ref, items))(t)
	for i := range out {
		items[i].Ciphertext = out[i].Ciphertext
		if (out[i].Err != nil) != (i == 7) {
			t.Errorf("%d: %v", i, out[i].Err)
		}
	}
	must(w.TransitRotate(t.Context(), alice, ref))(t)
	items[8].AssociatedData = []byte("wrong")
	back := must(w.TransitRewrap(t.Context(), alice, ref, items))(t)
	for i := range back {
		bad := i == 7 || i == 8
		if (back[i].Err != nil) != bad || back[i].Changed == bad || back[i].Plaintext != nil {
			t.Errorf("%d: %+v", i, back[i])
		}
		items[i].Ciphertext = back[i].Ciphertext
	}
	plain := must(w.TransitDecrypt(t.Context(), alice, ref, items))(t)
	for i := range plain {
		if bad := i == 7 || i == 8; (plain[i].Err != nil) != bad || !bad && plain[i].Plaintext[0] != byte(i) {
			t.Errorf("%d: %+v", i, plain[i])
		}
	}
	if err := w.guard.CloseWindows(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range w.entries() {
		if e.Outcome == "closed" {
			got[e.Action+" "+e.Detail["version"]] = e.Detail["count"]
		}
	}
	for what, n := range map[string]string{"encrypt 1": "99", "rewrap 1": "99", "rewrap 2": "98", "decrypt 2": "98"} {
		if got[what] != n {
			t.Errorf("%s: %q uses in the log, not %s", what, got[what], n)
		}
	}
	_, err := w.TransitEncrypt(t.Context(), alice, ref, make([]kms.TransitItem, kms.MaxBatch+1))
	wantCode(t, err, fault.TooLarge)
	sealed := w.transit("s", suite.Ed25519)
	r := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(sealed), make([]kms.TransitItem, 1)))
	if !strings.Contains(transit.Text(r.Err), "message encryption not supported for key type ed25519") {
		t.Errorf("%v", r.Err)
	}
}

func TestTransitDataKey(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	for _, bits := range []int{128, 256, 512} {
		plain, ct, n, err := w.TransitDataKey(t.Context(), alice, w.ref(k), bits, kms.TransitItem{}, true)
		if err != nil || plain.Len() != bits/8 || n != 1 {
			t.Fatalf("%d bits: %d bytes, %v", bits, plain.Len(), err)
		}
		if r := one(t)(w.TransitDecrypt(t.Context(), alice, w.ref(k), item(kms.TransitItem{Ciphertext: ct}))); string(r.Plaintext) != string(plain.Reveal()) {
			t.Errorf("%d bits: %v", bits, r.Err)
		}
	}
	plain, ct, _, err := w.TransitDataKey(t.Context(), alice, w.ref(k), 256, kms.TransitItem{}, false)
	if err != nil || plain.Len() != 0 || ct == "" {
		t.Errorf("%v", err)
	}
	_, _, _, err = w.TransitDataKey(t.Context(), alice, w.ref(k), 100, kms.TransitItem{}, true)
	wantCode(t, err, fault.Invalid)
	if err := w.guard.CloseWindows(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range w.entries() {
		if e.Class == audit.ClassUse && e.Outcome == "closed" {
			got[e.Action] = e.Detail["count"]
		}
	}
	if d := cmp.Diff(map[string]string{"datakey": "3", "encrypt": "1", "decrypt": "3"}, got); d != "" {
		t.Errorf("uses in the log (-want +got):\n%s", d)
	}
}

// TestTransitRotationTakesABlock: the commit that makes a version primary takes its first uses, and a commit that was not made gives none.
func TestTransitRotationTakesABlock(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", suite.AES256GCM)
	must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	taken := func() (n int) {
		for _, e := range w.entries() {
			if e.Action == "encrypt" && e.Detail["uses_taken"] != "" {
				n++
			}
		}
		return n
	}
	before := taken()
	one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), make([]kms.TransitItem, 1)))
	if n := taken() - before; n != 0 {
		t.Errorf("%d blocks were taken for the first use", n)
	}
	w.store.lose.Store(loseBefore)
	_, err := w.TransitRotate(t.Context(), alice, w.ref(k))
	wantCode(t, err, fault.OutcomeUnknown)
	other := w.serve()
	must(other.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	if err := w.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), make([]kms.TransitItem, 1)))
	if n := taken() - before; n != 1 {
		t.Errorf("%d blocks were taken of a version that another server made", n)
	}
}

func TestTransitSign(t *testing.T) {
	w := newWorld(t)
	msg := func(m kms.TransitMessage) []kms.TransitMessage { return []kms.TransitMessage{m} }
	for _, a := range []suite.Algorithm{suite.Ed25519, suite.ES256, suite.ES384, suite.ES512, suite.RSA2048, suite.MLDSA44} {
		k := w.transit("k-"+string(a), a)
		m := kms.TransitMessage{Input: []byte("hello"), Options: transit.SignOptions{Hash: transit.SHA256, Salt: transit.SaltAuto}}
		sig := one(t)(w.TransitSign(t.Context(), alice, w.ref(k), msg(m)))
		if sig.Err != nil || sig.Version != 1 {
			t.Fatalf("%s: %+v", a, sig)
		}
		must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
		m.Text = sig.Ciphertext
		if r := one(t)(w.TransitVerify(t.Context(), alice, w.ref(k), msg(m))); !r.Valid || r.Err != nil {
			t.Errorf("%s: %+v", a, r)
		}
		m.Input = []byte("hullo")
		if r := one(t)(w.TransitVerify(t.Context(), alice, w.ref(k), msg(m))); r.Valid || r.Err != nil {
			t.Errorf("%s: %+v", a, r)
		}
	}
	for _, a := range []suite.Algorithm{suite.AES256GCM, suite.HMAC, suite.ES256} {
		k := w.transit("h-"+string(a), a)
		m := kms.TransitMessage{Input: []byte("hello"), Hash: transit.SHA256}
		sum := one(t)(w.TransitHMAC(t.Context(), alice, w.ref(k), msg(m)))
		m.Text = sum.Ciphertext
		if r := one(t)(w.TransitVerifyHMAC(t.Context(), alice, w.ref(k), msg(m))); !r.Valid || r.Err != nil {
			t.Errorf("%s: %+v, %+v", a, sum, r)
		}
		m.Input = nil
		if r := one(t)(w.TransitVerifyHMAC(t.Context(), alice, w.ref(k), msg(m))); r.Valid || r.Err != nil {
			t.Errorf("%s: %+v", a, r)
		}
	}
	d := w.transit("derived", suite.Ed25519, func(t *keyring.Transit) { t.Derived = true })
	m := kms.TransitMessage{Input: []byte("hello"), Options: transit.SignOptions{Context: []byte("c")}}
	sig := one(t)(w.TransitSign(t.Context(), alice, w.ref(d), msg(m)))
	public := must(w.TransitPublic(t.Context(), alice, w.ref(d), []byte("c")))(t)
	if sig.Err != nil || len(public[1]) != 32 || string(public[1]) != string(sig.Public) {
		t.Errorf("%+v, %x", sig, public)
	}
	plain := w.transit("aes", "")
	if r := one(t)(w.TransitSign(t.Context(), alice, w.ref(plain), msg(m))); !strings.Contains(transit.Text(r.Err), "does not support signing") {
		t.Errorf("%v", r.Err)
	}
}

func TestTransitImport(t *testing.T) {
	w := newWorld(t)
	public := must(w.TransitWrappingKey(t.Context(), alice, "default", "transit"))(t)
	if again := must(w.TransitWrappingKey(t.Context(), bob, "default", "other"))(t); string(again) != string(public) {
		t.Error("there are two wrapping keys")
	}
	wrap := func(m secret.Bytes) kms.TransitImported {
		t.Helper()
		return kms.TransitImported{Ciphertext: must(transit.Wrap(public, m, transit.SHA256))(t), Hash: transit.SHA256}
	}
	ref := kms.Ref{Namespace: "default", Name: "transit/in"}
	raw := secret.Random(32)
	k := must(w.TransitImport(t.Context(), alice, kms.TransitSpec{Ref: ref, Algorithm: suite.AES256GCM}, wrap(raw)))(t)
	if !k.Transit.Imported || k.At(0).Origin != keyring.OriginImported {
		t.Errorf("%+v", k)
	}
	_, err := w.TransitImport(t.Context(), alice, kms.TransitSpec{Ref: ref, Algorithm: suite.AES256GCM}, wrap(raw))
	wantCode(t, err, fault.Exists)
	_, err = w.TransitRotate(t.Context(), alice, ref)
	if !errors.Is(err, kms.ErrImported) {
		t.Error(err)
	}
	k = must(w.TransitImportVersion(t.Context(), alice, ref, wrap(secret.Random(32)), 0))(t)
	if k.Primary != 2 {
		t.Errorf("%+v", k)
	}
	for name, in := range map[string]kms.TransitImported{
		"too short": wrap(secret.Random(16)), "no base64": {Ciphertext: "?", Hash: transit.SHA256}, "short": {Ciphertext: "YQ==", Hash: transit.SHA256},
		"public key of a symmetric one": {PublicKey: []byte("x")}, "another hash": {Ciphertext: wrap(raw).Ciphertext, Hash: 0},
	} {
		if _, err := w.TransitImportVersion(t.Context(), alice, ref, in, 0); fault.CodeOf(err) != fault.Invalid && fault.CodeOf(err) != fault.DecryptFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
	made := w.transit("made", "")
	_, err = w.TransitImportVersion(t.Context(), alice, w.ref(made), wrap(raw), 0)
	wantCode(t, err, fault.Invalid)
	loose := must(w.TransitImport(t.Context(), alice, kms.TransitSpec{
		Ref: kms.Ref{Namespace: "default", Name: "transit/loose"}, Algorithm: suite.AES256GCM, Transit: keyring.Transit{RotationAllowed: true},
	}, wrap(raw)))(t)
	must(w.TransitRotate(t.Context(), alice, w.ref(loose)))(t)
}

// TestTransitImportsPublicHalf: it verifies, and signs once its private half has come, also at another server that has it open.
func TestTransitImportsPublicHalf(t *testing.T) {
	w := newWorld(t)
	other, _ := w.second(nil)
	private, public, err := suite.Generate(suite.ES256)
	if err != nil {
		t.Fatal(err)
	}
	text := must(transit.PublicText(suite.ES256, public))(t)
	ref := kms.Ref{Namespace: "default", Name: "transit/half"}
	must(w.TransitImport(t.Context(), alice, kms.TransitSpec{Ref: ref, Algorithm: suite.ES256}, kms.TransitImported{PublicKey: []byte(text)}))(t)
	m := []kms.TransitMessage{{Input: []byte("hello"), Options: transit.SignOptions{Hash: transit.SHA256}}}
	for _, s := range []*kms.Service{w.Service, other} {
		if r := one(t)(s.TransitSign(t.Context(), alice, ref, m)); transit.Text(r.Err) != string(transit.NoPrivate) {
			t.Errorf("%v", r.Err)
		}
	}
	wrapping := must(w.TransitWrappingKey(t.Context(), alice, "default", "transit"))(t)
	in := func(m secret.Bytes) kms.TransitImported {
		return kms.TransitImported{Ciphertext: must(transit.Wrap(wrapping, m, transit.SHA256))(t), Hash: transit.SHA256}
	}
	wrong, _, _ := suite.Generate(suite.ES256)
	_, err = w.TransitImportVersion(t.Context(), alice, ref, in(wrong), 1)
	wantCode(t, err, fault.Invalid)
	k := must(w.TransitImportVersion(t.Context(), alice, ref, in(private), 0))(t)
	if k.Primary != 1 || k.At(0).PublicOnly {
		t.Errorf("%+v", k)
	}
	_, err = w.TransitImportVersion(t.Context(), alice, ref, in(private), 1)
	wantCode(t, err, fault.Invalid)
	if err := other.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*kms.Service{w.Service, other} {
		r := one(t)(s.TransitSign(t.Context(), alice, ref, m))
		m[0].Text = r.Ciphertext
		if v := one(t)(s.TransitVerify(t.Context(), alice, ref, m)); r.Err != nil || !v.Valid {
			t.Errorf("%v, %+v", r.Err, v)
		}
	}
}

// TestPollersThroughRotations: fifty clients write under the newest version and read what they wrote before, through twenty rotations at two servers.
func TestPollersThroughRotations(t *testing.T) {
	w := newWorld(t)
	other, _ := w.second(nil)
	k := w.transit("k", "")
	ref := w.ref(k)
	if err := other.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop, errs := make(chan struct{}), make(chan error, 50)
	var wait sync.WaitGroup
	for i := range 50 {
		write, read := w.Service, other
		if i%2 == 0 {
			write, read = read, write
		}
		wait.Go(func() {
			if err := poll(t.Context(), write, read, ref, stop); err != nil {
				errs <- err
			}
		})
	}
	for range 20 {
		must(w.TransitRotate(t.Context(), alice, ref))(t)
	}
	close(stop)
	wait.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

func poll(ctx context.Context, write, read *kms.Service, ref kms.Ref, stop chan struct{}) error {
	var old []kms.TransitItem // one of each version
	var last uint32
	for {
		out, err := write.TransitEncrypt(ctx, alice, ref, []kms.TransitItem{{Plaintext: []byte("x")}})
		if err != nil || out[0].Err != nil {
			return fmt.Errorf("write: %w, %w", err, out[0].Err)
		}
		if len(old) == 0 || out[0].Version != last {
			old, last = append(old, kms.TransitItem{Ciphertext: out[0].Ciphertext}), out[0].Version
		}
		out, err = read.TransitDecrypt(ctx, alice, ref, old)
		if err != nil {
			return err
		}
		for _, r := range out {
			if r.Err != nil {
				return r.Err
			}
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// TestTransitClear: all keys of a mount go, or none does; those of a mount below it and beside it stay.
func TestTransitClear(t *testing.T) {
	w := newWorld(t)
	a, b := w.transit("a", "", deletable), w.transit("b", "")
	below, _, err := w.TransitCreate(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/below/c"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.TransitClear(t.Context(), alice, "default", "transit"); fault.CodeOf(err) != fault.WrongState || !strings.Contains(transit.Text(err), b.Name) {
		t.Error(err)
	}
	must(w.TransitGet(t.Context(), alice, w.ref(a)))(t)
	must(w.TransitConfigure(t.Context(), alice, w.ref(b), kms.TransitChange{DeletionAllowed: new(true)}))(t)
	for range 2 {
		if err := w.TransitClear(t.Context(), alice, "default", "transit"); err != nil {
			t.Error(err)
		}
	}
	for _, k := range []keyring.Key{a, b} {
		_, err := w.TransitGet(t.Context(), alice, w.ref(k))
		wantCode(t, err, fault.NotFound)
		must(w.TransitUndelete(t.Context(), alice, kms.Ref{Namespace: "default", Name: k.DeletedName()}, ""))(t)
	}
	must(w.TransitGet(t.Context(), alice, w.ref(below)))(t)
}

// TestDeletedNameIsStillUsed: whoever may, and uses a deleted key by the name that it had, restarts the wait before the destruction of the version, also when
// the name is another key's by now; strangers do not.
func TestDeletedNameIsStillUsed(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "", deletable)
	ct := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), item(kms.TransitItem{Plaintext: []byte("x")}))).Ciphertext
	sum := one(t)(w.TransitHMAC(t.Context(), alice, w.ref(k), []kms.TransitMessage{{Hash: transit.SHA256}})).Ciphertext
	k = must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	gone := must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
	uses := map[string]func(policy.Caller, kms.Ref) error{
		"decrypt": func(c policy.Caller, ref kms.Ref) error {
			_, err := w.TransitDecrypt(t.Context(), c, ref, item(kms.TransitItem{Ciphertext: ct}))
			return err
		},
		"rewrap": func(c policy.Caller, ref kms.Ref) error {
			_, err := w.TransitRewrap(t.Context(), c, ref, item(kms.TransitItem{Ciphertext: ct}))
			return err
		},
		"verify": func(c policy.Caller, ref kms.Ref) error {
			_, err := w.TransitVerifyHMAC(t.Context(), c, ref, []kms.TransitMessage{{Hash: transit.SHA256, Text: sum}})
			return err
		},
	}
	try := func(what string, c policy.Caller, ref kms.Ref, n uint32, restarts bool, use func(policy.Caller, kms.Ref) error) {
		t.Helper()
		w.pass(time.Hour)
		_ = use(c, ref) // how it is refused is told elsewhere
		now, _ := w.Key(k.ID)
		if v := must(now.Version(n))(t); v.Retired.Equal(w.now()) != restarts || v.Phase != keyring.PhaseRetired {
			t.Errorf("%s by %s: version %d is %s, and waits from %s on", what, c.Name, n, v.Phase, v.Retired)
		}
	}
	for what, use := range uses {
		try(what, alice, w.ref(k), 1, true, use)
		try(what, alice, w.ref(gone), 1, true, use)
		try(what, mallory, w.ref(k), 1, false, use)
		try(what+", of another version", alice, w.ref(k), 2, false, use)
	}
	protects := func(c policy.Caller, ref kms.Ref) error {
		_, err := w.TransitEncrypt(t.Context(), c, ref, item(kms.TransitItem{Plaintext: []byte("x")}))
		return err
	}
	try("encrypt", alice, w.ref(k), 2, true, protects)
	w.transit("k", "", deletable)
	for what, use := range uses {
		try(what+" at the key that has the name", alice, w.ref(k), 1, true, use)
	}
	try("encrypt at the key that has the name", alice, w.ref(k), 2, false, protects)
	if now, _ := w.Key(k.ID); now.At(0).Attempts != 12 || now.At(1).Attempts != 1 {
		t.Errorf("%d and %d attempts", now.At(0).Attempts, now.At(1).Attempts)
	}
}

// TestCertificateIsOfTheKey: two keys that had one name have certificates of their own.
func TestCertificateIsOfTheKey(t *testing.T) {
	w := newWorld(t)
	deleted := func() keyring.Key {
		k := w.transit("k", "", deletable)
		gone := must(w.TransitDelete(t.Context(), alice, w.ref(k)))(t)
		return gone
	}
	first, second := deleted(), deleted()
	destroy := func(k keyring.Key) keyring.Key {
		must(w.Approve(t.Context(), alice, w.ref(k), 1))(t)
		must(w.Approve(t.Context(), bob, w.ref(k), 1))(t)
		w.pass(8 * 24 * time.Hour)
		census := rotation.Census{Version: 1, Epoch: must(w.Get(t.Context(), alice, w.ref(k)))(t).Epoch, Settled: true, Started: w.now()}
		return must(w.Destroyed(t.Context(), k.ID, 1, nil, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
			return rotation.Destroy(w.Floored(k), 1, census, nil, now)
		}))(t)
	}
	for _, k := range []keyring.Key{first, second} { // each comes back by the name that both had, and is destroyed with it
		destroy(k)
		back := must(w.TransitUndelete(t.Context(), alice, w.ref(k), "transit/k"))(t)
		b := must(w.Certificate(t.Context(), alice, w.ref(back), 1))(t)
		var c audit.DestroyCertificate
		if err := json.Unmarshal(b, &c); err != nil || c.KeyID != string(k.ID) || c.Version != 1 {
			t.Errorf("%s, version %d, %v; want %s", c.KeyID, c.Version, err, k.ID)
		}
		must(w.TransitDelete(t.Context(), alice, w.ref(back)))(t)
	}
}
