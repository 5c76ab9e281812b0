//go:build services

package server_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
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

// rooted is a server process whose only root of trust is a server that is a process too.
type rooted struct {
	*processes
	root    *testenv.TransitServer
	admin   *rotor.Client
	people  *http.Client // takes the certificate of a sealed server as well
	message []byte
}

func newRooted(t *testing.T, hold time.Duration) *rooted {
	t.Helper()
	r := &rooted{processes: newProcesses(t, built(t), 1), root: testenv.StartTransit(t)}
	seal := server.Seal{Name: "vault", Type: "transit", Address: r.root.Address, Key: "rotor", TokenFile: r.root.TokenFile, CAFile: r.root.CAFile}
	c := r.config()
	c.Seals, c.InitSeals, c.SealHold = []server.Seal{seal}, []string{"vault"}, hold
	if _, err := server.Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.configure("store: \"bolt:\"\nseal_hold: %s\nseals:\n  - {name: vault, type: transit, address: %q, key: rotor, token_file: %q, ca_file: %q}\n",
		hold, seal.Address, seal.TokenFile, seal.CAFile)
	r.start(0)
	r.admin = r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, 0)
	dir, err := identity.Read(filepath.Join(r.dir, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	r.people = dir.PeerClient(dir.ClientTLS(func(id string) bool { return id == dir.ServerID() || id == dir.SealedID() }))
	t.Cleanup(r.people.CloseIdleConnections)
	if _, err := r.admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: "server", Purpose: "encrypt", Custody: "server"}})); err != nil {
		t.Fatal(err)
	}
	if r.message, err = r.encrypt(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rooted) encrypt(ctx context.Context) ([]byte, error) {
	m, err := r.admin.Admin().Keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: &rotorv1.KeyRef{Name: "server"}, Plaintext: []byte("text")}))
	if err != nil {
		return nil, rpc.Decode(err)
	}
	return m.Msg.GetCiphertext(), nil
}

func (r *rooted) decrypt(ctx context.Context, c []byte) error {
	m, err := r.admin.Admin().Keys.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: &rotorv1.KeyRef{Name: "server"}, Ciphertext: c}))
	if err == nil && string(m.Msg.GetPlaintext()) != "text" {
		err = fmt.Errorf("another text: %q", m.Msg.GetPlaintext())
	}
	return rpc.Decode(err)
}

// get asks the server, sealed or not, for a path; a server that is between two listeners answers 0.
func (r *rooted) get(path string) (int, string) {
	r.t.Helper()
	try, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	return tryGet(try, r.people, "https://"+r.address(0)+path)
}

// await asks for a path until its answer matches.
func (r *rooted) await(path string, status int, pattern string) (body string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for wanted := regexp.MustCompile(pattern); ; pause(ctx, 20*time.Millisecond) {
		got, body := r.get(path)
		if got == status && wanted.MatchString(body) {
			return body
		}
		if ctx.Err() != nil {
			r.t.Fatalf("%s never answers %d %s, but %d %s\n%s", path, status, pattern, got, body, r.log(0))
		}
	}
}

// work is requests without pause, until one fails.
type work struct {
	done  atomic.Int64
	ended sync.WaitGroup
	mu    sync.Mutex // guards first
	first error
}

func (r *rooted) work() *work {
	w := &work{}
	for i := range 4 {
		w.ended.Go(func() {
			for {
				c, err := r.encrypt(r.t.Context())
				if err == nil {
					err = r.decrypt(r.t.Context(), c)
				}
				if err == nil && i == 0 { // a change now and then
					_, err = r.admin.Admin().Fleet.Invite(r.t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: "m"}))
				}
				if err != nil {
					w.mu.Lock()
					if w.first == nil {
						w.first = err
					}
					w.mu.Unlock()
					return
				}
				w.done.Add(1)
			}
		})
	}
	return w
}

// TestRootAway: the only root of trust is killed, or frozen, under load. No request fails before the hold time is over; then the server seals itself,
// says why to whoever asks, and opens by itself when the root is back. Nothing is lost.
func TestRootAway(t *testing.T) {
	r := newRooted(t, 2*time.Second)
	for what, f := range map[string]struct{ away, back func() }{"killed": {r.root.Kill, r.root.Start}, "frozen": {r.root.Freeze, r.root.Thaw}} {
		r.await("/metrics", 200, `(?m)^rotor_sealer_up\{kind="transit",.*\} 1$`)
		w := r.work()
		f.away()
		r.await("/metrics", 200, `(?m)^rotor_sealer_up\{kind="transit",.*\} 0$`)
		body := r.await("/metrics", 200, `(?m)^rotor_seal_hold_remaining_seconds `)
		if !strings.Contains(body, "\nrotor_sealed 0\n") || !strings.Contains(body, "\nrotor_ready 1\n") || !strings.Contains(body, "\nrotor_sealer_opened_age_seconds{") {
			t.Errorf("%s, while it holds: %s", what, body)
		}
		w.ended.Wait()
		if log := r.log(0); strings.Count(log, "the server seals itself") == 0 {
			t.Errorf("%s: a request failed before the hold time was over: %v\n%s", what, w.first, log)
		}
		t.Logf("%s: %d requests before the server sealed itself, then %v", what, w.done.Load(), w.first)

		r.await("/readyz", 503, `^sealed \(hold\): no root of trust answered`)
		r.await("/metrics", 200, `(?m)^rotor_sealed_reason\{reason="hold"\} 1$`)
		s, err := rotorv1.NewSealServiceClient(r.people, "https://"+r.address(0)).Status(t.Context(), connect.NewRequest(&rotorv1.SealStatusRequest{}))
		if err != nil || !s.Msg.GetSealed() || s.Msg.GetReason() != "hold" {
			t.Errorf("%s: %v, %v", what, s, err)
		}
		keys := rotorv1.NewKeyServiceClient(r.people, "https://"+r.address(0))
		if _, err := keys.List(t.Context(), connect.NewRequest(&rotorv1.ListRequest{})); fault.CodeOf(rpc.Decode(err)) != fault.Sealed {
			t.Errorf("%s: a sealed server answers %v", what, err)
		}
		f.back()
		r.await("/readyz", 200, "ready")
		if err := r.decrypt(t.Context(), r.message); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if body := r.await("/metrics", 200, `(?m)^rotor_sealer_up\{kind="transit",.*\} 1$`); strings.Contains(body, "rotor_seal_hold_remaining") || !strings.Contains(body, "\nrotor_sandboxed 1\n") {
		t.Errorf("at the end: %s", body)
	}
}

// TestNoHold: without a hold time a server whose root is gone goes on, and says so; a start waits for the root.
func TestNoHold(t *testing.T) {
	r := newRooted(t, 0)
	r.root.Kill()
	if err := r.decrypt(t.Context(), r.message); err != nil {
		t.Error(err)
	}
	r.kill(0)
	r.start(0)
	r.await("/readyz", 503, `^sealed \(away\): no root of trust that opens it can be reached`)
	r.root.Start()
	r.await("/readyz", 200, "ready")
	if err := r.decrypt(t.Context(), r.message); err != nil {
		t.Error(err)
	}
}
