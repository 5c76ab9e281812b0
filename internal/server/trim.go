package server

import (
	"context"
	"runtime/debug"
	"time"
)

// A surge of connections leaves behind what making them took: garbage, and stacks that grew for handshakes and commits and shrink by half with
// each collection. Go's runtime would keep about as much as is in use, for as long as little is allocated.
const (
	trimEvery = time.Second
	trimCalm  = 3   // looks without a surge, before memory is given back
	trimTimes = 3   // collections, for the stacks
	trimFrom  = 100 // connections that came or went, at least, and a hundredth of those that there are
	trimStill = 10  // that may come or go in a look without being a surge, and one in 500 of those that there are
	trimRest  = 15  // looks at least until the next time: a surge that only paused is not over, and one that is slow is no reason to do nothing else
)

// trim gives memory back to the system after each surge of connections, once it is over. It ends with ctx.
func (s *Server) trim(ctx context.Context) error {
	clock := time.NewTicker(trimEvery)
	defer clock.Stop()
	var t trimmer
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-clock.C:
			if t.due(s.http.Load().Connections) {
				debug.FreeOSMemory()
			}
		}
	}
}

// trimmer decides when.
type trimmer struct {
	last    int // connections at the last look
	trimmed int // at the last time that memory was given back
	calm    int
	rest    int // looks until the next time
	left    int // times that are still to come
}

// due is asked at each look.
func (t *trimmer) due(connections int) bool {
	since := func(then int) int { return max(connections-then, then-connections) }
	if since(t.last) > max(trimStill, connections/500) {
		t.calm = 0
	} else {
		t.calm++
	}
	t.last, t.rest = connections, max(t.rest-1, 0)
	if t.rest == 0 && t.calm >= trimCalm && since(t.trimmed) >= max(trimFrom, connections/100) {
		t.trimmed, t.left, t.rest = connections, trimTimes, trimRest
	}
	if t.left == 0 {
		return false
	}
	t.left--
	return true
}
