//go:build !pkcs11

package server_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/server"
)

// TestNotBuilt: a build without PKCS #11 says so to whoever names a token, and takes nothing else in its place.
func TestNotBuilt(t *testing.T) {
	w := newConfig(t)
	w.config.Seals = []server.Seal{{Name: "token", Type: "pkcs11", Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "rotor", Key: "root", PINFile: "/etc/rotor/pin"}}
	if _, err := server.Init(t.Context(), w.config); fault.CodeOf(err) != fault.NotBuilt {
		t.Errorf("%v", err)
	}
}
