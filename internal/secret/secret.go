// Package secret holds key bytes in the one type that cannot leak: no formatting verb, encoder or logger
// reaches the bytes; only Reveal does, and a test at the root of the module lists who calls it.
package secret

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[secret]"

// errEncode is what every encoder gets instead of the bytes.
var errEncode = errors.New("secret bytes cannot be encoded")

// Bytes is a secret. The zero value is the empty secret. Copies share the same memory, so Destroy on one
// destroys all. The bytes stand behind a func because reflection-based printers cannot look into one.
type Bytes struct {
	get func() []byte
}

// Take makes a Bytes of b and owns it from then on: the caller must neither keep nor change b.
func Take(b []byte) Bytes {
	return Bytes{get: func() []byte { return b }}
}

// Copy makes a Bytes from a copy of b.
func Copy(b []byte) Bytes {
	return Take(append([]byte(nil), b...))
}

// Random returns n fresh bytes of the operating system's generator (crypto/rand, which never fails).
func Random(n int) Bytes {
	b := make([]byte, n)
	rand.Read(b)
	return Take(b)
}

// Reveal returns the bytes themselves, not a copy: do not change, keep or log them.
func (s Bytes) Reveal() []byte {
	if s.get == nil {
		return nil
	}
	return s.get()
}

// Len is the number of bytes.
func (s Bytes) Len() int { return len(s.Reveal()) }

// IsZero says whether the secret is empty.
func (s Bytes) IsZero() bool { return s.Len() == 0 }

// Equal compares in constant time; secrets of different lengths are unequal.
func (s Bytes) Equal(o Bytes) bool {
	return subtle.ConstantTimeCompare(s.Reveal(), o.Reveal()) == 1
}

// Destroy overwrites the bytes with zeros. Copies made by libraries, the runtime or the kernel are not reached.
func (s Bytes) Destroy() { clear(s.Reveal()) }

// String returns a fixed text.
func (s Bytes) String() string { return redacted }

// GoString returns a fixed text.
func (s Bytes) GoString() string { return redacted }

// Format writes a fixed text for every verb.
func (s Bytes) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a fixed text.
func (s Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText fails always.
func (s Bytes) MarshalText() ([]byte, error) { return nil, errEncode }

// MarshalJSON fails always.
func (s Bytes) MarshalJSON() ([]byte, error) { return nil, errEncode }

// MarshalBinary fails always.
func (s Bytes) MarshalBinary() ([]byte, error) { return nil, errEncode }

// GobEncode fails always.
func (s Bytes) GobEncode() ([]byte, error) { return nil, errEncode }
