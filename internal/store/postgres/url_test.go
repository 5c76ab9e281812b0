package postgres_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/store/postgres"
)

// TestPasswordIsNotShown: no error and no line of the log holds it, whatever is wrong with the URL or behind it.
func TestPasswordIsNotShown(t *testing.T) {
	const password = "hunter2x"
	var log bytes.Buffer
	for _, url := range []string{
		"postgres://rotor:hunter2x@127.0.0.1:1/rotor?connect_timeout=1",
		"postgres://rotor:hunter2x@127.0.0.1:1,127.0.0.1:2/rotor",
		"postgres://rotor:hunter2x@127.0.0.1:port/rotor",
		"postgres://rotor:hunter2x@[::1/rotor",
		"postgres://rotor:hunter2x%zz@localhost/rotor",
		"postgres://rotor:hunter2x/@localhost/rotor",
		"postgres://rotor:hunter2x@localhost/rotor?sslmode=perhaps",
		"postgres://rotor:hunter2x@localhost/rotor?schema=Robert'); DROP TABLE",
		"postgres://rotor@localhost/rotor?password=hunter2x&port=x",
		"postgres://rotor:hunter2x@localhost/rotor?sslrootcert=/none&sslmode=verify-ca",
		"postgres://rotor:hunter2x@localhost/rotor?pool_max_conns=hunter2x",
		"postgres:rotor:hunter2x@localhost",
		"user=rotor password=hunter2x host=localhost port=x",
		"postgres://\x00hunter2x", "postgres://rotor:hunter2x:hunter2x@@@/", "postgres://a?hunter2x=%%%",
	} {
		_, err := postgres.Open(t.Context(), url, postgres.Options{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		if err == nil || strings.Contains(err.Error(), password) || strings.Contains(log.String(), password) {
			t.Errorf("%q: %v, log %q", url, err, log.String())
		}
	}
}
