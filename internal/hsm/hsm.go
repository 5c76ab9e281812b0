// Package hsm speaks to PKCS #11 tokens (OASIS PKCS #11, 2.40 and later): sessions that come back when the token was away, calls that hold nobody
// longer than they may, and the few operations that rotor asks for. With the build tag pkcs11 alone, because it loads a vendor's library into
// the process, by cgo.
package hsm

import (
	"errors"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
)

// Config says which token, and how to log in.
type Config struct {
	Module  string // absolute path of the vendor's library
	Token   string // label of the token
	PINFile string // file with the user's PIN, mode 0600; read at every login
}

// maxLabel bounds labels in bytes: that of a token has 32 (CK_TOKEN_INFO).
const maxLabel = 32

// Validate names what is wrong. fault.Invalid.
func (c Config) Validate() error {
	bad := func(field, hint string) error { return fault.New(fault.Invalid, field).WithHint("%s", hint) }
	switch {
	case !filepath.IsAbs(c.Module):
		return bad("module", "the absolute path of the token's library, for example /usr/lib/softhsm/libsofthsm2.so")
	case c.Token == "" || len(c.Token) > maxLabel || strings.TrimSpace(c.Token) != c.Token || strings.ContainsFunc(c.Token, func(r rune) bool { return r < ' ' }):
		return bad("token", "the label of the token: 1 to 32 bytes, no blank at either end")
	case c.PINFile == "":
		return bad("pin_file", "name the file with the PIN of the token's user, mode 0600")
	}
	return nil
}

// URI names an object of a token as RFC 7512 does.
func URI(token, object string) string {
	escape := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	return "pkcs11:token=" + escape(token) + ";object=" + escape(object)
}

// The errors of a token, possibly wrapped.
var (
	// ErrAway: the token cannot be reached, or does not let us in.
	ErrAway = errors.New("token is not available")
	// ErrNoKey: the token is there and has no such object.
	ErrNoKey = errors.New("token has no such key")
	// ErrRefused: the ciphertext does not open.
	ErrRefused = errors.New("token refused the ciphertext")
	// ErrUnable: the token cannot do this, however often it is asked.
	ErrUnable = errors.New("token cannot do this")
)

// Name finds objects of a token. Labels are not unique in a token: what has the same name twice is tried in turn.
type Name struct {
	Label string // CKA_LABEL
	ID    string // CKA_ID
}

// Info is what a token says of itself.
type Info struct {
	Label, Maker, Model, Serial, Library string
}
