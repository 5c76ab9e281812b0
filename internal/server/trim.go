package server

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A surge of connections leaves behind what making them took: garbage, and stacks that grew for handshakes and commits and shrink by half with
// each collection. Go's runtime would keep about as much as is in use, for as long as little is allocated.
const (
	trimEvery = time.Second
	trimCalm  = 3        // looks at which little was allocated, before memory is given back
	trimTimes = 3        // collections, for the stacks
	trimRest  = 15       // looks at least from one time to the next
	trimFrom  = 32 << 20 // bytes that the process has grown by, at least, and a quarter of what it had
	trimStill = 1 << 20  // bytes that are allocated between two looks when little is, and a hundredth of what the process has
)

// trim gives memory back to the system when the process has grown and has become quiet. It ends with ctx.
func (s *Server) trim(ctx context.Context) error {
	clock := time.NewTicker(trimEvery)
	defer clock.Stop()
	var t trimmer
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-clock.C:
			if t.due(memory()) {
				debug.FreeOSMemory()
			}
		}
	}
}

// memory reads how many bytes the runtime has from the system, and how many it has ever allocated.
func memory() (resident, allocated uint64) {
	read := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(read)
	return read[0].Value.Uint64() - read[1].Value.Uint64(), read[2].Value.Uint64()
}

// trimmer decides when.
type trimmer struct {
	base      uint64 // bytes that the process has when nothing can be given back; 0: not known yet
	allocated uint64 // at the last look
	calm      int
	rest      int // looks until the next time
	left      int // collections that are still to come
}

// due is asked at each look.
func (t *trimmer) due(resident, allocated uint64) bool {
	if t.base == 0 || resident < t.base || t.rest == trimRest-trimTimes {
		t.base = resident
	}
	if allocated-t.allocated > max(trimStill, resident/100) {
		t.calm = 0
	} else {
		t.calm++
	}
	t.allocated, t.rest = allocated, max(t.rest-1, 0)
	if t.rest == 0 && t.calm >= trimCalm && resident >= t.base+max(trimFrom, t.base/4) {
		t.left, t.rest = trimTimes, trimRest
	}
	if t.left == 0 {
		return false
	}
	t.left--
	return true
}
