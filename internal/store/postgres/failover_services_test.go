//go:build services

package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// replicaOf makes a server that replicates another, and waits until it is synchronous.
func replicaOf(t *testing.T, primary *testenv.PostgreSQL) *testenv.PostgreSQL {
	t.Helper()
	replica := testenv.Postgres(t)
	replica.Stop()
	if err := os.RemoveAll(replica.Dir); err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_basebackup")
	cmd := osexec.CommandContext(t.Context(), slices.Max(found), "-D", replica.Dir, "-d", primary.URL+"?application_name=replica", "-R", "-c", "fast", "-X", "stream", "--no-sync")
	cmd.Dir = "/"
	if os.Getuid() == 0 { // as the servers
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		id, _ := strconv.Atoi(nobody.Uid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	replica.Start()
	exec(t, primary.URL, "ALTER SYSTEM SET synchronous_standby_names = 'replica'", "SELECT pg_reload_conf()")
	a := admin(t, primary.URL)
	for state := ""; state != "sync"; {
		if err := a.QueryRow(t.Context(), "SELECT coalesce(max(sync_state), '') FROM pg_stat_replication WHERE state = 'streaming'").Scan(&state); err != nil {
			t.Fatal(err)
		}
	}
	return replica
}

// TestFailover kills the primary under load and promotes its synchronous replica: nothing acknowledged is lost, commits go on there, and a watch
// that began on the old primary yields everything once, in order.
func TestFailover(t *testing.T) {
	primary := testenv.Postgres(t)
	replica := replicaOf(t, primary)
	both := strings.Replace(primary.URL, fmt.Sprintf(":%d/", primary.Port), fmt.Sprintf(":%d,127.0.0.1:%d/", primary.Port, replica.Port), 1)
	s := mustOpen(t, both, postgres.Options{Timeout: 20 * time.Second})
	if d, err := s.Durability(t.Context()); err != nil || len(d.Crash)+len(d.Machine) != 0 {
		t.Errorf("durability: %+v, %v", d, err)
	}
	mustCommit(t, s, put("w/first", ""))
	var seen []store.Rev
	var watching sync.WaitGroup
	watching.Go(func() {
		for events, err := range s.Watch(t.Context(), "", 0) {
			if err != nil {
				t.Error(err)
				return
			}
			seen = append(seen, events[0].Rev)
			if events[0].Key == "w/end" {
				return
			}
		}
	})
	const writers = 8
	var mu sync.Mutex // guards what follows
	acked := make([]int, writers)
	total, unknown := 0, 0
	enough := make(chan struct{})
	moved := make(chan struct{})
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for n, left := 1, 20; left > 0; n++ {
				_, err := s.Commit(context.Background(), nil, []store.Op{put(fmt.Sprintf("w/%d", w), fmt.Sprint(n))})
				if err != nil && !errors.Is(err, store.ErrUnknown) && !errors.Is(err, store.ErrUnavailable) {
					t.Error(err)
					return
				}
				select {
				case <-moved:
					left--
				default:
				}
				mu.Lock()
				if err != nil {
					unknown++
				} else if acked[w] = n; err == nil {
					if total++; total == 200 {
						close(enough)
					}
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	primary.Kill()
	exec(t, replica.URL, "SELECT pg_promote()")
	close(moved)
	writing.Wait()
	mustCommit(t, s, put("w/end", ""))
	watching.Wait()
	for w, n := range acked {
		got := 0
		fmt.Sscan(mustGet(t, s, fmt.Sprintf("w/%d", w)), &got)
		if got < n {
			t.Errorf("writer %d: acknowledged %d, read %d", w, n, got)
		}
	}
	for i, rev := range seen {
		if rev != store.Rev(i+1) {
			t.Fatalf("the watch yielded revision %d after %d", rev, i)
		}
	}
	t.Logf("%d commits acknowledged, 0 lost, %d unknown or refused, %d seen by the watch", total, unknown, len(seen))
}
