package rotation_test

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// This file is the search: breadth first over the states of a model, so that the first violation found has a shortest trace.

// result is what a search found.
type result struct {
	states      int
	transitions int
	depth       int
	took        time.Duration
	bound       bool   // the search stopped at its depth bound
	broken      string // the property that was broken, empty: none
	trace       []string
	stuck       int // states from which no fault-free path destroys the old version (L1)
	did         [kinds]int
}

func (r result) String() string {
	return fmt.Sprintf("%d states, %d transitions, depth %d, %.1f s", r.states, r.transitions, r.depth, r.took.Seconds())
}

// print shows a trace, one action a line.
func (r result) print() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is broken after %d steps:\n", r.broken, len(r.trace)-1)
	for i, line := range r.trace {
		fmt.Fprintf(&b, "%4d  %s\n", i, line)
	}
	return b.String()
}

// explorer is one search under way.
type explorer struct {
	w       *world
	index   map[state]uint32
	states  []state
	parents []uint32
	from    []uint32 // the fault-free transitions, as pairs, for L1
	to      []uint32
	edges   bool
}

// searched are the results of exhaustive searches, which are the same each time and which several tests look at.
var searched = struct {
	mu sync.Mutex // guards of
	of map[config]result
}{of: map[config]result{}}

// explored is explore to exhaustion, once for each configuration.
func explored(c config) result {
	searched.mu.Lock()
	defer searched.mu.Unlock()
	r, known := searched.of[c]
	if !known {
		r = explore(c, 0)
		searched.of[c] = r
	}
	return r
}

// explore searches a configuration to exhaustion, or to maxDepth if that is above 0. L1 is checked when the search was exhausted.
func explore(c config, maxDepth int) result {
	start := time.Now()
	x := &explorer{w: newWorld(c), index: map[state]uint32{}, edges: maxDepth == 0 && c.off == guardNone}
	r := x.search(maxDepth)
	r.states = len(x.states)
	if r.broken == "" && x.edges && !r.bound {
		x.live(&r)
	}
	r.took = time.Since(start)
	return r
}

func (x *explorer) search(maxDepth int) result {
	var r result
	first := x.w.initial()
	x.add(first, 0)
	if p := x.w.broken(&first); p != "" {
		return x.fail(r, 0, p)
	}
	var moves []move
	for level := 0; level < len(x.states); {
		if maxDepth > 0 && r.depth == maxDepth {
			r.bound = true
			return r
		}
		end := len(x.states)
		for ; level < end; level++ {
			s := x.states[level]
			moves = x.w.moves(&s, moves[:0])
			for _, m := range moves {
				r.transitions++
				r.did[m.do.kind]++
				to, fresh := x.add(m.to, uint32(level))
				if x.edges && !m.do.fault() {
					x.from, x.to = append(x.from, uint32(level)), append(x.to, to)
				}
				if m.broken != "" {
					return x.failMove(r, uint32(level), m)
				}
				if !fresh {
					continue
				}
				if p := x.w.broken(&m.to); p != "" {
					return x.fail(r, to, p)
				}
			}
		}
		if len(x.states) > end {
			r.depth++
		}
	}
	return r
}

func (x *explorer) add(s state, parent uint32) (uint32, bool) {
	if i, ok := x.index[s]; ok {
		return i, false
	}
	i := uint32(len(x.states))
	x.index[s] = i
	x.states, x.parents = append(x.states, s), append(x.parents, parent)
	return i, true
}

func (x *explorer) fail(r result, at uint32, property string) result {
	r.broken = property
	r.trace = x.trace(at)
	return r
}

func (x *explorer) failMove(r result, from uint32, m move) result {
	r.broken = m.broken
	r.trace = append(x.trace(from), x.w.line(m.do, &m.to))
	return r
}

// trace walks back to the start and finds again which action led from each state to the next.
func (x *explorer) trace(at uint32) []string {
	if at == 0 {
		return []string{x.w.line(action{}, &x.states[0])}
	}
	before := x.states[x.parents[at]]
	lines := x.trace(x.parents[at])
	for _, m := range x.w.moves(&before, nil) {
		if m.to == x.states[at] {
			return append(lines, x.w.line(m.do, &m.to))
		}
	}
	return append(lines, "?")
}

// live checks L1: walk the fault-free transitions backwards from the states in which the goal is reached.
func (x *explorer) live(r *result) {
	n := len(x.states)
	start := make([]uint32, n+1)
	for _, t := range x.to {
		start[t+1]++
	}
	for i := range n {
		start[i+1] += start[i]
	}
	back, fill := make([]uint32, len(x.to)), make([]uint32, n)
	for i, t := range x.to {
		back[start[t]+fill[t]] = x.from[i]
		fill[t]++
	}
	reached, queue := make([]bool, n), []uint32(nil)
	for i := range x.states {
		if x.w.goal(&x.states[i]) {
			reached[i], queue = true, append(queue, uint32(i))
		}
	}
	for len(queue) > 0 {
		t := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, f := range back[start[t]:start[t+1]] {
			if !reached[f] {
				reached[f], queue = true, append(queue, f)
			}
		}
	}
	for i := range reached {
		if reached[i] {
			continue
		}
		if r.stuck == 0 {
			r.broken, r.trace = "L1", x.trace(uint32(i))
		}
		r.stuck++
	}
}
