//go:build services

package server_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// replicas are server processes on one store.
type replicas struct {
	*processes
	url string
}

// newReplicas makes a cluster in a store and starts three servers on it.
func newReplicas(t *testing.T, bin, url string) *replicas {
	t.Helper()
	r := &replicas{processes: newProcesses(t, bin, 3), url: url}
	c := r.config()
	c.Store = url
	if err := os.WriteFile(c.Rules, []byte(rules+"  - {name: ci, callers: [credential/ci], actions: [decrypt], keys: {namespace: \"**\", names: [\"**\"]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.configure("store: %s\nsession_ttl: 1s\nsandbox: \"off\"\n", url)
	for i := range r.procs {
		r.start(i)
	}
	return r
}

// load reads without pause, with the keys that members hold and with a key at the servers, and counts.
type load struct {
	reads, failed atomic.Int64
	stop          context.CancelFunc
	done          sync.WaitGroup
}

func (r *replicas) load(members []*rotor.Client, admin *rotor.Client, message []byte) *load {
	l := &load{}
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	read := func(what string, f func() error) {
		l.done.Go(func() {
			for ctx.Err() == nil {
				l.reads.Add(1)
				if err := f(); err != nil && ctx.Err() == nil {
					l.failed.Add(1)
					r.t.Errorf("%s: %v", what, err)
					return
				}
				time.Sleep(5 * time.Millisecond) // the machine is small
			}
		})
	}
	for i, m := range members {
		read(fmt.Sprintf("member %d", i), func() error {
			c, err := m.Key("records").Encrypt(ctx, []byte("text"))
			if err == nil {
				_, err = members[(i+1)%len(members)].Key("records").Decrypt(ctx, c)
			}
			return err
		})
	}
	for what, keys := range map[string]rotorv1.KeyServiceClient{"server key": admin.Admin().Keys, "server key, by a session": r.session().Admin().Keys} {
		read(what, func() error {
			bounded, cancel := context.WithTimeout(ctx, frozenRead)
			defer cancel()
			_, err := keys.Decrypt(bounded, connect.NewRequest(&rotorv1.DecryptRequest{Key: &rotorv1.KeyRef{Name: "server"}, Ciphertext: message}))
			return err
		})
	}
	return l
}

// session is a caller who has logged in, and knows all servers.
func (r *replicas) session() *rotor.Session {
	r.t.Helper()
	dir := filepath.Join(r.dir, "admin")
	admin := r.dial(rotor.Config{Identity: dir}, 0)
	c, err := admin.Admin().Auth.CreateCredential(r.t.Context(), connect.NewRequest(&rotorv1.CreateCredentialRequest{Name: "ci"}))
	if err != nil {
		r.t.Fatal(err)
	}
	person, err := identity.Read(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	ca := filepath.Join(r.t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, person.CAPEM(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	s, err := rotor.NewSession(r.t.Context(), rotor.Login{Address: r.addresses(0), CAFile: ca, Credential: c.Msg.GetText()})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// frozenRead is the time that a read has, so that one that waits for a frozen server (25 s) fails.
const frozenRead = 10 * time.Second

// status asks with the command, a frozen server first.
func (r *replicas) status(from int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*frozenRead)
	defer cancel()
	c := exec.CommandContext(ctx, r.bin, "server", "status", "--identity", filepath.Join(r.dir, "admin"), "--address", r.addresses(from))
	if out, err := c.CombinedOutput(); err != nil {
		r.t.Errorf("status with server %d frozen: %v: %s", from, err, out)
	}
}

// TestReplicas: of three servers on one engine any is killed under load. No read fails, writes go on, and so does a rotation that is in flight; a
// leader that is frozen past its session and thaws takes no step twice, and whoever reads from a frozen server is served by another.
func TestReplicas(t *testing.T) {
	bin := built(t)
	for engine, url := range map[string]func() string{
		"postgres": func() string { return testenv.Postgres(t).URL },
		"etcd":     func() string { return "etcd://" + testenv.Etcd(t, "3.4", 1).Hosts() + "/r" },
	} {
		t.Run(engine, func(t *testing.T) { testReplicas(t, newReplicas(t, bin, url())) })
	}
}

func testReplicas(t *testing.T, r *replicas) {
	admin := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, 0)
	for name, custody := range map[string]string{"records": "fleet", "server": "server"} {
		if _, err := admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{
			Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: custody},
		})); err != nil {
			t.Fatal(err)
		}
	}
	m, err := admin.Admin().Keys.Encrypt(t.Context(), connect.NewRequest(&rotorv1.EncryptRequest{Key: &rotorv1.KeyRef{Name: "server"}, Plaintext: []byte("x")}))
	if err != nil {
		t.Fatal(err)
	}
	var members []*rotor.Client
	for i := range 3 {
		token, err := admin.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: fmt.Sprintf("m%d", i)}))
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, r.dial(rotor.Config{Identity: filepath.Join(t.TempDir(), "m"), JoinToken: token.Msg.GetToken(), Keys: []string{"records"}}, i))
	}
	l := r.load(members, admin, m.Msg.GetCiphertext())
	ref, version := &rotorv1.KeyRef{Name: "records"}, uint32(1)
	rotate := func(during func()) {
		t.Helper()
		version++
		began := time.Now()
		for {
			try, cancel := context.WithTimeout(t.Context(), time.Second) // a server that is frozen answers nothing
			_, err := admin.Admin().Keys.Rotate(try, connect.NewRequest(&rotorv1.RotateRequest{Key: ref}))
			cancel()
			if err == nil || fault.CodeOf(err) == fault.RotationInFlight { // the answer to an earlier try was lost
				break
			}
			if c := fault.CodeOf(err); c != fault.Unavailable && c != fault.OutcomeUnknown && c != fault.Canceled {
				t.Fatal(err)
			}
		}
		wrote := time.Since(began)
		during()
		awaitPrimary(t, admin, ref, version)
		t.Logf("version %d: written after %s, primary after %s", version, wrote.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	rotate(func() {})
	for i := range r.procs {
		rotate(func() { r.kill(i) }) // a rotation in flight
		rotate(func() {})            // with two servers
		r.start(i)
	}
	for i := range r.procs { // one of them leads, and one has the reads
		r.signal(i, syscall.SIGSTOP)
		r.status(i)
		time.Sleep(3 * time.Second) // past its session
		rotate(func() { r.signal(i, syscall.SIGCONT) })
	}
	l.stop()
	l.done.Wait()
	k, err := admin.Admin().Keys.Get(t.Context(), connect.NewRequest(ref))
	if err != nil || len(k.Msg.GetVersions()) != int(version) {
		t.Errorf("%d versions of %d, %v", len(k.Msg.GetVersions()), version, err)
	}
	t.Logf("%d reads, %d failed", l.reads.Load(), l.failed.Load())
}
