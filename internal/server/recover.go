package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/backup"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/recovery"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
	"github.com/rotorkms/rotor/internal/wire"
	"github.com/rotorkms/rotor/internal/wire/native"
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
	if s.listener, err = wire.Listen(ctx, c.Listen, tlsConfig); err != nil {
		return err
	}
	s.address = s.listener.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", alive)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "recovery mode", http.StatusServiceUnavailable)
	})
	native.MountRecovery(mux, native.Config{
		Guard: s.guard, Authority: a, Seals: s.seals, Dir: c.Dir, Now: c.Now, Log: c.Log,
		Recovery: recovery.New(recovery.Config{Guard: s.guard, Seals: s.seals, Delay: c.RecoverWait, Now: c.Now, Log: c.Log}),
	})
	front, listener := wire.NewServer(wire.Config{TLS: tlsConfig, Identifier: a, Handler: mux, Now: c.Now, Log: c.Log}), s.listener
	s.http = front
	live, end := context.WithCancel(run)
	loops, live := errgroup.WithContext(live)
	loops.Go(func() error { return a.Run(live) })
	loops.Go(func() error { return front.Serve(listener) })
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

// offline opens the store and its guard, whatever is wrong with it, for the time that f takes.
func (c Config) offline(ctx context.Context, f func(context.Context, *guard.Guard) error) error {
	return c.offlineWith(ctx, nil, func(ctx context.Context, g *guard.Guard, _ *sealing.Keeper) error { return f(ctx, g) })
}

// offlineWith is offline for a store that shares open; f gets the keeper that took them, nil without any.
func (c Config) offlineWith(ctx context.Context, shares []string, f func(context.Context, *guard.Guard, *sealing.Keeper) error) (err error) {
	db, err := openExisting(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	sealers, custodians, err := c.sealersWith(ctx, db, shares)
	if err != nil {
		return err
	}
	statements, err := c.statements()
	if err != nil {
		return err
	}
	g, err := guard.Open(ctx, guard.Config{Store: db, Sealers: sealers, Now: c.Now, Log: c.Log, Statements: statements, Recovery: true})
	if err != nil {
		return err
	}
	if custodians != nil {
		custodians.Opened(g)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }() // ends with ctx, below
	err = f(ctx, g, custodians)
	stop()
	return errors.Join(err, <-done)
}

// sealersWith are what a store may open with: what the configuration names, or what shares make of it together with that, and the keeper that took them.
func (c Config) sealersWith(ctx context.Context, db store.Store, shares []string) ([]seal.Sealer, *sealing.Keeper, error) {
	if len(shares) == 0 {
		sealers, err := storeSealers(ctx, c, db)
		return sealers, nil, err
	}
	wrapped, err := guard.ReadWraps(ctx, db)
	if err != nil {
		return nil, nil, err
	}
	custodians, err := c.custodians(ctx, wrapped.Wraps, shares)
	if err != nil {
		return nil, nil, err
	}
	return custodians.Sealers(), custodians, nil
}

// custodians takes shares for a wrap set.
func (c Config) custodians(ctx context.Context, wraps map[string][]byte, shares []string) (*sealing.Keeper, error) {
	named, _ := openSealers(c) // one that is away is not needed if the shares suffice
	k := sealing.NewKeeper(sealing.Config{Named: named, Wraps: wraps, Now: c.Now, Log: c.Log})
	for _, s := range shares {
		_, err := k.Unseal(ctx, "", "", secret.Copy([]byte(s)))
		if id, why := k.Missing(); fault.CodeOf(err) == fault.ShareForeign && id != "" {
			return nil, fault.Wrap(fault.ShareForeign, "", err).WithHint("the set that it is of may be a part of %s: %s", id, why)
		}
		if err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Backup writes a backup of a server that is stopped.
func Backup(ctx context.Context, c Config, keep time.Duration, w io.Writer) (made guard.Backup, err error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return made, err
	}
	return made, c.offline(ctx, func(ctx context.Context, g *guard.Guard) error {
		var err error
		made, err = backup.Create(ctx, g, g.System("offline", policy.ActBackup, policy.Resource{}), keep, w)
		return err
	})
}

// backupSealers are what a backup may open with: the sealers that its own wrap set and the configuration name, and what shares, secret, make of them.
func (c Config) backupSealers(ctx context.Context, r *bufio.Reader, shares []string) ([]seal.Sealer, error) {
	ahead, err := r.Peek(r.Size())
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	header, err := backup.ReadHeader(ahead)
	if err != nil {
		return nil, err
	}
	wrapped, err := guard.ParseWraps(header.Root)
	if err != nil {
		return nil, err
	}
	if len(shares) > 0 {
		custodians, err := c.custodians(ctx, wrapped.Wraps, shares)
		if err != nil {
			return nil, err
		}
		return custodians.Sealers(), nil
	}
	named, problem := openSealers(c)
	all := sealing.Members(wrapped.Wraps, named).Sealers()
	for _, s := range named { // one that has left the set says so
		if _, in := wrapped.Wraps[s.ID()]; !in {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil, problem
	}
	return all, nil
}

// VerifyBackup checks a backup with the server's sealers, or with shares, secret, of its custodians: the log, its counters and every record.
func VerifyBackup(ctx context.Context, c Config, file io.Reader, shares ...string) (backup.Report, error) {
	c = c.defaults()
	r := bufio.NewReaderSize(file, backup.HeaderSize)
	sealers, err := c.backupSealers(ctx, r, shares)
	if err != nil {
		return backup.Report{}, err
	}
	dir, err := os.MkdirTemp("", "rotor-verify-*")
	if err != nil {
		return backup.Report{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left of it is sealed
	scratch, err := bolt.Open(filepath.Join(dir, storeFile), bolt.Options{})
	if err != nil {
		return backup.Report{}, openFault(err)
	}
	report, err := backup.Verify(ctx, r, sealers, scratch, c.Now)
	return report, errors.Join(err, scratch.Close())
}

// RestoreBackup fills the server's store, which has to be empty, from a backup, which shares, secret, of its custodians open where nothing else does.
// The server then comes up in recovery mode.
func RestoreBackup(ctx context.Context, c Config, file io.Reader, shares ...string) (backup.Report, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return backup.Report{}, err
	}
	r := bufio.NewReaderSize(file, backup.HeaderSize)
	sealers, err := c.backupSealers(ctx, r, shares)
	if err != nil {
		return backup.Report{}, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return backup.Report{}, err
	}
	db, err := openStore(ctx, c)
	if err != nil {
		return backup.Report{}, err
	}
	report, err := backup.Restore(ctx, r, sealers, db)
	if err == nil {
		err = writeRules(c.Rules)
	}
	return report, errors.Join(err, db.Close())
}
