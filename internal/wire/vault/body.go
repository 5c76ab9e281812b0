package vault

import (
	"bytes"
	"encoding/json"
	"fmt"
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
