//go:build services

package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/etcd"
	"github.com/rotorkms/rotor/internal/store/storetest"
	"github.com/rotorkms/rotor/internal/testenv"
)

// onVersions runs a test on each server version.
func onVersions(t *testing.T, run func(t *testing.T, version string)) {
	for _, version := range testenv.EtcdVersions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			run(t, version)
		})
	}
}

var prefixes atomic.Int64

// fresh is a prefix that no other test has.
func fresh() string { return fmt.Sprintf("test/%d", prefixes.Add(1)) }

func open(t testing.TB, hosts, prefix string, parameters url.Values) *etcd.Store {
	t.Helper()
	config, err := etcd.ParseURL(etcd.Scheme + hosts + "/" + prefix + "?" + parameters.Encode())
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcd.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// bare is a client of somebody else, who uses the cluster too.
func bare(t testing.TB, c *testenv.EtcdCluster) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func commit(t testing.TB, s store.Store, ops ...store.Op) store.Rev {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, ops)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func count(t testing.TB, s store.Store, prefix string) (n int) {
	t.Helper()
	_, records := s.List(t.Context(), prefix)
	for _, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// proxied puts a proxy before each member.
func proxied(t testing.TB, c *testenv.EtcdCluster) (hosts string, proxies []*proxy) {
	t.Helper()
	var all []string
	for _, to := range strings.Split(c.Hosts(), ",") {
		p := newProxy(t, to)
		proxies, all = append(proxies, p), append(all, p.address())
	}
	return strings.Join(all, ","), proxies
}

// TestStore runs the suite on three members, whose connections break, and which are killed and started again.
func TestStore(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		three := testenv.Etcd(t, version, 3)
		threeHosts, proxies := proxied(t, three)
		var last *etcd.Store
		var hosts, name string
		again := func(t *testing.T, history int) store.Store {
			last = open(t, hosts, name, url.Values{"history": {fmt.Sprint(history)}, "timeout": {"10s"}})
			return last
		}
		cuts := 0
		storetest.Run(t, storetest.Engine{
			Open: func(t *testing.T, history int) store.Store {
				if hosts, name = threeHosts, fresh(); history < 1000 { // it will compact, for everybody
					hosts = testenv.Etcd(t, version, 1).Hosts()
				}
				return again(t, history)
			},
			Reopen: again,
			Again:  again,
			Compact: func(t *testing.T) {
				if err := last.Compact(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			Cut: func() {
				cuts++
				if cuts%3 == 0 {
					i := cuts / 3 % 3
					three.Kill(i)
					three.Start(i)
				}
				for _, p := range proxies {
					p.cut()
				}
			},
		})
	})
}

// TestMembersKilled: one member after the other is killed under load, the leader among them, then all at once. What was acknowledged is
// there, in the order of the watch that lived through it, and what had an unknown outcome happened once or never.
func TestMembersKilled(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		const writers = 8
		c := testenv.Etcd(t, version, 3)
		s := open(t, c.Hosts(), fresh(), url.Values{"timeout": {"10s"}})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var acked, unknown sync.Map // value -> revision
		var writing, watching sync.WaitGroup
		var seen []store.Event
		watching.Go(func() {
			for events, err := range s.Watch(t.Context(), "", 0) {
				if err != nil {
					t.Errorf("watch: %v", err)
					return
				}
				if events[0].Key == "end" {
					return
				}
				if len(events) != 2 || string(events[0].Value) != string(events[1].Value) {
					t.Errorf("half a commit: %v", events)
				}
				seen = append(seen, events[0])
			}
		})
		var commits atomic.Int64
		for w := range writers {
			writing.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					value := fmt.Sprintf("%d/%d", w, n)
					rev, err := s.Commit(t.Context(), nil, []store.Op{put(fmt.Sprintf("a/%d", w), value), put(fmt.Sprintf("b/%d", w), value)})
					switch {
					case err == nil:
						acked.Store(value, rev)
						commits.Add(1)
					case errors.Is(err, store.ErrUnknown):
						unknown.Store(value, rev)
					default:
						t.Errorf("commit: %v", err)
						return
					}
				}
			})
		}
		progress := func(n int64) {
			for target := commits.Load() + n; commits.Load() < target && !t.Failed(); {
				if _, err := s.Get(t.Context(), "a/0"); err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Errorf("get: %v", err)
				}
			}
		}
		for i := range 3 {
			progress(100)
			c.Kill(i)
			progress(100) // with two members
			c.Start(i)
		}
		progress(100)
		stop()
		writing.Wait()
		for i := range 3 { // the lights go out
			c.Kill(i)
		}
		var starting sync.WaitGroup
		for i := range 3 {
			starting.Go(func() { c.Start(i) })
		}
		starting.Wait()
		commit(t, s, put("end", ""))
		watching.Wait()
		last := store.Rev(0)
		for _, e := range seen {
			if e.Rev <= last {
				t.Errorf("revision %d after %d", e.Rev, last)
			}
			last = e.Rev
			if rev, ok := acked.LoadAndDelete(string(e.Value)); ok && rev != e.Rev {
				t.Errorf("%s was acknowledged at %d and is at %d", e.Value, rev, e.Rev)
			} else if _, maybe := unknown.LoadAndDelete(string(e.Value)); !ok && !maybe {
				t.Errorf("%s was written twice, or by nobody", e.Value)
			}
		}
		lost := 0
		acked.Range(func(value, rev any) bool {
			lost++
			t.Errorf("lost: %s at %d", value, rev)
			return lost < 10
		})
		t.Logf("%d commits acknowledged, %d lost", commits.Load(), lost)
	})
}

// TestNoQuorum: without a quorum calls end in their time and say so, and everything goes on when it is back.
func TestNoQuorum(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		c := testenv.Etcd(t, version, 3)
		s := open(t, c.Hosts(), fresh(), url.Values{"timeout": {"1s"}})
		rev := commit(t, s, put("k", "before"))
		c.Kill(0)
		c.Kill(1)
		if _, err := s.Get(t.Context(), "k"); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("get: %v", err)
		}
		_, records := s.List(t.Context(), "")
		for _, err := range records {
			if !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("list: %v", err)
			}
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{put("k", "without")}); !errors.Is(err, store.ErrUnknown) {
			t.Errorf("commit: %v", err)
		}
		config, err := etcd.ParseURL(etcd.Scheme + c.Hosts() + "/x?timeout=500ms")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Open(t.Context(), config); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("open: %v", err)
		}
		got := make(chan []store.Event, 10)
		var watching sync.WaitGroup
		defer watching.Wait()
		watching.Go(func() {
			for events, err := range s.Watch(t.Context(), "end", rev) {
				if err != nil {
					t.Errorf("watch: %v", err)
				}
				got <- events
				return
			}
		})
		c.Start(0)
		c.Start(1)
		want := commit(t, s, put("end", ""))
		if events := <-got; len(events) != 1 || events[0].Rev != want {
			t.Errorf("after the quorum came back: %v", events)
		}
	})
}

// TestNoSpace: a cluster whose quota is used up takes nothing, says so, and loses nothing.
func TestNoSpace(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		c := testenv.Etcd(t, version, 1, "--quota-backend-bytes=4000000")
		s := open(t, c.Hosts(), fresh(), nil)
		value := strings.Repeat("v", 300_000)
		acked, full := 0, 0
		for n := 0; full < 5; n++ {
			key := fmt.Sprintf("n/%03d", n)
			_, err := s.Commit(t.Context(), nil, []store.Op{put(key, value)})
			_, missing := s.Get(t.Context(), key)
			switch {
			case err == nil && missing == nil && n < 100:
				acked++
			case errors.Is(err, store.ErrFull) && errors.Is(missing, store.ErrNotFound):
				full++
			default:
				t.Fatalf("commit %d: %v, and its record: %v", n, err, missing)
			}
		}
		if got := count(t, s, "n/"); got != acked || acked < 3 {
			t.Errorf("%d acknowledged, %d there", acked, got)
		}
		client := bare(t, c)
		commitsMade, err := client.Get(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Delete(t.Context(), "test/", clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Compact(t.Context(), commitsMade.Header.Revision+1, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Defragment(t.Context(), c.Endpoints[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
			t.Fatal(err)
		}
		commit(t, s, put("room", "again"))
	})
}

// TestConcurrentlyFull: while others commit, "no space" is never said of a commit that is there.
func TestConcurrentlyFull(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		c := testenv.Etcd(t, version, 1, "--quota-backend-bytes=8000000")
		s := open(t, c.Hosts(), fresh(), nil)
		value := strings.Repeat("v", 100_000)
		var writing sync.WaitGroup
		for w := range 8 {
			writing.Go(func() {
				for n := 0; n < 1000; n++ {
					key := fmt.Sprintf("%d/%d", w, n)
					_, err := s.Commit(t.Context(), nil, []store.Op{put(key, value)})
					_, missing := s.Get(t.Context(), key)
					switch {
					case err == nil && missing == nil, errors.Is(err, store.ErrUnknown):
					case errors.Is(err, store.ErrFull) && errors.Is(missing, store.ErrNotFound):
						return
					default:
						t.Errorf("commit: %v, and its record: %v", err, missing)
						return
					}
				}
				t.Error("never full")
			})
		}
		writing.Wait()
	})
}

// TestCompactedByOthers: what others write to the cluster, and compact away, moves revisions and breaks no watch.
func TestCompactedByOthers(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		c := testenv.Etcd(t, version, 1)
		s, client := open(t, c.Hosts(), fresh(), nil), bare(t, c)
		rev := commit(t, s, put("k", "1"), put("gone", "1"))
		other := func() int64 {
			t.Helper()
			r, err := client.Put(t.Context(), "other", "x")
			if err != nil {
				t.Fatal(err)
			}
			return r.Header.Revision
		}
		compact := func(rev int64) {
			t.Helper()
			if _, err := client.Compact(t.Context(), rev); err != nil {
				t.Fatal(err)
			}
		}
		for range 5 {
			other()
		}
		if at, _ := s.List(t.Context(), ""); at != rev {
			t.Errorf("listed at %d, the newest commit is %d", at, rev)
		}
		compact(other())
		next := make(chan []store.Event)
		var watching sync.WaitGroup
		defer watching.Wait()
		watching.Go(func() {
			for events, err := range s.Watch(t.Context(), "", rev) {
				if err != nil {
					t.Errorf("watch: %v", err)
				}
				next <- events
				return
			}
		})
		want := commit(t, s, put("k", "2"))
		if events := <-next; len(events) != 1 || events[0].Rev != want {
			t.Errorf("%v instead of revision %d", events, want)
		}
		// A deletion at the very revision of a compaction is not passed over: etcd 3.4 would.
		deleted := commit(t, s, store.Op{Key: "gone", Delete: true})
		compact(int64(deleted))
		for events, err := range s.Watch(t.Context(), "", want) {
			if !errors.Is(err, store.ErrCompacted) {
				t.Errorf("a deletion was compacted away, and the watch yields %v, %v", events, err)
			}
			break
		}
		compact(other()) // before a store's first commit
		empty := open(t, c.Hosts(), fresh(), nil)
		first := commit(t, empty, put("k", "1"))
		for events, err := range empty.Watch(t.Context(), "", 0) {
			if err != nil || events[0].Rev != first {
				t.Errorf("%v, %v", events, err)
			}
			break
		}
	})
}

// TestLarge: pages, and answers that etcd cuts into fragments.
func TestLarge(t *testing.T) {
	onVersions(t, func(t *testing.T, version string) {
		c := testenv.Etcd(t, version, 1)
		s := open(t, c.Hosts(), fresh(), nil)
		value := strings.Repeat("v", 10_000)
		for n := range 30 {
			var ops []store.Op
			for i := range 100 {
				ops = append(ops, put(fmt.Sprintf("k/%02d/%02d", n, i), value))
			}
			commit(t, s, ops...)
		}
		if got := count(t, s, "k/"); got != 3000 {
			t.Errorf("%d records", got)
		}
		commits := 0
		for events, err := range s.Watch(t.Context(), "", 0) {
			if err != nil || len(events) != 100 {
				t.Fatalf("commit %d: %d events, %v", commits, len(events), err)
			}
			if commits++; commits == 30 {
				break
			}
		}
	})
}
