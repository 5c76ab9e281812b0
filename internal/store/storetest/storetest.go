// Package storetest is the contract of store.Store as tests. Every engine passes all of it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
)

// Engine says how to get at the engine under test.
type Engine struct {
	// Open makes an empty store that keeps the given number of commits for watches. The suite closes it.
	Open func(t *testing.T, history int) store.Store
	// Reopen opens the data of a closed store again; nil for an engine that forgets.
	Reopen func(t *testing.T, history int) store.Store
	// Compact makes the store forget the commits beyond its history now; nil for an engine whose every commit does.
	Compact func(t *testing.T)
	// Again opens the store that Open made last once more while it is open, as another server would; nil for an engine that one
	// process has alone. The suite closes it.
	Again func(t *testing.T, history int) store.Store
	// Cut breaks every connection between the open stores and their server, wherever it is; new ones work at once. Nil for an
	// engine without a server. It is called while calls are in flight.
	Cut func()
}

func (e Engine) compact(t *testing.T) {
	t.Helper()
	if e.Compact != nil {
		e.Compact(t)
	}
}

// manyCommits is a history that no test fills.
const manyCommits = 1 << 20

// Run runs the suite.
func Run(t *testing.T, e Engine) {
	t.Helper()
	type test struct {
		name string
		run  func(*testing.T, Engine)
	}
	tests := []test{
		{"Get", testGet},
		{"Values", testValues},
		{"List", testList},
		{"Commit", testCommit},
		{"Conditions", testConditions},
		{"Bounds", testBounds},
		{"Canceled", testCanceled},
		{"Closed", testClosed},
		{"Linearizable", testLinearizable},
		{"WatchOrder", testWatchOrder},
		{"WatchPrefix", testWatchPrefix},
		{"WatchFrom", testWatchFrom},
		{"WatchAfterList", testWatchAfterList},
		{"WatchCompacted", testWatchCompacted},
		{"WatchSlow", testWatchSlow},
		{"WatchCanceled", testWatchCanceled},
		{"WatchStopped", testWatchStopped},
		{"WatchClosed", testWatchClosed},
		{"WatchConcurrent", testWatchConcurrent},
		{"Reopen", testReopen},
	}
	shared := []test{
		{"SharedReads", testSharedReads},
		{"SharedConflicts", testSharedConflicts},
		{"SharedWatch", testSharedWatch},
		{"SharedCompaction", testSharedCompaction},
		{"SharedLinearizable", testSharedLinearizable},
	}
	if e.Again != nil {
		tests = append(tests, shared...)
	}
	if e.Cut != nil {
		tests = append(tests, test{"Disturbed", testDisturbed})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, e) })
	}
}

// counted is a store whose commits are numbered 1, 2, 3 … for the tests: its revisions only grow.
type counted struct {
	store.Store
	mu   sync.Mutex // guards revs
	revs []store.Rev
}

func count(s store.Store) *counted { return &counted{Store: s} }

func open(t *testing.T, e Engine, history int) *counted {
	t.Helper()
	s := count(e.Open(t, history))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// Commit implements store.Store.
func (s *counted) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	rev, err := s.Store.Commit(ctx, conds, ops)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.revs = append(s.revs, rev)
		slices.Sort(s.revs)
	}
	return rev, err
}

// nth is the number of the commit with a revision; 0 for revision 0, -1 for one that no commit got.
func (s *counted) nth(rev store.Rev) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev == 0 {
		return 0
	}
	i, ok := slices.BinarySearch(s.revs, rev)
	if !ok {
		return -1
	}
	return i + 1
}

// rev is the revision of the nth commit; of the 0th, 0.
func (s *counted) rev(n int) store.Rev {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 {
		return 0
	}
	return s.revs[n-1]
}

// show is show with the numbers of the commits.
func (s *counted) show(events []store.Event) string {
	var numbered []store.Event
	for _, e := range events {
		e.Rev = store.Rev(s.nth(e.Rev))
		numbered = append(numbered, e)
	}
	return show(numbered)
}

// all is all of List, one "key=value@n" a record, n being the number of a commit.
func (s *counted) all(t *testing.T, prefix string) (n int, all []string) {
	t.Helper()
	rev, records := s.List(t.Context(), prefix)
	for r, err := range records {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		all = append(all, fmt.Sprintf("%s=%s@%d", r.Key, r.Value, s.nth(r.Rev)))
	}
	return s.nth(rev), all
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func del(key string) store.Op { return store.Op{Key: key, Delete: true} }

func commit(t *testing.T, s store.Store, ops ...store.Op) store.Rev {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, ops)
	if err != nil {
		t.Fatalf("commit of %d operations: %v", len(ops), err)
	}
	return rev
}

func get(t *testing.T, s store.Store, key string) store.Record {
	t.Helper()
	r, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	return r
}

// list is all of List, one "key=value@rev" a record.
func list(t *testing.T, s store.Store, prefix string) (store.Rev, []string) {
	t.Helper()
	rev, records := s.List(t.Context(), prefix)
	var all []string
	for r, err := range records {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		all = append(all, fmt.Sprintf("%s=%s@%d", r.Key, r.Value, r.Rev))
	}
	return rev, all
}

func listErr(ctx context.Context, s store.Store) error {
	_, records := s.List(ctx, "")
	for _, err := range records {
		if err != nil {
			return err
		}
	}
	return nil
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func testGet(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	for _, key := range []string{"", "a", strings.Repeat("k", store.MaxKeyBytes+1)} {
		if _, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("get of %d bytes from an empty store: %v", len(key), err)
		}
	}
	first := commit(t, s, put("a", "1"))
	if first == 0 {
		t.Error("the first revision is that of what is absent")
	}
	if r := get(t, s, "a"); r.Key != "a" || string(r.Value) != "1" || r.Rev != first {
		t.Errorf("got %+v", r)
	}
	for _, near := range []string{"", "A", "a\x00", "aa", "b"} {
		if _, err := s.Get(t.Context(), near); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("get %q: %v", near, err)
		}
	}
	second := commit(t, s, put("a", "2"))
	if r := get(t, s, "a"); string(r.Value) != "2" || r.Rev != second || second <= first {
		t.Errorf("after an overwrite: %+v at %d", r, second)
	}
	commit(t, s, del("a"))
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("get of a deleted record: %v", err)
	}
}

// testValues: what the caller got or gave is the caller's, and any bytes go through.
func testValues(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	ops := []store.Op{
		{Key: "\x00", Value: []byte{0, 1, 0xFF}},
		{Key: "empty"},
		{Key: "\xFF\xFE", Value: bytes.Repeat([]byte{0xA5}, 100_000)},
	}
	given := bytes.Clone(ops[0].Value)
	rev := commit(t, s, ops...)
	ops[0].Value[1] = 7 // the store must have its own
	if r := get(t, s, "\x00"); !bytes.Equal(r.Value, given) {
		t.Errorf("the store kept the caller's bytes: %x", r.Value)
	}
	if r := get(t, s, "empty"); len(r.Value) != 0 || r.Rev != rev {
		t.Errorf("empty value: %+v", r)
	}
	if r := get(t, s, "\xFF\xFE"); !bytes.Equal(r.Value, ops[2].Value) {
		t.Error("a large value came back changed")
	}
	r := get(t, s, "\x00")
	r.Value[0] = 9
	_, records := s.List(t.Context(), "\x00")
	for r := range records {
		r.Value[0] = 9
	}
	for events, err := range s.Watch(t.Context(), "", 0) {
		if err != nil || len(events) != 3 || !bytes.Equal(events[0].Value, given) {
			t.Errorf("watch: %v, %+v", err, events)
			break
		}
		events[0].Value[0] = 9
		break
	}
	if r := get(t, s, "\x00"); !bytes.Equal(r.Value, given) {
		t.Errorf("a reader changed the store: %x", r.Value)
	}
}

func testList(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	if n, all := s.all(t, ""); n != 0 || len(all) != 0 {
		t.Errorf("empty store: %q at %d", all, n)
	}
	commit(t, s, put("b/2", "y"), put("a", "x"), put("b/1", "z"), put("b\xFF", "v"), put("c", "w"))
	commit(t, s, put("b/10", "u"))
	commit(t, s, del("c"))
	n, all := s.all(t, "")
	same(t, "all", all, []string{"a=x@1", "b/1=z@1", "b/10=u@2", "b/2=y@1", "b\xFF=v@1"})
	if n != 3 {
		t.Errorf("listed at %d, not 3", n)
	}
	_, all = s.all(t, "b/")
	same(t, "b/", all, []string{"b/1=z@1", "b/10=u@2", "b/2=y@1"})
	_, all = s.all(t, "b\xFF")
	same(t, "b ff", all, []string{"b\xFF=v@1"})
	_, all = s.all(t, "nothing")
	same(t, "nothing", all, nil)

	_, records := s.List(t.Context(), "b/")
	commit(t, s, put("b/11", "later"), del("b/2")) // a snapshot does not move
	var keys []string
	for r, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, r.Key)
		if len(keys) == 2 {
			break // and may be left early
		}
	}
	for r := range records {
		keys = append(keys, r.Key)
	}
	same(t, "one snapshot, read twice", keys, []string{"b/1", "b/10", "b/1", "b/10", "b/2"})
}

func testCommit(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	if n := s.nth(commit(t, s, del("nothing"))); n != 1 { // nothing to delete is no error
		t.Errorf("commit %d", n)
	}
	if n := s.nth(commit(t, s, put("a", "1"), put("b", "1"))); n != 2 {
		t.Errorf("commit %d", n)
	}
	if n := s.nth(commit(t, s, del("a"), put("b", "2"), put("c", "2"))); n != 3 {
		t.Errorf("commit %d", n)
	}
	n, all := s.all(t, "")
	same(t, "after three commits", all, []string{"b=2@3", "c=2@3"})
	if n != 3 {
		t.Errorf("at %d", n)
	}
	commit(t, s, put("a", "again"))
	if r := get(t, s, "a"); s.nth(r.Rev) != 4 {
		t.Errorf("made again: %+v", r)
	}
}

func testConditions(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	first, second := commit(t, s, put("a", "1")), commit(t, s, put("b", "2"))
	third, fourth := commit(t, s, put("gone", "x")), commit(t, s, del("gone"))
	cases := []struct {
		name  string
		conds []store.Cond
		holds bool
	}{
		{"none", nil, true},
		{"absent", []store.Cond{{Key: "new"}}, true},
		{"deleted is absent", []store.Cond{{Key: "gone"}}, true},
		{"deleted is not at its old revision", []store.Cond{{Key: "gone", Rev: third}}, false},
		{"deleted is not at the revision of its deletion", []store.Cond{{Key: "gone", Rev: fourth}}, false},
		{"right revision", []store.Cond{{Key: "a", Rev: first}}, true},
		{"older revision", []store.Cond{{Key: "b", Rev: first}}, false},
		{"newer revision", []store.Cond{{Key: "a", Rev: second}}, false},
		{"future revision", []store.Cond{{Key: "a", Rev: 1 << 60}}, false},
		{"there, not absent", []store.Cond{{Key: "a"}}, false},
		{"absent, not there", []store.Cond{{Key: "new", Rev: first}}, false},
		{"both hold", []store.Cond{{Key: "a", Rev: first}, {Key: "b", Rev: second}}, true},
		{"the first does not", []store.Cond{{Key: "a", Rev: fourth + 9}, {Key: "b", Rev: second}}, false},
		{"the last does not", []store.Cond{{Key: "a", Rev: first}, {Key: "b", Rev: fourth + 9}}, false},
		{"twice the same", []store.Cond{{Key: "a", Rev: first}, {Key: "a", Rev: first}}, true},
		{"contradiction", []store.Cond{{Key: "a", Rev: first}, {Key: "a"}}, false},
	}
	for i, c := range cases {
		before, _ := list(t, s, "")
		key := fmt.Sprintf("result/%d", i)
		rev, err := s.Commit(t.Context(), c.conds, []store.Op{put(key, "y"), del("none")})
		after, _ := list(t, s, "")
		_, missing := s.Get(t.Context(), key)
		switch {
		case c.holds && (err != nil || rev <= before || after != rev || missing != nil):
			t.Errorf("%s: revision %d after %d, %v, %v", c.name, rev, before, err, missing)
		case !c.holds && (!errors.Is(err, store.ErrConflict) || rev != 0 || after != before || !errors.Is(missing, store.ErrNotFound)):
			t.Errorf("%s: revision %d, now %d after %d, %v, %v", c.name, rev, after, before, err, missing)
		}
	}
	// A condition sees the commit before, also when the operation is on the same key.
	rev := get(t, s, "a").Rev
	for range 3 {
		next, err := s.Commit(t.Context(), []store.Cond{{Key: "a", Rev: rev}}, []store.Op{put("a", "n")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), []store.Cond{{Key: "a", Rev: rev}}, []store.Op{put("a", "m")}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("the old revision still holds: %v", err)
		}
		rev = next
	}
}

func testBounds(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	items := func(n int) (ops []store.Op) {
		for i := range n {
			ops = append(ops, put(fmt.Sprintf("i/%03d", i), "v"))
		}
		return ops
	}
	conds := func(n int) (conds []store.Cond) {
		for i := range n {
			conds = append(conds, store.Cond{Key: fmt.Sprintf("absent/%03d", i)})
		}
		return conds
	}
	sized := func(key string, n int) store.Op { return store.Op{Key: key, Value: make([]byte, n-len(key))} }
	longest := strings.Repeat("k", store.MaxKeyBytes)
	cases := []struct {
		name  string
		conds []store.Cond
		ops   []store.Op
		ok    bool
	}{
		{"nothing", nil, nil, false},
		{"conditions alone", conds(1), nil, false},
		{"most operations", nil, items(store.MaxItems), true},
		{"one operation more", nil, items(store.MaxItems + 1), false},
		{"most items", conds(store.MaxItems - 1), items(1), true},
		{"one condition more", conds(store.MaxItems), items(1), false},
		{"longest key", nil, []store.Op{put(longest, "")}, true},
		{"longer key", nil, []store.Op{put(longest+"k", "")}, false},
		{"longer key deleted", nil, []store.Op{del(longest + "k")}, false},
		{"longer key in a condition", []store.Cond{{Key: longest + "k"}}, items(1), false},
		{"empty key", nil, []store.Op{put("", "v")}, false},
		{"empty key in a condition", []store.Cond{{}}, items(1), false},
		{"a key twice", nil, []store.Op{put("a", "1"), put("a", "2")}, false},
		{"a key put and deleted", nil, []store.Op{put("a", "1"), del("a")}, false},
		{"most bytes", nil, []store.Op{sized("a", store.MaxBytes)}, true},
		{"one byte more", nil, []store.Op{sized("a", store.MaxBytes+1)}, false},
		{"most bytes in two", nil, []store.Op{sized("a", store.MaxBytes/2), sized("b", store.MaxBytes/2)}, true},
		{"one byte more in two", nil, []store.Op{sized("a", store.MaxBytes/2), sized("b", store.MaxBytes/2+1)}, false},
		{"a condition counts", []store.Cond{{Key: "x"}}, []store.Op{sized("a", store.MaxBytes)}, false},
	}
	for _, c := range cases {
		before, _ := list(t, s, "nothing")
		_, err := s.Commit(t.Context(), c.conds, c.ops)
		after, _ := list(t, s, "nothing")
		if c.ok && (err != nil || after <= before) || !c.ok && (!errors.Is(err, store.ErrTooLarge) || after != before) {
			t.Errorf("%s: %v, revision %d after %d", c.name, err, after, before)
		}
	}
}

func testCanceled(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	commit(t, s, put("a", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if err := listErr(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Commit(ctx, nil, []store.Op{put("a", "2")}); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	if r := get(t, s, "a"); string(r.Value) != "1" {
		t.Errorf("a canceled commit wrote %q", r.Value)
	}
}

func testClosed(t *testing.T, e Engine) {
	s := e.Open(t, manyCommits)
	commit(t, s, put("a", "1"))
	for range 2 { // closing twice is no error
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if err := listErr(t.Context(), s); !errors.Is(err, store.ErrClosed) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Commit(t.Context(), nil, []store.Op{put("a", "2")}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	for events, err := range s.Watch(t.Context(), "", 0) {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("watch: %v, %v", events, err)
			break
		}
	}
}

func testReopen(t *testing.T, e Engine) {
	if e.Reopen == nil {
		return // nothing to ask of an engine that forgets
	}
	s := count(e.Open(t, manyCommits))
	reopen := func(history int) {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s.Store = e.Reopen(t, history)
	}
	for i := range 20 {
		commit(t, s, put(fmt.Sprintf("k/%d", i%7), fmt.Sprint(i)), put("last", fmt.Sprint(i)))
	}
	commit(t, s, del("k/3"))
	rev, want := list(t, s, "")
	reopen(manyCommits)
	again, got := list(t, s, "")
	same(t, "after closing and opening", got, want)
	if again != rev {
		t.Errorf("revision %d, not %d", again, rev)
	}
	// A watch goes on from where it was, over what happened before and after.
	if next := commit(t, s, put("new", "x")); next <= rev {
		t.Errorf("the next revision is %d after %d", next, rev)
	}
	for after := range len(s.revs) {
		w := watch(t, s, "", s.rev(after))
		for at := after + 1; at <= len(s.revs); at++ {
			if events := w.next(); events[0].Rev != s.rev(at) {
				t.Fatalf("watch after %d: %s instead of commit %d", after, s.show(events), at)
			}
		}
		w.stop()
	}
	reopen(5) // a shorter history from the next commit on
	commit(t, s, put("new", "y"))
	e.compact(t)
	last := len(s.revs)
	w := watch(t, s, "", s.rev(last-5))
	if events := w.next(); events[0].Rev != s.rev(last-4) {
		t.Errorf("oldest that is kept: %s", s.show(events))
	}
	w.stop()
	if err := watch(t, s, "", s.rev(last-6)).end(); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from before the history: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
