package kms_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

func leaves(t *keyring.Transit) {
	t.Exportable, t.PlaintextBackup, t.DeletionAllowed = true, true, true
}

// releases are what the log says that left, of a key.
func (w *world) releases(k keyring.Key) (out []audit.Entry) {
	for _, e := range w.entries() {
		if e.Class == audit.ClassRelease && e.Key == k.Name {
			out = append(out, e)
		}
	}
	return out
}

func TestTransitExport(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	_, err := w.TransitExport(t.Context(), alice, w.ref(k), transit.ExportEncryption, kms.AllVersions)
	if wantCode(t, err, fault.NotExportable); !errors.Is(err, kms.ErrNotExportable) {
		t.Error(err)
	}
	must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{Exportable: new(true)}))(t)
	must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{Exportable: new(false)}))(t) // what may have left stays exportable
	for range 3 {
		must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
	}
	must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{MinDecryption: new(uint32(2))}))(t)
	must(w.Change(t.Context(), alice, w.ref(k), 3, keyring.Compromise, ""))(t)
	for which, want := range map[uint32]string{kms.AllVersions: "2 4", kms.LatestVersion: "4", 2: "2", 1: "below", 3: "state", 9: "does not exist"} {
		m, err := w.TransitExport(t.Context(), alice, w.ref(k), transit.ExportEncryption, which)
		var got []string
		for n := range uint32(10) {
			if _, ok := m[n]; ok {
				got = append(got, fmt.Sprint(n))
			}
		}
		if err == nil && strings.Join(got, " ") != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, %v", which, got, err)
		}
	}
	var told []string
	for _, e := range w.releases(k) {
		told = append(told, e.Detail["versions"])
	}
	if len(told) != 3 {
		t.Errorf("the log tells of %v", told)
	}
	_, err = w.TransitExport(t.Context(), alice, w.ref(k), transit.ExportSigning, kms.AllVersions)
	wantCode(t, err, fault.Invalid)
	ec := w.transit("ec", suite.ES256)
	public := must(w.TransitExport(t.Context(), alice, w.ref(ec), transit.ExportPublic, kms.AllVersions))(t)
	if !strings.Contains(string(public[1].Reveal()), "PUBLIC KEY") || len(w.releases(ec)) != 0 {
		t.Errorf("%s", public[1].Reveal())
	}
	_, err = w.TransitExport(t.Context(), alice, w.ref(ec), transit.ExportChain, kms.AllVersions)
	wantCode(t, err, fault.Invalid)
}

// TestTransitBYOK: what leaves wrapped to another server's key is that key there.
func TestTransitBYOK(t *testing.T) {
	w := newWorld(t)
	k, to := w.transit("k", "", leaves), w.transit("to", suite.RSA2048)
	ct := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), item(kms.TransitItem{Plaintext: []byte("x")}))).Ciphertext
	_, err := w.TransitBYOK(t.Context(), alice, w.ref(to), w.ref(to), kms.AllVersions, transit.SHA256)
	wantCode(t, err, fault.NotExportable)
	_, err = w.TransitBYOK(t.Context(), alice, w.ref(k), w.ref(k), kms.AllVersions, transit.SHA256)
	wantCode(t, err, fault.Invalid)
	must(w.TransitBYOK(t.Context(), alice, w.ref(k), w.ref(to), kms.AllVersions, transit.SHA256))(t)
	if r := w.releases(k); len(r) != 1 || r[0].Detail["destination"] != to.Name {
		t.Errorf("%v", r)
	}
	wrapping := must(w.TransitWrappingKey(t.Context(), alice, "default", "transit"))(t)
	known := must(w.TransitImport(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/there"}, Algorithm: suite.RSA4096}, kms.TransitImported{
		PublicKey: []byte(must(transit.PublicText(suite.RSA4096, wrapping))(t)),
	}))(t)
	blobs := must(w.TransitBYOK(t.Context(), alice, w.ref(k), w.ref(known), 1, transit.SHA256))(t)
	in := must(w.TransitImport(t.Context(), alice, kms.TransitSpec{Ref: kms.Ref{Namespace: "default", Name: "transit/copy"}}, kms.TransitImported{Ciphertext: blobs[1], Hash: transit.SHA256}))(t)
	if r := one(t)(w.TransitDecrypt(t.Context(), alice, w.ref(in), item(kms.TransitItem{Ciphertext: ct}))); string(r.Plaintext) != "x" {
		t.Errorf("%v", r.Err)
	}
}

// backedUp makes a key of so many versions with a ciphertext of each, and its backup.
func (w *world) backedUp(name string, versions int, with ...func(*keyring.Transit)) (keyring.Key, []kms.TransitItem, secret.Bytes) {
	w.t.Helper()
	k := w.transit(name, "", append(with, leaves)...)
	var items []kms.TransitItem
	for n := range versions {
		if n > 0 {
			must(w.TransitRotate(w.t.Context(), alice, w.ref(k)))(w.t)
		}
		it := kms.TransitItem{Plaintext: []byte("x"), Context: []byte("c")}
		it.Ciphertext = one(w.t)(w.TransitEncrypt(w.t.Context(), alice, w.ref(k), item(it))).Ciphertext
		items = append(items, it)
	}
	return k, items, must(w.TransitBackup(w.t.Context(), alice, w.ref(k)))(w.t)
}

// opens says whether a key decrypts all of them.
func (w *world) opens(k keyring.Key, items []kms.TransitItem) {
	w.t.Helper()
	for i, r := range must(w.TransitDecrypt(w.t.Context(), alice, w.ref(k), items))(w.t) {
		if string(r.Plaintext) != "x" {
			w.t.Errorf("key %s: %d: %v", k.Name, i, r.Err)
		}
	}
}

func TestTransitBackup(t *testing.T) {
	w := newWorld(t)
	k := w.transit("k", "")
	for _, words := range []string{"exporting is disallowed", "plaintext backup is disallowed"} {
		_, err := w.TransitBackup(t.Context(), alice, w.ref(k))
		if wantCode(t, err, fault.NotExportable); !strings.Contains(transit.Text(err), words) {
			t.Error(err)
		}
		must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{Exportable: new(true)}))(t)
	}
	for _, versions := range []int{1, 25} { // in one commit, and in several
		t.Run(fmt.Sprint(versions), func(t *testing.T) {
			k, items, text := w.backedUp(fmt.Sprint("k", versions), versions, func(t *keyring.Transit) { t.Derived, t.Convergent = true, 3 })
			if now := must(w.TransitGet(t.Context(), alice, w.ref(k)))(t); now.Transit.BackedUp == nil || len(w.releases(k)) != 1 {
				t.Errorf("%+v", now.Transit)
			}
			in := kms.TransitRestoring{Namespace: "default", Mount: "transit", Backup: text}
			_, err := w.TransitRestore(t.Context(), alice, in)
			if wantCode(t, err, fault.Exists); !strings.Contains(transit.Text(err), "already exists") {
				t.Error(err)
			}
			in.Mount, in.Name = fmt.Sprint("elsewhere/x", versions), "copy"
			back := must(w.TransitRestore(t.Context(), alice, in))(t)
			if back.ID == k.ID || back.Name != in.Mount+"/copy" || back.Primary != uint32(versions) || back.Len() != versions || back.Transit.Restored == nil || back.Deleted() {
				t.Errorf("%+v", back)
			}
			w.opens(back, items)
			for i := range versions {
				if v := back.At(i); v.Handle == k.At(0).Handle || v.Origin != keyring.OriginImported {
					t.Errorf("%+v", v)
				}
			}
			must(w.TransitRotate(t.Context(), alice, w.ref(back)))(t)
			w.opens(back, items)
			if names := must(w.TransitList(t.Context(), alice, "default", in.Mount))(t); len(names) != 1 {
				t.Errorf("%v", names)
			}
		})
	}
}

// TestTransitRestoreByForce: the key that is in the way is deleted, not overwritten, and comes back.
func TestTransitRestoreByForce(t *testing.T) {
	w := newWorld(t)
	for _, versions := range []int{1, 25} {
		k, items, text := w.backedUp(fmt.Sprint("k", versions), versions)
		must(w.TransitRotate(t.Context(), alice, w.ref(k)))(t)
		newer := one(t)(w.TransitEncrypt(t.Context(), alice, w.ref(k), item(kms.TransitItem{Plaintext: []byte("x")})))
		in := kms.TransitRestoring{Namespace: "default", Mount: "transit", Backup: text, Force: true}
		must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{DeletionAllowed: new(false)}))(t)
		_, err := w.TransitRestore(t.Context(), alice, in)
		wantCode(t, err, fault.Exists)
		must(w.TransitConfigure(t.Context(), alice, w.ref(k), kms.TransitChange{DeletionAllowed: new(true)}))(t)
		back := must(w.TransitRestore(t.Context(), alice, in))(t)
		w.opens(back, items)
		old := must(w.TransitUndelete(t.Context(), alice, kms.Ref{Namespace: "default", Name: k.DeletedName()}, k.Name+"-old"))(t)
		w.opens(old, append(items, kms.TransitItem{Ciphertext: newer.Ciphertext}))
		if back.ID == old.ID || back.Name != k.Name {
			t.Errorf("%+v", back)
		}
	}
}

// TestRestoreThatBreaksOff: what is half there is no key for clients, and does not keep the next try from its name.
func TestRestoreThatBreaksOff(t *testing.T) {
	w := newWorld(t)
	_, items, text := w.backedUp("k", 25)
	in := kms.TransitRestoring{Namespace: "default", Mount: "transit", Name: "copy", Backup: text}
	ref := kms.Ref{Namespace: "default", Name: "transit/copy"}
	for after := int32(1); after <= 3; after++ {
		w.store.after.Store(after)
		_, err := w.TransitRestore(t.Context(), alice, in)
		wantCode(t, err, fault.OutcomeUnknown)
		_, err = w.TransitGet(t.Context(), alice, ref)
		wantCode(t, err, fault.NotFound)
		if names := must(w.TransitList(t.Context(), alice, "default", "transit"))(t); len(names) != 1 {
			t.Errorf("%v", names)
		}
	}
	w.store.lose.Store(loseAfter)
	w.opens(must(w.TransitRestore(t.Context(), alice, in))(t), items)
}

func TestBadBackups(t *testing.T) {
	w := newWorld(t)
	_, _, text := w.backedUp("k", 1)
	half := secret.Copy(text.Reveal()[:text.Len()/2])
	for name, in := range map[string]kms.TransitRestoring{
		"nothing":  {Backup: secret.Copy(nil), Name: "a"},
		"half":     {Backup: half, Name: "a"},
		"no text":  {Backup: secret.Copy([]byte("????")), Name: "a"},
		"bad name": {Backup: text, Name: "../a"},
		"no mount": {Backup: text, Name: "a", Mount: "/"},
	} {
		in.Namespace = "default"
		if in.Mount == "" {
			in.Mount = "transit"
		}
		_, err := w.TransitRestore(t.Context(), alice, in)
		if fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names := must(w.TransitList(t.Context(), alice, "default", "transit"))(t); len(names) != 1 {
		t.Errorf("%v", names)
	}
}
