//go:build !pkcs11

package pkcs11_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/seal/pkcs11"
)

// TestNotBuilt: a build without the tag says so, and how to get another.
func TestNotBuilt(t *testing.T) {
	c := pkcs11.Config{Config: hsm.Config{Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "rotor", PINFile: "/etc/rotor/pin"}, Key: "root"}
	s, err := pkcs11.New(c)
	var f *fault.Error
	if s != nil || fault.CodeOf(err) != fault.NotBuilt || !errors.As(err, &f) || !strings.Contains(f.HintText(), "-tags pkcs11") {
		t.Errorf("%v", err)
	}
	c.Key = ""
	if _, err := pkcs11.New(c); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("%v", err)
	}
}
