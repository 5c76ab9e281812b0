//go:build fips

package cli_test

import (
	"crypto/fips140"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestFIPS runs the scripts of the module that it is built with: servers and clients are processes of their own that inherit GODEBUG=fips140=only.
func TestFIPS(t *testing.T) {
	if !fips140.Enforced() {
		t.Fatal("run with GODEBUG=fips140=only (make test-fips)")
	}
	v := fips140.Version()
	if v != "v1.26.0" && v != "v1.0.0" {
		t.Fatalf("built with module %s", v)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "fips-"+v),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("GODEBUG", os.Getenv("GODEBUG"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "startserver": startServer},
	})
}
