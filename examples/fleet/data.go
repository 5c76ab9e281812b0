package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

func errorsJoin(errs ...error) error { return errors.Join(errs...) }

// rollBack makes the version before the present one primary again; what the newer one made stays readable.
func (d *demo) rollBack(ctx context.Context) error {
	p, err := d.progress(ctx, keyRecords)
	if err != nil {
		return err
	}
	from := p.GetKey().GetPrimary()
	if _, err := d.begin(ctx, keyRecords, from-1); err != nil {
		return err
	}
	if _, _, err := d.reach(ctx, keyRecords, from-1); err != nil {
		return err
	}
	nap(ctx, time.Second) // traffic under the older version, reading what the newer one made
	if err := d.rotate(ctx, keyRecords, false); err != nil {
		return err
	}
	d.step("rolled back from version %d to %d under load, and rotated on", from, from-1)
	return nil
}

// census counts what is on the board by version.
func (d *demo) census(ctx context.Context) (map[uint32]uint64, error) {
	c, err := d.admin.Admin().Data.Census(ctx, connect.NewRequest(&rotorv1.CensusRequest{Key: ref(keyRecords)}))
	if err != nil {
		return nil, fmt.Errorf("census: %w", err)
	}
	if len(c.Msg.GetUnreachable()) > 0 || c.Msg.GetUnknown() > 0 {
		return nil, fmt.Errorf("census: unreachable %v, unknown %d", c.Msg.GetUnreachable(), c.Msg.GetUnknown())
	}
	counts := map[uint32]uint64{}
	for _, n := range c.Msg.GetCounts() {
		counts[n.GetVersion()] = n.GetCiphertexts()
	}
	return counts, nil
}

// reencrypt moves the whole board to the primary version while it is being written. One writer is frozen over all of it, with a
// ciphertext of the old version that it has not written yet: the floor refuses it.
func (d *demo) reencrypt(ctx context.Context) error {
	writer := d.member(nodeName(3))
	if err := d.holdBeforeWrite(ctx, writer); err != nil {
		return err
	}
	if err := d.rotate(ctx, keyRecords, false); err != nil {
		return err
	}
	before, err := d.census(ctx)
	if err != nil {
		return err
	}
	c, err := d.admin.Admin().Data.StartCampaign(ctx, connect.NewRequest(&rotorv1.CampaignRequest{Key: ref(keyRecords)}))
	if err != nil {
		return fmt.Errorf("start campaign: %w", err)
	}
	done, err := d.campaign(ctx, c.Msg.GetId())
	if err != nil {
		return err
	}
	if err := writer.signal(syscall.SIGUSR2); err != nil {
		return err
	}
	p, err := d.progress(ctx, keyRecords)
	if err != nil {
		return err
	}
	primary := p.GetKey().GetPrimary()
	after, err := d.census(ctx)
	if err != nil {
		return err
	}
	for v, n := range after {
		if v != primary && n > 0 {
			return fmt.Errorf("%d records are left under version %d", n, v)
		}
	}
	d.step("board re-encrypted to version %d while being written: %d versions before, %d records moved, %d lost the race and were new already",
		primary, len(before), done.GetMoved(), done.GetLost()+done.GetSkipped())
	return nil
}

// campaign waits for a campaign and shows its progress.
func (d *demo) campaign(ctx context.Context, id string) (*rotorv1.Campaign, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		c, err := d.admin.Admin().Data.GetCampaign(ctx, connect.NewRequest(&rotorv1.CampaignRef{Id: id}))
		if err != nil {
			return nil, fmt.Errorf("watch campaign: %w", err)
		}
		d.live("campaign: %s, %d scanned, %d moved", c.Msg.GetPhase(), c.Msg.GetScanned(), c.Msg.GetMoved())
		if c.Msg.GetDone() {
			if c.Msg.GetError() != "" || c.Msg.GetFailed() > 0 {
				return nil, fmt.Errorf("campaign: %s, %d failed", c.Msg.GetError(), c.Msg.GetFailed())
			}
			return c.Msg, nil
		}
		nap(ctx, 20*time.Millisecond)
	}
}

// rewrapModel moves the model file to the newest version without touching its payload.
func (d *demo) rewrapModel(ctx context.Context) error {
	info, err := os.Stat(d.sealed)
	if err != nil {
		return err
	}
	changed, stats, err := d.admin.RewrapFile(ctx, d.sealed)
	if err != nil || !changed {
		return fmt.Errorf("rewrap model: changed %v, %w", changed, err)
	}
	f, err := d.admin.OpenFile(ctx, d.sealed)
	if err != nil {
		return fmt.Errorf("open rewrapped model: %w", err)
	}
	d.step("model of %d bytes rewrapped: %d bytes read, %d written, payload untouched", info.Size(), stats.Read, stats.Written)
	return f.Close()
}

// destroyOld takes version 1 of records to its end: refused while in use, retired at census 0, destroyed after the wait with two
// approvals. Nothing reads what was kept from before.
func (d *demo) destroyOld(ctx context.Context) error {
	admin := d.admin.Admin().Keys
	p, err := d.progress(ctx, keyRecords)
	if err != nil {
		return err
	}
	for what, n := range map[string]uint32{"destroy the primary version of records": p.GetKey().GetPrimary(), "destroy version 1 of records before it is retired": 1} {
		_, err := admin.Destroy(ctx, connect.NewRequest(&rotorv1.DestroyRequest{Key: ref(keyRecords), Version: n}))
		if rotor.CodeOf(err) != "in_use" {
			return fmt.Errorf("%s: %w", what, err)
		}
		d.refused(what, err)
	}
	if _, err := admin.Retire(ctx, connect.NewRequest(&rotorv1.RetireRequest{Key: ref(keyRecords), Version: 1})); err != nil {
		return fmt.Errorf("retire version 1: %w", err)
	}
	if err := d.destroy(ctx, 1); err != nil {
		return err
	}
	if _, err := admin.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: ref(keyRecords), Ciphertext: d.kept, Parts: keptParts()})); rotor.CodeOf(err) != "version_destroyed" {
		return fmt.Errorf("the server reads a ciphertext of a destroyed version: %w", err)
	} else {
		d.refused("the server, a ciphertext kept from version 1", err)
	}
	asked, err := d.nobodyReads(ctx, "version_destroyed")
	if err != nil {
		return err
	}
	d.step("a ciphertext kept from version 1: refused by the server and by all %d live instances", asked)
	return nil
}

func (d *demo) refused(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Refusals = append(d.report.Refusals, refusal{what, err.Error()})
}

// destroy asks as two people until the version is destroyed.
func (d *demo) destroy(ctx context.Context, n uint32) error {
	officer, err := d.officer(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = officer.Close() }() // it holds nothing
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := &rotorv1.DestroyRequest{Key: ref(keyRecords), Version: n}
	first, err := d.admin.Admin().Keys.Destroy(ctx, connect.NewRequest(r))
	if err != nil || first.Msg.GetDestroyed() {
		return fmt.Errorf("one approval destroyed it, or: %w", err)
	}
	d.refused(fmt.Sprintf("destroy version %d of records at once", n), errors.New(first.Msg.GetWaiting()))
	for {
		out, err := officer.Admin().Keys.Destroy(ctx, connect.NewRequest(r))
		if rotor.CodeOf(err) == "version_destroyed" || err == nil && out.Msg.GetDestroyed() {
			d.step("version %d of records destroyed: census 0, retired, waited, two approvals, census 0 again", n)
			return nil
		}
		if err != nil {
			return fmt.Errorf("destroy version %d: %w", n, err)
		}
		d.live("destroy: %s", out.Msg.GetWaiting())
		nap(ctx, 200*time.Millisecond)
	}
}

// officer joins as the second approver.
func (d *demo) officer(ctx context.Context) (*rotor.Client, error) {
	if err := d.invite(ctx, "officer"); err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(d.work, "tokens", "officer"))
	if err != nil {
		return nil, err
	}
	return rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(d.work, "identities", "officer"), JoinToken: string(token)})
}
