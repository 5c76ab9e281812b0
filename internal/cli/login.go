package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// maxSession bounds a file with a session, in bytes.
const maxSession = 1 << 20

// sessionFile is what rotor login keeps, mode 0600.
type sessionFile struct {
	Address string `json:"address"`
	CA      string `json:"ca,omitempty"` // PEM
	Token   string `json:"token"`
	Caller  string `json:"caller"`
}

// sessionPath is the file of the session that the caller works with, "" when there is none or an identity comes first.
func (a *app) sessionPath() string {
	if path := cmp.Or(a.session, os.Getenv(envSession)); path != "" {
		return path
	}
	if cmp.Or(a.identity, os.Getenv(envIdentity)) != "" || exists(a.identityPath()) {
		return ""
	}
	if path, err := defaultSession(); err == nil && exists(path) && mine(path) {
		return path
	}
	return ""
}

func defaultSession() (string, error) {
	config, err := os.UserConfigDir()
	if err != nil {
		return "", usage("--session", "name a file for the session")
	}
	return filepath.Join(config, "rotor", "session"), nil
}

func (a *app) connectSession(path string) (*api, error) {
	s, err := readSession(path)
	if err != nil {
		return nil, err
	}
	h, err := identity.ServerClient([]byte(s.CA), nil)
	if err != nil {
		return nil, err
	}
	servers, err := identity.Addresses(cmp.Or(a.address, os.Getenv(envAddress), s.Address))
	if err != nil {
		return nil, usage("--address", "host:port, or several with commas between")
	}
	h.Transport = bearer{s.Token, identity.Among(h.Transport, servers)}
	return newAPI(h, servers[0]), nil
}

func readSession(path string) (s sessionFile, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, fault.New(fault.NotFound, "session "+path).WithHint("log in first: rotor login")
	}
	defer func() { _ = f.Close() }() // only read
	if info, err := f.Stat(); err != nil || info.Mode().Perm()&0o077 != 0 {
		return s, fault.New(fault.Invalid, "session "+path).WithHint("chmod 600 it: others may use it now")
	}
	b, err := readAll(f, maxSession, "session")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil || s.Token == "" || s.Address == "" {
		return s, fault.New(fault.Invalid, "session "+path).WithHint("it is no session; log in again")
	}
	return s, nil
}

// writeSession replaces the file as a whole.
func writeSession(path string, s sessionFile) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode session: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil { //nolint:gosec // the path is the user's own
		return fmt.Errorf("write session: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".session-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() //nolint:gosec // gone already after the rename
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil { //nolint:gosec // the path is the user's own
		return fmt.Errorf("write session: %w", err)
	}
	return nil
}

// bearer shows a session with each request.
type bearer struct {
	token string
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// CloseIdleConnections is called by http.Client.
func (b bearer) CloseIdleConnections() {
	if c, ok := b.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func newLogin(a *app) *cobra.Command {
	var (
		f     rotor.Login
		vault bool
	)
	c := &cobra.Command{
		Use:   "login --address HOST:PORT --ca-file FILE",
		Short: "Exchange a credential, a token or a client certificate for a session",
		Long: `Exchange a credential, a JSON Web Token of a configured issuer, or a client certificate of a configured authority for a session, and keep it
in a file that only you can read. Later commands use it where there is no identity, or where --session or ` + envSession + ` names it. Without any of
the three flags the credential is read from standard input.

With --vault the session is not kept but printed, as the variables that HashiCorp Vault's clients read: eval "$(rotor login --vault)". An identity
(--identity or ` + envIdentity + `) is then exchanged as well.`,
		Example: "  rotor login --address kms.example:7420 --ca-file ca.pem --jwt-file /var/run/secrets/tokens/rotor",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f.Address = cmp.Or(a.address, os.Getenv(envAddress))
			if vault && f.CredentialFile == "" && f.TokenFile == "" && f.Certificate == "" {
				return a.loginIdentity(c.Context())
			}
			if f.Address == "" {
				return usage("--address", "host:port of the server")
			}
			s, err := a.login(c.Context(), f)
			if err != nil {
				return err
			}
			if vault {
				return a.showVault(vaultView{f.Address, f.CAFile, s.Token(), s.Namespace()})
			}
			return a.keepSession(f, s)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.CAFile, "ca-file", "", "PEM file of the cluster's authority (rotor server ca), or of that of the server's own certificate (default: the system's)")
	flags.StringVar(&f.CredentialFile, "credential-file", "", "file that holds a credential")
	flags.StringVar(&f.TokenFile, "jwt-file", "", "file that holds a JSON Web Token")
	flags.StringVar(&f.Issuer, "issuer", "", "configured name of the token's issuer (default: the one that it names)")
	flags.StringVar(&f.Certificate, "cert-file", "", "PEM file of a client certificate")
	flags.StringVar(&f.Key, "key-file", "", "PEM file of its private key")
	flags.BoolVar(&vault, "vault", false, "print the session as the variables of Vault's clients")
	return c
}

func (a *app) login(ctx context.Context, f rotor.Login) (*rotor.Session, error) {
	if f.CredentialFile == "" && f.TokenFile == "" && f.Certificate == "" {
		text, err := a.secretText("", "credential")
		if err != nil {
			return nil, err
		}
		f.Credential = text
	}
	f.Log = quiet()
	return rotor.NewSession(ctx, f)
}

// keepSession writes the file that later commands work with.
func (a *app) keepSession(f rotor.Login, s *rotor.Session) error {
	path := cmp.Or(a.session, os.Getenv(envSession))
	if path == "" {
		var err error
		if path, err = defaultSession(); err != nil {
			return err
		}
	}
	keep := sessionFile{Address: f.Address, Token: s.Token(), Caller: s.Caller()}
	if f.CAFile != "" {
		b, err := os.ReadFile(f.CAFile)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.CAFile, err)
		}
		keep.CA = string(b)
	}
	if err := writeSession(path, keep); err != nil {
		return err
	}
	v := struct {
		Caller  string `json:"caller"`
		Session string `json:"session"`
	}{s.Caller(), path}
	return a.show(v, table{rows: [][]string{{"caller", v.Caller}, {"session", v.Session}}})
}

func newLogout(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the session and remove its file", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path := a.sessionPath()
			if path == "" {
				return usage("--session", "there is no session")
			}
			s, err := a.connectSession(path)
			if err != nil {
				return err
			}
			defer s.close()
			_, err = message(s.auth.Logout(c.Context(), request(&rotorv1.LogoutRequest{})))
			if err != nil && fault.CodeOf(err) != fault.Unauthenticated { // which it is when the session has ended
				return err
			}
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove session: %w", err)
			}
			return a.show(map[string]string{"ended": path}, table{rows: [][]string{{"ended", path}}})
		},
	}
}

// whoamiView is the caller as programs see it.
type whoamiView struct {
	Caller     string            `json:"caller"`
	Kind       string            `json:"kind"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Session    string            `json:"session,omitempty"`
	Expires    string            `json:"expires"`
}

func newWhoami(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Say who the server takes you for, and with which attributes", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.Whoami(c.Context(), request(&rotorv1.WhoamiRequest{})))
			if err != nil {
				return err
			}
			v := whoamiView{m.GetCaller(), m.GetKind(), m.GetAttributes(), m.GetSession(), moment(m.GetExpires())}
			t := table{rows: [][]string{{"caller", v.Caller}, {"kind", v.Kind}, {"expires", v.Expires}}}
			if v.Session != "" {
				t.add("session", v.Session)
			}
			for _, e := range pairs(v.Attributes) {
				t.add("attribute", e)
			}
			return a.show(v, t)
		},
	}
}

func newSession(a *app) *cobra.Command {
	return newNoun("session", "List and revoke sessions", newSessionList(a), newSessionRevoke(a))
}

// sessionView is a session as programs see it.
type sessionView struct {
	ID      string `json:"id"`
	Caller  string `json:"caller"`
	Source  string `json:"source"`
	Address string `json:"address"`
	Created string `json:"created"`
	Used    string `json:"used"`
	Expires string `json:"expires"`
}

func newSessionList(a *app) *cobra.Command {
	var all bool
	var caller string
	c := &cobra.Command{
		Use: "list", Short: "List your own sessions, those of a caller, or all", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.auth.Sessions(c.Context(), request(&rotorv1.SessionsRequest{Caller: caller, All: all})))
			if err != nil {
				return err
			}
			views, t := []sessionView{}, table{header: []string{"id", "caller", "source", "address", "used", "expires"}}
			for _, e := range m.GetSessions() {
				v := sessionView{e.GetId(), e.GetCaller(), e.GetSource(), e.GetAddress(), moment(e.GetCreated()), moment(e.GetUsed()), moment(e.GetExpires())}
				views = append(views, v)
				t.add(v.ID, v.Caller, v.Source, v.Address, v.Used, v.Expires)
			}
			return a.show(views, t)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "of everybody")
	c.Flags().StringVar(&caller, "caller", "", "of this caller")
	return c
}

func newSessionRevoke(a *app) *cobra.Command {
	var caller string
	c := &cobra.Command{
		Use:   "revoke [ID] [--caller NAME]",
		Short: "End a session, or all sessions of a caller, at once",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (caller != "") {
				return usage("ID", "name a session, or a caller with --caller")
			}
			m, what := &rotorv1.RevokeSessionsRequest{Caller: caller}, "all sessions of "+caller
			if caller == "" {
				m.Id, what = args[0], "session "+args[0]
			}
			if err := a.confirm("revoke " + what); err != nil {
				return err
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			r, err := message(s.auth.RevokeSessions(c.Context(), request(m)))
			if err != nil {
				return err
			}
			return a.show(map[string]uint32{"revoked": r.GetRevoked()}, table{rows: [][]string{{"revoked", number(r.GetRevoked())}}})
		},
	}
	c.Flags().StringVar(&caller, "caller", "", "all sessions of this caller")
	return a.changes(c)
}

// ends is when something ends whose life is given; the server's default for 0.
func ends(ttl time.Duration) string {
	if ttl == 0 {
		return "24h"
	}
	return ttl.String()
}
