package server_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/server"
)

// TestHowToComeIn: the configurations and rules of the page parse, and the issuers in them are complete.
func TestHowToComeIn(t *testing.T) {
	page, err := os.ReadFile("../../docs/howto/come-in.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks, issuers := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(page, -1), 0
	for _, b := range blocks {
		if strings.HasPrefix(string(b[1]), "version:") {
			if _, err := policy.Parse("page", b[1]); err != nil {
				t.Error(err)
			}
			continue
		}
		c, err := server.ParseFile("page", b[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range c.Auth.Issuers {
			i.CAFile = "" // of the reader's machine
			if err := i.Check(); err != nil {
				t.Error(err)
			}
			issuers++
		}
	}
	if len(blocks) != 4 || issuers != 3 {
		t.Errorf("%d blocks, %d issuers", len(blocks), issuers)
	}
}
