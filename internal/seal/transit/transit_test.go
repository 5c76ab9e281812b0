package transit_test

import (
	"crypto/rand"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/sealtest"
	"github.com/rotorkms/rotor/internal/seal/transit"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/testenv"
)

const token = testenv.TransitToken

// peer is a transit engine that can be away, or slow.
type peer struct {
	t      *testing.T
	engine *testenv.Transit
	http   *httptest.Server
	ca     string

	mu    sync.Mutex // guards what follows
	down  bool
	stall chan struct{} // not nil: requests wait until it is closed
	asked chan struct{}
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	engine, err := testenv.NewTransit("")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, engine: engine, asked: make(chan struct{}, 16)}
	p.http = httptest.NewTLSServer(p)
	t.Cleanup(p.http.Close)
	p.ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(p.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.http.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// ServeHTTP implements http.Handler.
func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	stall, down := p.stall, p.down
	p.mu.Unlock()
	if stall != nil {
		p.asked <- struct{}{}
		select {
		case <-stall:
		case <-r.Context().Done(): // an answer now could overtake the end of the connection
			panic(http.ErrAbortHandler)
		}
	}
	if down {
		testenv.TransitFail(w, http.StatusServiceUnavailable, "Vault is sealed")
		return
	}
	p.engine.ServeHTTP(w, r)
}

func (p *peer) config(key string) transit.Config {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return transit.Config{Address: p.http.URL, Mount: "transit", Key: key, TokenFile: path, CAFile: p.ca}
}

func open(t *testing.T, c transit.Config) *transit.Sealer {
	t.Helper()
	s, err := transit.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealer(t *testing.T) {
	p := newPeer(t)
	configs := map[string]transit.Config{}
	sealtest.Run(t, sealtest.Root{
		Edits: 40,
		New: func(t *testing.T) seal.Sealer {
			c := p.config("root-" + strings.ToLower(rand.Text()))
			s := open(t, c)
			configs[s.ID()] = c
			return s
		},
		Again: func(t *testing.T, s seal.Sealer) seal.Sealer { return open(t, configs[s.ID()]) },
		Offline: func(*testing.T, seal.Sealer) func() {
			set := func(down bool) { p.mu.Lock(); p.down = down; p.mu.Unlock() }
			set(true)
			return func() { set(false) }
		},
		Stall: func(*testing.T, seal.Sealer) (<-chan struct{}, func()) {
			p.mu.Lock()
			defer p.mu.Unlock()
			stall := make(chan struct{})
			p.stall = stall
			return p.asked, func() {
				p.mu.Lock()
				p.stall = nil
				p.mu.Unlock()
				close(stall)
			}
		},
	})
}

// TestToken: a token that was taken away makes the root unavailable, whoever writes a new one brings it back, and no error tells it.
func TestToken(t *testing.T) {
	p := newPeer(t)
	c := p.config("root")
	s := open(t, c)
	root := secret.Random(32)
	blob, err := s.Wrap(t.Context(), root, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"another": func() error { return os.WriteFile(c.TokenFile, []byte("s.stale-token"), 0o600) },
		"gone":    func() error { return os.Remove(c.TokenFile) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Unwrap(t.Context(), blob); !r.IsZero() || !errors.Is(err, seal.ErrUnavailable) || strings.Contains(err.Error(), "stale") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(c.TokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Unwrap(t.Context(), blob); err != nil || !r.Equal(root) {
		t.Error(err)
	}
}

// TestForgetDeletes: the keys of forgotten generations are gone from the server, and nobody else's.
func TestForgetDeletes(t *testing.T) {
	p := newPeer(t)
	s, other := open(t, p.config("root")), open(t, p.config("root-1"))
	for g := range uint64(3) {
		for _, x := range []*transit.Sealer{s, other} {
			if _, err := x.Wrap(t.Context(), secret.Random(32), g); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Forget(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]bool{"root-0": false, "root-1": false, "root-2": true, "root-1-0": true, "root-1-1": true, "root-1-2": true} {
		if got := slices.Contains(p.engine.Keys(), key); got != want {
			t.Errorf("%s: %t", key, got)
		}
	}
}

func TestNew(t *testing.T) {
	p := newPeer(t)
	for name, change := range map[string]func(*transit.Config){
		"no TLS":       func(c *transit.Config) { c.Address = "http://127.0.0.1:8200" },
		"a path":       func(c *transit.Config) { c.Address += "/v1" },
		"a password":   func(c *transit.Config) { c.Address = "https://a:b@127.0.0.1" },
		"no mount":     func(c *transit.Config) { c.Mount = "" },
		"up":           func(c *transit.Config) { c.Mount = "transit/../sys" },
		"a key's path": func(c *transit.Config) { c.Key = "a/b" },
		"no token":     func(c *transit.Config) { c.TokenFile = "" },
		"CA not PEM":   func(c *transit.Config) { c.CAFile = c.TokenFile },
	} {
		c := p.config("root")
		change(&c)
		if _, err := transit.New(c); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := p.config("root")
	c.CAFile = ""
	if _, err := open(t, c).Wrap(t.Context(), secret.Random(32), 1); !errors.Is(err, seal.ErrUnavailable) {
		t.Errorf("a certificate of nobody's: %v", err)
	}
}
