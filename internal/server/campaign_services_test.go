//go:build services

package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/examples/fleet/board"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// onBoard is how many records the data set of the test has.
const onBoard = 150

// TestCampaignOutlivesItsServer: a campaign that one server was asked for is moved by the one that leads, which is killed in the middle; another goes on from the last
// cursor, counts what there was, and everything is under the new version. It is rolled back, and moved back. An instance that one server removes is nobody at the others.
func TestCampaignOutlivesItsServer(t *testing.T) {
	bin := built(t)
	for engine, url := range map[string]func() string{
		"postgres": func() string { return testenv.Postgres(t).URL },
		"etcd":     func() string { return "etcd://" + testenv.Etcd(t, "3.4", 1).Hosts() + "/r" },
	} {
		t.Run(engine, func(t *testing.T) { testCampaign(t, newReplicas(t, bin, url())) })
	}
}

// joined is a new instance, which reaches the servers from one on.
func (r *replicas) joined(name string, from int, keys ...string) *rotor.Client {
	r.t.Helper()
	admin := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, from)
	token, err := admin.Admin().Fleet.Invite(r.t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
	if err != nil {
		r.t.Fatal(err)
	}
	return r.dial(rotor.Config{
		Identity: r.identity(name), JoinToken: token.Msg.GetToken(), Keys: keys, Log: slog.New(slog.DiscardHandler),
	}, from)
}

func (r *replicas) identity(name string) string { return filepath.Join(r.dir, "identity-"+name) }

// serveBoard serves a data set as an instance, and returns its URL.
func serveBoard(t *testing.T, as *rotor.Client, b *board.Board) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", as.ServerTLS(nil))
	if err != nil {
		t.Fatal(err)
	}
	const theServer = "rotor server" // no instance can have this name
	peer := func(r *http.Request) string {
		name, isServer, _ := as.PeerName(r.TLS)
		if isServer {
			return theServer
		}
		return name
	}
	s := &http.Server{Handler: b.Handler(peer, theServer), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }() // ends with Close, below
	t.Cleanup(func() {
		_ = s.Close() // whoever still waits is gone
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "https://" + l.Addr().String() + "/rotor-dataset/v1"
}

// leader is the server that leads, as the servers say.
func (r *replicas) leader() int {
	r.t.Helper()
	for {
		for i := range r.procs {
			ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
			c, err := rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(r.dir, "admin"), Address: r.address(i)})
			if err != nil {
				r.t.Fatal(err)
			}
			m, err := c.Admin().Server.Status(ctx, connect.NewRequest(&rotorv1.StatusRequest{}))
			cancel()
			_ = c.Close() // it has asked once
			if err != nil {
				continue // it is down
			}
			for _, s := range m.Msg.GetReplicas() {
				if s.GetSelf() && s.GetLeads() {
					return i
				}
			}
		}
		time.Sleep(20 * time.Millisecond) // each look is a new connection
	}
}

// tried repeats what may be repeated until a server answers.
func tried[T any](t *testing.T, f func(ctx context.Context) (*connect.Response[T], error)) *T {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		m, err := f(ctx)
		cancel()
		if err == nil {
			return m.Msg
		}
		if c := fault.CodeOf(err); c != fault.Unavailable && c != fault.OutcomeUnknown && c != fault.Canceled {
			t.Fatal(err)
		}
	}
}

func testCampaign(t *testing.T, r *replicas) {
	admin := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, 0)
	ref := &rotorv1.KeyRef{Name: "records"}
	if _, err := admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"}})); err != nil {
		t.Fatal(err)
	}
	b, err := board.Open(filepath.Join(t.TempDir(), "board.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	set := &rotorv1.DataSet{Name: "board", Key: ref, Url: serveBoard(t, r.joined("board", 1), b)}
	if _, err := admin.Admin().Data.Register(t.Context(), connect.NewRequest(&rotorv1.RegisterRequest{DataSet: set})); err != nil {
		t.Fatal(err)
	}
	writer := r.joined("writer", 2, "records")
	for i := range onBoard {
		id := fmt.Sprintf("r%03d", i)
		m, err := writer.Key("records").Encrypt(t.Context(), []byte("text of "+id), board.Parts(id)...)
		if err == nil {
			_, err = b.Put(id, 0, m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	turn := func(to, want uint32) {
		t.Helper()
		if _, err := admin.Admin().Keys.Rotate(t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: ref, BackTo: to})); err != nil {
			t.Fatal(err)
		}
		awaitPrimary(t, admin, ref, want)
	}
	// moved runs a campaign, asked for at a server that does not lead, and kills the one that does in its middle.
	moved := func(under uint32) {
		t.Helper()
		lead := r.leader()
		asked := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, (lead+1)%3)
		begun, err := asked.Admin().Data.StartCampaign(t.Context(), connect.NewRequest(&rotorv1.CampaignRequest{Key: ref, PerSecond: 75}))
		if err != nil {
			t.Fatal(err)
		}
		at := func() *rotorv1.Campaign {
			return tried(t, func(ctx context.Context) (*connect.Response[rotorv1.Campaign], error) {
				return asked.Admin().Data.GetCampaign(ctx, connect.NewRequest(&rotorv1.CampaignRef{Id: begun.Msg.GetId()}))
			})
		}
		now := at()
		for ; now.GetMoved() < onBoard/5; now = at() {
			if now.GetDone() {
				t.Fatalf("it has ended: %v", now)
			}
			time.Sleep(10 * time.Millisecond) // to see it in its middle
		}
		r.kill(lead)
		for !now.GetDone() {
			now = at()
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("killed server %d: %v", lead, now)
		if now.GetPhase() != "done" || now.GetError() != "" || now.GetFailed() != 0 || now.GetTotal() != onBoard || now.GetMoved()+now.GetSkipped() < onBoard || now.GetMoved() > onBoard {
			t.Errorf("%v", now)
		}
		r.start(lead)
		count := tried(t, func(ctx context.Context) (*connect.Response[rotorv1.CensusResponse], error) {
			return asked.Admin().Data.Census(ctx, connect.NewRequest(&rotorv1.CensusRequest{Key: ref}))
		})
		for _, n := range count.GetCounts() {
			if (n.GetVersion() == under) != (n.GetCiphertexts() == onBoard) {
				t.Errorf("after the campaign: %v", count)
			}
		}
	}
	turn(0, 2)
	moved(2)
	turn(1, 1) // rolled back: the floor is lowered first
	moved(1)

	if _, err := admin.Admin().Fleet.Remove(t.Context(), connect.NewRequest(&rotorv1.RemoveRequest{Name: "writer"})); err != nil {
		t.Fatal(err)
	}
	removed, err := identity.Read(r.identity("writer"))
	if err != nil {
		t.Fatal(err)
	}
	h := removed.HTTPClient()
	defer h.CloseIdleConnections()
	for i := range r.procs {
		_, err := rotorv1.NewKeyServiceClient(h, "https://"+r.address(i)).Get(t.Context(), connect.NewRequest(ref))
		for err == nil { // the others hear of it with the store's next event
			_, err = rotorv1.NewKeyServiceClient(h, "https://"+r.address(i)).Get(t.Context(), connect.NewRequest(ref))
		}
		if c := fault.CodeOf(rpc.Decode(err)); c != fault.Denied && c != fault.Unauthenticated {
			t.Errorf("the removed instance at server %d: %v", i, err)
		}
	}
}
