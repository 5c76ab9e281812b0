package server_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"connectrpc.com/connect"

	rotor "github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// goroutines counts those in whose stacks a function is.
func goroutines(function string) (n int) {
	stacks := make([]byte, 8<<20)
	for _, g := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(g, function) {
			n++
		}
	}
	return n
}

// TestQuietStreams: a stream on which nothing happens takes three goroutines of the server: two of the connection, and one that waits for its
// request. Each has a stack of thousands of bytes, and there are ten thousand streams.
func TestQuietStreams(t *testing.T) {
	const n = 12
	w := newWorld(t)
	admin := w.client().Admin()
	if _, err := admin.Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{Key: &rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"}})); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := fmt.Sprintf("p%d", i)
		c, err := rotor.Dial(t.Context(), rotor.Config{Identity: filepath.Join(t.TempDir(), name), JoinToken: w.invite(name), Keys: []string{"records"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	if got := goroutines("native.members.Hold("); got != n {
		t.Errorf("%d goroutines wait for the requests of %d streams", got, n)
	}
	for _, passing := range []string{"native.(*sender).run", "wire.(*greeter).shake", "wire.Aside"} {
		for goroutines(passing) > 0 && t.Context().Err() == nil { // a moment later
			runtime.Gosched()
		}
	}
}
