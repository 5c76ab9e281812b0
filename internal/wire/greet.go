package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// greeter makes the TLS connections of a listener, each in a goroutine that ends with the handshake. net/http would make them in the goroutine
// that then serves the connection, whose stack grows for the handshake (ML-KEM, certificates) and stays large as long as a quiet stream is held.
type greeter struct {
	net.Listener
	callers *callers
	log     *slog.Logger

	limit time.Duration

	ready chan net.Conn
	fails chan error // of the listener
	ctx   context.Context
	stop  context.CancelFunc
	work  sync.WaitGroup
}

// greeter begins to accept connections of a listener of TLS.
func (s *Server) greeter(l net.Listener) *greeter {
	g := &greeter{Listener: l, callers: s.callers, log: s.log, limit: s.greet, ready: make(chan net.Conn), fails: make(chan error)}
	g.ctx, g.stop = context.WithCancel(context.Background())
	g.work.Go(g.accept)
	return g
}

// accept ends with the listener.
func (g *greeter) accept() {
	for g.ctx.Err() == nil {
		c, err := g.Listener.Accept()
		if err != nil {
			select {
			case g.fails <- err: // net/http decides whether it asks again
				continue
			case <-g.ctx.Done():
				return
			}
		}
		if !g.callers.counts(c) {
			abort(c)
			continue
		}
		g.work.Go(func() { g.shake(c) })
	}
}

// shake hands over a connection once it is one.
func (g *greeter) shake(c net.Conn) {
	done := false
	defer func() {
		if r := recover(); r != nil {
			g.log.Error("panic in a handshake", "panic", r, "stack", string(debug.Stack()))
		}
		if !done {
			g.callers.connState(c, http.StateClosed)
			abort(c)
		}
	}()
	if t, ok := c.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(g.ctx, g.limit)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			g.log.Debug("no TLS connection", "from", c.RemoteAddr(), "error", err)
			plain(err)
			return
		}
	}
	select {
	case g.ready <- c:
		done = true
	case <-g.ctx.Done():
	}
}

// toPlain is what is told to a client that speaks HTTP without TLS, in the form that Vault's clients show.
const toPlain = "HTTP/1.0 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" +
	`{"errors":["this is HTTP without TLS: the address of the server begins with https://"]}` + "\n"

// plain tells a client so whose first bytes are those of an HTTP request. Nobody waits for it: what is told fits into the socket's buffer.
func plain(err error) {
	var h tls.RecordHeaderError
	if !errors.As(err, &h) || h.Conn == nil || !slices.Contains([]string{"GET /", "HEAD ", "POST ", "PUT /", "LIST ", "PATCH", "DELET", "OPTIO"}, string(h.RecordHeader[:])) {
		return
	}
	_ = h.Conn.SetWriteDeadline(time.Now().Add(time.Second)) // it is closed next, whatever comes of it
	_, _ = io.WriteString(h.Conn, toPlain)
}

// Accept implements net.Listener.
func (g *greeter) Accept() (net.Conn, error) {
	select {
	case c := <-g.ready:
		return c, nil
	case err := <-g.fails:
		return nil, err
	case <-g.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener: handshakes that are under way are given up.
func (g *greeter) Close() error {
	g.stop()
	err := g.Listener.Close()
	g.work.Wait()
	return err
}
