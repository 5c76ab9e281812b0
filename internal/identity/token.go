// Package identity is what a process needs to be somebody: the join token, and the directory that holds its private key, its
// certificate, and what it pinned when it joined. Formats: spec/join.md.
package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

const (
	joinPrefix   = "rj1."
	enrolPrefix  = "re1." // of administrators
	maxJoinToken = 4 << 10
	tokenIDSize  = 16 // in bytes; the text has them in hex
	secretSize   = 32
	// MaxTTL bounds the life of an instance's join token.
	MaxTTL = 10 * time.Minute
	// MaxEnrolTTL bounds the life of an administrator's enrolment token.
	MaxEnrolTTL = time.Hour
)

// JoinToken lets one process become one identity, once: an instance or, as an enrolment token, an administrator.
type JoinToken struct {
	Address  string    `json:"a"` // host:port of the server, several with commas between
	CA       []byte    `json:"c"` // SHA-256 of the CA's certificate
	ID       string    `json:"i"` // of the token: 16 bytes in hex
	Instance string    `json:"n"` // name of the instance, or of the administrator
	SPIFFE   string    `json:"s"`
	Expires  time.Time `json:"e"`
	Secret   []byte    `json:"k"` // 32 bytes
}

// Encode gives the text form.
func (t JoinToken) Encode() string {
	b, _ := json.Marshal(t) // strings, bytes and a time always encode
	return t.prefix() + base64.RawURLEncoding.EncodeToString(b)
}

// IsAdmin says whether the token is for an administrator.
func (t JoinToken) IsAdmin() bool {
	rest, _ := strings.CutPrefix(t.SPIFFE, "spiffe://")
	_, path, _ := strings.Cut(rest, "/")
	return strings.HasPrefix(path, "admin/")
}

func (t JoinToken) prefix() string {
	if t.IsAdmin() {
		return enrolPrefix
	}
	return joinPrefix
}

// ParseJoinToken reads the text form strictly. fault.Invalid, which never quotes the token.
func ParseJoinToken(s string) (JoinToken, error) {
	s = strings.TrimSpace(s)
	bad := fault.New(fault.Invalid, "join token").WithHint("it begins with %s (rotor instance invite) or %s (rotor admin invite)", joinPrefix, enrolPrefix)
	body, ok := strings.CutPrefix(s, joinPrefix)
	if !ok {
		body, ok = strings.CutPrefix(s, enrolPrefix)
	}
	if !ok || len(s) > maxJoinToken {
		return JoinToken{}, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return JoinToken{}, bad
	}
	defer clear(b)
	var t JoinToken
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil || !t.wellFormed() || !strings.HasPrefix(s, t.prefix()) {
		return JoinToken{}, bad
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return JoinToken{}, bad
	}
	return t, nil
}

// wellFormed bounds what a token may make its reader do: where to connect, which record to read, who to expect.
func (t JoinToken) wellFormed() bool {
	id, err := hex.DecodeString(t.ID)
	if err != nil || len(id) != tokenIDSize || hex.EncodeToString(id) != t.ID {
		return false
	}
	if _, err := Addresses(t.Address); err != nil || strings.ContainsAny(t.Address, " \t\r\n") {
		return false
	}
	u, err := url.Parse(t.SPIFFE)
	if err != nil || u.Scheme != "spiffe" || u.Host == "" || t.Instance == "" {
		return false
	}
	if id := "spiffe://" + u.Host + "/"; t.SPIFFE != id+"instance/"+t.Instance && t.SPIFFE != id+"admin/"+t.Instance {
		return false
	}
	return len(t.CA) == sha256.Size && len(t.Secret) == secretSize && !t.Expires.IsZero()
}

// DigestJoinToken is what the server keeps of a token: the hash of its whole text, so that an edited token is an unknown one.
func DigestJoinToken(text string) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.TrimSpace(text)))
}
