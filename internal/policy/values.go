package policy

import (
	"encoding/json"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/rotorkms/rotor/internal/lenient"
)

// holds says whether a value is in a list of what is allowed. An empty list holds every value. A text with commas may be a list to who reads it, so where a pattern
// fits the whole text each part has to be in the list, too.
func holds(allowed []any, value any) bool {
	if !listed(allowed, value) {
		return false
	}
	text, ok := value.(string)
	if n := strings.Count(text, ","); !ok || n == 0 || slices.ContainsFunc(allowed, func(v any) bool { return v == value }) {
		return true
	} else if n > maxParts {
		return false
	}
	for part := range strings.SplitSeq(text, ",") {
		if !listed(allowed, strings.TrimSpace(part)) {
			return false
		}
	}
	return true
}

// listed says whether a value is like one of a list. An empty list has every value.
func listed(list []any, value any) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(v any) bool { return sameValue(v, value) })
}

// maxParts bounds what is between commas and looked at; a text with more of them is denied.
const maxParts = 10_000

// meets says whether a value may mean one of a list that is denied. It is generous where holds is strict, as requests may spell one thing in many ways: a
// boolean as true, "t" or 1, a time as "1h" or 3600, a list as an array or with commas, and names in any letters. An empty list denies every value.
func meets(denied []any, value any) bool {
	if listed(denied, value) {
		return true
	}
	switch v := value.(type) {
	case nil: // which is read as an empty text is
		return meets(denied, "")
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return meets(denied, e) })
	case string:
		if n := strings.Count(v, ","); n > maxParts {
			return true
		} else if n > 0 {
			for part := range strings.SplitSeq(v, ",") {
				if meets(denied, part) {
					return true
				}
			}
			return false
		}
	}
	got, ok := scalar(value)
	if !ok {
		return false
	}
	is, truth := value.(bool)
	got = foldName(strings.TrimSpace(got))
	return slices.ContainsFunc(denied, func(d any) bool {
		want, ok := scalar(d)
		return ok && (mayMean(foldName(want), got) || truth && mayMean(want, lenient.Numeral(is)))
	})
}

// mayMean says whether two texts, in small letters, can stand for the same.
func mayMean(want, got string) bool {
	return Globbed(want, got) || want != "" && lenient.Alike(want, got)
}

// sameValue compares a value of a policy with one of a request. Numbers are compared as numbers, whatever type they were read as, and also with
// text that spells them, as requests may spell numbers and booleans so.
func sameValue(want, got any) bool {
	if w, ok := want.(string); ok {
		if g, ok := scalar(got); ok {
			return Globbed(w, g)
		}
	}
	if w, ok := number(want); ok {
		g, ok := number(got)
		return ok && w.Cmp(g) == 0
	}
	if w, ok := want.(bool); ok {
		g, ok := scalar(got)
		return ok && g == strconv.FormatBool(w)
	}
	w, isList := want.([]any)
	g, ok := got.([]any)
	if isList != ok || len(w) != len(g) {
		return false
	}
	if !isList {
		return reflect.DeepEqual(want, got)
	}
	for i := range w {
		if !sameValue(w[i], g[i]) {
			return false
		}
	}
	return true
}

// scalar is the text of a value that is neither a list nor an object.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case int64:
		return strconv.FormatInt(v, 10), true
	case int:
		return strconv.Itoa(v), true
	}
	return "", false
}

// maxNumber bounds the text of a number that is compared, in bytes: 1e999999999 would be a long one.
const maxNumber = 40

func number(v any) (*big.Rat, bool) {
	if _, isBool := v.(bool); isBool {
		return nil, false
	}
	s, ok := scalar(v)
	if digits := strings.TrimLeft(s, "+-"); !ok || len(s) > maxNumber || len(digits) > 1 && digits[0] == '0' && digits[1] != '.' { // 010 is 8 to who reads a whole number
		return nil, false
	}
	if _, err := strconv.ParseFloat(s, 64); err != nil {
		return nil, false
	}
	if i := strings.IndexAny(s, "eExXpP"); i >= 0 {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return nil, false
		}
		r := new(big.Rat).SetFloat64(f)
		return r, r != nil
	}
	return new(big.Rat).SetString(s)
}

// Globbed compares text with a pattern that may have a * at its begin, at its end, or both.
func Globbed(pattern, s string) bool {
	if pattern == "" || pattern == "*" {
		return pattern == "*" || s == ""
	}
	rest, anyStart := strings.CutPrefix(pattern, "*")
	rest, anyEnd := strings.CutSuffix(rest, "*")
	switch {
	case anyStart && anyEnd:
		return strings.Contains(s, rest)
	case anyStart:
		return strings.HasSuffix(s, rest)
	case anyEnd:
		return strings.HasPrefix(s, rest)
	}
	return s == pattern
}
