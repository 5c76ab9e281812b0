//go:build services

package etcd_test

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy forwards to a member, and cuts connections.
type proxy struct {
	t  testing.TB
	to string
	l  net.Listener

	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]bool
	closed bool
	wait   sync.WaitGroup
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, to: to, l: l, conns: map[net.Conn]bool{}}
	p.wait.Go(p.serve)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		l.Close()
		p.cut()
		p.wait.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.l.Addr().String() }

func (p *proxy) serve() {
	for {
		down, err := p.l.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.to)
		if err != nil { // the member is down
			down.Close()
			continue
		}
		p.mu.Lock()
		if p.closed {
			down.Close()
			up.Close()
		}
		p.conns[down], p.conns[up] = true, true
		p.mu.Unlock()
		p.wait.Go(func() { p.pipe(up, down) })
		p.wait.Go(func() { p.pipe(down, up) })
	}
}

func (p *proxy) pipe(dst, src net.Conn) {
	io.Copy(dst, src)
	dst.Close()
	src.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, src)
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}
