package acl

import (
	"context"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/oidc"
)

// KubeConfig says whose service accounts a kubernetes mount takes.
type KubeConfig struct {
	Host          string       `json:"kubernetes_host"`
	CA            string       `json:"kubernetes_ca_cert"`
	Reviewer      string       `json:"token_reviewer_jwt"` // shown to the API server when its keys are fetched
	PublicKeys    lenient.List `json:"pem_keys"`
	Issuer        string       `json:"issuer"`
	DisableIssuer lenient.Bool `json:"disable_iss_validation"`
	DisableLocal  lenient.Bool `json:"disable_local_ca_jwt"`
	Annotations   lenient.Bool `json:"use_annotations_as_alias_metadata"`
}

func (c *KubeConfig) check() error {
	switch {
	case bool(c.Annotations):
		return bad("use_annotations_as_alias_metadata is not supported: the API server is not asked about accounts")
	case c.Host == "" && len(c.PublicKeys) == 0:
		return bad("no host provided")
	}
	_, err := c.keys("")
	return err
}

// keys makes what verifies the tokens: the keys that are given, or those that the API server tells (Service Account Issuer Discovery).
func (c *KubeConfig) keys(name string) (*oidc.Keys, error) {
	if len(c.PublicKeys) > 0 {
		return oidc.NewKeys(oidc.KeysConfig{Name: name, PEM: c.PublicKeys})
	}
	pool, err := poolOf(c.CA)
	if err != nil {
		return nil, err
	}
	return oidc.NewKeys(oidc.KeysConfig{Name: name, Set: strings.TrimSuffix(c.Host, "/") + "/openid/v1/jwks", CAs: pool, Bearer: c.Reviewer})
}

// KubeRole is a role of a kubernetes mount.
type KubeRole struct {
	Names       lenient.List `json:"bound_service_account_names"`
	Namespaces  lenient.List `json:"bound_service_account_namespaces"`
	Selector    string       `json:"bound_service_account_namespace_selector"`
	Audience    string       `json:"audience"`
	AliasSource string       `json:"alias_name_source"`
	Params
}

func (r *KubeRole) check() error {
	switch {
	case len(r.Names) == 0:
		return bad("%q can not be empty", "bound_service_account_names")
	case len(r.Namespaces) == 0:
		return bad("%q can not be empty", "bound_service_account_namespaces")
	case r.Selector != "":
		return bad("bound_service_account_namespace_selector is not supported: the API server is not asked about namespaces")
	case len(r.Names) > 1 && slices.Contains(r.Names, "*") || len(r.Namespaces) > 1 && slices.Contains(r.Namespaces, "*"):
		return bad("can not mix %q with values", "*")
	case !slices.Contains([]string{"", "serviceaccount_uid", "serviceaccount_name"}, r.AliasSource):
		return bad("invalid alias_name_source %q", r.AliasSource)
	}
	return r.Params.check()
}

// account is a service account, as its token names it.
type account struct{ namespace, name, uid, secret string }

// LoginKubernetes exchanges the token of a service account for one. Only the token is looked at: an account that was deleted logs in until its token ends,
// so that one without an end is refused. fault.Invalid, Unauthenticated, Unavailable when the keys cannot be fetched.
func (s *Service) LoginKubernetes(ctx context.Context, d Door, role, jwt string) (Ticket, error) {
	switch {
	case role == "":
		return Ticket{}, bad("missing role")
	case jwt == "":
		return Ticket{}, bad("missing jwt")
	}
	var c KubeConfig
	at := At{Namespace: d.Namespace, Mount: d.Mount, Kind: KindKubeConfig, Name: ConfigName}
	_, rev, there, err := read(ctx, s, at, &c)
	if err != nil {
		return Ticket{}, err
	}
	if !there {
		return Ticket{}, s.refuse(ctx, d, notIn("could not load backend configuration"))
	}
	at.Kind, at.Name = KindKubeRole, role
	var r KubeRole
	_, _, found, err := read(ctx, s, at, &r)
	if err != nil {
		return Ticket{}, err
	}
	claims, err := s.verified(ctx, d, KindKubeConfig, rev, jwt, nil, c.keys)
	if err != nil {
		return Ticket{}, err
	}
	who, err := c.account(claims)
	if err == nil {
		err = inTime(claims, s.Now(), defaultSkew)
	}
	if err != nil {
		return Ticket{}, s.refuse(ctx, d, invalid(err))
	}
	if !found || !r.takes(who) || !r.meant(claims) {
		return Ticket{}, s.refuse(ctx, d, fault.New(fault.Unauthenticated, "login").WithHint("the role takes another account, namespace or audience"))
	}
	return s.open(ctx, d, visitor{
		caller: role + "/" + who.namespace + "/" + who.name, display: who.namespace + "-" + who.name, source: at.id(), params: &r.Params,
		meta: map[string]string{
			"role": role, "service_account_uid": who.uid, "service_account_name": who.name, "service_account_namespace": who.namespace, "service_account_secret_name": who.secret,
		},
	})
}

// account reads whom a token is of, in the form of a token that is projected or of one that a secret holds. fault.Invalid, TokenInvalid.
func (c *KubeConfig) account(claims oidc.Claims) (account, error) {
	var a account
	for _, f := range []struct {
		to           *string
		projected    string
		of, required bool
	}{
		{&a.namespace, "/kubernetes.io/namespace", false, true}, {&a.name, "/kubernetes.io/serviceaccount/name", false, true}, {&a.uid, "/kubernetes.io/serviceaccount/uid", false, true},
		{&a.namespace, "kubernetes.io/serviceaccount/namespace", true, true}, {&a.name, "kubernetes.io/serviceaccount/service-account.name", true, true},
		{&a.uid, "kubernetes.io/serviceaccount/service-account.uid", true, true}, {&a.secret, "kubernetes.io/serviceaccount/secret.name", true, false},
	} {
		values, there, err := claims.Values(f.projected)
		if err != nil {
			return a, err
		}
		if there && len(values) == 1 && *f.to == "" {
			*f.to = values[0]
		}
	}
	sub, err := claims.Text("sub")
	if err != nil {
		return a, err
	}
	if !sayable(a.namespace) || !sayable(a.name) || a.uid == "" || sub != "system:serviceaccount:"+a.namespace+":"+a.name {
		return a, bad("error validating token: it is of no service account")
	}
	iss, err := claims.Text("iss")
	if err != nil || !bool(c.DisableIssuer) && iss != c.issuer() {
		return a, bad("error validating token: invalid issuer (iss) claim")
	}
	return a, nil
}

// issuer is what "iss" has to be, where it counts.
func (c *KubeConfig) issuer() string {
	if c.Issuer == "" {
		return "kubernetes/serviceaccount"
	}
	return c.Issuer
}

// takes says whether a role is for an account.
func (r *KubeRole) takes(a account) bool {
	return globs(r.Names, []string{a.name}) && globs(r.Namespaces, []string{a.namespace})
}

// meant says whether a token is made out to the role's audience. Without one it has to be made out to the API server itself, which is its issuer, or to
// nobody: one that is made out to another service is not for us.
func (r *KubeRole) meant(claims oidc.Claims) bool {
	aud, err := claims.Audiences()
	if err != nil {
		return false
	}
	want := r.Audience
	if want == "" {
		iss, err := claims.Text("iss")
		if err != nil || len(aud) == 0 {
			return err == nil
		}
		want = iss
	}
	return slices.Contains(aud, want)
}
