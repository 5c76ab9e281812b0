//go:build services

package postgres_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// logged is a log that tests can search.
type logged struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// TestServed runs a rotor server on PostgreSQL: it warns of what is not replicated, outlasts a crash of PostgreSQL, finds its keys again
// after a restart, and refuses to be one of several where a machine's loss would lose keys.
func TestServed(t *testing.T) {
	pg := testenv.Postgres(t)
	log := &logged{}
	dir := t.TempDir()
	c := server.Config{
		Dir: dir, Listen: "127.0.0.1:0", Store: pg.URL + "?schema=kms", Profile: server.ProfileSingle, Sandbox: server.SandboxOff,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	made, err := server.Init(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Init(t.Context(), c); fault.CodeOf(err) != fault.Exists {
		t.Errorf("a second init: %v", err)
	}
	create := func(s *server.Server, name string) {
		t.Helper()
		client, err := rotor.Dial(t.Context(), rotor.Config{Identity: made.AdminDir, Address: s.Address()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: name, Purpose: "encrypt"}})); err != nil {
			t.Fatal(err)
		}
		all, err := client.Admin().Keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, k := range all.Msg.GetKeys() {
			names = append(names, k.GetName())
		}
		if got := fmt.Sprint(names); !strings.Contains("[a b c]", strings.Trim(got, "[]")) || !strings.Contains(got, name) {
			t.Errorf("keys %s", got)
		}
	}
	s, err := server.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	create(s, "a")
	pg.Kill()
	pg.Start()
	create(s, "b")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = server.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	create(s, "c")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "synchronous_standby_names is empty") {
		t.Error("no warning that nothing is replicated")
	}
	if strings.Contains(log.String(), "fine-for-a-test") {
		t.Error("the log holds the password")
	}

	c.Profile, c.Sandbox, c.Advertise = server.ProfileHA, server.SandboxRequire, "rotor.example:7420"
	s, err = server.Start(t.Context(), c)
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != fault.Invalid || !strings.Contains(f.Hint, "synchronous_standby_names is empty") {
		t.Errorf("profile ha without a replica: %v, %v", s, err)
	}
	c.Profile, c.Sandbox, c.Advertise = server.ProfileSingle, server.SandboxOff, ""
	for _, url := range []string{"postgres://rotor:fine-for-a-test@127.0.0.1:x/rotor", "postgres://rotor:fine-for-a-test@127.0.0.1:1/rotor"} {
		c.Store, c.Dir = url, filepath.Join(dir, "other")
		if _, err := server.Init(t.Context(), c); err == nil || strings.Contains(err.Error(), "fine-for-a-test") {
			t.Errorf("%v", err)
		}
	}
}
