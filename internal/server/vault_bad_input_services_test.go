//go:build services

package server_test

import (
	"net/http"
	"testing"

	"github.com/rotorkms/rotor/internal/testenv"
)

// TestVaultPeerBadInput asks a true Vault what TestVaultBadInput asks rotor: its answers are those of the table, but where that says why not.
func TestVaultPeerBadInput(t *testing.T) {
	t.Parallel()
	real := testenv.Vault(t)
	b := newBadWorld(&vaultClient{t, real.Address + "/v1/", real.Root, http.Header{}, as(t, "")})
	for _, in := range badInputs() {
		if in.token == "expired" { // which takes the time that a token lives
			continue
		}
		ours := answer{status: in.status, body: m{"errors": []any{in.text}}}
		theirs := b.ask(in)
		if diff := difference(ours, answer{status: theirs.status, body: m{"errors": theirs.body["errors"]}}); (diff != "") != (in.known != "") {
			t.Errorf("%.60s: %s (known: %q)", in.what, diff, in.known)
		}
	}
	b.opens()
}
