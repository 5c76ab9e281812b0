package vault

import (
	"context"

	"github.com/rotorkms/rotor/internal/acl"
)

// foreignRoutes are those below mounts of jwt, kubernetes and cert, whose proofs others have made.
func foreignRoutes(c Config) []route {
	url := func(name, doc string) field { return field{name, "string", doc, false} }
	login := func(engine, doc string, fields []field, h handler) route {
		return route{pattern: "login", engine: engine, ops: map[operation]handler{opUpdate: h}, stranger: true, login: true, fields: fields, doc: doc}
	}
	proof := []field{{"role", "string", "role", true}, {"jwt", "string", "token", true}}
	of := func(kind, name string, show func(map[string]any)) entries {
		return entries{Config: c, kind: kind, name: name, older: olderNames, show: show}
	}
	var all []route
	all = append(all, of(acl.KindJWTConfig, "", nil).routes("jwt", "config", "", "Says whose tokens are taken.", "no logins through a browser; nothing is fetched before the first login", []field{
		url("oidc_discovery_url", "issuer whose configuration names its keys"), url("oidc_discovery_ca_pem", "authority of its server"), url("jwks_url", "key set"), url("jwks_ca_pem", "authority of its server"),
		{"jwt_validation_pubkeys", "list", "public keys in PEM", false}, url("bound_issuer", "what iss has to be"), {"jwt_supported_algs", "list", "algorithms", false}, url("default_role", "role of a login that names none"),
	})...)
	all = append(all, of(acl.KindJWTRole, "name", nil).routes("jwt", "role/:name", "role", "Says which tokens are let in, and what their tokens are like.",
		"a token without an end (exp) is refused; expiration_leeway and not_before_leeway change nothing; no groups", append([]field{
			{"role_type", "string", "jwt", false}, {"user_claim", "string", "claim with the name", true}, {"user_claim_json_pointer", "bool", "it is a JSON Pointer", false},
			{"bound_audiences", "list", "one of them is in aud", false}, {"bound_subject", "string", "what sub has to be", false}, {"bound_claims", "map", "values that claims have to have", false},
			{"bound_claims_type", "string", "string or glob", false}, {"claim_mappings", "map", "claims that become metadata", false}, {"clock_skew_leeway", "duration", "60 s unless said", false},
		}, tokenFields...))...)
	all = append(all, login("jwt", "Exchanges a token of the configured issuer for one.", proof, func(ctx context.Context, r *request) (*response, error) {
		return ticket(c.ACL.LoginJWT(stays(ctx), c.door(ctx, r), r.str("role"), r.str("jwt")))
	}))
	hidden := func(data map[string]any) {
		data["token_reviewer_jwt_set"] = data["token_reviewer_jwt"] != ""
		delete(data, "token_reviewer_jwt")
	}
	all = append(all, of(acl.KindKubeConfig, "", hidden).routes("kubernetes", "config", "", "Says whose service accounts are taken.",
		"tokens are verified by keys, those given or those of the API server (/openid/v1/jwks); it is not asked about each token", []field{
			url("kubernetes_host", "API server, https"), url("kubernetes_ca_cert", "its authority"), url("token_reviewer_jwt", "token that is shown to it"), {"pem_keys", "list", "public keys in PEM", false},
			url("issuer", "what iss has to be"), {"disable_iss_validation", "bool", "true unless said", false}, {"disable_local_ca_jwt", "bool", "kept and shown", false},
		})...)
	all = append(all, of(acl.KindKubeRole, "name", nil).routes("kubernetes", "role/:name", "role", "Says which service accounts are let in.",
		"without an audience a token has to be made out to the API server; one without an end (exp) is refused", append([]field{
			{"bound_service_account_names", "list", "names, with *", true}, {"bound_service_account_namespaces", "list", "namespaces, with *", true}, {"audience", "string", "what aud has to have", false},
			{"alias_name_source", "string", "kept and shown", false},
		}, tokenFields...))...)
	all = append(all, login("kubernetes", "Exchanges the token of a service account for one.", proof, func(ctx context.Context, r *request) (*response, error) {
		return ticket(c.ACL.LoginKubernetes(stays(ctx), c.door(ctx, r), r.str("role"), r.str("jwt")))
	}))
	all = append(all, of(acl.KindCert, "name", nil).routes("cert", "certs/:name", "certs", "Says which client certificates are let in.",
		"no OCSP, no revocation lists, no demanded extensions; tokens end with the certificate", append([]field{
			{"certificate", "string", "authority, or the certificate itself, in PEM", true}, {"display_name", "string", "name that is shown", false}, {"allowed_common_names", "list", "with *", false},
			{"allowed_names", "list", "names of any kind, with *", false}, {"allowed_dns_sans", "list", "with *", false}, {"allowed_email_sans", "list", "with *", false}, {"allowed_uri_sans", "list", "with *", false},
			{"allowed_organizational_units", "list", "with *", false},
		}, tokenFields...))...)
	return append(all, login("cert", "Exchanges the client certificate of the connection for a token.", []field{{"name", "string", "entry; any when left out", false}}, func(ctx context.Context, r *request) (*response, error) {
		return ticket(c.ACL.LoginCert(stays(ctx), c.door(ctx, r), r.str("name")))
	}))
}
