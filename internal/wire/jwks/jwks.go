// Package jwks publishes the keys that verify access tokens (RFC 7517). It answers strangers.
package jwks

import (
	"fmt"
	"net/http"
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/token"
	"github.com/rotorkms/rotor/internal/wire"
)

// Path is where the set of the default namespace is.
const Path = "/.well-known/jwks.json"

// Front is the path as the listener knows it.
func Front() wire.Front {
	return wire.Front{Route: wire.Paths(map[string]wire.Route{Path: {Stranger: true}})}
}

// Source gives the present key set and how long it may be cached.
type Source interface {
	// Set returns the set of a namespace.
	Set(ns keyring.Namespace) (token.Set, time.Duration)
}

// issuerIs is a header of ours that names the issuer of the cluster's tokens, for rotor's own clients: they reach a server by an address, and have
// checked that it is of their cluster.
const issuerIs = "Rotor-Issuer"

// Handler serves the set of a namespace. Cache-Control carries the time that the scheduler waits before a new version signs. issuer is what all
// servers of the cluster call themselves; "": each has a name of its own.
func Handler(s Source, ns keyring.Namespace, issuer string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "GET or HEAD", http.StatusMethodNotAllowed)
			return
		}
		set, age := s.Set(ns)
		b, err := token.EncodeSet(set)
		if err != nil {
			http.Error(w, "internal", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		if issuer != "" {
			w.Header().Set(issuerIs, issuer)
		}
		w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(age.Seconds())))
		_, _ = w.Write(b) // the client is gone when this fails
	})
}
