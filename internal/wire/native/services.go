package native

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// tokens is TokenService.
type tokens struct{ Config }

// Issue makes an access token for the caller.
func (s tokens) Issue(ctx context.Context, r *connect.Request[rotorv1.IssueRequest]) (*connect.Response[rotorv1.IssueResponse], error) {
	m := r.Msg
	t, err := s.Issuer.Issue(ctx, wire.Caller(ctx), s.ref(m.GetKey()), m.GetAudience(), m.GetScope(), time.Duration(m.GetTtlNs()))
	return answer(&rotorv1.IssueResponse{Token: t}, err)
}

// log is AuditService.
type log struct{ Config }

// Tail sends the entries of the log, and the ones to come.
func (s log) Tail(ctx context.Context, r *connect.Request[rotorv1.TailRequest], stream *connect.ServerStream[rotorv1.TailEntry]) error {
	l, err := s.Guard.ReadLog(ctx, wire.Caller(ctx))
	if err != nil {
		return err
	}
	err = l.Tail(ctx, int64(r.Msg.GetFrom()), r.Msg.GetFollow(), func(i int64, entry []byte) error {
		if !s.Guard.Allows(wire.Caller(ctx), policy.ActAudit, policy.Resource{}) { // the rules changed since
			return fault.New(fault.Denied, string(policy.ActAudit))
		}
		return stream.Send(&rotorv1.TailEntry{Index: uint64(i), Entry: entry})
	})
	if err == nil && r.Msg.GetFollow() { // it has no end of its own
		return fault.New(fault.Unavailable, "server").WithHint("the stream was ended; connect again")
	}
	return err
}

// DestroyCertificate makes the evidence that a version was destroyed.
func (s log) DestroyCertificate(ctx context.Context, r *connect.Request[rotorv1.DestroyCertificateRequest]) (*connect.Response[rotorv1.DestroyCertificateResponse], error) {
	b, err := s.KMS.Certificate(ctx, wire.Caller(ctx), s.ref(r.Msg.GetKey()), r.Msg.GetVersion())
	return answer(&rotorv1.DestroyCertificateResponse{Certificate: b}, err)
}

// Export sends the log as the files of C2SP tlog-tiles, with everything that was committed before the call.
func (s log) Export(ctx context.Context, _ *connect.Request[rotorv1.ExportRequest], stream *connect.ServerStream[rotorv1.ExportFile]) error {
	l, err := s.Guard.ReadLog(ctx, wire.Caller(ctx))
	if err != nil {
		return err
	}
	if err := s.Guard.CloseWindows(ctx, true); err != nil {
		return err
	}
	if err := l.Settled(ctx); err != nil {
		return err
	}
	return l.Export(ctx, func(path string, data []byte) error {
		return stream.Send(&rotorv1.ExportFile{Path: path, Data: data})
	})
}

// status is ServerService.
type status struct{ Config }

// Status says how the server is.
func (s status) Status(ctx context.Context, _ *connect.Request[rotorv1.StatusRequest]) (*connect.Response[rotorv1.StatusResponse], error) {
	if err := s.KMS.MayStatus(ctx, wire.Caller(ctx)); err != nil {
		return nil, err
	}
	members, connected := s.Fleet.Count()
	about := s.About(ctx)
	m := &rotorv1.StatusResponse{
		Version: about.Version, Cluster: s.Guard.ClusterID(), Engine: about.Engine, Seal: about.Seal, Keys: uint32(s.KMS.Count()),
		Instances: uint32(members), Connected: uint32(connected), Started: timestamppb.New(about.Started), Profile: about.Profile, Sandbox: about.Sandbox,
		Incarnation: s.Guard.Incarnation(), Format: uint32(about.Format), Ready: about.Ready, SealWarning: s.Seals.Warning(),
	}
	for _, c := range about.Checks {
		m.Checks = append(m.Checks, &rotorv1.Check{Name: c.Name, Ok: c.OK, Reason: c.Reason})
	}
	for _, r := range about.Replicas {
		m.Replicas = append(m.Replicas, &rotorv1.Replica{
			Address: r.Address, Version: r.Version, Format: uint32(r.Format), Started: timestamppb.New(r.Started), Alive: r.Alive, Leads: r.Leads, Self: r.Self, Issuer: r.Issuer,
		})
	}
	return answer(m, nil)
}
