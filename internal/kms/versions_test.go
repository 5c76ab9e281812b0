package kms_test

import (
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// TestThousandVersions: whatever can be done with a key can be done with one of very many versions; the slow suite has 10,000.
func TestThousandVersions(t *testing.T) { lifeOfVersions(t, 1_000) }

// aged is a key with many versions, and what the first, a middle one and the last but one encrypted.
type aged struct {
	*world
	keyring.Key
	old    []kms.TransitItem
	before *mem.Store // without the key
}

func lifeOfVersions(t *testing.T, versions uint32) {
	w := newWorld(t)
	other, _ := w.second(nil)
	a := &aged{world: w, before: w.copied(), Key: w.transit("k", "", leaves)}
	for a.Primary < versions {
		if n := a.Primary; n == 1 || n == versions/2 || n == versions-1 {
			it := kms.TransitItem{Plaintext: []byte("x")}
			it.Ciphertext = one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(a.Key), item(it))).Ciphertext
			a.old = append(a.old, it)
		}
		a.Key = must(w.TransitRotate(t.Context(), alice, w.ref(a.Key)))(t)
	}
	w.opens(a.Key, a.old)
	for i, r := range must(other.TransitDecrypt(t.Context(), alice, w.ref(a.Key), a.old))(t) { // at a server that heard of them by its watch
		if string(r.Plaintext) != "x" {
			t.Errorf("at the other server: %d: %v", i, r.Err)
		}
	}
	w.same(a.ID)
	a.settles()
	a.Key = w.destroyed(a.Key, 5)
	a.comesBack()
	a.isRestored()
	a.isRecovered()
	a.hasFloors()
}

// settles deactivates every version but the primary, in steps that each have an end.
func (a *aged) settles() {
	t := a.t
	t.Helper()
	a.pass(25 * time.Hour)
	steps := 0
	for ; ; steps++ {
		if _, due := rotation.Settle(must(a.Get(t.Context(), alice, a.ref(a.Key)))(t), a.now()); !due {
			break
		}
		a.Key = must(a.Step(t.Context(), a.ID, guard.Cond{}, settle))(t)
	}
	if steps < int(a.Primary)/100 {
		t.Errorf("%d versions settled in %d steps", a.Primary, steps)
	}
	a.opens(a.Key, a.old)
}

// comesBack restores the backup of the key where the store has lost it.
func (a *aged) comesBack() {
	t := a.t
	t.Helper()
	b := a.backup(a.Key)
	if len(b.Versions) != int(a.Primary)-1 {
		t.Errorf("the backup has %d versions", len(b.Versions))
	}
	lost := a.recovered(a.before, nil)
	out := must(lost.restore(b.Blob))(t)
	if out.Key.Len() != int(a.Primary) || len(out.Destroyed) != 1 || out.Key.Primary != a.Primary {
		t.Errorf("%d versions came back, the primary is %d", out.Key.Len(), out.Key.Primary)
	}
	lost.opens(out.Key, a.old)
	if next := must(lost.TransitRotate(t.Context(), alice, lost.ref(out.Key)))(t); next.Primary <= a.Primary {
		t.Errorf("version %d is given again", next.Primary)
	}
}

// isRestored restores the backup in clear at another cluster, in pages.
func (a *aged) isRestored() {
	t := a.t
	t.Helper()
	text := must(a.TransitBackup(t.Context(), alice, a.ref(a.Key)))(t)
	there := newWorld(t)
	back := must(there.TransitRestore(t.Context(), alice, kms.TransitRestoring{Namespace: "default", Mount: "transit", Backup: text}))(t)
	if back.Len() != int(a.Primary)-1 || back.Primary != a.Primary {
		t.Errorf("%d versions, the primary is %d", back.Len(), back.Primary)
	}
	there.opens(back, a.old)
	there.same(back.ID)
}

// isRecovered brings the store into a new incarnation.
func (a *aged) isRecovered() {
	t := a.t
	t.Helper()
	lost := a.recovered(a.copied(), nil)
	now := must(lost.Get(t.Context(), alice, a.ref(a.Key)))(t)
	if now.Len() != int(a.Primary) || now.At(4).State != keyring.Destroyed || now.Epoch.Incarnation != 2 {
		t.Errorf("after a recovery %d versions, version 5 is %s", now.Len(), now.At(4).State)
	}
	lost.opens(now, a.old)
}

// hasFloors raises the floors, trims the key, deletes it and brings it back.
func (a *aged) hasFloors() {
	t, ref, half := a.t, a.ref(a.Key), a.Primary/2
	t.Helper()
	must(a.TransitConfigure(t.Context(), alice, ref, kms.TransitChange{MinDecryption: &half, MinEncryption: &half}))(t)
	a.Key = must(a.TransitTrim(t.Context(), alice, ref, half))(t)
	out := must(a.TransitDecrypt(t.Context(), alice, ref, a.old))(t)
	wantCode(t, out[0].Err, fault.BelowFloor)
	a.opens(a.Key, a.old[1:])
	gone := must(a.TransitDelete(t.Context(), alice, ref))(t)
	if n := gone.Retirements(); n != int(a.Primary)-1 {
		t.Errorf("%d are retired", n)
	}
	a.opens(must(a.TransitUndelete(t.Context(), alice, a.ref(gone), ""))(t), a.old[1:])
}
