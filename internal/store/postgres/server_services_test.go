//go:build services

package postgres_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/postgres"
	"github.com/rotorkms/rotor/internal/store/storetest"
	"github.com/rotorkms/rotor/internal/testenv"
)

// quiet is for tests that break connections on purpose.
var quiet = slog.New(slog.DiscardHandler)

func mustOpen(t testing.TB, url string, o postgres.Options) *postgres.Store {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet
	}
	s, err := postgres.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func mustCommit(t testing.TB, s store.Store, ops ...store.Op) store.Rev {
	t.Helper()
	rev, err := s.Commit(t.Context(), nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func mustGet(t testing.TB, s store.Store, key string) string {
	t.Helper()
	r, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return string(r.Value)
}

var schemas atomic.Int64

// fresh is the URL of a store that nobody has used.
func fresh(url string) string { return fmt.Sprintf("%s?schema=s%d", url, schemas.Add(1)) }

// exec runs SQL as the server's administrator.
func exec(t testing.TB, url string, sql ...string) {
	t.Helper()
	base, _, _ := strings.Cut(url, "?")
	conn, err := pgx.Connect(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, q := range sql {
		if _, err := conn.Exec(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// schemaOf is the schema that a URL of fresh names.
func schemaOf(url string) string {
	_, schema, _ := strings.Cut(url, "?schema=")
	return schema
}

// proxy forwards to the server, and breaks what a test wants broken.
type proxy struct {
	t    testing.TB
	l    net.Listener
	to   string
	wg   sync.WaitGroup
	shut atomic.Bool // new connections are refused

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]bool
	limit func(up bool, b []byte) (n int, cut bool) // how much of it passes
}

func newProxy(t testing.TB, port int) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, l: l, to: fmt.Sprintf("127.0.0.1:%d", port), conns: map[net.Conn]bool{}}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// url is the server's URL by way of the proxy.
func (p *proxy) url(direct string) string {
	return strings.Replace(direct, p.to, p.l.Addr().String(), 1)
}

func (p *proxy) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		if p.shut.Load() {
			c.Close()
			continue
		}
		s, err := net.Dial("tcp", p.to)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[s] = true, true
		p.mu.Unlock()
		listens := new(atomic.Bool)
		p.wg.Go(func() { p.pipe(s, c, true, listens) })
		p.wg.Go(func() { p.pipe(c, s, false, listens) })
	}
}

// pipe forwards one direction. What waits for notifications is not limited.
func (p *proxy) pipe(dst, src net.Conn, up bool, listens *atomic.Bool) {
	defer dst.Close()
	defer src.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := src.Read(b)
		if err != nil {
			return
		}
		if up && bytes.Contains(b[:n], []byte("LISTEN ")) {
			listens.Store(true)
		}
		p.mu.Lock()
		limit, cut := p.limit, false
		if limit != nil && !listens.Load() {
			n, cut = limit(up, b[:n])
		}
		p.mu.Unlock()
		if _, err := dst.Write(b[:n]); err != nil {
			return
		}
		if cut && up { // what passed arrives, and no answer comes back
			src.Close()
			dst.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, dst)
		}
		if cut {
			return
		}
	}
}

// cut breaks every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// limited sets what passes; nil: everything.
func (p *proxy) limited(f func(up bool, b []byte) (int, bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = f
}

func TestStore(t *testing.T) {
	server := testenv.Postgres(t)
	p := newProxy(t, server.Port)
	url := ""
	reopen := func(t *testing.T, history int) store.Store {
		return mustOpen(t, url, postgres.Options{History: history})
	}
	storetest.Run(t, storetest.Engine{
		Open: func(t *testing.T, history int) store.Store {
			url = fresh(p.url(server.URL))
			return reopen(t, history)
		},
		Reopen: reopen, Again: reopen, Cut: p.cut,
	})
}
