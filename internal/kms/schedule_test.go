package kms_test

import (
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

func hourly(k *keyring.Key) { k.Schedule.Every = time.Hour }

func due(k keyring.Key, now time.Time) string { return rotation.Begins(k, 0, now) }

// TestADueTimeBringsOneVersion: whether something is due is asked of the record as it is, not of what a server remembers.
func TestADueTimeBringsOneVersion(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt, hourly)
	other, slow := w.second(func() bool { return true })
	release := slow.hold()
	w.pass(time.Hour)
	if begun := must(w.RotateDue(t.Context(), k.ID, due))(t); !begun {
		t.Error("nothing was due")
	}
	w.distribute(k)
	must(w.Step(t.Context(), k.ID, guard.Cond{}, promote))(t)
	if old, _ := other.Key(k.ID); due(old, w.now()) == "" {
		t.Fatal("the other server knows already")
	}
	done := make(chan bool)
	go func() {
		begun, err := other.RotateDue(t.Context(), k.ID, due)
		done <- begun || err != nil
	}()
	<-slow.asked
	release()
	if <-done {
		t.Error("rotated twice for one due time")
	}
	if now, _, err := w.Record(t.Context(), k.ID); err != nil || now.Len() != 2 {
		t.Errorf("%d versions, %v", now.Len(), err)
	}
	for _, e := range w.entries() {
		if policy.Action(e.Action) == policy.ActRotate && e.Detail["version"] == "2" && e.Detail["schedule"] == "every 1h" && e.Caller == "system/rollout" {
			return
		}
	}
	t.Error("the log does not say why it was rotated")
}

func TestSetSchedule(t *testing.T) {
	w := newWorld(t)
	k := w.create("k", suite.Encrypt)
	to := keyring.Schedule{Every: 90 * 24 * time.Hour, Jitter: 10}
	pace := func(s keyring.Schedule) kms.Pace { return kms.Pace{Schedule: &s} }
	margin := func(d time.Duration) kms.Pace { return kms.Pace{Margin: &d} }
	if got := must(w.SetSchedule(t.Context(), alice, w.ref(k), pace(to)))(t); got.Schedule.String() != to.String() {
		t.Errorf("%v", got.Schedule)
	}
	if got := must(w.Get(t.Context(), alice, w.ref(k)))(t); got.Schedule.String() != to.String() || got.Epoch != k.Epoch {
		t.Errorf("%v at epoch %v", got.Schedule, got.Epoch)
	}
	if got := must(w.SetSchedule(t.Context(), alice, w.ref(k), margin(time.Hour)))(t); got.Schedule.String() != to.String() || got.Rotation.Margin != time.Hour {
		t.Errorf("%v, %v", got.Schedule, got.Rotation)
	}
	for _, wrong := range []kms.Pace{pace(keyring.Schedule{Every: 1}), margin(-1)} {
		_, err := w.SetSchedule(t.Context(), alice, w.ref(k), wrong)
		wantCode(t, err, fault.Invalid)
	}
	for _, p := range []kms.Pace{pace(keyring.Schedule{}), margin(0)} {
		_, err := w.SetSchedule(t.Context(), mallory, w.ref(k), p)
		wantCode(t, err, fault.Denied)
	}
	if got := must(w.SetSchedule(t.Context(), alice, w.ref(k), pace(keyring.Schedule{})))(t); !got.Schedule.IsZero() || got.Rotation.Margin != time.Hour {
		t.Errorf("%v, %v", got.Schedule, got.Rotation)
	}
	w.known.Store(replica.FormatPages - 1)
	_, err := w.SetSchedule(t.Context(), alice, w.ref(k), pace(to))
	wantCode(t, err, fault.Unavailable)
	must(w.SetSchedule(t.Context(), alice, w.ref(k), margin(0)))(t)
}
