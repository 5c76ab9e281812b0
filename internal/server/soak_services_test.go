//go:build services

package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
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

// Shape of the soak.
const (
	soakProcesses = 4  // of clients
	soakMembers   = 10 // in each: instances that hold a key in memory, each with its stream
	soakCallers   = 40 // in each: clients that have the servers encrypt and decrypt, each with its connection
	soakPause     = 500 * time.Millisecond
	soakTry       = 2 * time.Second         // after which a change is asked for again: a frozen server answers nothing
	soakPatient   = 40 * time.Second        // after which an operation has failed
	soakKept      = 20                      // ciphertexts of each client that are read again at the end
	soakFreeze    = 1500 * time.Millisecond // past a server's session
)

// soak is a cluster under load.
type soak struct {
	*processes
	errands
	pg      *testenv.PostgreSQL
	root    *testenv.TransitServer
	admin   *rotor.Client
	people  *http.Client // takes the certificate of a sealed server as well
	clients []*clientProcess
	written map[string][][]byte
	joined  []string
}

// newSoak makes three servers on PostgreSQL, whose only root of trust is a server too.
func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{processes: newProcesses(t, built(t), 3), pg: testenv.Postgres(t), root: testenv.StartTransit(t), written: map[string][][]byte{}}
	s.budget.kinds, s.failed = map[string]*tally{}, t.Errorf
	c := s.config()
	seal := server.Seal{Name: "vault", Type: "transit", Address: s.root.Address, Key: "rotor", TokenFile: s.root.TokenFile, CAFile: s.root.CAFile}
	c.Store, c.Seals, c.InitSeals = s.pg.URL, []server.Seal{seal}, []string{"vault"}
	if _, err := server.Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	s.configure("store: %s\nsession_ttl: 1s\nsandbox: \"off\"\nseals:\n  - {name: vault, type: transit, address: %q, key: rotor, token_file: %q, ca_file: %q}\n",
		s.pg.URL, seal.Address, seal.TokenFile, seal.CAFile)
	for i := range s.procs {
		s.start(i)
	}
	s.admin = s.dial(rotor.Config{Identity: filepath.Join(s.dir, "admin")}, 0)
	dir, err := identity.Read(filepath.Join(s.dir, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	s.people = dir.PeerClient(dir.ClientTLS(func(id string) bool { return id == dir.ServerID() || id == dir.SealedID() }))
	t.Cleanup(s.people.CloseIdleConnections)
	for name, custody := range map[string]string{"records": "fleet", "server": "server"} {
		if _, err := s.admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: custody}})); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// clientProcess is a process of clients.
type clientProcess struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// launch starts a process of clients, which joins and works.
func (s *soak) launch(ctx context.Context, n int) {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &clientProcess{cmd: exec.Command(self, soakChild)} //nolint:noctx // killed below
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // gone already is fine
		_ = p.cmd.Wait()
	})
	p.in, p.out = json.NewEncoder(in), json.NewDecoder(out)
	job := soakJob{Admin: filepath.Join(s.dir, "admin")}
	for i := range soakMembers {
		job.Members = append(job.Members, s.invite(ctx, fmt.Sprintf("m%d-%d", n, i), i))
	}
	for i := range soakCallers {
		job.Callers = append(job.Callers, s.addresses(i))
	}
	if err := p.in.Encode(job); err != nil {
		s.t.Fatal(err)
	}
	s.clients = append(s.clients, p)
}

// goOn waits until every client has done something since.
func (s *soak) goOn() {
	for _, p := range s.clients {
		if err := p.in.Encode("go on"); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, p := range s.clients {
		s.ready(p)
	}
}

func (s *soak) ready(p *clientProcess) {
	s.t.Helper()
	var word string
	if err := p.out.Decode(&word); err != nil || word != "ready" {
		s.t.Fatalf("a process of clients: %q, %v", word, err)
	}
}

// end ends all clients, and counts what they did.
func (s *soak) end() {
	s.t.Helper()
	for _, p := range s.clients {
		if err := p.in.Encode("stop"); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, p := range s.clients {
		var r soakResult
		if err := p.out.Decode(&r); err != nil && err != io.EOF { //nolint:errorlint // Decode gives it bare
			s.t.Fatal(err)
		}
		s.budget.add(r.Kinds)
		for key, all := range r.Written {
			s.written[key] = append(s.written[key], all...)
		}
		for _, e := range r.Errors {
			s.t.Error(e)
		}
	}
}

// invite makes the place of a new instance.
func (s *soak) invite(ctx context.Context, name string, from int) soakMember {
	m := soakMember{Identity: filepath.Join(s.t.TempDir(), name), Address: s.addresses(from)}
	s.do(ctx, "invite", soakTry, func(ctx context.Context) error {
		r, err := s.admin.Admin().Fleet.Invite(ctx, connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
		if err == nil {
			m.Token = r.Msg.GetToken()
		}
		return err
	})
	s.joined = append(s.joined, name)
	return m
}

// late takes one more instance in.
func (s *soak) late(ctx context.Context, name string, from int) *rotor.Client {
	c := s.take(ctx, s.invite(ctx, name, from))
	if c != nil {
		s.t.Cleanup(func() { _ = c.Close() })
	}
	return c
}

// audit reads the log as it grows. Every entry comes once, in order.
func (s *soak) audit(ctx context.Context, log rotorv1.AuditServiceClient, seen *[][]byte) {
	s.do(ctx, "audit", 5*soakTry, func(ctx context.Context) error {
		tail, err := log.Tail(ctx, connect.NewRequest(&rotorv1.TailRequest{From: uint64(len(*seen))}))
		if err != nil {
			return err
		}
		defer tail.Close()
		for tail.Receive() {
			if tail.Msg().GetIndex() != uint64(len(*seen)) {
				return fmt.Errorf("entry %d after %d", tail.Msg().GetIndex(), len(*seen))
			}
			*seen = append(*seen, bytes.Clone(tail.Msg().GetEntry()))
		}
		return tail.Err()
	})
}

// rotate makes a new version of a key and waits until it is primary.
func (s *soak) rotate(ctx context.Context, name string) {
	keys, ref := s.admin.Admin().Keys, &rotorv1.KeyRef{Name: name}
	get := func() (primary uint32) {
		s.do(ctx, "show", soakPatient, func(ctx context.Context) error {
			k, err := keys.Get(ctx, connect.NewRequest(ref))
			if err == nil {
				primary = k.Msg.GetPrimary()
			}
			return err
		})
		return primary
	}
	was := get()
	s.do(ctx, "rotate", soakTry, func(ctx context.Context) error {
		_, err := keys.Rotate(ctx, connect.NewRequest(&rotorv1.RotateRequest{Key: ref}))
		if fault.CodeOf(rpc.Decode(err)) == fault.RotationInFlight { // the answer to an earlier try was lost
			return nil
		}
		return err
	})
	for get() == was && ctx.Err() == nil && !s.t.Failed() {
		pause(ctx, soakPause/5)
	}
}

// TestSoak: 200 clients in four processes work while servers, the engine and the root of trust are killed, frozen and taken away in turn. No operation
// fails in the end, nothing that was acknowledged is lost, and the log is the one that was read while it grew.
func TestSoak(t *testing.T) {
	s := newSoak(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for n := range soakProcesses {
		s.launch(ctx, n)
	}
	for _, p := range s.clients {
		s.ready(p)
	}
	var seen [][]byte
	for i, f := range s.faults() {
		began := time.Now()
		f.how()
		s.rotate(ctx, "records")
		s.rotate(ctx, "server")
		f.mend()
		s.late(ctx, fmt.Sprintf("late%d", i), i)
		s.audit(ctx, s.admin.Admin().Audit, &seen)
		s.goOn()
		t.Logf("%-32s %s", f.what, time.Since(began).Round(time.Millisecond))
		if t.Failed() {
			break
		}
	}
	s.end()
	s.reconcile(seen)
	t.Logf("error budget:%s", &s.budget)
	for _, kind := range []string{"encrypt", "decrypt"} {
		if k := s.budget.kinds[kind]; k == nil || k.Again[fault.Canceled] > 0 || kind == "encrypt" && k.Again[fault.Unavailable] == 0 {
			t.Errorf("%s: somebody waited for a frozen server to the end, or nobody noticed the engine's", kind)
		}
	}
}

type outage struct {
	what      string
	how, mend func()
}

// faults are what goes wrong, in this order.
func (s *soak) faults() (all []outage) {
	none := func() {}
	for i := range s.procs {
		all = append(all, outage{fmt.Sprintf("server %d killed", i), func() { s.kill(i) }, func() { s.start(i) }})
	}
	frozen := func(what string, freeze, thaw func()) outage {
		return outage{what, func() {
			freeze()
			time.Sleep(soakFreeze)
			thaw()
		}, none}
	}
	all = append(all, frozen("root frozen, and server 0", func() { s.root.Freeze(); s.signal(0, syscall.SIGSTOP) }, func() { s.root.Thaw(); s.signal(0, syscall.SIGCONT) }))
	for i := 1; i < len(s.procs); i++ { // one of them has the clients
		all = append(all, frozen(fmt.Sprintf("server %d frozen", i), func() { s.signal(i, syscall.SIGSTOP) }, func() { s.signal(i, syscall.SIGCONT) }))
	}
	return append(all,
		outage{"engine killed", func() { s.pg.Kill(); s.pg.Start() }, none},
		outage{"root killed", s.root.Kill, s.root.Start},
		outage{"root and server 2 killed", func() { s.root.Kill(); s.kill(2) }, func() {
			s.start(2) // sealed
			s.readies(2, http.StatusServiceUnavailable)
			s.root.Start()
			s.readies(2, http.StatusOK)
		}},
		frozen("engine frozen", s.pg.Freeze, s.pg.Thaw),
		outage{"server 1 stopped", func() {
			s.signal(1, syscall.SIGTERM)
			_ = s.procs[1].Wait()
		}, func() { s.start(1) }},
	)
}

// readies waits until a server says whether it is ready.
func (s *soak) readies(i, want int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), soakPatient)
	defer cancel()
	for {
		got, body := tryGet(ctx, s.people, "https://"+s.address(i)+"/readyz")
		if got == want {
			return
		}
		if ctx.Err() != nil {
			s.t.Fatalf("server %d: %d %s, not %d\n%s", i, got, body, want, s.log(i))
		}
		pause(ctx, soakPause/10)
	}
}

// reconcile looks for everything that was acknowledged, at servers that have been started again and have verified the store and its log.
func (s *soak) reconcile(seen [][]byte) {
	s.t.Helper()
	ctx := s.t.Context()
	for i := range s.procs {
		s.kill(i)
	}
	for i := range s.procs {
		s.start(i)
	}
	found := 0
	for name, all := range s.written {
		if found += len(all); len(all) < 100 {
			s.t.Errorf("only %d ciphertexts under %s", len(all), name)
		}
		if name == "records" {
			reader := s.late(ctx, "reader", 0)
			for _, c := range all {
				if got, err := reader.Key(name).Decrypt(ctx, c); err != nil || string(got) != "text" {
					s.t.Fatalf("lost under %s: %q, %v", name, got, err)
				}
			}
			continue
		}
		var wg sync.WaitGroup
		for part := range slices.Chunk(all, len(all)/8+1) {
			wg.Go(func() {
				for _, c := range part {
					s.read(ctx, s.admin.Admin().Keys, name, c)
				}
			})
		}
		wg.Wait()
	}
	list, err := s.admin.Admin().Fleet.Instances(ctx, connect.NewRequest(&rotorv1.InstancesRequest{}))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range s.joined {
		if !slices.ContainsFunc(list.Msg.GetInstances(), func(i *rotorv1.Instance) bool { return i.GetName() == name }) {
			s.t.Errorf("%s joined, and is not there", name)
		}
	}
	var log [][]byte
	s.audit(ctx, s.admin.Admin().Audit, &log)
	if len(seen) < 100 || len(log) < len(seen) || !slices.EqualFunc(log[:len(seen)], seen, bytes.Equal) {
		s.t.Errorf("the log has %d entries, and is not the one of which %d were read while it grew", len(log), len(seen))
	}
	s.t.Logf("found %d ciphertexts, %d instances, %d entries of the log", found, len(s.joined), len(log))
}
