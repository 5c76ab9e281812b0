package native

import (
	"context"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// auth is AuthService.
type auth struct{ Config }

// Login exchanges a proof for a session.
func (s auth) Login(ctx context.Context, r *connect.Request[rotorv1.LoginRequest]) (*connect.Response[rotorv1.LoginResponse], error) {
	m := r.Msg
	t, err := s.Authority.Login(ctx, authn.Proof{
		Credential: m.GetCredential(), JWT: m.GetJwt(), Issuer: m.GetIssuer(), TLS: connection(ctx), Address: wire.Address(ctx), From: wire.Network(ctx),
	})
	return answer(&rotorv1.LoginResponse{
		Token: t.Token, Caller: t.Caller.Name, Expires: stamp(t.Expires), IdleNs: int64(t.Idle), Session: t.ID, Namespace: s.Authority.Namespace,
	}, err)
}

// Logout ends the session of the request.
func (s auth) Logout(ctx context.Context, _ *connect.Request[rotorv1.LogoutRequest]) (*connect.Response[rotorv1.LogoutResponse], error) {
	return answer(&rotorv1.LogoutResponse{}, s.Authority.Logout(ctx, wire.Caller(ctx)))
}

// Whoami says who the server takes the caller for.
func (s auth) Whoami(ctx context.Context, _ *connect.Request[rotorv1.WhoamiRequest]) (*connect.Response[rotorv1.WhoamiResponse], error) {
	c := wire.Caller(ctx)
	if c.IsZero() {
		return nil, fault.New(fault.Unauthenticated, "")
	}
	return answer(&rotorv1.WhoamiResponse{
		Caller: c.Name, Kind: string(c.Kind), Attributes: c.Attributes, Session: c.Session, Expires: stamp(wire.Until(ctx)),
	}, nil)
}

// Sessions lists sessions.
func (s auth) Sessions(ctx context.Context, r *connect.Request[rotorv1.SessionsRequest]) (*connect.Response[rotorv1.SessionsResponse], error) {
	all, err := s.Authority.Sessions(ctx, wire.Caller(ctx), r.Msg.GetCaller(), r.Msg.GetAll())
	out := &rotorv1.SessionsResponse{}
	for _, e := range all {
		out.Sessions = append(out.Sessions, &rotorv1.Session{
			Id: e.ID, Caller: e.Caller, Source: e.Source, Address: e.Address, Created: stamp(e.Created), Used: stamp(e.Used), Expires: stamp(e.Expires),
		})
	}
	return answer(out, err)
}

// RevokeSessions ends sessions.
func (s auth) RevokeSessions(ctx context.Context, r *connect.Request[rotorv1.RevokeSessionsRequest]) (*connect.Response[rotorv1.RevokeSessionsResponse], error) {
	n, err := s.Authority.RevokeSessions(ctx, wire.Caller(ctx), r.Msg.GetId(), r.Msg.GetCaller())
	return answer(&rotorv1.RevokeSessionsResponse{Revoked: uint32(n)}, err)
}

// CreateCredential makes a credential.
func (s auth) CreateCredential(ctx context.Context, r *connect.Request[rotorv1.CreateCredentialRequest]) (*connect.Response[rotorv1.CreateCredentialResponse], error) {
	m, want := r.Msg, authn.Credential{Name: r.Msg.GetName(), Uses: r.Msg.GetUses(), Attributes: r.Msg.GetAttributes()}
	for _, text := range m.GetCidrs() {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			n = netip.Prefix{} // which the use case refuses, after it has asked whether the caller may
		}
		want.Networks = append(want.Networks, n)
	}
	made, text, err := s.Authority.CreateCredential(ctx, wire.Caller(ctx), want, duration(m.GetTtlNs()))
	return answer(&rotorv1.CreateCredentialResponse{Credential: credentialMessage(made), Text: text}, err)
}

// Credentials lists credentials.
func (s auth) Credentials(ctx context.Context, _ *connect.Request[rotorv1.CredentialsRequest]) (*connect.Response[rotorv1.CredentialsResponse], error) {
	all, err := s.Authority.Credentials(ctx, wire.Caller(ctx))
	out := &rotorv1.CredentialsResponse{}
	for _, c := range all {
		out.Credentials = append(out.Credentials, credentialMessage(c))
	}
	return answer(out, err)
}

// ChangeCredential revokes or unlocks a credential.
func (s auth) ChangeCredential(ctx context.Context, r *connect.Request[rotorv1.ChangeCredentialRequest]) (*connect.Response[rotorv1.Credential], error) {
	c, err := s.Authority.ChangeCredential(ctx, wire.Caller(ctx), r.Msg.GetId(), r.Msg.GetEvent())
	return answer(credentialMessage(c), err)
}

func credentialMessage(c authn.Credential) *rotorv1.Credential {
	m := &rotorv1.Credential{
		Id: c.ID, Name: c.Name, Uses: c.Uses, Used: c.Used, Expires: stamp(c.Expires), Failures: c.Failures, Locked: c.Locked,
		Revoked: !c.Revoked.IsZero(), Created: stamp(c.Created), Maker: c.Maker, Attributes: c.Attributes,
	}
	for _, n := range c.Networks {
		m.Cidrs = append(m.Cidrs, n.String())
	}
	return m
}

// InviteAdmin makes an enrolment token.
func (s auth) InviteAdmin(ctx context.Context, r *connect.Request[rotorv1.InviteAdminRequest]) (*connect.Response[rotorv1.InviteAdminResponse], error) {
	t, err := s.Authority.InviteAdmin(ctx, wire.Caller(ctx), r.Msg.GetName(), duration(r.Msg.GetTtlNs()), s.Address())
	return answer(&rotorv1.InviteAdminResponse{Token: t}, err)
}

// Admins lists the administrators.
func (s auth) Admins(ctx context.Context, _ *connect.Request[rotorv1.AdminsRequest]) (*connect.Response[rotorv1.AdminsResponse], error) {
	all, err := s.Authority.Admins(ctx, wire.Caller(ctx))
	out := &rotorv1.AdminsResponse{}
	for _, e := range all {
		out.Admins = append(out.Admins, &rotorv1.Administrator{Name: e.Name, Created: stamp(e.Created), Removed: stamp(e.Removed)})
	}
	return answer(out, err)
}

// RemoveAdmin denies an administrator at once.
func (s auth) RemoveAdmin(ctx context.Context, r *connect.Request[rotorv1.RemoveAdminRequest]) (*connect.Response[rotorv1.RemoveAdminResponse], error) {
	return answer(&rotorv1.RemoveAdminResponse{}, s.Authority.RemoveAdmin(ctx, wire.Caller(ctx), r.Msg.GetName()))
}

// CreateGrant delegates actions on a key.
func (s auth) CreateGrant(ctx context.Context, r *connect.Request[rotorv1.CreateGrantRequest]) (*connect.Response[rotorv1.Grant], error) {
	m := r.Msg
	k, err := s.KMS.MayAsk(ctx, wire.Caller(ctx), policy.ActGrant, s.ref(m.GetKey()))
	if err != nil {
		return nil, err
	}
	want := authn.Grant{Grantee: m.GetGrantee(), Context: m.GetContext(), Uses: m.GetUses()}
	for _, a := range m.GetActions() {
		want.Actions = append(want.Actions, policy.Action(a))
	}
	g, err := s.Authority.CreateGrant(ctx, wire.Caller(ctx), kms.Resource(k), want, duration(m.GetTtlNs()))
	return answer(grantOf(g), err)
}

// Grants lists grants.
func (s auth) Grants(ctx context.Context, _ *connect.Request[rotorv1.GrantsRequest]) (*connect.Response[rotorv1.GrantsResponse], error) {
	all, err := s.Authority.Grants(wire.Caller(ctx))
	out := &rotorv1.GrantsResponse{}
	for _, g := range all {
		out.Grants = append(out.Grants, grantOf(g))
	}
	return answer(out, err)
}

// RevokeGrant ends a grant.
func (s auth) RevokeGrant(ctx context.Context, r *connect.Request[rotorv1.RevokeGrantRequest]) (*connect.Response[rotorv1.RevokeGrantResponse], error) {
	err := s.Authority.RevokeGrant(ctx, wire.Caller(ctx), r.Msg.GetId(), func(ns, name string) policy.Resource {
		k, ok := s.KMS.Lookup(keyring.Namespace(ns), name)
		if !ok {
			return policy.Resource{Namespace: ns, Key: name}
		}
		return kms.Resource(k)
	})
	return answer(&rotorv1.RevokeGrantResponse{}, err)
}

func grantOf(g authn.Grant) *rotorv1.Grant {
	m := &rotorv1.Grant{
		Id: g.ID, Grantor: g.Grantor, Grantee: g.Grantee, Key: &rotorv1.KeyRef{Namespace: g.Namespace, Name: g.Key}, Context: g.Context,
		Uses: g.Uses, Used: g.Used, Expires: stamp(g.Expires), Created: stamp(g.Created),
	}
	for _, a := range g.Actions {
		m.Actions = append(m.Actions, string(a))
	}
	return m
}
