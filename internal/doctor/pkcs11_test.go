//go:build !pkcs11

package doctor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/doctor"
	"github.com/rotorkms/rotor/internal/hsm"
)

// TestTokens: a build without PKCS #11 says so; a PIN that others may read and a library that others may write are named. That a token is found is shown by TestPKCS11 of internal/cli.
func TestTokens(t *testing.T) {
	dir := t.TempDir()
	c := hsm.Config{Module: filepath.Join(dir, "lib.so"), Token: "rotor", PINFile: filepath.Join(dir, "pin")}
	for path, mode := range map[string]os.FileMode{c.Module: 0o666, c.PINFile: 0o644} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	found := map[string]doctor.Finding{}
	for _, f := range doctor.Look(doctor.Subject{Dir: dir, Tokens: []hsm.Config{c}}) {
		found[f.Code] = f
	}
	if f := found["pkcs11_token"]; f.State != doctor.Fail || !strings.Contains(f.Hint, "-tags pkcs11") {
		t.Errorf("%+v", f)
	}
	if f := found["file_modes"]; f.State != doctor.Fail || !strings.Contains(f.Found, c.Module) || !strings.Contains(f.Found, c.PINFile) {
		t.Errorf("%+v", f)
	}
}
