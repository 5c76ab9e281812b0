package rotation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
)

const every = 90 * 24 * time.Hour

// scheduled is promoted with a schedule: version 2 is primary since start.
func scheduled(t *testing.T, s keyring.Schedule) keyring.Key {
	k := promoted(t)
	k.Schedule = s
	return k
}

func wantDue(t *testing.T, what string, k keyring.Key, uses uint64, now time.Time, want string) {
	t.Helper()
	if got := rotation.Begins(k, uses, now); got != want {
		t.Errorf("%s: due %q, want %q", what, got, want)
	}
}

func TestDueByTimeAndByUses(t *testing.T) {
	k := scheduled(t, keyring.Schedule{})
	wantDue(t, "without a schedule", k, 1<<40, start.Add(100*every), "")
	k.Schedule = keyring.Schedule{Every: every}
	wantDue(t, "before its time", k, 1<<40, start.Add(every-1), "")
	wantDue(t, "at its time", k, 0, start.Add(every), "every 90d")
	wantDue(t, "years later", k, 0, start.Add(20*every), "every 90d")
	k.Schedule = keyring.Schedule{MaxUses: 1000}
	wantDue(t, "before its uses", k, 999, start.Add(100*every), "")
	wantDue(t, "at its uses", k, 1000, start, "after 1000 uses")
	k.Schedule = keyring.Schedule{Every: every, MaxUses: 1000}
	wantDue(t, "uses before time", k, 1000, start, "after 1000 uses")
}

func TestDueWaitsForAWindow(t *testing.T) {
	w := keyring.Window{Days: []time.Weekday{time.Sunday}, From: 120, To: 300}
	k := scheduled(t, keyring.Schedule{Every: every, Windows: []keyring.Window{w}})
	end := start.Add(every) // Monday, 1 April 2030
	wantDue(t, "outside of its window", k, 0, end, "")
	if rotation.Asked(k, 0, end) == "" {
		t.Error("nothing is asked for outside of the window")
	}
	open := time.Date(2030, 4, 7, 2, 0, 0, 0, time.UTC)
	wantDue(t, "a second before its window", k, 0, open.Add(-time.Second), "")
	wantDue(t, "in its window", k, 0, open, "every 90d")
	if got := rotation.NextDue(k, 0, start); !got.Equal(open) {
		t.Errorf("next at %v", got)
	}
}

func TestNothingIsDue(t *testing.T) {
	s, late := keyring.Schedule{Every: every}, start.Add(2*every)
	flying := must(rotation.Stage(scheduled(t, s), version(3), start))(t)
	wantDue(t, "while a rotation is in flight", flying, 0, late, "")
	suspended := must(rotation.Change(scheduled(t, s), 2, keyring.Suspend, "", start))(t)
	wantDue(t, "of a suspended version", suspended, 0, late, "")
	compromised := must(rotation.Change(scheduled(t, s), 2, keyring.Compromise, "", start))(t)
	wantDue(t, "of a compromised version", compromised, 0, late, "")
	restoring := scheduled(t, s)
	restoring.Restoring = "a backup"
	wantDue(t, "while it is restored", restoring, 0, late, "")
	wantDue(t, "without a version", keyring.Key{Schedule: s}, 0, late, "")
	for _, k := range []keyring.Key{flying, suspended, compromised, {Schedule: s}} {
		if got := rotation.NextDue(k, 0, late); !got.IsZero() {
			t.Errorf("next at %v although nothing is due", got)
		}
	}
}

// TestWhoTurnsBackHasTheWindow: a schedule does not undo at once what somebody did by hand.
func TestWhoTurnsBackHasTheWindow(t *testing.T) {
	late := start.Add(2 * every)
	given := scheduled(t, keyring.Schedule{Every: every})
	given = must(rotation.Stage(given, version(3), late))(t)
	given = must(rotation.Back(given, 2, late))(t)
	back := scheduled(t, keyring.Schedule{MaxUses: 1})
	back = must(rotation.Back(back, 1, start.Add(window-1)))(t)
	at := start.Add(window - 1)
	back = must(rotation.Promote(back, all(back.Epoch), at, false))(t)
	for _, c := range []struct {
		name string
		k    keyring.Key
		at   time.Time
	}{{"given up", given, late}, {"turned back", back, at}} {
		if c.k.Primary == 3 || c.k.Target != 0 {
			t.Fatalf("%s: %+v", c.name, c.k)
		}
		wantDue(t, c.name+", at once", c.k, 10, c.at, "")
		wantDue(t, c.name+", within the window", c.k, 10, c.at.Add(window-1), "")
		if rotation.Begins(c.k, 10, c.at.Add(window)) == "" {
			t.Errorf("%s: nothing is due after the window", c.name)
		}
		if got := rotation.NextDue(c.k, 10, c.at); !got.Equal(c.at.Add(window)) {
			t.Errorf("%s: next at %v", c.name, got)
		}
		if rotation.Begins(c.k, 10, c.at.Add(-2*window)) == "" && c.name == "given up" {
			t.Errorf("%s under a wrong clock puts the next off", c.name)
		}
	}
}

func TestRotationIsRequired(t *testing.T) {
	late := start.Add(2 * every)
	quiet := scheduled(t, keyring.Schedule{Every: every, Windows: []keyring.Window{{From: 60, To: 120}}})
	over := scheduled(t, keyring.Schedule{})
	over.Periods.Originator = every
	aside := quiet
	aside.Restoring = "a backup"
	for _, c := range []struct {
		name string
		k    keyring.Key
		at   time.Time
		uses uint64
		want string
	}{
		{"within its time", quiet, start, 0, ""},
		{"past its time, outside of its windows", quiet, late, 0, "its schedule asks for a rotation every 90d"},
		{"past its uses", scheduled(t, keyring.Schedule{MaxUses: 3}), start, 3, "its schedule asks for a rotation after 3 uses"},
		{"within its period", over, start, 0, ""},
		{"past its period", over, late, 0, "the originator-usage period is over"},
		{"a newer version on its way", must(rotation.Stage(quiet, version(3), start))(t), start, 0, "version 3 is about to be primary"},
		{"compromised", must(rotation.Change(quiet, 2, keyring.Compromise, "", start))(t), start, 0, "the primary version is compromised"},
		{"on its way back", must(rotation.Back(promoted(t), 1, start))(t), start, 0, ""},
		{"not in service", aside, late, 0, ""},
	} {
		if got := strings.Join(rotation.Required(c.k, c.uses, c.at), "; "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
