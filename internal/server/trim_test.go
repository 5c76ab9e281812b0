package server

import "testing"

// TestTrim: memory is given back some seconds after many connections came or went, a few times, and not while they come or when few do.
func TestTrim(t *testing.T) {
	for name, c := range map[string]struct {
		connections []int
		want        string
	}{
		"quiet":             {[]int{5, 5, 5, 5, 5, 5, 5, 5}, "........"},
		"a few":             {[]int{0, 50, 99, 99, 99, 99, 99, 99}, "........"},
		"they come":         {[]int{0, 200, 400, 600, 800, 1000}, "......"},
		"they have come":    {[]int{0, 500, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000}, ".....xxx.."},
		"slowly":            {[]int{0, 40, 80, 120, 160, 160, 160, 160, 160, 160}, ".......xxx"},
		"one after another": {[]int{95, 96, 97, 98, 99, 100, 101, 102, 103, 104}, ".....xxx.."},
		"they go":           {[]int{1000, 1000, 1000, 1000, 1000, 1000, 1000, 100, 100, 100, 100, 100, 100, 100}, "...xxx....xxx."},
		"and come back":     {[]int{1000, 1000, 1000, 1000, 1000, 1000, 500, 1000, 1000, 1000, 1000, 1000, 1000}, "...xxx......."},
		"few of many":       {[]int{10000, 10000, 10000, 10000, 10000, 10000, 10400, 10400, 10400, 10400, 10400}, "...xxx....."},
		"more than that":    {[]int{10000, 10000, 10000, 10000, 10000, 10000, 11000, 11000, 11000, 11000, 11000}, "...xxx...xx"},
		"a storm slows":     {[]int{0, 3000, 6000, 9000, 9300, 9400, 9500, 9550, 9600, 9600, 9600, 9600, 9600}, "...........xx"},
		"during the times":  {[]int{1000, 1000, 1000, 1000, 2000, 2000, 2000, 2000, 2000, 2000, 2000}, "...xxx.xxx."},
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
