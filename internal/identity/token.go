// Package identity is what a process needs to be somebody: the join token, and the directory that holds its private key, its
// certificate, and what it pinned when it joined. Formats: spec/join.md.
package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

const (
	joinPrefix   = "rj1."
	maxJoinToken = 4 << 10
	// MaxTTL bounds the life of a join token.
	MaxTTL = 10 * time.Minute
)

// JoinToken lets one process become one identity, once.
type JoinToken struct {
	Address  string    `json:"a"` // host:port of the server
	CA       []byte    `json:"c"` // SHA-256 of the CA's certificate
	ID       string    `json:"i"` // of the token: 16 bytes in hex
	Instance string    `json:"n"`
	SPIFFE   string    `json:"s"`
	Expires  time.Time `json:"e"`
	Secret   []byte    `json:"k"` // 32 bytes
}

// Encode gives the text form.
func (t JoinToken) Encode() string {
	b, _ := json.Marshal(t) // strings, bytes and a time always encode
	return joinPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseJoinToken reads the text form strictly. fault.Invalid, which never quotes the token.
func ParseJoinToken(s string) (JoinToken, error) {
	s = strings.TrimSpace(s)
	bad := fault.New(fault.Invalid, "join token").WithHint("it begins with %s; get one with rotor instance invite", joinPrefix)
	body, ok := strings.CutPrefix(s, joinPrefix)
	if !ok || len(s) > maxJoinToken {
		return JoinToken{}, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return JoinToken{}, bad
	}
	var t JoinToken
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return JoinToken{}, bad
	}
	if t.Address == "" || len(t.CA) != sha256.Size || t.ID == "" || t.Instance == "" || t.SPIFFE == "" || len(t.Secret) != 32 {
		return JoinToken{}, bad
	}
	return t, nil
}
