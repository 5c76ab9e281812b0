package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/wire"
)

// Limits bound what callers may do and keep. 0: no limit, unless it says so. All of it is read again at SIGHUP.
type Limits struct {
	CallerRate     float64 `yaml:"caller_rate"` // requests of one caller in a second, at this server
	CallerBurst    int     `yaml:"caller_burst"`
	NamespaceRate  float64 `yaml:"namespace_rate"` // requests about keys of one namespace in a second, at this server
	NamespaceBurst int     `yaml:"namespace_burst"`
	LoginRate      float64 `yaml:"login_rate"`  // logins from one address in a second, at this server; default 20
	LoginBurst     int     `yaml:"login_burst"` // default 100

	Keys      int `yaml:"keys"`      // of one namespace; default 100,000
	Versions  int `yaml:"versions"`  // of one key
	Instances int `yaml:"instances"` // of the cluster; default 20,000

	DestroyApprovals int           `yaml:"destroy_approvals"` // distinct callers that a destruction needs at least, whatever the key says; default 2, in profile dev 1; at most 16
	DestroyWait      time.Duration `yaml:"destroy_wait"`      // time between retirement and destruction at least, whatever the key says; default 0; at most a year
}

// Defaults of quotas.
const (
	defaultKeys      = 100_000
	defaultInstances = 20_000
)

func (l Limits) validate() error {
	for name, n := range map[string]float64{
		"caller_rate": l.CallerRate, "namespace_rate": l.NamespaceRate, "login_rate": l.LoginRate, "caller_burst": float64(l.CallerBurst),
		"namespace_burst": float64(l.NamespaceBurst), "login_burst": float64(l.LoginBurst), "keys": float64(l.Keys), "versions": float64(l.Versions),
		"instances": float64(l.Instances),
	} {
		if !(n >= 0 && n <= 1e9) {
			return fault.New(fault.Invalid, "limits."+name).WithHint("0 to 1,000,000,000")
		}
	}
	if l.DestroyApprovals < 0 || l.DestroyApprovals > keyring.MaxApprovals {
		return fault.New(fault.Invalid, "limits.destroy_approvals").WithHint("1 to %d", keyring.MaxApprovals)
	}
	if l.DestroyWait < 0 || l.DestroyWait > maxDestroyWait {
		return fault.New(fault.Invalid, "limits.destroy_wait").WithHint("0 s to a year")
	}
	return nil
}

// maxDestroyWait bounds Limits.DestroyWait: with a typing error in it nothing would ever be destroyed.
const maxDestroyWait = 365 * 24 * time.Hour

// floors are those of the configuration as it is now.
func (s *Server) floors() kms.Floors {
	c := s.live.Load().config
	f := kms.Floors{Approvals: c.Limits.DestroyApprovals, Wait: c.Limits.DestroyWait}
	switch {
	case f.Approvals != 0:
	case c.Profile == ProfileDev:
		f.Approvals = 1
	default:
		f.Approvals = 2
	}
	return f
}

func (l Limits) wire() wire.Limits {
	return wire.Limits{
		CallerRate: l.CallerRate, CallerBurst: l.CallerBurst, NamespaceRate: l.NamespaceRate, NamespaceBurst: l.NamespaceBurst, LoginRate: l.LoginRate, LoginBurst: l.LoginBurst,
	}
}

// quotas are those of the configuration as it is now.
func (s *Server) quotas() kms.Quotas {
	l := s.live.Load().config.Limits
	q := kms.Quotas{Keys: l.Keys, Versions: l.Versions}
	if q.Keys == 0 {
		q.Keys = defaultKeys
	}
	return q
}

// roomFor says whether the fleet has room for an instance; one that is a member already has it. fault.QuotaReached.
func (s *Server) roomFor(f func() *fleet.Fleet, name string) error {
	most := s.live.Load().config.Limits.Instances
	if most == 0 {
		most = defaultInstances
	}
	members, _ := f().Count()
	if members < most || slices.ContainsFunc(f().List(), func(i fleet.Info) bool { return i.Name == name }) {
		return nil
	}
	return fault.New(fault.QuotaReached, "instances").WithHint("at most %d", most)
}

// Public is a second listener with a certificate of the operator's, for callers that know hosts and not SPIFFE IDs. Its files are read again when
// they change.
type Public struct {
	Listen      string `yaml:"listen"`      // host:port; empty: there is none
	Certificate string `yaml:"certificate"` // PEM: the certificate and those between it and its root
	Key         string `yaml:"key"`         // PEM
	TLS         string `yaml:"tls"`         // "1.3" (default), or "1.2" to take that too
}

func (p Public) validate() error {
	bad := func(field, hint string) error { return fault.New(fault.Invalid, "public."+field).WithHint("%s", hint) }
	if p == (Public{}) {
		return nil
	}
	if _, _, err := net.SplitHostPort(p.Listen); err != nil {
		return bad("listen", "host:port")
	}
	if p.Certificate == "" || p.Key == "" {
		return bad("certificate", "name the PEM files of a certificate and its key")
	}
	if p.TLS != "" && p.TLS != "1.2" && p.TLS != "1.3" {
		return bad("tls", `"1.2" or "1.3"`)
	}
	return nil
}

// bind opens the sockets that the configuration names, at the first call.
func (s *Server) bind(ctx context.Context) (err error) {
	if s.socket != nil {
		return nil
	}
	p := s.config.Public
	if p.Listen != "" {
		if s.pair, err = wire.NewKeyPair(p.Certificate, p.Key, s.config.Now, s.config.Log); err != nil {
			return err
		}
		if s.public, err = wire.Bind(ctx, p.Listen); err != nil {
			return err
		}
	}
	if s.socket, err = wire.Bind(ctx, s.config.Listen); err != nil {
		return errors.Join(err, s.unbind())
	}
	s.address = s.socket.Addr().String()
	return nil
}

// unbind closes the sockets.
func (s *Server) unbind() error {
	return errors.Join(s.public.Close(), s.socket.Close())
}

// listen accepts on the sockets from now on; who did before has stopped.
func (s *Server) listen(c *tls.Config) []net.Listener {
	all := []net.Listener{s.socket.Listen(c)}
	if s.public != nil {
		all = append(all, s.public.Listen(wire.OwnTLS(s.pair, s.config.Public.TLS == "1.2")))
	}
	return all
}

// PublicAddress is the host:port of the second listener; empty without one.
func (s *Server) PublicAddress() string {
	if s.public == nil {
		return ""
	}
	return s.public.Addr().String()
}
