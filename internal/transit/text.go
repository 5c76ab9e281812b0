package transit

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
)

// Marshaling is the form of signatures.
type Marshaling int

// The forms.
const (
	ASN1 Marshaling = iota // ECDSA: SEQUENCE of r and s in DER (RFC 3279, 2.2.3); all: standard base64
	JWS                    // ECDSA: r||s (RFC 7518, 3.4); all: base64url without padding
)

// ParseMarshaling finds the form of a name; the empty one is asn1. fault.Invalid.
func ParseMarshaling(name string) (Marshaling, error) {
	switch name {
	case "", "asn1":
		return ASN1, nil
	case "jws":
		return JWS, nil
	}
	return 0, refused(Refusal("invalid marshaling type " + strconv.Quote(name)))
}

func (m Marshaling) encoding() *base64.Encoding {
	if m == JWS {
		return base64.RawURLEncoding
	}
	return base64.StdEncoding
}

const prefix = "vault:v"

// Format is the text of a ciphertext or an HMAC of a version.
func Format(number uint32, body []byte) string { return format(number, body, base64.StdEncoding) }

// formatSignature is the text of a signature of a version.
func formatSignature(number uint32, body []byte, m Marshaling) string {
	return format(number, body, m.encoding())
}

// format writes the text in pieces, so that it is made once and not copied.
func format(number uint32, body []byte, e *base64.Encoding) string {
	var piece [1024]byte
	head := append(strconv.AppendUint(append(piece[:0], prefix...), uint64(number), 10), ':')
	var out strings.Builder
	out.Grow(len(head) + e.EncodedLen(len(body)))
	out.Write(head)
	const step = len(piece) / 4 * 3 // whole groups, so only the last piece can have padding
	for ; len(body) > 0; body = body[min(step, len(body)):] {
		out.Write(e.AppendEncode(piece[:0], body[:min(step, len(body))]))
	}
	return out.String()
}

// texts are the words of one kind of text.
type texts struct{ prefix, fields, version, base64, tooNew, tooOld Refusal }

var (
	ciphertexts = texts{
		"invalid ciphertext: no prefix", "invalid ciphertext: wrong number of fields", "invalid ciphertext: version number could not be decoded",
		"invalid ciphertext: could not decode base64", TooNew, TooOld,
	}
	signatures = texts{
		"invalid signature: no prefix", "invalid signature: wrong number of fields", "invalid signature: version number could not be decoded",
		"invalid base64 signature value", SigTooNew, TooOld,
	}
	hmacs = texts{
		"invalid HMAC to verify: no prefix", "invalid HMAC: wrong number of fields", "invalid HMAC: version number could not be decoded",
		"unable to decode verification HMAC as base64", HMACTooNew, HMACTooOld,
	}
)

// Parse takes a ciphertext apart. Version 0 is 1, as in the engine's first form. fault.Invalid; UnknownVersion for a number that no version has,
// BelowFloor for a negative one.
func Parse(text string) (number uint32, body []byte, err error) {
	number, body, err = parse(text, base64.StdEncoding, ciphertexts)
	return max(number, 1), body, err
}

// ParseSignature takes a signature apart; its version may be 0, which none has. Errors are those of Parse.
func ParseSignature(text string, m Marshaling) (number uint32, body []byte, err error) {
	return parse(text, m.encoding(), signatures)
}

// ParseHMAC takes an HMAC apart; its version may be 0, which none has. Errors are those of Parse.
func ParseHMAC(text string) (number uint32, body []byte, err error) {
	return parse(text, base64.StdEncoding, hmacs)
}

func parse(text string, e *base64.Encoding, t texts) (uint32, []byte, error) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return 0, nil, refused(t.prefix)
	}
	version, coded, ok := strings.Cut(rest, ":")
	if !ok {
		return 0, nil, refused(t.fields)
	}
	n, err := strconv.Atoi(version)
	switch {
	case err != nil:
		return 0, nil, refused(t.version)
	case n < 0:
		return 0, nil, fault.Wrap(fault.BelowFloor, "version "+version, t.tooOld)
	case n > 1<<31-1:
		return 0, nil, fault.Wrap(fault.UnknownVersion, "version "+version, t.tooNew)
	}
	body, err := e.DecodeString(coded)
	if err != nil && t == hmacs {
		return 0, nil, refused(t.base64 + Refusal(": "+err.Error()))
	}
	if err != nil {
		return uint32(n), nil, refused(t.base64)
	}
	return uint32(n), body, nil
}

// NotBase64 says whether Parse or ParseSignature found nothing wrong with a text but what stands behind its version, which they told. What is wrong with the version is
// said first, as in Vault's engine; of an HMAC it is not.
func NotBase64(err error) bool {
	return errors.Is(err, ciphertexts.base64) || errors.Is(err, signatures.base64)
}
