package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// The bars of the bench, in milliseconds and megabytes.
const (
	acknowledgedBar = 250
	primaryBar      = 500
	memoryBar       = 80
	cpuBar          = 50 // percent of the machine
	minRotations    = 30 // fewer have no 99th percentile worth the name
)

// row is one measurement: value in unit, compared with what stands in against (ratio = value / against), which has to be within bar.
type row struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Against string  `json:"against"`
	Ratio   float64 `json:"ratio"`
	Bar     string  `json:"bar"`
	OK      bool    `json:"ok"`
}

// atMost is a row whose value may not pass a limit.
func atMost(name string, value float64, unit string, limit float64) row {
	return row{name, round(value), unit, fmt.Sprintf("%g %s", limit, unit), round(value / limit), "<= 1", value <= limit}
}

func round(v float64) float64 {
	f, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'f', 3, 64), 64) // what was formatted parses
	return f
}

// benchCommand measures how long a rotation takes in a fleet without faults, and what the server needs for it.
func benchCommand(ctx context.Context, args []string) (err error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.rotor, "rotor", "bin/rotor", "the rotor command")
	f.StringVar(&o.model, "model", "", "model file to serve; default: 1 MiB of zeros")
	f.IntVar(&o.instances, "instances", 50, "number of instances")
	f.Float64Var(&o.rate, "rate", 2, "operations a second of each instance, an open loop")
	f.DurationVar(&o.lease, "lease", 10*time.Second, "life of a lease")
	rotations := f.Int("rotations", 40, "rotations that are measured, at least 30, half of them of each fleet key")
	asJSON := f.Bool("json", false, "print the rows as JSON on standard output, everything else on standard error")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *rotations < minRotations || o.instances < 2 || o.rate <= 0 {
		return fmt.Errorf("at least %d rotations, 2 instances and a rate above 0", minRotations)
	}
	o.quiet = true
	d := newDemo(o, newScreen(os.Stderr))
	if err := d.prepareBench(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.cleanUp(err)) }()
	rows, err := d.bench(ctx, *rotations)
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetEscapeHTML(false) // bars have < in them
		return e.Encode(rows)
	}
	for _, r := range rows {
		fmt.Printf("%-28s %10g %-8s bar %-8s %v\n", r.Name, r.Value, r.Unit, r.Against, r.OK)
	}
	return nil
}

func (d *demo) prepareBench() (err error) {
	if d.work, err = os.MkdirTemp("", "rotor-bench-"); err != nil {
		return err
	}
	if d.model == "" {
		d.model = filepath.Join(d.work, "zeros")
		if err := os.WriteFile(d.model, make([]byte, 1<<20), 0o600); err != nil {
			return err
		}
	}
	return d.prepare()
}

// warmUp is how long the fleet serves before anything is measured, and between: gap is between two rotations.
const (
	warmUp = 3 * time.Second
	gap    = 250 * time.Millisecond
)

func (d *demo) bench(ctx context.Context, rotations int) ([]row, error) {
	for _, step := range []func(context.Context) error{d.startServer, d.createKeys, d.encryptModel, d.startBoard, d.openDesk, d.startFleet} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	nap(ctx, warmUp)
	began, cpu, ops := time.Now(), d.cpu(), d.operations()
	for n := range rotations {
		if err := d.rotate(ctx, []string{keyRecords, keyPrompts}[n%2], true); err != nil {
			return nil, err
		}
		nap(ctx, gap)
	}
	wall := time.Since(began).Seconds()
	used := (d.cpu() - cpu).Seconds() / wall / float64(runtime.NumCPU()) * 100
	rate := float64(d.operations()-ops) / wall
	rss, peak, err := memory(d.server.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	if d.report.FailedOperations > 0 {
		return nil, fmt.Errorf("%d operations failed", d.report.FailedOperations)
	}
	acknowledged, primary := newQuantiles(d.acknowledged), newQuantiles(d.primary)
	d.step("%d instances, open loop of %g operations a second (%.1f were made), %d rotations in %.0f s, %.0f %% of %d cores used",
		d.instances, d.rate*float64(d.instances), rate, rotations, wall, used, runtime.NumCPU())
	return []row{
		atMost("rotate_acknowledged_p50", acknowledged.P50, "ms", acknowledgedBar),
		atMost("rotate_acknowledged_p99", acknowledged.P99, "ms", acknowledgedBar),
		atMost("rotate_primary_p50", primary.P50, "ms", primaryBar),
		atMost("rotate_primary_p99", primary.P99, "ms", primaryBar),
		atMost("server_memory_peak", peak, "MB", memoryBar),
		atMost("server_memory_resident", rss, "MB", memoryBar),
		atMost("cpu_used", used, "%", cpuBar),
		{"operations_offered", d.rate * float64(d.instances), "1/s", "", 0, "", true},
		{"operations_made", round(rate), "1/s", "", 0, "", true},
		{"rotations", float64(rotations), "", fmt.Sprint(minRotations), round(float64(rotations) / minRotations), ">= 1", rotations >= minRotations},
	}, nil
}

// operations counts what the fleet has finished.
func (d *demo) operations() (n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.members {
		for _, c := range p.count().Counts {
			n += c
		}
	}
	return n
}

// cpu is what all processes of the demo, itself among them, have used since they started.
func (d *demo) cpu() (total time.Duration) {
	d.mu.Lock()
	pids := []int{d.server.cmd.Process.Pid, d.board.cmd.Process.Pid, os.Getpid()}
	for _, p := range d.members {
		pids = append(pids, p.cmd.Process.Pid)
	}
	d.mu.Unlock()
	for _, pid := range pids {
		total += cpuOf(pid)
	}
	return total
}

// cpuOf reads the user and system time of a process from proc(5), in ticks of 10 ms; 0 for one that has ended.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name before may hold anything
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime
		n, _ := strconv.ParseInt(f, 10, 64) // the kernel wrote it
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory reads how much of a process is resident now and was at most, in MB.
func memory(pid int) (rss, peak float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for l := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(l, "VmRSS: %f", &kib); n == 1 {
			rss = kib * 1024 / 1e6
		}
		if n, _ := fmt.Sscanf(l, "VmHWM: %f", &kib); n == 1 {
			peak = kib * 1024 / 1e6
		}
	}
	if rss == 0 || peak == 0 {
		return 0, 0, errors.New("the system does not say how much memory the server uses")
	}
	return rss, peak, nil
}
