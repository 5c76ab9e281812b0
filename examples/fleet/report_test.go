package main

import (
	"bytes"
	"testing"
	"time"
)

// TestFailure: each of the three alone makes the demo fail.
func TestFailure(t *testing.T) {
	if err := (report{Operations: 5}).failure(); err != nil {
		t.Error(err)
	}
	for _, r := range []report{{FailedOperations: 1}, {LostRecords: 1}, {SecretsInLogs: 1}} {
		if r.failure() == nil {
			t.Errorf("%+v is no failure", r)
		}
	}
}

// TestQuantiles uses the nearest rank.
func TestQuantiles(t *testing.T) {
	var all []time.Duration
	for i := range 200 {
		all = append(all, time.Duration(200-i)*time.Millisecond)
	}
	if got := newQuantiles(all); got != (quantiles{100, 198}) {
		t.Error(got)
	}
	if got := newQuantiles(all[:1]); got != (quantiles{200, 200}) {
		t.Error(got)
	}
	if got := newQuantiles(nil); got != (quantiles{}) {
		t.Error(got)
	}
}

// TestSchedule: operations are due at fixed times; a slow one is made up for, a long pause is not.
func TestSchedule(t *testing.T) {
	begin := time.Unix(1000, 0)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	s := schedule{every: 100 * time.Millisecond, next: begin}
	for _, step := range []struct{ now, wait int }{{0, 100}, {100, 100}, {350, 0}, {350, 50}, {400, 100}, {9000, 0}, {9000, 100}} {
		if got := s.wait(at(step.now)); got != time.Duration(step.wait)*time.Millisecond {
			t.Errorf("at %d ms: wait %s, want %d ms", step.now, got, step.wait)
		}
	}
}

// TestScreen rewrites one line on a terminal, which it does not let wrap, and prints plain lines elsewhere.
func TestScreen(t *testing.T) {
	var plain, live bytes.Buffer
	for _, s := range []*screen{{out: &plain, width: 80, began: time.Now()}, {out: &live, width: 10, terminal: true, began: time.Now()}} {
		s.live("waiting for %s", "everybody")
		s.step("done")
	}
	if want := "   0.0s  done\n"; plain.String() != want {
		t.Errorf("%q", plain.String())
	}
	if want := "waiting f\r\x1b[K   0.0s  done\nwaiting f"; live.String() != want {
		t.Errorf("%q", live.String())
	}
}

// TestKindOf names callers by what they are.
func TestKindOf(t *testing.T) {
	for caller, want := range map[string]string{"admin/admin": "admin", "spiffe://rotor.local/instance/node-07": "node", "system/rollout": "rollout"} {
		if got := kindOf(caller); got != want {
			t.Errorf("%s is %s", caller, got)
		}
	}
}

// TestSearch finds a planted leak in each encoding.
func TestSearch(t *testing.T) {
	for _, log := range []string{"x secret y", "736563726574", "c2VjcmV0"} {
		if count([]byte(log), [][]byte{[]byte("secret"), []byte("736563726574"), []byte("c2VjcmV0")}) != 1 {
			t.Errorf("not found in %q", log)
		}
	}
}
