package keyring

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds of what a caller may name.
const (
	MaxName   = 64
	MaxLabels = 32
	MaxLabel  = 256 // of a label's key or value, of an owner and of a reason, in bytes
	// MaxApprovals bounds how many callers a destruction can need.
	MaxApprovals = 16
)

// ValidName says whether a name of a key, namespace or instance is well formed: lower-case letters, digits, and inside also
// . _ and -, at most MaxName bytes.
func ValidName(s string) bool {
	if s == "" || len(s) > MaxName {
		return false
	}
	for i, c := range []byte(s) {
		inner := c == '.' || c == '_' || c == '-'
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || inner && i > 0 && i < len(s)-1 {
			continue
		}
		return false
	}
	return true
}

// ValidID says whether an ID of a key is well formed: 16 bytes in lower-case hex.
func ValidID(id KeyID) bool {
	b, err := hex.DecodeString(string(id))
	return err == nil && len(b) == 16 && strings.ToLower(string(id)) == string(id)
}

// ValidReason says whether the reason of a change can be kept: at most MaxLabel bytes of printable text.
func ValidReason(s string) bool { return validText(s) }

// validText refuses what a terminal would act on, and bytes that JSON would replace, so that the text that policy sees is the one kept.
func validText(s string) bool {
	return len(s) <= MaxLabel && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Validate checks what a caller chose about a key. fault.Invalid names the field, AlgorithmForbidden.
func (k Key) Validate() error {
	if err := k.validName(); err != nil {
		return err
	}
	switch {
	case !ValidName(string(k.Namespace)):
		return invalid("namespace", "a namespace has 1 to %d lower-case letters, digits, and inside . _ -", MaxName)
	case !validText(k.Owner):
		return invalid("owner", "at most %d bytes of printable text", MaxLabel)
	case len(k.Labels) > MaxLabels:
		return invalid("labels", "at most %d", MaxLabels)
	}
	for name, value := range k.Labels {
		if name == "" || !validText(name) || !validText(value) {
			return invalid("labels", "keys and values have at most %d bytes of printable text", MaxLabel)
		}
	}
	if !slices.Contains(suite.Purposes(), k.Purpose) {
		return invalid("purpose", "one of %v", suite.Purposes())
	}
	spec, err := suite.ForPurpose(k.Algorithm, k.Purpose)
	if err != nil {
		return err
	}
	if err := k.validTransit(spec); err != nil {
		return err
	}
	switch {
	case k.Custody == CustodyServer:
	case k.Custody == CustodyFleet && spec.MaxUses > 0:
		return invalid("custody", "%s has a limit of %d uses that only the server can count; fleet keys take XAES-256-GCM or XChaCha20-Poly1305", k.Algorithm, spec.MaxUses)
	case k.Custody == CustodyFleet && (k.Purpose == suite.Encrypt || k.Purpose == suite.MAC):
	case k.Custody == CustodyFleet:
		return invalid("custody", "keys that %s stay on the server", k.Purpose)
	case k.Custody == CustodyHSM && k.Exportable:
		return invalid("exportable", "what is in a token never leaves it")
	case k.Custody == CustodyHSM && !spec.Token():
		return invalid("custody", "%s does not run inside a token: AES-GCM, HMAC, ECDSA, RSA signatures and Ed25519 do", k.Algorithm)
	case k.Custody == CustodyHSM:
	default:
		return invalid("custody", "server, fleet or hsm")
	}
	return k.validatePeriods()
}

func (k Key) validatePeriods() error {
	p, r := k.Periods, k.Rotation
	switch {
	case p.Originator < 0 || p.Recipient < 0 || p.Recipient > 0 && p.Recipient < p.Originator:
		return invalid("periods", "the recipient-usage period is at least as long as the originator-usage period")
	case p.Recipient > 0 && p.Originator == 0:
		return invalid("periods", "a limited recipient-usage period needs a limited originator-usage period")
	case r.Silence != "" && r.Silence != Block && r.Silence != Fence:
		return invalid("rotation.silence", "block or fence")
	case r.MaxStale < 0 || r.MaxWait < 0 || r.Window < 0 || r.Wait < 0 || r.Margin < 0:
		return invalid("rotation", "durations are not negative")
	case r.Approvals < 0 || r.Approvals > MaxApprovals:
		return invalid("rotation.destroy_approvals", "1 to %d", MaxApprovals)
	}
	return k.Schedule.validate()
}

func invalid(field, hint string, args ...any) error {
	return fault.New(fault.Invalid, field).WithHint("%s", fmt.Sprintf(hint, args...))
}
