package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/issuer"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rollout"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/transfer"
	"github.com/rotorkms/rotor/internal/telemetry"
	"github.com/rotorkms/rotor/internal/wire"
	"github.com/rotorkms/rotor/internal/wire/jwks"
	"github.com/rotorkms/rotor/internal/wire/native"
	"github.com/rotorkms/rotor/internal/wire/vault"
)

// Server is a running server.
type Server struct {
	config    Config
	store     store.Store
	guard     *guard.Guard
	rules     guard.Decider // at the start
	seals     *sealing.Keeper
	local     *LocalSocket  // nil: there is none
	waits     bool          // for its init
	socket    *wire.Socket  // stays when a sealed server becomes one that serves
	public    *wire.Socket  // nil: there is none
	pair      *wire.KeyPair // of public
	address   string        // that it listens on, from the start on
	unsealed  chan struct{} // closed once the store of a sealed server has opened, and whoever connects now waits for the server that serves
	opened    chan struct{} // closed once the store is open and served
	http      *wire.Server
	fleet     *fleet.Fleet
	keeper    *replica.Keeper // nil: no other server can open the store
	marked    atomic.Bool     // without a keeper: the store says that it is of this build's format
	rooms     atomic.Pointer[rooms]
	health    *health
	metrics   *telemetry.Metrics
	tracing   *telemetry.Tracing
	live      atomic.Pointer[settings]
	authority *authn.Authority
	sandboxed atomic.Bool            // all of it
	sandbox   atomic.Pointer[string] // as the status shows it; nil: it is to come
	reloading sync.Mutex             // held over a reload, so that there is one at a time
	stop      context.CancelFunc
	ended     chan struct{} // closed when everything has stopped
	err       error         // why; read after ended

	closing sync.Once
	quit    chan struct{} // closed by Close
	now     chan struct{} // closed by CloseNow
	hurried sync.Once

	turning sync.Mutex // guards http and fleet: a server in recovery mode becomes one that serves

	sealing sync.Once
	over    error          // why the server ended itself
	sealed  sealing.Reason // the same, if it sealed itself
}

// rooms are the parts that serve requests.
type rooms struct {
	kms       *kms.Service
	fleet     *fleet.Fleet
	campaigns *campaign.Service
	rollout   *rollout.Loop
	authority *authn.Authority
	mounts    *mounts.Service
	acl       *acl.Service
}

// Start opens the store, unseals it, verifies its audit log and serves. When no root of trust can open it now the server starts sealed: it
// takes shares, asks the roots again, and answers nothing else. fault.StoreLocked when another server has the store open, SealWrong,
// AuditBroken, RecordTampered.
func Start(ctx context.Context, c Config) (*Server, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	named, problem := openSealers(c)
	if len(named) == 0 && problem != nil && len(c.Seals) == 0 && fault.CodeOf(problem) != fault.NotFound {
		return nil, problem
	}
	if c.Socket != "" && c.Local == nil {
		var err error
		if c.Local, err = openLocal(ctx, c.Socket, c.Log); err != nil {
			return nil, err
		}
	}
	db, err := openMade(ctx, c)
	if waitsForInit(c, err) {
		s, err := startWaiting(ctx, c)
		return s, errors.Join(err, c.closeLocal(err))
	}
	if err != nil {
		return nil, errors.Join(err, problem, c.Local.Close())
	}
	s, err := start(ctx, c, db, named, problem)
	if err != nil {
		return nil, errors.Join(err, db.Close(), c.Local.Close())
	}
	return s, nil
}

// start serves a store. problem is why some of the configured roots of trust are not among those that are named.
func start(ctx context.Context, c Config, db store.Store, named map[string]seal.Sealer, problem error) (*Server, error) {
	engine, _ := engineOf(c.Store) // validate has asked it
	return startAs(ctx, c, db, named, problem, engine != engineBolt)
}

// startAs is start on a store that other servers share, or not.
func startAs(ctx context.Context, c Config, db store.Store, named map[string]seal.Sealer, problem error, shared bool) (*Server, error) {
	wrapped, err := guard.ReadWraps(ctx, db)
	if err != nil {
		return nil, err
	}
	if _, _, err := hashedRules(c.Rules); err != nil { // now, and not when custodians have come
		return nil, err
	}
	if _, err := c.HSM.open(""); err != nil { // now, and not when the process has shut itself in
		return nil, err
	}
	engine, _ := engineOf(c.Store) // validate has asked it
	metrics := telemetry.New(telemetry.Build{Version: Version, Engine: engine})
	tracing, err := telemetry.NewTracing(ctx, telemetry.TraceConfig{Endpoint: c.Tracing.Endpoint, Sample: c.Tracing.Sample, Version: Version, Log: c.Log})
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: c, local: c.Local, store: db, metrics: metrics, tracing: tracing, ended: make(chan struct{}), quit: make(chan struct{}), now: make(chan struct{}), opened: make(chan struct{}), unsealed: make(chan struct{}),
	}
	s.seals = sealing.NewKeeper(sealing.Config{Named: named, Wraps: wrapped.Wraps, Hold: c.SealHold, Seal: s.seal, Address: s.Advertised, Now: c.Now, Log: c.Log})
	if shared {
		s.keeper = s.newKeeper()
	}
	s.live.Store(&settings{config: c})
	if err := s.begin(ctx, problem); err != nil {
		return nil, errors.Join(err, tracing.Stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// begin opens the store and serves it, or waits sealed for what opens it.
func (s *Server) begin(ctx context.Context, problem error) error {
	c := s.config
	if len(s.seals.Sealers()) == 0 && problem != nil {
		return problem
	}
	if problem != nil && len(c.Seals) > 0 {
		c.Log.WarnContext(ctx, "a configured root of trust cannot be used", "error", problem)
	}
	if c.SealedFor != "" { // it listens at once, whatever a root of trust takes to answer
		return s.startSealed(ctx, c.SealedFor.Fault())
	}
	g, err := s.open(ctx)
	if closed(err) {
		return s.startSealed(ctx, err)
	}
	if err != nil {
		return err
	}
	return s.startOpen(ctx, g)
}

// open opens the store with what its root of trust gives now.
func (s *Server) open(ctx context.Context) (*guard.Guard, error) {
	c := s.config
	statements, err := c.statements()
	if err != nil {
		return nil, err
	}
	gc := guard.Config{
		Store: s.tracing.Store(s.metrics.Store(s.store)), Sealers: s.seals.Sealers(), Now: c.Now, Log: c.Log, Statements: statements, Recovery: true, ShredEvery: c.ShredEvery,
		Before: c.Before, Packs: func() bool { return s.knows(replica.FormatPacked) },
	}
	if s.keeper != nil {
		gc.Turn = s.keeper.Turn
	}
	return guard.Open(ctx, gc)
}

// startOpen serves a store that is open.
func (s *Server) startOpen(ctx context.Context, g *guard.Guard) error {
	rules, sum, err := hashedRules(s.config.Rules)
	if err != nil {
		return err
	}
	g.SetRules(rules)
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	group, run := errgroup.WithContext(run)
	group.Go(func() error { return g.Run(run) })
	group.Go(func() error { return openFault(transfer.Watch(run, s.store)) })
	s.guard, s.rules, s.health, s.stop = g, rules, newHealth(g, s.seals), stop
	s.seals.Opened(g)
	if len(g.Detected()) > 0 {
		err = s.serveRecovery(ctx, group, run)
	} else {
		err = s.startServing(ctx, run, group, sum)
	}
	if err != nil {
		stop()
		return errors.Join(err, group.Wait(), s.unbind())
	}
	close(s.opened)
	go s.supervise(run, group) //nolint:gosec // it outlives the request that started it; Wait waits for it
	return nil
}

// startServing serves a store that is what it was.
func (s *Server) startServing(ctx, run context.Context, group *errgroup.Group, rules string) error {
	if err := s.started(ctx, rules); err != nil {
		return err
	}
	group.Go(func() error { return s.config.keepAnchor(run, s.guard) })
	group.Go(func() error { return s.awaitSuspended(run, s.guard) })
	return s.serve(ctx, run, group, sealNames(s.seals.Sealers()))
}

// started notes in the audit log what runs from now on, and by which rules. A store that is full keeps nobody from reading.
func (s *Server) started(ctx context.Context, rules string) error {
	err := s.note(ctx, "server.start", map[string]string{"version": Version, "profile": s.config.Profile, "rules_sha256": rules})
	if fault.CodeOf(err) == fault.DiskFull {
		s.config.Log.WarnContext(ctx, "start not noted", "error", err)
		return nil
	}
	return err
}

// hosts are the names in the server's certificate.
func (s *Server) hosts(c Config) []string { return c.hosts() }

func (c Config) hosts() []string {
	if len(c.Hosts) > 0 {
		return c.Hosts
	}
	host, _, _ := net.SplitHostPort(c.Listen) // validate has asked it
	return []string{cmp.Or(host, "localhost")}
}

// serve builds the rooms upwards and starts their loops.
func (s *Server) serve(ctx, run context.Context, group *errgroup.Group, sealer string) error {
	r, err := s.build(ctx)
	if err != nil {
		return err
	}
	s.fleet, s.authority = r.fleet, r.authority
	s.rooms.Store(&r)
	tlsConfig := r.authority.Server(s.hosts(s.config)...)
	s.live.Store(&settings{config: s.config, certificate: tlsConfig.GetCertificate})
	tlsConfig.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return s.live.Load().certificate(h) }
	if err := s.bind(ctx); err != nil {
		return err
	}
	if err := s.introduce(ctx); err != nil {
		return err
	}
	if err := s.config.keepSealedCertificate(r.authority, s.hosts(s.config)); err != nil {
		s.config.Log.WarnContext(ctx, "a server that starts sealed will have no certificate", "error", err)
	}
	mux := s.mux(r, sealer)
	method := counted(mux)
	s.http = wire.NewServer(wire.Config{
		TLS: tlsConfig, Identifier: r.authority, Limits: s.config.Limits.wire(), Handler: mux, Now: s.config.Now, Log: s.config.Log,
		Fronts: []wire.Front{native.Front(), vault.Front(s.vault(r)), jwks.Front(), healthFront()},
		Observe: func(r *http.Request, route wire.Route, code string, took time.Duration) {
			name := route.Name
			if name == "" {
				name = method(r)
			}
			s.metrics.Request(name, code, took, route.Stream)
		},
	})
	s.local.answer(vault.Status(vault.Elsewhere(), s.vault(r).Node()))
	s.metrics.Show(func() telemetry.View { return s.view(r, tlsConfig) })
	r.authority.OnEnded = func(e authn.Ended) {
		s.http.End(e.Of)
		s.http.Cut(e.Instance)
	}
	r.acl.OnEnded = func() { s.http.End(func(policy.Caller) bool { return false }) } // whoever was let in before is looked at again
	r.kms.OnChange(func(k keyring.Key) {
		r.fleet.Publish(run, k)
		r.rollout.Look(k.ID)
	})
	if s.keeper != nil {
		r.kms.OnNarrower(s.keeper.Hurry) // whoever asked for it waits until every server has said that it knows
	}
	r.fleet.OnChange = r.rollout.Look
	for _, loop := range []func(context.Context) error{r.authority.Run, s.seals.Run, r.kms.Run, r.kms.Sweep, r.kms.CountUses, r.fleet.Run, r.campaigns.Run, r.rollout.Run, r.mounts.Run, r.acl.Run, r.acl.Sweep} {
		group.Go(func() error { return loop(run) })
	}
	if s.keeper != nil {
		group.Go(func() error { return s.keeper.Run(run) })
	}
	if err := s.settled(run); err != nil {
		return err
	}
	group.Go(func() error { return s.trim(run) })
	for _, l := range s.listen(tlsConfig) {
		group.Go(func() error { return s.http.Serve(l) })
	}
	return nil
}

func (s *Server) build(ctx context.Context) (r rooms, err error) {
	c := s.config
	if r.authority, err = authn.New(ctx, authn.Config{
		Guard: s.guard, TrustDomain: c.TrustDomain, Namespace: c.Namespace, Now: c.Now,
		Room: func(name string) error { return s.roomFor(func() *fleet.Fleet { return s.fleet }, name) },
	}); err != nil {
		return r, err
	}
	allow, err := c.access()
	if err != nil {
		return r, err
	}
	if err := r.authority.Configure(allow); err != nil {
		return r, err
	}
	s.guard.SetRules(r.authority.Decider(s.rules))
	token, err := c.HSM.open(s.guard.ClusterID())
	if err != nil {
		return r, err
	}
	if r.kms, err = kms.New(ctx, kms.Config{Guard: s.guard, Now: c.Now, Quotas: s.quotas, Floors: s.floors, Fresh: s.fresh(), Heard: s.heard(), Knows: s.knows, Suites: c.Suites.policy(), HSM: token, Log: c.Log}); err != nil {
		return r, err
	}
	leases := rotation.Leases{TTL: c.LeaseTTL, MaxSkew: c.MaxSkew}
	members := fleet.Config{Guard: s.guard, Keys: r.kms, Leases: leases, Now: c.Now, Log: c.Log}
	work := campaign.Config{Guard: s.guard, KMS: r.kms, TLS: r.authority.ClientTLS, Lead: s.lead(), Now: c.Now, Log: c.Log}
	if s.keeper != nil {
		members.Replicas, work.Behind = s.keeper, s.keeper.Behind
	}
	if r.fleet, err = fleet.New(ctx, members); err != nil {
		return r, err
	}
	work.Fleet = r.fleet
	if r.campaigns, err = campaign.New(ctx, work); err != nil {
		return r, err
	}
	if r.mounts, err = mounts.New(ctx, mounts.Config{Guard: s.guard, Log: c.Log, Home: keyring.Namespace(r.authority.Namespace)}); err != nil {
		return r, err
	}
	if r.acl, err = acl.New(ctx, acl.Config{Guard: s.guard, Authority: r.authority, Mounts: r.mounts, Now: c.Now, Log: c.Log, Lead: s.lead()}); err != nil {
		return r, err
	}
	r.mounts.Clear, r.mounts.Move = unmounted(r.kms, r.acl), moved(r.kms)
	r.mounts.Heard, r.mounts.Agreed, r.mounts.Vacant, r.mounts.Vacate = s.heard(), s.endsNamespaces, r.kms.Vacant, vacated(r)
	r.rollout = rollout.New(rollout.Config{KMS: r.kms, Fleet: r.fleet, Floors: r.campaigns, Lead: s.lead(), Now: c.Now, Log: c.Log})
	return r, nil
}

// unmounted deletes the keys below an engine that is about to be unmounted.
func unmounted(keys *kms.Service, tokens *acl.Service) func(context.Context, policy.Caller, keyring.Namespace, mounts.Mount) error {
	return func(ctx context.Context, c policy.Caller, ns keyring.Namespace, m mounts.Mount) error {
		switch {
		case m.Auth:
			return tokens.Clear(ctx, c, ns, m)
		case m.Type == mounts.Transit:
			return keys.TransitClear(ctx, c, ns, strings.TrimSuffix(m.Path, "/"))
		}
		return nil
	}
}

// endsNamespaces says whether every server on the store knows that namespaces end. No build before format 4 does.
func (s *Server) endsNamespaces() bool { return s.knows(replica.FormatPacked) }

// vacated empties a namespace that is being deleted.
func vacated(r rooms) func(context.Context, *guard.Permit, guard.Cond, keyring.Namespace) error {
	return func(ctx context.Context, p *guard.Permit, still guard.Cond, ns keyring.Namespace) error {
		if err := r.acl.Vacate(ctx, p, still, ns); err != nil {
			return err
		}
		if err := r.authority.Vacate(ctx, p, still, string(ns)); err != nil {
			return err
		}
		return r.kms.Vacate(ctx, p, still, ns)
	}
}

// moved takes the keys below an engine along to another path. What is below a way to log in goes by the accessor of its mount.
func moved(keys *kms.Service) func(context.Context, policy.Caller, keyring.Namespace, mounts.Mount, string) error {
	return func(ctx context.Context, c policy.Caller, ns keyring.Namespace, m mounts.Mount, to string) error {
		if m.Auth || m.Type != mounts.Transit {
			return nil
		}
		return keys.TransitMove(ctx, c, ns, strings.TrimSuffix(m.Path, "/"), strings.TrimSuffix(to, "/"))
	}
}

func (s *Server) mux(r rooms, sealer string) *http.ServeMux {
	c := s.config
	engine, _ := engineOf(c.Store) // validate has asked it
	tokens := issuer.Issuer{KMS: r.kms, Name: s.issuer(), Lag: s.lag(), Now: c.Now}
	mux := http.NewServeMux()
	s.observe(mux)
	mux.Handle(jwks.Path, s.whenFresh(jwks.Handler(tokens, keyring.Namespace(c.Namespace), c.Issuer)))
	native.Mount(mux, native.Config{
		Guard: s.guard, KMS: r.kms, Fleet: r.fleet, Rollout: r.rollout, Authority: r.authority, Issuer: tokens, Campaigns: r.campaigns,
		Cut: func(name string) { s.http.Cut(name) }, Address: s.inviteTo,
		Interceptors: s.tracing.Calls(),
		About:        s.about(native.About{Version: Version, Engine: engine, Seal: sealer, Profile: c.Profile, Started: c.Now()}), Seals: s.seals, Now: c.Now, Log: c.Log,
	})
	vault.Mount(mux, s.vault(r))
	return mux
}

// vault is what the front end for Vault's clients offers.
func (s *Server) vault(r rooms) vault.Config {
	c, started := s.config, s.config.Now()
	engine, _ := engineOf(c.Store) // validate has asked it
	return vault.Config{
		Guard: s.guard, KMS: r.kms, Rollout: r.rollout, Authority: r.authority, Mounts: r.mounts, ACL: r.acl, Seals: s.seals, Now: c.Now, Log: c.Log, Metrics: s.metrics.Handler(),
		About: func(ctx context.Context) vault.About {
			return vault.About{
				Version: Version, Cluster: s.guard.ClusterID(), Engine: engine, Address: s.Advertised(), Shared: s.keeper != nil, Started: started, Ready: s.health.look(ctx).Ready,
			}
		},
	}
}

// supervise waits for the first loop that fails, or for Close, and brings everything down in order: no new request, those in flight
// answered while the loops that they need still run, use windows closed, loops stopped, store closed.
func (s *Server) supervise(run context.Context, group *errgroup.Group) {
	select {
	case <-run.Done():
	case <-s.quit:
	}
	s.health.draining.Store(true)
	how := s.live.Load().config.Drain
	select {
	case <-run.Done():
	case <-time.After(how.Delay): // load balancers hear of it from /readyz, and send no new client
	case <-s.now:
	}
	s.turning.Lock()
	members, front := s.fleet, s.http
	s.turning.Unlock()
	if members != nil { // else it is in recovery mode
		members.Drain()
	}
	drain, cancel := context.WithTimeout(context.Background(), how.Time)
	defer cancel()
	front.OnClosed(func() { _ = s.unbind() }) // who comes now goes to another server at once, and does not wait for this one
	front.Shutdown(drain)
	if run.Err() == nil {
		s.writeCounts(drain)
		s.resign(drain)
	}
	s.stop()
	s.err = errors.Join(group.Wait(), s.unbind(), s.store.Close())
	if err := s.tracing.Stop(drain); err != nil {
		s.config.Log.Warn("last traces not sent", "error", err)
	}
	s.sealing.Do(func() {}) // from here on it is too late
	if s.err == nil && s.over != nil {
		s.guard.Destroy()
		s.err = s.over
	}
	s.end()
}

// end tells of the end. The local socket stays for the server that comes after this one in the process, if there is one.
func (s *Server) end() {
	if !StartsAgain(s.err) {
		s.err = errors.Join(s.err, s.local.Close())
	}
	close(s.ended)
}

// writeCounts writes what was counted and is not in the store yet.
func (s *Server) writeCounts(ctx context.Context) {
	if r := s.rooms.Load(); r != nil { // else it is in recovery mode
		if err := r.kms.FlushUses(ctx); err != nil {
			s.config.Log.Warn("counts of uses not added", "error", err)
		}
	}
	if err := s.guard.CloseWindows(ctx, true); err != nil {
		s.config.Log.Warn("use windows left open", "error", err)
	}
}

// Address is the host:port that the server listens on.
func (s *Server) Address() string { return s.address }

// Advertised is the host:port that clients reach this server at.
func (s *Server) Advertised() string { return cmp.Or(s.config.Advertise, s.Address()) }

// Wait returns when the server has stopped, with the reason if it was not Close.
func (s *Server) Wait() error {
	<-s.ended
	return s.err
}

// Close drains and stops the server.
func (s *Server) Close() error {
	s.closing.Do(func() { close(s.quit) })
	return s.Wait()
}

// CloseNow stops the server as Close does, without the delay that load balancers are given, also one that is being stopped already.
func (s *Server) CloseNow() error {
	s.hurried.Do(func() { close(s.now) })
	return s.Close()
}
