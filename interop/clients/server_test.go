package clients_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// startTime bounds how long a server may take until it answers.
const startTime = time.Minute

// server is what the clients are pointed at.
type server struct {
	name    string // "vault" or "rotor"
	address string // https://127.0.0.1:port
	ca      string // PEM file of its authority
	token   string // of an administrator
	admin   *api.Client
	within  string // the namespace that programs name; empty: none
}

// at makes a client with a token.
func (s *server) at(token string) *api.Client {
	c := api.DefaultConfig() // with the environment, in which a test's process has nothing
	c.Address, c.MaxRetries = s.address, 0
	if err := c.ConfigureTLS(&api.TLSConfig{CACert: s.ca}); err != nil {
		panic(err)
	}
	client, err := api.NewClient(c)
	if err != nil {
		panic(err)
	}
	client.SetToken(token)
	return client
}

// environment is what a program reads that is pointed at the server.
func (s *server) environment(token, home string) []string {
	out := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "VAULT_ADDR=" + s.address, "VAULT_CACERT=" + s.ca, "VAULT_TOKEN=" + token}
	if s.within != "" {
		out = append(out, "VAULT_NAMESPACE="+s.within)
	}
	return out
}

// may makes a token with a policy in Vault's language, of the name of the job.
func (j job) may(c check, policy string, more ...string) string {
	c.ok(j.admin.Sys().PutPolicy("interop-"+j.client, policy), "write the policy")
	s, err := j.admin.Auth().Token().Create(&api.TokenCreateRequest{Policies: append([]string{"interop-" + j.client}, more...), TTL: "1h"})
	c.ok(err, "create a token")
	return s.Auth.ClientToken
}

// ready waits until the server answers as one that serves, and enables what the jobs share.
func (s *server) ready(t *testing.T, p *process) {
	t.Helper()
	s.admin = s.at(s.token)
	p.await(t, func(ctx context.Context) bool {
		h, err := s.admin.Sys().HealthWithContext(ctx)
		return err == nil && h.Initialized && !h.Sealed && !h.Standby
	})
	if err := s.admin.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}); err != nil {
		t.Fatal(err)
	}
}

// startVault starts a true Vault, in memory and unsealed (scripts/vault).
func startVault(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{name: "vault", address: "https://" + freeAddress(t), ca: filepath.Join(dir, "ca.pem")}
	certificate(t, s.ca, filepath.Join(dir, "key.pem"))
	p := start(t, exec.Command(tree(t, ".cache/bin/vaultd"), strings.TrimPrefix(s.address, "https://"), s.ca, filepath.Join(dir, "key.pem")))
	p.await(t, func(context.Context) bool { return strings.Count(p.out.String(), "\n") >= 2 })
	s.token, _, _ = strings.Cut(p.out.String(), "\n")
	s.ready(t, p)
	if err := s.admin.Sys().Mount("transit", &api.MountInput{Type: "transit"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// output is what a process printed.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is a server that runs.
type process struct {
	cmd  *exec.Cmd
	out  output
	done chan struct{} // closed when it has ended
}

// start starts a server, which is ended with the test.
func start(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v (make test-interop installs it)", cmd.Path, err)
	}
	go func() {
		_ = cmd.Wait() // it is killed
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill ends the process and waits.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // gone already is fine
	<-p.done
}

// await asks until the process is ready. It fails the test when it ends, or startTime is over.
func (p *process) await(t testing.TB, ready func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx) {
		select {
		case <-p.done:
			t.Fatalf("%s ended:\n%s", p.cmd.Path, p.out.String())
		case <-ctx.Done():
			t.Fatalf("%s does not answer:\n%s", p.cmd.Path, p.out.String())
		case <-tick.C:
		}
	}
}

// freeAddress finds a port of the loopback that nobody has now, below those that the kernel gives to connections (from 32768 on).
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12_000+mrand.IntN(20_000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// certificate makes a certificate for the loopback, its own authority.
func certificate(t testing.TB, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
