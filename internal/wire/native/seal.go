package native

import (
	"context"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// MountSeal adds the service of the root of trust, which is all that a sealed server offers.
func MountSeal(mux *http.ServeMux, k *sealing.Keeper, log *slog.Logger) {
	mux.Handle(rotorv1.NewSealServiceHandler(seals{k}, Config{Log: log}.options()...))
}

// seals is SealService.
type seals struct{ *sealing.Keeper }

// Status says how the root of trust is.
func (s seals) Status(ctx context.Context, _ *connect.Request[rotorv1.SealStatusRequest]) (*connect.Response[rotorv1.SealStatus], error) {
	return s.state(ctx)
}

func (s seals) state(ctx context.Context) (*connect.Response[rotorv1.SealStatus], error) {
	state, err := s.State(ctx, wire.Caller(ctx))
	if err != nil {
		return nil, err
	}
	out := &rotorv1.SealStatus{Sealed: state.Sealed, Reason: string(state.Why), Weakest: state.Weakest, Warning: state.Warning}
	for _, p := range state.Shares {
		out.Shares = append(out.Shares, progress(p))
	}
	for _, m := range state.Members {
		member := &rotorv1.SealMember{Id: m.ID, Kind: m.Kind, Here: m.Here, Automatic: m.Automatic, Error: m.Error}
		if !m.Opened.IsZero() {
			member.Opened = timestamppb.New(m.Opened)
		}
		out.Members = append(out.Members, member)
	}
	if state.Rekey.Phase != "" {
		out.Rekey = rekey(state.Rekey)
	}
	return connect.NewResponse(out), nil
}

// Unseal takes a share.
func (s seals) Unseal(ctx context.Context, r *connect.Request[rotorv1.UnsealRequest]) (*connect.Response[rotorv1.SealProgress], error) {
	p, err := s.Keeper.Unseal(ctx, wire.Network(ctx), clip(r.Msg.GetAttempt()), secret.Copy([]byte(r.Msg.GetShare())))
	return answer(progress(p), err)
}

// Reset forgets the shares of an attempt.
func (s seals) Reset(_ context.Context, r *connect.Request[rotorv1.UnsealResetRequest]) (*connect.Response[rotorv1.SealProgress], error) {
	p, err := s.Keeper.Reset(clip(r.Msg.GetAttempt()))
	return answer(progress(p), err)
}

// Seal seals the server.
func (s seals) Seal(ctx context.Context, _ *connect.Request[rotorv1.SealRequest]) (*connect.Response[rotorv1.SealStatus], error) {
	return answer(&rotorv1.SealStatus{Sealed: true}, s.Close(ctx, wire.Caller(ctx)))
}

// Change changes the wrap set.
func (s seals) Change(ctx context.Context, r *connect.Request[rotorv1.SealChangeRequest]) (*connect.Response[rotorv1.SealStatus], error) {
	if err := s.Keeper.Change(ctx, wire.Caller(ctx), r.Msg.GetChange(), r.Msg.GetSealer()); err != nil {
		return nil, err
	}
	return s.state(ctx)
}

// StartRekey begins to make new shares.
func (s seals) StartRekey(ctx context.Context, r *connect.Request[rotorv1.StartRekeyRequest]) (*connect.Response[rotorv1.RekeyProgress], error) {
	p, err := s.Keeper.StartRekey(ctx, wire.Caller(ctx), r.Msg.GetShares(), r.Msg.GetWith())
	return answer(rekey(p), err)
}

// Rekey takes a share for it.
func (s seals) Rekey(ctx context.Context, r *connect.Request[rotorv1.RekeyRequest]) (*connect.Response[rotorv1.RekeyProgress], error) {
	p, err := s.Keeper.Rekey(ctx, wire.Caller(ctx), clip(r.Msg.GetAttempt()), secret.Copy([]byte(r.Msg.GetShare())))
	return answer(rekey(p), err)
}

// AbortRekey gives it up.
func (s seals) AbortRekey(ctx context.Context, r *connect.Request[rotorv1.AbortRekeyRequest]) (*connect.Response[rotorv1.RekeyProgress], error) {
	p, err := s.Keeper.AbortRekey(ctx, wire.Caller(ctx), clip(r.Msg.GetAttempt()))
	return answer(rekey(p), err)
}

func progress(p sealing.Progress) *rotorv1.SealProgress {
	out := &rotorv1.SealProgress{
		Set: p.Set, Have: uint32(p.Have), Threshold: uint32(p.Threshold), Total: uint32(p.Total), Attempt: p.Attempt, Done: p.Threshold > 0 && p.Done(),
	}
	for _, i := range p.Indexes {
		out.Indexes = append(out.Indexes, uint32(i))
	}
	return out
}

func rekey(r sealing.Rekey) *rotorv1.RekeyProgress {
	out := &rotorv1.RekeyProgress{Phase: r.Phase, Attempt: r.Attempt, Sealer: r.Sealer, Server: r.Server, Progress: progress(r.Progress)}
	out.Shares = r.Texts()
	return out
}
