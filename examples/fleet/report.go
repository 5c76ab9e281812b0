package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"
)

// report is demo-report.json.
type report struct {
	Instances          int              `json:"instances"`
	Operations         int64            `json:"operations"`
	FailedOperations   int64            `json:"failed_operations"`
	MinimumPerInstance int64            `json:"minimum_per_instance"`
	Acknowledged       quantiles        `json:"acknowledged_ms"`
	Primary            quantiles        `json:"primary_ms"`
	RetriedByReason    map[string]int64 `json:"retried_by_reason"`
	Refusals           []refusal        `json:"refusals"`
	LostRecords        int64            `json:"lost_records"`
	SecretsInLogs      int64            `json:"secrets_in_logs"`
}

// quantiles are of durations, in milliseconds.
type quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// refusal is something that rotor did not do, as it should.
type refusal struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// newQuantiles uses the nearest rank.
func newQuantiles(d []time.Duration) quantiles {
	if len(d) == 0 {
		return quantiles{}
	}
	d = slices.Sorted(slices.Values(d))
	at := func(q float64) float64 {
		i := int(math.Ceil(q*float64(len(d)))) - 1
		return math.Round(float64(d[max(i, 0)].Microseconds())/100) / 10
	}
	return quantiles{at(0.5), at(0.99)}
}

func (r report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// failure says why the demo as a whole failed; nil when it did not.
func (r report) failure() error {
	switch {
	case r.FailedOperations > 0:
		return fmt.Errorf("%d operations failed", r.FailedOperations)
	case r.LostRecords > 0:
		return fmt.Errorf("%d records were lost", r.LostRecords)
	case r.SecretsInLogs > 0:
		return fmt.Errorf("%d secrets stand in logs", r.SecretsInLogs)
	}
	return nil
}

// screen shows progress: a line that is rewritten on a terminal, a plain line per step elsewhere.
type screen struct {
	mu       sync.Mutex // guards what follows
	out      io.Writer
	terminal bool
	width    int // of the terminal, in characters
	began    time.Time
	status   string
}

// newScreen shows progress on a file.
func newScreen(f *os.File) *screen {
	s := &screen{out: f, terminal: term.IsTerminal(int(f.Fd())), width: 80, began: time.Now()}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		s.width = w
	}
	return s
}

// step prints something that has happened.
func (s *screen) step(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintf(s.out, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
	s.draw()
}

// live replaces the status line.
func (s *screen) live(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		return
	}
	s.erase()
	if s.status = fmt.Sprintf(format, args...); len(s.status) >= s.width { // a line that wraps could not be taken back
		s.status = s.status[:s.width-1]
	}
	s.draw()
}

func (s *screen) erase() {
	if s.terminal && s.status != "" {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
}

func (s *screen) draw() {
	if s.terminal {
		fmt.Fprint(s.out, s.status)
	}
}
