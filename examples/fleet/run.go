package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rotorkms/rotor"
)

// options say how large the demo is.
type options struct {
	rotor     string // the rotor command
	model     string
	work      string
	instances int
	rounds    int     // rotations of each key under load
	rate      float64 // operations a second and instance
	minimum   int64   // operations that each instance has to finish
	lease     time.Duration
	keep      bool
	brief     bool // without faults
	plant     string
	quiet     bool // instances do not probe their keys between operations
	report    string
}

func runCommand(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.StringVar(&o.rotor, "rotor", "rotor", "the rotor command")
	f.StringVar(&o.model, "model", "", "model file to serve")
	f.StringVar(&o.work, "work", "", "directory for everything; default: a new one that is removed at the end")
	f.IntVar(&o.instances, "instances", 50, "number of instances")
	f.IntVar(&o.rounds, "rounds", 4, "rotations of each key under load")
	f.Float64Var(&o.rate, "rate", 8, "operations a second of each instance")
	f.Int64Var(&o.minimum, "minimum", 40, "operations that each instance has to finish")
	f.DurationVar(&o.lease, "lease", 8*time.Second, "life of a lease; a busy machine needs some")
	f.BoolVar(&o.keep, "keep", false, "keep the directory")
	f.BoolVar(&o.brief, "brief", false, "without faults, re-encryption and destruction")
	f.StringVar(&o.plant, "plant", "", "plant faults that the demo has to find, comma-separated: operation, record, secret")
	f.StringVar(&o.report, "report", "demo-report.json", "where the report goes")
	if err := f.Parse(args); err != nil {
		return err
	}
	return run(ctx, o)
}

// run does the whole demo and leaves nothing running.
func run(ctx context.Context, o options) (err error) {
	d := newDemo(o, newScreen(os.Stdout))
	if err := d.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.cleanUp(err)) }()
	log, err := os.OpenFile(filepath.Join(d.work, "logs", "demo.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // each line was written by itself
	d.out = io.MultiWriter(os.Stdout, log)
	for _, step := range d.story() {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return d.finish()
}

func newDemo(o options, s *screen) *demo {
	d := &demo{
		options: o, screen: s, members: map[string]*process{}, past: map[string]map[string]int64{}, addresses: map[string]string{}, frozen: map[string]bool{},
	}
	d.report.RetriedByReason, d.report.Refusals = map[string]int64{}, []refusal{}
	return d
}

// story is the demo in order.
func (d *demo) story() []func(context.Context) error {
	if d.brief {
		return []func(context.Context) error{
			d.startServer, d.createKeys, d.encryptModel, d.startBoard, d.openDesk, d.startFleet,
			d.rotateUnderLoad, d.settle, d.checkRecords, d.verifyAudit, d.reconcile, d.scanLogs,
		}
	}
	return []func(context.Context) error{
		d.startServer, d.createKeys, d.encryptModel, d.startBoard, d.openDesk, d.startFleet,
		d.rotateUnderLoad, d.rotateUnderFaults, d.freezeUnderBlock, d.freezeUnderFence, d.restartServer,
		d.rollBack, d.reencrypt, d.rewrapModel, d.destroyOld,
		d.settle, d.checkRecords, d.verifyAudit, d.reconcile, d.scanLogs,
	}
}

// demo is one run.
type demo struct {
	options
	*screen
	report report

	server    *process
	address   string // of the server
	vkey      string // pins its audit log
	admin     *rotor.Client
	board     *process
	boardAddr string
	desk      *rotor.Client // the demo as an instance
	reader    *writer
	kept      []byte // a ciphertext of version 1 of records
	digest    string // of the model, hex
	sealed    string // path of the encrypted model

	acknowledged, primary []time.Duration
	rotations             int // that were begun and came to their end
	boots                 int // processes of instances that became ready
	records               int // that were acknowledged to their writers
	destroyed             int // versions
	rollbacks, campaigns  int
	oldModel              string // a copy of the encrypted model under version 1

	mu        sync.Mutex // guards what follows
	members   map[string]*process
	addresses map[string]string
	past      map[string]map[string]int64 // operations of processes that have ended, by instance and kind
	killed    int                         // processes that were killed
	counted   []finished                  // what the processes did that ended in order
	frozen    map[string]bool             // instances that were frozen, so may be refused
	secrets   [][]byte                    // that must stand in no log
}

func (d *demo) prepare() error {
	if d.model == "" {
		return errors.New("name a model file with -model")
	}
	var err error
	if d.work == "" {
		if d.work, err = os.MkdirTemp("", "rotor-fleet-"); err != nil {
			return err
		}
	}
	if d.work, err = filepath.Abs(d.work); err != nil {
		return err
	}
	for _, sub := range []string{"logs", "tokens", "identities", "journal", "issued"} {
		if err := os.MkdirAll(filepath.Join(d.work, sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// cleanUp ends every process. The directory stays when something went wrong.
func (d *demo) cleanUp(failed error) error {
	d.mu.Lock()
	all := []*process{d.board, d.server}
	for _, p := range d.members {
		all = append(all, p)
	}
	d.mu.Unlock()
	if d.desk != nil {
		_ = d.desk.Close() // the server may be gone already
	}
	if d.admin != nil {
		_ = d.admin.Close() // an administrator holds nothing
	}
	for _, p := range all {
		if p != nil {
			select {
			case <-p.done:
			default:
				_ = p.kill() // it may have ended just now
			}
		}
	}
	if !d.keep && (failed == nil || errors.Is(failed, context.Canceled)) {
		return os.RemoveAll(d.work)
	}
	d.step("logs and files are in %s", d.work)
	return nil
}

// finish writes the report and says whether all went well.
func (d *demo) finish() error {
	r := &d.report
	r.Instances, r.MinimumPerInstance = d.instances, d.minimum
	r.Acknowledged, r.Primary = newQuantiles(d.acknowledged), newQuantiles(d.primary)
	if err := r.write(d.options.report); err != nil {
		return err
	}
	d.step("%d instances, %d operations, %d failed; %d rotations, acknowledged by all in %.0f ms (p50) and %.0f ms (p99), primary everywhere in %.0f and %.0f ms",
		r.Instances, r.Operations, r.FailedOperations, d.rotations, r.Acknowledged.P50, r.Acknowledged.P99, r.Primary.P50, r.Primary.P99)
	d.step("%d records, %d lost; %d secrets in logs; %d refusals, all expected; report in %s", d.records, r.LostRecords, r.SecretsInLogs, len(r.Refusals), d.options.report)
	return r.failure()
}
