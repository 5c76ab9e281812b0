package server_test

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
)

// TestMain: tests of servers wait for the servers' own clocks and disks most of the time, so twice as many run at once as there are processors.
// One that counts the goroutines or the memory of the process, or whose servers have to keep up with each other, does not call t.Parallel.
func TestMain(m *testing.M) {
	if instead() {
		return
	}
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	sweep()
	os.Exit(code)
}
