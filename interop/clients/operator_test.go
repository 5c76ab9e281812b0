package clients_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// buildRotor builds the program that users run.
func buildRotor(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "rotor")
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/rotor")
	cmd.Dir = tree(t, "")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// TestOperator is what an operator does with Vault's client, from an empty directory on: init over the local socket, status, share after share, health, seal, and
// unseal again; at a process that has shut itself in.
func TestOperator(t *testing.T) {
	dir := t.TempDir()
	socket, address := filepath.Join(dir, "local"), freeAddress(t)
	p := start(t, exec.Command(buildRotor(t), "server", "run", "--dir", dir, "--listen", address, "--socket", socket, "--sandbox", "on"))
	local := client(t, "unix://"+socket, "")
	p.await(t, func(ctx context.Context) bool {
		_, err := local.Sys().InitStatusWithContext(ctx)
		return err == nil
	})
	if made, err := local.Sys().InitStatus(); err != nil || made {
		t.Fatalf("before the init: %t, %v", made, err)
	}
	if _, err := local.Sys().Init(&api.InitRequest{SecretShares: 3, SecretThreshold: 2}); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("without the enrolment secret: %v", err)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "init-secret"))
	if err != nil {
		t.Fatal(err)
	}
	local.SetToken(strings.TrimSpace(string(secret)))
	made, err := local.Sys().Init(&api.InitRequest{SecretShares: 3, SecretThreshold: 2})
	if err != nil || len(made.KeysB64) != 3 || made.RootToken == "" {
		t.Fatalf("init: %v, %v", made, err)
	}
	over := client(t, "https://"+address, filepath.Join(dir, "ca.pem"))
	p.await(t, func(ctx context.Context) bool {
		h, err := over.Sys().HealthWithContext(ctx)
		return err == nil && h.Sealed
	})
	unseal(t, over, made.KeysB64[2], made.KeysB64[0])
	over.SetToken(made.RootToken)
	const sealed = `msg="the server is sealed" reason=` // of a start
	before := strings.Count(p.out.String(), sealed)
	if err := over.Sys().Seal(); err != nil {
		t.Fatalf("seal: %v", err)
	}
	p.await(t, func(ctx context.Context) bool { // the one that served says so too, until it ends; between the two connections are refused
		h, err := over.Sys().HealthWithContext(ctx)
		return err == nil && h.Sealed && strings.Count(p.out.String(), sealed) > before
	})
	unseal(t, over, made.KeysB64[0], made.KeysB64[1])
	if !strings.Contains(p.out.String(), "landlock") {
		t.Errorf("the process has not shut itself in:\n%s", p.out.String())
	}
}

// client is one of Vault's at an address. An empty path of an authority: the system's.
func client(t *testing.T, address, ca string) *api.Client {
	t.Helper()
	c := api.DefaultConfig()
	c.Address, c.MaxRetries = address, 0
	if ca != "" {
		if _, err := os.Stat(ca); err != nil {
			t.Fatal(err)
		}
		if err := c.ConfigureTLS(&api.TLSConfig{CACert: ca}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := api.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unseal brings two shares; nothing waits between them and what follows.
func unseal(t *testing.T, c *api.Client, first, second string) {
	t.Helper()
	s, err := c.Sys().SealStatus()
	if err != nil || !s.Sealed || s.T != 2 || s.N != 3 || s.Progress != 0 || s.Type != "shamir" {
		t.Fatalf("status: %+v, %v", s, err)
	}
	if s, err = c.Sys().Unseal(first); err != nil || s.Progress != 1 || s.Nonce == "" {
		t.Fatalf("the first share: %+v, %v", s, err)
	}
	if s, err = c.Sys().Unseal(second); err != nil || s.Sealed {
		t.Fatalf("the second share: %+v, %v", s, err)
	}
	h, err := c.Sys().Health()
	if err != nil || h.Sealed || h.Standby || !h.Initialized {
		t.Fatalf("health: %+v, %v", h, err)
	}
	leader, err := c.Sys().Leader()
	if err != nil || !leader.IsSelf {
		t.Fatalf("leader: %+v, %v", leader, err)
	}
}
