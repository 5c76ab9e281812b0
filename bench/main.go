// Command bench measures rotor against the bars of the project and prints a table and a report. Ratios are of one run: what is compared
// takes turns. The best of several rounds counts, because noise only ever adds time; for fields the median of the rounds' ratios. A missed
// bar is printed, not an error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"
)

// Row is one measurement. Ratio is Value to what Against names; Bar is what the ratio has to be, empty for information.
type Row struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Against string  `json:"against"`
	Ratio   float64 `json:"ratio"`
	Bar     string  `json:"bar"`
	OK      bool    `json:"ok"`

	noise float64 // (worst - best) / best of the rounds; 0: measured once
}

// options are the flags.
type options struct {
	out    string
	fleet  string
	rotor  string // the rotor command
	dir    string
	rounds int
	size   int64 // of the file that is decrypted, in bytes
	large  int64 // of the file that must not be in memory, in bytes
	only   string

	watchers int
	profiles string // directory for profiles of the watchers' server; empty: none
}

// part is a group of rows.
type part struct {
	name string
	run  func(context.Context, options) ([]Row, error)
}

func parts() []part {
	return []part{{"files", files}, {"rewrap", rewrap}, {"fields", fields}, {"memory", memory}, {"store", engine}, {"postgres", onPostgres}, {"etcd", onEtcd}, {"watchers", watchers}, {"vault", vault}, {"fleet", fleet}}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) == 3 && args[0] == childWord {
		return child(ctx, args[1], args[2])
	}
	if len(args) == 1 && args[0] == bareWord {
		return bareServer(ctx)
	}
	if len(args) == 2 && args[0] == bareVaultWord {
		return bareVaultServer(ctx, args[1])
	}
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.out, "out", "bench-report.json", "the report")
	f.StringVar(&o.fleet, "fleet", "", "command that measures a fleet and prints rows as JSON; empty: none")
	f.StringVar(&o.only, "only", "", "comma-separated parts: files, rewrap, fields, memory, store, postgres, etcd, watchers, vault, fleet; empty: all")
	f.StringVar(&o.rotor, "rotor", "", "the rotor command; empty: no watchers")
	f.IntVar(&o.watchers, "watchers", 10_000, "instances that watch, each with its own connection")
	f.StringVar(&o.profiles, "profiles", "", "directory for profiles of the servers of watchers and of Vault's clients; empty: none")
	f.IntVar(&o.rounds, "rounds", 9, "rounds of each measurement")
	f.Int64Var(&o.size, "size", 256<<20, "bytes of the file that is decrypted")
	f.Int64Var(&o.large, "large", 2<<30, "bytes of the file that is not held in memory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "rotor-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	var rows []Row
	for _, p := range parts() {
		if o.only != "" && !strings.Contains(","+o.only+",", ","+p.name+",") {
			continue
		}
		start := time.Now()
		got, err := p.run(ctx, o)
		if err != nil {
			return fmt.Errorf("measure %s: %w", p.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s measured in %s\n", p.name, time.Since(start).Round(time.Millisecond))
		rows = append(rows, got...)
	}
	table(rows)
	return report(o.out, rows)
}

func table(rows []Row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "what\tvalue\tratio\tagainst\tbar\t\tnoise")
	missed := 0
	for _, r := range rows {
		verdict := map[bool]string{true: "ok", false: "MISSED"}[r.OK]
		if r.Bar == "" {
			verdict = ""
		} else if !r.OK {
			missed++
		}
		noise := ""
		if r.noise > 0 {
			noise = fmt.Sprintf("%.0f %%", 100*r.noise)
		}
		_, _ = fmt.Fprintf(w, "%s\t%.4g %s\t%.3g\t%s\t%s\t%s\t%s\n", r.Name, r.Value, r.Unit, r.Ratio, r.Against, r.Bar, verdict, noise)
	}
	_ = w.Flush() // a table that nobody can read is nobody's loss; the report is checked
	if missed > 0 {
		fmt.Printf("%d bars MISSED\n", missed)
	}
}

func report(path string, rows []Row) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	e.SetEscapeHTML(false) // bars have < in them
	e.SetIndent("", "  ")
	return errors.Join(e.Encode(rows), f.Close())
}

// atLeast is a row whose ratio to against must reach a bar; a bar of 0 is for information.
func atLeast(name string, m, peer measured, against string, bar float64) Row {
	r := Row{name, m.rate(), m.unit, against, m.rate() / peer.rate(), "", true, m.noise()}
	if bar > 0 {
		r.Bar, r.OK = fmt.Sprintf(">= %g", bar), r.Ratio >= bar
	}
	return r
}

// atMost is a row whose value must not pass a limit.
func atMost(name string, value float64, unit string, limit float64) Row {
	return Row{name, value, unit, fmt.Sprintf("%g %s", limit, unit), value / limit, "<= 1", value <= limit, 0}
}

// measured is one thing in several rounds.
type measured struct {
	name  string
	f     func() error
	work  float64 // of one call, in units
	unit  string  // of work a second
	times []time.Duration
}

func (m measured) best() time.Duration {
	best := m.times[0]
	for _, t := range m.times {
		best = min(best, t)
	}
	return best
}

func (m measured) rate() float64 { return m.work / m.best().Seconds() }

func (m measured) noise() float64 {
	worst := m.times[0]
	for _, t := range m.times {
		worst = max(worst, t)
	}
	return float64(worst-m.best()) / float64(m.best())
}

// takeTurns runs each in every round.
func takeTurns(ctx context.Context, rounds int, all ...*measured) error {
	for range rounds {
		for _, m := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			start := time.Now()
			if err := m.f(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			m.times = append(m.times, time.Since(start))
		}
	}
	return nil
}

// fleet runs the program that measures rotations; its rows are taken as they are. That it cannot run is a missed bar.
func fleet(ctx context.Context, o options) ([]Row, error) {
	if o.fleet == "" {
		return nil, nil
	}
	words := strings.Fields(o.fleet)
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.Stderr = os.Stderr
	out, err := c.Output()
	var rows []Row
	if err == nil {
		err = json.Unmarshal(out, &rows)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: measure the fleet:", err)
		return []Row{{Name: "fleet", Against: o.fleet, Bar: "it runs"}}, nil
	}
	return rows, nil
}
