//go:build services && pkcs11

package cli_test

import (
	"testing"
)

// TestPKCS11 runs testdata/pkcs11: servers of a build with PKCS #11, and SoftHSM.
func TestPKCS11(t *testing.T) { runScripts(t, "pkcs11") }
