package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/policy"
)

// The types of fields that clients of Vault set, in the forms that they take: seconds or text with a unit, a list or a text with commas, a number or
// a truth value or their text. They are stored and shown as seconds, lists, numbers and truth values.

// maxList bounds the elements of a list or map that comes as one text. One that comes as JSON is bounded with the body.
const maxList = 10_000

// few says whether a text has few enough elements to be taken apart.
func few(text string) error {
	if strings.Count(text, ",") >= maxList {
		return fmt.Errorf("a list or map has at most %d elements", maxList)
	}
	return nil
}

// TTL is a time.
type TTL time.Duration

// List is some texts, each once.
type List []string

// Num is a whole number that is not negative.
type Num int64

// Flag is true or false.
type Flag bool

// Map is texts by name.
type Map map[string]string

// UnmarshalJSON implements json.Unmarshaler.
func (t *TTL) UnmarshalJSON(b []byte) error {
	text, err := scalarText(b)
	if err != nil {
		return err
	}
	d, err := policy.ParseTTL(text)
	if err != nil {
		return fmt.Errorf("not a duration: %.40q", text)
	}
	*t = TTL(d)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (t TTL) MarshalJSON() ([]byte, error) {
	return strconv.AppendInt(nil, int64(time.Duration(t)/time.Second), 10), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *List) UnmarshalJSON(b []byte) error {
	var raw []json.RawMessage
	if len(b) > 0 && b[0] == '[' {
		if err := json.Unmarshal(b, &raw); err != nil {
			return err
		}
	} else if string(b) != "null" {
		raw = []json.RawMessage{b}
	}
	out := List{}
	for _, r := range raw {
		text, err := scalarText(r)
		if err != nil {
			return err
		}
		parts := []string{text}
		if len(b) > 0 && b[0] != '[' {
			if err := few(text); err != nil {
				return err
			}
			parts = strings.Split(text, ",")
		}
		for _, p := range parts {
			if p = strings.TrimSpace(p); p != "" {
				out = append(out, p)
			}
		}
	}
	*l = out
	return nil
}

// MarshalJSON implements json.Marshaler: no list is an empty one.
func (l List) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]string(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Num) UnmarshalJSON(b []byte) error {
	text, err := scalarText(b)
	if err != nil || text == "" {
		return err
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if f, ferr := strconv.ParseFloat(text, 64); err != nil && ferr == nil && f == float64(int64(f)) { // 1.0 and 1e3 are whole
		v, err = int64(f), nil
	}
	if err != nil || v < 0 {
		return fmt.Errorf("not a whole number from 0: %.40q", text)
	}
	*n = Num(v)
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *Flag) UnmarshalJSON(b []byte) error {
	text, err := scalarText(b)
	if err != nil || text == "" {
		return err
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return fmt.Errorf("not true or false: %.40q", text)
	}
	*f = Flag(v)
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Map) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' { // an object in a text, as clients give it on a command line
		text, err := scalarText(b)
		if err != nil || text == "" {
			return err
		}
		if err := few(text); err != nil {
			return err
		}
		b = []byte(text)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	out := Map{}
	for name, r := range raw {
		text, err := scalarText(r)
		if err != nil {
			return err
		}
		out[name] = text
	}
	*m = out
	return nil
}

// scalarText is the text of a JSON string, number or truth value; "" of null.
func scalarText(b []byte) (string, error) {
	switch {
	case len(b) == 0 || string(b) == "null":
		return "", nil
	case b[0] == '"':
		var s string
		err := json.Unmarshal(b, &s)
		return s, err
	case b[0] == '{' || b[0] == '[':
		return "", errors.New("one value is needed, not several")
	}
	return string(b), nil
}
