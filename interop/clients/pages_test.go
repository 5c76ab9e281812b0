package clients_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each page docs/howto/vault-*.md is run as somebody runs it who has done what docs/howto/vault.md says: its blocks in order, in one directory, with Vault's
// variables. A text block is what the block before it prints; one before all others is only shown.
var fence = regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$")

// howto runs the blocks of the pages.
func howto(t *testing.T, j job) {
	pages, err := filepath.Glob(tree(t, "docs/howto/vault-*.md"))
	if err != nil || len(pages) < 9 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		if filepath.Base(page) == "vault-beyond.md" { // what no Vault can: it has a server of its own, and the tests of docs/ run it
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			j.client = strings.TrimSuffix(filepath.Base(page), ".md")
			j.step(t, "use", func(c check) { j.page(t, c, string(text)) })
		})
	}
}

// page runs one page.
func (j job) page(t *testing.T, c check, text string) {
	dir := t.TempDir()
	config := fmt.Sprintf("provider_installation {\n  dev_overrides {\n    \"hashicorp/vault\" = %q\n  }\n  direct {}\n}\n", tree(t, ".cache/interop"))
	c.ok(os.WriteFile(filepath.Join(dir, "terraform.rc"), []byte(config), 0o600), "write terraform's settings")
	printed, ran := "", 0
	python := "" // a block of Python goes on where the one before ended
	for i, m := range fence.FindAllStringSubmatch(text, -1) {
		var err error
		switch lang, code := m[1], m[2]; lang {
		case "sh":
			printed, err = j.block(t, dir, dir, "bash", "-euo", "pipefail", "-c", code)
		case "python":
			python += "print(end='\f')\n" + code
			printed, err = j.block(t, dir, dir, tree(t, ".cache/interop/python/bin/python"), "-c", python)
			printed = printed[strings.LastIndex(printed, "\f")+1:]
		case "js":
			printed, err = j.block(t, dir, dir, "node", "-e", code)
		case "go":
			path := filepath.Join(dir, "main.go")
			c.ok(os.WriteFile(path, []byte(code), 0o600), "write the program")
			printed, err = j.block(t, dir, tree(t, "interop/clients"), "go", "run", path)
		case "hcl":
			c.ok(os.WriteFile(filepath.Join(dir, "main.tf"), []byte(code), 0o600), "write the configuration")
			continue
		case "text":
			if ran > 0 && printed != code {
				c.fail("block %d prints %q, not %q", i, printed, code)
			}
			continue
		default:
			c.fail("%q: a block that nobody checks", lang)
		}
		c.ok(err, fmt.Sprintf("run block %d", i+1))
		ran++
	}
	if ran == 0 {
		c.fail("no block")
	}
}

// block runs a command in a directory and returns what it prints.
func (j job) block(t *testing.T, home, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(j.ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(j.environment(j.token, home), "PATH="+tree(t, ".cache/interop")+":"+os.Getenv("PATH"), "TF_CLI_CONFIG_FILE=terraform.rc", "CHECKPOINT_DISABLE=1",
		"NODE_PATH="+tree(t, ".cache/interop/node/node_modules"), "GOCACHE="+goenv(t, "GOCACHE"), "GOMODCACHE="+goenv(t, "GOMODCACHE"), "GOFLAGS=-mod=readonly")
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", filepath.Base(args[0]), err, out, log.String())
	}
	return string(out), nil
}

// goenv is a setting of the go command, which has another home in a page.
func goenv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
