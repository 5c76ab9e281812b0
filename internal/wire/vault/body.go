package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limits of a request's body, counted before it is decoded: an empty element is two bytes long and takes a hundred times that in memory.
const (
	maxElements = 10_000  // of one array or object
	maxAll      = 500_000 // of all of them together
	maxDepth    = 32      // of arrays and objects in one another
)

// bounded refuses a JSON text that is larger than the limits, and tells each name of a member of the outermost object as it stands there; member may
// be nil. What is no JSON the decoder refuses.
func bounded(b []byte, member func(name []byte)) error {
	var count [maxDepth]int // of what is open, the outermost first
	depth, all := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end := endOfString(b, i)
			if end < 0 {
				return nil
			}
			if depth == 1 && member != nil && names(b[end+1:]) {
				member(b[i+1 : end])
			}
			i = end
		case '{', '[':
			if depth == maxDepth {
				return fmt.Errorf("JSON input exceeds allowed nesting depth: at most %d", maxDepth)
			}
			count[depth] = 1
			depth++
			all++
		case '}', ']':
			depth = max(depth-1, 0)
		case ',':
			all++
			if depth == 0 {
				return nil
			}
			open := &count[depth-1] //nolint:gosec // depth is not 0
			if *open++; *open > maxElements {
				return fmt.Errorf("JSON array or object exceeds allowed element count: at most %d", maxElements)
			}
		}
		if all > maxAll {
			return fmt.Errorf("JSON input exceeds allowed token count: at most %d", maxAll)
		}
	}
	return nil
}

// names says whether the string before it is a name: a colon follows.
func names(b []byte) bool {
	b = bytes.TrimLeft(b, " \t\r\n")
	return len(b) > 0 && b[0] == ':'
}

// endOfString is where the string that begins at i ends; negative: nowhere.
func endOfString(b []byte, i int) int {
	for i++; ; i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		escape := bytes.IndexByte(b[i:i+n], '\\')
		if escape < 0 {
			return i + n
		}
		if i += escape + 1; i+1 >= len(b) { // what it escapes ends no string
			return -1
		}
	}
}

// body is a decoded body or query: its members as they came.
type body map[string]json.RawMessage

// parse reads a body. It takes JSON numbers and text for one another, as Vault does, when members are asked for; members that nobody asks for are let be.
func parse(b []byte, member func(name []byte)) (body, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return body{}, nil
	}
	if err := checked(bounded(b, member)); err != nil {
		return nil, err
	}
	var out body
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, bad("error parsing JSON: failed to parse JSON input: %s", err)
	}
	return out, nil
}

// checked is the refusal of a body that passes a limit.
func checked(err error) error {
	if err == nil {
		return nil
	}
	return bad("error parsing JSON: failed to parse JSON input: %s", err)
}

// text is a member that is a string in Go and any scalar in JSON.
type text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(b []byte) error {
	switch {
	case len(b) > 0 && b[0] == '"':
		return json.Unmarshal(b, (*string)(t))
	case string(b) == "null":
		return nil
	case len(b) > 0 && (b[0] == '{' || b[0] == '['):
		return errors.New("expected a string")
	case string(b) == "true":
		*t = "1" // as the weak decoding of Vault has it
	case string(b) == "false":
		*t = "0"
	default:
		*t = text(b)
	}
	return nil
}

// number is a whole number in Go, and that or its text in JSON.
type number int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	if err != nil || s == "" {
		return err
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64) // 1.0 and 1e3 are whole
		if ferr != nil || f != float64(int64(f)) {
			return fmt.Errorf("expected a whole number, got %.40q", s)
		}
		v = int64(f)
	}
	*n = number(v)
	return nil
}

// truth is a bool in Go, and that, its text or a number in JSON.
type truth bool

// UnmarshalJSON implements json.Unmarshaler.
func (t *truth) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	if err != nil || s == "" {
		return err
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		n, nerr := strconv.ParseFloat(s, 64)
		if nerr != nil {
			return fmt.Errorf("expected a boolean, got %.40q", s)
		}
		v = n != 0
	}
	*t = truth(v)
	return nil
}

// duration is a time in Go, and in JSON seconds, or text with a unit: "90", "1h30m", "90d".
type duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *duration) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	if err != nil {
		return err
	}
	v, err := parseDuration(s)
	*d = duration(v)
	return err
}

// maxSeconds is what a time.Duration holds.
const maxSeconds = int64(1<<63-1) / int64(time.Second)

// parseDuration reads seconds, or a number with a unit; the unit may also be d.
func parseDuration(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, nil
	}
	days, ok := strings.CutSuffix(s, "d")
	unit := time.Second
	if ok {
		unit = 24 * time.Hour
	} else {
		days = s
	}
	if n, err := strconv.ParseFloat(days, 64); err == nil {
		if n != n || n*unit.Seconds() > float64(maxSeconds) || n*unit.Seconds() < -float64(maxSeconds) {
			return 0, fmt.Errorf("a duration is too long: %.40q", s)
		}
		return time.Duration(n * float64(unit)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("not a duration: %.40q", s)
	}
	return d, nil
}

// list is several texts in Go, and an array or one text with commas in JSON.
type list []string

// UnmarshalJSON implements json.Unmarshaler.
func (l *list) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var all []text
		if err := json.Unmarshal(b, &all); err != nil {
			return err
		}
		*l = make(list, len(all))
		for i, t := range all {
			(*l)[i] = string(t)
		}
		return nil
	}
	s, err := scalar(b)
	if err != nil {
		return err
	}
	if strings.Count(s, ",") >= maxElements {
		return fmt.Errorf("a list has at most %d elements", maxElements)
	}
	*l = nil
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}

// scalar is the text of a JSON string, number or bool; empty of null.
func scalar(b []byte) (string, error) {
	switch {
	case len(b) == 0 || string(b) == "null":
		return "", nil
	case b[0] == '"':
		var s string
		err := json.Unmarshal(b, &s)
		return s, err
	case b[0] == '{' || b[0] == '[':
		return "", errors.New("expected a scalar")
	}
	return string(b), nil
}
