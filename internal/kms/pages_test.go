package kms_test

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/suite"
)

// many is enough versions for pages whose head has no place for them.
const many = 5*keyring.PageSize + 3

// written returns the paths of keys that a change wrote.
func (w *world) written(change func()) (paths []string) {
	w.t.Helper()
	before := w.raw()
	change()
	for path, value := range w.raw() {
		if strings.HasPrefix(path, "key/") && before[path] != value {
			paths = append(paths, path)
		}
	}
	return paths
}

// same fails unless a server that starts now has a key as this one has it.
func (w *world) same(id keyring.KeyID) {
	w.t.Helper()
	k, _ := w.Key(id)
	if other, _ := w.serve().Key(id); other.Changed(k) || fmt.Sprint(other.Versions) != fmt.Sprint(k.Versions) {
		w.t.Fatalf("after a start:\n%v\nbefore:\n%v", other.Versions, k.Versions)
	}
}

// TestManyVersions: each step of a rotation writes the head and a page or two, however many versions there are; each version processes what it
// protected; what is retired and destroyed far back stays so.
func TestManyVersions(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	var messages [][]byte
	for k.Len() < many {
		message, _, err := w.Encrypt(t.Context(), alice, w.ref(k), text, parts)
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, message)
		if paths := w.written(func() { k = w.rotate(k) }); len(paths) > 3 {
			t.Fatalf("at version %d a rotation wrote %v", k.Len(), paths)
		}
	}
	w.same(k.ID)
	for i, m := range messages {
		if got, n, err := w.Decrypt(t.Context(), alice, w.ref(k), m, parts); err != nil || string(got) != string(text) || n != uint32(i+1) {
			t.Errorf("version %d: %q, %d, %v", i+1, got, n, err)
		}
	}
	w.pass(25 * time.Hour)
	for steps := 0; ; steps++ {
		if _, due := rotation.Settle(must(w.Get(t.Context(), alice, w.ref(k)))(t), w.now()); !due {
			if steps < many/16 {
				t.Errorf("settled in %d steps", steps)
			}
			break
		}
		k = must(w.Step(t.Context(), k.ID, guard.Cond{}, settle))(t)
	}
	for v := range k.All() {
		if want := map[bool]keyring.State{true: keyring.Active, false: keyring.Deactivated}[v.Number == k.Primary]; v.State != want {
			t.Errorf("version %d is %s", v.Number, v.State)
		}
	}
	k = w.destroyed(k, 5)
	if _, _, err := w.Decrypt(t.Context(), alice, w.ref(k), messages[4], parts); fault.CodeOf(err) != fault.VersionDestroyed {
		t.Errorf("what is destroyed: %v", err)
	}
	w.same(k.ID)
	back := w.backup(k)
	lost := w.recovered(w.copied(), nil)
	if now := must(lost.Get(t.Context(), alice, w.ref(k)))(t); now.Len() != many || now.At(4).State != keyring.Destroyed || now.Epoch.Incarnation != 2 {
		t.Errorf("after a recovery: %v", now)
	}
	if _, err := lost.restore(back.Blob); fault.CodeOf(err) != fault.Exists {
		t.Errorf("nothing is missing, %v", err)
	}
}

// TestIntoPages: while a server of an older build works on the store a key is written whole. Afterwards each change moves some of it into pages, and
// whoever starts in between sees the same; a server that has not noticed yet writes pages where there are some.
func TestIntoPages(t *testing.T) {
	w := newWorld(t)
	w.known.Store(replica.FormatPages - 1)
	k := w.create("k", suite.Encrypt)
	for k.Len() < many {
		if paths := w.written(func() { k = w.rotate(k) }); len(paths) != 1 {
			t.Fatalf("beside an older build: %v", paths)
		}
	}
	w.same(k.ID)
	w.known.Store(replica.Format)
	for i := range 8 {
		event := []keyring.Event{keyring.Suspend, keyring.Resume}[i%2]
		paths := w.written(func() { k = must(w.Change(t.Context(), alice, w.ref(k), k.Primary, event, ""))(t) })
		if len(paths) > 1+keyring.PagesAtOnce {
			t.Errorf("change %d wrote %v", i, paths)
		}
		w.same(k.ID)
	}
	var pages []string
	for path := range w.raw() {
		if strings.HasPrefix(path, "key/default/"+string(k.ID)+"/") {
			pages = append(pages, path)
		}
	}
	if len(pages) != many/keyring.PageSize {
		t.Errorf("pages %v", pages)
	}
	w.known.Store(replica.FormatPages - 1)
	if paths := w.written(func() { k = w.rotate(k) }); len(paths) > 3 {
		t.Errorf("a server that has not noticed yet wrote %v", paths)
	}
	w.same(k.ID)
}

// TestPagesArePacked: once all servers know how, and not before; a server that starts reads both.
func TestPagesArePacked(t *testing.T) {
	w := newWorld(t)
	w.known.Store(replica.FormatPacked - 1)
	k := w.create("k", suite.Encrypt)
	for k.Len() < many {
		k = w.rotate(k)
	}
	pages := func(packed bool) (n int) {
		t.Helper()
		records, _, err := w.guard.List(t.Context(), "key/default/"+string(k.ID)+"/")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if (r.Value[0] != '[') == packed {
				n++
			}
		}
		return n
	}
	if packed, plain := pages(true), pages(false); packed != 0 || plain != many/keyring.PageSize {
		t.Fatalf("%d pages are packed and %d are not, beside an older build", packed, plain)
	}
	w.known.Store(replica.FormatPacked)
	for k.Len() < 2*many {
		k = w.rotate(k)
	}
	if packed, plain := pages(true), pages(false); packed < 5 || plain < 3 {
		t.Errorf("%d pages are packed and %d are not", packed, plain)
	}
	w.same(k.ID)
}

// TestRecoveryOfPages: a key that lost a page in the store keeps the rest and gives no number again; one that lost its head is gone, with its pages. A
// backup of the key brings back what is missing.
func TestRecoveryOfPages(t *testing.T) {
	for name, c := range map[string]struct {
		lost    string
		missing int
	}{"page": {"/1", keyring.PageSize}, "head": {"", many}} {
		w := newWorld(t)
		k := w.create("k", suite.Encrypt)
		for k.Len() < many {
			k = w.rotate(k)
		}
		back := w.backup(k)
		old := w.copied()
		if _, err := old.Commit(t.Context(), nil, []store.Op{{Key: "key/default/" + string(k.ID) + c.lost, Delete: true}}); err != nil {
			t.Fatal(err)
		}
		lost := w.recovered(old, nil)
		if now, err := lost.Get(t.Context(), alice, w.ref(k)); now.Len() != many-c.missing || (err == nil) != (c.missing < many) {
			t.Fatalf("%s: %d versions, %v", name, now.Len(), err)
		}
		if c.missing == many { // its name is still taken by what is lost
			continue
		}
		lost.same(k.ID)
		out, err := lost.restore(back.Blob)
		if err != nil || len(out.Versions) != c.missing || out.Key.Len() != many {
			t.Errorf("%s: %v, %v", name, out.Versions, err)
		}
		if next := lost.rotate(out.Key); next.Primary <= uint32(many) {
			t.Errorf("%s: the next version is %d", name, next.Primary)
		}
		lost.same(k.ID)
	}
}

// late is a store whose watch of keys is held up, while that of the log goes on.
type late struct {
	store.Store
	held atomic.Pointer[chan struct{}]
}

func (s *late) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		for events, err := range s.Store.Watch(ctx, prefix, after) {
			if c := s.held.Load(); c != nil && prefix == "key/" {
				select {
				case <-*c:
				case <-ctx.Done():
				}
			}
			if !yield(events, err) {
				return
			}
		}
	}
}

// TestWatchOfWhatIsGone: a server whose watch comes to records of a root generation that is gone by now reads the key anew, and at no moment mixes an
// old page with a new head, which were sealed again in different commits.
func TestWatchOfWhatIsGone(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	for k.Len() < 46*keyring.PageSize { // more records than are sealed again in one commit
		k = w.rotate(k)
	}
	const leaked = 9*keyring.PageSize + 1 // its page comes last
	s := &late{Store: w.store}
	g := must(guard.Open(t.Context(), guard.Config{Store: s, Sealers: []seal.Sealer{w.seal}, Rules: rules{}, Now: w.now}))(t)
	w.run(g.Run)
	other := must(kms.New(t.Context(), kms.Config{Guard: g, Now: w.now}))(t)
	release := make(chan struct{})
	s.held.Store(&release)
	k = must(w.Change(t.Context(), alice, w.ref(k), leaked, keyring.Compromise, "leaked"))(t)
	since := k.Epoch
	other.OnChange(func(k keyring.Key) {
		if v, err := k.Version(leaked); err != nil || !k.Epoch.Less(since) && v.State != keyring.Compromised {
			t.Errorf("at epoch %d the leaked version is %s, %v", k.Epoch.Counter, v.State, err)
		}
	})
	w.run(other.Run)
	for range keyring.PageSize {
		k = w.rotate(k)
	}
	w.turn(false)
	for _, g := range []*guard.Guard{w.guard, g} { // the other one then knows the new root key alone
		if err := g.Tend(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.held.Store(nil)
	close(release)
	must(other.Rotate(t.Context(), bob, w.ref(k), 0))(t)
	now, _ := other.Key(k.ID)
	if err := w.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mine, _ := w.Key(k.ID); fmt.Sprint(mine.Versions) != fmt.Sprint(now.Versions) {
		t.Errorf("one server has\n%v\nthe other\n%v", mine.Versions, now.Versions)
	}
	w.same(k.ID)
}
