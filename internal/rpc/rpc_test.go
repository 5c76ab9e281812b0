package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/rpc"
)

// statuses is the promise to clients that know Connect's codes alone.
var statuses = map[fault.Code]connect.Code{
	fault.Internal: connect.CodeInternal, fault.Invalid: connect.CodeInvalidArgument, fault.NotFound: connect.CodeNotFound,
	fault.Exists: connect.CodeAlreadyExists, fault.Denied: connect.CodePermissionDenied, fault.Unauthenticated: connect.CodeUnauthenticated,
	fault.Conflict: connect.CodeAborted, fault.Unavailable: connect.CodeUnavailable, fault.OutcomeUnknown: connect.CodeUnavailable,
	fault.TooLarge: connect.CodeResourceExhausted, fault.Canceled: connect.CodeCanceled, fault.DecryptFailed: connect.CodeInvalidArgument,
	fault.UnknownVersion: connect.CodeNotFound, fault.VersionDestroyed: connect.CodeFailedPrecondition, fault.VersionRetired: connect.CodeFailedPrecondition,
	fault.WrongState: connect.CodeFailedPrecondition, fault.PeriodOver: connect.CodeFailedPrecondition, fault.WrongPurpose: connect.CodeInvalidArgument,
	fault.WrongNamespace: connect.CodeInvalidArgument, fault.LeaseOver: connect.CodeFailedPrecondition, fault.Stale: connect.CodeFailedPrecondition,
	fault.IdentityInUse: connect.CodeFailedPrecondition, fault.BelowFloor: connect.CodeFailedPrecondition, fault.InUse: connect.CodeFailedPrecondition,
	fault.GateClosed: connect.CodeFailedPrecondition, fault.RotationInFlight: connect.CodeAborted, fault.TokenInvalid: connect.CodeUnauthenticated,
	fault.TokenExpired: connect.CodeUnauthenticated, fault.TokenNotYetValid: connect.CodeUnauthenticated, fault.TokenAudience: connect.CodeUnauthenticated,
	fault.TokenAlgorithm: connect.CodeUnauthenticated, fault.UnknownKeyID: connect.CodeNotFound, fault.JoinTokenUsed: connect.CodeUnauthenticated,
	fault.JoinTokenExpired: connect.CodeUnauthenticated, fault.MalformedFile: connect.CodeInvalidArgument, fault.TruncatedFile: connect.CodeInvalidArgument,
	fault.RecordTampered: connect.CodeInternal, fault.RecordReplayed: connect.CodeInternal, fault.StoreLocked: connect.CodeFailedPrecondition, fault.StoreNewer: connect.CodeFailedPrecondition,
	fault.StoreCorrupt: connect.CodeInternal, fault.SealWrong: connect.CodeInternal, fault.SnapshotRefused: connect.CodeFailedPrecondition,
	fault.Sealed: connect.CodeUnavailable, fault.ShareWrong: connect.CodeInvalidArgument, fault.ShareForeign: connect.CodeInvalidArgument,
	fault.ShareDuplicate: connect.CodeAlreadyExists,
	fault.AuditBroken:    connect.CodeInternal, fault.AlgorithmForbidden: connect.CodeInvalidArgument, fault.DiskFull: connect.CodeResourceExhausted, fault.RateLimited: connect.CodeResourceExhausted,
	fault.QuotaReached: connect.CodeResourceExhausted, fault.VolumeOver: connect.CodeFailedPrecondition, fault.Recovery: connect.CodeFailedPrecondition,
	fault.StoreIncomplete: connect.CodeFailedPrecondition, fault.StoreMoved: connect.CodeFailedPrecondition, fault.NotExportable: connect.CodeFailedPrecondition,
	fault.NotBuilt:      connect.CodeFailedPrecondition,
	fault.BackupForeign: connect.CodeFailedPrecondition,
}

func TestEveryCodeCrosses(t *testing.T) {
	for _, c := range fault.Codes() {
		want, ok := statuses[c]
		if !ok {
			t.Errorf("%s has no status", c)
			continue
		}
		in := &fault.Error{Code: c, Resource: "key k", Hint: "do this", Cause: errors.New("cause-of-it")}
		out := rpc.Encode(fmt.Errorf("wrapped: %w", in))
		if got := connect.CodeOf(out); got != want {
			t.Errorf("%s is %s on the wire, want %s", c, got, want)
		}
		if strings.Contains(fmt.Sprintf("%+v", out), "cause-of-it") {
			t.Errorf("%s lets its cause out: %v", c, out)
		}
		var back *fault.Error
		if !errors.As(rpc.Decode(out), &back) || back.Code != c || back.Resource != "key k" || back.Hint != "do this" || back.Cause != nil {
			t.Errorf("%s came back as %+v", c, back)
		}
	}
	if len(statuses) != len(fault.Codes()) {
		t.Errorf("%d codes, %d statuses", len(fault.Codes()), len(statuses))
	}
}

func TestWhatIsNoFault(t *testing.T) {
	out := rpc.Encode(errors.New("open /secret/path"))
	if connect.CodeOf(out) != connect.CodeInternal || strings.Contains(out.Error(), "secret") {
		t.Errorf("%v", out)
	}
	if rpc.Encode(nil) != nil || rpc.Decode(nil) != nil {
		t.Error("nil is an error")
	}
	if got := fault.CodeOf(rpc.Decode(rpc.Encode(context.DeadlineExceeded))); got != fault.Canceled {
		t.Errorf("deadline: %s", got)
	}
	if f := rpc.FaultOf(errors.New("x")); f.GetCode() != "internal" || f.GetHint() == "" {
		t.Errorf("%v", f)
	}
	if fault.CodeOf(rpc.Parse(nil)) != fault.Internal {
		t.Error("a fault without a code")
	}
}

// TestOwnVerdictStays: what the check of the server's certificate says is no trouble of the network, which would be tried again.
func TestOwnVerdictStays(t *testing.T) {
	err := connect.NewError(connect.CodeUnavailable, fmt.Errorf("dial: %w", fault.New(fault.Unauthenticated, "server").WithHint("another CA")))
	var f *fault.Error
	if !errors.As(rpc.Decode(err), &f) || f.Code != fault.Unauthenticated || f.Hint != "another CA" {
		t.Errorf("%v", f)
	}
}

// TestForeignErrors: a proxy, or Connect itself, answers without a fault.
func TestForeignErrors(t *testing.T) {
	for c, want := range map[connect.Code]fault.Code{
		connect.CodeCanceled: fault.Canceled, connect.CodeDeadlineExceeded: fault.Canceled, connect.CodeResourceExhausted: fault.TooLarge,
		connect.CodeUnavailable: fault.Unavailable, connect.CodeUnknown: fault.Unavailable, connect.CodeInternal: fault.Unavailable,
		connect.CodeAborted: fault.Unavailable, connect.CodeUnauthenticated: fault.Unauthenticated, connect.CodePermissionDenied: fault.Denied,
		connect.CodeInvalidArgument: fault.Invalid, connect.CodeUnimplemented: fault.Invalid,
	} {
		if got := fault.CodeOf(rpc.Decode(connect.NewError(c, errors.New("x")))); got != want {
			t.Errorf("%s: %s, want %s", c, got, want)
		}
	}
}

// TestDecodeBroken: a connection that the server has closed is not a request that somebody gave up.
func TestDecodeBroken(t *testing.T) {
	for cause, want := range map[error]fault.Code{
		syscall.EPIPE: fault.Unavailable, syscall.ECONNRESET: fault.Unavailable, context.Canceled: fault.Canceled,
	} {
		err := connect.NewError(connect.CodeCanceled, &net.OpError{Op: "write", Err: cause})
		if got := fault.CodeOf(rpc.Decode(err)); got != want {
			t.Errorf("%v: %s, want %s", cause, got, want)
		}
	}
}
