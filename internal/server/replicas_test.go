package server_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/store/mem"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// unclosed is a store that outlives the servers on it.
type unclosed struct{ *mem.Store }

func (unclosed) Close() error { return nil }

// threeServers are three servers on one store, and the identity of their administrator.
func threeServers(t *testing.T, rules string) (dir, admin string, servers []*server.Server) {
	t.Helper()
	dir = t.TempDir()
	shared := unclosed{mem.New()}
	c := server.Config{Dir: dir, Listen: "127.0.0.1:0", Rules: filepath.Join(dir, "rules.yaml"), SessionTTL: time.Second, Issuer: "https://kms.example", Log: slog.New(slog.DiscardHandler)}
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
	for range 3 {
		s, err := server.StartShared(t.Context(), c, shared, sealers)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
		t.Cleanup(func() { _ = s.Close() }) // one is closed already
	}
	return dir, made.AdminDir, servers
}

// TestThreeServers: three servers on one store are one cluster. What is made at one is used at the next, a rotation waits for members at all of
// them and goes on when the server that leads stops, and nobody fails to read meanwhile.
func TestThreeServers(t *testing.T) {
	dir, adminDir, servers := threeServers(t, rules)
	dial := func(config rotor.Config, at int) *rotor.Client { // the others are named, too
		t.Helper()
		config.Address = servers[at].Address() + "," + servers[(at+1)%3].Address() + "," + servers[(at+2)%3].Address()
		client, err := rotor.Dial(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	admin := dial(rotor.Config{Identity: adminDir}, 0)
	other := dial(rotor.Config{Identity: adminDir}, 1)
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
	shown(t, admin, servers)
	verified(t, []*rotor.Client{admin, other}, members)
	leader := slices.IndexFunc(servers, (*server.Server).Leads)
	invited, err := dial(rotor.Config{Identity: adminDir}, leader).Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: "late"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := servers[leader].Close(); err != nil { // its members and callers go on at the others
		t.Error(err)
	}
	exchange(t, members)
	late, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(dir, "late"), JoinToken: invited.Msg.GetToken(), Keys: []string{"records"}})
	if err != nil {
		t.Fatalf("a join token names every server: %v", err)
	}
	t.Cleanup(func() { _ = late.Close() })
	members = append(members, late)
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

// shown checks that the status names every server, which of them leads, and which one answers.
func shown(t *testing.T, admin *rotor.Client, servers []*server.Server) {
	t.Helper()
	m, err := admin.Admin().Server.Status(t.Context(), connect.NewRequest(&rotorv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if !m.Msg.GetReady() || m.Msg.GetProfile() != "single" || m.Msg.GetIncarnation() != 1 || m.Msg.GetFormat() != replica.Format || len(m.Msg.GetReplicas()) != len(servers) {
		t.Errorf("%v", m.Msg)
	}
	self := 0
	for _, r := range m.Msg.GetReplicas() {
		i := slices.IndexFunc(servers, func(s *server.Server) bool { return s.Address() == r.GetAddress() })
		if i < 0 {
			t.Fatalf("no server is at %s", r.GetAddress())
		}
		if r.GetSelf() {
			self++
		}
		if !r.GetAlive() || r.GetLeads() != servers[i].Leads() || r.GetVersion() != server.Version || r.GetFormat() != replica.Format {
			t.Errorf("%v; it leads: %t", r, servers[i].Leads())
		}
	}
	if self != 1 {
		t.Errorf("%d servers have answered", self)
	}
}

// verified checks that an access token of any server is verified at any other, whose address the issuer is not.
func verified(t *testing.T, admins, members []*rotor.Client) {
	t.Helper()
	if _, err := admins[0].Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{
		Key: &rotorv1.Key{Name: "tokens", Purpose: "sign", Custody: "server"},
	})); err != nil {
		t.Fatal(err)
	}
	for _, by := range admins {
		text, err := by.Token(t.Context(), rotor.TokenRequest{Key: "tokens", Audience: "b"})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range members {
			claims, err := at.VerifyToken(t.Context(), text, "b")
			for fault.CodeOf(err) == fault.UnknownKeyID && t.Context().Err() == nil { // its server has not heard of the new key yet, and unknown kids are asked for once a second
				claims, err = at.VerifyToken(t.Context(), text, "b")
			}
			if err != nil || claims.Issuer != "https://kms.example" {
				t.Errorf("%v, %v", claims, err)
			}
		}
	}
}

// TestNameIsTakenAgain: a name that is deleted at one server and taken again at the next is the new key's at once at every other: nothing is encrypted under
// the one that is gone, however often.
func TestNameIsTakenAgain(t *testing.T) {
	dir, admin, servers := threeServers(t, rules+operatorRules)
	w := &world{t: t, Server: servers[0], admin: admin}
	w.config.Dir = dir
	_, credential := w.credential("operator")
	token := w.session(credential).Token()
	var clients []*vaultClient
	for _, s := range servers {
		clients = append(clients, &vaultClient{t, "https://" + s.Address() + "/v1/", token, http.Header{}, as(t, "")})
	}
	for i := range 12 {
		here, next, third := clients[i%3], clients[(i+1)%3], clients[(i+2)%3]
		next.must("POST", "transit/keys/k", nil)
		ct := third.must("POST", "transit/encrypt/k", m{"plaintext": b64("x")}).str("ciphertext")
		if a := here.must("POST", "transit/decrypt/k", m{"ciphertext": ct}); a.str("plaintext") != b64("x") {
			t.Errorf("%d: %s", i, a.text)
		}
		here.must("POST", "transit/keys/k/config", m{"deletion_allowed": true})
		here.must("DELETE", "transit/keys/k", nil)
		third.refuses(400, "encryption key not found", "POST", "transit/decrypt/k", m{"ciphertext": ct})
	}
}
