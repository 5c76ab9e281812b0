package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// pollEvery is how often the demo asks how far a rotation is.
const pollEvery = 5 * time.Millisecond

func ref(name string) *rotorv1.KeyRef { return &rotorv1.KeyRef{Name: name} }

// progress asks how far a key's rotation is; it waits for a server that is away.
func (d *demo) progress(ctx context.Context, key string) (*rotorv1.ProgressResponse, error) {
	for {
		p, err := d.admin.Admin().Keys.Progress(ctx, connect.NewRequest(ref(key)))
		if err == nil {
			return p.Msg, nil
		}
		if code := rotor.CodeOf(err); code != "unavailable" || ctx.Err() != nil {
			return nil, fmt.Errorf("progress of %s: %w", key, err)
		}
		nap(ctx, pollEvery)
	}
}

func nap(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// begin starts a rotation, or aims the key back at a version.
func (d *demo) begin(ctx context.Context, key string, back uint32) (target uint32, err error) {
	k, err := d.admin.Admin().Keys.Rotate(ctx, connect.NewRequest(&rotorv1.RotateRequest{Key: ref(key), BackTo: back}))
	if err != nil {
		return 0, fmt.Errorf("rotate %s: %w", key, err)
	}
	if back != 0 {
		return back, nil
	}
	return k.Msg.GetTarget(), nil
}

// reach waits until a version is primary everywhere. acknowledged is when all had it, primary when all use it.
func (d *demo) reach(ctx context.Context, key string, target uint32) (acknowledged, primary time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		p, err := d.progress(ctx, key)
		if err != nil {
			return acknowledged, primary, err
		}
		now := time.Now()
		if acknowledged.IsZero() && (p.GetKey().GetPrimary() == target || p.GetStep() == "wait" && strings.Join(p.GetWaiting(), "") == "jwks-margin") {
			acknowledged = now
		}
		if p.GetKey().GetPrimary() == target && len(p.GetBehind()) == 0 {
			return acknowledged, now, nil
		}
		d.live("%s: version %d, %s %s", key, target, p.GetStep(), strings.Join(p.GetWaiting(), " "))
		nap(ctx, pollEvery)
	}
}

// rotate rotates a key from beginning to end. Only those of fleet keys without faults are measured.
func (d *demo) rotate(ctx context.Context, key string, measured bool) error {
	began := time.Now()
	target, err := d.begin(ctx, key, 0)
	if err != nil {
		return err
	}
	acknowledged, primary, err := d.reach(ctx, key, target)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rotations++
	if measured {
		d.acknowledged, d.primary = append(d.acknowledged, acknowledged.Sub(began)), append(d.primary, primary.Sub(began))
	}
	return nil
}

// rotateUnderLoad rotates every key several times.
func (d *demo) rotateUnderLoad(ctx context.Context) error {
	for range d.rounds {
		for _, key := range []string{keyRecords, keyPrompts, keyModels, keyTokens} {
			if err := d.rotate(ctx, key, key == keyRecords || key == keyPrompts); err != nil {
				return err
			}
		}
	}
	q := newQuantiles(d.acknowledged)
	d.step("%d rotations under load, no faults so far: acknowledged by all in %.0f ms (p50), %.0f ms (p99)", d.rotations, q.P50, q.P99)
	return nil
}

// rotateUnderFaults rotates while instances die, one of them between encryption and write, and come back, and new ones join.
func (d *demo) rotateUnderFaults(ctx context.Context) error {
	kills := 0
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { // ends with stop
		done <- d.killSome(ctx, stop, &kills)
	}()
	var failed error
	for range d.rounds {
		for _, key := range []string{keyRecords, keyPrompts, keyTokens, keyModels} {
			if failed = d.rotate(ctx, key, false); failed != nil {
				break
			}
		}
	}
	close(stop)
	if err := <-done; err != nil || failed != nil {
		return errors.Join(failed, err)
	}
	name := nodeName(d.instances)
	if err := d.launch(ctx, name); err != nil {
		return err
	}
	if err := d.awaitAll(ctx); err != nil {
		return err
	}
	d.instances++
	d.step("%d rotations more while %d instances were killed (-9) and came back, one between encryption and write; %s is new", 4*d.rounds, kills, name)
	return nil
}

// killSome kills random instances one after the other, and starts each again.
func (d *demo) killSome(ctx context.Context, stop <-chan struct{}, kills *int) error {
	for {
		name := nodeName(rand.IntN(d.instances))
		if err := d.killOne(ctx, name, *kills == 0); err != nil {
			return err
		}
		*kills++
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// killOne kills one instance, on request between encryption and write, and starts it again.
func (d *demo) killOne(ctx context.Context, name string, writing bool) error {
	p := d.member(name)
	var held line
	if writing {
		var err error
		if held, err = d.holdBeforeWrite(ctx, p); err != nil {
			return err
		}
	}
	if err := p.kill(); err != nil {
		return err
	}
	d.retire(name, p)
	d.mu.Lock()
	d.killed++
	d.mu.Unlock()
	if writing {
		if err := d.neverWritten(ctx, held); err != nil {
			return err
		}
	}
	if err := d.boot(name); err != nil {
		return err
	}
	return d.awaitOne(ctx, name, d.member(name))
}

// holdBeforeWrite lets an instance stop at its next write, with the ciphertext made and not sent.
func (d *demo) holdBeforeWrite(ctx context.Context, p *process) (line, error) {
	if err := p.signal(syscall.SIGUSR1); err != nil {
		return line{}, err
	}
	select {
	case l := <-p.held:
		return l, nil
	case <-time.After(patience):
		return line{}, fmt.Errorf("%s did not come to a write", p.name)
	case <-p.done:
		return line{}, fmt.Errorf("%s ended: %w", p.name, p.failure())
	case <-ctx.Done():
		return line{}, ctx.Err()
	}
}

// neverWritten checks that the revision that a killed process had encrypted is not on the board.
func (d *demo) neverWritten(ctx context.Context, l line) error {
	r, found, err := d.onBoard(ctx, l.What)
	if err == nil && found && r.Revision >= l.Number {
		err = fmt.Errorf("record %s has revision %d, whose writer was killed before it wrote", l.What, r.Revision)
	}
	return err
}

func (d *demo) member(name string) *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.members[name]
}

// retire adds up what a process that has ended did.
func (d *demo) retire(name string, p *process) {
	last := p.count()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past[name] == nil {
		d.past[name] = map[string]int64{}
	}
	for kind, n := range last.Counts {
		d.past[name][kind] += n
	}
	for why, n := range last.Retries {
		d.report.RetriedByReason[why] += n
	}
	delete(d.addresses, name)
}

// frozenFor is longer than a lease.
func (d *demo) frozenFor() time.Duration { return d.lease * 5 / 4 }

// freezeUnderBlock stops an instance for longer than its lease: rotation waits for it by name, and nothing is refused.
func (d *demo) freezeUnderBlock(ctx context.Context) error {
	name := nodeName(1)
	p := d.member(name)
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	frozen, before := time.Now(), d.total()
	target, err := d.begin(ctx, keyRecords, 0)
	if err != nil {
		return err
	}
	for time.Since(frozen) < d.frozenFor() {
		r, err := d.progress(ctx, keyRecords)
		if err != nil {
			return err
		}
		if r.GetKey().GetPrimary() == target {
			return fmt.Errorf("block: version %d became primary without %s", target, name)
		}
		nap(ctx, 50*time.Millisecond)
	}
	r, err := d.progress(ctx, keyRecords)
	if err != nil {
		return err
	}
	if !slices.Equal(r.GetWaiting(), []string{name}) {
		return fmt.Errorf("block: rotation waits for %v instead of %s", r.GetWaiting(), name)
	}
	served := d.total() - before
	if served == 0 {
		return errors.New("block: nobody worked while the rotation waited")
	}
	d.mu.Lock()
	d.frozen[name] = true // its lease for prompts, a key in fence mode, is over when it thaws; records it may use
	d.mu.Unlock()
	if err := p.signal(syscall.SIGCONT); err != nil {
		return err
	}
	if _, _, err := d.reach(ctx, keyRecords, target); err != nil {
		return err
	}
	d.rotations++
	if err := d.rejoined(ctx, p, keyRecords, target); err != nil {
		return fmt.Errorf("block: %w", err)
	}
	if err := d.works(ctx, p, "write"); err != nil {
		return fmt.Errorf("block: %w", err)
	}
	d.step("block: %s was frozen for %s; rotation waited and named it while %d operations went on; thawed, it caught up, nothing under records was refused",
		name, d.frozenFor(), served)
	return nil
}

// works waits until a process has finished one more operation of a kind.
func (d *demo) works(ctx context.Context, p *process, kind string) error {
	end, before := time.Now().Add(patience), p.count().Counts[kind]
	for p.count().Counts[kind] == before {
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("%s did no %s any more", p.name, kind)
		}
		nap(ctx, 50*time.Millisecond)
	}
	return nil
}

// total is how many operations the instances have finished.
func (d *demo) total() (n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.members {
		n += sum(d.done(name))
	}
	return n
}

// done is what an instance has finished, by kind, in all its processes; d.mu is held.
func (d *demo) done(name string) map[string]int64 {
	all := maps.Clone(d.past[name])
	if all == nil {
		all = map[string]int64{}
	}
	for kind, n := range d.members[name].count().Counts {
		all[kind] += n
	}
	return all
}

func sum(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// freezeUnderFence stops an instance for longer than its lease: rotation goes on without it, and it may not use the key until it has
// joined again.
func (d *demo) freezeUnderFence(ctx context.Context) error {
	name := nodeName(2)
	p := d.member(name)
	d.mu.Lock()
	d.frozen[name] = true
	d.mu.Unlock()
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	began := time.Now()
	target, err := d.begin(ctx, keyPrompts, 0)
	if err != nil {
		return err
	}
	if _, _, err := d.reach(ctx, keyPrompts, target); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	took := time.Since(began)
	d.rotations++
	if err := p.signal(syscall.SIGCONT); err != nil {
		return err
	}
	if err := d.rejoined(ctx, p, keyPrompts, target); err != nil {
		return err
	}
	if err := d.works(ctx, p, "infer"); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if !d.sawLeaseOver(name) {
		return fmt.Errorf("fence: %s thawed and was not told that its lease is over", name)
	}
	d.step("fence: %s was frozen; rotation went on without it after %.1f s; thawed, it got lease_over until it had joined again", name, took.Seconds())
	return nil
}

// sawLeaseOver says whether an instance was refused its key in fence mode.
func (d *demo) sawLeaseOver(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.report.Refusals, func(r refusal) bool {
		return r.Reason == "lease_over" && strings.Contains(r.What, "by "+name+",")
	})
}

// rejoined waits until a process uses a version again.
func (d *demo) rejoined(ctx context.Context, p *process, key string, version uint32) error {
	end := time.Now().Add(patience)
	for p.count().Version[key] != version {
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("%s did not come back to version %d of %s", p.name, version, key)
		}
		nap(ctx, 50*time.Millisecond)
	}
	return nil
}

// restartServer kills the server in the middle of a rotation and starts it again. The fleet works on meanwhile. One instance is frozen
// for so long, so that the rotation cannot be over before.
func (d *demo) restartServer(ctx context.Context) error {
	name := nodeName(0)
	p := d.member(name)
	d.mu.Lock()
	clear(d.frozen) // they have joined again
	d.frozen[name] = true
	d.mu.Unlock()
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	target, err := d.begin(ctx, keyRecords, 0)
	if err != nil {
		return err
	}
	if err := d.server.kill(); err != nil {
		return err
	}
	nap(ctx, d.lease/8) // shorter than a lease: without the server a key in fence mode is good for no longer
	if err := d.bootServer(); err != nil {
		return err
	}
	if err := d.awaitServer(ctx); err != nil {
		return err
	}
	if r, err := d.progress(ctx, keyRecords); err != nil || r.GetKey().GetTarget() != target {
		return fmt.Errorf("the server forgot the rotation to version %d: %v, %w", target, r, err)
	}
	if err := p.signal(syscall.SIGCONT); err != nil {
		return err
	}
	if _, _, err := d.reach(ctx, keyRecords, target); err != nil {
		return fmt.Errorf("after the server's restart: %w", err)
	}
	d.rotations++
	d.step("server killed (-9) in the middle of a rotation and started again; the rotation went on")
	return nil
}
