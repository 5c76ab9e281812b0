package oidc

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
)

// Times of an issuer's keys.
const (
	refreshEvery = 10 * time.Minute // after which the keys are fetched again, at the next token
	retryEvery   = 15 * time.Second // between two fetches, however many tokens name an unknown key
	maxStale     = 24 * time.Hour   // how long keys count while the issuer cannot be reached
	fetchTime    = 10 * time.Second
	maxSkew      = 2 * time.Minute
	maxDocument  = 256 << 10 // of discovery, in bytes
	maxBearer    = 16 << 10
)

// Config says whom an issuer's tokens speak of. Name, URL and Audiences must be set.
type Config struct {
	Name      string   // of the issuer in callers' names
	URL       string   // what "iss" says; https, unless Keys is set
	Audiences []string // one of them has to stand in "aud"
	Kind      string   // "", kubernetes, github or gitlab: attributes that such tokens have, beside Attributes
	Subjects  []string // patterns of "sub", one of which fits; empty: any

	Attributes map[string]string // attribute of the caller -> claim that it is made of, by name or JSON Pointer
	Require    map[string]string // attribute -> pattern that it has to fit; a token without it is refused

	Keys       string         // URL of the key set; default: what discovery at URL says
	CAs        *x509.CertPool // that issuer's servers are checked with; nil: the system's
	BearerFile string         // file with a token that is shown to the issuer's server, as Kubernetes wants; read at each fetch
	Skew       time.Duration  // between the clocks; default 1 m, at most 2 m
	Session    time.Duration  // life of a session that a token is exchanged for; default 1 h
	MaxLife    time.Duration  // of a token, from iat (or nbf) to exp; default 24 h
	Refresh    time.Duration  // default 10 m, for tests
	Stale      time.Duration  // default and at most 24 h
}

// presets are the attributes of well-known issuers.
var presets = map[string]map[string]string{
	"": nil,
	"kubernetes": {
		"namespace": "/kubernetes.io/namespace", "service_account": "/kubernetes.io/serviceaccount/name", "service_account_uid": "/kubernetes.io/serviceaccount/uid",
		"pod": "/kubernetes.io/pod/name", "node": "/kubernetes.io/node/name",
	},
	"github": {
		"repository": "repository", "repository_id": "repository_id", "repository_owner_id": "repository_owner_id", "ref": "ref", "environment": "environment",
		"workflow": "job_workflow_ref", "event": "event_name", "run": "run_id",
	},
	"gitlab": {
		"repository": "project_path", "repository_id": "project_id", "ref": "ref", "ref_type": "ref_type", "ref_protected": "ref_protected",
		"environment": "environment", "environment_protected": "environment_protected", "run": "pipeline_id",
	},
}

// Issuer verifies the tokens of one issuer. Safe for concurrent use.
type Issuer struct {
	Config
	http   *http.Client
	bearer string // in the place of BearerFile

	mu      sync.Mutex // guards what follows
	keys    map[string]jose.JSONWebKey
	fetched time.Time     // when the keys were got
	tried   time.Time     // when the last fetch began
	busy    chan struct{} // closed when the fetch that is under way ends
}

// Identity is what a token says of its bearer.
type Identity struct {
	Subject    string
	Attributes map[string]string
}

// New checks a configuration. Nothing is fetched. fault.Invalid.
func New(c Config) (*Issuer, error) {
	bad := func(field, hint string) error {
		return fault.New(fault.Invalid, "issuer "+c.Name+": "+field).WithHint("%s", hint)
	}
	preset, known := presets[c.Kind]
	c.Skew, c.MaxLife = cmp.Or(c.Skew, time.Minute), cmp.Or(c.MaxLife, 24*time.Hour)
	c.Session = cmp.Or(c.Session, time.Hour)
	c.Refresh, c.Stale = cmp.Or(c.Refresh, refreshEvery), cmp.Or(c.Stale, maxStale)
	switch {
	case !keyring.ValidName(c.Name):
		return nil, bad("name", "lower-case letters, digits, and inside . _ -")
	case c.URL == "" || c.Keys == "" && !secure(c.URL):
		return nil, bad("url", "https:// and what the tokens' iss says")
	case c.Keys != "" && !secure(c.Keys):
		return nil, bad("keys", "an https:// URL")
	case len(c.Audiences) == 0 || slices.Contains(c.Audiences, ""):
		return nil, bad("audiences", "name what tokens for rotor are made out to; a token for somebody else is not for rotor")
	case !known:
		return nil, bad("kind", "kubernetes, github, gitlab or none")
	case c.Skew < 0 || c.Skew > maxSkew:
		return nil, bad("skew", "at most 2 m")
	case c.Session < time.Minute || c.Session > 24*time.Hour:
		return nil, bad("session", "1 m to 24 h")
	case c.MaxLife < time.Second || c.MaxLife > 366*24*time.Hour:
		return nil, bad("max_life", "1 s to 366 days")
	case c.Refresh < time.Millisecond || c.Stale < c.Refresh || c.Stale > maxStale:
		return nil, bad("stale", "10 m to 24 h")
	}
	all := map[string]string{}
	for _, m := range []map[string]string{preset, c.Attributes} {
		for name, from := range m {
			all[name] = from
		}
	}
	for name := range c.Require {
		if all[name] == "" {
			return nil, bad("require", "no claim is named for attribute "+name)
		}
	}
	c.Attributes = all
	return &Issuer{Config: c, http: client(c.CAs)}, nil
}

func secure(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.Fragment == "" && u.RawQuery == ""
}

// client goes to the issuer and nowhere else: no proxy of the environment, no redirects, TLS 1.2 and newer.
func client(cas *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout:       fetchTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cas}, DialContext: (&net.Dialer{Timeout: fetchTime}).DialContext,
			TLSHandshakeTimeout: fetchTime, ResponseHeaderTimeout: fetchTime, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute, MaxIdleConns: 2,
			ForceAttemptHTTP2: true,
		},
	}
}

// IssuerOf reads which issuer a token names, without believing it. fault.TokenInvalid.
func IssuerOf(token string) (string, error) {
	_, claims, err := split(token)
	if err != nil {
		return "", err
	}
	return text(claims, "iss")
}

// Verify checks a token: signature, issuer, audience, times, and what the configuration requires. fault.TokenInvalid, UnknownKeyID,
// TokenAlgorithm, TokenExpired, TokenNotYetValid, TokenAudience, Denied, Unavailable when there are no keys to check it with.
func (i *Issuer) Verify(ctx context.Context, now time.Time, token string) (Identity, error) {
	h, claims, err := split(token)
	if err != nil {
		return Identity{}, err
	}
	if iss, err := text(claims, "iss"); err != nil || iss != i.URL {
		return Identity{}, bad("it is of another issuer")
	}
	k, err := i.key(ctx, now, h.KeyID)
	if err != nil {
		return Identity{}, err
	}
	if err := verify(token, h, k); err != nil {
		return Identity{}, err
	}
	if err := i.inTime(now, claims); err != nil {
		return Identity{}, err
	}
	aud, err := audiences(claims)
	if err != nil {
		return Identity{}, err
	}
	if !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(i.Audiences, a) }) {
		return Identity{}, fault.New(fault.TokenAudience, "token")
	}
	return i.identity(claims)
}

// inTime checks exp, nbf and iat with the skew of the clocks. A token without an end is none.
func (i *Issuer) inTime(now time.Time, claims map[string]json.RawMessage) error {
	exp, there, err := moment(claims, "exp")
	if err != nil {
		return err
	}
	if !there {
		return bad("it has no end (exp)")
	}
	if !now.Before(exp.Add(i.Skew)) {
		return fault.New(fault.TokenExpired, "token")
	}
	begins := now
	for _, name := range []string{"nbf", "iat"} {
		t, there, err := moment(claims, name)
		if err != nil {
			return err
		}
		if there && now.Add(i.Skew).Before(t) {
			return fault.New(fault.TokenNotYetValid, "token")
		}
		if there {
			begins = t
		}
	}
	if exp.Sub(begins) > i.MaxLife {
		return bad("it lives longer than " + i.MaxLife.String())
	}
	return nil
}

// identity makes subject and attributes of claims. fault.TokenInvalid, Denied.
func (i *Issuer) identity(claims map[string]json.RawMessage) (Identity, error) {
	sub, err := text(claims, "sub")
	if err != nil {
		return Identity{}, err
	}
	if sub == "" || len(sub) > maxSubject || strings.ContainsFunc(sub, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Identity{}, bad("its subject is empty, too long or no printable text")
	}
	if len(i.Subjects) > 0 && !slices.ContainsFunc(i.Subjects, func(p string) bool { return policy.Match(p, sub) }) {
		return Identity{}, fault.New(fault.Denied, "login").WithHint("the issuer's configuration does not take this subject")
	}
	out := Identity{Subject: sub, Attributes: map[string]string{}}
	for name, from := range i.Attributes {
		value, there, err := claim(claims, from)
		if err != nil {
			return Identity{}, err
		}
		if there {
			out.Attributes[name] = value
		}
	}
	for name, pattern := range i.Require {
		if value, there := out.Attributes[name]; !there || !policy.Match(pattern, value) {
			return Identity{}, fault.New(fault.Denied, "login").WithHint("the issuer's configuration demands another %s", name)
		}
	}
	return out, nil
}

// key finds a key. Keys that are old, or do not have it, are fetched again, but not more often than retryEvery; while that fails the old ones
// count for Stale. fault.UnknownKeyID, Unavailable.
func (i *Issuer) key(ctx context.Context, now time.Time, kid string) (jose.JSONWebKey, error) {
	i.mu.Lock()
	k, ok := i.keys[kid]
	fresh := !i.fetched.IsZero() && now.Sub(i.fetched) < i.Refresh
	i.mu.Unlock()
	if ok && fresh {
		return k, nil
	}
	failed := i.fetch(ctx, now)
	i.mu.Lock()
	defer i.mu.Unlock()
	k, ok = i.keys[kid]
	switch {
	case i.fetched.IsZero() || now.Sub(i.fetched) >= i.Stale:
		return k, fault.Wrap(fault.Unavailable, "issuer "+i.Name, failed)
	case !ok:
		return k, fault.New(fault.UnknownKeyID, "token")
	}
	return k, nil
}

// fetch gets the keys, if it is time; who comes while somebody fetches waits for that.
func (i *Issuer) fetch(ctx context.Context, now time.Time) error {
	i.mu.Lock()
	if busy := i.busy; busy != nil {
		i.mu.Unlock()
		select {
		case <-busy:
			return nil
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "login", ctx.Err())
		}
	}
	if !i.tried.IsZero() && now.Sub(i.tried) < min(retryEvery, i.Refresh) && !now.Before(i.tried) {
		i.mu.Unlock()
		return nil
	}
	i.busy, i.tried = make(chan struct{}), now
	i.mu.Unlock()
	keys, err := i.download(context.WithoutCancel(ctx)) // others wait for it too; the client has a limit of time
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.busy)
	i.busy = nil
	if err == nil {
		i.keys, i.fetched = keys, now
	}
	return err
}

// download asks the issuer for its keys.
func (i *Issuer) download(ctx context.Context) (map[string]jose.JSONWebKey, error) {
	at := i.Keys
	if at == "" {
		b, err := i.get(ctx, strings.TrimSuffix(i.URL, "/")+"/.well-known/openid-configuration", maxDocument)
		if err != nil {
			return nil, err
		}
		if at, err = parseDiscovery(b, i.URL); err != nil {
			return nil, err
		}
	}
	b, err := i.get(ctx, at, maxSet)
	if err != nil {
		return nil, err
	}
	return parseSet(b)
}

// parseDiscovery reads where the keys are (OpenID Connect Discovery 1.0, 4.3). fault.Invalid.
func parseDiscovery(b []byte, issuer string) (keys string, err error) {
	var d struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return "", fault.New(fault.Invalid, "discovery").WithHint("the issuer's configuration does not parse")
	}
	if d.Issuer != issuer {
		return "", fault.New(fault.Invalid, "discovery").WithHint("the issuer calls itself by another name")
	}
	if !secure(d.Keys) {
		return "", fault.New(fault.Invalid, "discovery").WithHint("its key set is at no https:// URL")
	}
	return d.Keys, nil
}

func (i *Issuer) get(ctx context.Context, at string, most int64) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", at, err)
	}
	r.Header.Set("Accept", "application/json")
	if i.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+i.bearer)
	}
	if i.BearerFile != "" {
		b, err := readBearer(i.BearerFile)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+b)
	}
	resp, err := i.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", at, err)
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s: %s", at, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", at, err)
	}
	if int64(len(b)) > most {
		return nil, fault.New(fault.TooLarge, "answer of "+at)
	}
	return b, nil
}

func readBearer(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read bearer: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxBearer))
	if err != nil {
		return "", fmt.Errorf("read bearer: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Inherit takes over the keys of an issuer that this one replaces, if they come from the same place, so that a reload needs no fetch.
func (i *Issuer) Inherit(old *Issuer) {
	if i.URL != old.URL || i.Keys != old.Keys {
		return
	}
	old.mu.Lock()
	keys, fetched := old.keys, old.fetched
	old.mu.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fetched.IsZero() {
		i.keys, i.fetched = keys, fetched
	}
}

// Close lets go of the connections to the issuer.
func (i *Issuer) Close() { i.http.CloseIdleConnections() }
