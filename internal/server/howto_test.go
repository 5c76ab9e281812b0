package server_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/server"
)

// TestHowToComeIn: the configurations and rules of the page parse, and the issuers in them are complete.
func TestHowToComeIn(t *testing.T) {
	t.Parallel()
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

// TestHowToSeveralServers: the configuration of the page is one that a server would start with.
func TestHowToSeveralServers(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/howto/several-servers.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(page, -1)
	if len(blocks) != 1 {
		t.Fatalf("%d blocks", len(blocks))
	}
	c, err := server.ParseFile("page", blocks[0][1])
	if err != nil {
		t.Fatal(err)
	}
	c.Rules = filepath.Join(t.TempDir(), "rules.yaml") // of the reader's machine
	if err := os.WriteFile(c.Rules, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, engine, err := c.Checked(); err != nil || engine != "etcd" {
		t.Errorf("%s, %v", engine, err)
	}
	for _, wrong := range []string{"http://kms.example", "https://", "https://kms.example/", "https://kms.example?x=y", "https://a@kms.example", "kms.example", "https://kms.example/a#b"} {
		c.Issuer = wrong
		if _, _, err := c.Checked(); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("issuer %s: %v", wrong, err)
		}
	}
}
