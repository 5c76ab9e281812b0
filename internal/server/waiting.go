package server

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

// initSecretFile is where a server that waits for its init leaves the enrolment secret.
const initSecretFile = "init-secret"

// errMade is why a server that waited for its init starts again.
var errMade = errors.New("the cluster was made")

// Waiting says whether the server waits for an init over the local socket.
func (s *Server) Waiting() bool { return s.waits }

// startWaiting answers on the local socket alone, until somebody who can read the server's directory makes the cluster. Wait then returns errMade.
func startWaiting(ctx context.Context, c Config) (*Server, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the server: %w", err)
	}
	secret := "rotor_init_" + base64.RawURLEncoding.EncodeToString(randomBytes(32))
	path := filepath.Join(c.Dir, initSecretFile)
	if err := replaceFile(path, []byte(secret+"\n")); err != nil {
		return nil, err
	}
	s := &Server{config: c, waits: true, local: c.Local, address: "unix:" + c.Socket, ended: make(chan struct{}), quit: make(chan struct{}), now: make(chan struct{}), opened: make(chan struct{})}
	s.live.Store(&settings{config: c})
	m := &maker{config: c, secret: secret, path: path, made: make(chan struct{})}
	n := s.node(func(context.Context) bool { return false })
	n.Seals, n.Init, n.Trusted = nil, m.make, true
	s.local.answer(vault.Status(fault.New(fault.Sealed, "server"), n))
	c.Log.WarnContext(ctx, "there is no cluster yet: the server waits for its init", "socket", c.Socket, "enrolment_secret", path)
	go func() { // ends with the server; Wait waits for it
		defer close(s.ended)
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			select {
			case <-m.made:
				s.err = errMade
				return
			case <-s.quit:
				m.giveUp()
				s.err = s.local.Close()
				return
			case <-look.C:
				m.look(context.WithoutCancel(ctx))
			}
		}
	}()
	return s, nil
}

// lookEvery is how often a server that waits for its init looks whether another one on the store had it.
const lookEvery = 2 * time.Second

// look goes on with the cluster that another server has made. A file has no other server.
func (m *maker) look(ctx context.Context) {
	if engine, err := engineOf(m.config.Store); err != nil || engine == engineBolt {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	c := m.config
	c.Log = slog.New(slog.DiscardHandler) // what it says of the store it has said at the start
	db, err := openMade(ctx, c)
	if err != nil {
		return // there is none yet, or the store does not answer
	}
	_ = db.Close() // it was read alone
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finish(ctx)
}

// randomBytes are n of them (crypto/rand).
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // it never fails
	return b
}

// maker makes the cluster once.
type maker struct {
	config Config
	secret string
	path   string // of the file with it
	made   chan struct{}

	mu   sync.Mutex // guards over; held over an init, so that there is one
	over bool
}

func (m *maker) giveUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	_ = os.Remove(m.path) // the next one makes another
}

// make is the init. fault.Denied without the enrolment secret, Exists, Invalid.
func (m *maker) make(ctx context.Context, r vault.InitRequest) (vault.InitAnswer, error) {
	if subtle.ConstantTimeCompare([]byte(r.Secret), []byte(m.secret)) != 1 {
		return vault.InitAnswer{}, fault.New(fault.Unauthenticated, "init").WithHint("the token is the enrolment secret in %s", m.path)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return vault.InitAnswer{}, fault.New(fault.Exists, "cluster in this store")
	}
	c := m.config
	c.Enrol, c.Root = true, true
	if r.Shares != 0 || r.Threshold != 0 {
		if err := shamir.CheckSizes(r.Threshold, r.Shares); err != nil {
			return vault.InitAnswer{}, err
		}
		c.InitSeals = []string{fmt.Sprintf("%s%d/%d", shamir.Prefix, r.Threshold, r.Shares)}
	}
	made, err := Init(ctx, c)
	if fault.CodeOf(err) == fault.Exists { // another server on the store was first
		m.finish(ctx)
	}
	if err != nil {
		return vault.InitAnswer{}, err
	}
	m.finish(ctx)
	return vault.InitAnswer{Shares: made.Shares, Token: made.RootToken, Enrolment: made.Enrolment, CheckpointKey: made.CheckpointKey}, nil
}

// finish has the server start again, in the cluster that there is. Call with mu held.
func (m *maker) finish(ctx context.Context) {
	if m.over {
		return
	}
	m.over = true
	if err := os.Remove(m.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.config.Log.WarnContext(ctx, "the enrolment secret, which is good for nothing any more, is still there", "error", err)
	}
	close(m.made)
}

// openMade opens the store of a cluster that was made. fault.NotFound when there is none, which a store of another kind than a file says when it is asked.
func openMade(ctx context.Context, c Config) (store.Store, error) {
	db, err := openExisting(ctx, c)
	if err != nil || c.Socket == "" {
		return db, err
	}
	if _, err := guard.ReadWraps(ctx, db); fault.CodeOf(err) == fault.NotFound {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// waitsForInit says whether there is a local socket to wait on and no cluster.
func waitsForInit(c Config, err error) bool {
	return c.Local != nil && fault.CodeOf(err) == fault.NotFound
}

// closeLocal closes the local socket of a server that did not start.
func (c Config) closeLocal(err error) error {
	if err == nil {
		return nil
	}
	return c.Local.Close()
}
