package rotor

import (
	"crypto/tls"
	"net/http"
	"strings"

	"github.com/rotorkms/rotor/internal/identity"
)

// ServerTLS is TLS for a program that other instances of the fleet, and the rotor server, connect to: mutual, version 1.3, with
// X25519MLKEM768. accept decides by name which instances may; nil accepts all. The rotor server has the name "".
func (c *Client) ServerTLS(accept func(instance string) bool) *tls.Config {
	return c.dir.ServerTLS(func(id string) bool {
		name, ok := c.nameOf(id)
		return ok && (accept == nil || accept(name))
	})
}

// PeerTLS is TLS to another instance of the fleet.
func (c *Client) PeerTLS(instance string) *tls.Config {
	want := c.dir.PeerID(instance)
	return c.dir.ClientTLS(func(id string) bool { return want != "" && id == want })
}

// PeerHTTP is an HTTP client to another instance of the fleet, with a connection pool of its own. Give it a Timeout.
func (c *Client) PeerHTTP(instance string) *http.Client {
	return c.dir.PeerClient(c.PeerTLS(instance))
}

// PeerName is the name of the instance at the other end of a connection, "" with server true for the rotor server. ok is false for
// anybody else.
func (c *Client) PeerName(s *tls.ConnectionState) (instance string, server, ok bool) {
	if s == nil || len(s.PeerCertificates) == 0 {
		return "", false, false
	}
	name, ok := c.nameOf(identity.SPIFFE(s.PeerCertificates[0]))
	return name, ok && name == "", ok
}

// nameOf splits a SPIFFE ID that was verified.
func (c *Client) nameOf(id string) (instance string, ok bool) {
	if id != "" && id == c.dir.ServerID() {
		return "", true
	}
	prefix := c.dir.PeerID("")
	if prefix == "" {
		return "", false
	}
	name, ok := strings.CutPrefix(id, prefix)
	return name, ok && name != ""
}
