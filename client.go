// Package rotor is what programs import to use keys: encrypt and decrypt fields and files, issue and verify tokens, and go on
// doing so while the keys rotate. A Client is one instance of the fleet. Keys with custody "fleet" are held in its memory, so that
// using them needs no network; the server tells it of every change, and no version protects anything before every instance can
// process it.
//
//	client, err := rotor.Dial(ctx, rotor.Config{Identity: "/var/lib/app/rotor", JoinToken: token, Keys: []string{"records"}})
//	message, err := client.Key("records").Encrypt(ctx, plaintext, rotor.Part{Label: "id", Value: id})
package rotor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Part is one labelled piece of associated data: what a message is bound to and does not carry.
type Part = envelope.Part

// Error is the error of every operation that fails for a reason that rotor knows: Code, Resource, Hint.
type Error = fault.Error

// Code names the reason of an Error, for example "unknown_version". `rotor explain CODE` tells more.
type Code = fault.Code

// CodeOf returns the code of an error of this package; "internal" for any other, "" for nil.
func CodeOf(err error) Code { return fault.CodeOf(err) }

// Config says who the client is and what it holds.
type Config struct {
	Identity  string       // directory of private key and certificate; made when it is missing. One process at a time
	JoinToken string       // used once, when the directory holds no certificate yet
	Address   string       // host:port of the server, or of several with commas between; default: where it joined
	Keys      []string     // keys that Dial waits for; others are held at their first use
	Log       *slog.Logger // default: slog.Default. Nothing secret is logged

	// Tracing makes a span of each call to the server and lets the server's spans follow it (W3C Trace Context); nil: no traces, at no cost.
	// No span holds a plaintext or its size; the status of a call that failed holds the error's text, which names the key.
	Tracing trace.TracerProvider

	clock     clock                                     // of tests
	transport func(http.RoundTripper) http.RoundTripper // of tests: what stands between client and server
}

// Client is one instance of the fleet, or one administrator. Safe for concurrent use.
type Client struct {
	config  Config
	dir     *identity.Dir
	http    *http.Client
	server  string // host:port that URLs name; the transport finds a server that answers
	admin   *Admin
	private delivery.Private
	process []byte // the incarnation: fresh for each process
	verify  verifier
	jwks    *keySet
	witness *witness

	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex // guards what follows
	held    map[string]*held
	wanted  map[string][]chan struct{} // names to ask the server about, with who waits for the answer
	orphans []chan struct{}            // who waits for an answer that a broken stream did not bring
	wished  chan struct{}              // something is wanted
}

// Dial opens the identity, joins if it has to, and waits until every key of config.Keys can be used. With keys that it holds from an
// earlier Dial nothing is kept on disk: a process that starts needs the server once.
func Dial(ctx context.Context, config Config) (*Client, error) {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.clock == nil {
		config.clock = systemClock{}
	}
	dir, err := openIdentity(ctx, config)
	if err != nil {
		return nil, err
	}
	c, err := newClient(config, dir)
	if err != nil {
		_ = dir.Close() // the first error is the one that counts
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	for _, name := range config.Keys {
		if err := c.Key(name).Ready(ctx); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return c, nil
}

func newClient(config Config, dir *identity.Dir) (*Client, error) {
	private, err := delivery.NewPrivate()
	if err != nil {
		return nil, err
	}
	servers, err := identity.Addresses(cmp.Or(config.Address, dir.Address()))
	if err != nil {
		return nil, err
	}
	c := &Client{
		config: config, dir: dir, http: dir.ServersClient(servers), server: servers[0], private: private, process: make([]byte, delivery.NonceSize),
		verify: verifier{dir}, witness: newWitness(dir), held: map[string]*held{}, wanted: map[string][]chan struct{}{}, wished: make(chan struct{}, 1),
	}
	rand.Read(c.process)
	if config.transport != nil {
		c.http.Transport = config.transport(c.http.Transport)
	}
	c.jwks = newKeySet(c.fetchKeys, config.clock)
	traced, err := tracing(config.Tracing)
	if err != nil {
		return nil, err
	}
	c.admin = newAdmin(c.http, "https://"+c.server, traced...)
	c.stop = func() {}
	return c, nil
}

// start begins to hold keys and to renew the certificate.
func (c *Client) start(ctx context.Context) error {
	if err := c.revive(ctx); err != nil {
		return err
	}
	run, stop := context.WithCancel(context.Background())
	c.stop = stop
	if c.dir.IsInstance() {
		c.done.Go(func() { c.run(run) })
		c.done.Go(func() { c.renew(run) })
	}
	return nil
}

// openIdentity takes the directory, and joins when it holds no certificate. People's identities are read without a lock.
func openIdentity(ctx context.Context, config Config) (*identity.Dir, error) {
	if config.Identity == "" {
		return nil, fault.New(fault.Invalid, "identity").WithHint("name the directory of the identity")
	}
	if d, err := identity.Read(config.Identity); err == nil && d.Joined() && !d.IsInstance() {
		return d, nil
	}
	dir, err := identity.Open(config.Identity)
	if err != nil {
		return nil, err
	}
	if dir.Joined() {
		return dir, nil
	}
	if err := join(ctx, dir, config); err != nil {
		_ = dir.Close() // the first error is the one that counts
		return nil, err
	}
	return dir, nil
}

// Instance is the name that the client joined as; empty for administrators.
func (c *Client) Instance() string { return c.dir.Instance() }

// Namespace is where the client's keys are.
func (c *Client) Namespace() string { return c.dir.Namespace() }

// Admin is the whole API of the server, for programs that manage keys.
func (c *Client) Admin() *Admin { return c.admin }

// Close leaves the fleet, so that no rotation waits for this process, and overwrites the keys that it held.
func (c *Client) Close() error {
	c.stop()
	c.done.Wait()
	c.mu.Lock()
	for _, h := range c.held {
		h.wipe()
	}
	c.mu.Unlock()
	c.http.CloseIdleConnections()
	return errors.Join(c.witness.keep(), c.dir.Close())
}

// Admin is the server's API as generated from proto/rotor/v1. Its errors are of type *Error.
type Admin struct {
	Keys   rotorv1.KeyServiceClient
	Fleet  rotorv1.FleetServiceClient
	Tokens rotorv1.TokenServiceClient
	Data   rotorv1.DataServiceClient
	Audit  rotorv1.AuditServiceClient
	Server rotorv1.ServerServiceClient
	Auth   rotorv1.AuthServiceClient
}

// tracing are the options of a client whose calls are traced.
func tracing(p trace.TracerProvider) ([]connect.ClientOption, error) {
	if p == nil {
		return nil, nil
	}
	i, err := otelconnect.NewInterceptor(otelconnect.WithTracerProvider(p), otelconnect.WithoutMetrics(), otelconnect.WithPropagator(propagation.TraceContext{}))
	if err != nil {
		return nil, fmt.Errorf("trace calls: %w", err)
	}
	return []connect.ClientOption{connect.WithInterceptors(i)}, nil
}

// maxAnswer bounds one message of the server to an administrator, in bytes: the backup of a key and what is around it.
const maxAnswer = 33 << 20

func newAdmin(h *http.Client, url string, more ...connect.ClientOption) *Admin {
	o := append([]connect.ClientOption{connect.WithInterceptors(decode{}), connect.WithReadMaxBytes(maxAnswer)}, more...)
	return &Admin{
		Keys: rotorv1.NewKeyServiceClient(h, url, o...), Fleet: rotorv1.NewFleetServiceClient(h, url, o...),
		Tokens: rotorv1.NewTokenServiceClient(h, url, o...), Data: rotorv1.NewDataServiceClient(h, url, o...),
		Audit: rotorv1.NewAuditServiceClient(h, url, o...), Server: rotorv1.NewServerServiceClient(h, url, o...),
		Auth: rotorv1.NewAuthServiceClient(h, url, o...),
	}
}

// decode turns Connect's errors into faults.
type decode struct{}

// WrapUnary implements connect.Interceptor.
func (decode) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		out, err := next(ctx, r)
		if err != nil {
			return nil, rpc.Decode(err)
		}
		return out, nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (decode) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (decode) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// backoff is how long to wait before try n (from 0): 50 ms doubling to 1 s, with jitter so that a fleet does not come back at once.
func backoff(n int) time.Duration {
	d := 50 * time.Millisecond << min(n, 6)
	var b [1]byte
	rand.Read(b[:])
	return min(d, time.Second) * time.Duration(128+int(b[0])) / 256
}
