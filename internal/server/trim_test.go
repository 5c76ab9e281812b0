package server

import "testing"

// TestTrim: memory is given back some seconds after many connections came or went, a few times, and not while they come or when few do.
func TestTrim(t *testing.T) {
	for name, c := range map[string]struct {
		connections []int
		want        string
	}{
		"quiet":             {append([]int{5}, many(5, 7)...), "........"},
		"a few":             {append([]int{0, 50}, many(99, 6)...), "........"},
		"they come":         {[]int{0, 200, 400, 600, 800, 1000}, "......"},
		"they have come":    {append([]int{0, 500}, many(1000, 8)...), ".....xxx.."},
		"slowly":            {append([]int{0, 40, 80, 120}, many(160, 6)...), ".......xxx"},
		"one after another": {[]int{95, 96, 97, 98, 99, 100, 101, 102, 103, 104}, ".....xxx.."},
		"they go":           {append(many(1000, 16), many(100, 8)...), "...xxx.............xxx.."},
		"and come back":     {append(append(many(1000, 6), 500), many(1000, 16)...), "...xxx................."},
		"few of many":       {append(many(10000, 6), many(10090, 16)...), "...xxx................"},
		"more than that":    {append(many(10000, 6), many(10200, 16)...), "...xxx............xxx."},
		"a pause":           {append(append([]int{0, 3000, 6000}, many(9000, 6)...), many(9600, 16)...), "......xxx............xxx."},
	} {
		var m trimmer
		got := ""
		for _, n := range c.connections {
			got += map[bool]string{true: "x", false: "."}[m.due(n)]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// many is so many looks at the same number of connections.
func many(connections, looks int) (all []int) {
	for range looks {
		all = append(all, connections)
	}
	return all
}
