package native

import (
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/rpc"
	"github.com/rotorkms/rotor/internal/wire"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// ours is what the paths of all services begin with.
const ours = "/rotor.v1."

// routes are the procedures with something special about them.
func routes() map[string]wire.Route {
	stranger, stream, endless := wire.Route{Stranger: true}, wire.Route{Stream: true}, wire.Route{Stream: true, Unbounded: true}
	return map[string]wire.Route{
		rotorv1.JoinServiceJoinProcedure:  stranger,
		rotorv1.JoinServiceRenewProcedure: {Renew: true},
		rotorv1.AuthServiceLoginProcedure: {Stranger: true, Login: true},

		rotorv1.SealServiceStatusProcedure: stranger, // what custodians need, whose shares are their credential
		rotorv1.SealServiceUnsealProcedure: stranger,
		rotorv1.SealServiceResetProcedure:  stranger,

		rotorv1.KeyServiceRestoreProcedure: {MaxBody: maxKeyBackup},

		rotorv1.FleetServiceHoldProcedure:   endless, // each of its messages is bounded
		rotorv1.RootServiceRecoverProcedure: endless, // it takes as much as an audit log, of who has the right to recover the store, and bounds that itself
		rotorv1.RootServiceBackupProcedure:  stream,
		rotorv1.AuditServiceTailProcedure:   stream,
		rotorv1.AuditServiceExportProcedure: stream,
	}
}

// Front is the protocol as the listener knows it.
func Front() wire.Front {
	special, writer := routes(), connect.NewErrorWriter()
	return wire.Front{
		Route: func(r *http.Request) (wire.Route, bool) {
			return special[r.URL.Path], strings.HasPrefix(r.URL.Path, ours)
		},
		Deny: func(w http.ResponseWriter, r *http.Request, err error) {
			if writer.IsSupported(r) {
				_ = writer.Write(w, r, rpc.Encode(err)) // the client is gone when this fails
				return
			}
			http.Error(w, rpc.Public(err).Error(), wire.Status(err))
		},
	}
}
