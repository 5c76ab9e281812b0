//go:build services

package server_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// boxed is a server that has shut itself in, on an engine that can be started again, with its files in several directories.
type boxed struct {
	*processes
	pki    string // certificates of the store
	shares []string
	seal   rotorv1.SealServiceClient
}

// sandboxEngine is a store, and what happens to it under the server.
type sandboxEngine struct {
	url   string
	again func() // ends it and starts it, with other files where it has any
}

func postgresBySocket(t *testing.T, _ string) sandboxEngine {
	pg := testenv.Postgres(t)
	return sandboxEngine{pg.Socket, func() { pg.Kill(); pg.Start() }}
}

func postgresByTLS(t *testing.T, pki string) sandboxEngine {
	own, err := os.MkdirTemp("", "rotor-postgres-tls-") // where its user gets to
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(own) })
	cert, key := filepath.Join(own, "cert.pem"), filepath.Join(own, "key.pem")
	testenv.Certificate(t, cert, key)
	move(t, cert, filepath.Join(pki, "ca.pem"))
	if nobody, err := user.Lookup("nobody"); err == nil && os.Getuid() == 0 {
		id, _ := strconv.Atoi(nobody.Uid)
		for _, path := range []string{own, cert, key} {
			if err := os.Chown(path, id, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	pg := testenv.Postgres(t, "ssl=on", "ssl_cert_file="+cert, "ssl_key_file="+key)
	return sandboxEngine{pg.URL + "?sslmode=verify-full&sslrootcert=" + filepath.Join(pki, "ca.pem"), func() { pg.Kill(); pg.Start() }}
}

// etcdByTLS has clients show a certificate; before it is started again the old one is exchanged for another of the same authority's.
func etcdByTLS(t *testing.T, pki string) sandboxEngine {
	first, second := t.TempDir(), t.TempDir()
	file := func(dir, name string) string { return filepath.Join(dir, name) }
	for _, dir := range []string{first, second} {
		testenv.Certificate(t, file(dir, "cert.pem"), file(dir, "key.pem"))
	}
	both := file(t.TempDir(), "both.pem")
	var all []byte
	for _, dir := range []string{first, second} {
		b, err := os.ReadFile(file(dir, "cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	if err := os.WriteFile(both, all, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cert.pem", "key.pem"} {
		move(t, file(first, name), file(pki, "etcd-"+name))
	}
	move(t, both, file(pki, "ca.pem"))
	e := testenv.Etcd(t, "3.4", 1, "--cert-file="+file(first, "cert.pem"), "--key-file="+file(first, "key.pem"), "--client-cert-auth", "--trusted-ca-file="+both)
	url := fmt.Sprintf("etcd://%s/r?ca_file=%s&cert_file=%s&key_file=%s", e.Hosts(), file(pki, "ca.pem"), file(pki, "etcd-cert.pem"), file(pki, "etcd-key.pem"))
	return sandboxEngine{url, func() {
		e.Kill(0)
		for _, name := range []string{"cert.pem", "key.pem"} {
			move(t, file(second, name), file(pki, "etcd-"+name))
		}
		e.Start(0)
	}}
}

// move puts a copy of a file in the place of another, as those who renew certificates do.
func move(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newBoxed(t *testing.T, engine func(*testing.T, string) sandboxEngine) (*boxed, sandboxEngine) {
	t.Helper()
	b := &boxed{processes: newProcesses(t, built(t), 1), pki: t.TempDir()}
	e := engine(t, b.pki)
	anchor := filepath.Join(t.TempDir(), "anchor")
	c := b.config()
	c.Store, c.Anchor, c.InitSeals = e.url, anchor, []string{"local", "shamir:2/2"}
	made, err := server.Init(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	b.shares = made.Shares
	public := t.TempDir()
	testenv.Certificate(t, filepath.Join(public, "tls.crt"), filepath.Join(public, "tls.key"))
	b.configure("store: %q\nsandbox: require\nanchor: %q\npublic: {listen: \"127.0.0.1:0\", certificate: %q, key: %q}\n",
		e.url, anchor, filepath.Join(public, "tls.crt"), filepath.Join(public, "tls.key"))
	b.start(0)
	dir, err := identity.Read(made.AdminDir)
	if err != nil {
		t.Fatal(err)
	}
	h := dir.PeerClient(dir.ClientTLS(func(id string) bool { return id == dir.ServerID() || id == dir.SealedID() }))
	t.Cleanup(h.CloseIdleConnections)
	b.seal = rotorv1.NewSealServiceClient(h, "https://"+b.address(0))
	return b, e
}

// run runs the command as the administrator until it succeeds: the server may have lost its store for a moment.
func (b *boxed) run(args ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	for {
		c := exec.CommandContext(ctx, b.bin, args...)
		c.Env = append(os.Environ(), "ROTOR_IDENTITY="+filepath.Join(b.dir, "admin"), "ROTOR_ADDRESS="+b.address(0))
		out, err := c.CombinedOutput()
		if err == nil {
			return string(out)
		}
		if ctx.Err() != nil || !regexp.MustCompile(`code: (unavailable|outcome_unknown|canceled)`).Match(out) {
			b.t.Fatalf("%v: %v: %s\n%s", args, err, out, b.log(0))
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// unseal brings the shares; the server may be between two listeners.
func (b *boxed) unseal() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	for _, s := range b.shares {
		for {
			_, err := b.seal.Unseal(ctx, connect.NewRequest(&rotorv1.UnsealRequest{Share: s}))
			if err == nil {
				break
			}
			if err = rpc.Decode(err); ctx.Err() != nil || fault.CodeOf(err) != fault.Unavailable {
				b.t.Fatalf("%v\n%s", err, b.log(0))
			}
			pause(ctx, 10*time.Millisecond)
		}
	}
}

// logs waits until the server has logged something.
func (b *boxed) logs(pattern string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	for !regexp.MustCompile(pattern).MatchString(b.log(0)) {
		if ctx.Err() != nil {
			b.t.Fatalf("no %s in the log:\n%s", pattern, b.log(0))
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// TestSandboxedOnEveryEngine: a server that has shut itself in does all that it has to with its store elsewhere: it reconnects after the store was
// started again, with certificates that were exchanged, makes backups and archives, reloads, writes its anchor, and opens again after it was sealed.
func TestSandboxedOnEveryEngine(t *testing.T) {
	for name, engine := range map[string]func(*testing.T, string) sandboxEngine{
		"postgres by a socket": postgresBySocket, "postgres by TLS": postgresByTLS, "etcd by TLS": etcdByTLS,
	} {
		t.Run(name, func(t *testing.T) {
			b, e := newBoxed(t, engine)
			b.logs(`msg="shut in" landlock=[1-9]\d* missing=\[\]`)
			b.run("key", "create", "records", "--purpose", "encrypt", "--yes")
			b.run("rotate", "records", "--yes")
			e.again()
			b.run("rotate", "records", "--yes")

			out := t.TempDir()
			b.run("backup", "create", filepath.Join(out, "backup"), "--keep", "1h")
			b.run("backup", "verify", filepath.Join(out, "backup"), "--seal-key", filepath.Join(b.dir, "seal.key"))
			b.run("audit", "export", filepath.Join(out, "log"))
			b.run("server", "sealer", "rotate", "local", "--yes")

			narrow := filepath.Join(out, "rules.yaml")
			if err := os.WriteFile(narrow, []byte(rules+"  - {name: more, callers: [\"certificate/x/*\"], actions: [status]}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			move(t, narrow, filepath.Join(b.dir, "rules.yaml"))
			b.signal(0, syscall.SIGHUP)
			b.logs("configuration and rules reloaded")

			b.run("server", "seal", "--yes")
			b.unseal()
			b.logs("the server is open")
			e.again()
			b.run("rotate", "records", "--yes")
			for _, denied := range []string{"permission denied", "operation not permitted", "not written"} {
				if log := b.log(0); strings.Contains(log, denied) {
					t.Errorf("%s:\n%s", denied, log)
				}
			}
		})
	}
}
