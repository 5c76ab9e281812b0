package cli_test

import (
	"bytes"
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
	var errors string
	for _, c := range fault.Codes() {
		errors += "| `" + string(c) + "` |"
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

// TestHintsNameCommands runs the help of every command that a hint of an error code sends people to.
func TestHintsNameCommands(t *testing.T) {
	mention := regexp.MustCompile(`rotor ([a-z]+(?: [a-z]+)?)`)
	for _, c := range fault.Codes() {
		for _, m := range mention.FindAllStringSubmatch(fault.Explain(c).Hint, -1) {
			args := strings.Fields(m[1])
			var out, err bytes.Buffer
			help := append(args[:len(args):len(args)], "--help")
			if code := cli.Run(t.Context(), help, strings.NewReader(""), &out, &err); code != 0 || !strings.Contains(out.String(), "rotor "+args[0]) {
				t.Errorf("code %s sends to %q, which does not exist", c, m[0])
			}
		}
	}
}
