package acl

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/oidc"
	"github.com/rotorkms/rotor/internal/store"
)

// Skew of the clocks of issuers.
const (
	defaultSkew = time.Minute
	maxSkew     = 10 * time.Minute
)

// JWTConfig says whose tokens a jwt mount takes.
type JWTConfig struct {
	Discovery   string       `json:"oidc_discovery_url"`
	DiscoveryCA string       `json:"oidc_discovery_ca_pem"`
	Set         string       `json:"jwks_url"`
	SetCA       string       `json:"jwks_ca_pem"`
	PublicKeys  lenient.List `json:"jwt_validation_pubkeys"`
	BoundIssuer string       `json:"bound_issuer"`
	Algorithms  lenient.List `json:"jwt_supported_algs"`
	DefaultRole string       `json:"default_role"`
	ClientID    string       `json:"oidc_client_id"`
}

func (c *JWTConfig) check() error {
	if c.ClientID != "" {
		return bad("oidc_client_id is not supported: logins through a browser are not built, those by a token are")
	}
	_, err := c.keys("")
	return err
}

// keys makes what verifies the tokens.
func (c *JWTConfig) keys(name string) (*oidc.Keys, error) {
	cas := c.SetCA
	if c.Discovery != "" {
		cas = c.DiscoveryCA
	}
	pool, err := poolOf(cas)
	if err != nil {
		return nil, err
	}
	return oidc.NewKeys(oidc.KeysConfig{Name: name, Discovery: c.Discovery, Set: c.Set, PEM: c.PublicKeys, CAs: pool})
}

// issuer is what "iss" has to be; "": anything, as the keys decide.
func (c *JWTConfig) issuer() string {
	if c.BoundIssuer == "" {
		return c.Discovery
	}
	return c.BoundIssuer
}

// poolOf reads authorities in PEM; nil for none: the system's.
func poolOf(text string) (*x509.CertPool, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(text)) {
		return nil, bad("the CA certificate is no certificate in PEM")
	}
	return pool, nil
}

// ClaimSet are values by the names of claims, one of which has to be there.
type ClaimSet map[string][]string

// UnmarshalJSON implements json.Unmarshaler.
func (c *ClaimSet) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	b, err := lenient.Object(b)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	out := ClaimSet{}
	for name, value := range raw {
		var all []json.RawMessage
		if json.Unmarshal(value, &all) != nil {
			all = []json.RawMessage{value}
		}
		out[name] = []string{}
		for _, v := range all {
			text := lenient.Text(v)
			if is := string(v); is != "true" && is != "false" { // which are claims, too
				if err := text.UnmarshalJSON(v); err != nil {
					return err
				}
			}
			out[name] = append(out[name], string(text))
		}
	}
	*c = out
	return nil
}

// JWTRole is a role of a jwt mount.
type JWTRole struct {
	RoleType        string           `json:"role_type"`
	UserClaim       string           `json:"user_claim"`
	UserPointer     lenient.Bool     `json:"user_claim_json_pointer"`
	BoundAudiences  lenient.List     `json:"bound_audiences"`
	BoundSubject    string           `json:"bound_subject"`
	BoundClaims     ClaimSet         `json:"bound_claims"`
	BoundClaimsType string           `json:"bound_claims_type"`
	Mappings        lenient.Map      `json:"claim_mappings"`
	GroupsClaim     string           `json:"groups_claim"`
	Skew            lenient.Duration `json:"clock_skew_leeway"`
	Expiration      lenient.Duration `json:"expiration_leeway"`
	NotBefore       lenient.Duration `json:"not_before_leeway"`
	MaxAge          lenient.Duration `json:"max_age"`
	Params
}

func (r *JWTRole) check() error {
	switch {
	case r.RoleType != "" && r.RoleType != "jwt":
		return bad("role_type %q is not supported: jwt", r.RoleType)
	case r.UserClaim == "":
		return bad("a user claim must be defined on the role")
	case len(r.BoundAudiences)+len(r.BoundClaims)+len(r.BoundCIDRs) == 0 && r.BoundSubject == "":
		return bad("must have at least one bound constraint when creating/updating a role")
	case r.BoundClaimsType != "" && r.BoundClaimsType != "string" && r.BoundClaimsType != "glob":
		return bad("invalid 'bound_claims_type': %s", r.BoundClaimsType)
	case r.MaxAge > 0 || r.GroupsClaim != "":
		return bad("max_age and groups_claim are not supported: there are no logins through a browser, and no groups")
	case time.Duration(r.Skew) > maxSkew:
		return bad("clock_skew_leeway is at most %s", maxSkew)
	case len(r.Mappings) > maxMeta || len(r.BoundClaims) > maxMeta:
		return bad("at most %d claims", maxMeta)
	}
	for _, to := range r.Mappings {
		if to == "role" {
			return bad(`metadata key "role" is reserved and may not be a mapping destination`)
		}
	}
	return r.Params.check()
}

// invalidToken is the answer to a token that no key or role here is for: nobody learns which there are.
const invalidToken = "error validating token: it is of no issuer or role here"

// LoginJWT exchanges the token of a configured issuer for one. What is wrong with a token is told to who shows one with a right signature. fault.Invalid,
// Unavailable when the issuer's keys cannot be fetched.
func (s *Service) LoginJWT(ctx context.Context, d Door, role, jwt string) (Ticket, error) {
	if jwt == "" {
		return Ticket{}, bad("missing token")
	}
	var c JWTConfig
	at := At{Namespace: d.Namespace, Mount: d.Mount, Kind: KindJWTConfig, Name: ConfigName}
	_, rev, there, err := read(ctx, s, at, &c)
	if err != nil {
		return Ticket{}, err
	}
	if !there {
		return Ticket{}, s.refuse(ctx, d, notIn("could not load configuration"))
	}
	if role == "" {
		role = c.DefaultRole
	}
	if role == "" {
		return Ticket{}, bad("missing role")
	}
	at.Kind, at.Name = KindJWTRole, role
	var r JWTRole
	_, _, found, err := read(ctx, s, at, &r)
	if err != nil {
		return Ticket{}, err
	}
	claims, err := s.verified(ctx, d, KindJWTConfig, rev, jwt, c.Algorithms, c.keys)
	if err != nil {
		return Ticket{}, err
	}
	if !found {
		return Ticket{}, s.refuse(ctx, d, notIn(invalidToken))
	}
	v, err := r.visitor(c.issuer(), claims, s.Now())
	if err != nil {
		return Ticket{}, s.refuse(ctx, d, invalid(err))
	}
	v.caller, v.source = role+"/"+v.caller, at.id()
	v.meta["role"] = role
	return s.open(ctx, d, v)
}

// invalid is a fault of a token as an answer.
func invalid(err error) error {
	if fault.CodeOf(err) == fault.TokenInvalid {
		return bad("error validating token: its claims are not as they have to be")
	}
	return err
}

// verified gives the claims of a token, if its signature is right. fault.Invalid, Unavailable.
func (s *Service) verified(ctx context.Context, d Door, kind string, rev store.Rev, jwt string, algorithms []string, make func(string) (*oidc.Keys, error)) (oidc.Claims, error) {
	keys, err := s.signers.keys(entryID(d.Mount, kind, ConfigName), rev, func() (*oidc.Keys, error) { return make(d.Mount.Full()) })
	if err != nil {
		return nil, err
	}
	claims, err := keys.Verify(ctx, s.Now(), jwt, algorithms)
	switch fault.CodeOf(err) {
	case "", fault.Unavailable, fault.Canceled:
		return claims, err
	}
	return nil, s.refuse(ctx, d, notIn(invalidToken))
}

// visitor is whom a token speaks of, if the role takes it. Its caller is the end of a caller's name. fault.Invalid, TokenInvalid.
func (r *JWTRole) visitor(issuer string, c oidc.Claims, now time.Time) (visitor, error) {
	none := func(err error) (visitor, error) { return visitor{}, err }
	skew := time.Duration(r.Skew)
	if skew == 0 {
		skew = defaultSkew
	}
	if err := inTime(c, now, skew); err != nil {
		return none(err)
	}
	iss, err := c.Text("iss")
	if err != nil || issuer != "" && iss != issuer {
		return none(bad("error validating token: invalid issuer (iss) claim"))
	}
	sub, err := c.Text("sub")
	if err != nil || r.BoundSubject != "" && sub != r.BoundSubject {
		return none(bad("error validating token: invalid subject (sub) claim"))
	}
	aud, err := c.Audiences()
	switch {
	case err != nil:
		return none(err)
	case len(r.BoundAudiences) == 0 && len(aud) > 0:
		return none(bad("audience claim found in JWT but no audiences bound to the role"))
	case len(r.BoundAudiences) > 0 && !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(r.BoundAudiences, a) }):
		return none(bad("error validating token: invalid audience (aud) claim: audience claim does not match any expected audience"))
	}
	if err := r.bound(c); err != nil {
		return none(err)
	}
	user, err := r.user(c)
	if err != nil {
		return none(err)
	}
	meta, err := mapped(c, r.Mappings)
	return visitor{caller: user, display: user, params: &r.Params, meta: meta}, err
}

// user is the claim that names the bearer.
func (r *JWTRole) user(c oidc.Claims) (string, error) {
	path := r.UserClaim
	if !bool(r.UserPointer) && strings.HasPrefix(path, "/") {
		return "", bad("claim %q not found in token", r.UserClaim)
	}
	values, there, err := c.Values(path)
	switch {
	case err != nil:
		return "", err
	case !there:
		return "", bad("claim %q not found in token", r.UserClaim)
	case len(values) != 1 || !sayable(values[0]):
		return "", bad("claim %q could not be converted to string", r.UserClaim)
	}
	return values[0], nil
}

// bound checks the claims that the role demands.
func (r *JWTRole) bound(c oidc.Claims) error {
	for name, wanted := range r.BoundClaims {
		got, there, err := c.Values(name)
		if err != nil {
			return err
		}
		if !there {
			return bad("error validating claims: claim %q is missing", name)
		}
		fits := slices.ContainsFunc(got, func(v string) bool { return slices.Contains(wanted, v) })
		if r.BoundClaimsType == "glob" {
			fits = globs(wanted, got)
		}
		if !fits {
			return bad("error validating claims: claim %q does not match any associated bound claim values", name)
		}
	}
	return nil
}

// mapped are the claims that become metadata.
func mapped(c oidc.Claims, mappings lenient.Map) (map[string]string, error) {
	out := map[string]string{}
	for from, to := range mappings {
		values, there, err := c.Values(from)
		if err != nil {
			return nil, err
		}
		if there {
			out[to] = strings.Join(values, ",")
		}
	}
	return out, nil
}
