package guard_test

import (
	"fmt"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// TestFloodHidesNobody: one caller's flood of refusals does not take the name from another's.
func TestFloodHidesNobody(t *testing.T) {
	w := newWorld(t, newMem())
	g, _ := w.open()
	for i := range 10_000 {
		if _, err := g.Admit(t.Context(), bob, policy.ActEncrypt, policy.Resource{Key: fmt.Sprint(i)}); fault.CodeOf(err) != fault.Denied {
			t.Fatal(err)
		}
	}
	eve := policy.Caller{Kind: policy.KindInstance, Name: "eve"}
	if _, err := g.Admit(t.Context(), eve, policy.ActUnwrap, policy.Resource{Namespace: "default", Key: "payroll"}); fault.CodeOf(err) != fault.Denied {
		t.Fatal(err)
	}
	for _, e := range w.entries(g) {
		if e.Caller == "eve" && e.Key == "payroll" {
			return
		}
	}
	t.Error("eve asked for payroll, and no entry says so")
}
