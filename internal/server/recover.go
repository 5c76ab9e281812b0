package server

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/recovery"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/wire"
	"github.com/rotorkms/rotor/internal/wire/native"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

// serveRecovery serves what a server in recovery mode does: it is alive, it is not ready, and it says why to who may ask.
func (s *Server) serveRecovery(ctx context.Context, group *errgroup.Group, run context.Context) error {
	c := s.config
	found := s.guard.Detected()
	c.Log.ErrorContext(ctx, "recovery mode: the store is not the one that it was, nothing is served", "detected", found[0].String(), "count", len(found))
	a, err := authn.New(ctx, authn.Config{Guard: s.guard, TrustDomain: c.TrustDomain, Namespace: c.Namespace, Now: c.Now})
	if err != nil {
		return errors.Join(fault.New(fault.Recovery, found[0].String()), err) // without its certificate authority it cannot even say so
	}
	s.authority = a
	s.guard.SetRules(a.Decider(s.rules))
	tlsConfig := a.Server(s.hosts(c)...)
	s.live.Store(&settings{config: c, certificate: tlsConfig.GetCertificate})
	if err := s.bind(ctx); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", alive)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "recovery mode", http.StatusServiceUnavailable)
	})
	why, n := fault.New(fault.Recovery, found[0].String()), s.node(func(context.Context) bool { return false })
	vault.MountSealed(mux, why, n)
	s.local.answer(vault.Status(why, n))
	native.MountRecovery(mux, native.Config{
		Guard: s.guard, Authority: a, Seals: s.seals, Dir: c.Dir, Now: c.Now, Log: c.Log,
		Recovery: recovery.New(recovery.Config{Guard: s.guard, Seals: s.seals, Delay: c.RecoverWait, Now: c.Now, Log: c.Log}),
	})
	front := wire.NewServer(wire.Config{TLS: tlsConfig, Identifier: a, Handler: mux, Fronts: []wire.Front{native.Front(), vault.SealedFront(), healthFront()}, Now: c.Now, Log: c.Log})
	s.http = front
	live, end := context.WithCancel(run)
	loops, live := errgroup.WithContext(live)
	loops.Go(func() error { return a.Run(live) })
	for _, l := range s.listen(tlsConfig) {
		loops.Go(func() error { return front.Serve(l) })
	}
	group.Go(func() error {
		defer end()
		recovered := s.awaitRecovered(live)
		if recovered {
			drain, cancel := context.WithTimeout(run, askAgain)
			front.Shutdown(drain)
			cancel()
		}
		end()
		if err := loops.Wait(); err != nil || !recovered {
			return err
		}
		return s.resume(run, group)
	})
	return nil
}

// awaitRecovered returns when the recovery, at whatever server of the store, has come to its end; false when ctx has.
func (s *Server) awaitRecovered(ctx context.Context) bool {
	tick := time.NewTicker(anchorEvery)
	defer tick.Stop()
	for over := false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
		if over {
			return true
		}
		over = len(s.guard.Detected()) == 0 // once more, so that who asked for the recovery has the answer
	}
}

// resume serves after a recovery, with the store that is open: custodians do not have to come again.
func (s *Server) resume(run context.Context, group *errgroup.Group) error {
	s.turning.Lock()
	defer s.turning.Unlock()
	ctx, cancel := context.WithCancel(run)
	defer cancel()
	go func() { // ends with this function
		select {
		case <-s.quit:
			cancel()
		case <-ctx.Done():
		}
	}()
	select {
	case <-s.quit:
		return nil
	default:
	}
	s.config.Log.InfoContext(ctx, "the store was recovered", "incarnation", s.guard.Incarnation())
	rules, sum, err := hashedRules(s.config.Rules)
	if err != nil {
		return err
	}
	s.guard.SetRules(rules)
	s.rules = rules
	err = s.startServing(ctx, run, group, sum)
	if err != nil && ctx.Err() != nil { // the server is being stopped
		return nil
	}
	return err
}

// awaitSuspended ends the server when something shows that its store is not the one that it was; it starts again in recovery mode.
func (s *Server) awaitSuspended(ctx context.Context, g *guard.Guard) error {
	select {
	case <-g.Suspended():
		found := g.Detected()
		s.config.Log.ErrorContext(ctx, "the server goes to recovery mode", "detected", found[0].String())
		s.endFor(fault.New(fault.Recovery, found[0].String()), "")
	case <-ctx.Done():
	}
	return nil
}

// RecoverOptions say how to recover.
type RecoverOptions struct {
	By     string // who asks, for the log
	Log    string // directory of an exported audit log that is newer than the store; "": none
	Cancel bool
	Shares []string // of custodians, enough to open the store and to approve the recovery; secret
}

// Recover brings a store that is not the one that it was back into use, while the server is stopped: the first call announces it, one after
// the configured delay does it; one with enough shares opens the store with them, and does both. fault.WrongState when nothing is wrong,
// ShareWrong, ShareForeign, ShareDuplicate, Sealed with too few shares.
func Recover(ctx context.Context, c Config, o RecoverOptions) (out recovery.State, err error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return out, err
	}
	return out, c.offlineWith(ctx, o.Shares, func(ctx context.Context, g *guard.Guard, custodians *sealing.Keeper) error {
		r := recovery.New(recovery.Config{Guard: g, Seals: custodians, Delay: c.RecoverWait, Now: c.Now, Log: c.Log})
		var err error
		if o.Cancel {
			out, err = r.Cancel(ctx)
			return err
		}
		var newer recovery.Past
		if o.Log != "" {
			newer = func() (*guard.Past, error) { return newerLog(os.DirFS(o.Log), g) }
		}
		if out, err = r.Recover(ctx, o.By, newer); err == nil && !out.Done && len(o.Shares) > 0 {
			out, err = approvedBy(ctx, r, o, newer)
		}
		if err != nil || !out.Done {
			return err
		}
		if _, err = c.anchor(g, -1); err != nil {
			return err
		}
		a, err := authn.New(ctx, authn.Config{Guard: g, TrustDomain: c.TrustDomain, Namespace: c.Namespace, Now: c.Now})
		if err == nil {
			err = c.keepSealedCertificate(a, c.hosts()) // a machine that never had it could not ask for shares
		}
		if err != nil {
			c.Log.WarnContext(ctx, "no certificate for a sealed server", "error", err)
		}
		return nil
	})
}

// approvedBy approves a recovery with the shares that opened the store, and does it.
func approvedBy(ctx context.Context, r *recovery.Service, o RecoverOptions, newer recovery.Past) (recovery.State, error) {
	for _, s := range o.Shares {
		p, err := r.Approve(ctx, policy.Caller{Kind: policy.KindSystem, Name: "system/" + o.By}, "", secret.Copy([]byte(s)))
		if err != nil {
			return recovery.State{}, err
		}
		if p.Done() {
			break
		}
	}
	return r.Recover(ctx, o.By, newer)
}

// newerLog reads an exported log. fault.AuditBroken.
func newerLog(log fs.FS, g *guard.Guard) (*guard.Past, error) {
	past := guard.NewPast()
	_, err := audit.Read(log, g.CheckpointKey(), past.Add)
	return past, err
}
