package identity

import (
	"crypto/ed25519"
	"encoding/binary"
	"strings"
)

// ServerInput is what the server's signing key signs: msg in a domain, so that no signature can be taken for one of another use.
func ServerInput(domain string, msg []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte("rotor-signature-v1\x00"), uint32(len(domain)))
	return append(append(b, domain...), msg...)
}

// VerifyServer checks a signature of the server's signing key, which is pinned at join.
func VerifyServer(public ed25519.PublicKey, domain string, msg, sig []byte) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, ServerInput(domain, msg), sig)
}

// ServerID is the SPIFFE ID of the server that answers the token: the one of the token's trust domain.
func (t JoinToken) ServerID() string {
	rest, _ := strings.CutPrefix(t.SPIFFE, "spiffe://")
	domain, _, _ := strings.Cut(rest, "/")
	return "spiffe://" + domain + "/server"
}

// Instance is the name of the instance that the certificate is for; empty for administrators and before joining.
func (d *Dir) Instance() string {
	c := d.Leaf()
	if c == nil || len(c.URIs) != 1 {
		return ""
	}
	name, ok := strings.CutPrefix(c.URIs[0].Path, "/instance/")
	if !ok {
		return ""
	}
	return name
}

// IsInstance says whether the identity is of an instance, which can hold keys, and not of an administrator.
func (d *Dir) IsInstance() bool { return d.Instance() != "" }
