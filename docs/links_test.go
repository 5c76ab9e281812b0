package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// links are the targets of the links of a page, outside of its code.
func links(text string) (found []string) {
	code := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		if code {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(span.ReplaceAllString(line, ""), -1) {
			found = append(found, m[1])
		}
	}
	return found
}

var (
	link = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	span = regexp.MustCompile("`[^`]*`")
)

// anchors are the names that headings of a page have as targets of links, as GitHub makes them.
func anchors(text string) map[string]bool {
	found, code := map[string]bool{}, false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		title := strings.TrimLeft(line, "#")
		if code || title == line || !strings.HasPrefix(title, " ") {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127:
				return r
			}
			return -1
		}, strings.ToLower(strings.TrimSpace(title)))
		for n, base := 1, name; found[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		found[name] = true
	}
	return found
}

// dead says what is wrong with a link of a page, "" when nothing is.
func dead(page, target string) string {
	if strings.HasPrefix(target, "https://") || strings.HasPrefix(target, "mailto:") {
		return "" // the network is not asked
	}
	file, anchor, _ := strings.Cut(target, "#")
	path := page
	if file != "" {
		path = filepath.Join(filepath.Dir(page), file)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "leads nowhere"
	}
	if anchor == "" {
		return ""
	}
	b, err := os.ReadFile(path)
	if err != nil || info.IsDir() || !anchors(string(b))[anchor] {
		return "names no heading"
	}
	return ""
}

// TestLinks: every relative link of every page leads to a file of the project, and its anchor to a heading.
func TestLinks(t *testing.T) {
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "try" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, target := range links(string(b)) {
			n++
			if why := dead(path, target); why != "" {
				t.Errorf("%s: the link to %s %s", strings.TrimPrefix(path, root+"/"), target, why)
			}
		}
		return nil
	})
	if err != nil || n < 20 {
		t.Fatalf("%d links, %v", n, err)
	}
}

// TestDeadLinks proves that a dead link is found.
func TestDeadLinks(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	text := "# One title\n## `Two`, and *more*\n```sh\n[in](code)\n```\n[a](#one-title) `[b](span)` [c](gone.md) [d](#gone) [e](page.md#two-and-more) [f](https://example.com)\n"
	if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, target := range links(text) {
		if why := dead(page, target); why != "" {
			found = append(found, target+" "+why)
		}
	}
	if got, want := strings.Join(found, ", "), "gone.md leads nowhere, #gone names no heading"; got != want {
		t.Errorf("found %s, expected %s", got, want)
	}
}
