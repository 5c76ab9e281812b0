//go:build services

package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// budget counts operations of each kind.
type budget struct {
	mu    sync.Mutex // guards kinds
	kinds map[string]*tally
}

type tally struct {
	Done, Failed int
	Again        map[fault.Code]int // tries that were repeated, by their reason
}

// add counts what another process has counted.
func (b *budget) add(kinds map[string]*tally) {
	for kind, t := range kinds {
		b.of(kind, func(k *tally) {
			k.Done, k.Failed = k.Done+t.Done, k.Failed+t.Failed
			for code, n := range t.Again {
				k.Again[code] += n
			}
		})
	}
}

func (b *budget) of(kind string, f func(*tally)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kinds[kind] == nil {
		b.kinds[kind] = &tally{Again: map[fault.Code]int{}}
	}
	f(b.kinds[kind])
}

func (b *budget) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(b.kinds)) {
		k := b.kinds[kind]
		fmt.Fprintf(&out, "\n%-16s %6d done, %d failed, repeated", kind, k.Done, k.Failed)
		for _, c := range slices.Sorted(maps.Keys(k.Again)) {
			fmt.Fprintf(&out, " %s %d", c, k.Again[c])
		}
	}
	return out.String()
}

// retried are the reasons for which a client asks again: the server, or what it stands on, was away.
var retried = []fault.Code{fault.Unavailable, fault.OutcomeUnknown, fault.Canceled, fault.Conflict}

// errands are operations that are repeated until they are acknowledged.
type errands struct {
	budget budget
	failed func(format string, args ...any)
}

// do repeats an operation until it is acknowledged, each try with so much time. It fails for another reason than that the server was away, or after
// soakPatient.
func (e *errands) do(ctx context.Context, kind string, try time.Duration, f func(context.Context) error) bool {
	whole, cancel := context.WithTimeout(ctx, soakPatient)
	defer cancel()
	for {
		limited, end := context.WithTimeout(whole, try)
		err := rpc.Decode(f(limited))
		end()
		code := fault.CodeOf(err)
		switch {
		case err == nil:
			e.budget.of(kind, func(k *tally) { k.Done++ })
			return true
		case ctx.Err() != nil: // the soak is over
			return false
		case whole.Err() != nil || !slices.Contains(retried, code):
			e.budget.of(kind, func(k *tally) { k.Failed++ })
			e.failed("%s: %v", kind, err)
			return false
		}
		e.budget.of(kind, func(k *tally) { k.Again[code]++ })
		pause(whole, soakPause/5)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// take has a process take an instance's place.
func (e *errands) take(ctx context.Context, m soakMember) (c *rotor.Client) {
	e.do(ctx, "join", 5*soakTry, func(ctx context.Context) (err error) { // waits for the key too
		c, err = rotor.Dial(ctx, rotor.Config{Identity: m.Identity, JoinToken: m.Token, Address: m.Address, Keys: []string{"records"}, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	return c
}

// read has a server decrypt. No try has a limit of its own: the client goes on from a server that does not answer by itself.
func (e *errands) read(ctx context.Context, keys rotorv1.KeyServiceClient, name string, c []byte) {
	e.do(ctx, "decrypt", soakPatient, func(ctx context.Context) error {
		r, err := keys.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: &rotorv1.KeyRef{Name: name}, Ciphertext: c}))
		if err == nil && string(r.Msg.GetPlaintext()) != "text" {
			err = fmt.Errorf("another text: %q", r.Msg.GetPlaintext())
		}
		return err
	})
}

// soakMember is an instance that joins.
type soakMember struct{ Identity, Token, Address string }

// soakJob is what a process of clients is to do.
type soakJob struct {
	Members []soakMember // instances that hold a key in memory, each with its stream
	Admin   string       // identity of callers that have the servers encrypt and decrypt
	Callers []string     // the servers of each
}

// soakResult is what it has done.
type soakResult struct {
	Kinds   map[string]*tally
	Written map[string][][]byte // ciphertexts that are read again at the end, by key
	Errors  []string
}

// soakChild is the argument of a test's binary that is to be a process of clients: it reads a job and then commands, a line each, and answers each with one.
const soakChild = "soak-clients"

// clients is such a process.
type clients struct {
	errands
	rounds []atomic.Int64 // of each client

	mu      sync.Mutex // guards what follows
	written map[string][][]byte
	errors  []string
}

func soakClients() error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var job soakJob
	if err := in.Decode(&job); err != nil {
		return err
	}
	c := &clients{written: map[string][][]byte{}, rounds: make([]atomic.Int64, len(job.Members)+len(job.Callers))}
	c.budget.kinds = map[string]*tally{}
	c.failed = func(format string, args ...any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.errors = append(c.errors, fmt.Sprintf(format, args...))
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var working sync.WaitGroup
	if err := c.begin(ctx, job, &working); err != nil {
		return err
	}
	for {
		if err := out.Encode("ready"); err != nil {
			return err
		}
		var command string
		if err := in.Decode(&command); err != nil || command == "stop" {
			break
		}
		c.goOn()
	}
	stop()
	working.Wait()
	return out.Encode(soakResult{c.budget.kinds, c.written, c.errors})
}

// begin makes every client and has it work.
func (c *clients) begin(ctx context.Context, job soakJob, working *sync.WaitGroup) error {
	var members []*rotor.Client
	for _, m := range job.Members {
		if one := c.take(ctx, m); one != nil {
			members = append(members, one)
		}
	}
	if len(members) != len(job.Members) {
		return fmt.Errorf("not every member has joined: %s", c.errors)
	}
	for i := range members {
		working.Go(func() { c.member(ctx, i, members[i], members[(i+1)%len(members)]) })
	}
	for i, address := range job.Callers {
		one, err := rotor.Dial(ctx, rotor.Config{Identity: job.Admin, Address: address, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		working.Go(func() { c.caller(ctx, len(members)+i, one.Admin().Keys) })
	}
	return nil
}

// keep remembers some of what was acknowledged.
func (c *clients) keep(key string, round int64, message []byte) {
	if round%3 == 0 && round < 3*soakKept {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.written[key] = append(c.written[key], message)
	}
}

// caller encrypts at the servers, and decrypts what it wrote.
func (c *clients) caller(ctx context.Context, i int, keys rotorv1.KeyServiceClient) {
	key, text := &rotorv1.KeyRef{Name: "server"}, []byte("text")
	for round := int64(0); ctx.Err() == nil; round++ {
		var message []byte
		if c.do(ctx, "encrypt", soakPatient, func(ctx context.Context) error {
			r, err := keys.Encrypt(ctx, connect.NewRequest(&rotorv1.EncryptRequest{Key: key, Plaintext: text}))
			if err == nil {
				message = r.Msg.GetCiphertext()
			}
			return err
		}) {
			c.keep("server", round, message)
			c.read(ctx, keys, "server", message)
		}
		c.rounds[i].Add(1)
		pause(ctx, soakPause)
	}
}

// member encrypts and decrypts with the key that it holds, for which no server is needed: nothing is repeated.
func (c *clients) member(ctx context.Context, i int, from, to *rotor.Client) {
	for round := int64(0); ctx.Err() == nil; round++ {
		message, err := from.Key("records").Encrypt(ctx, []byte("text"))
		if err == nil {
			c.keep("records", round, message)
			var got []byte
			if got, err = to.Key("records").Decrypt(ctx, message); err == nil && string(got) != "text" {
				err = fmt.Errorf("another text: %q", got)
			}
		}
		if ctx.Err() == nil {
			c.budget.of("held", func(k *tally) {
				if k.Done++; err != nil {
					k.Done, k.Failed = k.Done-1, k.Failed+1
				}
			})
			if err != nil {
				c.failed("member %d: %v", i, err)
			}
		}
		c.rounds[i].Add(1)
		pause(ctx, soakPause)
	}
}

// goOn waits until every client has done something since.
func (c *clients) goOn() {
	var at []int64
	for i := range c.rounds {
		at = append(at, c.rounds[i].Load())
	}
	for i := range c.rounds {
		for c.rounds[i].Load() == at[i] {
			time.Sleep(soakPause / 5)
		}
	}
}
