package wire

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rpc"
)

// Front is one protocol of the listener: which paths are its own, and how it names callers and refuses them.
type Front struct {
	// Route says whether a request is of this protocol, and what is special about its path.
	Route func(r *http.Request) (Route, bool)
	// Token reads the token that a request shows; nil: that of Authorization: Bearer. Where one is shown, or err says that there should have been one, a
	// certificate does not count. fault.Unauthenticated.
	Token func(h http.Header) (token string, shown bool, err error)
	// Identify names the caller that a token from an address is of, and says when the token ends; nil: Config.Identifier.Session. fault.Unauthenticated.
	Identify func(ctx context.Context, token, address string) (policy.Caller, time.Time, error)
	// Stands says whether a token that was taken would still be, without counting as a use of it; nil: Identify is asked again.
	Stands func(ctx context.Context, token, address string) error
	// Deny writes a refusal; nil: in plain text. What is left of the request's body is not read.
	Deny func(w http.ResponseWriter, r *http.Request, err error)
}

// Route is what is special about a path. The zero Route is one for known callers, with the limits of a request.
type Route struct {
	Stranger  bool  // it answers without a caller
	Login     bool  // it tells itself who comes, by what is in its body or by the certificate; how often an address may ask is bounded
	Renew     bool  // it takes a certificate that has ended
	Stream    bool  // it has no time limit, and ends with the caller's certificate, with its removal and with the server
	Unbounded bool  // its messages have a limit, their sum has none that the listener knows of
	MaxBody   int64 // bytes of the body; 0: MaxMessage. That of strangers is smaller

	Name string // what its requests are counted as, of a bounded set; empty: whoever counts finds one
	Of   any    // what the protocol has found out about the request, for its handler
}

// RouteOf is the route that a protocol gave a request.
func RouteOf(ctx context.Context) Route { return peerOf(ctx).route }

// Paths is the Route of a protocol of a few paths.
func Paths(routes map[string]Route) func(*http.Request) (Route, bool) {
	return func(r *http.Request) (Route, bool) {
		route, ok := routes[r.URL.Path]
		return route, ok
	}
}

// frontOf finds who speaks to a request.
func frontOf(fronts []Front, r *http.Request) (Front, Route) {
	for _, f := range fronts {
		if route, ok := f.Route(r); ok {
			return f, route
		}
	}
	return Front{}, Route{}
}

func (f Front) token(h http.Header) (token string, shown bool, err error) {
	if f.Token != nil {
		return f.Token(h)
	}
	return Bearer(h)
}

func (f Front) deny(w http.ResponseWriter, r *http.Request, err error) {
	if f.Deny != nil {
		f.Deny(w, r, err)
		return
	}
	http.Error(w, rpc.Public(err).Error(), Status(err))
}

// Status is the HTTP status of a refusal before a request is read.
func Status(err error) int {
	switch fault.CodeOf(err) {
	case fault.Denied:
		return http.StatusForbidden
	case fault.TooLarge:
		return http.StatusRequestEntityTooLarge
	case fault.RateLimited:
		return http.StatusTooManyRequests
	case fault.Unavailable, fault.Sealed:
		return http.StatusServiceUnavailable
	}
	return http.StatusUnauthorized
}

// maxBearer bounds a session token, in bytes.
const maxBearer = 256

// Bearer reads the one token of an Authorization header (RFC 6750, 2.1). fault.Unauthenticated.
func Bearer(h http.Header) (token string, shown bool, err error) {
	all := h.Values("Authorization")
	if len(all) == 0 {
		return "", false, nil
	}
	scheme, token, ok := strings.Cut(all[0], " ")
	if len(all) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || len(token) > maxBearer {
		return "", true, fault.New(fault.Unauthenticated, "session").WithHint("Authorization: Bearer and the token that login gave")
	}
	return token, true, nil
}
