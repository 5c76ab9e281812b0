// Package vault speaks the HTTP API of HashiCorp Vault and OpenBao (/v1/…): clients that were made for one of them change an address and nothing
// else. It translates to use cases and back, and decides nothing; its words stop here. docs/reference/vault.md is made of its routes.
package vault

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/acl"
	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/rollout"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/wire"
)

// Config is the use cases that the protocol offers.
type Config struct {
	Guard     *guard.Guard
	KMS       *kms.Service
	Rollout   *rollout.Loop
	Authority *authn.Authority
	Mounts    *mounts.Service
	ACL       *acl.Service
	Seals     *sealing.Keeper
	About     func(context.Context) About
	Metrics   http.Handler // that /metrics shows
	Now       func() time.Time
	Log       *slog.Logger
}

// About is what the server tells of itself.
type About struct {
	Version string // X.Y.Z
	Cluster string // its ID; "" while it is sealed
	Engine  string // of the store
	Address string // that clients reach this server at
	Shared  bool   // other servers can open the store, too
	Started time.Time
	Ready   bool
}

// prefix is what the paths of the protocol begin with.
const prefix = "/v1/"

// MaxBody bounds a request, in bytes, as Vault does by default.
const MaxBody = 32 << 20

// maxToken bounds a token, in bytes: batch tokens carry what they stand for.
const maxToken = 4096

// Mount adds the protocol to a mux.
func Mount(mux *http.ServeMux, c Config) {
	mux.Handle(prefix, newServer(c))
}

// Front is the protocol as the listener knows it.
func Front(c Config) wire.Front {
	s := newServer(c)
	return wire.Front{
		Route: func(r *http.Request) (wire.Route, bool) {
			if !hasPrefix(r) {
				return wire.Route{}, false
			}
			out := wire.Route{MaxBody: MaxBody, Name: prefix}
			to, err := s.resolve(r)
			if err == nil {
				out.Stranger, out.Login, out.Name = to.stranger, to.login, to.name
			}
			out.Of = resolved{to, err}
			return out, true
		},
		Token: token, Identify: c.ACL.Identify, Stands: c.ACL.Stands,
		Deny: func(w http.ResponseWriter, _ *http.Request, err error) { writeError(w, err) },
	}
}

func hasPrefix(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, prefix) }

// token reads X-Vault-Token, else Authorization: Bearer. One of them has to be there: a certificate names nobody here, so a browser that holds one
// cannot be made to ask for something.
func token(h http.Header) (string, bool, error) {
	switch all := h.Values("X-Vault-Token"); {
	case len(all) == 1 && len(all[0]) <= maxToken && all[0] != "":
		return all[0], true, nil
	case len(all) > 0:
		return "", true, fault.New(fault.Unauthenticated, "token")
	}
	scheme, text, ok := strings.Cut(h.Get("Authorization"), " ")
	if all := h.Values("Authorization"); len(all) != 1 || !ok || !strings.EqualFold(scheme, "Bearer") || len(text) > maxToken {
		return "", true, fault.New(fault.Unauthenticated, "token").WithHint("X-Vault-Token and the token that a login gave")
	}
	return text, true, nil
}

// namespace reads which of rotor's namespaces a request is about.
func (c Config) namespaceOf(h http.Header) (named keyring.Namespace, life uint64, err error) {
	ns := strings.Trim(h.Get("X-Vault-Namespace"), "/")
	if ns == "" || ns == "root" {
		return c.home(), 0, nil // it is never closed
	}
	life, _ = c.Guard.Life(ns)
	if !keyring.ValidName(ns) || !c.Mounts.Has(keyring.Namespace(ns)) {
		return "", 0, &refusal{status: http.StatusNotFound, texts: []string{"no handler for route: there is no such namespace"}, cause: fault.New(fault.NotFound, "namespace")}
	}
	return keyring.Namespace(ns), life, nil
}
