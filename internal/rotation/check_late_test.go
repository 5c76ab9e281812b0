package rotation_test

import (
	"testing"

	"github.com/rotorkms/rotor/internal/keyring"
)

// This file is the leader that is late: it looks, decides a step, loses the lead, sleeps or sees the watch late, and only then does its commit arrive at the
// store, or its floor at the data set. Decisions from an old view are the same thing: what was seen then is decided then.

// Guards of what arrives late. They are not among the 12 of the design.
const (
	guardLateKey  guard = "a late step is not conditioned on the key"
	guardLateLead guard = "a late step is not conditioned on the lead"
	guardSequence guard = "the data set takes an older floor"
	guardUnseen   guard = "a rollback does not see a floor on its way"
)

// late is a step that was decided and has not arrived; do 0: none. What it was conditioned on and has changed since is in moved.
type late struct {
	do      kind
	version uint8
	node    uint16 // what it makes of the key's record
	demoted [maxVersions]uint8
	retired [maxVersions]uint8
	moved   moved
	floor   uint8 // on its way to the data set; 0: none
	old     bool  // a newer one has been sent since
}

// moved are conditions that do not hold any more.
type moved uint8

const (
	movedKey moved = 1 << iota
	movedCrew
	movedLead
)

// conditions are those of a step, as the code commits it (rollout.step, campaign.destroy).
func conditions(do kind) moved {
	switch do {
	case kPromote, kDestroy:
		return movedKey | movedCrew | movedLead
	}
	return movedKey | movedLead
}

// holds says whether a step that arrives now is taken.
func (w *world) holds(l late) bool {
	broken := l.moved & conditions(l.do)
	switch w.off {
	case guardLateKey:
		broken &^= movedKey
	case guardLateLead:
		broken &^= movedLead
	}
	return broken == 0
}

// decideLate adds, for a step that could be taken now, that it is decided now and arrives later.
func (w *world) decideLate(s *state, do action, to state, out []move) []move {
	if !w.late || s.late.do != 0 {
		return out
	}
	switch do.kind {
	case kDistribute, kPromote, kSettle, kDestroy:
	default:
		return out
	}
	next := *s
	next.late.do, next.late.version, next.late.node = do.kind, do.b, to.node
	next.late.demoted, next.late.retired, next.late.moved = to.demoted, to.retired, 0
	return append(out, move{do: action{kDecide, 0, uint8(do.kind)}, to: w.canon(next)})
}

// lateMoves are the arrivals. They need no server any more.
func (w *world) lateMoves(s *state, out []move) []move {
	if s.late.do != 0 {
		to, broken := *s, ""
		to.node, to.demoted, to.retired = s.late.node, s.late.demoted, s.late.retired
		broken = s3(w.nodes[s.node].key, w.nodes[to.node].key)
		switch s.late.do {
		case kDistribute:
			to.waited = 0
		case kPromote:
			afterPromotion(&to)
		case kDestroy:
			to.census = census{}
		}
		floor, old := s.late.floor, s.late.old
		to.late = late{floor: floor, old: old}
		if w.check != "" && w.check != "S3" {
			broken = ""
		}
		out = append(out, move{action{kLate, 0, uint8(s.late.do)}, w.canon(to), broken})
	}
	if s.late.floor != 0 {
		to := *s
		to.floor, to.late.floor, to.late.old = s.late.floor, 0, false
		out = append(out, move{do: action{kFloorLate, 0, s.late.floor}, to: w.canon(to)})
	}
	return out
}

// overtaken notes what a move changes of that on which a step that is on its way was conditioned. What cannot be taken any more is forgotten.
func (w *world) overtaken(s *state, m *move) {
	if l := &m.to.late; l.do != 0 && s.late.do != 0 && m.do.kind != kLate {
		if m.to.node != s.node || m.do.kind == kAttempt && m.to.retired != s.retired {
			l.moved |= movedKey
		}
		for i := range w.instances {
			if m.to.inst[i].member != s.inst[i].member || m.do.kind == kJoin {
				l.moved |= movedCrew
			}
		}
		switch m.do.kind {
		case kTakeover, kRestart, kForget:
			l.moved |= movedLead
		}
		if !w.holds(*l) {
			m.to.late = late{floor: l.floor, old: l.old}
		}
	}
	newer := m.to.floor != s.floor || m.do.kind == kBack && w.off != guardUnseen // a rollback sends one also when the last was not confirmed
	if l := &m.to.late; l.floor != 0 && s.late.floor != 0 && newer {
		if l.old = true; w.off != guardSequence {
			l.floor, l.old = 0, false
		}
	}
}

// tickLate lets the clocks of a step go on: its times were taken when it was decided.
func (l *late) tick() {
	if l.do == 0 {
		return
	}
	for n := range maxVersions {
		l.demoted[n]++
		l.retired[n]++
	}
}

// capLate caps the ages as canon does those of the key.
func (w *world) capLate(l *late) {
	if l.do == 0 {
		return
	}
	k := w.nodes[l.node].key
	for n := range maxVersions {
		demoted, retired := false, false
		if n < k.Len() {
			v := k.At(n)
			demoted = v.Phase == keyring.PhaseDecryptOnly && v.State == keyring.Active
			retired = v.Phase == keyring.PhaseRetired
		}
		l.demoted[n] = capped(l.demoted[n], w.window, demoted)
		l.retired[n] = capped(l.retired[n], w.wait, retired)
	}
}

// lateModel is a small model with two servers, one of which may be late.
func lateModel(silence keyring.Silence) config {
	c := small(silence)
	c.late, c.replicas, c.eager, c.retention = true, true, false, 0
	return c
}

// TestLate exhausts the models in which a leader's steps and floors arrive at any time after they were decided: after another server took over, restarts and
// joins, and with one rollback.
func TestLate(t *testing.T) {
	for _, silence := range []keyring.Silence{keyring.Block, keyring.Fence} {
		c := lateModel(silence)
		r := explored(c)
		t.Logf("%s: %v", silence, r)
		if r.broken != "" {
			t.Error(r.print())
		}
		for _, k := range []kind{kDecide, kLate, kFloorSent, kFloorLate, kTakeover} {
			if r.did[k] == 0 {
				t.Errorf("never happens: %v", action{kind: k})
			}
		}
	}
	c := lateModel(keyring.Block)
	c.rollbacks, c.crashes = 1, false
	if r := explored(c); r.broken != "" {
		t.Error(r.print())
	}
}

// TestLateMutants switches off what makes that safe.
func TestLateMutants(t *testing.T) {
	rollback := lateModel(keyring.Block)
	rollback.rollbacks, rollback.crashes = 1, false
	kill(t, []mutant{{guardLateKey, "S3", lateModel(keyring.Block)}, {guardSequence, "S5", rollback}, {guardUnseen, "S5", rollback}})
}

// TestLeadCarriesNothing: the record that says who leads is neither sealed nor in the audit log, so whoever can write the store can change it. No property rests
// on it: with its condition off every other condition of a late step still keeps all of them.
func TestLeadCarriesNothing(t *testing.T) {
	for _, silence := range []keyring.Silence{keyring.Block, keyring.Fence} {
		c := lateModel(silence)
		c.off = guardLateLead
		r := explored(c)
		t.Logf("%s: %v", silence, r)
		if r.broken != "" {
			t.Error(r.print())
		}
	}
}
