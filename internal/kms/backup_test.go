package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/suite"
)

const keep = 30 * 24 * time.Hour

func (w *world) backup(k keyring.Key) kms.KeyBackup {
	w.t.Helper()
	return must(w.Backup(w.t.Context(), alice, w.ref(k), kms.BackupFor{Keep: keep}))(w.t)
}

func (w *world) restore(blob []byte) (kms.Restored, error) {
	return w.Restore(w.t.Context(), alice, kms.Restore{Namespace: "default", Blob: blob})
}

// copied is the world's store as it is now.
func (w *world) copied() *mem.Store {
	w.t.Helper()
	w.entries() // the log is in order
	return clone(w.t, w.store)
}

// past is what the world's log knows.
func (w *world) past() *guard.Past {
	w.t.Helper()
	p := guard.NewPast()
	for _, e := range w.entries() {
		if err := p.Add(e); err != nil {
			w.t.Fatal(err)
		}
	}
	return p
}

// recovered is a world on an older copy of this one's store, after its recovery, with what a newer log knows or without.
func (w *world) recovered(old *mem.Store, past *guard.Past) *world {
	w.t.Helper()
	if _, err := old.Commit(w.t.Context(), nil, []store.Op{{Key: guard.RestoredPath, Value: []byte("x")}}); err != nil {
		w.t.Fatal(err)
	}
	out := &world{t: w.t, store: &shaky{Store: old}, seal: w.seal}
	out.clock.Store(w.clock.Load())
	out.known.Store(w.known.Load())
	c := guard.Config{Store: out.store, Sealers: []seal.Sealer{w.seal}, Rules: rules{}, Now: out.now, Recovery: true}
	g := must(guard.Open(w.t.Context(), c))(w.t)
	ctx, stop := context.WithCancel(w.t.Context())
	ran := make(chan error)
	go func() { ran <- g.Run(ctx) }()
	must(g.AskRecovery(ctx, "test", 0))(w.t)
	p, incarnation, err := g.BeginRecovery(ctx, past)
	if err != nil {
		w.t.Fatal(err)
	}
	must(kms.Recover(ctx, g, p, incarnation, past, out.now()))(w.t)
	if err := g.EndRecovery(ctx, incarnation); err != nil {
		w.t.Fatal(err)
	}
	stop()
	<-ran
	c.Recovery = false
	out.guard = must(guard.Open(w.t.Context(), c))(w.t)
	out.run(out.guard.Run)
	out.Service = out.serve()
	return out
}

// retired retires and destroys a version, as Campaigns do when nothing is left.
func (w *world) destroyed(k keyring.Key, n uint32) keyring.Key {
	w.t.Helper()
	census := func() rotation.Census {
		now := must(w.Get(w.t.Context(), alice, w.ref(k)))(w.t)
		return rotation.Census{Version: n, Epoch: now.Epoch, Settled: true, Started: w.now()}
	}
	must(w.Retire(w.t.Context(), alice, w.ref(k), n, census(), nil, guard.Cond{Path: "members/none"}))(w.t)
	must(w.Approve(w.t.Context(), alice, w.ref(k), n))(w.t)
	must(w.Approve(w.t.Context(), bob, w.ref(k), n))(w.t)
	w.pass(8 * 24 * time.Hour)
	c := census()
	return must(w.Step(w.t.Context(), k.ID, guard.Cond{}, func(k keyring.Key, now time.Time) (keyring.Key, error) {
		return rotation.Destroy(k, n, c, nil, now)
	}))(w.t)
}

// TestKeyBackup: a key that the store lost comes back with its settings, numbers and handles, opens what it protected, and goes on above every
// number that it may have had.
func TestKeyBackup(t *testing.T) {
	w := newWorld(t)
	old := w.copied()
	for _, purpose := range []suite.Purpose{suite.Encrypt, suite.Sign, suite.MAC, suite.Wrap, suite.Decrypt, suite.Decapsulate} {
		k := w.create(string(purpose), purpose, func(k *keyring.Key) {
			k.Labels, k.Owner, k.Periods.Originator = map[string]string{"team": "a"}, "somebody", 90*24*time.Hour
		})
		k = w.rotate(k)
		before := must(w.protected(k))(t)
		b := w.backup(k)
		if !slices.Contains(b.Versions, 2) || !b.Expires.Equal(w.now().Add(keep)) {
			t.Errorf("%s: %+v", purpose, b.Versions)
		}
		lost := w.recovered(clone(t, old), nil)
		out, err := lost.restore(b.Blob)
		if err != nil {
			t.Fatalf("%s: %v", purpose, err)
		}
		r := out.Key
		if r.ID != k.ID || r.Primary != 2 || r.Owner != k.Owner || r.Periods != k.Periods || !maps.Equal(r.Labels, k.Labels) || r.Restoring != "" {
			t.Errorf("%s came back as %+v", purpose, r)
		}
		for v := range k.All() {
			if back := must(r.Version(v.Number))(t); back.Handle != v.Handle {
				t.Errorf("%s: version %d came back as %+v", purpose, v.Number, back)
			}
		}
		if err := before(lost); err != nil {
			t.Errorf("%s: what it protected: %v", purpose, err)
		}
		if next := lost.rotate(r); next.Primary != 103 {
			t.Errorf("%s: the next version is %d", purpose, next.Primary)
		}
		_, err = lost.restore(b.Blob)
		wantCode(t, err, fault.Exists)
	}
}

func clone(t *testing.T, s store.Store) *mem.Store {
	t.Helper()
	out := mem.New()
	_, records := s.List(t.Context(), "")
	for r, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Commit(t.Context(), nil, []store.Op{{Key: r.Key, Value: r.Value}}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// protected protects something under a key's primary and returns how to open it in another world.
func (w *world) protected(k keyring.Key) (func(*world) error, error) {
	ctx, msg := w.t.Context(), []byte("message")
	switch k.Purpose {
	case suite.Encrypt, suite.Decrypt:
		ct, _, err := w.Encrypt(ctx, alice, w.ref(k), msg, []envelope.Part{{Label: "a", Value: []byte("b")}})
		return func(o *world) error {
			out, _, err := o.Decrypt(ctx, alice, w.ref(k), ct, []envelope.Part{{Label: "a", Value: []byte("b")}})
			return errors.Join(err, same(out, msg))
		}, err
	case suite.Sign, suite.MAC:
		sig, n, err := w.Authenticate(ctx, alice, w.ref(k), msg)
		return func(o *world) error { return o.Verify(ctx, alice, w.ref(k), n, msg, sig) }, err
	case suite.Wrap:
		dek := bytes.Repeat([]byte{7}, 32)
		wrap, err := w.Wrap(ctx, alice, w.ref(k), secret.Copy(dek), immutable)
		return func(o *world) error {
			out, err := o.Unwrap(ctx, alice, wrap, immutable)
			if err == nil && !out.Equal(secret.Copy(dek)) {
				err = errors.New("another data key")
			}
			return err
		}, err
	default:
		shared, ct, n, err := w.Encapsulate(ctx, alice, w.ref(k))
		return func(o *world) error {
			out, err := o.Decapsulate(ctx, alice, w.ref(k), n, ct)
			if err == nil && !out.Equal(shared) {
				err = errors.New("another secret")
			}
			return err
		}, err
	}
}

func same(a, b []byte) error {
	if !bytes.Equal(a, b) {
		return fmt.Errorf("%q, want %q", a, b)
	}
	return nil
}

// TestOlderServers: what a server of an older build would drop or take for something else is not made while there is one.
func TestOlderServers(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	b := w.backup(k)
	w.known.Store(replica.FormatBackups - 1)
	_, err := w.Backup(t.Context(), alice, w.ref(k), kms.BackupFor{Keep: keep})
	wantCode(t, err, fault.Unavailable)
	_, err = w.Service.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: b.Blob})
	wantCode(t, err, fault.Unavailable)
	_, err = w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "t", Purpose: suite.Encrypt, Custody: keyring.CustodyHSM, Algorithm: suite.AES256GCM})
	wantCode(t, err, fault.Unavailable)
	w.create("another", suite.Encrypt)
}

// TestRestoreKeepsWhatIsThere: a restore on the server that has the key changes nothing, whatever happened since the backup: no version comes
// back that was destroyed, and nothing that changed goes back.
func TestRestoreKeepsWhatIsThere(t *testing.T) {
	w := newWorld(t)
	k := w.rotate(w.create("k", suite.Encrypt))
	b := w.backup(k)
	k = w.destroyed(k, 1)
	k = w.rotate(k)
	before := w.raw()
	_, err := w.restore(b.Blob)
	wantCode(t, err, fault.Exists)
	_, err = w.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: b.Blob, Name: "other"})
	wantCode(t, err, fault.Exists)
	if !maps.Equal(before, w.raw()) {
		t.Error("a restore of a key that is there changed something")
	}
	if now := must(w.Get(t.Context(), alice, w.ref(k)))(t); now.Primary != 3 || now.At(0).State != keyring.Destroyed {
		t.Errorf("%+v", now)
	}
}

// TestRestoreAfterRecovery: versions that a recovery lost come back to a key that is there, processing only; those that the newer log knows as
// destroyed do not, and neither does a key's that the old store never had.
func TestRestoreAfterRecovery(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	old := w.copied()
	k = w.rotate(k)
	doomed := must(w.protected(k))(t)
	k = w.rotate(k)
	opens := must(w.protected(k))(t)
	young := w.rotate(w.create("young", suite.Encrypt))
	b, y := w.backup(k), w.backup(young)
	w.destroyed(k, 2)
	w.destroyed(young, 1)
	lost := w.recovered(old, w.past())
	_, err := lost.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: b.Blob, Name: "other"})
	wantCode(t, err, fault.Exists)
	out, err := lost.restore(b.Blob)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(out.Versions, []uint32{3}) || !slices.Equal(out.Destroyed, []uint32{2}) || out.Key.Primary != 1 {
		t.Errorf("restored %v, destroyed %v, primary %d", out.Versions, out.Destroyed, out.Key.Primary)
	}
	if v := must(out.Key.Version(3))(t); v.State != keyring.Deactivated || v.Phase != keyring.PhaseDecryptOnly {
		t.Errorf("version 3 is %s and %s", v.State, v.Phase)
	}
	if err := opens(lost); err != nil {
		t.Errorf("under version 3: %v", err)
	}
	wantCode(t, doomed(lost), fault.VersionDestroyed)
	if out, err = lost.restore(y.Blob); err != nil || !slices.Equal(out.Destroyed, []uint32{1}) || out.Key.Primary != 2 {
		t.Errorf("young: %v %+v", err, out)
	}
	for path := range lost.raw() {
		if path == "material/default/"+string(k.ID)+"/2" || path == "material/default/"+string(young.ID)+"/1" {
			t.Errorf("%s is back", path)
		}
	}
	if next := lost.rotate(out.Key); next.Primary != 103 {
		t.Errorf("the next version of young is %d", next.Primary)
	}
	if next := lost.rotate(k); next.Primary != 4 { // the newer log knew 3 as the highest
		t.Errorf("the next version is %d", next.Primary)
	}
}

// TestRestoreInSteps: a key with more versions than one commit takes comes back in several; a crash between them leaves a key that is good as far
// as it goes, and the same restore brings the rest. Two at once bring everything once.
func TestRestoreInSteps(t *testing.T) {
	w := newWorld(t)
	old := w.copied()
	k := w.create("k", suite.Encrypt)
	for range 40 {
		k = w.rotate(k)
	}
	b := w.backup(k)
	lost := w.recovered(clone(t, old), nil)
	lost.store.after.Store(2)
	_, err := lost.restore(b.Blob)
	wantCode(t, err, fault.OutcomeUnknown)
	part := must(lost.Get(t.Context(), alice, w.ref(k)))(t)
	if n := part.Len(); n == 0 || n >= 41 || part.Restoring != b.ID || part.Primary != 41 {
		t.Fatalf("%d versions, primary %d, restoring %q", n, part.Primary, part.Restoring)
	}
	out, err := lost.restore(b.Blob)
	if err != nil || out.Key.Len() != 41 || out.Key.Restoring != "" || len(out.Versions)+part.Len() != 41 {
		t.Fatalf("%v: %d versions, %d brought", err, out.Key.Len(), len(out.Versions))
	}
	for v := range k.All() {
		if got := must(lost.Material(t.Context(), out.Key, v.Number))(t); !got.Equal(must(w.Material(t.Context(), k, v.Number))(t)) {
			t.Errorf("version %d has other material", v.Number)
		}
	}
	both := w.recovered(clone(t, old), nil)
	var mu sync.Mutex
	var all []uint32
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			r, err := both.restore(b.Blob)
			if err != nil && fault.CodeOf(err) != fault.Exists {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, r.Versions...)
		})
	}
	wg.Wait()
	slices.Sort(all)
	if len(all) != 41 || len(slices.Compact(all)) != 41 {
		t.Errorf("two at once brought %v", all)
	}
}

// TestRestoreRefuses: what was changed, is another cluster's, or is asked for by who may not, brings nothing.
func TestRestoreRefuses(t *testing.T) {
	w := newWorld(t)
	old := w.copied()
	k := w.rotate(w.create("k", suite.Encrypt))
	b := w.backup(k)
	lost := w.recovered(clone(t, old), nil)
	before := lost.raw()
	for at := 0; at < len(b.Blob); at += 1 + at/97 {
		changed := bytes.Clone(b.Blob)
		changed[at] ^= 0x20
		if out, err := lost.restore(changed); err == nil {
			t.Fatalf("byte %d of %d changed: %+v", at, len(b.Blob), out)
		}
	}
	for _, n := range []int{0, 10, 30, len(b.Blob) - 1} {
		if _, err := lost.restore(b.Blob[:n]); err == nil {
			t.Errorf("cut to %d bytes", n)
		}
	}
	_, err := lost.restore(append(bytes.Clone(b.Blob), 0))
	wantCode(t, err, fault.DecryptFailed)
	_, err = lost.restore(make([]byte, keybackup.MaxBytes+1))
	wantCode(t, err, fault.TooLarge)
	for _, c := range []policy.Caller{mallory, dave} {
		_, err = lost.Restore(t.Context(), c, kms.Restore{Namespace: "default", Blob: b.Blob})
		wantCode(t, err, fault.Denied)
		_, err = w.Backup(t.Context(), c, w.ref(k), kms.BackupFor{Keep: keep})
		wantCode(t, err, fault.Denied)
	}
	_, err = lost.Restore(t.Context(), policy.Caller{}, kms.Restore{Namespace: "default", Blob: b.Blob})
	wantCode(t, err, fault.Unauthenticated)
	_, err = lost.Restore(t.Context(), alice, kms.Restore{Namespace: "other", Blob: b.Blob})
	wantCode(t, err, fault.WrongNamespace)
	if !maps.Equal(before, lost.raw()) {
		t.Error("a refused restore left something")
	}
	lost.create("k", suite.Encrypt) // somebody made it anew, in despair
	_, err = lost.restore(b.Blob)
	wantCode(t, err, fault.Exists)
	out, err := lost.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: b.Blob, Name: "k-old"})
	if err != nil || out.Key.Name != "k-old" || out.Key.ID != k.ID {
		t.Errorf("under another name: %v %+v", err, out.Key)
	}
	other := newWorld(t)
	_, err = other.restore(b.Blob)
	wantCode(t, err, fault.BackupForeign)
	_, err = other.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: b.Blob, Foreign: true})
	wantCode(t, err, fault.SealWrong)
	for _, keep := range []time.Duration{0, time.Second, 11 * 365 * 24 * time.Hour} {
		_, err = w.Backup(t.Context(), alice, w.ref(k), kms.BackupFor{Keep: keep})
		wantCode(t, err, fault.Invalid)
	}
}

// named lets mallory do everything with keys of one name, besides the rules of all tests.
type named struct {
	rules
	name string
}

func (n named) Allows(c policy.Caller, a policy.Action, r policy.Resource) (string, bool) {
	if c.Name == mallory.Name {
		return "named", r.Key == n.name
	}
	return n.rules.Allows(c, a, r)
}

// TestRestoreUnderAnotherName: who may restore under one name does not get another key under it, asked for as an import or not.
func TestRestoreUnderAnotherName(t *testing.T) {
	w := newWorld(t)
	old := w.copied()
	b := w.backup(w.create("payroll", suite.Encrypt))
	lost := w.recovered(clone(t, old), nil)
	lost.guard.SetRules(named{name: "mine"})
	for _, foreign := range []bool{false, true} {
		out, err := lost.Restore(t.Context(), mallory, kms.Restore{Namespace: "default", Blob: b.Blob, Name: "mine", Foreign: foreign})
		if wantCode(t, err, fault.Denied); len(out.Versions) > 0 {
			t.Errorf("import %v: %+v", foreign, out)
		}
	}
	if out, err := lost.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: b.Blob, Name: "mine"}); err != nil || out.Key.Name != "mine" {
		t.Errorf("with the right to both names: %+v, %v", out, err)
	}
}

// TestBackupForAnotherCluster: an exportable key moves to another cluster, for whose wrapping key it was sealed, once and as an import.
func TestBackupForAnotherCluster(t *testing.T) {
	w, o := newWorld(t), newWorld(t)
	k := w.create("k", suite.Encrypt, func(k *keyring.Key) { k.Exportable = true })
	for range 20 {
		k = w.rotate(k)
	}
	opens := must(w.protected(k))(t)
	stays := w.create("stays", suite.Encrypt)
	wk := must(o.PrepareImport(t.Context(), alice, w.ref(k), ""))(t)
	to := kms.BackupFor{WrappingKey: wk.ID, Transport: wk.Transport, Recipient: wk.Public}
	_, err := w.Backup(t.Context(), alice, w.ref(stays), to)
	wantCode(t, err, fault.NotExportable)
	b := must(w.Backup(t.Context(), alice, w.ref(k), to))(t)
	if !b.Expires.IsZero() {
		t.Error("it is on record here")
	}
	in := kms.Restore{Namespace: "default", Blob: b.Blob}
	_, err = o.Restore(t.Context(), alice, in)
	wantCode(t, err, fault.BackupForeign)
	in.Foreign = true
	_, err = o.Restore(t.Context(), bob, in) // whose wrapping key it is not
	wantCode(t, err, fault.NotFound)
	o.store.after.Store(2)
	_, err = o.Restore(t.Context(), alice, in)
	wantCode(t, err, fault.OutcomeUnknown)
	out, err := o.Restore(t.Context(), alice, in)
	if err != nil {
		t.Fatal(err)
	}
	if v := must(out.Key.Version(21))(t); out.Key.Len() != 21 || v.Origin != keyring.OriginImported || !v.Originated.Equal(k.At(20).Activated) {
		t.Errorf("%d versions, the primary %+v", out.Key.Len(), v)
	}
	if err := opens(o); err != nil {
		t.Error(err)
	}
	if next := o.rotate(out.Key); next.Primary != 122 {
		t.Errorf("next %d", next.Primary)
	}
	_, err = o.Restore(t.Context(), alice, in)
	wantCode(t, err, fault.NotFound) // the wrapping key is used up
	w.rotate(k)                      // version 22, which the other cluster's key does not have and may lie below its next number
	wk = must(o.PrepareImport(t.Context(), alice, w.ref(k), ""))(t)
	in.Blob = must(w.Backup(t.Context(), alice, w.ref(k), kms.BackupFor{WrappingKey: wk.ID, Transport: wk.Transport, Recipient: wk.Public}))(t).Blob
	_, err = o.Restore(t.Context(), alice, in)
	wantCode(t, err, fault.Exists)
}

// TestRestoreOfCountedKey: how often a restored version with a volume limit has protected nobody knows, so it protects no more.
func TestRestoreOfCountedKey(t *testing.T) {
	w := newWorld(t)
	old := w.copied()
	k := w.create("k", suite.Encrypt, func(k *keyring.Key) { k.Algorithm = suite.AES256GCM })
	opens := must(w.protected(k))(t)
	lost := w.recovered(old, nil)
	out := must(lost.restore(w.backup(k).Blob))(t)
	if err := opens(lost); err != nil {
		t.Error(err)
	}
	_, _, err := lost.Encrypt(t.Context(), alice, w.ref(k), []byte("x"), nil)
	wantCode(t, err, fault.VolumeOver)
	lost.rotate(out.Key)
	if _, _, err := lost.Encrypt(t.Context(), alice, w.ref(k), []byte("x"), nil); err != nil {
		t.Error(err)
	}
}

// TestBackupIsARelease: the entry that it left is in the log before the answer, a shred waits for it, and the key says when it was.
func TestBackupIsARelease(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	b := w.backup(k)
	if now := must(w.Get(t.Context(), alice, w.ref(k)))(t); !now.BackedUp.Equal(w.now()) || now.Epoch != k.Epoch {
		t.Errorf("backed up %v, epoch %v", now.BackedUp, now.Epoch)
	}
	all := must(w.guard.Backups(t.Context()))(t)
	if len(all) != 1 || all[0].ID != b.ID || all[0].Key != "default/k" {
		t.Errorf("on record: %+v", all)
	}
	n := 0
	for _, e := range w.entries() {
		if e.Action == string(policy.ActKeyBackup) && e.Class == audit.ClassRelease && e.Detail["backup"] == b.ID && e.Detail["versions"] == "1" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d releases in the log", n)
	}
}

func (w *world) turn(shred bool) {
	w.t.Helper()
	a := policy.ActRotateRoot
	if shred {
		a = policy.ActShred
	}
	must(w.guard.Turn(w.t.Context(), must(w.guard.Admit(w.t.Context(), alice, a, policy.Resource{}))(w.t), shred))(w.t)
}

// TestBackupAndRootKeys: a backup opens as long as its root generation does. One of a generation that this server never had is its own only by
// its record; without it is an import. A shred waits for it, and then nothing opens it.
func TestBackupAndRootKeys(t *testing.T) {
	w := newWorld(t)
	old := w.copied()
	k := w.create("k", suite.Encrypt)
	first := w.backup(k)
	w.turn(false)
	if err := w.guard.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := w.restore(first.Blob) // opened by the sealers, and known by its record
	wantCode(t, err, fault.Exists)
	second := w.backup(k)
	lost := w.recovered(clone(t, old), nil)
	_, err = lost.restore(second.Blob)
	wantCode(t, err, fault.BackupForeign)
	out, err := lost.Restore(t.Context(), alice, kms.Restore{Namespace: "default", Blob: second.Blob, Foreign: true})
	if err != nil || out.Key.At(0).Origin != keyring.OriginImported {
		t.Errorf("%v %+v", err, out.Key.Versions)
	}
	w.turn(true)
	wantCode(t, w.guard.Tend(t.Context()), fault.InUse)
	w.pass(keep + time.Second)
	if err := w.guard.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range []kms.KeyBackup{first, second} {
		_, err = w.restore(b.Blob)
		wantCode(t, err, fault.SealWrong)
	}
}

// TestRestoreOfAnotherCustody: material that came in a backup does not pass for what only a token can hold, whoever made the backup.
func TestRestoreOfAnotherCustody(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.MAC)
	k = k.Edit(1, func(v *keyring.Version) { v.Handle = 7 })
	k.ID, k.Custody = "00112233445566778899aabbccddeeff", keyring.CustodyHSM
	wk := must(w.PrepareImport(t.Context(), alice, w.ref(k), ""))(t)
	m, _ := generated(t, k.Algorithm)
	f := keybackup.Facts{ID: "x", Cluster: "elsewhere", Namespace: k.Namespace, Key: k.ID, Name: k.Name, WrappingKey: wk.ID, Transport: wk.Transport}
	seal := func() []byte {
		return must(keybackup.Seal(f, keybackup.Content{Key: k, Materials: map[uint32]secret.Bytes{1: m}}, func(dek secret.Bytes, _ []byte) ([]byte, error) {
			return suite.SealKey(wk.Transport, wk.Public, "backup/"+wk.ID, dek)
		}))(t)
	}
	in := kms.Restore{Namespace: "default", Blob: seal(), Name: "k", Foreign: true}
	_, err := w.Restore(t.Context(), alice, in)
	wantCode(t, err, fault.NotExportable)
	k.Custody = keyring.CustodyServer // the same otherwise, but its name is taken
	in.Blob = seal()
	_, err = w.Restore(t.Context(), alice, in)
	wantCode(t, err, fault.Exists)
}
