package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// Bars of many connections: seconds until all have an update, KB and µs of the server for each, seconds until all are served again.
const (
	barUpdate    = 2.0
	barMemory    = 60.0
	barCPU       = 50.0
	barReconnect = 30.0
	barStorm     = 2.0
)

const crowdRules = `version: 1
rules:
  - {name: administrators, callers: ["admin/*"], actions: ["*"], keys: {namespace: "**", names: ["**"]}}
  - {name: watchers, callers: ["spiffe://rotor.local/instance/*"], actions: [deliver, verify], keys: {namespace: default, names: ["*"]}}
`

// rounds is how many updates of each kind are made.
const rounds = 3

// watched are the keys that every watcher holds: each is updated once. Of the last ones the material is sealed to each process.
var watched = [2 * rounds]string{"public-1", "public-2", "public-3", "material-1", "material-2", "material-3"}

// watchers measures a server of its own with many instances on it, each with its own TLS connection, and a bare server with as many streams.
func watchers(ctx context.Context, o options) ([]Row, error) {
	if o.rotor == "" {
		return nil, nil
	}
	if err := raiseFiles(o.watchers); err != nil {
		return nil, err
	}
	s, err := startServer(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	c, err := newCrowd(ctx, s, o)
	if err != nil {
		return nil, s.told(err)
	}
	defer c.close()
	rows, err := c.measure(ctx)
	if err != nil {
		return nil, s.told(err)
	}
	c.close()
	memory, cpu, err := measureBare(ctx, o.watchers, int(c.parcel.Load()))
	return append(rows, against(rows, o.watchers, memory, cpu)...), err
}

// against compares with the bare server.
func against(rows []Row, n int, memory, cpu float64) []Row {
	limit := map[string]float64{fmt.Sprintf("memory_%d_watchers", n): memory, fmt.Sprintf("update_cpu_%d_watchers", n): cpu, fmt.Sprintf("sealed_update_cpu_%d_watchers", n): cpu}
	var out []Row
	for _, r := range rows {
		if bare, ok := limit[r.Name]; ok {
			out = append(out, Row{r.Name, r.Value, r.Unit, fmt.Sprintf("%.3g %s bare TLS and HTTP/2", bare, r.Unit), r.Value / bare, "", true, 0})
		}
	}
	return out
}

func (c *crowd) measure(ctx context.Context) ([]Row, error) {
	n := float64(len(c.all))
	idle, err := c.server.settled(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.profile("at-rest", "heap?debug=1", "heap", "goroutine?debug=1"); err != nil {
		return nil, err
	}
	if err := c.server.forgetPeak(); err != nil {
		return nil, err
	}
	profiled := make(chan error, 1)
	go func() { profiled <- c.profile("updating", "profile?seconds=3") }()
	defer func() { <-profiled }() // of no weight
	took, cpu, err := c.updates(ctx, 0, rounds)
	if err != nil {
		return nil, err
	}
	sealedTook, sealedCPU, err := c.updates(ctx, rounds, 2*rounds)
	if err != nil {
		return nil, err
	}
	peak, err := c.server.memory("VmHWM")
	if err != nil {
		return nil, err
	}
	if err := c.profile("updated", "heap?debug=1", "allocs"); err != nil {
		return nil, err
	}
	name := func(what string) string { return fmt.Sprintf("%s_%d_watchers", what, len(c.all)) }
	rows := []Row{
		atMost(name("update"), took, "s", barUpdate),
		atMost(name("update_cpu"), cpu, "us", barCPU),
		atMost(name("sealed_update"), sealedTook, "s", barUpdate),
		atMost(name("sealed_update_cpu"), sealedCPU, "us", barCPU),
		atMost(name("memory"), (idle-c.base)/n, "KB", barMemory),
		{name("memory_peak"), (peak - c.base) / n, "KB", "at rest", (peak - c.base) / (idle - c.base), "", true, 0},
		{name("start"), c.began.Seconds(), "s", "load average " + load(), n / c.began.Seconds(), "", true, 0},
	}
	storm, err := c.storm(ctx)
	return append(rows, storm...), err
}

// load is the machine's load average of one minute (proc_loadavg(5)): latencies are of no use when it is far above the number of processors.
func load() string {
	b, _ := os.ReadFile("/proc/loadavg") // empty where there is none
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// updates changes keys one after the other and returns the best time, in seconds, until every watcher has heard, and the mean µs of the server for
// each: collecting its garbage is part of it, and does not happen in every round.
func (c *crowd) updates(ctx context.Context, from, to int) (took, cpu float64, err error) {
	before, err := c.server.cpu()
	if err != nil {
		return 0, 0, err
	}
	for key := from; key < to; key++ {
		epoch := c.all[0].seen[key].Load()
		start := time.Now()
		if _, err := c.admin.Admin().Keys.Rotate(ctx, connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: watched[key]}})); err != nil {
			return 0, 0, err
		}
		if err := c.await(ctx, c.all, key, epoch+1); err != nil {
			return 0, 0, err
		}
		if t := time.Since(start).Seconds(); key == from || t < took {
			took = t
		}
	}
	after, err := c.server.cpu()
	return took, float64((after - before).Microseconds()) / float64((to-from)*len(c.all)), err
}

// storm ends half of the streams and opens them again at once, as the same processes. Memory is compared with that of rest before.
func (c *crowd) storm(ctx context.Context) ([]Row, error) {
	idle, err := c.server.settled(ctx)
	if err != nil {
		return nil, err
	}
	some := c.all[:len(c.all)/2]
	for _, w := range some {
		w.stop()
	}
	for _, w := range some {
		<-w.ended
	}
	if err := c.server.forgetPeak(); err != nil {
		return nil, err
	}
	cpu, err := c.server.cpu()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := c.connect(ctx, some); err != nil {
		return nil, err
	}
	took := time.Since(start).Seconds()
	peak, err := c.server.memory("VmHWM")
	if err != nil {
		return nil, err
	}
	after, err := c.server.cpu()
	name := fmt.Sprintf("reconnect_%d", len(some))
	return []Row{
		atMost(name, took, "s", barReconnect),
		{name + "_memory", peak / 1000, "MB", "idle", peak / idle, fmt.Sprintf("<= %g", barStorm), peak <= barStorm*idle, 0},
		{name + "_cpu", float64((after - cpu).Microseconds()) / float64(len(some)), "us", "load average " + load(), 0, "", true, 0},
	}, err
}
