//go:build services

package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// TestRights: a role that owns its schema and nothing else is enough; without it the error names the server's reason, and never the password.
func TestRights(t *testing.T) {
	server := testenv.Postgres(t)
	exec(t, server.URL,
		"CREATE ROLE small LOGIN PASSWORD 'not-to-be-seen'", "REVOKE CREATE ON DATABASE rotor FROM PUBLIC", "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
		"CREATE SCHEMA mine AUTHORIZATION small")
	small := strings.Replace(server.URL, "rotor:fine-for-a-test@", "small:not-to-be-seen@", 1)
	s := mustOpen(t, small+"?schema=mine", postgres.Options{})
	mustCommit(t, s, put("k", "v"))
	mustGet(t, mustOpen(t, small+"?schema=mine", postgres.Options{}), "k")
	for name, url := range map[string]string{
		"no schema": small + "?schema=other", "no database": strings.Replace(small, "/rotor", "/none", 1),
		"wrong password": strings.Replace(server.URL, "fine-for-a-test", "not-to-be-seen", 1),
	} {
		if _, err := postgres.Open(t.Context(), url, postgres.Options{Log: quiet}); err == nil || strings.Contains(err.Error(), "not-to-be-seen") {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("together", func(t *testing.T) { testTogether(t, server) })
	t.Run("versions", func(t *testing.T) { testVersions(t, server) })
	t.Run("large", func(t *testing.T) { testLarge(t, server) })
}

// testTogether: servers that start at once on an empty database make one schema.
func testTogether(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := postgres.Open(t.Context(), url, postgres.Options{Log: quiet})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Commit(t.Context(), nil, []store.Op{put("k", "v")}); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if rev, _ := mustOpen(t, url, postgres.Options{}).List(t.Context(), ""); rev != 8 {
		t.Errorf("8 commits made revision %d", rev)
	}
}

// testVersions: a schema of a newer release is used when that says so, and left alone otherwise.
func testVersions(t *testing.T, server *testenv.PostgreSQL) {
	url := fresh(server.URL)
	mustCommit(t, mustOpen(t, url, postgres.Options{}), put("k", "v"))
	exec(t, server.URL, "UPDATE "+schemaOf(url)+".meta SET version = 9, usable_from = 1")
	mustGet(t, mustOpen(t, url, postgres.Options{}), "k")
	exec(t, server.URL, "UPDATE "+schemaOf(url)+".meta SET usable_from = 9")
	if _, err := postgres.Open(t.Context(), url, postgres.Options{Log: quiet}); err == nil || !strings.Contains(err.Error(), "newer release") {
		t.Errorf("schema of a newer release: %v", err)
	}
}

// testLarge: many large values at once, and a watch that reads them in parts.
func testLarge(t *testing.T, server *testenv.PostgreSQL) {
	s := mustOpen(t, fresh(server.URL), postgres.Options{})
	value := strings.Repeat("x", store.MaxBytes-16)
	var wg sync.WaitGroup
	for n := range 24 {
		wg.Go(func() {
			if _, err := s.Commit(t.Context(), nil, []store.Op{put(fmt.Sprintf("large/%02d", n), value)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for events, err := range s.Watch(t.Context(), "", 0) {
		if err != nil || string(events[0].Value) != value {
			t.Fatalf("%d bytes, %v", len(events[0].Value), err)
		}
		if n++; n == 24 {
			break
		}
	}
	_, records := s.List(t.Context(), "large/")
	for r, err := range records {
		if n--; err != nil || string(r.Value) != value {
			t.Fatalf("%d bytes, %v", len(r.Value), err)
		}
	}
	if n != 0 {
		t.Errorf("%d records are missing", n)
	}
}

// TestReplica: a server in recovery is refused whatever it would answer, and of several hosts the one that takes writes is found.
func TestReplica(t *testing.T) {
	replica, primary := testenv.Postgres(t), testenv.Postgres(t, "fsync=off", "full_page_writes=off", "synchronous_commit=off")
	mustCommit(t, mustOpen(t, replica.URL, postgres.Options{}), put("k", "old"))
	replica.Stop()
	if err := os.WriteFile(filepath.Join(replica.Dir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	replica.Start()
	for _, attrs := range []string{"", "?target_session_attrs=any", "?target_session_attrs=standby"} {
		if _, err := postgres.Open(t.Context(), replica.URL+attrs, postgres.Options{Log: quiet}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("replica %s: %v", attrs, err)
		}
	}
	both := strings.Replace(primary.URL, "@", fmt.Sprintf("@127.0.0.1:%d,", replica.Port), 1)
	s := mustOpen(t, both, postgres.Options{})
	mustCommit(t, s, put("k", "new"))

	d, err := s.Durability(t.Context())
	if err != nil || fmt.Sprint(d.Crash) != "[fsync is off full_page_writes is off]" || fmt.Sprint(d.Machine) != "[synchronous_standby_names is empty]" {
		t.Errorf("durability: %+v, %v", d, err)
	}
	exec(t, primary.URL, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (a, b)'", "SELECT pg_reload_conf()")
	for len(d.Machine) > 0 { // the server reads its configuration soon
		if d, err = s.Durability(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, primary.URL, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
	for len(d.Machine) == 0 {
		if d, err = s.Durability(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
