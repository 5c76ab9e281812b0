package server

import "testing"

// TestTrim: memory is given back some seconds after the process has grown and become quiet, a few times, and not while it works or when it has
// grown little.
func TestTrim(t *testing.T) {
	t.Parallel()
	const quiet, busy = 0, 100 // MiB that are allocated between two looks
	for name, c := range map[string]struct {
		looks []look
		want  string
	}{
		"quiet":            {looks(8, 50, quiet), "........"},
		"it grows a bit":   {both(looks(2, 50, quiet), looks(8, 81, quiet)), ".........."},
		"it works":         {both(looks(2, 50, quiet), looks(8, 900, busy)), ".........."},
		"it has worked":    {both(looks(2, 50, quiet), looks(3, 900, busy), looks(3, 900, quiet), looks(20, 500, quiet)), ".......xxx.................."},
		"little is left":   {both(looks(2, 50, quiet), looks(3, 900, busy), looks(3, 900, quiet), looks(20, 900, quiet)), ".......xxx.................."},
		"and grows again":  {both(looks(2, 50, quiet), looks(3, 900, busy), looks(3, 900, quiet), looks(5, 500, quiet), looks(12, 700, quiet)), ".......xxx............xxx"},
		"it pauses":        {both(looks(2, 50, quiet), looks(3, 600, quiet), looks(2, 500, quiet), looks(9, 900, busy), looks(9, 900, quiet)), "..xxx.............xxx...."},
		"a quarter of it":  {both(looks(2, 800, quiet), looks(4, 999, quiet), looks(4, 1000, quiet)), "......xxx."},
		"a trickle":        {both(looks(2, 800, 7), looks(6, 1100, 10)), "..xxx..."},
		"more than that":   {both(looks(2, 800, 7), looks(6, 1100, 13)), "........"},
		"falls by itself":  {both(looks(1, 900, busy), looks(3, 100, quiet), looks(4, 140, quiet)), "....xxx."},
		"from the start":   {both(looks(1, 50, 0), looks(3, 300, quiet)), "..xx"},
		"calm is in a row": {both(looks(1, 50, 0), looks(1, 300, busy), looks(2, 300, quiet), looks(1, 300, busy), looks(4, 300, quiet)), ".......xx"},
	} {
		var m trimmer
		var all uint64
		got := ""
		for _, l := range c.looks {
			all += l.allocated << 20
			got += map[bool]string{true: "x", false: "."}[m.due(l.resident<<20, all)]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// look is what a look sees, in MiB, and what was allocated since the last one.
type look struct{ resident, allocated uint64 }

func looks(n int, resident, allocated uint64) (all []look) {
	for range n {
		all = append(all, look{resident, allocated})
	}
	return all
}

func both(some ...[]look) (all []look) {
	for _, s := range some {
		all = append(all, s...)
	}
	return all
}
