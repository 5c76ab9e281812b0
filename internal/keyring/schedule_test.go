package keyring_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/suite"
)

func mustWindow(t testing.TB, s string) keyring.Window {
	t.Helper()
	w, err := keyring.ParseWindow(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return w
}

func TestScheduleIsValidated(t *testing.T) {
	night := []keyring.Window{{From: 120, To: 300}}
	for _, c := range []struct {
		name string
		s    keyring.Schedule
		ok   bool
	}{
		{"none", keyring.Schedule{}, true},
		{"a second", keyring.Schedule{Every: time.Second}, true},
		{"years, in windows, with jitter", keyring.Schedule{Every: 10 * 365 * 24 * time.Hour, Jitter: 50, Windows: night}, true},
		{"uses in windows", keyring.Schedule{MaxUses: 1, Windows: night}, true},
		{"less than a second", keyring.Schedule{Every: 999 * time.Millisecond}, false},
		{"parts of a second", keyring.Schedule{Every: 1500 * time.Millisecond}, false},
		{"negative", keyring.Schedule{Every: -time.Hour}, false},
		{"above the bound", keyring.Schedule{Every: keyring.MaxEvery + time.Second}, false},
		{"jitter above the bound", keyring.Schedule{Every: time.Hour, Jitter: keyring.MaxJitter + 1}, false},
		{"negative jitter", keyring.Schedule{Every: time.Hour, Jitter: -1}, false},
		{"jitter of nothing", keyring.Schedule{MaxUses: 1, Jitter: 1}, false},
		{"windows for nothing", keyring.Schedule{Windows: night}, false},
		{"too many windows", keyring.Schedule{Every: time.Hour, Windows: make([]keyring.Window, keyring.MaxWindows+1)}, false},
		{"an empty window", keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{{}}}, false},
		{"a ninth weekday", keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{{Days: []time.Weekday{8}, To: 60}}}, false},
		{"the zone of the machine", keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{{To: 60, Zone: "Local"}}}, false},
		{"a zone outside of the database", keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{{To: 60, Zone: "../etc/passwd"}}}, false},
	} {
		k := keyIn(suite.Encrypt, keyring.Active, keyring.PhasePrimary)
		k.Schedule = c.s
		if err := k.Validate(); (err == nil) != c.ok || err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestWindowsAreReadAndWritten(t *testing.T) {
	for in, want := range map[string]string{
		"Sat,Sun 02:00-05:00 Europe/Berlin": "Sat,Sun 02:00-05:00 Europe/Berlin",
		"sun,SAT,Sat 02:00-05:00":           "Sat,Sun 02:00-05:00 UTC",
		"Mon-Fri 22:30-04:00 UTC":           "Mon,Tue,Wed,Thu,Fri 22:30-04:00 UTC",
		"Fri-Mon 00:00-00:00":               "Mon,Fri,Sat,Sun 00:00-24:00 UTC",
		"  02:00-02:00  Asia/Kathmandu ":    "02:00-02:00 Asia/Kathmandu",
		"23:59-24:00":                       "23:59-24:00 UTC",
	} {
		w := mustWindow(t, in)
		if w.String() != want {
			t.Errorf("%q is %q, want %q", in, w, want)
		}
		if again := mustWindow(t, w.String()); !cmp.Equal(again, w) {
			t.Errorf("%q read again is %+v, was %+v", w, again, w)
		}
	}
	for _, in := range []string{
		"", "Sat", "Sat,Sun", "02:00", "02:00-", "2:00-05:00", "02:00-25:00", "02:00-24:01", "24:00-25:00", "24:00-02:00", "02:60-03:00", "Sam 02:00-03:00",
		"Sat 02:00-03:00 Local", "Sat 02:00-03:00 Nowhere/Land", "Sat 02:00-03:00 UTC more", "02:00-03:00 UTC more", "Sat, 02:00-03:00", "Sat- 02:00-03:00", "+2:00-03:00", "02:00-03:00 ..",
	} {
		if w, err := keyring.ParseWindow(in); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q is taken for %v: %v", in, w, err)
		}
	}
}

// TestWindowsThroughTheYear has what happens to windows when clocks change, over midnight and on a leap day.
func TestWindowsThroughTheYear(t *testing.T) {
	at := func(s string) time.Time {
		when, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	for _, c := range []struct{ name, window, from, opens string }{
		{"open already", "Sun 02:00-05:00", "2026-03-01T04:59:59Z", "2026-03-01T04:59:59Z"},
		{"its end is not in it", "Sun 02:00-05:00", "2026-03-01T05:00:00Z", "2026-03-08T02:00:00Z"},
		{"in winter", "Sun 02:00-05:00 Europe/Berlin", "2026-01-04T05:00:00Z", "2026-01-11T01:00:00Z"},
		{"in summer", "Sun 02:00-05:00 Europe/Berlin", "2026-07-05T05:00:00Z", "2026-07-12T00:00:00Z"},
		{"the hour that is skipped is never shown", "Sun 02:00-05:00 Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"},
		{"within the hour that is skipped", "Sun 02:15-02:45 Europe/Berlin", "2026-03-28T12:00:00Z", "2026-04-05T00:15:00Z"},
		{"begins within the hour that is skipped", "Sun 02:30-03:30 Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"},
		{"the hour that comes twice, the first time", "Sun 02:15-02:45 Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:15:00Z"},
		{"the hour that comes twice, the second time", "Sun 02:15-02:45 Europe/Berlin", "2026-10-25T00:45:00Z", "2026-10-25T01:15:00Z"},
		{"over midnight it is of the day on which it starts", "Sat 22:00-04:00", "2026-03-07T21:00:00Z", "2026-03-07T22:00:00Z"},
		{"over midnight, after midnight", "Sat 22:00-04:00", "2026-03-08T03:59:00Z", "2026-03-08T03:59:00Z"},
		{"over midnight, on the day before", "Sat 22:00-04:00", "2026-03-07T03:59:00Z", "2026-03-07T22:00:00Z"},
		{"a whole day", "Mon 00:00-24:00", "2026-03-08T23:00:00Z", "2026-03-09T00:00:00Z"},
		{"on a leap day", "Tue 10:00-11:00 America/New_York", "2028-02-28T23:00:00Z", "2028-02-29T15:00:00Z"},
		{"a day that a zone left out (Samoa, 30 December 2011)", "Fri 10:00-11:00 Pacific/Apia", "2011-12-30T05:00:00Z", "2012-01-05T20:00:00Z"},
	} {
		s := keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{mustWindow(t, c.window)}}
		if got := s.Opens(at(c.from)); !got.Equal(at(c.opens)) {
			t.Errorf("%s: %s from %s opens at %s, want %s", c.name, c.window, c.from, got.UTC().Format(time.RFC3339), c.opens)
		}
	}
	yearly := keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{mustWindow(t, "Sun 02:15-02:45 Europe/Berlin"), mustWindow(t, "Mon 01:00-02:00")}}
	if got := yearly.Opens(at("2026-03-28T12:00:00Z")); !got.Equal(at("2026-03-30T01:00:00Z")) {
		t.Errorf("of two windows: %v", got)
	}
	if from := at("2026-03-28T12:00:00Z"); !(keyring.Schedule{}).Opens(from).Equal(from) {
		t.Error("without windows a rotation may begin at any time")
	}
}

// TestOpensIsTheFirstMinuteThatIsOpen compares the search with looking at every minute.
func TestOpensIsTheFirstMinuteThatIsOpen(t *testing.T) {
	names := []string{"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "America/Sao_Paulo", "Pacific/Apia", "America/St_Johns"}
	rapid.Check(t, func(t *rapid.T) {
		w := keyring.Window{
			Days: rapid.SliceOfNDistinct(rapid.Map(rapid.IntRange(0, 6), func(d int) time.Weekday { return time.Weekday(d) }), 0, 7, rapid.ID[time.Weekday]).Draw(t, "days"),
			From: rapid.IntRange(0, 1439).Draw(t, "from"), To: rapid.IntRange(1, 1440).Draw(t, "to"), Zone: rapid.SampledFrom(names).Draw(t, "zone"),
		}
		s := keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{w}}
		from := time.Unix(rapid.Int64Range(1_280_000_000, 1_900_000_000).Draw(t, "now")/60*60, 0).UTC()
		if l, err := time.LoadLocation(w.Zone); err == nil && rapid.Bool().Draw(t, "near a change") {
			if _, end := from.In(l).ZoneBounds(); !end.IsZero() {
				from = end.UTC().Truncate(time.Minute).Add(-time.Duration(rapid.IntRange(0, 2000).Draw(t, "minutes before")) * time.Minute)
			}
		}
		want := from
		for i := 0; !s.Open(want); i++ {
			if want = want.Add(time.Minute); i > 30*24*60 {
				t.Fatalf("%v is never open", w)
			}
		}
		if got := s.Opens(from); !got.Equal(want) {
			t.Fatalf("%v from %v opens at %v, want %v", w, from, got, want)
		}
	})
}

func TestPeriodEndsWithJitterThatServersAgreeOn(t *testing.T) {
	k := keyIn(suite.Encrypt, keyring.Active, keyring.PhasePrimary)
	if !k.PeriodEnds(t0).IsZero() {
		t.Error("a key without a schedule is due some time")
	}
	k.Schedule.Every = 90 * 24 * time.Hour
	k = made(t, k, t0)
	if got := k.PeriodEnds(t0); !got.Equal(t0.Add(k.Schedule.Every)) {
		t.Errorf("without jitter it is due at %v", got)
	}
	k.Schedule.Jitter = 10
	seen := map[time.Time]bool{}
	for n := range 50 {
		k.ID = keyring.KeyID(fmt.Sprintf("%032x", n))
		end := k.PeriodEnds(t0)
		if again := k.Clone().PeriodEnds(t0.Add(time.Hour)); !again.Equal(end) {
			t.Errorf("key %s is due at %v and at %v", k.ID, end, again)
		}
		if early := t0.Add(k.Schedule.Every).Sub(end); early < 0 || early > k.Schedule.Every/10 {
			t.Errorf("key %s is due %v early", k.ID, early)
		}
		seen[end] = true
	}
	if len(seen) < 45 {
		t.Errorf("50 keys are due at %d moments", len(seen))
	}
	wrong := made(t, k, t0.Add(2*k.Schedule.Every))
	if got := wrong.PeriodEnds(t0); !got.Equal(t0) {
		t.Errorf("a version that was made under a wrong clock puts off the next until %v", got)
	}
}

// made is the key with version 1 made at a time.
func made(t *testing.T, k keyring.Key, at time.Time) keyring.Key {
	t.Helper()
	v, err := k.Version(1)
	if err != nil {
		t.Fatal(err)
	}
	v.Created = at
	return k.Clone().Put(v)
}

func TestScheduleSurvivesItsRecord(t *testing.T) {
	k := keyIn(suite.Encrypt, keyring.Active, keyring.PhasePrimary)
	if b, err := json.Marshal(k); err != nil || bytes.Contains(b, []byte("schedule")) {
		t.Fatalf("without a schedule: %s, %v", b, err)
	}
	k.Schedule = keyring.Schedule{Every: 90 * 24 * time.Hour, Jitter: 10, MaxUses: 1 << 40, Windows: []keyring.Window{mustWindow(t, "Sat,Sun 02:00-05:00 Europe/Berlin")}}
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	var got keyring.Key
	if err := json.Unmarshal(b, &got); err != nil || !cmp.Equal(got.Schedule, k.Schedule) {
		t.Errorf("%+v, %v", got.Schedule, err)
	}
}

func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{"Sat,Sun 02:00-05:00 Europe/Berlin", "Mon-Fri 22:30-04:00", "00:00-24:00", "Sun-Sat 23:59-00:00 UTC", "Sat 02:00-03:00 ../x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := keyring.ParseWindow(s)
		if err != nil {
			return
		}
		again, err := keyring.ParseWindow(w.String())
		if err != nil || !cmp.Equal(again, w) {
			t.Fatalf("%q is %+v, and %q is %+v: %v", s, w, w.String(), again, err)
		}
		(keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{w}}).Opens(t0)
	})
}
