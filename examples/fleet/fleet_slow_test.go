//go:build slow

package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// binaries builds rotor and the demo.
func binaries(t *testing.T) (rotor, fleet string) {
	t.Helper()
	dir := t.TempDir()
	for _, b := range []struct{ name, pkg string }{{"rotor", "../../cmd/rotor"}, {"fleet", "."}} {
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, b.name), b.pkg).CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v, %s", b.name, err, out)
		}
	}
	return filepath.Join(dir, "rotor"), filepath.Join(dir, "fleet")
}

// small is the demo with 5 instances. The directory of the run shows in the command line of all its processes.
func small(t *testing.T, rotor, fleet string, args ...string) (cmd *exec.Cmd, work, report string) {
	t.Helper()
	work = filepath.Join(t.TempDir(), "work")
	report = filepath.Join(t.TempDir(), "report.json")
	model := filepath.Join(t.TempDir(), "model")
	if err := os.WriteFile(model, bytes.Repeat([]byte("weights "), 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), fleet, append([]string{"run", "-rotor", rotor, "-model", model, "-work", work, "-instances", "5", "-rounds", "1",
		"-rate", "20", "-lease", "5s", "-report", report}, args...)...)
	return cmd, work, report
}

type report struct {
	Instances          int                 `json:"instances"`
	Operations         int64               `json:"operations"`
	FailedOperations   int64               `json:"failed_operations"`
	MinimumPerInstance int64               `json:"minimum_per_instance"`
	Acknowledged       map[string]float64  `json:"acknowledged_ms"`
	Primary            map[string]float64  `json:"primary_ms"`
	Retried            map[string]int64    `json:"retried_by_reason"`
	Refusals           []map[string]string `json:"refusals"`
	Lost               int64               `json:"lost_records"`
	Secrets            int64               `json:"secrets_in_logs"`
}

// read reads a report, which has exactly the fields that it promises.
func read(t *testing.T, path string) (r report) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	if len(fields) != 10 || !slices.Equal(slices.Sorted(maps.Keys(r.Primary)), []string{"p50", "p99"}) || !slices.Equal(slices.Sorted(maps.Keys(r.Acknowledged)), []string{"p50", "p99"}) {
		t.Fatalf("%s", b)
	}
	return r
}

// alive are the processes whose command line names a directory.
func alive(t *testing.T, dir string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(dir)) { // an error: it has just ended
			pids = append(pids, path)
		}
	}
	return pids
}

// TestSmall runs the whole demo, every fault with it.
func TestSmall(t *testing.T) {
	rotor, fleet := binaries(t)
	cmd, work, path := small(t, rotor, fleet)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(out, "\r\x1b") {
		t.Error("plain output moves a cursor")
	}
	r := read(t, path)
	if r.Instances != 7 || r.Operations < 7*r.MinimumPerInstance || r.MinimumPerInstance < 1 || r.FailedOperations+r.Lost+r.Secrets != 0 {
		t.Errorf("%+v", r)
	}
	if r.Retried["below_floor"] == 0 || r.Acknowledged["p50"] <= 0 || r.Primary["p99"] < r.Acknowledged["p50"] {
		t.Errorf("%+v", r)
	}
	for _, want := range []string{"lease_over", "in_use", "version_destroyed", "below_floor", "does not verify"} {
		if !slices.ContainsFunc(r.Refusals, func(f map[string]string) bool { return strings.Contains(f["reason"], want) && f["what"] != "" }) {
			t.Errorf("nothing was refused as %s: %v", want, r.Refusals)
		}
	}
	if pids := alive(t, work); len(pids) > 0 {
		t.Errorf("left behind: %v", pids)
	}
	if _, err := os.Stat(work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// TestPlanted plants a failed operation, a lost record and a secret in a log. Each alone ends the demo with a failure that says so.
func TestPlanted(t *testing.T) {
	rotor, fleet := binaries(t)
	for _, c := range []struct {
		plant, says string
		want        report
	}{
		{"operation", "1 operations failed", report{FailedOperations: 1}},
		{"record", "1 records were lost", report{Lost: 1}},
		{"secret", "secrets stand in logs", report{Secrets: 1}},
	} {
		t.Run(c.plant, func(t *testing.T) {
			cmd, work, path := small(t, rotor, fleet, "-brief", "-minimum", "8", "-plant", c.plant)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !bytes.Contains(out, []byte(c.says)) {
				t.Fatalf("%v: %s", err, out)
			}
			r := read(t, path)
			if r.FailedOperations != c.want.FailedOperations || r.Lost != c.want.Lost || (r.Secrets > 0) != (c.want.Secrets > 0) {
				t.Errorf("%+v", r)
			}
			if pids := alive(t, work); len(pids) > 0 {
				t.Errorf("left behind: %v", pids)
			}
		})
	}
}

// TestNothingStays ends the demo by Ctrl-C, SIGTERM and a crash, in the middle of its load and while an instance is frozen: no process outlives it.
func TestNothingStays(t *testing.T) {
	rotor, fleet := binaries(t)
	for name, c := range map[string]struct {
		signal syscall.Signal
		after  string
	}{
		"ctrl-c": {syscall.SIGINT, "have joined"}, "terminated": {syscall.SIGTERM, "were killed (-9)"}, "crashed": {syscall.SIGKILL, "were killed (-9)"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, work, _ := small(t, rotor, fleet)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines, sent := bufio.NewScanner(out), false
			for lines.Scan() { // ends when the last process that has the pipe has ended
				if !sent && strings.Contains(lines.Text(), c.after) {
					if n := len(alive(t, work)); n < 7 {
						t.Errorf("only %d processes are there", n)
					}
					sent = true
					if err := cmd.Process.Signal(c.signal); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := cmd.Wait(); err == nil || !sent {
				t.Errorf("it ended as if nothing had happened; signaled: %v", sent)
			}
			for len(alive(t, work)) > 0 { // the kernel ends orphans on its own time; the test's deadline bounds this
				if t.Context().Err() != nil {
					t.Fatal("left behind")
				}
			}
			_, err = os.Stat(work)
			if c.signal != syscall.SIGKILL && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory is left: %v", err)
			}
		})
	}
}
