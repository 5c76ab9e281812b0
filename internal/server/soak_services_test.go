//go:build services

package server_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Shape of the soak.
const (
	soakMembers = 40  // instances that hold a key in memory, each with its stream
	soakCallers = 160 // clients that have the servers encrypt and decrypt, each with its connection
	soakPause   = 500 * time.Millisecond
	soakTry     = 2 * time.Second  // after which a client asks again: a frozen server answers nothing
	soakPatient = 40 * time.Second // after which an operation has failed
	soakKept    = 20               // ciphertexts of each client that are read again at the end
	soakFreeze  = 3 * time.Second  // past a server's session
)

// budget counts operations of each kind.
type budget struct {
	mu    sync.Mutex // guards kinds
	kinds map[string]*tally
}

type tally struct {
	done, failed int
	again        map[fault.Code]int // tries that were repeated, by their reason
}

func (b *budget) of(kind string, f func(*tally)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kinds[kind] == nil {
		b.kinds[kind] = &tally{again: map[fault.Code]int{}}
	}
	f(b.kinds[kind])
}

func (b *budget) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(b.kinds)) {
		k := b.kinds[kind]
		fmt.Fprintf(&out, "\n%-16s %6d done, %d failed, repeated", kind, k.done, k.failed)
		for _, c := range slices.Sorted(maps.Keys(k.again)) {
			fmt.Fprintf(&out, " %s %d", c, k.again[c])
		}
	}
	return out.String()
}

// retried are the reasons for which a client asks again: the server, or what it stands on, was away.
var retried = []fault.Code{fault.Unavailable, fault.OutcomeUnknown, fault.Canceled, fault.Conflict}

// soak is a cluster under load.
type soak struct {
	*replicas
	budget budget
	admin  *rotor.Client
	rounds []atomic.Int64 // of each client

	mu      sync.Mutex // guards what follows
	written map[string][][]byte
	joined  []string
}

// do repeats an operation until it is acknowledged. It gives up, and the test fails, for another reason than that the server was away, or after soakPatient.
func (s *soak) do(ctx context.Context, kind string, f func(context.Context) error) bool {
	whole, cancel := context.WithTimeout(ctx, soakPatient)
	defer cancel()
	for {
		try, end := context.WithTimeout(whole, soakTry)
		err := rpc.Decode(f(try))
		end()
		code := fault.CodeOf(err)
		switch {
		case err == nil:
			s.budget.of(kind, func(k *tally) { k.done++ })
			return true
		case ctx.Err() != nil: // the soak is over
			return false
		case whole.Err() != nil || !slices.Contains(retried, code):
			s.budget.of(kind, func(k *tally) { k.failed++ })
			s.t.Errorf("%s: %v", kind, err)
			return false
		}
		s.budget.of(kind, func(k *tally) { k.again[code]++ })
		pause(whole, soakPause/5)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// keep remembers some of what was acknowledged.
func (s *soak) keep(key string, round int64, c []byte) {
	if round%3 == 0 && round < 3*soakKept {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.written[key] = append(s.written[key], c)
	}
}

// caller encrypts at the servers, and decrypts what it wrote.
func (s *soak) caller(ctx context.Context, i int, keys rotorv1.KeyServiceClient) {
	key, text := &rotorv1.KeyRef{Name: "server"}, []byte("text")
	for round := int64(0); ctx.Err() == nil; round++ {
		var c []byte
		if s.do(ctx, "encrypt", func(ctx context.Context) error {
			r, err := keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Plaintext: text}))
			if err == nil {
				c = r.Msg.GetCiphertext()
			}
			return err
		}) {
			s.keep("server", round, c)
			s.read(ctx, keys, "server", c)
		}
		s.rounds[i].Add(1)
		pause(ctx, soakPause)
	}
}

func (s *soak) read(ctx context.Context, keys rotorv1.KeyServiceClient, name string, c []byte) {
	s.do(ctx, "decrypt", func(ctx context.Context) error {
		r, err := keys.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: &rotorv1.KeyRef{Name: name}, Ciphertext: c}))
		if err == nil && string(r.Msg.GetPlaintext()) != "text" {
			err = fmt.Errorf("another text: %q", r.Msg.GetPlaintext())
		}
		return err
	})
}

// member encrypts and decrypts with the key that it holds, for which no server is needed: nothing is repeated.
func (s *soak) member(ctx context.Context, i int, from, to *rotor.Client) {
	for round := int64(0); ctx.Err() == nil; round++ {
		c, err := from.Key("records").Encrypt(ctx, []byte("text"))
		if err == nil {
			s.keep("records", round, c)
			var got []byte
			if got, err = to.Key("records").Decrypt(ctx, c); err == nil && string(got) != "text" {
				err = fmt.Errorf("another text: %q", got)
			}
		}
		if ctx.Err() == nil {
			s.budget.of("held", func(k *tally) {
				if k.done++; err != nil {
					k.done, k.failed = k.done-1, k.failed+1
					s.t.Errorf("member %d: %v", i, err)
				}
			})
		}
		s.rounds[i].Add(1)
		pause(ctx, soakPause)
	}
}

// join takes a new instance in.
func (s *soak) join(ctx context.Context, name string, from int) *rotor.Client {
	var c *rotor.Client
	path := filepath.Join(s.t.TempDir(), name)
	var token string
	s.do(ctx, "invite", func(ctx context.Context) error {
		r, err := s.admin.Admin().Fleet.Invite(ctx, connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
		if err == nil {
			token = r.Msg.GetToken()
		}
		return err
	})
	s.do(ctx, "join", func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*soakTry) // waits for the key too
		defer cancel()
		c, err = rotor.Dial(ctx, rotor.Config{Identity: path, JoinToken: token, Address: s.addresses(from), Keys: []string{"records"}, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if c != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.joined = append(s.joined, name)
		s.t.Cleanup(func() { _ = c.Close() })
	}
	return c
}

// audit reads the log as it grows. Every entry comes once, in order.
func (s *soak) audit(ctx context.Context, log rotorv1.AuditServiceClient, seen *[][]byte) {
	s.do(ctx, "audit", func(ctx context.Context) error {
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
		s.do(ctx, "show", func(ctx context.Context) error {
			k, err := keys.Get(ctx, connect.NewRequest(ref))
			if err == nil {
				primary = k.Msg.GetPrimary()
			}
			return err
		})
		return primary
	}
	was := get()
	s.do(ctx, "rotate", func(ctx context.Context) error {
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

// goOn waits until every client has done something since.
func (s *soak) goOn(ctx context.Context) {
	var at []int64
	for i := range s.rounds {
		at = append(at, s.rounds[i].Load())
	}
	for i := range s.rounds {
		for s.rounds[i].Load() == at[i] && ctx.Err() == nil && !s.t.Failed() {
			pause(ctx, soakPause/5)
		}
	}
}

// TestSoak: 200 clients work while servers, the engine and the seal's file are killed, frozen and taken away in turn. No operation fails in the
// end, nothing that was acknowledged is lost, and the log is the one that was read while it grew.
func TestSoak(t *testing.T) {
	pg := testenv.Postgres(t)
	s := &soak{replicas: newReplicas(t, built(t), pg.URL), budget: budget{kinds: map[string]*tally{}}, rounds: make([]atomic.Int64, soakMembers+soakCallers), written: map[string][][]byte{}}
	s.admin = s.dial(rotor.Config{Identity: filepath.Join(s.dir, "admin")}, 0)
	for name, custody := range map[string]string{"records": "fleet", "server": "server"} {
		if _, err := s.admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: custody}})); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var members []*rotor.Client
	for i := range soakMembers {
		members = append(members, s.join(ctx, fmt.Sprintf("m%d", i), i))
	}
	if t.Failed() {
		t.Fatal("not every member has joined")
	}
	var clients sync.WaitGroup
	for i := range members {
		clients.Go(func() { s.member(ctx, i, members[i], members[(i+1)%soakMembers]) })
	}
	for i := range soakCallers {
		c := s.dial(rotor.Config{Identity: filepath.Join(s.dir, "admin")}, i)
		clients.Go(func() { s.caller(ctx, soakMembers+i, c.Admin().Keys) })
	}
	var seen [][]byte
	for i, f := range s.faults(pg) {
		began := time.Now()
		f.how()
		s.rotate(ctx, "records")
		s.rotate(ctx, "server")
		f.mend()
		s.join(ctx, fmt.Sprintf("late%d", i), i)
		s.audit(ctx, s.admin.Admin().Audit, &seen)
		s.goOn(ctx)
		t.Logf("%-24s %s", f.what, time.Since(began).Round(time.Millisecond))
		if t.Failed() {
			break
		}
	}
	stop()
	clients.Wait()
	s.reconcile(seen)
	t.Logf("error budget:%s", &s.budget)
	if e := s.budget.kinds["encrypt"]; e == nil || e.again[fault.Unavailable] == 0 || e.again[fault.Canceled] == 0 {
		t.Error("nobody noticed that the engine and the servers were frozen")
	}
}

type outage struct {
	what      string
	how, mend func()
}

// faults are what goes wrong, in this order.
func (s *soak) faults(pg *testenv.PostgreSQL) (all []outage) {
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
	for i := range s.procs { // one of them has the clients
		all = append(all, frozen(fmt.Sprintf("server %d frozen", i), func() { s.signal(i, syscall.SIGSTOP) }, func() { s.signal(i, syscall.SIGCONT) }))
	}
	key := filepath.Join(s.dir, "seal.key")
	move := func(from, to string) func() {
		return func() {
			if err := os.Rename(from, to); err != nil {
				s.t.Error(err)
			}
		}
	}
	return append(all,
		outage{"engine killed", func() { pg.Kill(); pg.Start() }, none},
		outage{"seal's key file away", move(key, key+".away"), move(key+".away", key)},
		frozen("engine frozen", pg.Freeze, pg.Thaw),
		outage{"server 1 stopped", func() {
			s.signal(1, syscall.SIGTERM)
			_ = s.procs[1].Wait()
		}, func() { s.start(1) }},
	)
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
			reader := s.join(ctx, "reader", 0)
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
