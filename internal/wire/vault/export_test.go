package vault

import "net/http"

// Bounded is bounded.
func Bounded(b []byte) error { return bounded(b, nil) }

// Parse is parse, with how many members there are.
func Parse(b []byte) (int, error) {
	m, err := parse(b, nil)
	return len(m), err
}

// Names are those of the members of the outermost object, as bounded tells them.
func Names(b []byte) (out []string) {
	_ = bounded(b, func(name []byte) { out = append(out, string(name)) })
	return out
}

// WriteError is writeError.
var WriteError = writeError

// Find finds one of some patterns of an engine.
func Find(patterns []string, path string) (pattern string, vars map[string]string) {
	all := make([]route, len(patterns))
	for i, p := range patterns {
		all[i].pattern = p
	}
	r, vars, ok := newTable(all).find("", path)
	if !ok {
		return "", nil
	}
	return r.pattern, vars
}

// Lent reads a body as a request does, decodes it, ends the request, and returns what was decoded and, if the body stood in memory that was lent to it,
// what that holds then.
func Lent(h *http.Request, into any) (room []byte, err error) {
	r := &request{header: h.Header}
	if r.raw, err = r.readAll(h); err != nil {
		return nil, err
	}
	if err := r.decode(into); err != nil {
		return nil, err
	}
	if r.lent != nil {
		room = r.lent[:]
	}
	r.end()
	return room, nil
}
