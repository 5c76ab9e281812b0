package cli

import (
	"context"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/doctor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
)

// doctorPatience bounds the question to the server.
const doctorPatience = 5 * time.Second

func newDoctor(a *app) *cobra.Command {
	var f server.Config
	var load func() error
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Look at this machine: what would let a key out, lose a commit or stop the fleet",
		Long: `Look at this machine: what would let a key out, lose a commit or stop the fleet. With --dir or --config it looks at a server's files
and configuration too, and with an identity at the server that the identity is of: its clock, version and certificates. It changes nothing. Each
line is a check with its state: ok, warn or fail. Exit status 1 when one failed.`,
		Example: "  rotor doctor --config /etc/rotor/rotor.yaml\n  rotor doctor --identity admin -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			err := load()
			s := doctor.Subject{Now: time.Now(), Ours: server.Version}
			if f.Dir != "" || err != nil {
				s.HasConfig, s.Config = true, err
			}
			if err == nil && f.Dir != "" {
				var full server.Config
				full, s.Engine, s.Config = f.Checked()
				s.Dir, s.Rules, s.Seal, s.Tokens = full.Dir, full.Rules, full.SealKey, full.Tokens()
				s.Private = full.Secrets()
			}
			if err := a.doctorServer(c.Context(), &s); err != nil {
				return err
			}
			return a.showFindings(doctor.Look(s))
		},
	}
	c.Flags().StringVar(&f.Dir, "dir", "", "directory of a server on this machine")
	load = configFlag(c, &f)
	return c
}

// doctorServer adds what an identity and its server tell. Without an identity there is nothing to add.
func (a *app) doctorServer(ctx context.Context, s *doctor.Subject) error {
	dir, err := a.readIdentity()
	switch fault.CodeOf(err) {
	case "":
	case fault.NotFound:
		return nil
	default:
		return err
	}
	s.Private = append(s.Private, a.identityPath())
	s.Certificates = append(s.Certificates, certificate("identity", dir.Leaf(), dir.IsInstance()))
	api, err := a.connect()
	if err != nil {
		return err
	}
	defer api.close()
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+api.address+"/healthz", nil)
	if err != nil {
		return usage("--address", "host:port")
	}
	resp, err := api.http.Do(r)
	if err != nil {
		return fault.Wrap(fault.Unavailable, "server "+api.address, err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing of it is read
	s.Asked = time.Now()
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		s.ServerTime = t
	}
	if resp.TLS != nil {
		for i, c := range resp.TLS.PeerCertificates {
			s.Certificates = append(s.Certificates, certificate([]string{"server", "authority"}[min(i, 1)], c, i == 0))
		}
	}
	if m, err := a.askServer(ctx); err == nil { // who may not see the status gets the rest
		s.Theirs = m.GetVersion()
	}
	return nil
}

func certificate(name string, c *x509.Certificate, auto bool) doctor.Certificate {
	return doctor.Certificate{Name: name, Ends: c.NotAfter, Life: c.NotAfter.Sub(c.NotBefore), Auto: auto}
}

func (a *app) showFindings(all []doctor.Finding) error {
	t := table{header: []string{"check", "state", "found", "hint"}}
	for _, f := range all {
		t.add(f.Code, string(f.State), f.Found, f.Hint)
	}
	if err := a.show(all, t); err != nil {
		return err
	}
	if doctor.Failed(all) {
		a.exit = 1
	}
	return nil
}
