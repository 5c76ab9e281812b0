//go:build services

package postgres_test

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// replace puts another file in the place of one, as operators do.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// cut ends every connection of the store.
func cut(t *testing.T, by *pgx.Conn) {
	t.Helper()
	if _, err := by.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rotor'"); err != nil {
		t.Fatal(err)
	}
}

// worksAgain commits, with the tries that the cut of the connections costs, and sees it come back through a watch.
func worksAgain(t *testing.T, s *postgres.Store, value string) {
	t.Helper()
	var rev store.Rev
	var err error
	for range 100 {
		if rev, err = s.Commit(t.Context(), nil, []store.Op{put("k", value)}); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("with what the files say now: %v", err)
	}
	for _, err := range s.Watch(t.Context(), "", rev-1) {
		if err != nil {
			t.Error(err)
		}
		break
	}
	mustGet(t, s, "k")
}

// TestNewPassword: the server demands another password; the connections that the open store makes from then on show the one that the file has.
func TestNewPassword(t *testing.T) {
	server := testenv.Postgres(t)
	by := admin(t, server.URL)
	password := filepath.Join(t.TempDir(), "password")
	replace(t, password, []byte("fine-for-a-test\nnot this\n"))
	where := strings.Replace(server.URL, ":fine-for-a-test@", "@", 1) + "?password_file=" + url.QueryEscape(password)
	s := mustOpen(t, where, postgres.Options{})
	worksAgain(t, s, "1")
	if _, err := by.Exec(t.Context(), "ALTER ROLE rotor PASSWORD 'another'"); err != nil {
		t.Fatal(err)
	}
	worksAgain(t, s, "2") // on the connections that it has
	replace(t, password, []byte("another\n"))
	cut(t, by)
	worksAgain(t, s, "3")
	replace(t, password, nil)
	for name, u := range map[string]string{"an empty file": where, "no file": where + "x", "no path": strings.TrimSuffix(where, url.QueryEscape(password))} {
		if _, err := postgres.Open(t.Context(), u, postgres.Options{Log: quiet}); !errors.Is(err, postgres.ErrURL) || strings.Contains(err.Error(), "another") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNewAuthority: the server shows a certificate of another authority; the open store takes it once the file of the authorities has that one.
func TestNewAuthority(t *testing.T) {
	cert, key := certificate(t)
	server := testenv.Postgres(t, "ssl=on", "ssl_cert_file="+cert, "ssl_key_file="+key)
	by := admin(t, server.URL)
	read := func(path string) []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	root := filepath.Join(t.TempDir(), "root.pem")
	replace(t, root, read(cert))
	s := mustOpen(t, server.URL+"?sslmode=verify-full&sslrootcert="+url.QueryEscape(root), postgres.Options{})
	worksAgain(t, s, "1")
	newCert, newKey := certificate(t)
	for path, with := range map[string]string{cert: newCert, key: newKey} {
		if err := os.WriteFile(path, read(with), 0o600); err != nil { // the server's user keeps them
			t.Fatal(err)
		}
	}
	if _, err := by.Exec(t.Context(), "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	replace(t, root, read(newCert))
	cut(t, by)
	worksAgain(t, s, "2")
}
