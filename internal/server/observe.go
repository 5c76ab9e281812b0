package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"net/http"
	"net/http/pprof" //nolint:gosec // its handlers are mounted behind a right; the mux that it registers them on is never served
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/telemetry"
	"github.com/rotorkms/rotor/internal/wire"
	"github.com/rotorkms/rotor/internal/wire/native"
)

// maxProfile bounds a profile over time, below the time that a request may take.
const maxProfile = 25 * time.Second

// day is the unit of what people plan by.
const day = 24 * time.Hour

// observe mounts what a server shows of itself.
func (s *Server) observe(mux *http.ServeMux) {
	mux.HandleFunc("/healthz", alive)
	mux.HandleFunc("/readyz", s.health.ready)
	mux.HandleFunc("GET /metrics", s.allowed(policy.ActMetrics, s.metrics.Handler().ServeHTTP))
	mux.HandleFunc("GET /debug/pprof/{profile}", s.allowed(policy.ActProfile, s.profile))
}

// healthFront is every path that is of no protocol. Those that say how a server does are for everybody, and more of a sealed one, whose metrics say no more than its
// status, which strangers may ask for.
func healthFront(more ...string) wire.Front {
	routes := map[string]wire.Route{}
	for _, path := range append(more, "/healthz", "/readyz") {
		routes[path] = wire.Route{Stranger: true}
	}
	return wire.Front{
		Route: func(r *http.Request) (wire.Route, bool) { return routes[r.URL.Path], true },
		Deny:  native.Front().Deny,
	}
}

// allowed lets through who has the right, and refuses others in the audit log.
func (s *Server) allowed(a policy.Action, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := s.guard.Admit(r.Context(), wire.Caller(r.Context()), a, policy.Resource{})
		if err == nil && a == policy.ActProfile { // a profile tells what the server does, so its release is told too
			err = p.Release(r.Context(), map[string]string{"profile": r.PathValue("profile")})
		}
		if err != nil {
			wire.Failed(r.Context(), err)
			status := map[fault.Code]int{fault.Denied: http.StatusForbidden, fault.Unauthenticated: http.StatusUnauthorized}[fault.CodeOf(err)]
			http.Error(w, rpc.Public(err).Error(), cmp.Or(status, http.StatusServiceUnavailable))
			return
		}
		next(w, r)
	}
}

// profile answers with one profile of the Go runtime. None holds contents of memory.
func (s *Server) profile(w http.ResponseWriter, r *http.Request) {
	if n, err := strconv.ParseFloat(r.FormValue("seconds"), 64); r.FormValue("seconds") != "" && (err != nil || n < 0 || n > maxProfile.Seconds()) {
		http.Error(w, "seconds: at most 25", http.StatusBadRequest)
		return
	}
	switch name := r.PathValue("profile"); name {
	case "profile", "trace":
		if r.FormValue("seconds") == "" {
			r.Form.Set("seconds", "10")
		}
		if name == "trace" {
			pprof.Trace(w, r)
			return
		}
		pprof.Profile(w, r)
	case "allocs", "block", "goroutine", "heap", "mutex", "threadcreate":
		pprof.Handler(name).ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// counted names the method of a request, out of a bounded set.
func counted(mux *http.ServeMux) func(r *http.Request) string {
	methods := map[string]string{}
	protoregistry.GlobalFiles.RangeFilesByPackage("rotor.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				name := string(s.Name()) + "/" + string(s.Methods().Get(j).Name())
				methods["/rotor.v1."+name] = name
			}
		}
		return true
	})
	return func(r *http.Request) string {
		if name, ok := methods[r.URL.Path]; ok {
			return name
		}
		_, pattern := mux.Handler(r)
		if pattern == "" || strings.HasPrefix(pattern, "/rotor.v1.") {
			return "other"
		}
		return pattern
	}
}

// about is what the status tells of this server, with what changes added to what does not.
func (s *Server) about(fixed native.About) func(context.Context) native.About {
	return func(ctx context.Context) native.About {
		a, ready := fixed, s.health.look(ctx)
		a.Ready, a.Sandbox, a.Format = ready.Ready, "pending", replica.Format
		for _, c := range ready.Checks {
			a.Checks = append(a.Checks, native.Check{Name: c.Name, OK: c.OK, Reason: c.Reason})
		}
		if shut := s.sandbox.Load(); shut != nil {
			a.Sandbox = *shut
		} else if s.config.Sandbox == SandboxOff {
			a.Sandbox = SandboxOff
		}
		if s.keeper != nil {
			a.Format, a.Replicas = s.keeper.Format(), s.keeper.Sessions()
		}
		return a
	}
}

// view is the server as a scrape shows it.
func (s *Server) view(r rooms, certificates *tls.Config) telemetry.View {
	now, ready, load := s.config.Now(), s.health.look(context.Background()), s.http.Load()
	v := telemetry.View{
		Ready: ready.Ready, Sealed: s.seals.Sealed(), SealedFor: string(s.seals.Why()), Draining: s.health.draining.Load(), Checks: map[string]bool{}, Connections: load.Connections, InFlight: load.Requests,
		Streams: load.Streams, Sandbox: s.sandboxed.Load(), MaxKeys: s.live.Load().config.Metrics.MaxKeys, CertificateDays: map[string]float64{"authority": r.authority.CA().NotAfter.Sub(now).Hours() / 24},
	}
	for _, c := range ready.Checks {
		v.Checks[c.Name] = c.OK
	}
	roots, hold := s.seals.Health()
	for _, m := range roots {
		v.Sealers = append(v.Sealers, telemetry.Sealer{ID: m.ID, Kind: m.Kind, Up: m.Up, Opened: !m.Opened.IsZero(), OpenedSeconds: now.Sub(m.Opened).Seconds()})
	}
	v.Holds, v.HoldSeconds = hold >= 0, hold.Seconds()
	v.TokenUp, v.Token = r.kms.TokenUp()
	v.Instances, v.Connected = r.fleet.Count()
	entries, waiting := s.guard.LogStats()
	v.AuditEntries, v.AuditWaiting = float64(entries), float64(waiting)
	v.Leads, v.Replicas, v.Format = s.Leads(), 1, replica.Format
	if s.keeper != nil {
		v.Replicas, v.Format = 0, s.keeper.Format()
		for _, r := range s.keeper.Sessions() {
			if r.Alive {
				v.Replicas++
			} else {
				v.Silent++
			}
		}
	}
	if upkeep, ok := s.store.(interface{ CompactionsFailed() int64 }); ok { // PostgreSQL bounds it with each commit
		v.CompactionsFailed = float64(upkeep.CompactionsFailed())
	}
	if c, err := certificates.GetCertificate(&tls.ClientHelloInfo{}); err == nil && c.Leaf != nil {
		v.CertificateDays["server"] = c.Leaf.NotAfter.Sub(now).Hours() / 24
	}
	v.Keys = keyViews(r, now)
	return v
}

func keyViews(r rooms, now time.Time) []telemetry.Key {
	keys := r.kms.Keys()
	wanted := make(map[keyring.KeyID]keyring.Epoch, len(keys))
	for _, k := range keys {
		wanted[k.ID] = awaited(k)
	}
	held := r.fleet.Tally(func(id keyring.KeyID) keyring.Epoch { return wanted[id] })
	out := make([]telemetry.Key, 0, len(keys))
	for _, k := range keys {
		v := keyView(k, now)
		v.Holders, v.Laggards = held[k.ID].Holders, held[k.ID].Behind
		if c, ok := r.campaigns.Last(k.ID); ok {
			v.Census = &telemetry.Census{AgeSeconds: now.Sub(c.Started).Seconds(), Unknown: c.Unknown, Unreachable: len(c.Unreachable)}
			for n, count := range c.Counts {
				if n == k.Primary {
					v.Census.Primary = count
				} else {
					v.Census.Older += count
				}
			}
		}
		out = append(out, v)
	}
	return out
}

// awaited is the epoch that holders have to acknowledge: of what is being distributed, else of the primary's promotion.
func awaited(k keyring.Key) keyring.Epoch {
	if v, err := k.Version(k.Target); err == nil && v.Distributed != (keyring.Epoch{}) {
		return v.Distributed
	}
	v, err := k.Version(k.Primary)
	if err != nil {
		return keyring.Epoch{}
	}
	return v.Promoted
}

func keyView(k keyring.Key, now time.Time) telemetry.Key {
	out := telemetry.Key{Namespace: string(k.Namespace), Name: k.Name, Primary: k.Primary, InFlight: k.Target != 0}
	out.Live = k.Live()
	if v, err := k.Version(k.Primary); err == nil {
		out.AgeSeconds = now.Sub(v.Activated).Seconds()
		if k.Periods.Originator > 0 {
			out.HasPeriod, out.PeriodDays = true, v.Activated.Add(k.Periods.Originator).Sub(now).Hours()/day.Hours()
		}
	}
	if k.Target != 0 {
		waited := now.Sub(k.Since)
		out.WaitedSeconds, out.Paused = waited.Seconds(), waited > k.Rotation.Defaults().MaxWait
	}
	return out
}
