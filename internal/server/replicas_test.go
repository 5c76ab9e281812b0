package server_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/store/mem"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// unclosed is a store that outlives the servers on it.
type unclosed struct{ *mem.Store }

func (unclosed) Close() error { return nil }

// TestThreeServers: three servers on one store are one cluster. What is made at one is used at the next, a rotation waits for members at all of
// them and goes on when the server that leads stops, and nobody fails to read meanwhile.
func TestThreeServers(t *testing.T) {
	dir, shared := t.TempDir(), unclosed{mem.New()}
	c := server.Config{Dir: dir, Listen: "127.0.0.1:0", Rules: filepath.Join(dir, "rules.yaml"), SessionTTL: time.Second, Log: slog.New(slog.DiscardHandler)}
	if err := os.WriteFile(c.Rules, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := server.InitOn(t.Context(), c, shared)
	if err != nil {
		t.Fatal(err)
	}
	sealers, err := server.Sealers(c)
	if err != nil {
		t.Fatal(err)
	}
	var servers []*server.Server
	for range 3 {
		s, err := server.StartShared(t.Context(), c, shared, sealers)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
		t.Cleanup(func() { _ = s.Close() }) // one is closed already
	}
	dial := func(config rotor.Config, at int) *rotor.Client { // the others are named, too
		t.Helper()
		config.Address = servers[at].Address() + "," + servers[(at+1)%3].Address() + "," + servers[(at+2)%3].Address()
		client, err := rotor.Dial(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	admin := dial(rotor.Config{Identity: made.AdminDir}, 0)
	other := dial(rotor.Config{Identity: made.AdminDir}, 1)
	ref := &rotorv1.KeyRef{Name: "records"}
	if _, err := admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{
		Key: &rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"},
	})); err != nil {
		t.Fatal(err)
	}
	var members []*rotor.Client
	for i := range 3 {
		token, err := other.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: fmt.Sprintf("m%d", i)}))
		if err != nil {
			t.Fatal(err)
		}
		m := dial(rotor.Config{Identity: filepath.Join(dir, fmt.Sprintf("m%d", i)), JoinToken: token.Msg.GetToken(), Keys: []string{"records"}}, i)
		t.Cleanup(func() { _ = m.Close() })
		members = append(members, m)
	}
	rotate := func(by *rotor.Client, want uint32) {
		t.Helper()
		if _, err := by.Admin().Keys.Rotate(t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: ref})); err != nil {
			t.Fatal(err)
		}
		awaitPrimary(t, by, ref, want)
	}
	rotate(other, 2)
	exchange(t, members)
	for _, s := range servers { // its members and callers go on at the others
		if s.Leads() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			break
		}
	}
	exchange(t, members)
	rotate(other, 3)
	exchange(t, members)
	rotate(admin, 4)
}

// awaitPrimary waits until a version is primary.
func awaitPrimary(t *testing.T, c *rotor.Client, ref *rotorv1.KeyRef, want uint32) {
	t.Helper()
	for {
		k, err := c.Admin().Keys.Get(t.Context(), connect.NewRequest(ref))
		if err != nil {
			t.Fatal(err)
		}
		if k.Msg.GetPrimary() == want {
			return
		}
	}
}

// exchange has every member read what every other wrote.
func exchange(t *testing.T, members []*rotor.Client) {
	t.Helper()
	for _, from := range members {
		m, err := from.Key("records").Encrypt(t.Context(), []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range members {
			if got, err := to.Key("records").Decrypt(t.Context(), m); err != nil || string(got) != "text" {
				t.Fatalf("%q, %v", got, err)
			}
		}
	}
}
