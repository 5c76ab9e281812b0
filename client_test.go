package rotor_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/server"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const rules = `version: 1
rules:
  - name: administrators
    callers: ["admin/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
  - name: fleet
    callers: ["spiffe://rotor.local/instance/*"]
    actions: [deliver, encrypt, decrypt, unwrap, verify, token.issue]
    keys: {namespace: default, names: ["*"]}
`

// cluster is a running server with its administrator.
type cluster struct {
	*server.Server
	config server.Config
	admin  *rotor.Client
	t      *testing.T
}

func startCluster(t *testing.T) *cluster { t.Helper(); return startClusterAt(t, nil) }

// startClusterAt starts a cluster by a clock; nil: the system's.
func startClusterAt(t *testing.T, now func() time.Time) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := server.Config{Dir: dir, Listen: "127.0.0.1:0", LeaseTTL: 2 * time.Second, Log: slog.New(slog.DiscardHandler), Rules: filepath.Join(dir, "rules.yaml"), Now: now}
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
	admin, err := rotor.Dial(t.Context(), rotor.Config{Identity: made.AdminDir, Address: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	return &cluster{s, c, admin, t}
}

func (c *cluster) create(k *rotorv1.Key) {
	c.t.Helper()
	if _, err := c.admin.Admin().Keys.Create(c.t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: k})); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) join(name string, keys ...string) *rotor.Client {
	c.t.Helper()
	out, err := c.admin.Admin().Fleet.Invite(c.t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	client, err := rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(c.t.TempDir(), name), JoinToken: out.Msg.GetToken(), Keys: keys})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := client.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return client
}

// rotate rotates a key and returns once every member has acknowledged the new primary.
func (c *cluster) rotate(key string) *rotorv1.Key { c.t.Helper(); return c.rotateTo(key, "") }

// rotateTo is rotate to an algorithm; empty: as before.
func (c *cluster) rotateTo(key, algorithm string) *rotorv1.Key {
	c.t.Helper()
	k, err := c.admin.Admin().Keys.Rotate(c.t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: key}, Algorithm: algorithm}))
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		p, err := c.admin.Admin().Keys.Progress(c.t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: key}))
		if err != nil {
			c.t.Fatal(err)
		}
		if p.Msg.GetKey().GetPrimary() == k.Msg.GetTarget() && len(p.Msg.GetBehind()) == 0 {
			return p.Msg.GetKey()
		}
	}
}

func TestFleetKeyRotates(t *testing.T) {
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	a, b := c.join("a", "records"), c.join("b", "records")
	ctx := t.Context()
	id := rotor.Part{Label: "id", Value: []byte("7")}
	old, err := a.Key("records").Encrypt(ctx, []byte("hello"), id)
	if err != nil {
		t.Fatal(err)
	}
	k := c.rotate("records")
	if n, _ := b.Key("records").Version(); n != 2 || k.GetPrimary() != 2 {
		t.Fatalf("primary at b is %d, at the server %d", n, k.GetPrimary())
	}
	fresh, err := b.Key("records").Encrypt(ctx, []byte("world"), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range [][]byte{old, fresh} {
		for _, client := range []*rotor.Client{a, b} {
			if _, err := client.Key("records").Decrypt(ctx, m, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := a.Key("records").Decrypt(ctx, fresh); rotor.CodeOf(err) != "decrypt_failed" {
		t.Fatalf("decrypted without its part: %v", err)
	}
}

func TestFileAndToken(t *testing.T) {
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "models", Purpose: "wrap"})
	c.create(&rotorv1.Key{Name: "tokens", Purpose: "sign", Rotation: &rotorv1.Rotation{MarginNs: int64(time.Second)}})
	path := filepath.Join(t.TempDir(), "model.rotor")
	model := bytes.Repeat([]byte("weights "), 100_000)
	if err := c.admin.EncryptFile(t.Context(), "models", bytes.NewReader(model), path, rotor.FileOptions{ContentType: "application/onnx"}); err != nil {
		t.Fatal(err)
	}
	a, b := c.join("a"), c.join("b")
	f, err := a.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := f.ReadAll(t.Context())
	if err != nil || !bytes.Equal(got, model) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	token, err := a.Token(t.Context(), rotor.TokenRequest{Key: "tokens", Audience: "b"})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := b.VerifyToken(t.Context(), token, "b")
	if err != nil || claims.Subject != "spiffe://rotor.local/instance/a" {
		t.Fatalf("%+v, %v", claims, err)
	}
	if _, err := b.VerifyToken(t.Context(), token, "c"); rotor.CodeOf(err) != "token_audience" {
		t.Fatal(err)
	}
}
