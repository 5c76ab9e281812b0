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
	runbookRow = regexp.MustCompile(`(?m)^\| \[[^]]+\]\(([a-z-]+\.md)\) \|[^|]+\|([^|]+)\|$`)
	testName   = regexp.MustCompile("`(Test[A-Za-z]+)(?:/([a-z.-]+))?`")
)

// TestRunbooks: every runbook stands in the index, and what the index names as its rehearsal exists.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	tests, run, indexed := map[string]bool{}, map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(read(t, path), -1) {
			tests[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages(t) {
		run["TestPages/"+filepath.Base(page)] = true
	}
	for _, row := range runbookRow.FindAllStringSubmatch(read(t, "runbooks/README.md"), -1) {
		indexed[row[1]] = true
		named := testName.FindAllStringSubmatch(row[2], -1)
		if len(named) == 0 {
			t.Errorf("%s: nothing rehearses it", row[1])
		}
		for _, m := range named {
			full := m[1] + "/" + m[2]
			_, err := os.Stat(filepath.Join(root, "internal/cli/testdata/script", m[2]+".txtar"))
			switch {
			case !tests[m[1]], m[1] == "TestPages" && !run[full], m[1] == "TestScripts" && err != nil:
				t.Errorf("%s: there is no test %s", row[1], m[0])
			}
		}
	}
	found, err := filepath.Glob("runbooks/*.md")
	if err != nil || len(found) < 7 {
		t.Fatalf("%d runbooks: %v", len(found), err)
	}
	for _, path := range found {
		if name := filepath.Base(path); name != "README.md" && !indexed[name] {
			t.Errorf("%s is not in the index", name)
		}
	}
}
