package native

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"sync"
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

// maxAttempts bounds the attempts that one message reports.
const maxAttempts = 1024

// Hold is the stream of one process: lease requests, keys to hold and acknowledgements up; leases and parcels down. It ends with the
// certificate that opened it.
func (s members) Hold(ctx context.Context, stream *connect.BidiStream[rotorv1.HoldUp, rotorv1.HoldDown]) error {
	first, err := stream.Receive()
	if err != nil {
		return fault.Wrap(fault.Invalid, "hello", err)
	}
	var session *fleet.Session
	wire.Aside(func() { session, err = s.hello(ctx, first.GetHello()) })
	if err != nil {
		return err
	}
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(stopped)
		wire.StopStream(ctx)
	})
	down := &sender{ctx: ctx, poll: session.Poll, latest: s.Guard.Latest, log: s.Log, stream: stream}
	session.Attend(down.wake)
	clean, failed := s.receive(ctx, stream, session)
	wire.EndStream(ctx)
	<-stopped // it uses what is gone when this function has returned
	sent := down.end()
	session.Close(context.WithoutCancel(ctx), clean)
	switch {
	case failed != nil || clean:
		return failed
	case sent != nil:
		return sent
	}
	return fault.Wrap(fault.Canceled, "stream", ctx.Err())
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

// receive takes the messages of the process until it leaves, which is clean, or the stream breaks.
func (s members) receive(ctx context.Context, stream *connect.BidiStream[rotorv1.HoldUp, rotorv1.HoldDown], session *fleet.Session) (clean bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = panicked(ctx, s.Log, rotorv1.FleetServiceHoldProcedure, r)
		}
	}()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) || err != nil && ctx.Err() != nil {
			return false, nil //nolint:nilerr // the process or the fleet has ended the stream
		}
		if err != nil {
			return false, fault.Wrap(fault.Canceled, "stream", err)
		}
		if len(m.GetStatement()) > 0 {
			wire.Aside(func() { err = s.witness(ctx, m.GetStatement()) })
		}
		if err != nil {
			return false, err
		}
		if m.GetBeat() != 0 {
			session.Beat(m.GetBeat())
		}
		if len(m.GetKeys())+len(m.GetAcks()) > 0 {
			wire.Aside(func() { err = heed(ctx, m, session) })
		}
		if err != nil {
			return false, err
		}
		if len(m.GetAttempts()) > 0 {
			wire.Aside(func() { err = s.attempts(ctx, session, m.GetAttempts()) })
		}
		if err != nil {
			return false, err
		}
		if m.GetLeave() {
			return true, nil
		}
	}
}

// attempts notes what the process refused to do with retired versions of keys that it holds. That it could not be noted now is no reason to
// end the stream.
func (s members) attempts(ctx context.Context, session *fleet.Session, all []*rotorv1.Attempt) error {
	if len(all) > maxAttempts {
		return fault.New(fault.TooLarge, "attempts").WithHint("at most %d", maxAttempts)
	}
	instance := wire.Caller(ctx).Instance
	for _, a := range all {
		id := keyring.KeyID(clip(a.GetKeyId()))
		if !session.Holds(id) {
			continue
		}
		if err := s.KMS.HolderAttempts(ctx, wire.Caller(ctx).Name, id, a.GetVersion(), a.GetCount()); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "attempts on a retired version are not noted", "instance", instance, "key", string(id), "error", err)
		}
	}
	return nil
}

// heed does what a message asks.
func heed(ctx context.Context, m *rotorv1.HoldUp, session *fleet.Session) error {
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
	return nil
}

// sender brings a session's messages to the process. It has a goroutine only while there is something to send: ten thousand streams are quiet most
// of the time. A process that does not read holds up its own sender, and what waits for it is the newest state of its keys.
type sender struct {
	ctx    context.Context
	latest func() ([]byte, error) // statement of the log, that goes with leases
	stated [sha256.Size]byte      // SHA-256 of the last one on this stream; of run alone
	log    *slog.Logger
	poll   func(context.Context) (fleet.Down, bool, error) // Session.Poll
	stream interface {
		Send(*rotorv1.HoldDown) error
	}

	work sync.WaitGroup

	mu      sync.Mutex // guards what follows
	running bool
	again   bool // there may be more than what is being sent
	over    bool
	err     error // why it failed
}

// wake makes the sender look into the mailbox.
func (s *sender) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
	case s.running:
		s.again = true
	default:
		s.running = true
		s.work.Go(s.run)
	}
}

// end waits for what is being sent, and returns why the stream failed, if it did. Nothing is sent from then on.
func (s *sender) end() error {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.work.Wait()
	return s.err
}

func (s *sender) run() {
	for {
		err := s.empty()
		s.mu.Lock()
		switch {
		case err != nil:
			s.err, s.over = err, true
			wire.EndStream(s.ctx)
		case s.again && !s.over:
			s.again = false
			s.mu.Unlock()
			continue
		}
		s.running = false
		s.mu.Unlock()
		return
	}
}

// empty sends all that is in the mailbox.
func (s *sender) empty() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = panicked(s.ctx, s.log, rotorv1.FleetServiceHoldProcedure, r)
		}
	}()
	for {
		if s.ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, "", s.ctx.Err())
		}
		d, ok, err := s.poll(s.ctx)
		if err != nil || !ok {
			return err
		}
		if err := s.stream.Send(s.message(d)); err != nil {
			return fault.Wrap(fault.Canceled, "stream", err)
		}
	}
}

// message is the form of a message on the wire.
func (s *sender) message(d fleet.Down) *rotorv1.HoldDown {
	m := &rotorv1.HoldDown{}
	switch {
	case d.Lease != nil:
		m.Lease = &rotorv1.Lease{Beat: d.Lease.Beat, TtlNs: int64(d.Lease.TTL)}
		for _, id := range d.Lease.Withheld {
			m.Lease.Withheld = append(m.Lease.Withheld, string(id))
		}
		if b, err := s.latest(); err == nil && sha256.Sum256(b) != s.stated {
			m.Lease.Statement, s.stated = b, sha256.Sum256(b)
		}
	case d.Parcel != nil:
		m.Parcel = parcelOf(*d.Parcel)
	case d.Refused != nil:
		m.Refusal = &rotorv1.KeyRefusal{Name: d.Refused.Name, Fault: rpc.FaultOf(d.Refused.Err)}
	}
	return m
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
