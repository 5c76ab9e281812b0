package keyring

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Bounds of a schedule.
const (
	MinEvery    = time.Second
	MaxEvery    = 100 * 365 * 24 * time.Hour
	MaxJitter   = 50 // percent of Every
	MaxWindows  = 16
	MaxZoneName = 64 // bytes
)

// Schedule says when a key rotates by itself. The zero value: never.
type Schedule struct {
	Every   time.Duration `json:"every,omitempty"`    // since the primary version was made; whole seconds, 0: not by time
	Jitter  int           `json:"jitter,omitempty"`   // percent of Every by which a rotation is due earlier at most, so that keys of one age do not rotate together
	MaxUses uint64        `json:"max_uses,omitempty"` // as soon as the primary version has protected so often; 0: not by uses
	Windows []Window      `json:"windows,omitempty"`  // in which a rotation may begin; none: always
}

// WithEvery is the schedule with another time between rotations, 0 for none; what then has no meaning any more goes.
func (s Schedule) WithEvery(d time.Duration) Schedule {
	s.Every = d
	if d == 0 {
		s.Jitter = 0
	}
	if s.IsZero() {
		s.Windows = nil
	}
	return s
}

// IsZero says whether the key never rotates by itself.
func (s Schedule) IsZero() bool { return s.Every == 0 && s.MaxUses == 0 }

// validate names the field that is wrong. fault.Invalid.
func (s Schedule) validate() error {
	switch {
	case s.Every != 0 && (s.Every < MinEvery || s.Every > MaxEvery || s.Every%time.Second != 0):
		return invalid("schedule.every", "whole seconds, from 1 s to 100 years")
	case s.Jitter < 0 || s.Jitter > MaxJitter:
		return invalid("schedule.jitter", "0 to %d percent of the time between two rotations", MaxJitter)
	case s.Jitter != 0 && s.Every == 0:
		return invalid("schedule.jitter", "it is a part of the time between two rotations, and none is set")
	case len(s.Windows) > MaxWindows:
		return invalid("schedule.windows", "at most %d", MaxWindows)
	case len(s.Windows) > 0 && s.IsZero():
		return invalid("schedule.windows", "they say when a rotation may begin, and nothing asks for one: set a time or a number of uses")
	}
	for _, w := range s.Windows {
		if err := w.validate(); err != nil {
			return err
		}
	}
	return nil
}

// period is how long after version n was made the next is due: Every, less a part that is the same at each server.
func (s Schedule) period(id KeyID, n uint32) time.Duration {
	most := s.Every / 100 * time.Duration(s.Jitter)
	if most <= 0 {
		return s.Every
	}
	h := sha256.New()
	h.Write([]byte("rotor schedule jitter\x00" + string(id)))
	h.Write(binary.BigEndian.AppendUint32(nil, n))
	part := binary.BigEndian.Uint64(h.Sum(nil)) % uint64(most/time.Millisecond+1)
	return s.Every - time.Duration(part)*time.Millisecond
}

// PeriodEnds is when the next rotation is due by time, whatever the windows say; zero: never. It counts from when the primary version was
// made. A primary that was made in a future farther off than Every was made under a wrong clock, and has the next due at once: it must not
// put it off for years.
func (k Key) PeriodEnds(now time.Time) time.Time {
	v, err := k.Version(k.Primary)
	if err != nil || k.Schedule.Every == 0 {
		return time.Time{}
	}
	if v.Created.Sub(now) > k.Schedule.Every {
		return now
	}
	return v.Created.Add(k.Schedule.period(k.ID, v.Number))
}

// Open says whether a rotation may begin now.
func (s Schedule) Open(now time.Time) bool {
	for _, w := range s.Windows {
		if w.contains(now) {
			return true
		}
	}
	return len(s.Windows) == 0
}

// Opens is the first moment from a time on at which a rotation may begin; zero: none within the next 400 days.
func (s Schedule) Opens(from time.Time) time.Time {
	if s.Open(from) {
		return from
	}
	var first time.Time
	for _, w := range s.Windows {
		if t := w.opens(from); !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// String says what a schedule asks for, as people write it.
func (s Schedule) String() string {
	if s.IsZero() {
		return "never"
	}
	var parts []string
	if s.Every > 0 {
		parts = append(parts, "every "+Days(s.Every))
	}
	if s.Jitter > 0 {
		parts = append(parts, fmt.Sprintf("up to %d%% earlier", s.Jitter))
	}
	if s.MaxUses > 0 {
		parts = append(parts, fmt.Sprintf("after %d uses", s.MaxUses))
	}
	for _, w := range s.Windows {
		parts = append(parts, "in "+w.String())
	}
	return strings.Join(parts, ", ")
}

// Days is a duration as people write it: whole days as 7d, hours as 25h.
func Days(d time.Duration) string {
	switch {
	case d == 0:
		return "0s"
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}
