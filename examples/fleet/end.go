package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// settle waits until every instance has done its minimum, and stops them all.
func (d *demo) settle(ctx context.Context) error {
	end := time.Now().Add(patience)
	for {
		name, n := d.slowest()
		if n >= d.minimum {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("%s finished %d operations instead of %d", name, n, d.minimum)
		}
		d.live("%s has finished %d of %d operations", name, n, d.minimum)
		nap(ctx, 100*time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for n := range d.instances {
		if err := d.member(nodeName(n)).rest(ctx); err != nil { // while all of them still answer
			return err
		}
	}
	if err := d.stopAll(); err != nil {
		return err
	}
	d.mu.Lock()
	for _, n := range d.past {
		d.report.Operations += n
	}
	d.mu.Unlock()
	d.step("every instance finished at least %d operations and left", d.minimum)
	return nil
}

// stopAll ends all instances at the same time.
func (d *demo) stopAll() error {
	errs := make([]error, d.instances)
	var wait sync.WaitGroup
	for n := range d.instances {
		wait.Go(func() {
			name := nodeName(n)
			p := d.member(name)
			if err := p.stop(30 * time.Second); err != nil {
				errs[n] = fmt.Errorf("stop %s: %w", name, err)
			}
			d.retire(name, p)
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// slowest is the instance with the fewest operations.
func (d *demo) slowest() (name string, least int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	least = -1
	for member, p := range d.members {
		n := d.past[member]
		for _, c := range p.count().Counts {
			n += c
		}
		if least < 0 || n < least {
			name, least = member, n
		}
	}
	return name, least
}

// checkRecords compares the board with the journals: each write that was acknowledged is there, at that revision or a later one, and
// opens to what was written.
func (d *demo) checkRecords(ctx context.Context) error {
	wrote, err := d.journals()
	if err != nil {
		return err
	}
	for id, revision := range wrote {
		r, err := d.onBoard(ctx, id)
		if err != nil || r.Revision < revision {
			d.report.LostRecords++
			d.step("LOST: %s, revision %d: %d %v", id, revision, r.Revision, err)
		}
	}
	d.report.Records = int64(len(wrote))
	d.step("%d records checked against the journals, %d lost", len(wrote), d.report.LostRecords)
	return nil
}

// journals gives the newest revision of each record that an instance saw acknowledged.
func (d *demo) journals() (map[string]int, error) {
	files, err := filepath.Glob(filepath.Join(d.work, "journal", "*"))
	if err != nil {
		return nil, err
	}
	wrote := map[string]int{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		s := bufio.NewScanner(bytes.NewReader(b))
		for s.Scan() {
			var id string
			var revision int
			if _, err := fmt.Sscanf(s.Text(), "%s %d", &id, &revision); err != nil {
				continue // cut off by a kill
			}
			wrote[id] = max(wrote[id], revision)
		}
	}
	return wrote, nil
}

// verifyAudit exports the log, verifies it with nothing but the pinned key, and changes one byte of a copy.
func (d *demo) verifyAudit(ctx context.Context) error {
	dir := filepath.Join(d.work, "audit")
	stream, err := d.admin.Admin().Audit.Export(ctx, connect.NewRequest(&rotorv1.ExportRequest{}))
	if err != nil {
		return fmt.Errorf("export audit log: %w", err)
	}
	for stream.Receive() {
		path := filepath.Join(dir, filepath.FromSlash(stream.Msg().GetPath()))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, stream.Msg().GetData(), 0o600)); err != nil {
			return err
		}
	}
	if err := errors.Join(stream.Err(), stream.Close()); err != nil {
		return fmt.Errorf("export audit log: %w", err)
	}
	out, err := exec.CommandContext(ctx, d.rotor, "audit", "verify", "--key", d.vkey, dir, "-o", "json").Output()
	if err != nil {
		return fmt.Errorf("audit log does not verify: %w, %s", err, out)
	}
	var report struct {
		Size    int64
		Actions map[string]int64
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fmt.Errorf("rotor audit verify said %q", out)
	}
	if got := int(report.Actions["rotate"]); got < d.rotations {
		return fmt.Errorf("the audit log has %d rotations, %d were made", got, d.rotations)
	}
	why, err := d.tamper(ctx, dir)
	if err != nil {
		return err
	}
	d.refused("a changed copy of the audit log", errors.New(why))
	d.step("audit log of %d entries verified offline; one changed byte in a copy: %s", report.Size, why)
	return nil
}

// tamper changes one byte of one entry and returns what the verifier says.
func (d *demo) tamper(ctx context.Context, dir string) (string, error) {
	var victim string
	err := filepath.WalkDir(filepath.Join(dir, "tile", "entries"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && victim == "" {
			victim = path
		}
		return err
	})
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(victim)
	if err != nil {
		return "", err
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(victim, b, 0o600); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, d.rotor, "audit", "verify", "--key", d.vkey, dir).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 {
		return "", fmt.Errorf("a changed audit log was not found out: %w, %s", err, out)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first, nil
}

// scanLogs looks for secrets in everything that the processes printed: the seal's keys, the private keys of all identities, join tokens,
// and the fill of records. A planted leak shows that the scan finds what it looks for.
func (d *demo) scanLogs(context.Context) error {
	needles, err := d.needles()
	if err != nil {
		return err
	}
	planted := append([]byte("a log line with "), needles[len(needles)-1]...)
	if count(planted, needles) == 0 {
		return errors.New("the scan does not find a planted leak")
	}
	logs, err := filepath.Glob(filepath.Join(d.work, "logs", "*"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		d.report.SecretsInLogs += count(b, needles)
	}
	d.step("%d logs searched for %d secrets in three encodings: %d found", len(logs), len(needles)/3, d.report.SecretsInLogs)
	return nil
}

func (d *demo) needles() ([][]byte, error) {
	raw := append([][]byte{[]byte(strings.Repeat("x", 96))}, d.secrets...)
	var seal struct{ Keys map[string][]byte }
	if err := readJSON(filepath.Join(d.work, "server", "seal.key"), &seal); err != nil {
		return nil, err
	}
	for _, k := range seal.Keys {
		raw = append(raw, k)
	}
	files, err := filepath.Glob(filepath.Join(d.work, "identities", "*", "identity.json"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		var identity struct{ Key []byte }
		if err := readJSON(path, &identity); err != nil {
			return nil, err
		}
		raw = append(raw, identity.Key)
	}
	var all [][]byte
	for _, b := range raw {
		all = append(all, b, []byte(hex.EncodeToString(b)), []byte(strings.TrimRight(base64.StdEncoding.EncodeToString(b), "=")))
	}
	return all, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func count(log []byte, needles [][]byte) (n int64) {
	for _, needle := range needles {
		n += int64(bytes.Count(log, needle))
	}
	return n
}
