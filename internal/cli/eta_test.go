package cli

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
)

// TestPace estimates from what was scanned while the campaign was watched.
func TestPace(t *testing.T) {
	var p pace
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	for _, c := range []struct {
		second         int
		scanned, total uint64
		done           bool
		want           string
	}{
		{0, 100, 1000, false, ""}, {1, 100, 1000, false, ""}, {10, 200, 1000, false, ", 1m20s to go"}, {10, 999, 1000, false, ", 1s to go"},
		{10, 1000, 1000, false, ""}, {10, 1500, 1000, false, ""}, {10, 200, 1000, true, ""}, {10, 101, 1 << 62, false, ""},
	} {
		if got := p.left(campaignView{Scanned: c.scanned, Total: c.total, Done: c.done}, at(c.second)); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestHintsNameCommands: every command that a hint sends the reader to exists.
func TestHintsNameCommands(t *testing.T) {
	root := newRoot(&app{})
	mentioned := regexp.MustCompile(`rotor ((?:[a-z]+ ?)+)`)
	found := 0
	for _, code := range fault.Codes() {
		for _, m := range mentioned.FindAllStringSubmatch(fault.Explain(code).Hint, -1) {
			words := strings.Fields(m[1])
			c, _, err := root.Find(words)
			if err != nil || !c.HasParent() || c.HasSubCommands() {
				t.Errorf("the hint of %s names rotor %s: %v", code, m[1], err)
			}
			found++
		}
	}
	if found < 4 {
		t.Errorf("only %d commands are mentioned", found)
	}
}
