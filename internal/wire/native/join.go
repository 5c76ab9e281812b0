package native

import (
	"context"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/identity"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// join is JoinService, the one service that strangers may call.
type join struct{ Config }

// Join answers a join token with a certificate.
func (s join) Join(ctx context.Context, r *connect.Request[rotorv1.JoinRequest]) (*connect.Response[rotorv1.JoinResponse], error) {
	g, err := s.Authority.Join(ctx, r.Msg.GetToken(), r.Msg.GetCsr())
	return answer(grantMessage(g), err)
}

// Renew answers an old certificate with a new one.
func (s join) Renew(ctx context.Context, r *connect.Request[rotorv1.RenewRequest]) (*connect.Response[rotorv1.JoinResponse], error) {
	g, err := s.Authority.Renew(ctx, connection(ctx), r.Msg.GetCsr())
	return answer(grantMessage(g), err)
}

func grantMessage(g identity.Grant) *rotorv1.JoinResponse {
	return &rotorv1.JoinResponse{Chain: g.Chain, Ca: g.CA, ServerKey: g.ServerKey, Cluster: g.Cluster, Namespace: g.Namespace}
}
