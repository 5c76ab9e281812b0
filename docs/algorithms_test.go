package docs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/suite"
)

const (
	algorithmsPath = "reference/algorithms.md"
	tableStart     = "<!-- the table: go test ./docs -run TestAlgorithms -update -->\n"
	tableEnd       = "<!-- end -->\n"
)

// algorithmTable is the table of the code as people read it.
func algorithmTable() string {
	var b strings.Builder
	b.WriteString("| algorithm | for | status | standard | bits | quantum category | FIPS mode | in a token | uses of a version | deprecated after | disallowed after |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	or := func(s, instead string) string {
		if s == "" {
			return instead
		}
		return s
	}
	for _, s := range suite.All() {
		var purposes []string
		for _, p := range s.Purposes {
			purposes = append(purposes, string(p))
		}
		fips, token, uses := "no", "no", "no limit"
		if s.Token() {
			token = "yes"
		}
		if s.FIPS {
			fips = "yes"
		}
		if s.MaxUses > 0 {
			uses = fmt.Sprint(s.MaxUses)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %d | %d | %s | %s | %s | %s | %s |\n", s.ID, strings.Join(purposes, ", "), s.Status, s.Standard, s.Bits, s.Quantum, fips, token, uses,
			or(s.Sunset.Deprecated, "-"), or(s.Sunset.Disallowed, "-"))
	}
	return b.String()
}

// TestAlgorithms: the reference page has the table of the code.
func TestAlgorithms(t *testing.T) {
	page := read(t, algorithmsPath)
	before, rest, ok := strings.Cut(page, tableStart)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !ok || !ended {
		t.Fatalf("%s has no place for the table", algorithmsPath)
	}
	want := before + tableStart + algorithmTable() + tableEnd + after
	if *update {
		if err := os.WriteFile(algorithmsPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if page != want {
		t.Error("docs/reference/algorithms.md is not of this code: go test ./docs -run TestAlgorithms -update")
	}
	for _, tr := range suite.Transports() {
		if !strings.Contains(page, "`"+string(tr)+"`") {
			t.Errorf("transport %s is not in the page", tr)
		}
	}
}
