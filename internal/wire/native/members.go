package native

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// members is FleetService.
type members struct{ Config }

// maxNames bounds the keys that one message asks to hold.
const maxNames = fleet.MaxKeys

// Hold is the stream of one process: lease requests, keys to hold and acknowledgements up; leases and parcels down. It ends with the
// certificate that opened it.
func (s members) Hold(ctx context.Context, stream *connect.BidiStream[rotorv1.HoldUp, rotorv1.HoldDown]) error {
	first, err := stream.Receive()
	if err != nil {
		return fault.Wrap(fault.Invalid, "hello", err)
	}
	session, err := s.hello(ctx, first.GetHello())
	if err != nil {
		return err
	}
	live, cancel := context.WithCancel(ctx)
	defer cancel()
	clean := false
	var failed error
	up := make(chan struct{})
	go func() { // ends when it cannot read any more, for which this function waits
		defer close(up)
		defer cancel()
		defer func() {
			if r := recover(); r != nil {
				failed = s.panicked(ctx, rotorv1.FleetServiceHoldProcedure, r)
			}
		}()
		failed = s.receive(live, stream, session, &clean)
	}()
	down := s.send(live, stream, session)
	cancel()
	wire.StopReading(ctx)
	<-up
	session.Close(context.WithoutCancel(ctx), clean)
	if failed != nil || clean {
		return failed
	}
	return down
}

func (s members) hello(ctx context.Context, h *rotorv1.Hello) (*fleet.Session, error) {
	c := wire.Caller(ctx)
	if c.Instance == "" || wire.Certificate(ctx) == nil { // its key signs the hello
		return nil, fault.New(fault.Denied, "stream of an instance").WithHint("keys are held by instances, with their certificate and not a session")
	}
	a := delivery.Address{Cluster: s.Guard.ClusterID(), Instance: c.Instance, Incarnation: h.GetIncarnation(), Session: h.GetSession()}
	if !identity.VerifyHello(wire.Certificate(ctx), delivery.HelloInput(a, h.GetHpkePublic()), h.GetSignature()) {
		return nil, fault.New(fault.Unauthenticated, "hello").WithHint("it is not signed by the certificate's key")
	}
	session, err := s.Fleet.Connect(ctx, c, fleet.Hello{
		Incarnation: h.GetIncarnation(), Session: h.GetSession(), Public: h.GetHpkePublic(), Namespace: s.namespace(h.GetNamespace()),
	})
	if err != nil {
		return nil, err
	}
	// The hello may have come long after the stream was let in. A removal denies first and takes the member away then: one that ran before
	// Connect is seen here, one after it ends the session.
	if _, err := s.Authority.Identify(connection(ctx), false); err != nil {
		session.Close(context.WithoutCancel(ctx), true)
		return nil, err
	}
	if err := s.witness(ctx, h.GetStatement()); err != nil {
		session.Close(context.WithoutCancel(ctx), false)
		return nil, err
	}
	return session, nil
}

// witnessTime bounds how long a stream waits until its statement has been compared with the log.
const witnessTime = 10 * time.Second

// witness compares the log with the statement that an instance brings, before anything is sent to it. What is not signed by this cluster has
// no effect. fault.Recovery when the store is not the one that the instance knows.
func (s members) witness(ctx context.Context, statement []byte) error {
	if len(statement) == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, witnessTime)
	defer cancel()
	d, err := s.Guard.Witness(limited, statement)
	switch {
	case fault.CodeOf(err) == fault.Invalid:
		s.Log.WarnContext(ctx, "a statement that is not signed by this cluster", "instance", wire.Caller(ctx).Instance)
		return nil
	case err != nil:
		return err
	case d.Kind != "":
		s.Log.ErrorContext(ctx, "a witness shows that the store is not the one that it was", "instance", wire.Caller(ctx).Instance, "detected", d.String())
		return fault.New(fault.Recovery, d.String())
	}
	return nil
}

// receive takes the messages of the process until it leaves or the stream breaks.
func (s members) receive(ctx context.Context, stream *connect.BidiStream[rotorv1.HoldUp, rotorv1.HoldDown], session *fleet.Session, clean *bool) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) || err != nil && ctx.Err() != nil {
			return nil //nolint:nilerr // the process or the fleet has ended the stream
		}
		if err != nil {
			return fault.Wrap(fault.Canceled, "stream", err)
		}
		if err := s.witness(ctx, m.GetStatement()); err != nil {
			return err
		}
		if m.GetBeat() != 0 {
			session.Beat(m.GetBeat())
		}
		if names := m.GetKeys(); len(names) > 0 {
			if len(names) > maxNames {
				return fault.New(fault.TooLarge, "keys to hold").WithHint("at most %d", maxNames)
			}
			for i := range names {
				names[i] = clip(names[i])
			}
			if err := session.Hold(ctx, names); err != nil {
				return err
			}
		}
		for _, a := range m.GetAcks() {
			ack := fleet.Ack{Key: keyring.KeyID(a.GetKeyId()), Epoch: keyring.Epoch{Incarnation: a.GetIncarnation(), Counter: a.GetEpoch()}, Proof: a.GetProof()}
			if err := session.Acknowledge(ctx, ack); err != nil {
				return err
			}
		}
		if m.GetLeave() {
			*clean = true
			return nil
		}
	}
}

// send brings the session's messages to the process until the session ends.
func (s members) send(ctx context.Context, stream *connect.BidiStream[rotorv1.HoldUp, rotorv1.HoldDown], session *fleet.Session) error {
	var stated []byte // the last statement on this stream
	for {
		d, err := session.Next(ctx)
		if err != nil {
			return err
		}
		m := &rotorv1.HoldDown{}
		switch {
		case d.Lease != nil:
			m.Lease = &rotorv1.Lease{Beat: d.Lease.Beat, TtlNs: int64(d.Lease.TTL)}
			for _, id := range d.Lease.Withheld {
				m.Lease.Withheld = append(m.Lease.Withheld, string(id))
			}
			if b, err := s.Guard.Latest(); err == nil && !bytes.Equal(b, stated) {
				m.Lease.Statement, stated = b, b
			}
		case d.Parcel != nil:
			m.Parcel = parcelOf(*d.Parcel)
		case d.Refused != nil:
			m.Refusal = &rotorv1.KeyRefusal{Name: d.Refused.Name, Fault: rpc.FaultOf(d.Refused.Err)}
		}
		if err := stream.Send(m); err != nil {
			return fault.Wrap(fault.Canceled, "stream", err)
		}
	}
}

func parcelOf(p delivery.Parcel) *rotorv1.Parcel {
	g := p.Signature
	return &rotorv1.Parcel{Body: p.Body, Sealed: p.Sealed, Encapsulated: p.Encapsulated, Signature: g.Bytes, Index: g.Index, Size: g.Size, Path: g.Path}
}

// Invite makes a join token.
func (s members) Invite(ctx context.Context, r *connect.Request[rotorv1.InviteRequest]) (*connect.Response[rotorv1.InviteResponse], error) {
	t, err := s.Authority.Invite(ctx, wire.Caller(ctx), r.Msg.GetName(), time.Duration(r.Msg.GetTtlNs()), s.Address())
	return answer(&rotorv1.InviteResponse{Token: t}, err)
}

// Instances lists the members.
func (s members) Instances(ctx context.Context, _ *connect.Request[rotorv1.InstancesRequest]) (*connect.Response[rotorv1.InstancesResponse], error) {
	all, err := s.Fleet.Instances(ctx, wire.Caller(ctx))
	out := &rotorv1.InstancesResponse{}
	for _, i := range all {
		out.Instances = append(out.Instances, &rotorv1.Instance{Name: i.Name, Connected: i.Connected, Heard: stamp(i.Heard), Keys: i.Keys, Behind: i.Behind})
	}
	return answer(out, err)
}

// Remove denies an instance at once and takes it out of the fleet.
func (s members) Remove(ctx context.Context, r *connect.Request[rotorv1.RemoveRequest]) (*connect.Response[rotorv1.RemoveResponse], error) {
	if err := s.Authority.Remove(ctx, wire.Caller(ctx), r.Msg.GetName()); err != nil {
		return nil, err
	}
	err := s.Fleet.Remove(ctx, r.Msg.GetName())
	s.Cut(r.Msg.GetName())
	return answer(&rotorv1.RemoveResponse{}, err)
}
