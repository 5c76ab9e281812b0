package fleet_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// TestReleasesNameEverybody: however many receive a version, each stands in the log with its whole name, and many in one entry.
func TestReleasesNameEverybody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		const n = 610
		w.create("records", keyring.Block)
		want := map[string]bool{}
		var all []*process
		for i := range n {
			name := fmt.Sprintf("%s-%03d", strings.Repeat("x", 60), i)
			all = append(all, w.process(name))
			want[name] = true
		}
		if failed := everybody(all, func(p *process) error { return p.joins(t.Context(), "records") }); len(failed) > 0 {
			t.Fatal(failed)
		}
		for _, p := range all {
			p.catchUp("records")
		}
		newest := fmt.Sprint(w.distribute("records").Epoch.Counter)
		entries := map[string]int{}
		byEpoch := map[string]map[string]bool{}
		for _, detail := range w.log() {
			for text, names := range detail {
				if !strings.HasPrefix(text, "instances") {
					continue
				}
				if text == "instances" {
					entries[detail["epoch"]]++
				}
				for name := range strings.FieldsSeq(names) {
					if byEpoch[detail["epoch"]] == nil {
						byEpoch[detail["epoch"]] = map[string]bool{}
					}
					byEpoch[detail["epoch"]][name] = true
				}
			}
		}
		if len(byEpoch) != 2 { // the joins and the new version
			t.Fatalf("%d epochs", len(byEpoch))
		}
		if entries[newest] != 2 {
			t.Errorf("%d entries for %d instances", entries[newest], n)
		}
		for epoch, got := range byEpoch {
			for name := range want {
				if !got[name] {
					t.Errorf("epoch %s: %s is not in the log", epoch, name)
				}
			}
			if len(got) != len(want) {
				t.Errorf("epoch %s: %d names of %d instances", epoch, len(got), len(want))
			}
		}
	})
}
