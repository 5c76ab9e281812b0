//go:build services

package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// TestFaults is everything that goes wrong between the engine and its server, on one server.
func TestFaults(t *testing.T) {
	server := testenv.Postgres(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testenv.PostgreSQL)
	}{
		{"CutAnywhere", testCutAnywhere},
		{"Unknown", testUnknown},
		{"NotReplicated", testNotReplicated},
		{"Crash", testCrash},
		{"LostCommits", testLostCommits},
		{"States", testStates},
		{"GivenUp", testGivenUp},
		{"HungServer", testHungServer},
		{"LostNotification", testLostNotification},
		{"Away", testAway},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, server) })
	}
}

// traffic is how many bytes one more commit of a store takes in each direction.
func traffic(t *testing.T, p *proxy, s store.Store) (up, down int) {
	t.Helper()
	warm(t, s)
	p.limited(func(isUp bool, b []byte) (int, bool) {
		if isUp {
			up += len(b)
		} else {
			down += len(b)
		}
		return len(b), false
	})
	mustCommit(t, s, put("n/count", "xxxx"))
	p.limited(nil)
	return up, down
}

// warm returns when a store has all its connections: a watch has yielded what only the one that follows the log can have brought.
func warm(t *testing.T, s store.Store) {
	t.Helper()
	n := 0
	rev := mustCommit(t, s, put("warm", "0"))
	for _, err := range s.Watch(t.Context(), "warm", rev-1) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			return
		}
		mustCommit(t, s, put("warm", fmt.Sprint(n)))
	}
}

// after lets n bytes of a direction pass and then cuts, once; cut is called then.
func after(n int, up bool, cut func()) func(bool, []byte) (int, bool) {
	done := false
	return func(isUp bool, b []byte) (int, bool) {
		if done || isUp != up {
			return len(b), false
		}
		if len(b) < n || n > 0 && len(b) == n && up {
			n -= len(b)
			return len(b), false
		}
		done = true
		cut()
		return n, true
	}
}

// direct is a handle that does not go through the proxy, and polls seldom.
func direct(t *testing.T, url string) *postgres.Store {
	t.Helper()
	return mustOpen(t, url, postgres.Options{})
}

// testCutAnywhere cuts the connection at one place after the other of a commit's requests and answers. The commit is found out to have
// happened, or is made anew: once, in any case.
func testCutAnywhere(t *testing.T, server *testenv.PostgreSQL) {
	p := newProxy(t, server.Port)
	straight := fresh(server.URL)
	check := direct(t, straight)
	s := mustOpen(t, p.url(straight), postgres.Options{Poll: time.Hour})
	up, down := traffic(t, p, s)
	cuts, n := 0, 0
	for _, way := range []struct {
		up    bool
		bytes int
	}{{true, up}, {false, down}} {
		for at := 0; at < way.bytes; at += 1 + way.bytes/25 {
			n++
			key := fmt.Sprintf("n/%04d", n)
			p.limited(after(at, way.up, func() { cuts++ }))
			rev := mustCommit(t, s, put(key, "once"))
			p.limited(nil)
			if r, err := check.Get(t.Context(), key); err != nil || r.Rev != rev {
				t.Fatalf("cut after %d bytes, up %v: acknowledged as %d, read %+v, %v", at, way.up, rev, r, err)
			}
		}
	}
	seen := map[string]int{}
	for events, err := range check.Watch(t.Context(), "n/", 0) {
		if err != nil {
			t.Fatal(err)
		}
		seen[events[0].Key]++
		if events[0].Key == fmt.Sprintf("n/%04d", n) {
			break
		}
	}
	for key, times := range seen {
		if times != 1 {
			t.Errorf("%s was written %d times", key, times)
		}
	}
	if cuts < n-2 { // the keys are of other lengths, so the last places may not be reached
		t.Errorf("only %d of %d commits were cut", cuts, n)
	}
	t.Logf("%d commits, %d cut, over %d bytes up and %d down", n, cuts, up, down)
}

// testUnknown cuts and lets no new connection through: then a commit that was sent is unknown, and one that was not is refused.
func testUnknown(t *testing.T, server *testenv.PostgreSQL) {
	p := newProxy(t, server.Port)
	straight := fresh(server.URL)
	check := direct(t, straight)
	o := postgres.Options{Timeout: 900 * time.Millisecond}
	up, down := traffic(t, p, mustOpen(t, p.url(straight), postgres.Options{Poll: time.Hour}))
	count := map[string]int{}
	n := 0
	for _, way := range []struct {
		up    bool
		bytes int
	}{{true, up}, {false, down}} {
		for at := range 6 {
			n++
			s, err := postgres.Open(t.Context(), p.url(straight), postgres.Options{Timeout: o.Timeout, Log: quiet, Poll: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			warm(t, s)
			key := fmt.Sprintf("n/%04d", n)
			p.limited(after(at*way.bytes/6, way.up, func() { p.shut.Store(true) }))
			_, err = s.Commit(t.Context(), nil, []store.Op{put(key, "?")})
			mustCommit(t, check, put("n/then", "the lock is free again")) // so whatever it was has ended
			_, missing := check.Get(t.Context(), key)
			switch {
			case errors.Is(err, store.ErrUnknown) && missing == nil:
				count["unknown, and happened"]++
			case errors.Is(err, store.ErrUnknown):
				count["unknown, and did not happen"]++
			case errors.Is(err, store.ErrUnavailable) && missing != nil:
				count["refused"]++
			default:
				t.Errorf("up %v, %d sixths: %v, there: %v", way.up, at, err, missing == nil)
			}
			p.limited(nil)
			p.shut.Store(false)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Log(count)
	for _, what := range []string{"unknown, and happened", "unknown, and did not happen", "refused"} {
		if count[what] == 0 {
			t.Errorf("no commit was %s", what)
		}
	}
}

// waiting waits until a backend waits for what is asked.
func waiting(t *testing.T, conn *pgx.Conn, event string) (pid int32) {
	t.Helper()
	for {
		err := conn.QueryRow(t.Context(), "SELECT pid FROM pg_stat_activity WHERE wait_event = $1 AND application_name = 'rotor'", event).Scan(&pid)
		if err == nil {
			return pid
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			t.Fatal(err)
		}
	}
}

func admin(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url+"?application_name=admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// testNotReplicated: while no synchronous replica answers, a commit is unknown and invisible, also after its time is over; and when an operator
// cancels the wait, it is still not called a success.
func testNotReplicated(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	s := mustOpen(t, url, postgres.Options{Timeout: 2 * time.Second})
	mustCommit(t, s, put("k", "before"))
	a := admin(t, server.URL)
	set := func(names string) {
		exec(t, server.URL, "ALTER SYSTEM SET synchronous_standby_names = '"+names+"'", "SELECT pg_reload_conf()")
		for got := "?"; got != names; {
			if err := a.QueryRow(t.Context(), "SHOW synchronous_standby_names").Scan(&got); err != nil {
				t.Fatal(err)
			}
		}
	}
	set("nobody")
	waitsNow(t, server, a)
	if _, err := s.Commit(t.Context(), nil, []store.Op{put("k", "waits")}); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
	waiting(t, a, "SyncRep") // it still does: nobody canceled it
	if got := mustGet(t, s, "k"); got != "before" {
		t.Errorf("read what is on no replica: %s", got)
	}
	set("")
	mustCommit(t, s, put("m", "after"))
	if got := mustGet(t, s, "k"); got != "waits" {
		t.Errorf("it was released, and lost: %s", got)
	}

	set("nobody")
	waitsNow(t, server, a)
	done := make(chan error)
	go func() {
		_, err := s.Commit(context.Background(), nil, []store.Op{put("k", "canceled")})
		done <- err
	}()
	for {
		exec(t, server.URL, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'rotor'")
		select {
		case err := <-done:
			if !errors.Is(err, store.ErrUnknown) {
				t.Errorf("an operator canceled the wait: %v", err)
			}
			set("")
			mustCommit(t, s, put("m", "again"))
			return
		default:
		}
	}
}

// waitsNow returns once commits wait for a synchronous replica. A setting is in force for them only when the checkpointer has seen it, which is after
// sessions show it; until then a commit is rightly a success.
func waitsNow(t *testing.T, server *testenv.PostgreSQL, a *pgx.Conn) {
	t.Helper()
	for in := false; !in; {
		probe := admin(t, server.URL)
		pid, done := probe.PgConn().PID(), make(chan struct{})
		go func() {
			defer close(done)
			_, _ = probe.Exec(t.Context(), "SELECT pg_logical_emit_message(true, 'probe', '')") // waits, and is canceled; or does not
		}()
		for ended := false; !ended && !in; {
			if err := a.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')", pid).Scan(&in); err != nil {
				t.Fatal(err)
			}
			select {
			case <-done:
				ended = true
			default:
			}
		}
		if in {
			if _, err := a.Exec(t.Context(), "SELECT pg_cancel_backend($1)", pid); err != nil {
				t.Fatal(err)
			}
			<-done
		}
	}
}

// testCrash kills the server with -9 under load again and again: what was acknowledged is there.
func testCrash(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	s := mustOpen(t, url, postgres.Options{Timeout: 20 * time.Second})
	const writers, rounds = 8, 5
	var mu sync.Mutex // guards acked
	acked := make([]int, writers)
	total, unknown := 0, 0
	for round := range rounds {
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		enough := make(chan struct{}, 1)
		before := total
		for w := range writers {
			wg.Go(func() {
				for n := acked[w] + 1; ctx.Err() == nil; n++ {
					_, err := s.Commit(context.Background(), nil, []store.Op{put(fmt.Sprintf("w/%d/a", w), fmt.Sprint(n)), put(fmt.Sprintf("w/%d/b", w), fmt.Sprint(n))})
					mu.Lock()
					switch {
					case err == nil:
						acked[w] = n
						total++
					case errors.Is(err, store.ErrUnknown), errors.Is(err, store.ErrUnavailable):
						unknown++
					default:
						t.Error(err)
					}
					if total == before+100*(round+1) {
						select {
						case enough <- struct{}{}:
						default:
						}
					}
					mu.Unlock()
				}
			})
		}
		<-enough
		if round == rounds-1 { // one backend alone: the server restarts itself
			exec(t, server.URL, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rotor'")
		} else {
			server.Kill()
			server.Start()
		}
		stop()
		wg.Wait()
		for w, n := range acked {
			a, b := mustGet(t, s, fmt.Sprintf("w/%d/a", w)), mustGet(t, s, fmt.Sprintf("w/%d/b", w))
			got := 0
			fmt.Sscan(a, &got)
			if a != b || got < n {
				t.Fatalf("round %d, writer %d: acknowledged %d, read %s and %s", round, w, n, a, b)
			}
			acked[w] = got
		}
	}
	t.Logf("%d rounds, %d commits acknowledged, 0 lost, %d unknown or refused", rounds, total, unknown)
}

// testLostCommits: a server that has lost what it acknowledged, or has another in its place, stops the store.
func testLostCommits(t *testing.T, server *testenv.PostgreSQL) {
	for name, sql := range map[string]string{
		"shorter": "DELETE FROM %[1]s.commits WHERE rev = 3; UPDATE %[1]s.head SET rev = 2",
		"forked":  `UPDATE %[1]s.commits SET batch = '\x00' WHERE rev = 3`,
	} {
		t.Run(name, func(t *testing.T) {
			url := fresh(server.URL)
			s := mustOpen(t, url, postgres.Options{})
			for range 3 {
				mustCommit(t, s, put("k", "v"))
			}
			exec(t, server.URL, fmt.Sprintf(sql, schemaOf(url)), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rotor'")
			_, err := s.Commit(t.Context(), nil, []store.Op{put("k", "w")})
			if !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("commit: %v", err)
			}
			if _, err := s.Get(t.Context(), "k"); !errors.Is(err, store.ErrClosed) || !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("get: %v", err)
			}
			for _, err := range s.Watch(t.Context(), "", 0) {
				if !errors.Is(err, store.ErrClosed) {
					t.Errorf("watch: %v", err)
				}
				break
			}
		})
	}
}

// testStates: what the server reports in the middle of a transaction.
func testStates(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	s := mustOpen(t, url, postgres.Options{})
	mustCommit(t, s, put("k", "before"))
	schema := schemaOf(url)
	raise := func(state string, times int) {
		exec(t, server.URL, fmt.Sprintf(`CREATE OR REPLACE FUNCTION %[1]s.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF nextval('%[1]s.tries') <= %[3]d THEN RAISE EXCEPTION 'planted' USING ERRCODE = '%[2]s'; END IF; RETURN NEW; END $$;
			CREATE SEQUENCE IF NOT EXISTS %[1]s.tries; ALTER SEQUENCE %[1]s.tries RESTART;
			CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON %[1]s.commits FOR EACH ROW EXECUTE FUNCTION %[1]s.fail()`, schema, state, times))
	}
	raise("53100", 1)
	if _, err := s.Commit(t.Context(), nil, []store.Op{put("k", "never")}); !errors.Is(err, store.ErrFull) {
		t.Errorf("disk full: %v", err)
	}
	if got := mustGet(t, s, "k"); got != "before" {
		t.Errorf("a full disk wrote %s", got)
	}
	mustCommit(t, s, put("k", "room"))
	for _, state := range []string{"40001", "40P01", "55P03"} {
		raise(state, 3)
		rev := mustCommit(t, s, put("k", state))
		if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != state || r.Rev != rev {
			t.Errorf("%s: %+v, %v", state, r, err)
		}
	}
	raise("22012", 1)
	if _, err := s.Commit(t.Context(), nil, []store.Op{put("k", "never")}); err == nil || errors.Is(err, store.ErrUnknown) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("another error: %v", err)
	}
	if rev, _ := s.List(t.Context(), ""); rev != 5 {
		t.Errorf("after 5 commits the store is at %d", rev)
	}
}

// testGivenUp: a commit whose caller gives up before it is taken never happens; a lock that somebody holds refuses commits in bounded time.
func testGivenUp(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	s := mustOpen(t, url, postgres.Options{Timeout: 2 * time.Second})
	mustCommit(t, s, put("k", "0"))
	a := admin(t, server.URL)
	tx, err := a.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT * FROM "+schemaOf(url)+".head FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	first := make(chan error)
	go func() {
		_, err := s.Commit(context.Background(), nil, []store.Op{put("first", "1")})
		first <- err
	}()
	waiting(t, a, "transactionid")
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error)
	go func() {
		_, err := s.Commit(ctx, nil, []store.Op{put("second", "1")})
		second <- err
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if err := <-first; !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("locked out: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, put("k", "1"))
	for _, key := range []string{"first", "second"} {
		if _, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// testHungServer: a server of ours that hangs in the middle of a commit, or whose network is gone, keeps the others out for a bounded time.
func testHungServer(t *testing.T, server *testenv.PostgreSQL) {
	p := newProxy(t, server.Port)
	straight := fresh(server.URL)
	s := mustOpen(t, p.url(straight), postgres.Options{Timeout: 2 * time.Second, Poll: time.Hour})
	up, _ := traffic(t, p, s)
	passed := 0
	p.limited(func(isUp bool, b []byte) (int, bool) {
		if isUp {
			if passed += len(b); passed > up/2 { // the second half goes nowhere
				return 0, false
			}
		}
		return len(b), false
	})
	done := make(chan error)
	go func() {
		_, err := s.Commit(context.Background(), nil, []store.Op{put("hung", "1")})
		done <- err
	}()
	a := admin(t, server.URL)
	for n := 0; n == 0; {
		err := a.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND application_name = 'rotor'").Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
	}
	mustCommit(t, direct(t, straight), put("other", "1"))
	if err := <-done; err == nil {
		t.Error("a commit that went nowhere was acknowledged")
	}
}

// testLostNotification: commits that nobody is told of are found by the next poll.
func testLostNotification(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	s := mustOpen(t, url, postgres.Options{Poll: 50 * time.Millisecond})
	rev := mustCommit(t, s, put("k", "told"))
	got := make(chan string)
	go func() {
		for events, err := range s.Watch(context.Background(), "", rev) {
			got <- fmt.Sprint(len(events), err)
			return
		}
	}()
	exec(t, server.URL, fmt.Sprintf(`WITH c AS (INSERT INTO %[1]s.commits (rev, batch, events) VALUES (2, '\x01', '\x0000016b0000000178')) UPDATE %[1]s.head SET rev = 2`, schemaOf(url)))
	if g := <-got; g != "1 <nil>" {
		t.Error(g)
	}
}

// testAway: a watch of a server that went away goes on where it was when the server comes back.
func testAway(t *testing.T, server *testenv.PostgreSQL) {
	s := mustOpen(t, fresh(server.URL), postgres.Options{Timeout: 30 * time.Second})
	mustCommit(t, s, put("k", "1"))
	got := make(chan string)
	go func() {
		for events, err := range s.Watch(t.Context(), "", 0) {
			if err != nil {
				return
			}
			got <- fmt.Sprintf("%s at %d", events[0].Value, events[0].Rev)
		}
	}()
	seen := []string{<-got}
	server.Stop()
	var wg sync.WaitGroup
	wg.Go(func() { mustCommit(t, s, put("k", "2")) }) // waits for it
	server.Start()
	wg.Wait()
	seen = append(seen, <-got)
	mustCommit(t, s, put("k", "3"))
	seen = append(seen, <-got)
	if want := []string{"1 at 1", "2 at 2", "3 at 3"}; !slices.Equal(seen, want) {
		t.Errorf("seen %s", strings.Join(seen, ", "))
	}
}
