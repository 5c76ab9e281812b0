package acl

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"github.com/rotorkms/rotor/internal/lenient"
	"slices"
	"strings"
	"time"
)

// maxTrusted bounds the certificates of one entry.
const maxTrusted = 16

// Cert is an entry of a cert mount: an authority, or a certificate of its own.
type Cert struct {
	Certificate  string       `json:"certificate"` // PEM
	Display      string       `json:"display_name"`
	CommonNames  lenient.List `json:"allowed_common_names"`
	Names        lenient.List `json:"allowed_names"` // of any kind
	DNS          lenient.List `json:"allowed_dns_sans"`
	Emails       lenient.List `json:"allowed_email_sans"`
	URIs         lenient.List `json:"allowed_uri_sans"`
	Units        lenient.List `json:"allowed_organizational_units"`
	UnitsOld     lenient.List `json:"allowed_organization_units"`
	Extensions   lenient.List `json:"required_extensions"`
	MetaFrom     lenient.List `json:"allowed_metadata_extensions"`
	OCSP         lenient.Bool `json:"ocsp_enabled"`
	OCSPCAs      string       `json:"ocsp_ca_certificates"`
	OCSPServers  lenient.List `json:"ocsp_servers_override"`
	OCSPFailOpen lenient.Bool `json:"ocsp_fail_open"`
	OCSPAll      lenient.Bool `json:"ocsp_query_all_servers"`
	Params
}

func (c *Cert) check() error {
	if len(c.Extensions)+len(c.MetaFrom) > 0 || bool(c.OCSP) {
		return bad("required_extensions, allowed_metadata_extensions and ocsp_enabled are not supported: what they would check is not checked")
	}
	if len(c.UnitsOld) > 0 && len(c.Units) == 0 {
		c.Units = c.UnitsOld
	}
	if slices.Contains(slices.Concat(c.CommonNames, c.Names, c.DNS, c.Emails, c.URIs, c.Units), "") {
		return bad("an allowed name is empty: it would be that of a certificate without one")
	}
	if _, err := c.trusted(); err != nil {
		return err
	}
	return c.Params.check()
}

// trusted are the certificates of an entry. fault.Invalid.
func (c *Cert) trusted() (out []*x509.Certificate, err error) {
	rest := []byte(c.Certificate)
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if b.Type != "CERTIFICATE" || err != nil {
			return nil, bad("failed to parse certificate")
		}
		if out = append(out, cert); len(out) > maxTrusted {
			return nil, bad("at most %d certificates", maxTrusted)
		}
	}
	if len(out) == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, bad("failed to parse certificate")
	}
	return out, nil
}

// LoginCert exchanges the client certificate of the connection for a token of the entry with a name, or of the first that takes it. Tokens end with the
// certificate. fault.Invalid.
func (s *Service) LoginCert(ctx context.Context, d Door, name string) (Ticket, error) {
	if len(d.TLS.PeerCertificates) == 0 {
		return Ticket{}, bad("client certificate must be supplied")
	}
	leaf := d.TLS.PeerCertificates[0]
	names := []string{name}
	if name == "" {
		names = s.certNames(d)
	}
	for _, n := range names {
		at := At{Namespace: d.Namespace, Mount: d.Mount, Kind: KindCert, Name: n}
		var c Cert
		_, _, there, err := read(ctx, s, at, &c)
		if err != nil {
			return Ticket{}, err
		}
		if there && c.takes(d.TLS.PeerCertificates, s.Now()) {
			return s.open(ctx, d, c.visitor(at, leaf, s.Now()))
		}
	}
	return Ticket{}, s.refuse(ctx, d, notIn("invalid certificate or no client certificate supplied"))
}

// certNames are the entries of a mount in their order.
func (s *Service) certNames(d Door) (out []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, r := range s.entries.Rows {
		if name, ok := strings.CutPrefix(id, d.Mount.Accessor+"/"+KindCert+"/"); ok && !r.Deleted {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (c *Cert) visitor(at At, leaf *x509.Certificate, now time.Time) visitor {
	params := c.Params
	if left := leaf.NotAfter.Sub(now); params.Explicit == 0 || time.Duration(params.Explicit) > left {
		params.Explicit = lenient.Duration(left)
	}
	display := c.Display
	if display == "" {
		display = at.Name
	}
	return visitor{
		caller: at.Name + "/" + leaf.Subject.CommonName, display: display, source: at.id(), params: &params,
		meta: map[string]string{
			"cert_name": at.Name, "common_name": leaf.Subject.CommonName, "serial_number": leaf.SerialNumber.String(), "subject_key_id": colons(leaf.SubjectKeyId),
			"authority_key_id": colons(leaf.AuthorityKeyId),
		},
	}
}

// colons spells bytes as people write key identifiers.
func colons(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(parts, ":")
}

// takes says whether a certificate, whose key the connection has proven, is one of the entry or of an authority of it, and has the names that it demands.
func (c *Cert) takes(chain []*x509.Certificate, now time.Time) bool {
	trusted, err := c.trusted()
	if err != nil {
		return false
	}
	leaf := chain[0]
	if !c.named(leaf) || leaf.Subject.CommonName != "" && !sayable(leaf.Subject.CommonName) {
		return false
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, t := range trusted {
		if t.Equal(leaf) && !t.IsCA {
			return !now.Before(leaf.NotBefore) && now.Before(leaf.NotAfter)
		}
		if t.IsCA {
			roots.AddCert(t)
		}
	}
	for _, m := range chain[1:] {
		between.AddCert(m)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// named says whether a certificate has one name of each kind that the entry demands.
func (c *Cert) named(leaf *x509.Certificate) bool {
	var uris []string
	for _, u := range leaf.URIs {
		uris = append(uris, u.String())
	}
	cn := []string{leaf.Subject.CommonName}
	for _, k := range []struct{ wanted, got []string }{
		{c.CommonNames, cn}, {c.DNS, leaf.DNSNames}, {c.Emails, leaf.EmailAddresses}, {c.URIs, uris}, {c.Units, leaf.Subject.OrganizationalUnit},
		{c.Names, slices.Concat(cn, leaf.DNSNames, leaf.EmailAddresses)},
	} {
		if len(k.wanted) > 0 && !globs(k.wanted, k.got) {
			return false
		}
	}
	return true
}
