package audit_test

import (
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
)

// TestWhatIsEncodedDecodes: an entry that no reader takes must not get into the log, or the server could never start again.
func TestWhatIsEncodedDecodes(t *testing.T) {
	for _, text := range []string{"a\xffb", "\xff", "\\ufffd", "\ufffd", "\xed\xa0\x80", "ü\u2028<&>\x00\x7f"} {
		e := audit.Entry{Action: "test", Caller: text, Class: audit.ClassUse, Outcome: "done", Time: time.Unix(1, 0).UTC(), Detail: map[string]string{text: text}}
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Decode(b); err != nil {
			t.Errorf("%q encodes to %s, which does not decode: %v", text, b, err)
		}
	}
}
