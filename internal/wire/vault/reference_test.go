package vault_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/rotorkms/rotor/internal/wire/vault"
)

var update = flag.Bool("update", false, "write the generated file")

// TestVaultReference keeps the page as the routes are.
func TestVaultReference(t *testing.T) {
	path := filepath.Join("..", "..", "..", "docs", "reference", "vault.md")
	want := vault.Reference()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s is not as the routes are (%v); run go test ./internal/wire/vault -run TestVaultReference -update", path, err)
	}
}

// TestSurfaceIsTold: each route says what it does and what its fields are, and answers something.
func TestSurfaceIsTold(t *testing.T) {
	seen := map[string]bool{}
	for _, l := range vault.Surface() {
		if l.Doc == "" || len(l.Methods) == 0 {
			t.Errorf("%s %s: %q, %v", l.Engine, l.Pattern, l.Doc, l.Methods)
		}
		if id := l.Engine + " " + l.Pattern; seen[id] {
			t.Errorf("%s is there twice", id)
		} else {
			seen[id] = true
		}
		for _, f := range l.Fields {
			if f.Name == "" || f.Kind == "" || f.Doc == "" {
				t.Errorf("%s: %+v", l.Pattern, f)
			}
		}
	}
}
