package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
)

// watcher pulls a watch commit by commit.
type watcher struct {
	t      *testing.T
	cancel context.CancelFunc
	pull   func() ([]store.Event, error, bool)
	stop   func()
}

func watch(t *testing.T, s store.Store, prefix string, after store.Rev) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	pull, stop := iter.Pull2(s.Watch(ctx, prefix, after))
	return &watcher{t: t, cancel: cancel, pull: pull, stop: func() { stop(); cancel() }}
}

// next is the next commit.
func (w *watcher) next() []store.Event {
	w.t.Helper()
	events, err, ok := w.pull()
	if !ok || err != nil || len(events) == 0 {
		w.t.Fatalf("watch: %v, %v, %v", events, err, ok)
	}
	return events
}

// end is the error that comes next, which must be the last of the watch.
func (w *watcher) end() error {
	w.t.Helper()
	events, err, ok := w.pull()
	if err == nil || len(events) > 0 || !ok {
		w.t.Fatalf("the watch went on: %v, %v", events, ok)
	}
	if more, again, ok := w.pull(); ok {
		w.t.Errorf("after %v the watch yielded %v, %v", err, more, again)
	}
	w.stop()
	return err
}

// quiet checks that the watch has nothing more: a marker that is committed now is what comes next.
func (w *watcher) quiet(s store.Store, marker string) {
	w.t.Helper()
	rev := commit(w.t, s, put(marker, "marker"))
	if events := w.next(); len(events) != 1 || events[0].Key != marker || events[0].Rev != rev {
		w.t.Errorf("the watch had more to yield: %s", show(events))
	}
}

func show(events []store.Event) string {
	var b strings.Builder
	for _, e := range events {
		if e.Deleted {
			fmt.Fprintf(&b, "-%s@%d ", e.Key, e.Rev)
		} else {
			fmt.Fprintf(&b, "%s=%s@%d ", e.Key, e.Value, e.Rev)
		}
	}
	return strings.TrimSpace(b.String())
}

// testWatchOrder: commit order, whole commits, deletions, nothing for what deleted nothing, no conflict.
func testWatchOrder(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	commit(t, s, put("b", "1"), put("a", "1"))
	commit(t, s, del("nothing")) // no event, so no commit to yield
	commit(t, s, put("a", ""), del("b"), del("nothing"))
	_, err := s.Commit(t.Context(), []store.Cond{{Key: "a"}}, []store.Op{put("a", "never")})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatal(err)
	}
	w := watch(t, s, "", 0)
	defer w.stop()
	var got []string
	for range 2 {
		events := w.next()
		for _, e := range events {
			if e.Deleted && e.Value != nil || !e.Deleted && e.Value == nil {
				t.Errorf("event with a wrong value: %+v", e)
			}
		}
		got = append(got, s.show(events))
	}
	same(t, "commits", got, []string{"b=1@1 a=1@1", "a=@3 -b@3"})
	w.quiet(s, "marker")
	commit(t, s, put("b", "2")) // and it goes on live
	same(t, "live", []string{s.show(w.next())}, []string{"b=2@5"})
}

func testWatchPrefix(t *testing.T, e Engine) {
	want := map[string][]string{
		"":     {"a/1=x@1 b/1=x@1 a/2=x@1", "b/2=x@2", "-a/1@3 a=x@3 -b/1@3", "zzz=elsewhere@4"},
		"a":    {"a/1=x@1 a/2=x@1", "-a/1@3 a=x@3"},
		"a/":   {"a/1=x@1 a/2=x@1", "-a/1@3"},
		"b/":   {"b/1=x@1", "b/2=x@2", "-b/1@3"},
		"none": {},
	}
	for prefix, commits := range want {
		s := open(t, e, manyCommits)
		commit(t, s, put("a/1", "x"), put("b/1", "x"), put("a/2", "x"))
		commit(t, s, put("b/2", "x"))
		commit(t, s, del("a/1"), put("a", "x"), del("b/1"))
		commit(t, s, put("zzz", "elsewhere"))
		w := watch(t, s, prefix, 0)
		got := []string{}
		for range commits {
			got = append(got, s.show(w.next()))
		}
		same(t, "prefix "+prefix, got, commits)
		w.quiet(s, prefix+"marker")
		w.stop()
	}
}

// testWatchFrom: from 0, from each commit, from now, and from a revision that is not there yet.
func testWatchFrom(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	const n = 10
	for i := range n {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	for after := range n {
		w := watch(t, s, "", s.rev(after))
		for i := after + 1; i <= n; i++ {
			if events := w.next(); len(events) != 1 || events[0].Rev != s.rev(i) {
				t.Fatalf("after %d: %s instead of commit %d", after, s.show(events), i)
			}
		}
		w.stop()
	}
	future := s.rev(n) + 2
	now, later := watch(t, s, "", s.rev(n)), watch(t, s, "", future)
	defer now.stop()
	defer later.stop()
	made := make(chan store.Rev, 3)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(made)
		for range 3 { // one of them is beyond the future's revision
			made <- commit(t, s, put("k", "later"))
		}
	})
	var first store.Rev // beyond it
	for rev := range made {
		if events := now.next(); events[0].Rev != rev {
			t.Errorf("from now: %s instead of revision %d", show(events), rev)
		}
		if first == 0 && rev > future {
			first = rev
		}
	}
	if events := later.next(); events[0].Rev != first {
		t.Errorf("from the future: %s instead of revision %d", show(events), first)
	}
}

// testWatchAfterList is how everybody uses it: under writes, a list and the watch after it make the whole.
func testWatchAfterList(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	const commits = 200
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range commits {
			key := fmt.Sprintf("k/%d", i%10)
			if i%7 == 3 {
				commit(t, s, del(key), put("k/n", fmt.Sprint(i)))
			} else {
				commit(t, s, put(key, fmt.Sprint(i)), put("k/n", fmt.Sprint(i)))
			}
		}
	})
	for range 20 {
		rev, records := s.List(t.Context(), "k/")
		replica := map[string]string{}
		for r, err := range records {
			if err != nil {
				t.Fatal(err)
			}
			replica[r.Key] = string(r.Value)
		}
		w := watch(t, s, "k/", rev)
		for replica["k/n"] != fmt.Sprint(commits-1) {
			events := w.next()
			if events[0].Rev <= rev {
				t.Fatalf("revision %d after %d", events[0].Rev, rev)
			}
			rev = events[0].Rev
			last, next := replica["k/n"], events[len(events)-1]
			if i, _ := strconv.Atoi(last); next.Key != "k/n" || last != "" && string(next.Value) != strconv.Itoa(i+1) {
				t.Fatalf("commit %s after commit %s", show(events), last)
			}
			for _, e := range events {
				replica[e.Key] = string(e.Value)
				if e.Deleted {
					delete(replica, e.Key)
				}
			}
		}
		w.stop()
		_, want := list(t, s, "k/")
		if len(want) != len(replica) {
			t.Fatalf("replica %v, store %q", replica, want)
		}
		for _, r := range want {
			key, rest, _ := strings.Cut(r, "=")
			if value, _, _ := strings.Cut(rest, "@"); replica[key] != value {
				t.Fatalf("replica %v, store %q", replica, want)
			}
		}
	}
}

func testWatchCompacted(t *testing.T, e Engine) {
	const history, commits = 5, 12
	s := open(t, e, history)
	for i := range commits {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	e.compact(t)
	for after := range commits - history {
		for _, prefix := range []string{"", "nothing"} {
			if err := watch(t, s, prefix, s.rev(after)).end(); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("after commit %d, prefix %q: %v", after, prefix, err)
			}
		}
	}
	w := watch(t, s, "", s.rev(commits-history))
	defer w.stop()
	for n := commits - history + 1; n <= commits; n++ {
		if events := w.next(); s.nth(events[0].Rev) != n {
			t.Errorf("oldest that is kept: %s instead of commit %d", s.show(events), n)
		}
	}
}

// testWatchSlow: a reader that was overtaken gets ErrCompacted, never a gap (what is on its way to it already it may still get); one that
// lists again is whole.
func testWatchSlow(t *testing.T, e Engine) {
	const history, commits = 50, 400
	s := open(t, e, history)
	commit(t, s, put("k", "first"))
	w := watch(t, s, "", 0)
	if events := w.next(); s.nth(events[0].Rev) != 1 {
		t.Fatal(s.show(events))
	}
	for i := range commits {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	e.compact(t)
	for last := 1; last < commits+1; last++ {
		events, err, ok := w.pull()
		if !ok {
			t.Fatal("the watch ended without an error")
		}
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s.nth(events[0].Rev) != last+1 {
			t.Fatalf("gap: %s after commit %d", s.show(events), last)
		}
		if last == commits && e.Compact == nil {
			t.Fatal("a history of 50 commits kept 400")
		}
	}
	w.stop()
	rev, _ := list(t, s, "")
	w = watch(t, s, "", rev)
	defer w.stop()
	w.quiet(s, "marker")
}

func testWatchCanceled(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	for i := range 20 {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	w := watch(t, s, "", 0) // in the middle of what is there
	w.next()
	w.cancel()
	if err := w.end(); !errors.Is(err, context.Canceled) {
		t.Errorf("in the middle: %v", err)
	}
	w = watch(t, s, "", s.rev(20)) // while it waits
	var wg sync.WaitGroup
	wg.Go(w.cancel)
	if err := w.end(); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: %v", err)
	}
	wg.Wait()
	w = watch(t, s, "", 0) // before it began
	w.cancel()
	if err := w.end(); !errors.Is(err, context.Canceled) {
		t.Errorf("before it began: %v", err)
	}
}

// testWatchStopped: a range that is left ends the watch, and ranging again begins where the first began.
func testWatchStopped(t *testing.T, e Engine) {
	s := open(t, e, manyCommits)
	for i := range 5 {
		commit(t, s, put("k", fmt.Sprint(i)))
	}
	all := s.Watch(t.Context(), "", s.rev(2))
	for range 2 {
		var got []int
		for events, err := range all {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, s.nth(events[0].Rev)); len(got) == 2 {
				break
			}
		}
		if !slices.Equal(got, []int{3, 4}) {
			t.Errorf("got %v", got)
		}
	}
}

func testWatchClosed(t *testing.T, e Engine) {
	s := e.Open(t, manyCommits)
	rev := commit(t, s, put("k", "1"))
	waiting, middle := watch(t, s, "", rev), watch(t, s, "", 0)
	middle.next()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := waiting.end(); !errors.Is(err, store.ErrClosed) {
		t.Errorf("waiting: %v", err)
	}
	wg.Wait()
	if err := middle.end(); !errors.Is(err, store.ErrClosed) {
		t.Errorf("in the middle: %v", err)
	}
}

// testWatchConcurrent: many watchers, some of them starting late, under concurrent writers each see exactly the commits that were
// acknowledged, whole, in order, once.
func testWatchConcurrent(t *testing.T, e Engine) {
	const writers, each, watchers = 8, 40, 12
	const total = writers * each
	s := open(t, e, manyCommits)
	var mu sync.Mutex // guards acked
	acked := map[store.Rev]string{}
	ack := func(rev store.Rev, what string) {
		mu.Lock()
		defer mu.Unlock()
		if old, there := acked[rev]; there {
			t.Errorf("revision %d was given to %s and %s", rev, old, what)
		}
		acked[rev] = what
	}
	var writing, starting, watching sync.WaitGroup
	starting.Add(watchers)
	seen := make([][]string, watchers)
	for i := range watchers {
		watching.Go(func() {
			after := store.Rev(0)
			if i%3 == 1 { // these start somewhere in the middle
				after, _ = list(t, s, "")
			}
			starting.Done() // the end, which all wait for, is not before this
			prefix := []string{"", "w", "w/3/"}[i%3]
			for events, err := range s.Watch(t.Context(), prefix, after) {
				if err != nil {
					t.Errorf("watcher %d: %v", i, err)
					return
				}
				if events[0].Key == "w/end" || events[0].Key == "w/3/end" {
					return
				}
				seen[i] = append(seen[i], show(events))
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			for n := range each {
				a, b := put(fmt.Sprintf("w/%d/a", w), fmt.Sprint(n)), put(fmt.Sprintf("w/%d/b", w), fmt.Sprint(n))
				rev, err := s.Commit(t.Context(), nil, []store.Op{a, b})
				if err != nil {
					t.Error(err)
					return
				}
				ack(rev, fmt.Sprintf("%s=%d@%d %s=%d@%d", a.Key, n, rev, b.Key, n, rev))
			}
		})
	}
	writing.Wait()
	starting.Wait()
	commit(t, s, put("w/3/end", ""), put("w/end", ""))
	watching.Wait()
	var all, third []string
	for _, rev := range slices.Sorted(maps.Keys(acked)) {
		all = append(all, acked[rev])
		if strings.HasPrefix(acked[rev], "w/3/") {
			third = append(third, acked[rev])
		}
	}
	for i, got := range seen {
		want := all
		switch i % 3 {
		case 1:
			want = all[total-len(got):] // a whole suffix
		case 2:
			want = third
		}
		if !slices.Equal(got, want) {
			t.Errorf("watcher %d saw %d commits, not the %d that were acknowledged", i, len(got), len(want))
		}
	}
}
