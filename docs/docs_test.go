// Package docs_test runs the documentation: every code block of README.md and docs/start is executed or type-checked, what a page says
// that a block prints is compared with what it prints, and every link has to lead somewhere.
package docs_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the checkout.
const root = ".."

// pages are the pages whose blocks are run.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "docs/start/*.md"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no page in docs/start: %v", err)
	}
	for _, name := range []string{"rotate-root", "restore-a-store", "recovery-mode"} {
		found = append(found, filepath.Join(root, "docs/runbooks", name+".md"))
	}
	return append([]string{filepath.Join(root, "README.md"), filepath.Join(root, "docs/howto/bring-your-own-key.md"), filepath.Join(root, "docs/howto/back-up-a-key.md"),
		filepath.Join(root, "docs/howto/change-an-algorithm.md"), filepath.Join(root, "docs/howto/schedule-rotations.md"), filepath.Join(root, "docs/howto/deploy.md"), filepath.Join(root, "docs/howto/operate-with-vault.md"), filepath.Join(root, "docs/howto/vault.md"), filepath.Join(root, "docs/howto/vault-beyond.md")}, found...)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// block is a fenced code block.
type block struct {
	lang string
	line int // of its first line of code
	code string
}

// blocks finds the fenced code blocks of a page. An open fence at the end is an error.
func blocks(text string) ([]block, error) {
	var all []block
	var now *block
	for i, line := range strings.Split(text, "\n") {
		lang, fence := strings.CutPrefix(line, "```")
		switch {
		case now == nil && fence:
			now = &block{lang: lang, line: i + 2}
		case now != nil && fence:
			all = append(all, *now)
			now = nil
		case now != nil:
			now.code += line + "\n"
		}
	}
	if now != nil {
		return nil, fmt.Errorf("the block at line %d does not end", now.line)
	}
	return all, nil
}

// TestPages runs every block of every page: sh and python in order in one shell, go by the type checker. A text block is what the block
// before it prints.
func TestPages(t *testing.T) {
	t.Parallel()
	check := newChecker(t)
	for _, path := range pages(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			for _, e := range runPage(t, check, read(t, path)) {
				t.Errorf("%s:%v", strings.TrimPrefix(path, root+"/"), e)
			}
		})
	}
}

// TestPlantedErrors proves that the test of a page can fail.
func TestPlantedErrors(t *testing.T) {
	t.Parallel()
	check := newChecker(t)
	page := func(lang, code string) string { return "# Page\n\n```" + lang + "\n" + code + "\n```\n" }
	for name, c := range map[string]struct{ page, want string }{
		"command":    {page("sh", "rotor key list"), "3: exit status 1"},
		"later line": {page("sh", "true\nfalse\ntrue"), "exit status 1"},
		"output":     {page("sh", "echo one; echo two") + page("text", "two\none"), `does not print "one"`},
		"target":     {page("sh", "make nonsense"), "no target nonsense"},
		"left open":  {"```sh\ntrue\n", "does not end"},
		"no block":   {"# Page\n", "no block"},
		"language":   {page("cobol", "STOP RUN."), "nobody checks"},
		"alone":      {page("text", "nothing"), "follows no command"},
		"go":         {page("go", `rotor.Dial("nonsense")`), "not enough arguments"},
		"go program": {page("go", "package main\n\nfunc main() { nonsense() }"), "undefined: nonsense"},
		"python":     {page("python", "raise SystemExit(3)"), "exit status 3"},
		"python out": {page("python", "print(1)") + page("text", "2"), `does not print "2"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fmt.Sprint(runPage(t, check, c.page)); !strings.Contains(got, c.want) {
				t.Errorf("found %s, expected %q", got, c.want)
			}
		})
	}
}

// runPage returns what is wrong with a page, each with its line.
func runPage(t *testing.T, check *checker, text string) (wrong []string) {
	t.Helper()
	all, err := blocks(text)
	if err != nil {
		return []string{err.Error()}
	}
	if len(all) == 0 {
		return []string{" no block"}
	}
	var commands []block
	expected := map[int]block{} // by the index of the command
	for i, b := range all {
		say := func(format string, args ...any) {
			wrong = append(wrong, fmt.Sprintf("%d: %s", b.line-1, fmt.Sprintf(format, args...)))
		}
		switch b.lang {
		case "sh", "python":
			for _, target := range missingTargets(t, b.code) {
				say("the Makefile has no target %s", target)
			}
			commands = append(commands, b)
		case "text":
			if i == 0 || all[i-1].lang != "sh" && all[i-1].lang != "python" {
				say("a text block follows no command")
				continue
			}
			expected[len(commands)-1] = b
		case "go":
			for _, err := range check.snippet(b.code) {
				say("%v", err)
			}
		default:
			say("%q: a block that nobody checks", b.lang)
		}
	}
	return append(wrong, runCommands(t, commands, expected)...)
}

var makeCall = regexp.MustCompile(`\bmake ([a-z-]+)`)

// missingTargets are the targets of make calls in a block that the Makefile does not have.
func missingTargets(t *testing.T, code string) (missing []string) {
	t.Helper()
	makefile := read(t, filepath.Join(root, "Makefile"))
	for _, m := range makeCall.FindAllStringSubmatch(code, -1) {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			missing = append(missing, m[1])
		}
	}
	return missing
}

// TestReadme holds the README to its size and its first command to the first lines.
func TestReadme(t *testing.T) {
	text := read(t, filepath.Join(root, "README.md"))
	if n := strings.Count(text, "\n"); n > 120 {
		t.Errorf("README.md has %d lines, more than 120", n)
	}
	all, err := blocks(text)
	if err != nil || len(all) == 0 || all[0].lang != "sh" || all[0].line > 12 {
		t.Errorf("the first command is not in the first 12 lines: %v %v", all, err)
	}
}

var update = flag.Bool("update", false, "write the index of decisions")

const (
	indexPath = "decisions/README.md"
	indexHead = "| | |\n|---|---|\n"
)

// TestDecisions: the index is exactly what is in the directory, with the titles that the pages have; no number is used twice.
func TestDecisions(t *testing.T) {
	files, err := filepath.Glob("decisions/[0-9][0-9][0-9][0-9]-*.md")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d records: %v", len(files), err)
	}
	rows, numbers := "", map[string]string{}
	for _, path := range files {
		name := filepath.Base(path)
		line, _, _ := strings.Cut(read(t, path), "\n")
		title, ok := strings.CutPrefix(line, "# "+name[:4]+": ")
		if !ok {
			t.Errorf("%s begins with %q, not with # %s: and its title", name, line, name[:4])
		}
		if other := numbers[name[:4]]; other != "" {
			t.Errorf("%s and %s have one number", name, other)
		}
		numbers[name[:4]] = name
		rows += fmt.Sprintf("| [%s](%s) | %s |\n", name[:4], name, title)
	}
	index := read(t, indexPath)
	text, table, _ := strings.Cut(index, indexHead)
	if *update {
		if err := os.WriteFile(indexPath, []byte(text+indexHead+rows), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if table != rows {
		t.Errorf("the index is\n%s\nthe directory has\n%s\ngo test ./docs -run TestDecisions -update writes it", table, rows)
	}
}

// TestFloorsAreTold: the table in CONTRIBUTING.md is the one that arch_test.go enforces.
func TestFloorsAreTold(t *testing.T) {
	told, enforced := map[string]string{}, map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \| (.*) \|$`).FindAllStringSubmatch(read(t, filepath.Join(root, "CONTRIBUTING.md")), -1) {
		for _, room := range strings.Split(m[2], ", ") {
			told[room] = m[1]
		}
	}
	short := strings.NewReplacer("internal/", "", "proto/rotor/v1", "proto")
	for _, m := range regexp.MustCompile(`(?m)^\t\{(\d+), \[\]string\{(.*)\}\},$`).FindAllStringSubmatch(read(t, filepath.Join(root, "arch_test.go")), -1) {
		for _, room := range strings.Split(m[2], ", ") {
			if room = short.Replace(strings.Trim(room, `"`)); room == "." {
				room = "rotor (the SDK)"
			}
			enforced[room] = m[1]
		}
	}
	if len(enforced) < 20 || !maps.Equal(told, enforced) {
		t.Errorf("CONTRIBUTING.md tells\n%v\narch_test.go enforces\n%v", told, enforced)
	}
}

// TestExampleIsQuoted: what the pages show of the example worker is in it.
func TestExampleIsQuoted(t *testing.T) {
	worker := read(t, filepath.Join(root, "examples/worker/main.go"))
	all, err := blocks(read(t, "start/first-rotation.md"))
	if err != nil {
		t.Fatal(err)
	}
	quoted := slices.IndexFunc(all, func(b block) bool { return b.lang == "go" && strings.Contains(worker, strings.TrimSpace(b.code)) })
	if quoted < 0 {
		t.Error("docs/start/first-rotation.md shows no part of examples/worker/main.go as it is")
	}
}
