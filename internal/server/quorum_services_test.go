//go:build services

package server_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// look asks a server whether it is ready, as an administrator, and gives the reason of the store's check.
func look(t *testing.T, h *http.Client, address string) (status int, reason string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := h.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var state server.Readiness
	if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
		t.Fatal(err)
	}
	for _, c := range state.Checks {
		if c.Name == "store" {
			reason = c.Reason
		}
	}
	return resp.StatusCode, reason
}

// TestLostQuorum rehearses docs/runbooks/lost-quorum.md: etcd loses two of its three members. The server says that it is not ready, and why, and takes nothing;
// who holds a key goes on; when the members are back, so is everything, with all that was acknowledged.
func TestLostQuorum(t *testing.T) {
	e := testenv.Etcd(t, "3.7", 3)
	dir := t.TempDir()
	c := server.Config{
		Dir: dir, Listen: "127.0.0.1:0", Rules: filepath.Join(dir, "rules.yaml"), Store: "etcd://" + e.Hosts() + "/rotor?timeout=1s",
		Sandbox: server.SandboxOff, Log: slog.New(slog.DiscardHandler),
	}
	if err := os.WriteFile(c.Rules, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := server.Init(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	dial := func(config rotor.Config) *rotor.Client {
		t.Helper()
		config.Address = s.Address()
		client, err := rotor.Dial(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
	admin := dial(rotor.Config{Identity: made.AdminDir})
	person, err := identity.Read(made.AdminDir)
	if err != nil {
		t.Fatal(err)
	}
	h := person.HTTPClient()
	create := func(name string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := admin.Admin().Keys.Create(ctx, connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: "fleet"}}))
		return rpc.Decode(err)
	}
	if err := create("records"); err != nil {
		t.Fatal(err)
	}
	invite := func(name string) string {
		t.Helper()
		token, err := admin.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
		if err != nil {
			t.Fatal(err)
		}
		return token.Msg.GetToken()
	}
	member := dial(rotor.Config{Identity: filepath.Join(dir, "m"), JoinToken: invite("m"), Keys: []string{"records"}})
	message, err := member.Key("records").Encrypt(t.Context(), []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if status, reason := look(t, h, s.Address()); status != http.StatusOK || reason != "" {
		t.Fatalf("before: %d, %q", status, reason)
	}

	e.Kill(1)
	if err := create("one-less"); err != nil {
		t.Errorf("with two members of three: %v", err)
	}
	e.Kill(2)
	status, reason := http.StatusOK, ""
	for status == http.StatusOK { // an answer stands for a second
		status, reason = look(t, h, s.Address())
	}
	if status != http.StatusServiceUnavailable || reason == "" {
		t.Errorf("without a majority: %d, %q", status, reason)
	}
	if m, err := admin.Admin().Server.Status(t.Context(), connect.NewRequest(&rotorv1.StatusRequest{})); err != nil || m.Msg.GetReady() || len(m.Msg.GetReplicas()) != 1 {
		t.Errorf("the status, from memory: %v, %v", m, err)
	}
	if err := create("lost"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a commit without a majority: %v", err)
	}
	got, err := member.Key("records").Decrypt(t.Context(), message)
	if err != nil || string(got) != "text" {
		t.Errorf("who holds the key: %q, %v", got, err)
	}
	if message, err = member.Key("records").Encrypt(t.Context(), []byte("meanwhile")); err != nil {
		t.Errorf("who holds the key: %v", err)
	}

	e.Start(1)
	for err = create("after"); fault.CodeOf(err) == fault.Unavailable; err = create("after") {
	}
	if err != nil && fault.CodeOf(err) != fault.Exists { // one of those that were unavailable may have been committed
		t.Fatal(err)
	}
	for status != http.StatusOK {
		status, _ = look(t, h, s.Address())
	}
	for _, name := range []string{"records", "one-less", "after"} {
		if _, err := admin.Admin().Keys.Get(t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: name})); err != nil {
			t.Errorf("%s, which was acknowledged: %v", name, err)
		}
	}
	other := dial(rotor.Config{Identity: filepath.Join(dir, "n"), JoinToken: invite("n"), Keys: []string{"records"}})
	if got, err := other.Key("records").Decrypt(t.Context(), message); err != nil || string(got) != "meanwhile" {
		t.Errorf("what was written meanwhile: %q, %v", got, err)
	}
}
