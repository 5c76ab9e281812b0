package vault

import (
	"net/http"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/wire"
)

// sealed answers while the server does not serve: what everybody may know of it, shares, and why everything else is refused.
type sealed struct {
	*server
	why error
}

// MountSealed adds to a mux what the protocol answers while the server is sealed, waits for its init, or is in recovery mode.
func MountSealed(mux *http.ServeMux, why error, n Node) {
	mux.Handle(prefix, sealed{&server{table: newTable(statusRoutes(n))}, why})
}

// Status answers what everybody may know of a server, and nothing else; for the local socket.
func Status(why error, n Node) http.Handler {
	return sealed{&server{table: newTable(statusRoutes(n))}, why}
}

// Elsewhere is why a local socket answers nothing but the status of an open server.
func Elsewhere() error {
	return &refusal{http.StatusNotFound, []string{"the local socket has sys/health, sys/seal-status, sys/leader, sys/init and sys/unseal alone"}, nil, fault.New(fault.NotFound, "path")}
}

// ServeHTTP implements http.Handler.
func (s sealed) ServeHTTP(w http.ResponseWriter, h *http.Request) {
	to := target{path: strings.TrimPrefix(h.URL.Path, prefix)}
	var ok bool
	if to.route, to.vars, ok = s.table.find("", strings.TrimSuffix(to.path, "/")); !ok {
		s.refuse(w, h, s.why)
		return
	}
	r, err := begin(h, to)
	if err == nil {
		err = r.read(h, to)
	}
	if err != nil {
		s.refuse(w, h, err)
		return
	}
	handle, ok := to.ops[r.op]
	if !ok {
		s.refuse(w, h, unsupported())
		return
	}
	out, err := handle(h.Context(), r)
	if err != nil {
		s.refuse(w, h, err)
		return
	}
	write(w, to.route, out)
}

func (s sealed) refuse(w http.ResponseWriter, h *http.Request, err error) {
	wire.Failed(h.Context(), err)
	writeError(w, err)
}

// SealedFront is the protocol of such a server as the listener knows it.
func SealedFront() wire.Front {
	open := newTable(statusRoutes(Node{}))
	return wire.Front{
		Route: func(r *http.Request) (wire.Route, bool) {
			_, _, ok := open.find("", strings.Trim(strings.TrimPrefix(r.URL.Path, prefix), "/"))
			return wire.Route{Stranger: ok}, hasPrefix(r)
		},
		Token: func(http.Header) (string, bool, error) { return "", false, nil }, // nobody is known, and everybody hears why
		Deny:  func(w http.ResponseWriter, _ *http.Request, err error) { writeError(w, err) },
	}
}
