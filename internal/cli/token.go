package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/token"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const (
	jwksPath = "/.well-known/jwks.json"
	maxJWKS  = 1 << 20 // bytes
)

func newToken(a *app) *cobra.Command {
	return newNoun("token", "Issue and verify access tokens", newTokenIssue(a), newTokenVerify(a))
}

func newTokenIssue(a *app) *cobra.Command {
	var (
		audience string
		scope    []string
		ttl      time.Duration
	)
	c := &cobra.Command{
		Use:   "issue KEY --audience AUDIENCE",
		Short: "Issue an access token about yourself and print it",
		Long:  `Issue an access token (RFC 9068) about the caller, signed by a key for signing, and print it on standard output. It is a secret.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if audience == "" {
				return usage("--audience", "say who will verify it")
			}
			s, err := a.connect()
			if err != nil {
				return err
			}
			defer s.close()
			m, err := message(s.tokens.Issue(c.Context(), request(&rotorv1.IssueRequest{Key: a.ref(args[0]), Audience: audience, Scope: scope, TtlNs: int64(ttl)})))
			if err != nil {
				return err
			}
			return a.showText(m.GetToken(), struct {
				Token string `json:"token"`
			}{m.GetToken()})
		},
	}
	c.Flags().StringVar(&audience, "audience", "", "who will verify it")
	c.Flags().StringSliceVar(&scope, "scope", nil, "what it is for; may be repeated")
	c.Flags().Var(duration{&ttl}, "ttl", "how long it is good for (default 5m, at most 24h)")
	return c
}

// verifyFlags are the flags of token verify.
type verifyFlags struct {
	audience, issuer, jwks, file string
	leeway                       time.Duration
}

func newTokenVerify(a *app) *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify --audience AUDIENCE",
		Short: "Verify an access token from standard input or a file",
		Long: `Verify an access token from standard input or --token-file, and show its claims. The keys come from the server's ` + jwksPath + `, or from
a file with --jwks, which needs no server.`,
		Example: "  rotor token issue tokens --audience b | rotor token verify --audience b",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.verifyToken(c.Context(), f) },
	}
	c.Flags().StringVar(&f.audience, "audience", "", "who you are: the token must be for it")
	c.Flags().StringVar(&f.issuer, "issuer", "", "issuer to demand (default: the one that the server names, else https:// and its address)")
	c.Flags().StringVar(&f.jwks, "jwks", "", "file with the key set, instead of the server's; needs --issuer")
	c.Flags().StringVar(&f.file, "token-file", "", "file that holds the token")
	c.Flags().Var(duration{&f.leeway}, "leeway", "how far clocks may differ (default 0s)")
	return c
}

func (a *app) verifyToken(ctx context.Context, f verifyFlags) error {
	if f.audience == "" {
		return usage("--audience", "say who you are; a token for somebody else must be refused")
	}
	if f.jwks != "" && f.issuer == "" {
		return usage("--issuer", "with --jwks there is no server to take it from")
	}
	text, err := a.secretText(f.file, "token")
	if err != nil {
		return err
	}
	set, issuer, err := a.keySet(ctx, f)
	if err != nil {
		return err
	}
	claims, err := token.Verify(time.Now(), text, set, token.Expect{Issuer: issuer, Audience: f.audience, Leeway: f.leeway})
	if err != nil {
		return err
	}
	return a.show(claims, table{rows: [][]string{
		{"subject", claims.Subject}, {"issuer", claims.Issuer}, {"audience", claims.Audience}, {"scope", claims.Scope},
		{"issued", unix(claims.IssuedAt)}, {"not before", unix(claims.NotBefore)}, {"expires", unix(claims.Expires)}, {"id", claims.ID},
	}})
}

func unix(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// keySet reads the key set from a file or the server, and says which issuer to demand.
func (a *app) keySet(ctx context.Context, f verifyFlags) (token.Set, string, error) {
	if f.jwks != "" {
		file, err := os.Open(f.jwks)
		if err != nil {
			return token.Set{}, "", err
		}
		defer func() { _ = file.Close() }() // only read
		b, err := readAll(file, maxJWKS, f.jwks)
		if err != nil {
			return token.Set{}, "", err
		}
		set, err := token.ParseSet(b)
		return set, f.issuer, err
	}
	s, err := a.connect()
	if err != nil {
		return token.Set{}, "", err
	}
	defer s.close()
	set, issuer, err := s.fetchKeySet(ctx)
	return set, cmp.Or(f.issuer, issuer, "https://"+s.address), err
}

// fetchKeySet reads the server's key set, and what the cluster's servers call themselves if they have one name for all.
func (s *api) fetchKeySet(ctx context.Context) (token.Set, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.address+jwksPath, nil)
	if err != nil {
		return token.Set{}, "", fmt.Errorf("ask for key set: %w", err)
	}
	resp, err := s.http.Do(r)
	if err != nil {
		return token.Set{}, "", fault.Wrap(fault.Unavailable, "key set", err)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	if resp.StatusCode != http.StatusOK {
		return token.Set{}, "", fault.New(fault.Unavailable, "key set").WithHint("the server answered %s", resp.Status)
	}
	b, err := readAll(resp.Body, maxJWKS, "key set")
	if err != nil {
		return token.Set{}, "", err
	}
	set, err := token.ParseSet(b)
	return set, resp.Header.Get("Rotor-Issuer"), err
}
