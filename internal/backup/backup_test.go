package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/backup"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/suite"
)

var alice = policy.Caller{Kind: policy.KindAdmin, Name: "admin/alice"}

type everything struct{}

func (everything) Allows(c policy.Caller, _ policy.Action, _ policy.Resource) (string, bool) {
	return "all", c.Name == alice.Name
}

// world is a server's guard and keys over a store.
type world struct {
	t       *testing.T
	store   store.Store
	sealers []seal.Sealer
	clock   atomic.Int64
	guard   *guard.Guard
	kms     *kms.Service
	made    guard.InitResult
	stop    func()
}

func (w *world) now() time.Time { return time.Unix(w.clock.Load(), 0).UTC() }

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := local.Create(filepath.Join(t.TempDir(), "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: mem.New(), sealers: []seal.Sealer{s}}
	w.clock.Store(1_800_000_000)
	if w.made, err = guard.Init(t.Context(), guard.Config{Store: w.store, Sealers: w.sealers, Now: w.now}); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

// open starts the guard and, when nothing is wrong with the store, the keys.
func (w *world) open() {
	w.t.Helper()
	g, err := guard.Open(w.t.Context(), guard.Config{Store: w.store, Sealers: w.sealers, Rules: everything{}, Now: w.now, Recovery: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.guard = g
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = g.Run(ctx); done <- struct{}{} }() // ends with ctx
	w.serve(ctx, done)
	var once atomic.Bool
	w.stop = func() {
		if once.CompareAndSwap(false, true) {
			cancel()
			<-done
			<-done
		}
	}
	w.t.Cleanup(w.stop)
}

func (w *world) serve(ctx context.Context, done chan struct{}) {
	var err error
	if w.kms, err = kms.New(ctx, kms.Config{Guard: w.guard, Now: w.now}); err != nil {
		w.t.Fatal(err)
	}
	k := w.kms
	go func() { _ = k.Run(ctx); done <- struct{}{} }() // ends with ctx
}

func (w *world) create(name string) keyring.Key {
	w.t.Helper()
	k, err := w.kms.Create(w.t.Context(), alice, keyring.Key{Namespace: "default", Name: name, Purpose: suite.Encrypt})
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

func (w *world) backup(keep time.Duration) []byte {
	w.t.Helper()
	p, err := w.guard.Admit(w.t.Context(), alice, policy.ActBackup, policy.Resource{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := backup.Create(w.t.Context(), w.guard, p, keep, &out); err != nil {
		w.t.Fatal(err)
	}
	return out.Bytes()
}

func (w *world) entries() (out []audit.Entry) {
	w.t.Helper()
	l, err := w.guard.ReadLog(w.t.Context(), alice)
	if err == nil {
		err = l.Settled(w.t.Context())
	}
	if err == nil {
		err = l.Tail(w.t.Context(), 0, false, func(_ int64, b []byte) error {
			e, err := audit.Decode(b)
			out = append(out, e)
			return err
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// destroyMaterial deletes the material of a version as a destruction does.
func (w *world) destroyMaterial(k keyring.Key, n uint32) string {
	w.t.Helper()
	path := fmt.Sprintf("material/%s/%s/%d", k.Namespace, k.ID, n)
	p := w.guard.System("test", policy.ActDestroy, policy.Resource{})
	if _, err := p.Commit(w.t.Context(), nil, []guard.Write{{Path: path, Delete: true}}, nil); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// TestBackupAndRestore is the drill: a backup is made, the cluster goes on and destroys a version, the store is lost. What is restored opens
// only after a recovery, which applies the tombstones of the newer log; what lived lives, numbers and epochs go on above.
func TestBackupAndRestore(t *testing.T) {
	for _, withLog := range []bool{true, false} {
		t.Run(fmt.Sprintf("with the newer log %v", withLog), func(t *testing.T) {
			w := newWorld(t)
			a, b := w.create("alive"), w.create("doomed")
			file := w.backup(time.Hour)
			if got, err := backup.Verify(t.Context(), bytes.NewReader(file), w.sealers, mem.New(), w.now); err != nil || got.Records < 10 {
				t.Fatalf("%+v, %v", got, err)
			}
			gone := w.destroyMaterial(b, 1)
			past := guard.NewPast()
			for _, e := range w.entries() {
				if err := past.Add(e); err != nil {
					t.Fatal(err)
				}
			}
			w.stop()

			db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), bolt.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			if _, err := backup.Restore(t.Context(), bytes.NewReader(file), w.sealers, db); err != nil {
				t.Fatal(err)
			}
			if _, err := backup.Restore(t.Context(), bytes.NewReader(file), w.sealers, db); fault.CodeOf(err) != fault.Exists {
				t.Errorf("over a store that has records: %v", err)
			}
			w.store = db
			w.open()
			if d := w.guard.Detected(); len(d) != 1 || d[0].Kind != "restored" {
				t.Fatalf("detected %v", d)
			}
			if _, err := w.kms.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "new", Purpose: suite.Encrypt}); fault.CodeOf(err) != fault.Recovery {
				t.Errorf("before the recovery: %v", err)
			}
			if !withLog {
				past = nil
			}
			w.recover(past)
			_, err = w.guard.Get(t.Context(), gone)
			if destroyed := fault.CodeOf(err) == fault.NotFound; destroyed != withLog {
				t.Errorf("the material of the destroyed version: %v", err)
			}
			w.stop()
			w.open()
			k, ok := w.kms.Key(a.ID)
			if !ok || k.Epoch.Incarnation != 2 || k.Epoch.Counter <= a.Epoch.Counter || k.At(0).State != keyring.Active {
				t.Errorf("%+v", k)
			}
			doomed, _ := w.kms.Key(b.ID)
			if withLog != (doomed.At(0).State == keyring.Destroyed) {
				t.Errorf("%+v", doomed.At(0))
			}
			next := uint32(2)
			if !withLog {
				next = 102 // nobody knows what was lost
			}
			k, err = w.kms.Rotate(t.Context(), alice, kms.Ref{Namespace: "default", Name: "alive"}, 0)
			if err != nil || k.At(k.Len()-1).Number != next {
				t.Errorf("%+v, %v", k, err)
			}
			w.create("new")
		})
	}
}

func (w *world) recover(past *guard.Past) {
	w.t.Helper()
	if _, err := w.guard.AskRecovery(w.t.Context(), alice.Name, 0); err != nil {
		w.t.Fatal(err)
	}
	p, incarnation, err := w.guard.BeginRecovery(w.t.Context(), past)
	if err == nil {
		_, err = kms.Recover(w.t.Context(), w.guard, p, incarnation, past, w.now())
	}
	if err == nil {
		err = w.guard.EndRecovery(w.t.Context(), incarnation)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestAfterTheShredNoBackupOpens: a shred waits until the backup expires, and then nothing opens it any more, inside rotor or outside.
func TestAfterTheShredNoBackupOpens(t *testing.T) {
	w := newWorld(t)
	k := w.create("doomed")
	file := w.backup(time.Hour)
	gone := w.destroyMaterial(k, 1)
	p, err := w.guard.Admit(t.Context(), alice, policy.ActShred, policy.Resource{})
	if err == nil {
		_, err = w.guard.Turn(t.Context(), p, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.guard.Tend(t.Context()); fault.CodeOf(err) != fault.InUse {
		t.Fatalf("a backup is kept: %v", err)
	}
	if _, ok := w.guard.Erased(gone); ok {
		t.Error("erased, although a backup holds it")
	}
	if _, err := backup.Verify(t.Context(), bytes.NewReader(file), w.sealers, mem.New(), w.now); err != nil {
		t.Errorf("the backup that is kept: %v", err)
	}
	w.clock.Add(3601)
	if err := w.guard.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.guard.Erased(gone); !ok {
		t.Error("not erased")
	}
	h, err := backup.ReadHeader(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := guard.BackupOpener(t.Context(), w.sealers, h.Root); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("outside rotor: %v", err)
	}
	if _, err := backup.Verify(t.Context(), bytes.NewReader(file), w.sealers, mem.New(), w.now); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("inside: %v", err)
	}
	newer := w.backup(time.Hour)
	if _, err := backup.Verify(t.Context(), bytes.NewReader(newer), w.sealers, mem.New(), w.now); err != nil {
		t.Errorf("a backup of now: %v", err)
	}
}

func TestForgottenBackupsHoldNothingUp(t *testing.T) {
	w := newWorld(t)
	w.backup(time.Hour)
	all, err := w.guard.ListBackups(t.Context(), alice)
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	p := w.guard.System("test", policy.ActShred, policy.Resource{})
	if _, err := w.guard.Turn(t.Context(), p, true); err != nil {
		t.Fatal(err)
	}
	if err := w.guard.Tend(t.Context()); fault.CodeOf(err) != fault.InUse || !strings.Contains(err.Error(), all[0].ID) {
		t.Fatal(err)
	}
	if err := w.guard.ForgetBackup(t.Context(), alice, all[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := w.guard.Tend(t.Context()); err != nil {
		t.Error(err)
	}
	bob := policy.Caller{Kind: policy.KindAdmin, Name: "admin/bob"}
	if _, err := w.guard.ListBackups(t.Context(), bob); fault.CodeOf(err) != fault.Denied {
		t.Error(err)
	}
	if err := w.guard.ForgetBackup(t.Context(), bob, "x"); fault.CodeOf(err) != fault.Denied {
		t.Error(err)
	}
}

// TestABackupIsARelease: what left is in the log before its first byte.
func TestABackupIsARelease(t *testing.T) {
	w := newWorld(t)
	p, err := w.guard.Admit(t.Context(), alice, policy.ActBackup, policy.Resource{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := backup.Create(t.Context(), w.guard, p, time.Hour, broken{})
	if err == nil {
		t.Error("a writer that takes nothing took a backup")
	}
	if !slices.ContainsFunc(w.entries(), func(e audit.Entry) bool {
		return e.Action == string(policy.ActBackup) && e.Class == audit.ClassRelease && e.Detail["backup"] == b.ID && b.ID != ""
	}) {
		t.Error("it is not in the log")
	}
	for _, keep := range []time.Duration{0, -time.Hour, 1000000 * time.Hour} {
		if _, err := backup.Create(t.Context(), w.guard, p, keep, &bytes.Buffer{}); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v: %v", keep, err)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, fmt.Errorf("no room") }

// TestADamagedBackupIsRefused: cut off or changed anywhere, it is refused, and what was restored of it opens nothing.
func TestADamagedBackupIsRefused(t *testing.T) {
	w := newWorld(t)
	w.create("k")
	file := w.backup(time.Hour)
	step := len(file)/150 + 1
	for at := 0; at < len(file); at += step {
		changed := bytes.Clone(file)
		changed[at] ^= 1
		cut := file[:at]
		for what, b := range map[string][]byte{"changed": changed, "cut": cut} {
			to := mem.New()
			_, err := backup.Restore(t.Context(), bytes.NewReader(b), w.sealers, to)
			if err == nil && what == "changed" && at < 60000 { // one slot of a file's header may be torn: the other one is whole
				got, verr := backup.Verify(t.Context(), bytes.NewReader(b), w.sealers, mem.New(), w.now)
				if verr != nil || got.Records == 0 {
					t.Errorf("%s at %d: %v", what, at, verr)
				}
				continue
			}
			if err == nil {
				t.Errorf("%s at %d was restored", what, at)
			}
			if _, err := guard.Open(t.Context(), guard.Config{Store: to, Sealers: w.sealers, Now: w.now, Recovery: true}); err == nil {
				t.Errorf("%s at %d: what was restored opens", what, at)
			}
		}
	}
	other := newWorld(t)
	if _, err := backup.Restore(t.Context(), bytes.NewReader(file), other.sealers, mem.New()); fault.CodeOf(err) != fault.SealWrong {
		t.Errorf("another cluster's sealers: %v", err)
	}
}

// TestABackupWhileWriting: taken between commits of others, it is of one revision and verifies.
func TestABackupWhileWriting(t *testing.T) {
	w := newWorld(t)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := w.guard.System("test", policy.ActRotate, policy.Resource{})
		for i := 0; !stop.Load(); i++ {
			if _, err := p.Commit(context.Background(), nil, []guard.Write{{Path: fmt.Sprintf("x/%d", i%50), Value: []byte("v")}, {Path: fmt.Sprintf("y/%d", i%7), Value: []byte("v")}}, nil); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 5 {
		file := w.backup(time.Hour)
		if _, err := backup.Verify(t.Context(), bytes.NewReader(file), w.sealers, mem.New(), w.now); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	<-done
}

// FuzzRestore: no bytes make a store that opens, but a backup.
func FuzzRestore(f *testing.F) {
	f.Add([]byte("rotor-backup/1\n{}\n"))
	f.Add([]byte("rotor-backup/1\n{\"root\":{\"cluster\":\"x\"}}\nrotorfile\x00v1\n"))
	s, err := local.Create(filepath.Join(f.TempDir(), "seal.key"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := backup.Restore(t.Context(), bytes.NewReader(b), []seal.Sealer{s}, mem.New()); err == nil {
			t.Error("restored")
		}
		_, _ = backup.ReadHeader(b)
	})
}
