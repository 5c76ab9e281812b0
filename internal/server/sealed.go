package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/telemetry"
	"github.com/rotorkms/rotor/internal/wire"
	"github.com/rotorkms/rotor/internal/wire/native"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

const (
	sealedFile    = "sealed.pem" // certificate and key for the time without an authority
	authorityFile = "ca.pem"     // certificate of the authority
	askAgain      = 5 * time.Second
)

// closed says whether a store did not open because its roots of trust are away or people have to come: it may open later.
func closed(err error) bool {
	return fault.CodeOf(err) == fault.Sealed || fault.CodeOf(err) == fault.Unavailable && errors.Is(err, seal.ErrUnavailable)
}

// nobody is the identifier of a sealed server: there is no authority to know anybody by. It says why the server is sealed.
type nobody struct{ why error }

// Identify implements wire.Identifier.
func (n nobody) Identify(tls.ConnectionState, bool) (policy.Caller, error) {
	return policy.Caller{}, n.why
}

// Session implements wire.Identifier.
func (n nobody) Session(context.Context, string, string) (policy.Caller, time.Time, error) {
	return policy.Caller{}, time.Time{}, n.why
}

// startSealed listens, takes shares and answers nothing else until the store opens; then it goes on as start does. A server that was never open has no
// certificate yet to show on the network, and takes them over its local socket alone.
func (s *Server) startSealed(ctx context.Context, why error) error {
	certificate, missing := s.sealedCertificate()
	if missing != nil && s.local == nil {
		return missing
	}
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{certificate},
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
	}
	if err := s.bind(ctx); err != nil {
		return err
	}
	s.seals.Explain(s.config.SealedFor)
	s.config.Log.WarnContext(ctx, "the server is sealed", "reason", s.seals.Why(), "error", why, "listen", s.address)
	sealed := wire.NewServer(wire.Config{
		TLS: c, Identifier: nobody{s.seals.Why().Fault()}, Handler: s.sealedMux(), Fronts: []wire.Front{native.Front(), vault.SealedFront(), healthFront("/metrics")}, Now: s.config.Now, Log: s.config.Log,
	})
	var serving errgroup.Group // ends with Shutdown, below
	if missing != nil {
		s.config.Log.WarnContext(ctx, "it takes shares over the local socket alone, until it was open once", "socket", s.config.Socket, "error", missing)
	} else {
		for _, l := range s.listen(c) {
			serving.Go(func() error { return sealed.Serve(l) })
		}
	}
	go func() { // ends with the server; Wait waits for it
		g, err := s.awaitOpen(context.WithoutCancel(ctx))
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), askAgain)
		defer cancel()
		if err == nil && g != nil { // whoever brought the last share hears of it once the next client waits for the server that serves
			sealed.OnClosed(func() { close(s.unsealed) })
		}
		sealed.Shutdown(drain)
		err = errors.Join(err, serving.Wait())
		if err == nil && g != nil {
			err = s.startOpen(context.WithoutCancel(ctx), g)
			if err == nil {
				return
			}
		}
		s.err = errors.Join(err, s.unbind(), s.store.Close(), s.tracing.Stop(drain))
		s.end()
	}()
	return nil
}

// awaitOpen waits until the store opens: by shares, or because a root of trust can be reached again. nil when the server is closed.
func (s *Server) awaitOpen(ctx context.Context) (*guard.Guard, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // ends with ctx: a root that does not answer does not keep the server from closing
		select {
		case <-s.quit:
			stop()
		case <-ctx.Done():
		}
	}()
	again := time.NewTimer(s.firstAsk())
	defer again.Stop()
	for {
		select {
		case <-s.quit:
			return nil, nil
		case <-s.seals.Enough():
		case <-again.C:
			again.Reset(askAgain)
			if s.config.SealedFor == sealing.Told { // so only people open it
				continue
			}
		}
		g, err := s.open(ctx)
		switch {
		case ctx.Err() != nil:
			if err == nil {
				g.Destroy()
			}
			return nil, nil
		case err == nil:
			s.config.Log.InfoContext(ctx, "the server is open")
			return g, nil
		case !closed(err) && fault.CodeOf(err) != fault.SealWrong:
			return nil, err
		}
		s.config.Log.WarnContext(ctx, "the store does not open yet", "error", err)
	}
}

// firstAsk is when the roots are asked first: at once by a server that has sealed itself, for it has not been started in vain just now.
func (s *Server) firstAsk() time.Duration {
	if s.config.SealedFor == sealing.Held {
		return 0
	}
	return askAgain
}

// sealedMux is all that a sealed server answers. Nobody can show a right, so its metrics say no more than its status, which strangers may ask for.
func (s *Server) sealedMux() *http.ServeMux {
	mux, why := http.NewServeMux(), s.seals.Why().Fault()
	mux.HandleFunc("/healthz", alive)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		wire.Failed(r.Context(), why)
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, fmt.Sprintf("sealed (%s): %s", s.seals.Why(), why.HintText()), http.StatusServiceUnavailable)
	})
	mux.Handle("GET /metrics", telemetry.Sealed(string(s.seals.Why())))
	native.MountSeal(mux, s.seals, s.config.Log)
	n := s.node(func(ctx context.Context) bool {
		select {
		case <-s.unsealed:
			return true
		case <-ctx.Done():
		case <-s.quit:
		}
		return false
	})
	vault.MountSealed(mux, why, n)
	n.Trusted = true
	s.local.answer(vault.Status(why, n))
	writer := connect.NewErrorWriter()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		wire.Failed(r.Context(), why)
		if writer.IsSupported(r) {
			_ = writer.Write(w, r, rpc.Encode(why)) // the client is gone when this fails
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, why.Error()+"\n") // the client is gone when this fails
	})
	return mux
}

// node is what a server that does not serve says of itself. opened waits for its store.
func (s *Server) node(opened func(context.Context) bool) vault.Node {
	engine, _ := engineOf(s.config.Store) // validate has asked it
	return vault.Node{
		About: func(context.Context) vault.About {
			return vault.About{Version: Version, Engine: engine, Address: s.Advertised(), Shared: s.keeper != nil}
		},
		Seals: s.seals, Now: s.config.Now, Opened: opened,
	}
}

// sealedCertificate reads what init and every start leave for this time.
func (s *Server) sealedCertificate() (tls.Certificate, error) {
	path := filepath.Join(s.config.Dir, sealedFile)
	c, err := readCertificate(path)
	if err != nil {
		return c, fault.Wrap(fault.NotFound, "certificate of the sealed server", err).
			WithHint("%s is made by init and by every start that opens; copy it from another server of the cluster, or make it with the shares: rotor server admin NAME --share-file", path)
	}
	return c, nil
}

func readCertificate(path string) (tls.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return tls.Certificate{}, err
	}
	defer clear(b)
	return tls.X509KeyPair(b, b)
}

// keepSealedCertificate makes the certificate, or a new one at half of its life or of another authority, and leaves beside it that of the authority, by
// which people who have no identity know the sealed server.
func (c Config) keepSealedCertificate(a *authn.Authority, hosts []string) error {
	path, authority := filepath.Join(c.Dir, sealedFile), filepath.Join(c.Dir, authorityFile)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.CA().Raw})
	if old, err := os.ReadFile(authority); err != nil || !bytes.Equal(old, text) {
		if err := replaceFile(authority, text); err != nil {
			return err
		}
	}
	if old, err := readCertificate(path); err == nil && len(old.Certificate) == 2 && old.Leaf != nil &&
		old.Leaf.CheckSignatureFrom(a.CA()) == nil && c.Now().Before(old.Leaf.NotAfter.Add(-authn.SealedLife/2)) && covers(old.Leaf, hosts) {
		return nil
	}
	fresh, err := a.SealedCertificate(hosts...)
	if err != nil {
		return err
	}
	defer clear(fresh)
	return replaceFile(path, fresh)
}

// replaceFile writes a file of mode 0600 that is there as a whole or not at all.
func replaceFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after a rename
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func covers(leaf *x509.Certificate, hosts []string) bool {
	for _, h := range hosts {
		if leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

// seal stops the server because its root of trust is gone or somebody says so. Wait then returns why, which is fault.Sealed.
func (s *Server) seal(why sealing.Reason) { s.endFor(why.Fault(), why) }

// endFor stops the server because it is sealed, or because its store is not the one that it was or is so again. Wait then returns reason, which is
// fault.Sealed or Recovery.
func (s *Server) endFor(reason error, sealed sealing.Reason) {
	s.sealing.Do(func() {
		s.over, s.sealed = reason, sealed
		go func() { // ends with the server
			_ = s.CloseNow() // Wait tells
		}()
	})
}

// StartsAgain says whether Restart is what follows, of an error of Wait: the cluster that it waited for was made, the server has sealed itself, goes to recovery mode or comes from it, or was
// away for so long, frozen or cut off from the store, that what others committed meanwhile has gone from the store's history.
func StartsAgain(err error) bool {
	code := fault.CodeOf(err)
	return code == fault.Sealed || code == fault.Recovery || errors.Is(err, store.ErrCompacted) || errors.Is(err, errMade)
}

// Restart starts a server again, at the same address and with the configuration that it had last, for a reason of StartsAgain. Call it after Wait. One that
// has lost the thread of the store reads all of it anew and verifies it like any start, with the root key that it has open.
func (s *Server) Restart(ctx context.Context) (*Server, error) {
	c := s.live.Load().config
	if !s.waits {
		c.Listen = s.address
	}
	c.SealedFor, c.Before, c.Local = s.sealed, nil, s.local
	if errors.Is(s.err, store.ErrCompacted) {
		c.Before = s.guard
	}
	next, err := Start(ctx, c)
	if err == nil {
		next.sandboxed.Store(s.sandboxed.Load()) // which is the process's, for good
		next.sandbox.Store(s.sandbox.Load())
	}
	return next, err
}
