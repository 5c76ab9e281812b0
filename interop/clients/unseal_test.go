package clients_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// autoUnseal is another Vault whose seal is the engine: it opens itself whenever it starts.
func autoUnseal(t *testing.T, j job) {
	const mount = "interop/unseal"
	dir := t.TempDir()
	other := &server{name: "sealed", address: "https://" + freeAddress(t), ca: filepath.Join(dir, "ca.pem")}
	certificate(t, other.ca, filepath.Join(dir, "key.pem"))
	var e transit
	var token string
	command := func(token string) *exec.Cmd {
		cmd := exec.Command(tree(t, ".cache/bin/vaultd"), strings.TrimPrefix(other.address, "https://"), other.ca, filepath.Join(dir, "key.pem"), filepath.Join(dir, "data"))
		cmd.Env = append(j.environment(token, dir), "VAULT_TRANSIT_SEAL_KEY_NAME=orders", "VAULT_TRANSIT_SEAL_MOUNT_PATH="+mount)
		return cmd
	}
	var running *process
	opens := func(c check) {
		if running != nil {
			running.kill()
		}
		running = start(t, command(token))
		running.await(t, func(ctx context.Context) bool {
			h, err := other.at("").Sys().HealthWithContext(ctx)
			return err == nil && h.Initialized && !h.Sealed && !h.Standby
		})
	}
	j.step(t, "keys", func(c check) {
		e = j.owner(c, mount, "orders", nil)
		token = j.may(c, user(mount, "orders"))
	})
	j.step(t, "use", func(c check) {
		opens(c)
		other.token, _, _ = strings.Cut(running.out.String(), "\n")
		sys := other.at(other.token).Sys()
		status, err := sys.SealStatusWithContext(j.ctx)
		c.ok(err, "ask the other server for its seal")
		if !status.RecoverySeal || status.Sealed {
			c.fail("the other server's seal is %+v", status)
		}
		c.ok(sys.PutPolicyWithContext(j.ctx, "kept", `path "x" { capabilities = ["read"] }`), "write into the other server")
	})
	j.step(t, "rotate", func(c check) {
		e.write("keys/orders/rotate", nil)
		opens(c)
	})
	j.step(t, "old", func(c check) {
		for range 3 {
			e.write("keys/orders/rotate", nil)
		}
		opens(c)
		text, err := other.at(other.token).Sys().GetPolicyWithContext(j.ctx, "kept")
		c.ok(err, "read from the other server")
		c.same(text, `path "x" { capabilities = ["read"] }`, "what was kept")
	})
	j.step(t, "denied", func(c check) {
		running.kill()
		c.ok(j.admin.Auth().Token().RevokeTree(token), "revoke")
		p := start(t, command(token))
		select {
		case <-p.done:
		case <-j.ctx.Done():
		}
		if !strings.Contains(p.out.String(), "permission denied") {
			c.fail("the other server says %q", p.out.String())
		}
	})
}
