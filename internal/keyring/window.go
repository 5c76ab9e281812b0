package keyring

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // every server of a build has the same zones, also where the system has none and where the sandbox shows none

	"github.com/rotorkms/rotor/internal/fault"
)

const day = 24 * 60 // minutes

// Window is a stretch of the week by the clocks on the wall of a time zone: open while they show a time from From to before To. One that ends
// at or before its start goes on until To of the next day, and is of the day on which it starts. What clocks skip when they are put
// forward is never shown, so a window within it does not open on that day; what they show twice, when they are put back, is open twice.
type Window struct {
	Days []time.Weekday `json:"days,omitempty"` // on which it starts, 0 is Sunday; none: every day
	From int            `json:"from"`           // minute of the day, 0 to 1439
	To   int            `json:"to"`             // minute of the day, 1 to 1440
	Zone string         `json:"zone,omitempty"` // name in the IANA time zone database; default UTC
}

func (w Window) validate() error {
	switch {
	case w.From < 0 || w.From >= day || w.To <= 0 || w.To > day:
		return invalid("schedule.windows", "times of day go from 00:00 to 24:00")
	case len(w.Days) > 7 || slices.ContainsFunc(w.Days, func(d time.Weekday) bool { return d < 0 || d > 6 }):
		return invalid("schedule.windows", "days are some of Mon, Tue, Wed, Thu, Fri, Sat, Sun")
	}
	if _, err := zone(w.Zone); err != nil {
		return err
	}
	return nil
}

// zones are the time zones that were looked up: they do not change within a process, and there are some hundred.
var zones sync.Map // name to *time.Location

// zone finds a time zone by name. fault.Invalid.
func zone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if l, ok := zones.Load(name); ok {
		return l.(*time.Location), nil //nolint:errcheck // nothing else is stored
	}
	l, err := time.LoadLocation(name)
	if len(name) > MaxZoneName || name == "Local" || err != nil {
		return nil, invalid("schedule.windows", "a time zone is named as in the IANA database, such as Europe/Berlin or UTC")
	}
	zones.Store(name, l)
	return l, nil
}

// contains says whether the window is open at a time.
func (w Window) contains(t time.Time) bool {
	l, err := zone(w.Zone)
	if err != nil {
		return false // of a newer build with newer zones: rather late than at a wrong time
	}
	t = t.In(l)
	minute := t.Hour()*60 + t.Minute()
	today, yesterday := w.starts(t.Weekday()), w.starts((t.Weekday()+6)%7)
	if w.From < w.To {
		return today && w.From <= minute && minute < w.To
	}
	return today && minute >= w.From || yesterday && minute < w.To
}

func (w Window) starts(d time.Weekday) bool { return len(w.Days) == 0 || slices.Contains(w.Days, d) }

// searchDays is how far ahead a window is looked for: clocks may skip it on its only day of the week, each year anew.
const searchDays = 400

// opens is the first moment from a time on at which the window is open; zero: none within searchDays.
func (w Window) opens(from time.Time) time.Time {
	l, err := zone(w.Zone)
	if err != nil {
		return time.Time{}
	}
	if w.contains(from) {
		return from
	}
	y, m, d := from.In(l).Date()
	var first time.Time
	for i, last := -1, searchDays; i <= last; i++ {
		for _, t := range w.candidates(time.Date(y, m, d+i, 12, 0, 0, 0, l)) {
			if t.Before(from) || !w.contains(t) || !first.IsZero() && !t.Before(first) {
				continue
			}
			first, last = t.In(from.Location()), i+1 // the candidates of two days overlap
		}
	}
	return first
}

// candidates are the moments of the day around noon at which the window can begin to be open, in no order: its start by each offset from UTC
// that the day has, and the moments at which the offset changes.
func (w Window) candidates(noon time.Time) []time.Time {
	y, m, d := noon.Date()
	wall := time.Date(y, m, d, w.From/60, w.From%60, 0, 0, time.UTC)
	var out []time.Time
	begin, end := noon.Add(-18*time.Hour), noon.Add(18*time.Hour)
	for t := begin; ; {
		_, offset := t.Zone()
		out = append(out, wall.Add(-time.Duration(offset)*time.Second).In(noon.Location()))
		_, until := t.ZoneBounds()
		if until.IsZero() || until.After(end) {
			break
		}
		out = append(out, until)
		t = until
	}
	return out
}

// weekdays in the order of a week, as windows are written.
var weekdays = []time.Weekday{time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday, time.Saturday, time.Sunday}

// String writes a window as ParseWindow reads it: "Sat,Sun 02:00-05:00 Europe/Berlin".
func (w Window) String() string {
	var b strings.Builder
	for _, d := range weekdays {
		if !slices.Contains(w.Days, d) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(d.String()[:3])
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	fmt.Fprintf(&b, "%02d:%02d-%02d:%02d %s", w.From/60, w.From%60, w.To/60, w.To%60, cmp.Or(w.Zone, "UTC"))
	return b.String()
}

// ParseWindow reads "[DAYS] HH:MM-HH:MM [ZONE]": days are names of three letters, joined by commas and ranges ("Mon-Fri,Sun"), without
// which every day is meant; without a zone UTC is. fault.Invalid.
func ParseWindow(s string) (Window, error) {
	fields := strings.Fields(s)
	if len(s) > 256 || len(fields) == 0 || len(fields) > 3 {
		return Window{}, badWindow()
	}
	var w Window
	if c := fields[0][0]; c < '0' || c > '9' {
		days, err := parseDays(fields[0])
		if err != nil || len(fields) == 1 {
			return Window{}, badWindow()
		}
		w.Days, fields = days, fields[1:]
	}
	from, to, ok := strings.Cut(fields[0], "-")
	if !ok {
		return Window{}, badWindow()
	}
	var err error
	if w.From, err = parseMinute(from); err == nil {
		w.To, err = parseMinute(to)
	}
	if err != nil {
		return Window{}, err
	}
	if w.To == 0 {
		w.To = day
	}
	if len(fields) == 2 && fields[1] != "UTC" {
		w.Zone = fields[1]
	}
	if len(fields) > 2 {
		return Window{}, badWindow()
	}
	return w, w.validate()
}

func badWindow() error {
	return fault.New(fault.Invalid, "schedule.windows").WithHint(`a window reads "Sat,Sun 02:00-05:00 Europe/Berlin": days, which may be left out, times, and a time zone, by default UTC`)
}

// parseDays reads "Sat,Sun" and "Mon-Fri", whatever the case; each day once, in the order of their numbers.
func parseDays(s string) ([]time.Weekday, error) {
	var days []time.Weekday
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		from, ok := parseDay(first)
		to := from
		if ranged && ok {
			to, ok = parseDay(last)
		}
		if !ok {
			return nil, badWindow()
		}
		for d := from; ; d = (d + 1) % 7 {
			days = append(days, d)
			if d == to {
				break
			}
		}
	}
	slices.Sort(days)
	return slices.Compact(days), nil
}

func parseDay(s string) (time.Weekday, bool) {
	for _, d := range weekdays {
		if strings.EqualFold(s, d.String()[:3]) {
			return d, true
		}
	}
	return 0, false
}

// parseMinute reads HH:MM, from 00:00 to 24:00.
func parseMinute(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	if !ok || len(h) != 2 || len(m) != 2 {
		return 0, badWindow()
	}
	hour, err := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	if err != nil || err2 != nil || minute > 59 || hour*60+minute > day {
		return 0, badWindow()
	}
	return int(hour*60 + minute), nil
}
