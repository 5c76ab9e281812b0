// Package wire is the listener under every front end: TLS, limits, and who the caller is. A front end gets requests of known
// callers alone; the few paths that answer strangers are named here and nowhere else.
package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rpc"
)

// Limits of every request.
const (
	MaxMessage     = 4 << 20          // of one request or stream message, in bytes
	headerTimeout  = 10 * time.Second // to send the request's header
	requestTimeout = 30 * time.Second // to send the body and take the answer, but for streams
	idleTimeout    = 2 * time.Minute
	pingEvery      = 15 * time.Second // silence of a connection after which it is asked for a sign of life
	pingTimeout    = 10 * time.Second
	maxStreams     = 1024 // of one connection
)

// Strangers are the path prefixes that answer without a certificate: health, JWKS and join.
func Strangers() []string {
	return []string{"/healthz", "/readyz", "/.well-known/jwks.json", "/rotor.v1.JoinService/"}
}

// streams are the paths without a time limit: their messages have their own.
var streams = []string{"/rotor.v1.FleetService/Hold", "/rotor.v1.AuditService/"}

// Identifier names the caller behind a connection.
type Identifier interface {
	// Identify returns the caller; expired also takes certificates that ended lately. fault.Unauthenticated.
	Identify(s tls.ConnectionState, expired bool) (policy.Caller, error)
}

// Config is what a listener needs.
type Config struct {
	TLS        *tls.Config
	Identifier Identifier
	Handler    http.Handler // the front ends
	Log        *slog.Logger
}

// NewServer makes the HTTP server. Its caller serves and shuts it down.
func NewServer(c Config) *http.Server {
	return &http.Server{
		TLSConfig: c.TLS, Handler: limit(authenticate(c.Identifier, c.Handler)), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingEvery, PingTimeout: pingTimeout, MaxConcurrentStreams: maxStreams},
	}
}

// Listen opens a TCP listener for TLS.
func Listen(ctx context.Context, address string, c *tls.Config) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "listen on "+address, err)
	}
	return tls.NewListener(l, c), nil
}

func limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hasPrefix(r.URL.Path, streams) {
			end := time.Now().Add(requestTimeout)
			c := http.NewResponseController(w)
			_ = c.SetReadDeadline(end) // every server connection supports it
			_ = c.SetWriteDeadline(end)
			r.Body = http.MaxBytesReader(w, r.Body, MaxMessage)
		}
		next.ServeHTTP(w, r)
	})
}

func hasPrefix(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// peer is who stands behind a request.
type peer struct {
	caller      policy.Caller
	certificate *x509.Certificate
	state       tls.ConnectionState
}

type peerKey struct{}

func authenticate(id Identifier, next http.Handler) http.Handler {
	errors := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var p peer
		err := error(fault.New(fault.Unauthenticated, "caller"))
		if r.TLS != nil {
			p.state = *r.TLS
			p.caller, err = id.Identify(*r.TLS, false)
			if err == nil {
				p.certificate = r.TLS.PeerCertificates[0]
			}
		}
		if err != nil && !hasPrefix(r.URL.Path, Strangers()) {
			deny(w, r, errors, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, p)))
	})
}

func deny(w http.ResponseWriter, r *http.Request, errors *connect.ErrorWriter, err error) {
	if errors.IsSupported(r) {
		_ = errors.Write(w, r, rpc.Encode(err)) // the client is gone when this fails
		return
	}
	http.Error(w, err.Error(), http.StatusUnauthorized)
}

// Caller is who sent the request; the zero Caller for strangers.
func Caller(ctx context.Context) policy.Caller {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p.caller
}

// Certificate is the verified certificate of the caller, nil for strangers.
func Certificate(ctx context.Context) *x509.Certificate {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p.certificate
}

// Connection is the state of the request's TLS connection.
func Connection(ctx context.Context) tls.ConnectionState {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p.state
}
