package identity

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"sync"
	"time"
)

// How long a connection may take to come about, and be without a sign of life.
const (
	dialTimeout = 10 * time.Second
	pingEvery   = 15 * time.Second
	pingTimeout = 10 * time.Second
	idleTimeout = 90 * time.Second
)

// HTTPClient talks to the cluster's server alone, by HTTP/2 over TLS as the directory's identity.
func (d *Dir) HTTPClient() *http.Client { return d.client(d.ClientTLS(d.isServer)) }

// ServersClient is HTTPClient for a list of servers of the cluster (Addresses): whatever host a URL names, the one that answers gets the request.
func (d *Dir) ServersClient(addresses []string) *http.Client {
	h := d.HTTPClient()
	h.Transport = Among(h.Transport, addresses)
	return h
}

// PeerClient talks to whoever the TLS configuration accepts, as the directory's identity.
func (d *Dir) PeerClient(c *tls.Config) *http.Client { return d.client(c) }

// JoinClient talks to the server that a join token names, as nobody.
func JoinClient(t JoinToken) *http.Client {
	return &http.Client{Transport: newTransport(JoinTLS(t.CA, t.ServerID())), CheckRedirect: noRedirect}
}

func (d *Dir) client(c *tls.Config) *http.Client {
	return &http.Client{Transport: &renewed{dir: d, config: c}, CheckRedirect: noRedirect}
}

// noRedirect: whoever was authenticated answers itself.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// newTransport has no proxy from the environment and waits for nothing for ever.
func newTransport(c *tls.Config) *http.Transport {
	return &http.Transport{
		TLSClientConfig: c, ForceAttemptHTTP2: true, TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: idleTimeout,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: pingEvery, PingTimeout: pingTimeout},
	}
}

// renewed is a transport whose connections are of the present certificate: a connection shows its certificate once, and the other
// side refuses it when that one has ended, whatever came after.
type renewed struct {
	dir    *Dir
	config *tls.Config

	mu   sync.Mutex // guards what follows
	leaf *x509.Certificate
	now  *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *renewed) RoundTrip(r *http.Request) (*http.Response, error) { return t.current().RoundTrip(r) }

// CloseIdleConnections is called by http.Client.
func (t *renewed) CloseIdleConnections() { t.current().CloseIdleConnections() }

func (t *renewed) current() *http.Transport {
	leaf := t.dir.Leaf()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now == nil || t.leaf != leaf {
		if t.now != nil {
			t.now.CloseIdleConnections() // those with requests on them end when they become idle
		}
		t.now, t.leaf = newTransport(t.config.Clone()), leaf
	}
	return t.now
}
