package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	heading     = regexp.MustCompile(`(?m)^##+ rotor ([a-z -]+)$`)
	bare        = regexp.MustCompile(`(?m)^rotor ([a-z -]+?)( \[flags\])?$`) // how a command is used that takes no argument
	pythonBlock = regexp.MustCompile("(?s)```python\n.*?```")                // imports the package of the same name
	mention     = regexp.MustCompile(`\brotor ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*)\b)?`)
)

// unknownCommands are the commands that a text mentions and docs/reference/cli.md, which is generated, does not have, or that are given a word too much.
func unknownCommands(reference, text string) (unknown []string) {
	commands, nouns := map[string]bool{}, map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(reference, -1) {
		noun, _, sub := strings.Cut(m[1], " ")
		commands[m[1]] = true
		nouns[noun] = nouns[noun] || sub
	}
	for _, m := range bare.FindAllStringSubmatch(reference, -1) {
		nouns[m[1]] = true
	}
	for _, m := range mention.FindAllStringSubmatch(text, -1) {
		noun, verb := m[1], m[2]
		if !commands[noun] || nouns[noun] && verb != "" && !commands[noun+" "+verb] {
			unknown = append(unknown, m[0])
		}
	}
	return unknown
}

// TestCommands: every command that a page names in code, and every one in the hints of errors, exists.
func TestCommands(t *testing.T) {
	reference := read(t, "reference/cli.md")
	if got := unknownCommands(reference, "rotor key list; rotor rotate records; rotor key retire; rotor version unretire; rotor nonsense; rotor key nonsense"); strings.Join(got, ",") != "rotor version unretire,rotor nonsense,rotor key nonsense" {
		t.Errorf("a planted mistake is not found: %q", got)
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := strings.Join(span.FindAllString(pythonBlock.ReplaceAllString(string(b), ""), -1), "\n")
		if filepath.Base(path) == "errors.md" {
			text = string(b)
		}
		for _, name := range unknownCommands(reference, text) {
			if prose := filepath.Base(path) == "errors.md"; prose && !strings.Contains(reference, "# "+strings.Join(strings.Fields(name)[:2], " ")+"\n") {
				continue // a sentence about rotor
			}
			t.Errorf("%s: there is no command %q", strings.TrimPrefix(path, root+"/"), name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
