package rotor

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Login says how a program comes in that is no instance. One of CredentialFile, Credential, TokenFile and Certificate with Key must be set. Files are read at
// each login, so that what replaces a token that ends is used.
type Login struct {
	Address        string       // host:port of the server, or of several with commas between; the certificate of each has its host
	CAFile         string       // PEM of the cluster's authority (rotor server ca), or of those of the server's own certificate; default: the system's
	CredentialFile string       // holds a credential: rotor_credential_…
	Credential     string       // the credential itself, where it is in no file
	TokenFile      string       // holds a JSON Web Token of a configured issuer, for example a Kubernetes service account's
	Issuer         string       // the issuer's configured name; default: the one that the token names
	Certificate    string       // PEM files of a client certificate of a configured authority and its private key
	Key            string       //
	Log            *slog.Logger // default: slog.Default. Nothing secret is logged
}

// maxProof bounds a file with a proof, in bytes.
const maxProof = 1 << 20

// Session is a caller who has logged in. It logs in again by itself before the session ends, and when the server does not know it any more. Safe
// for concurrent use.
type Session struct {
	login  Login
	http   *http.Client
	client rotorv1.AuthServiceClient
	admin  *Admin

	mu      sync.Mutex // guards what follows
	token   string
	caller  string
	ns      string
	renewal time.Time // when it logs in again before the next request
	idle    time.Duration
	used    time.Time
}

// NewSession logs in. Close ends the session.
func NewSession(ctx context.Context, login Login) (*Session, error) {
	servers, err := identity.Addresses(login.Address)
	if err != nil {
		return nil, err
	}
	if login.Log == nil {
		login.Log = slog.Default()
	}
	h, err := login.httpClient()
	if err != nil {
		return nil, err
	}
	h.Transport = identity.Among(h.Transport, servers)
	s := &Session{login: login, http: h}
	url := "https://" + servers[0]
	s.client = rotorv1.NewAuthServiceClient(h, url)
	s.admin = newAdmin(h, url, connect.WithInterceptors(bearing{s}))
	if err := s.renew(ctx, ""); err != nil {
		h.CloseIdleConnections()
		return nil, err
	}
	return s, nil
}

func (l Login) httpClient() (*http.Client, error) {
	var authority []byte
	if l.CAFile != "" {
		text, err := readProof(l.CAFile)
		if err != nil {
			return nil, err
		}
		authority = []byte(text)
	}
	if l.Certificate == "" {
		return identity.ServerClient(authority, nil)
	}
	pair, err := tls.LoadX509KeyPair(l.Certificate, l.Key)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "client certificate", err)
	}
	return identity.ServerClient(authority, &pair)
}

func readProof(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault.Wrap(fault.NotFound, path, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxProof+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	defer clear(b)
	if len(b) > maxProof {
		return "", fault.New(fault.TooLarge, path)
	}
	return strings.TrimSpace(string(b)), nil
}

// Admin is the whole API of the server, as the caller.
func (s *Session) Admin() *Admin { return s.admin }

// Caller is the name that the rules see.
func (s *Session) Caller() string { s.mu.Lock(); defer s.mu.Unlock(); return s.caller }

// Namespace is where the server's instances have their keys.
func (s *Session) Namespace() string { s.mu.Lock(); defer s.mu.Unlock(); return s.ns }

// Token is the present session token, a secret: "Authorization: Bearer" and it.
func (s *Session) Token() string { s.mu.Lock(); defer s.mu.Unlock(); return s.token }

// Close ends the session at the server.
func (s *Session) Close(ctx context.Context) error {
	_, err := s.admin.Auth.Logout(ctx, connect.NewRequest(&rotorv1.LogoutRequest{}))
	s.http.CloseIdleConnections()
	if CodeOf(err) == fault.Unauthenticated {
		return nil // it had ended
	}
	return err
}

// current gives the token for a request, after another login if it is about to end.
func (s *Session) current(ctx context.Context) string {
	s.mu.Lock()
	token, now := s.token, time.Now()
	late := now.After(s.renewal) || s.idle > 0 && now.Sub(s.used) > s.idle/2
	s.used = now
	s.mu.Unlock()
	if !late {
		return token
	}
	if err := s.renew(ctx, token); err != nil {
		s.login.Log.Warn("no new session, the present one is used until it ends", "error", err)
		return token
	}
	return s.Token()
}

// renew logs in, unless somebody else has since the token was looked at.
func (s *Session) renew(ctx context.Context, old string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != old {
		return nil
	}
	m := &rotorv1.LoginRequest{Issuer: s.login.Issuer, Credential: s.login.Credential}
	for path, to := range map[string]*string{s.login.CredentialFile: &m.Credential, s.login.TokenFile: &m.Jwt} {
		if path == "" {
			continue
		}
		text, err := readProof(path)
		if err != nil {
			return err
		}
		*to = text
	}
	r, err := s.client.Login(ctx, connect.NewRequest(m))
	if err != nil {
		return rpc.Decode(err)
	}
	life := time.Until(r.Msg.GetExpires().AsTime())
	s.token, s.caller, s.ns = r.Msg.GetToken(), r.Msg.GetCaller(), r.Msg.GetNamespace()
	s.used, s.idle = time.Now(), time.Duration(r.Msg.GetIdleNs())
	s.renewal = s.used.Add(life * 9 / 10)
	return nil
}

// bearing shows the session with each request, and once more with another one when the server does not know it.
type bearing struct{ s *Session }

// WrapUnary implements connect.Interceptor.
func (b bearing) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		token := b.s.current(ctx)
		r.Header().Set("Authorization", "Bearer "+token)
		out, err := next(ctx, r)
		if err == nil || CodeOf(rpc.Decode(err)) != fault.Unauthenticated || b.s.renew(ctx, token) != nil {
			return out, err
		}
		r.Header().Set("Authorization", "Bearer "+b.s.Token())
		return next(ctx, r)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (b bearing) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		c := next(ctx, spec)
		c.RequestHeader().Set("Authorization", "Bearer "+b.s.current(ctx))
		return c
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (bearing) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
