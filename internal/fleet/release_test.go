package fleet_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// TestReleasesNameEverybody: however many receive a version, each stands in the log with its whole name.
func TestReleasesNameEverybody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.create("records", keyring.Block)
		want := map[string]bool{}
		var all []*process
		for i := range 70 {
			name := fmt.Sprintf("%s-%02d", strings.Repeat("x", 61), i)
			all = append(all, w.join(name, "records"))
			want[name] = true
		}
		for _, p := range all {
			p.catchUp("records")
		}
		w.distribute("records")
		byEpoch := map[string]map[string]bool{}
		for _, detail := range w.log() {
			for name := range strings.FieldsSeq(detail["instances"]) {
				epoch := detail["epoch"]
				if byEpoch[epoch] == nil {
					byEpoch[epoch] = map[string]bool{}
				}
				byEpoch[epoch][name] = true
			}
		}
		if len(byEpoch) != 2 { // the joins and the new version
			t.Fatalf("%d epochs", len(byEpoch))
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
