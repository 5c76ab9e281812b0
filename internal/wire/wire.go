// Package wire is the listener under every front end: TLS, limits, and who the caller is. A front end gets requests of known
// callers alone, but for the few routes that it says answer strangers.
package wire

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// Limits of every request.
const (
	MaxMessage     = 4 << 20          // of one request or stream message, in bytes
	maxStranger    = 64 << 10         // of a request of nobody, in bytes: a join token and a certificate request
	headerTimeout  = 10 * time.Second // to make the TLS connection and to send the request's header
	requestTimeout = 30 * time.Second // to send the body and take the answer, but for streams
	idleTimeout    = 2 * time.Minute
	pingEvery      = 15 * time.Second // silence of a connection after which it is asked for a sign of life
	pingTimeout    = 10 * time.Second
	maxHeader      = 64 << 10 // of a request, in bytes
	maxStreams     = 256      // HTTP/2 streams of one connection
)

// Identifier names the caller behind a connection.
type Identifier interface {
	// Identify returns the caller; expired also takes certificates that ended lately. fault.Unauthenticated.
	Identify(s tls.ConnectionState, expired bool) (policy.Caller, error)
	// Session returns the caller that a session token from an address is of, and when the session ends. fault.Unauthenticated.
	Session(ctx context.Context, token, address string) (policy.Caller, time.Time, error)
}

// Config is what a listener needs.
type Config struct {
	TLS        *tls.Config
	Identifier Identifier
	Handler    http.Handler // the front ends
	Now        func() time.Time
	Log        *slog.Logger
	// Observe is told of each answer: ok, or the code of the fault; nil: nobody is.
	Observe func(r *http.Request, route Route, code string, took time.Duration)
	Limits  Limits
	// Fronts are the protocols of the listener. The first whose path a request has speaks to it; a path of none is for known callers alone, and is
	// refused in plain text.
	Fronts []Front
}

// Server is the listener's HTTP server.
type Server struct {
	http    *http.Server
	callers *callers
	limits  atomic.Pointer[limiter]
	request time.Duration // that one may take, but for streams
	greet   time.Duration // that a TLS connection may take to be made
	log     *slog.Logger
	changes atomic.Uint64 // of who may come in
}

// times bound what a client may take its time for. Tests have shorter ones.
type times struct {
	header, request, idle, ping, pong time.Duration
}

// NewServer makes the server. Its caller serves and shuts it down.
func NewServer(c Config) *Server {
	return newServer(c, times{headerTimeout, requestTimeout, idleTimeout, pingEvery, pingTimeout})
}

func newServer(c Config, t times) *Server {
	s := &Server{callers: newCallers(), request: t.request, greet: t.header, log: c.Log}
	s.limits.Store(newLimiter(c.Limits, c.Now))
	s.http = &http.Server{
		TLSConfig: c.TLS, Handler: s.authenticate(c), ReadHeaderTimeout: t.header, IdleTimeout: t.idle,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		HTTP2:       &http.HTTP2Config{SendPingTimeout: t.ping, PingTimeout: t.pong, MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState:   s.callers.connState,
	}
	return s
}

// Serve answers until Shutdown, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(s.greeter(l)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// Shutdown ends the streams, lets the requests in flight finish until ctx ends, and closes what is left then.
func (s *Server) Shutdown(ctx context.Context) {
	s.callers.drain()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close() // it closes all that it can
	}
}

// OnClosed has f called, in a goroutine of its own, once Shutdown has closed the listeners and before it waits for the requests in flight.
func (s *Server) OnClosed(f func()) { s.http.RegisterOnShutdown(f) }

// Cut closes every connection of an instance.
func (s *Server) Cut(instance string) { s.callers.cut(instance) }

// End ends the streams of callers that are meant. Requests that were let in before it are looked at again (Stands).
func (s *Server) End(meant func(policy.Caller) bool) {
	s.changes.Add(1)
	s.callers.end(meant)
}

// Reconsider is End of all who would not be let in any more.
func (s *Server) Reconsider(ctx context.Context) {
	s.changes.Add(1)
	for _, p := range s.callers.streaming() {
		if p.again != nil && p.again(ctx) != nil {
			p.cancel()
		}
	}
}

// SetLimits begins to count anew, by other limits.
func (s *Server) SetLimits(l Limits) { s.limits.Store(newLimiter(l, s.limits.Load().now)) }

// peer is who stands behind a request.
type peer struct {
	caller      policy.Caller
	until       time.Time         // when what it showed ends
	certificate *x509.Certificate // nil when it showed a session
	address     string            // without the port
	state       *tls.ConnectionState
	control     *http.ResponseController
	cancel      func() // ends its context
	limits      *limiter
	again       func(ctx context.Context) error // whether it would be let in now; nil for strangers
	changes     *atomic.Uint64                  // of who may come in
	seen        uint64                          // changes before it was let in
	outcome     *atomic.Pointer[fault.Code]     // nil inside: ok
	load        *load                           // of its caller
	body        atomic.Int64                    // bytes of its own in it
	large       *atomic.Int64                   // bytes of all large bodies of the server
	route       Route
}

type (
	peerKey    struct{}
	connKey    struct{}
	outcomeKey struct{}
)

// authenticate names the caller and bounds the request before anything of its body is read.
func (s *Server) authenticate(c Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		front, route := frontOf(c.Fronts, r)
		stream := route.Stream
		var p *peer
		var err error
		seen := s.changes.Load() // before anybody is asked
		if stream {
			Aside(func() { p, err = identify(c, front, route, w, r) })
		} else {
			p, err = identify(c, front, route, w, r)
		}
		p.changes, p.seen, p.route = &s.changes, seen, route
		ctx := context.WithValue(r.Context(), outcomeKey{}, p.outcome)
		if c.Observe != nil {
			defer func() { c.Observe(r, route, p.code(), time.Since(began)) }()
		}
		deny := func(err error) {
			Failed(ctx, err)
			front.deny(w, r, err)
		}
		if err != nil && !route.Stranger {
			deny(err)
			return
		}
		p.limits = s.limits.Load()
		if err := p.limits.admit(p, route); err != nil {
			deny(err)
			return
		}
		if p.caller.IsZero() { // whether something is traced is no stranger's to say
			r.Header.Del("Traceparent")
			r.Header.Del("Tracestate")
		}
		var end time.Duration // of what was shown; 0: nothing was
		if err == nil && stream {
			end = max(p.until.Sub(c.Now()), 1)
		}
		ctx, leave, err := s.callers.enter(ctx, p, stream, end)
		if err != nil {
			deny(err)
			return
		}
		defer leave()
		if err := s.limit(w, r, p, route); err != nil {
			deny(err)
			return
		}
		c.Handler.ServeHTTP(w, r.WithContext(context.WithValue(ctx, peerKey{}, p)))
	})
}

// identify names who sent a request. A session, where one is shown, counts alone: a certificate beside it makes nobody of a wrong one.
func identify(c Config, front Front, route Route, w http.ResponseWriter, r *http.Request) (*peer, error) {
	p := &peer{control: http.NewResponseController(w), address: host(r.RemoteAddr), outcome: new(atomic.Pointer[fault.Code])}
	if r.TLS == nil {
		return p, fault.New(fault.Unauthenticated, "caller")
	}
	p.state = r.TLS
	token, shown, err := front.token(r.Header)
	if route.Login { // whose proof is in its body, or is the certificate
		return p, fault.New(fault.Unauthenticated, "caller")
	}
	if err != nil {
		return p, err
	}
	if shown {
		session := front.Identify
		if session == nil {
			session = c.Identifier.Session
		}
		if p.caller, p.until, err = session(r.Context(), token, p.address); err == nil {
			p.again = func(ctx context.Context) error {
				if front.Stands != nil {
					return front.Stands(ctx, token, p.address)
				}
				_, _, err := session(ctx, token, p.address)
				return err
			}
		}
		return p, err
	}
	if p.caller, err = c.Identifier.Identify(*r.TLS, route.Renew); err == nil {
		p.certificate = r.TLS.PeerCertificates[0]
		p.until = p.certificate.NotAfter
		p.again = func(context.Context) error {
			_, err := c.Identifier.Identify(*p.state, route.Renew)
			return err
		}
	}
	return p, err
}

// Stands says whether the caller of a request would still be let in. It was when its header came; its body can come much later, and somebody who was
// removed meanwhile does nothing more. It asks again only if anybody was. fault.Denied, Unauthenticated.
func Stands(ctx context.Context) error {
	p, ok := ctx.Value(peerKey{}).(*peer)
	if !ok || p.again == nil || p.changes.Load() == p.seen {
		return nil
	}
	return p.again(ctx)
}

// limit bounds size and time of a request. fault.TooLarge.
func (s *Server) limit(w http.ResponseWriter, r *http.Request, p *peer, route Route) error {
	if !route.Stream {
		end := time.Now().Add(s.request)
		_ = p.control.SetReadDeadline(end) // every server connection supports it
		_ = p.control.SetWriteDeadline(end)
	}
	most := cmp.Or(route.MaxBody, MaxMessage)
	if p.caller.IsZero() {
		most = maxStranger
	}
	if r.ContentLength > most {
		return fault.New(fault.TooLarge, "request").WithHint("at most %d bytes", most)
	}
	if !route.Unbounded {
		r.Body = http.MaxBytesReader(w, r.Body, most)
	}
	if !route.Stream {
		r.Body = metered{r.Body, p}
	}
	return nil
}

func host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}

// Failed notes how a request ended, for whoever observes.
func Failed(ctx context.Context, err error) {
	if o, ok := ctx.Value(outcomeKey{}).(*atomic.Pointer[fault.Code]); ok && err != nil {
		code := fault.CodeOf(err)
		o.Store(&code)
	}
}

func (p *peer) code() string {
	if code := p.outcome.Load(); code != nil {
		return string(*code)
	}
	return "ok"
}

// Aside calls f on a stack of its own, which is gone when it returns. The goroutine of a stream is there for hours: whatever it calls that goes deep
// (certificates, commits) would leave it a stack that is several times what it needs to wait. A panic of f is one of the caller's.
func Aside(f func()) {
	var failed any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { failed = recover() }()
		f()
	}()
	<-done
	if failed != nil {
		panic(failed)
	}
}

// EndStream ends the context of a request.
func EndStream(ctx context.Context) {
	if p := peerOf(ctx); p.cancel != nil {
		p.cancel()
	}
}

// StopStream makes the read of a stream's request that waits, and every later one, fail, and gives the end of its answer the time of a request.
func StopStream(ctx context.Context) {
	if p, ok := ctx.Value(peerKey{}).(*peer); ok {
		_ = p.control.SetReadDeadline(time.Unix(1, 0)) // every server connection supports it
		_ = p.control.SetWriteDeadline(time.Now().Add(requestTimeout))
	}
}

func peerOf(ctx context.Context) *peer {
	if p, ok := ctx.Value(peerKey{}).(*peer); ok {
		return p
	}
	return &peer{}
}

// Caller is who sent the request; the zero Caller for strangers.
func Caller(ctx context.Context) policy.Caller {
	return peerOf(ctx).caller
}

// Address is where the request comes from, without the port.
func Address(ctx context.Context) string {
	return peerOf(ctx).address
}

// Network is what strangers at the request's address are counted as: the address, in IPv6 its network of 64 bits.
func Network(ctx context.Context) string { return network(Address(ctx)) }

// Until is when what the caller showed ends; zero for strangers.
func Until(ctx context.Context) time.Time {
	return peerOf(ctx).until
}

// Certificate is the verified certificate of the caller, nil for strangers and sessions.
func Certificate(ctx context.Context) *x509.Certificate {
	return peerOf(ctx).certificate
}

// Connection is the state of the request's TLS connection.
func Connection(ctx context.Context) tls.ConnectionState {
	if p := peerOf(ctx); p.state != nil {
		return *p.state
	}
	return tls.ConnectionState{}
}
