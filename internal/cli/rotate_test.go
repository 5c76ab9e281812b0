package cli

import (
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func keyAt(primary, target uint32, versions int) *rotorv1.ProgressResponse {
	k := &rotorv1.Key{Name: "records", Primary: primary, Target: target, Epoch: 5, Incarnation: 1, Rotation: &rotorv1.Rotation{Silence: "block"}}
	for n := range versions {
		k.Versions = append(k.Versions, &rotorv1.Version{Number: uint32(n + 1)})
	}
	return &rotorv1.ProgressResponse{Key: k, Members: 3}
}

func TestPlanRotation(t *testing.T) {
	gap := keyAt(103, 0, 2) // a recovery lost numbers
	gap.Key.Versions[1].Number, gap.Key.Next = 103, 104
	for name, c := range map[string]struct {
		at   *rotorv1.ProgressResponse
		back uint32
		want string // part of the text
		to   uint32
		code fault.Code
	}{
		"a new version":      {keyAt(1, 0, 1), 0, "make version 2 and deliver it\n  gate: until 3 holders", 2, ""},
		"after a gap":        {gap, 0, "make version 104 and deliver it", 104, ""},
		"back over a gap":    {gap, 103, "nothing to do", 103, ""},
		"into a gap":         {gap, 50, "", 50, fault.UnknownVersion},
		"in flight":          {keyAt(1, 2, 2), 0, "", 0, fault.RotationInFlight},
		"back":               {keyAt(2, 0, 2), 1, "version 1 protects again and version 2 goes on decrypting", 1, ""},
		"back to the same":   {keyAt(2, 0, 2), 2, "nothing to do", 2, ""},
		"given up":           {keyAt(1, 2, 2), 1, "give up version 2", 1, ""},
		"back to the future": {keyAt(1, 0, 1), 2, "", 2, fault.UnknownVersion},
	} {
		plan, err := planRotation(c.at, c.back)
		if fault.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err == nil && (!strings.Contains(plan.text(), c.want) || plan.To != c.to || plan.Epoch != "1.5") {
			t.Errorf("%s: %+v\n%s", name, plan, plan.text())
		}
	}
}

func TestReached(t *testing.T) {
	plan := rotatePlan{Key: "records", From: 1, To: 2}
	flying, primary, everywhere := keyAt(1, 2, 2), keyAt(2, 0, 2), keyAt(2, 0, 2)
	primary.Behind = []string{"w1"}
	for _, c := range []struct {
		at   *rotorv1.ProgressResponse
		want string // the levels that are reached, in the order of levels
	}{{flying, "100"}, {primary, "110"}, {everywhere, "111"}} {
		got := ""
		for _, level := range levels {
			done, err := reached(c.at, plan, level)
			if err != nil {
				t.Fatal(err)
			}
			got += map[bool]string{true: "1", false: "0"}[done]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", stateOf(c.at), got, c.want)
		}
	}
	for name, at := range map[string]*rotorv1.ProgressResponse{"given up": keyAt(1, 0, 2), "another one": keyAt(1, 3, 3), "overtaken": keyAt(3, 0, 3)} {
		if _, err := reached(at, plan, "everywhere"); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStateNamesAtMostEight(t *testing.T) {
	p := keyAt(1, 2, 2)
	p.Waiting = strings.Split("a b c d e f g h i j", " ")
	if got, want := stateOf(p), "records: version 2 waits for a, b, c, d, e, f, g, h and 2 more"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
