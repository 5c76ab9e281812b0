package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"

	"github.com/rotorkms/rotor/internal/fault"
)

// ServerClient talks to a server without an identity directory: as nobody, or with a client certificate. authority is a PEM file's content with the
// certificates that the server is checked with: that of a rotor cluster, which its server is known by through its SPIFFE ID, or others, through the
// server's host name; none: the system's. fault.Invalid.
func ServerClient(authority []byte, certificate *tls.Certificate) (*http.Client, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if len(authority) > 0 {
		own, pool, err := parseAuthority(authority)
		if err != nil {
			return nil, err
		}
		if c.RootCAs = pool; own != nil {
			c = clusterTLS(own, func(id string) bool { return id == SPIFFE(own)+"/server" })
		}
	}
	if certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return &http.Client{Transport: newTransport(c), CheckRedirect: noRedirect}, nil
}

// parseAuthority reads certificates; own is the one of a cluster, if there is one.
func parseAuthority(b []byte) (own *x509.Certificate, pool *x509.CertPool, err error) {
	pool = x509.NewCertPool()
	n := 0
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, nil, fault.New(fault.Invalid, "certificate of an authority")
		}
		pool.AddCert(c)
		if n++; SPIFFE(c) != "" {
			own = c
		}
	}
	if n == 0 || own != nil && n > 1 {
		return nil, nil, fault.New(fault.Invalid, "certificate of an authority").WithHint("PEM, of one cluster or of others")
	}
	return own, pool, nil
}

// CustodianClient talks, as nobody, to a server of the cluster whose authority's certificate this is, also to one that is sealed: for who has a share and no
// identity. fault.Invalid.
func CustodianClient(authority []byte) (*http.Client, error) {
	own, _, err := parseAuthority(authority)
	if err != nil {
		return nil, err
	}
	if own == nil {
		return nil, fault.New(fault.Invalid, "certificate of an authority").WithHint("it is not that of a cluster: rotor server ca")
	}
	c := clusterTLS(own, func(id string) bool { return id == SPIFFE(own)+"/server" || id == SPIFFE(own)+sealedPath })
	return &http.Client{Transport: newTransport(c), CheckRedirect: noRedirect}, nil
}

// clusterTLS connects to a server of the cluster that an authority is of.
func clusterTLS(ca *x509.Certificate, accept func(spiffe string) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // names are SPIFFE IDs, not hosts; VerifyConnection checks chain and ID
		VerifyConnection: func(s tls.ConnectionState) error {
			return verifyPeer(s, ca, accept)
		},
	}
}

// CAPEM is the certificate of the cluster's authority, which others can check its server with; empty before joining.
func (d *Dir) CAPEM() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.ca == nil {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.ca.Raw})
}
