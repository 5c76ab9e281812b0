package rotor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/singleflight"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/token"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Claims are what a verified access token says (RFC 9068). Times are seconds since 1970.
type Claims = token.Claims

// TokenRequest asks for an access token about the client itself.
type TokenRequest struct {
	Key      string        // the signing key
	Audience string        // who will verify it
	Scope    []string      // what it is for
	TTL      time.Duration // default 5 minutes, at most 24 hours
}

// Token asks the server for an access token.
func (c *Client) Token(ctx context.Context, r TokenRequest) (string, error) {
	out, err := c.admin.Tokens.Issue(ctx, connect.NewRequest(&rotorv1.IssueRequest{
		Key: &rotorv1.KeyRef{Name: r.Key}, Audience: r.Audience, Scope: r.Scope, TtlNs: int64(r.TTL),
	}))
	if err != nil {
		return "", err
	}
	return out.Msg.GetToken(), nil
}

// VerifyToken checks an access token of this cluster against the published key set, which is fetched when it is older than its
// Cache-Control allows and once more for a kid that it does not have. A set that is too old and cannot be fetched is used for
// maxOldSet longer. Codes: token_invalid, token_expired, token_not_yet_valid, token_audience, token_algorithm, unknown_key_id.
func (c *Client) VerifyToken(ctx context.Context, text, audience string) (Claims, error) {
	kid, err := token.KeyID(text)
	if err != nil {
		return Claims{}, err
	}
	keys, err := c.jwks.with(ctx, kid)
	if err != nil {
		return Claims{}, err
	}
	issuer := cmp.Or(keys.issuer, "https://"+c.dir.Issuer())
	return token.Verify(c.config.clock.Now(), text, keys.set, token.Expect{Issuer: issuer, Audience: audience})
}

const (
	jwksPath  = "/.well-known/jwks.json"
	issuerIs  = "Rotor-Issuer" // header of the key set: what the cluster's servers call themselves, if they have one name for all
	maxJWKS   = 1 << 20
	maxOldSet = 10 * time.Minute
	missEvery = time.Second // at most one fetch in this time for unknown kids, whoever sends them
)

// published is a fetched key set.
type published struct {
	set     token.Set
	issuer  string // "": each server has its own
	fetched time.Time
	maxAge  time.Duration
}

// keySet is the cache of a published key set.
type keySet struct {
	fetch func(context.Context) (published, error)
	clock clock
	now   atomic.Pointer[published]
	tried atomic.Pointer[time.Time] // of the last fetch that failed
	once  singleflight.Group
}

func newKeySet(fetch func(context.Context) (published, error), c clock) *keySet {
	return &keySet{fetch: fetch, clock: c}
}

// with returns a set that has the kid if there is one.
func (s *keySet) with(ctx context.Context, kid string) (*published, error) {
	now, have := s.clock.Now(), s.now.Load()
	if have != nil && now.Sub(have.fetched) < max(have.maxAge, missEvery) {
		_, known := have.set.Find(kid)
		if known || now.Sub(have.fetched) < missEvery {
			return have, nil
		}
	}
	usable := have != nil && now.Sub(have.fetched) < have.maxAge+maxOldSet
	if at := s.tried.Load(); usable && at != nil && now.Sub(*at) < missEvery {
		return have, nil // the server did not answer a moment ago, and nobody waits for it again
	}
	fresh, err := s.refresh(ctx)
	if err != nil && usable {
		return have, nil
	}
	return fresh, err
}

// refresh fetches the set, once for all who ask meanwhile. It goes on for the others when the one who asked first gives up.
func (s *keySet) refresh(ctx context.Context) (*published, error) {
	answer := s.once.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		defer cancel()
		p, err := s.fetch(ctx)
		if err != nil {
			now := s.clock.Now()
			s.tried.Store(&now)
			return nil, err
		}
		s.now.Store(&p)
		s.tried.Store(nil)
		return nil, nil
	})
	select {
	case r := <-answer:
		return s.now.Load(), r.Err
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Canceled, "key set", ctx.Err())
	}
}

func (c *Client) fetchKeys(ctx context.Context) (published, error) {
	asked := c.config.clock.Now()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.server+jwksPath, nil)
	if err != nil {
		return published{}, fmt.Errorf("ask for key set: %w", err)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return published{}, fault.Wrap(fault.Unavailable, "key set", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	if err != nil || resp.StatusCode != http.StatusOK {
		return published{}, fault.Wrap(fault.Unavailable, "key set", err)
	}
	set, err := token.ParseSet(b)
	return published{set, resp.Header.Get(issuerIs), asked, maxAge(resp.Header.Get("Cache-Control"))}, err
}

// maxAge reads the max-age directive (RFC 9111, 5.2.2.1), 0 when there is none.
func maxAge(header string) time.Duration {
	for _, d := range strings.Split(header, ",") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(d), "max-age="); ok {
			if n, err := strconv.Atoi(v); err == nil && n >= 0 {
				return min(time.Duration(n)*time.Second, 24*time.Hour)
			}
		}
	}
	return 0
}
