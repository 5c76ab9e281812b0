// Package native is rotor's own protocol (proto/rotor/v1): Connect, gRPC and gRPC-Web on one port. It translates messages to use
// cases and back, and decides nothing.
package native

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/issuer"
	"github.com/rotorkms/rotor/internal/keybackup"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/recovery"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rollout"
	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Config is the use cases that the protocol offers.
type Config struct {
	Guard     *guard.Guard
	KMS       *kms.Service
	Fleet     *fleet.Fleet
	Rollout   *rollout.Loop
	Authority *authn.Authority
	Issuer    issuer.Issuer
	Campaigns *campaign.Service
	Cut       func(instance string) // closes the connections of a removed instance
	Address   func() string         // host:port that join tokens name, several with commas between
	About     func(context.Context) About
	Seals     *sealing.Keeper
	Recovery  *recovery.Service // in recovery mode alone
	Dir       string            // where a log that is sent for a recovery is kept meanwhile
	// Interceptors stand around every handler, outermost first.
	Interceptors []connect.Interceptor
	Now          func() time.Time
	Log          *slog.Logger
}

// About is what Status tells of the server.
type About struct {
	Version, Engine, Seal, Profile, Sandbox string
	Started                                 time.Time
	Format                                  int // that the servers on the store have agreed on
	Ready                                   bool
	Checks                                  []Check
	Replicas                                []replica.Info // nil: no other server can open the store
}

// Check is one of the things that have to hold before a server gets requests.
type Check struct {
	Name   string
	OK     bool
	Reason string
}

// maxKeyBackup bounds the messages that the backup of a key goes and comes in, in bytes.
const maxKeyBackup = keybackup.MaxBytes + 1<<20

// sizes bounds the messages of a procedure.
func sizes(s connect.Spec) []connect.HandlerOption {
	read, send := wire.MaxMessage, wire.MaxMessage
	switch s.Procedure {
	case rotorv1.KeyServiceRestoreProcedure:
		read = maxKeyBackup
	case rotorv1.KeyServiceBackupProcedure:
		send = maxKeyBackup
	}
	return []connect.HandlerOption{connect.WithReadMaxBytes(read), connect.WithSendMaxBytes(send)}
}

// options are those of every service.
func (c Config) options() []connect.HandlerOption {
	around := append(slices.Clone(c.Interceptors), faults{c.Log})
	if c.Guard != nil { // a sealed server has no namespaces
		around = append(around, namespaces{c})
	}
	return []connect.HandlerOption{
		connect.WithConditionalHandlerOptions(sizes), connect.WithInterceptors(around...),
		// Keys and ciphertexts do not get shorter, and what is short can be made to become long.
		connect.WithCompression("gzip", nil, nil),
		connect.WithCodec(boundedProto{}), connect.WithCodec(strictJSON{"json"}), connect.WithCodec(strictJSON{"json; charset=utf-8"}),
		connect.WithRecover(func(ctx context.Context, s connect.Spec, _ http.Header, r any) error {
			return rpc.Encode(panicked(ctx, c.Log, s.Procedure, r))
		}),
	}
}

// Mount adds the services to a mux.
func Mount(mux *http.ServeMux, c Config) {
	o := c.options()
	mux.Handle(rotorv1.NewKeyServiceHandler(keys{c}, o...))
	mux.Handle(rotorv1.NewJoinServiceHandler(join{c}, o...))
	mux.Handle(rotorv1.NewAuthServiceHandler(auth{c}, o...))
	mux.Handle(rotorv1.NewFleetServiceHandler(members{c}, o...))
	mux.Handle(rotorv1.NewTokenServiceHandler(tokens{c}, o...))
	mux.Handle(rotorv1.NewDataServiceHandler(data{c}, o...))
	mux.Handle(rotorv1.NewAuditServiceHandler(log{c}, o...))
	mux.Handle(rotorv1.NewServerServiceHandler(status{c}, o...))
	mux.Handle(rotorv1.NewRootServiceHandler(roots{c}, o...))
	mux.Handle(rotorv1.NewSealServiceHandler(seals{c.Seals}, o...))
}

// panicked logs a panic, which is a mistake of ours and nothing the caller can mend.
func panicked(ctx context.Context, log *slog.Logger, procedure string, r any) error {
	log.ErrorContext(ctx, "panic in a request", "procedure", procedure, "panic", r, "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "")
}

// faults encodes every error on its way out and logs what is no fault.
type faults struct{ log *slog.Logger }

// WrapUnary implements connect.Interceptor.
func (f faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if err := wire.Stands(ctx); err != nil {
			return nil, f.encode(ctx, r.Spec(), err)
		}
		out, err := next(ctx, r)
		return out, f.encode(ctx, r.Spec(), err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (f faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (f faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		a := &asked{StreamingHandlerConn: c, stands: func() error { return wire.Stands(ctx) }}
		return f.encode(ctx, c.Spec(), a.refused(next(ctx, a)))
	}
}

// asked is a stream whose request is read behind the interceptors: what Connect finds wrong with it is the caller's mistake and not ours.
type asked struct {
	connect.StreamingHandlerConn
	unsent bool // an answer could not be sent
	stands func() error
}

// Receive implements connect.StreamingHandlerConn. A request that comes long after its header is of somebody who may have been removed meanwhile; Hold,
// whose messages come all the time, looks itself.
func (a *asked) Receive(m any) error {
	err := a.StreamingHandlerConn.Receive(m)
	if err == nil && a.Spec().Procedure != rotorv1.FleetServiceHoldProcedure {
		err = a.stands()
	}
	return err
}

// Send implements connect.StreamingHandlerConn.
func (a *asked) Send(m any) error {
	err := a.StreamingHandlerConn.Send(m)
	a.unsent = a.unsent || err != nil
	return err
}

// refused makes a fault of Connect's refusal of a request. fault.Invalid, TooLarge, Canceled.
func (a *asked) refused(err error) error {
	var c *connect.Error
	if a.unsent || fault.CodeOf(err) != fault.Internal || !errors.As(err, &c) {
		return err
	}
	switch c.Code() {
	case connect.CodeResourceExhausted:
		return fault.Wrap(fault.TooLarge, "request", err).WithHint("at most %d bytes", wire.MaxMessage)
	case connect.CodeCanceled, connect.CodeDeadlineExceeded, connect.CodeUnknown: // it did not come to its end
		return fault.Wrap(fault.Canceled, "request", err)
	}
	return fault.Wrap(fault.Invalid, "request", err).WithHint("one message of this protocol")
}

func (f faults) encode(ctx context.Context, s connect.Spec, err error) error {
	wire.Failed(ctx, err)
	switch fault.CodeOf(err) {
	case "":
		return nil
	case fault.Internal, fault.RecordTampered, fault.RecordReplayed, fault.StoreCorrupt, fault.AuditBroken:
		if ctx.Err() == nil {
			f.log.ErrorContext(ctx, "request failed", "procedure", s.Procedure, "caller", wire.Caller(ctx).Name, "error", err)
		}
	}
	return rpc.Encode(err)
}

// answer makes a response of a message.
func answer[T any](m *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}

// ref reads the name of a key; an empty namespace is that of the server's instances.
func (c Config) ref(r *rotorv1.KeyRef) kms.Ref {
	return kms.Ref{Namespace: c.namespace(r.GetNamespace()), Name: clip(r.GetName())}
}

// clip bounds a name, which is kept and logged also when it is refused. What it cuts off has an end that no name has.
func clip(name string) string {
	if len(name) <= keyring.MaxKeyName {
		return name
	}
	return name[:keyring.MaxKeyName] + "..."
}

func (c Config) namespace(ns string) keyring.Namespace {
	if ns == "" {
		ns = c.Authority.Namespace
	}
	return keyring.Namespace(clip(ns))
}

func connection(ctx context.Context) tls.ConnectionState { return wire.Connection(ctx) }
