//go:build services

package server_test

import (
	"path/filepath"
	"strings"
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

// rekeyed is two servers that a key file opens, and the shares of three custodians.
type rekeyed struct {
	*processes
	seals  []rotorv1.SealServiceClient
	shares []string // that are in force
}

func newRekeyed(t *testing.T) *rekeyed {
	t.Helper()
	r := &rekeyed{processes: newProcesses(t, built(t), 2)}
	c := r.config()
	c.Store, c.InitSeals = testenv.Postgres(t).URL, []string{"local", "shamir:2/3"}
	made, err := server.Init(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	r.shares = made.Shares
	r.configure("store: %s\nsession_ttl: 1s\nsandbox: \"off\"\n", c.Store)
	dir, err := identity.Read(filepath.Join(r.dir, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.procs {
		r.start(i)
		h := dir.HTTPClient()
		t.Cleanup(h.CloseIdleConnections)
		r.seals = append(r.seals, rotorv1.NewSealServiceClient(h, "https://"+r.address(i)))
	}
	return r
}

// begin starts a rekey at a server.
func (r *rekeyed) begin(at int) string {
	r.t.Helper()
	p, err := r.seals[at].StartRekey(r.t.Context(), connect.NewRequest(&rotorv1.StartRekeyRequest{Shares: "2/3"}))
	if err != nil || p.Msg.GetServer() != r.address(at) {
		r.t.Fatal(p, rpc.Decode(err))
	}
	return p.Msg.GetAttempt()
}

func (r *rekeyed) give(at int, share string) (*rotorv1.RekeyProgress, error) {
	p, err := r.seals[at].Rekey(r.t.Context(), connect.NewRequest(&rotorv1.RekeyRequest{Share: share}))
	if err != nil {
		return nil, rpc.Decode(err)
	}
	return p.Msg, nil
}

// fresh makes a rekey go on to where the new shares have to come back, and returns them.
func (r *rekeyed) fresh(at int) []string {
	r.t.Helper()
	r.begin(at)
	var p *rotorv1.RekeyProgress
	for _, s := range r.shares[:2] {
		var err error
		if p, err = r.give(at, s); err != nil {
			r.t.Fatal(err)
		}
	}
	if len(p.GetShares()) != 3 {
		r.t.Fatal(p)
	}
	return p.GetShares()
}

// none says that no rekey goes on at a server, and checks that whoever brings a share is told where to look.
func (r *rekeyed) none(what string, at int, share string) {
	r.t.Helper()
	_, err := r.give(at, share)
	f, ok := err.(*fault.Error) //nolint:errorlint // Decode gives it bare
	if !ok || f.Code != fault.NotFound || !strings.Contains(f.Hint, r.address(at)) || !strings.Contains(f.Hint, "sealer list") {
		r.t.Errorf("%s: %v", what, err)
	}
}

// set is the one set of shares that is in the wrap set.
func (r *rekeyed) set(at int) string {
	r.t.Helper()
	s, err := r.seals[at].Status(r.t.Context(), connect.NewRequest(&rotorv1.SealStatusRequest{}))
	if err != nil {
		r.t.Fatal(rpc.Decode(err))
	}
	var sets []string
	for _, m := range s.Msg.GetMembers() {
		if m.GetKind() == "shamir" {
			sets = append(sets, m.GetId())
		}
	}
	if len(sets) != 1 {
		r.t.Fatalf("sets of shares: %v", sets)
	}
	return sets[0]
}

// opens proves at a server that shares open it, or that they are of another set.
func (r *rekeyed) opens(what string, at int, shares []string, want bool) {
	r.t.Helper()
	attempt := ""
	for _, s := range shares[1:] {
		p, err := r.seals[at].Unseal(r.t.Context(), connect.NewRequest(&rotorv1.UnsealRequest{Share: s}))
		if (err == nil) != want || err != nil && fault.CodeOf(rpc.Decode(err)) != fault.ShareForeign {
			r.t.Errorf("%s: %v, %v", what, p, rpc.Decode(err))
			return
		}
		if err == nil {
			attempt = p.Msg.GetAttempt()
		}
	}
	if _, err := r.seals[at].Reset(r.t.Context(), connect.NewRequest(&rotorv1.UnsealResetRequest{Attempt: attempt})); want && err != nil {
		r.t.Errorf("%s: %v", what, rpc.Decode(err))
	}
}

// TestRekeyDiesWithItsServer: a rekey belongs to one server. When that is killed, or a share is brought to another, whoever comes is told so, and what was in
// force stays so; killed in the middle of the commit, either the old shares open or the new ones, and all servers agree which.
func TestRekeyDiesWithItsServer(t *testing.T) {
	r := newRekeyed(t)
	first := r.set(0)
	again := func() {
		r.kill(0)
		r.start(0)
	}
	r.begin(0)
	if _, err := r.give(0, r.shares[0]); err != nil {
		t.Fatal(err)
	}
	r.none("an old share at another server", 1, r.shares[1])
	again()
	r.none("an old share after a kill", 0, r.shares[1])
	unused := r.fresh(0)
	r.none("a new share at another server", 1, unused[0])
	if _, err := r.give(0, unused[0]); err != nil {
		t.Fatal(err)
	}
	again()
	r.none("a new share after a kill", 0, unused[1])
	if now := r.set(1); now != first {
		t.Errorf("before the commit %s opens", now)
	}
	r.opens("new shares that were given up", 1, unused, false)
	r.opens("old shares", 1, r.shares, true)

	fresh := r.fresh(0)
	for _, s := range fresh[:2] {
		if _, err := r.give(0, s); err != nil {
			t.Fatal(err)
		}
	}
	again()
	r.opens("old shares after the commit", 1, r.shares, false)
	r.opens("new shares", 1, fresh, true)
	r.none("one more share", 0, fresh[2])
	r.shares = fresh
	replaced := 0
	for _, moment := range []time.Duration{0, 4 * time.Millisecond, 8 * time.Millisecond, 16 * time.Millisecond} {
		was, fresh := r.set(1), r.fresh(0)
		if _, err := r.give(0, fresh[0]); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { _, err := r.give(0, fresh[1]); sent <- err }()
		time.Sleep(moment) // before, in or after the commit, as it happens
		r.kill(0)
		err := <-sent
		r.start(0)
		if r.set(0) != r.set(1) {
			t.Errorf("%s opens one server and %s the other", r.set(0), r.set(1))
		}
		old := fresh
		if r.set(0) != was {
			replaced++
			r.shares, old = fresh, r.shares
		} else if err == nil {
			t.Error("the commit was acknowledged, and is not there")
		}
		r.opens("what is in force", 1, r.shares, true)
		r.opens("what is not", 1, old, false)
	}
	t.Logf("killed while the new shares were put in: %d of 4 times they were in", replaced)
}
