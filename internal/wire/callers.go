package wire

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rpc"
)

// Limits of one caller, or of one address of strangers, and of the server.
const (
	maxConnections = 20_000
	maxInFlight    = maxStreams // requests that are no streams
	maxNobody      = 64         // the same, of strangers
	maxOpen        = 16         // streams
	maxBodies      = 64 << 20   // bytes of the bodies of requests that are no streams
	maxLarge       = 128 << 20  // the same of all callers together, of what is beyond smallBody: a body takes several times its length until it is answered
	smallBody      = 1 << 20    // bytes of a body that count for its caller alone, so that large ones keep no small ones out
)

// load is what one caller has in flight.
type load struct {
	requests, streams int
	bodies            atomic.Int64 // bytes
}

// callers knows who is connected and what they have in flight.
type callers struct {
	mu       sync.Mutex          // guards what follows
	open     map[net.Conn]string // connections, with the instance that they were seen to be of
	loads    map[string]*load
	streams  map[*peer]bool
	draining bool

	large atomic.Int64 // bytes of bodies beyond smallBody
}

func newCallers() *callers {
	return &callers{open: map[net.Conn]string{}, loads: map[string]*load{}, streams: map[*peer]bool{}}
}

// counts takes a new connection, unless there are too many.
func (s *callers) counts(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= maxConnections {
		return false
	}
	s.open[c] = ""
	return true
}

// connState follows connections to their end.
func (s *callers) connState(c net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// abort closes a connection without the farewell of TLS, which can block.
func abort(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	_ = c.Close() // it is given up
}

// enter counts a request until leave is called. The context of a stream ends when the server drains, and at its end, if it has one.
// fault.Unavailable.
func (s *callers) enter(ctx context.Context, p *peer, stream bool, end time.Duration) (_ context.Context, leave func(), err error) {
	c, name := p.caller, p.caller.Name
	if c.IsZero() {
		name = "stranger at " + network(p.address)
	}
	ctx, stop := bounded(ctx, end)
	p.cancel = stop
	s.mu.Lock()
	defer s.mu.Unlock()
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	if _, known := s.open[conn]; known && c.Instance != "" && c.Session == "" {
		s.open[conn] = c.Instance
	}
	l := s.loads[name]
	if l == nil {
		l = &load{}
		s.loads[name] = l
	}
	n, most := &l.requests, maxInFlight
	if c.IsZero() {
		most = maxNobody
	}
	if stream {
		n, most = &l.streams, maxOpen
	}
	if *n >= most || stream && s.draining {
		stop()
		return ctx, nil, fault.New(fault.Unavailable, "server").WithHint("at most %d at a time for one caller, and none while the server stops", most)
	}
	*n++
	if stream {
		s.streams[p] = true
	}
	p.load, p.large = l, &s.large
	return ctx, func() {
		stop()
		l.bodies.Add(-p.body.Load())
		s.large.Add(-max(p.body.Load()-smallBody, 0))
		s.mu.Lock()
		defer s.mu.Unlock()
		*n--
		delete(s.streams, p)
		if l.requests+l.streams == 0 && s.loads[name] == l {
			delete(s.loads, name)
		}
	}, nil
}

// metered is a body whose bytes count for its caller until the request ends.
type metered struct {
	io.ReadCloser
	peer *peer
}

func (m metered) Read(b []byte) (int, error) {
	n, err := m.ReadCloser.Read(b)
	all := m.peer.body.Add(int64(n))
	if beyond := min(int64(n), max(all-smallBody, 0)); beyond > 0 && m.peer.large.Add(beyond) > maxLarge {
		return 0, rpc.Encode(fault.New(fault.Unavailable, "server").WithHint("at most %d MiB of large requests at a time; ask again", maxLarge>>20))
	}
	if m.peer.load.bodies.Add(int64(n)) > maxBodies {
		return 0, rpc.Encode(fault.New(fault.Unavailable, "server").WithHint("at most %d MiB of requests at a time for one caller", maxBodies>>20))
	}
	return n, err
}

// bounded is a context that ends after a time, if there is one.
func bounded(ctx context.Context, end time.Duration) (context.Context, context.CancelFunc) {
	if end == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, end)
}

// drain ends all streams and lets no new one begin.
func (s *callers) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for p := range s.streams {
		p.cancel()
	}
}

// end ends the streams of some callers.
func (s *callers) end(meant func(policy.Caller) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.streams {
		if meant(p.caller) {
			p.cancel()
		}
	}
}

// streaming are those who have streams.
func (s *callers) streaming() []*peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.streams))
}

func (s *callers) cut(instance string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, of := range s.open {
		if of == instance && instance != "" {
			abort(c)
		}
	}
}

// Load is what a server has to do at one moment.
type Load struct {
	Connections, Requests, Streams int
}

// Load counts what is open.
func (s *Server) Load() Load {
	s.callers.mu.Lock()
	defer s.callers.mu.Unlock()
	out := Load{Connections: len(s.callers.open)}
	for _, l := range s.callers.loads {
		out.Requests, out.Streams = out.Requests+l.requests, out.Streams+l.streams
	}
	return out
}
