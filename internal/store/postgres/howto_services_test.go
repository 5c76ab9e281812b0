//go:build services

package postgres_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/testenv"
)

// TestHowto runs the SQL of the page as an administrator named otherwise, and opens the store as the role that it makes, after each part.
func TestHowto(t *testing.T) {
	page, err := os.ReadFile("../../../docs/howto/postgresql.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of SQL", len(blocks))
	}
	server := testenv.Postgres(t)
	exec(t, server.URL, "CREATE ROLE dba SUPERUSER LOGIN PASSWORD 'fine-for-a-test'")
	dba := strings.Replace(server.URL, "rotor:", "dba:", 1)
	exec(t, strings.TrimSuffix(dba, "/rotor")+"/postgres", "ALTER ROLE rotor RENAME TO testenv", "DROP DATABASE rotor")
	role := strings.Replace(server.URL, "fine-for-a-test", "change-me", 1)
	for n, schema := range []string{"made_by_rotor", "rotor"} {
		for sql := range strings.SplitSeq(strings.TrimSpace(blocks[n][1]), ";\n") {
			exec(t, strings.TrimSuffix(dba, "/rotor")+map[bool]string{true: "/postgres", false: "/rotor"}[n == 0], strings.TrimSuffix(sql, ";"))
		}
		s := mustOpen(t, role+"?schema="+schema, postgres.Options{})
		mustCommit(t, s, put("k", "v"))
	}
	if _, err := postgres.Open(t.Context(), role+"?schema=another", postgres.Options{Log: quiet}); err == nil {
		t.Error("the right to create was taken away, and a schema was made")
	}
}
