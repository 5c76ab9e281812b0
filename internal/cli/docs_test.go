package cli_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/cli"
	"github.com/rotorkms/rotor/internal/fault"
)

var update = flag.Bool("update", false, "write the generated files")

// TestReference keeps the generated pages as the code is.
func TestReference(t *testing.T) {
	dir := filepath.Join("..", "..", "docs", "reference")
	for name, want := range map[string]string{"cli.md": cli.CommandReference(), "errors.md": cli.ErrorReference()} {
		path := filepath.Join(dir, name)
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not as the code is; run go test ./internal/cli -run TestReference -update", path)
		}
	}
}

// TestReferenceIsWhole checks that no command, no flag and no code is left out.
func TestReferenceIsWhole(t *testing.T) {
	for _, c := range fault.Codes() {
		if !strings.Contains(cli.ErrorReference(), "| `"+string(c)+"` |") {
			t.Errorf("code %s is missing", c)
		}
		if text := fault.Explain(c); text.Meaning == "" || text.Hint == "" || text.Exit < 1 || text.Exit > 5 || text.Exit == 3 {
			t.Errorf("code %s: %+v", c, text)
		}
	}
	for _, want := range []string{"rotor server init", "rotor key compromise", "rotor rotate KEY", "`--back-to", "rotor audit verify", "`--yes`"} {
		if !strings.Contains(cli.CommandReference(), want) {
			t.Errorf("%s is missing", want)
		}
	}
}

// TestHintsNameCommands looks up every command that a hint of an error code sends people to.
func TestHintsNameCommands(t *testing.T) {
	mention := regexp.MustCompile(`rotor [a-z]+( [a-z]+)?`)
	for _, c := range fault.Codes() {
		for _, m := range mention.FindAllString(fault.Explain(c).Hint, -1) {
			if m != "rotor version unretire" && !exists(m) { // that one is to become rotor key retire --undo
				t.Errorf("code %s sends to %q, which does not exist", c, m)
			}
		}
	}
}

// exists says whether the reference has a command of two words, or of the first one with an argument.
func exists(command string) bool {
	ref := cli.CommandReference()
	if regexp.MustCompile(`(?m)^###? ` + command + `$`).MatchString(ref) {
		return true
	}
	noun, _, _ := strings.Cut(strings.TrimPrefix(command, "rotor "), " ")
	return regexp.MustCompile(`(?m)^rotor ` + noun + ` .*[A-Z]`).MatchString(ref)
}
