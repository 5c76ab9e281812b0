package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/store/transfer"
)

var errCut = errors.New("cut")

// failing is a store whose process dies at a commit: before it, or after it.
type failing struct {
	store.Store
	left  *int // commits until then, of both stores
	after bool
	look  func() // before and after each commit
}

func (f failing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	f.look()
	if *f.left--; *f.left < 0 && (!f.after || *f.left < -1) {
		return 0, errCut
	}
	rev, err := f.Store.Commit(ctx, conds, ops)
	f.look()
	if *f.left < 0 {
		return 0, errCut
	}
	return rev, err
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func commit(t *testing.T, s store.Store, ops ...store.Op) {
	t.Helper()
	if _, err := s.Commit(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
}

// filled is a store with records of every kind: many, large, empty, and some in an order that their keys do not have.
func filled(t *testing.T) store.Store {
	s := mem.New()
	for i := range 230 {
		commit(t, s, put(fmt.Sprintf("k/%03d", i), fmt.Sprint("v", i)))
	}
	commit(t, s, put("large", strings.Repeat("x", 900_000)), put("empty", ""), put("\xFF", "\x00"))
	commit(t, s, put("large/2", strings.Repeat("y", 900_000)))
	for _, key := range []string{"z", "b", "y", "a"} {
		commit(t, s, put("wait/"+key, key), put("wait/"+key+"2", key))
	}
	commit(t, s, put("servers/1", "gone soon"), store.Op{Key: "k/007", Delete: true})
	return s
}

// dump is what a store holds besides markers and what is left out; order is that of the waiting records.
func dump(t *testing.T, s store.Store) (all, order []string) {
	t.Helper()
	var waiting []store.Record
	_, records := s.List(t.Context(), "")
	for r, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(r.Key, "wait/") {
			waiting = append(waiting, r)
		}
		if !strings.HasPrefix(r.Key, "transfer/") && !strings.HasPrefix(r.Key, "servers/") {
			all = append(all, r.Key+"="+string(r.Value))
		}
	}
	slices.SortFunc(waiting, func(a, b store.Record) int {
		return slices.Compare([]string{fmt.Sprintf("%09d", a.Rev), a.Key}, []string{fmt.Sprintf("%09d", b.Rev), b.Key})
	})
	for _, r := range waiting {
		order = append(order, r.Key)
	}
	return all, order
}

func config(from, to store.Store) transfer.Config {
	return transfer.Config{From: from, To: to, Name: "elsewhere", Ordered: "wait/", Leave: func(key string) bool { return strings.HasPrefix(key, "servers/") }}
}

func TestCopy(t *testing.T) {
	from, to := filled(t), mem.New()
	last := 0
	c := config(from, to)
	c.Progress = func(done, all int) {
		if done <= last || done > all || all != 241 {
			t.Errorf("progress: %d of %d after %d", done, all, last)
		}
		last = done
	}
	result, err := transfer.Copy(t.Context(), c)
	if err != nil || result.Records != 241 || last != 241 || result.Resumed != 0 || len(result.Digest) != 64 || result.Bytes < 1_800_000 {
		t.Fatalf("%+v, %v", result, err)
	}
	want, wantOrder := dump(t, from)
	got, gotOrder := dump(t, to)
	if !slices.Equal(got, want) || !slices.Equal(gotOrder, wantOrder) {
		t.Errorf("%d records in order %q, want %d in order %q", len(got), gotOrder, len(want), wantOrder)
	}
	if _, err := to.Get(t.Context(), "servers/1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a record to be left out: %v", err)
	}
	if err := transfer.Check(t.Context(), to); err != nil {
		t.Errorf("target: %v", err)
	}
	if err := transfer.Check(t.Context(), from); !errors.Is(err, transfer.ErrMoved) || transfer.Target(err) != "elsewhere" {
		t.Errorf("source: %v", err)
	}
	// It has moved for good.
	if err := transfer.Abort(t.Context(), from); !errors.Is(err, transfer.ErrMoved) {
		t.Errorf("abort: %v", err)
	}
	if _, err := transfer.Copy(t.Context(), config(from, mem.New())); !errors.Is(err, transfer.ErrMoved) {
		t.Errorf("a second copy: %v", err)
	}
	if _, err := transfer.Copy(t.Context(), config(from, to)); !errors.Is(err, transfer.ErrNotEmpty) {
		t.Errorf("once more: %v", err)
	}
	back := mem.New()
	if _, err := transfer.Copy(t.Context(), config(to, back)); err != nil {
		t.Errorf("onwards: %v", err)
	}
}

// TestInterrupted: wherever a copy is cut off, before or after a commit, never may servers run on both stores, and the same copy ends it.
func TestInterrupted(t *testing.T) {
	for _, after := range []bool{false, true} {
		done := false
		for n := 0; !done; n++ {
			from, to := filled(t), store.Store(mem.New())
			left := n
			look := func() {
				source, target := transfer.Check(t.Context(), from), transfer.Check(t.Context(), to)
				_, there := dump(t, to)
				if source == nil && target == nil && len(there) > 0 {
					t.Errorf("cut at %d: servers may run on both", n)
				}
				if target == nil && len(there) > 0 && !errors.Is(source, transfer.ErrMoved) {
					t.Errorf("cut at %d: a server may run on the target, the source says %v", n, source)
				}
			}
			_, err := transfer.Copy(t.Context(), config(failing{from, &left, after, look}, failing{to, &left, after, look}))
			if done = err == nil; !done && !errors.Is(err, errCut) {
				t.Fatalf("cut at %d: %v", n, err)
			}
			look()
			want, wantOrder := dump(t, from)
			if _, err := transfer.Copy(t.Context(), config(from, to)); err != nil && !done && transfer.Check(t.Context(), to) != nil {
				t.Fatalf("cut at %d, then: %v", n, err)
			}
			got, gotOrder := dump(t, to)
			if !slices.Equal(got, want) || !slices.Equal(gotOrder, wantOrder) || transfer.Check(t.Context(), to) != nil {
				t.Fatalf("cut at %d, then: %d records, want %d; order %q, want %q", n, len(got), len(want), gotOrder, wantOrder)
			}
			if n > 100 {
				t.Fatal("it never ends")
			}
		}
	}
}

func TestAbort(t *testing.T) {
	from, to := filled(t), mem.New()
	if err := transfer.Abort(t.Context(), from); !errors.Is(err, transfer.ErrEmpty) {
		t.Errorf("nothing to abort: %v", err)
	}
	left := 4
	if _, err := transfer.Copy(t.Context(), config(failing{from, &left, false, func() {}}, failing{to, &left, false, func() {}})); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if err := transfer.Check(t.Context(), from); !errors.Is(err, transfer.ErrMoving) {
		t.Errorf("source: %v", err)
	}
	if err := transfer.Abort(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	if err := transfer.Check(t.Context(), from); err != nil {
		t.Errorf("source: %v", err)
	}
	if err := transfer.Check(t.Context(), to); !errors.Is(err, transfer.ErrIncomplete) {
		t.Errorf("target: %v", err)
	}
	if _, err := transfer.Copy(t.Context(), config(to, mem.New())); !errors.Is(err, transfer.ErrIncomplete) {
		t.Errorf("half a copy as the source: %v", err)
	}
	// The source goes on, and a later copy takes nothing of the old one for its own.
	commit(t, from, put("k/001", "changed"), put("new", "n"), store.Op{Key: "k/000", Delete: true})
	result, err := transfer.Copy(t.Context(), config(from, to))
	if err != nil || result.Records != 241 || result.Resumed != 0 {
		t.Fatalf("%+v, %v", result, err)
	}
	want, _ := dump(t, from)
	if got, _ := dump(t, to); !slices.Equal(got, want) {
		t.Error("the target has something of the older copy")
	}
}

// meddling changes a store between the steps of a copy.
type meddling struct {
	store.Store
	lists  *int
	meddle func(list int)
}

func (m meddling) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	*m.lists++
	m.meddle(*m.lists)
	rev, all := m.Store.List(ctx, prefix)
	return rev, all
}

// TestChanged: whoever writes to the source while it is copied is noticed, and the next copy has what was written.
func TestChanged(t *testing.T) {
	for at := 1; at <= 4; at++ {
		from, to, lists, meddled := filled(t), mem.New(), 0, false
		m := meddling{from, &lists, func(n int) {
			if n == at {
				meddled = true
				commit(t, from, put("late", "x"))
			}
		}}
		_, err := transfer.Copy(t.Context(), config(m, to))
		if !meddled {
			break
		}
		if err != nil && !errors.Is(err, transfer.ErrChanged) || err == nil && at > 1 {
			t.Errorf("change before list %d: %v", at, err)
		}
		if err != nil {
			if transfer.Check(t.Context(), to) == nil {
				t.Errorf("change before list %d: the target may be used", at)
			}
			if _, err = transfer.Copy(t.Context(), config(from, to)); err != nil {
				t.Errorf("again: %v", err)
			}
		}
		if r, err := to.Get(t.Context(), "late"); err != nil || string(r.Value) != "x" {
			t.Errorf("change before list %d is lost: %v", at, err)
		}
	}
	// Between the comparison and the hand-over.
	from, to := filled(t), mem.New()
	late := lateWriter{from, t}
	if _, err := transfer.Copy(t.Context(), config(late, to)); !errors.Is(err, transfer.ErrChanged) {
		t.Errorf("change at the hand-over: %v", err)
	}
	if err := transfer.Check(t.Context(), from); !errors.Is(err, transfer.ErrMoving) {
		t.Errorf("source: %v", err)
	}
	if err := transfer.Check(t.Context(), to); !errors.Is(err, transfer.ErrIncomplete) {
		t.Errorf("target: %v", err)
	}
	if _, err := transfer.Copy(t.Context(), config(from, to)); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := to.Get(t.Context(), "late"); err != nil {
		t.Error(err)
	}
}

// lateWriter writes just before the source says that it has moved.
type lateWriter struct {
	store.Store
	t *testing.T
}

func (l lateWriter) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if strings.Contains(string(ops[0].Value), `"moved":true`) {
		commit(l.t, l.Store, put("late", "x"))
	}
	return l.Store.Commit(ctx, conds, ops)
}

func TestRefused(t *testing.T) {
	if _, err := transfer.Copy(t.Context(), config(mem.New(), mem.New())); !errors.Is(err, transfer.ErrEmpty) {
		t.Errorf("empty source: %v", err)
	}
	from, to := filled(t), mem.New()
	commit(t, to, put("somebody's", "data"))
	if _, err := transfer.Copy(t.Context(), config(from, to)); !errors.Is(err, transfer.ErrNotEmpty) {
		t.Errorf("target with data: %v", err)
	}
	if _, err := transfer.Copy(t.Context(), config(from, from)); !errors.Is(err, transfer.ErrNotEmpty) {
		t.Errorf("onto itself: %v", err)
	}
	if err := transfer.Check(t.Context(), from); err != nil {
		t.Errorf("a refused copy left its mark: %v", err)
	}
	lossy := lossy{mem.New()}
	if _, err := transfer.Copy(t.Context(), config(from, lossy)); !errors.Is(err, transfer.ErrDiffers) {
		t.Errorf("a target that changes a record: %v", err)
	}
	if err := transfer.Check(t.Context(), lossy); !errors.Is(err, transfer.ErrIncomplete) {
		t.Errorf("it may be used: %v", err)
	}
}

// lossy flips a bit of one record.
type lossy struct{ store.Store }

func (l lossy) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	ops = slices.Clone(ops)
	for i := range ops {
		if ops[i].Key == "k/100" {
			ops[i].Value = []byte("w100")
		}
	}
	return l.Store.Commit(ctx, conds, ops)
}

// TestWatch: a server that runs hears of the copy.
func TestWatch(t *testing.T) {
	from := filled(t)
	heard := make(chan error)
	go func() { heard <- transfer.Watch(t.Context(), from) }()
	if _, err := transfer.Copy(t.Context(), config(from, mem.New())); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; !errors.Is(err, transfer.ErrMoving) && !errors.Is(err, transfer.ErrMoved) {
		t.Errorf("heard %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	quiet := filled(t)
	go func() { heard <- transfer.Watch(ctx, quiet) }()
	cancel()
	if err := <-heard; err != nil {
		t.Errorf("ended with %v", err)
	}
}
