package rotation_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// mutant is a guard that is switched off, the property that it keeps, and the model in which that shows.
type mutant struct {
	off    guard
	breaks string
	model  config
}

// mutants are the guards of the design, each with the property that breaks without it.
func mutants() []mutant {
	block, fence := small(keyring.Block), small(keyring.Fence)
	inflight, rollback, backup := block, block, block
	inflight.floor, inflight.inflight = false, 1
	rollback.rollbacks = 1
	backup.retention = 1
	return []mutant{
		{guardAcks, "S1", block},
		{guardFence, "S1", fence},
		{guardSkew, "S1", fence},
		{guardCache, "S1", block},
		{guardJoin, "S1", block},
		{guardOlder, "S1", block},
		{guardFloor, "S2", block},
		{guardCensus, "S2", inflight},
		{guardRollback, "S1", rollback},
		{guardMembership, "S1", block},
		{guardSession, "S1", fence},
		{guardFreeze, "S2", backup},
	}
}

// rules are three more guards, which the design does not name and the checker found to be needed.
func rules() []mutant {
	fence, rollback := small(keyring.Fence), small(keyring.Block)
	rollback.rollbacks = 1
	return []mutant{{guardRenewal, "L2", fence}, {guardRejoin, "S1", fence}, {guardLower, "S5", rollback}}
}

// TestMutants switches each guard off, one at a time, and wants the property that it keeps to be broken; the same model with the
// guard on is exhausted and must keep every property. -v prints a line for each mutant, and with it the counterexample.
func TestMutants(t *testing.T) {
	if got := len(mutants()); got != 12 {
		t.Fatalf("%d mutants, want the 12 of the design", got)
	}
	kill(t, mutants())
}

// TestRules does the same for the guards that the checker added.
func TestRules(t *testing.T) { kill(t, rules()) }

func kill(t *testing.T, all []mutant) {
	for _, m := range all {
		clean := explored(m.model)
		if clean.broken != "" {
			t.Errorf("%s: the model is broken with the guard on: %s", m.off, clean.print())
		}
		r := explore(m.model.without(m.off, m.breaks), 0)
		if r.broken != m.breaks {
			t.Errorf("NOT CAUGHT: %s: want %s broken, got %q after %v", m.off, m.breaks, r.broken, r)
			continue
		}
		t.Logf("caught: %-50s breaks %s in %2d steps (%d states; %d with the guard on)\n%s",
			m.off, r.broken, len(r.trace)-1, r.states, clean.states, r.print())
	}
}

// without is the model with a guard off, in which only one property is looked at.
func (c config) without(off guard, breaks string) config {
	c.off, c.check, c.symmetry = off, breaks, false
	if off == guardSkew {
		c.lag = c.skew + c.margin + 1
	}
	return c
}

// TestSkewBound: a clock may be slower by all of margin and skew together, and by nothing more (guardSkew).
func TestSkewBound(t *testing.T) {
	c := small(keyring.Fence)
	c.lag = c.skew + c.margin
	if r := explore(c, 0); r.broken != "" {
		t.Error(r.print())
	}
}

// TestEveryActionHappens keeps the models from being clean because something never happens in them.
func TestEveryActionHappens(t *testing.T) {
	var did [kinds]int
	count := func(c config) {
		for k, n := range explored(c).did {
			did[k] += n
		}
	}
	for _, m := range mutants() {
		count(m.model)
	}
	count(lateModel(keyring.Block))
	count(small(keyring.Fence).without(guardSession, "S1"))
	count(small(keyring.Block).without(guardCache, "S1"))
	for k, n := range did {
		if n == 0 {
			t.Errorf("never happens: %v", action{kind: kind(k)})
		}
	}
}
