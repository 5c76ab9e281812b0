package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/envelope"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

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
	d.rollbacks++
	if n, _ := d.desk.Key(keyRecords).Version(); n != from-1 {
		return fmt.Errorf("rolled back, and the desk still protects with version %d", n)
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
	if _, err := d.holdBeforeWrite(ctx, writer); err != nil {
		return err
	}
	refused := writer.count().Retries["below_floor"]
	if err := d.rotate(ctx, keyRecords, false); err != nil {
		return err
	}
	before, err := d.census(ctx)
	if err != nil {
		return err
	}
	if err := d.retireInUse(ctx, before); err != nil {
		return err
	}
	c, err := d.admin.Admin().Data.StartCampaign(ctx, connect.NewRequest(&rotorv1.CampaignRequest{Key: ref(keyRecords)}))
	if err != nil {
		return fmt.Errorf("start campaign: %w", err)
	}
	d.campaigns++
	done, err := d.campaign(ctx, c.Msg.GetId())
	if err != nil {
		return err
	}
	if err := writer.signal(syscall.SIGUSR2); err != nil {
		return err
	}
	if err := d.works(ctx, writer, "write"); err != nil {
		return err
	}
	if writer.count().Retries["below_floor"] == refused {
		return errors.New("the floor took a ciphertext of a writer that was frozen since before the rotation")
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
	d.step("board re-encrypted to version %d while being written: %d versions before, %d records moved, %d lost the race and were new already; the floor refused a frozen writer",
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

// retireInUse asks for the retirement of the version that most records of older versions are under, and is refused.
func (d *demo) retireInUse(ctx context.Context, counts map[uint32]uint64) error {
	p, err := d.progress(ctx, keyRecords)
	if err != nil {
		return err
	}
	var most uint32
	for v, n := range counts {
		if v != p.GetKey().GetPrimary() && n > counts[most] {
			most = v
		}
	}
	_, err = d.admin.Admin().Keys.Retire(ctx, connect.NewRequest(&rotorv1.RetireRequest{Key: ref(keyRecords), Version: most}))
	if rotor.CodeOf(err) != "in_use" {
		return fmt.Errorf("version %d with %d records under it may be retired: %w", most, counts[most], err)
	}
	d.refused(fmt.Sprintf("retire version %d of records with %d ciphertexts under it", most, counts[most]), err)
	return nil
}

// maxRewrap bounds what a rewrap reads and writes, in bytes, whatever the size of the file.
const maxRewrap = 64 << 10

// rewrapModel moves the model file to the newest version without touching its payload, and keeps a copy from before.
func (d *demo) rewrapModel(ctx context.Context) error {
	old, err := os.ReadFile(d.sealed)
	if err != nil {
		return err
	}
	d.oldModel = filepath.Join(d.work, "kept.rotor")
	if err := os.WriteFile(d.oldModel, old, 0o600); err != nil {
		return err
	}
	changed, stats, err := d.admin.RewrapFile(ctx, d.sealed)
	if err != nil || !changed || stats.Read+stats.Written > maxRewrap {
		return fmt.Errorf("rewrap model: changed %v, %d bytes read, %d written, %w", changed, stats.Read, stats.Written, err)
	}
	fresh, err := os.ReadFile(d.sealed)
	if err != nil {
		return err
	}
	h, err := envelope.ReadHeader(bytes.NewReader(fresh), int64(len(fresh)))
	if err != nil {
		return fmt.Errorf("header of the rewrapped model: %w", err)
	}
	if at := h.PayloadOffset(); bytes.Equal(old[:at], fresh[:at]) || !bytes.Equal(old[at:], fresh[at:]) {
		return errors.New("a rewrap changed the payload, or nothing")
	}
	if err := d.opensTo(ctx, d.sealed, d.digest); err != nil {
		return fmt.Errorf("rewrapped model: %w", err)
	}
	d.step("model of %d bytes rewrapped: %d bytes read, %d written, payload the same byte for byte", len(fresh), stats.Read, stats.Written)
	return nil
}

// opensTo opens a model file as the desk, an instance, and compares what is in it.
func (d *demo) opensTo(ctx context.Context, path, digest string) error {
	f, err := d.desk.OpenFile(ctx, path)
	if err != nil {
		return err
	}
	b, err := f.ReadAll(ctx)
	if err = errors.Join(err, f.Close()); err == nil && fmt.Sprintf("%x", sha256.Sum256(b)) != digest {
		err = errors.New("it has another content")
	}
	return err
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
	counts, err := d.census(ctx)
	if err != nil || counts[1] != 0 {
		return fmt.Errorf("census: %d records are under version 1: %w", counts[1], err)
	}
	for _, key := range []string{keyRecords, keyModels} {
		if _, err := admin.Retire(ctx, connect.NewRequest(&rotorv1.RetireRequest{Key: ref(key), Version: 1})); err != nil {
			return fmt.Errorf("retire version 1 of %s: %w", key, err)
		}
		if err := d.destroy(ctx, key, 1); err != nil {
			return err
		}
	}
	return d.nothingReads(ctx)
}

// nothingReads tries every path of rotor and every live instance, one of them new, with what was kept from version 1.
func (d *demo) nothingReads(ctx context.Context) error {
	name := nodeName(d.instances)
	if err := d.launch(ctx, name); err != nil {
		return err
	}
	if err := d.awaitAll(ctx); err != nil {
		return err
	}
	d.instances++
	paths := d.paths()
	for _, p := range paths {
		code, err := p.try(ctx)
		if code != "version_destroyed" {
			return fmt.Errorf("%s: %q instead of version_destroyed: %w", p.what, code, err)
		}
		d.refused(p.what, errors.New("version_destroyed"))
	}
	status, body, err := d.write(ctx, http.MethodPut, "kept", "If-None-Match", "*", d.kept)
	if err != nil || status != http.StatusConflict || !bytes.Contains(body, []byte("below_floor")) {
		return fmt.Errorf("the board answered %d %s to a ciphertext of a destroyed version: %w", status, body, err)
	}
	d.refused("the board, a ciphertext kept from version 1", errors.New("below_floor"))
	asked, err := d.nobodyReads(ctx, "version_destroyed")
	if err != nil {
		return err
	}
	d.refused(fmt.Sprintf("each of %d live instances, a ciphertext kept from version 1", asked), errors.New("version_destroyed"))
	d.step("what was kept from version 1 is refused on %d paths of rotor, by the board, and by all %d live instances, one of them new", len(paths), asked)
	return nil
}

// path is a way by which something kept could be read.
type path struct {
	what string
	try  func(context.Context) (rotor.Code, error)
}

func (d *demo) paths() []path {
	coded := func(err error) (rotor.Code, error) { return rotor.CodeOf(err), err }
	return []path{
		{"decrypt at the server", func(ctx context.Context) (rotor.Code, error) {
			_, err := d.admin.Admin().Keys.Decrypt(ctx, connect.NewRequest(&rotorv1.DecryptRequest{Key: ref(keyRecords), Ciphertext: d.kept, Parts: keptParts()}))
			return coded(err)
		}},
		{"decrypt in the demo, which held the version", func(ctx context.Context) (rotor.Code, error) {
			_, err := d.desk.Key(keyRecords).Decrypt(ctx, d.kept, recordPart("kept"))
			return coded(err)
		}},
		{"open a model file kept from version 1 as an instance", func(ctx context.Context) (rotor.Code, error) {
			return coded(d.opensTo(ctx, d.oldModel, d.digest))
		}},
		{"open a model file kept from version 1 as an administrator", func(ctx context.Context) (rotor.Code, error) {
			f, err := d.admin.OpenFile(ctx, d.oldModel)
			if err == nil {
				err = f.Close()
			}
			return coded(err)
		}},
		{"rewrap a model file kept from version 1", func(ctx context.Context) (rotor.Code, error) {
			_, _, err := d.admin.RewrapFile(ctx, d.oldModel)
			return coded(err)
		}},
		{"rotor decrypt records", func(ctx context.Context) (rotor.Code, error) {
			return d.command(ctx, envelope.EncodeText(d.kept), "decrypt", keyRecords, "--part", "record=kept")
		}},
		{"rotor decrypt kept.rotor", func(ctx context.Context) (rotor.Code, error) {
			return d.command(ctx, "", "decrypt", d.oldModel, "--out", filepath.Join(d.work, "kept.plain"))
		}},
	}
}

// command runs the rotor command as the administrator and returns the code that it failed with.
func (d *demo) command(ctx context.Context, in string, args ...string) (rotor.Code, error) {
	c := exec.CommandContext(ctx, d.rotor, append(args, "--identity", filepath.Join(d.work, "server", "admin"), "--address", d.address)...)
	c.Stdin = strings.NewReader(in)
	out, err := c.CombinedOutput()
	for l := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(l, "code: "); ok {
			code, _, _ := strings.Cut(rest, " ")
			return rotor.Code(code), err
		}
	}
	return "", fmt.Errorf("%w, %s", err, out)
}

func (d *demo) refused(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Refusals = append(d.report.Refusals, refusal{what, err.Error()})
}

// destroy asks as two people until the version is destroyed.
func (d *demo) destroy(ctx context.Context, key string, n uint32) error {
	officer, err := d.officer(ctx, key)
	if err != nil {
		return err
	}
	defer func() { _ = officer.Close() }() // it holds nothing
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := &rotorv1.DestroyRequest{Key: ref(key), Version: n}
	first, err := d.admin.Admin().Keys.Destroy(ctx, connect.NewRequest(r))
	if err != nil || first.Msg.GetDestroyed() {
		return fmt.Errorf("one approval destroyed it, or: %w", err)
	}
	d.refused(fmt.Sprintf("destroy version %d of %s at once", n, key), errors.New(first.Msg.GetWaiting()))
	for {
		out, err := officer.Admin().Keys.Destroy(ctx, connect.NewRequest(r))
		if rotor.CodeOf(err) == "version_destroyed" || err == nil && out.Msg.GetDestroyed() {
			d.destroyed++
			d.step("version %d of %s destroyed: census 0, retired, waited, two approvals, census 0 again", n, key)
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
func (d *demo) officer(ctx context.Context, key string) (*rotor.Client, error) {
	name := "officer-" + key
	if err := d.invite(ctx, name); err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(d.work, "tokens", name))
	if err != nil {
		return nil, err
	}
	return rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(d.work, "identities", name), JoinToken: string(token)})
}
