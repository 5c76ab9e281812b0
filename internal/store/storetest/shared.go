package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
)

// Several servers over one store: each has a handle of its own.

func again(t *testing.T, e Engine, history int) store.Store {
	t.Helper()
	s := e.Again(t, history)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// testSharedReads: what one handle has acknowledged is what the next call of the other sees.
func testSharedReads(t *testing.T, e Engine) {
	a := open(t, e, manyCommits)
	last := commit(t, a, put("before", "1"))
	b := again(t, e, manyCommits)
	handles := []store.Store{a, b}
	for n := range 40 {
		writer, reader := handles[n%2], handles[1-n%2]
		rev := commit(t, writer, put("k", fmt.Sprint(n)), put(fmt.Sprintf("n/%02d", n), ""))
		if rev <= last {
			t.Fatalf("revision %d after the other handle's %d", rev, last)
		}
		last = rev
		if r := get(t, reader, "k"); string(r.Value) != fmt.Sprint(n) || r.Rev != rev {
			t.Fatalf("the other handle acknowledged %d at %d, this one reads %s at %d", n, rev, r.Value, r.Rev)
		}
		if at, all := list(t, reader, "n/"); at != rev || len(all) != n+1 {
			t.Fatalf("the other handle is at %d, this one lists %d records at %d", rev, len(all), at)
		}
	}
	commit(t, a, del("before"))
	if _, err := b.Get(t.Context(), "before"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("deleted by the other handle: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	commit(t, b, put("k", "alone")) // one that closes does not disturb the other
	if r := get(t, b, "k"); string(r.Value) != "alone" {
		t.Errorf("%+v", r)
	}
}

// testSharedConflicts: a counter that both handles raise with conditions loses no step.
func testSharedConflicts(t *testing.T, e Engine) {
	const each = 25
	a := open(t, e, manyCommits)
	commit(t, a, put("n", "0"))
	var wg sync.WaitGroup
	for _, s := range []store.Store{a, a, again(t, e, manyCommits), again(t, e, manyCommits)} {
		wg.Go(func() {
			for done := 0; done < each; {
				r, err := s.Get(t.Context(), "n")
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				if _, err := fmt.Sscan(string(r.Value), &n); err != nil {
					t.Error(err)
					return
				}
				_, err = s.Commit(t.Context(), []store.Cond{{Key: "n", Rev: r.Rev}}, []store.Op{put("n", fmt.Sprint(n+1))})
				if err != nil && !errors.Is(err, store.ErrConflict) {
					t.Error(err)
					return
				}
				if err == nil {
					done++
				}
			}
		})
	}
	wg.Wait()
	if r := get(t, a, "n"); string(r.Value) != fmt.Sprint(4*each) {
		t.Errorf("after %d steps: %s", 4*each, r.Value)
	}
}

// testSharedWatch: every watch of every handle sees the commits of all handles, whole, in order, once.
func testSharedWatch(t *testing.T, e Engine) {
	const each = 50
	handles := []store.Store{open(t, e, manyCommits)}
	handles = append(handles, again(t, e, manyCommits), again(t, e, manyCommits))
	seen := make([][]string, 2*len(handles))
	var watching, writing sync.WaitGroup
	for i := range seen {
		watching.Go(func() { seen[i] = follow(t, handles[i%len(handles)], "w/", 0, "w/end") })
	}
	var mu sync.Mutex // guards acked
	acked := map[store.Rev]string{}
	for i, s := range handles {
		writing.Go(func() {
			for n := range each {
				a, b := put(fmt.Sprintf("w/%d", i), fmt.Sprint(n)), put(fmt.Sprintf("w/b%d", i), fmt.Sprint(n))
				rev, err := s.Commit(t.Context(), nil, []store.Op{a, b})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked[rev] = fmt.Sprintf("%s=%d@%d %s=%d@%d", a.Key, n, rev, b.Key, n, rev)
				mu.Unlock()
			}
		})
	}
	writing.Wait()
	commit(t, handles[1], put("w/end", ""))
	watching.Wait()
	var want []string
	for _, rev := range slices.Sorted(maps.Keys(acked)) {
		want = append(want, acked[rev])
	}
	for i, got := range seen {
		if !slices.Equal(got, want) {
			t.Errorf("watch %d saw %d commits, not the %d that were acknowledged, in order", i, len(got), len(want))
		}
	}
	if got := follow(t, handles[2], "w/", 0, "w/end"); !slices.Equal(got, want) {
		t.Errorf("a late watch saw %d commits, not %d", len(got), len(want))
	}
}

// follow is what a watch yields up to the commit that writes end.
func follow(t *testing.T, s store.Store, prefix string, after store.Rev, end string) (seen []string) {
	for events, err := range s.Watch(t.Context(), prefix, after) {
		if err != nil {
			t.Errorf("watch after %d commits: %v", len(seen), err)
			return seen
		}
		if events[0].Key == end {
			return seen
		}
		seen = append(seen, show(events))
	}
	return seen
}

// testSharedCompaction: what one handle's commits have compacted away is gone for the watches of the other.
func testSharedCompaction(t *testing.T, e Engine) {
	const history = 5
	a := open(t, e, history)
	b := again(t, e, history)
	revs := []store.Rev{commit(t, a, put("k", "first"))}
	w := watch(t, b, "", 0)
	defer w.stop()
	if events := w.next(); events[0].Rev != revs[0] {
		t.Fatal(show(events))
	}
	for n := range 3 * history {
		revs = append(revs, commit(t, a, put("k", fmt.Sprint(n))))
	}
	e.compact(t)
	if err := watch(t, b, "", revs[0]).end(); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("a new watch: %v", err)
	}
	for _, want := range revs[1:] { // one that is quick loses nothing
		events, err, ok := w.pull()
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if !ok || err != nil {
			t.Fatalf("an old watch: %v, %v", err, ok)
		}
		if events[0].Rev != want {
			t.Fatalf("gap: revision %d instead of %d", events[0].Rev, want)
		}
	}
	rev, _ := list(t, b, "")
	fresh := watch(t, b, "", rev)
	defer fresh.stop()
	fresh.quiet(a, "marker")
}

// testSharedLinearizable: as testLinearizable, with clients of several handles.
func testSharedLinearizable(t *testing.T, e Engine) {
	a := open(t, e, manyCommits)
	linear(t, []store.Store{a, again(t, e, manyCommits), again(t, e, manyCommits)}, nil)
}

// testDisturbed: connections break under clients and watches. What was acknowledged is there, what failed is not, what is unknown happened
// once or never, and no watch misses, repeats or reorders a commit.
func testDisturbed(t *testing.T, e Engine) {
	stores := []store.Store{open(t, e, manyCommits)}
	if e.Again != nil {
		stores = append(stores, again(t, e, manyCommits))
	}
	seen := make([][]string, 2*len(stores))
	var watching sync.WaitGroup
	for i := range seen {
		watching.Go(func() { seen[i] = follow(t, stores[i%len(stores)], "", 0, "end") })
	}
	linear(t, stores, func(round int) {
		if round%3 == 1 {
			e.Cut()
		}
	})
	commit(t, stores[0], put("end", ""))
	watching.Wait()
	want := follow(t, stores[0], "", 0, "end")
	for i, got := range seen {
		if !slices.Equal(got, want) {
			t.Errorf("watch %d saw %d commits, the log has %d", i, len(got), len(want))
		}
	}
}
