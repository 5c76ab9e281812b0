// Package rpc carries faults through Connect, in both directions: the server turns an error into a Connect error with a Fault
// detail, a client turns it back. What is no fault says "internal" outside and stands in the server's log alone.
package rpc

import (
	"context"
	"errors"
	"syscall"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Encode makes the error that crosses the wire. Causes stay behind.
func Encode(err error) error {
	if err == nil {
		return nil
	}
	public := Public(err)
	out := connect.NewError(status(public.Code), errors.New(public.Error()))
	if d, derr := connect.NewErrorDetail(Fault(public)); derr == nil {
		out.AddDetail(d)
	}
	return out
}

// Public is what others may know of an error that is not nil: no cause, in which there may be addresses and names of what is behind the server.
func Public(err error) *fault.Error {
	f := toFault(err)
	return &fault.Error{Code: f.Code, Resource: f.Resource, Hint: f.HintText()}
}

// Fault is the protobuf form of a fault.
func Fault(f *fault.Error) *rotorv1.Fault {
	return &rotorv1.Fault{Code: string(f.Code), Resource: f.Resource, Hint: f.Hint}
}

// FaultOf is the protobuf form of any error.
func FaultOf(err error) *rotorv1.Fault {
	f := toFault(err)
	return &rotorv1.Fault{Code: string(f.Code), Resource: f.Resource, Hint: f.HintText()}
}

// Parse is the inverse of Fault.
func Parse(f *rotorv1.Fault) error {
	if f.GetCode() == "" {
		return fault.New(fault.Internal, "")
	}
	return &fault.Error{Code: fault.Code(f.GetCode()), Resource: f.GetResource(), Hint: f.GetHint()}
}

func toFault(err error) *fault.Error {
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Canceled, "")
	}
	return fault.New(fault.Internal, "")
}

// Decode turns what a Connect client returned back into a fault; an error without a Fault detail is one of the connection.
func Decode(err error) error {
	var c *connect.Error
	var f *fault.Error
	if errors.As(err, &f) {
		return f // made on this side, by who checks the server's certificate
	}
	if err == nil || !errors.As(err, &c) {
		return err
	}
	for _, d := range c.Details() {
		v, verr := d.Value()
		if f, ok := v.(*rotorv1.Fault); ok && verr == nil {
			return Parse(f)
		}
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) { // which Connect takes for a peer that gave up, also where the peer is the server
		return fault.Wrap(fault.Unavailable, "server", err)
	}
	switch c.Code() {
	case connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return fault.Wrap(fault.Canceled, "", err)
	case connect.CodeResourceExhausted:
		return fault.Wrap(fault.TooLarge, "request", err)
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeInternal, connect.CodeAborted:
		return fault.Wrap(fault.Unavailable, "server", err)
	case connect.CodePermissionDenied:
		return fault.Wrap(fault.Denied, "request", err)
	case connect.CodeUnauthenticated:
		return fault.Wrap(fault.Unauthenticated, "caller", err)
	}
	return fault.Wrap(fault.Invalid, "request", err)
}

// status is the table from codes to Connect's. Codes that are not in it tell of a precondition that does not hold.
func status(c fault.Code) connect.Code {
	switch c {
	case fault.Internal, fault.RecordTampered, fault.RecordReplayed, fault.StoreCorrupt, fault.AuditBroken, fault.SealWrong:
		return connect.CodeInternal
	case fault.Invalid, fault.WrongPurpose, fault.AlgorithmForbidden, fault.DecryptFailed, fault.MalformedFile, fault.TruncatedFile, fault.WrongNamespace, fault.ShareWrong, fault.ShareForeign:
		return connect.CodeInvalidArgument
	case fault.NotFound, fault.UnknownVersion, fault.UnknownKeyID:
		return connect.CodeNotFound
	case fault.Exists, fault.ShareDuplicate:
		return connect.CodeAlreadyExists
	case fault.Denied:
		return connect.CodePermissionDenied
	case fault.Unauthenticated, fault.JoinTokenUsed, fault.JoinTokenExpired, fault.TokenInvalid, fault.TokenExpired, fault.TokenNotYetValid, fault.TokenAudience, fault.TokenAlgorithm:
		return connect.CodeUnauthenticated
	case fault.Conflict, fault.RotationInFlight:
		return connect.CodeAborted
	case fault.Unavailable, fault.OutcomeUnknown, fault.Sealed:
		return connect.CodeUnavailable
	case fault.TooLarge, fault.DiskFull, fault.RateLimited, fault.QuotaReached:
		return connect.CodeResourceExhausted
	case fault.Canceled:
		return connect.CodeCanceled
	}
	return connect.CodeFailedPrecondition
}
