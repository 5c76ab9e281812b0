//go:build fips

package cli_test

import (
	"crypto/fips140"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestFIPS runs testdata/fips: servers and clients are processes of their own that inherit GODEBUG=fips140=only.
func TestFIPS(t *testing.T) {
	if !fips140.Enforced() {
		t.Fatal("run with GODEBUG=fips140=only (make test-fips)")
	}
	if v := fips140.Version(); v != "v1.26.0" {
		t.Errorf("built with module %s", v)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "fips"),
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
