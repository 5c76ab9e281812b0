// Package lenient reads values as Vault does, whose clients give one thing in many forms: a number or a truth value as a text, a time in seconds or with
// a unit, a list as an array or with commas. The rules are those of Vault's fields; TestVaultPeerValues asks a real one. Whoever judges a value before
// it is read (a policy's parameters) asks this room too, so that nothing means more to a reader than to the judge.
package lenient

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxTime bounds every time: a hundred years.
const MaxTime = 100 * 365 * 24 * time.Hour

// maxList bounds the elements of a list or map that comes as one text. One that comes as JSON is bounded with the body.
const maxList = 10_000

// The types. A null is empty, and none. They are shown as numbers, truth values, lists and objects; a time in seconds.
type (
	Text     string
	Int      int64
	Bool     bool
	Duration time.Duration
	List     []string
	Map      map[string]string
)

// ParseInt reads a whole number, also as 0x10 or 010. Empty: 0.
func ParseInt(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("expected a whole number, got %.40q", s)
	}
	return n, nil
}

// ParseBool reads true, t, 1 and the like. Empty: false.
func ParseBool(s string) (bool, error) {
	is, err := strconv.ParseBool(s)
	if err != nil && s != "" {
		return false, fmt.Errorf("expected a boolean, got %.40q", s)
	}
	return is, nil
}

// ParseDuration reads whole seconds, whole days with a d, or a time with units from ns to h; from 0 to MaxTime. Empty: 0.
func ParseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	number, unit := s, time.Second
	if days, ok := strings.CutSuffix(s, "d"); ok {
		number, unit = days, 24*time.Hour
	}
	n, err := strconv.ParseInt(number, 10, 64)
	d := time.Duration(n) * unit
	if err != nil {
		d, err = time.ParseDuration(s)
	} else if n > int64(MaxTime/unit) {
		d = -1
	}
	if err != nil || d < 0 || d > MaxTime {
		return 0, fmt.Errorf("expected seconds, or a number with s, m, h or d, from 0 to %d days, got %.40q", MaxTime/(24*time.Hour), s)
	}
	return d, nil
}

// Alike says whether two texts can stand for the same in a field of some type: whether got may be what want is. 0 and 1 are numbers, as a truth value is
// wanted as true or false.
func Alike(want, got string) bool {
	return want == got || same(ParseInt, want, got) || same(ParseDuration, want, got) || want != "0" && want != "1" && same(ParseBool, want, got)
}

func same[V comparable](parse func(string) (V, error), a, b string) bool {
	x, xerr := parse(a)
	y, yerr := parse(b)
	return xerr == nil && yerr == nil && x == y
}

// Numeral is a truth value as a number, or text.
func Numeral(is bool) string {
	if is {
		return "1"
	}
	return "0"
}

// read reads a JSON string, number or truth value, which is 1 or 0 as a text.
func read[V any](b []byte, into *V, parse func(string) (V, error)) (err error) {
	var s string
	switch {
	case string(b) == "null": // as Vault has it, empty
	case len(b) == 0 || b[0] == '{' || b[0] == '[':
		return errors.New("expected one value, not several")
	case b[0] == 't' || b[0] == 'f':
		s = Numeral(b[0] == 't')
	case b[0] != '"':
		s = string(b)
	default:
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
	}
	v, err := parse(s)
	if err == nil {
		*into = v
	}
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(b []byte) error {
	return read(b, (*string)(t), func(s string) (string, error) { return s, nil })
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Int) UnmarshalJSON(b []byte) error { return read(b, (*int64)(n), ParseInt) }

// UnmarshalJSON implements json.Unmarshaler.
func (t *Bool) UnmarshalJSON(b []byte) error { return read(b, (*bool)(t), ParseBool) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && (b[0] == 't' || b[0] == 'f') {
		return errors.New("expected a time, not a boolean")
	}
	return read(b, (*time.Duration)(d), ParseDuration)
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) {
	return strconv.AppendInt(nil, int64(time.Duration(d)/time.Second), 10), nil
}

// UnmarshalJSON implements json.Unmarshaler: an array, or a text with commas. Empty elements stay, as what they would mean depends on the field.
func (l *List) UnmarshalJSON(b []byte) error {
	var all []Text
	if len(b) > 0 && b[0] == '[' {
		if err := json.Unmarshal(b, &all); err != nil {
			return err
		}
	} else {
		var t Text
		if err := t.UnmarshalJSON(b); err != nil {
			return err
		}
		parts, err := split(string(t))
		if err != nil {
			return err
		}
		all = parts
	}
	*l = make(List, len(all))
	for i, t := range all {
		(*l)[i] = strings.TrimSpace(string(t))
	}
	return nil
}

// MarshalJSON implements json.Marshaler: no list is an empty one.
func (l List) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]string(l))
}

// split takes a text apart at its commas. Of an empty one there are no parts.
func split(s string) (all []Text, err error) {
	if s == "" {
		return nil, nil
	}
	if strings.Count(s, ",") >= maxList {
		return nil, fmt.Errorf("a list or map has at most %d elements", maxList)
	}
	for part := range strings.SplitSeq(s, ",") {
		all = append(all, Text(part))
	}
	return all, nil
}

// Object is the JSON of an object that may come as the text of one, as clients give it on a command line. What is neither comes back as it is.
func Object(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != '"' {
		return b, nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(strings.TrimSpace(s), "{") {
		return b, nil
	}
	_, err := split(s) // bounded before it is decoded
	return []byte(s), err
}

// UnmarshalJSON implements json.Unmarshaler: an object, the text of one, or NAME=VALUE in an array or between commas.
func (m *Map) UnmarshalJSON(b []byte) error {
	b, err := Object(b)
	if err != nil {
		return err
	}
	out := Map{}
	if len(b) > 0 && (b[0] == '"' || b[0] == '[') {
		err = out.pairs(b)
	} else {
		var in map[string]Text
		err = json.Unmarshal(b, &in)
		for name, value := range in {
			out[name] = string(value)
		}
	}
	if err == nil {
		*m = out
	}
	return err
}

func (m Map) pairs(b []byte) error {
	var all List
	if err := all.UnmarshalJSON(b); err != nil {
		return err
	}
	for _, p := range all {
		name, value, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("expected NAME=VALUE, got %.40q", p)
		}
		m[name] = value
	}
	return nil
}
