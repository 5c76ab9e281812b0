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
	"net/http"
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
	for name, kinds := range d.past {
		d.report.Operations += sum(kinds)
		for _, kind := range []string{"write", "read", "infer", "update"} {
			if kinds[kind] == 0 {
				d.mu.Unlock()
				return fmt.Errorf("%s did no %s", name, kind)
			}
		}
	}
	d.mu.Unlock()
	d.step("every instance finished at least %d operations, of each kind some, and left", d.minimum)
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
			d.mu.Lock()
			d.counted = append(d.counted, finished{fmt.Sprintf("%s.%d", name, p.cmd.Process.Pid), p.count().Counts["write"] + p.count().Counts["update"]})
			d.mu.Unlock()
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
	for member := range d.members {
		n := sum(d.done(member))
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
	if d.planted("record") {
		if err := d.loseOne(ctx, wrote); err != nil {
			return err
		}
	}
	for id, revision := range wrote {
		r, found, err := d.onBoard(ctx, id)
		if !found || r.Revision < revision {
			d.report.LostRecords++
			d.step("LOST: %s, revision %d: %d %v", id, revision, r.Revision, err)
		}
	}
	d.records = len(wrote)
	ids, err := d.boardIDs(ctx)
	if err != nil {
		return err
	}
	extra := 0 // were written, and the writer was killed before it heard of it
	for _, id := range ids {
		if _, ok := wrote[id]; !ok {
			extra++
		}
	}
	if extra > d.killed {
		return fmt.Errorf("%d records on the board were acknowledged to nobody, and only %d writers were killed", extra, d.killed)
	}
	d.step("%d records checked against the journals, %d lost; %d more on the board, written by processes that were killed before the answer",
		len(wrote), d.report.LostRecords, extra)
	return nil
}

// loseOne deletes a record behind the fleet's back, planted to show that the demo notices.
func (d *demo) loseOne(ctx context.Context, wrote map[string]int) error {
	for id := range wrote {
		_, etag, err := d.reader.get(ctx, id)
		if err != nil {
			return err
		}
		status, body, err := d.write(ctx, http.MethodDelete, id, "If-Match", etag, nil)
		if err != nil || status != http.StatusNoContent {
			return fmt.Errorf("delete %s: %d %s %w", id, status, body, err)
		}
		return nil
	}
	return errors.New("nothing was written")
}

// finished is how many writes a process counted that ended in order; its journal has as many lines.
type finished struct {
	journal string
	writes  int64
}

// reconcile compares what was counted by different parties: the writes of each process with its journal, and what the demo did with the
// audit log.
func (d *demo) reconcile(ctx context.Context) error {
	for _, f := range d.counted {
		b, err := os.ReadFile(filepath.Join(d.work, "journal", f.journal))
		if err != nil {
			return err
		}
		if n := int64(bytes.Count(b, []byte("\n"))); n != f.writes {
			return fmt.Errorf("%s counted %d writes, its journal has %d", f.journal, f.writes, n)
		}
	}
	log, err := d.auditCounts(ctx)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what      string
		want, got int
	}{
		{"rotations", d.rotations, log["rotate by admin"]},
		{"rollbacks", d.rollbacks, log["rollback by admin"]},
		{"campaigns", d.campaigns, log["campaign by admin"]},
		{"retirements", d.destroyed, log["retire by admin"]},
		{"first approvals of destructions", d.destroyed, log["destroy by admin"]},
	} {
		if c.want != c.got {
			return fmt.Errorf("%d %s were made, the audit log has %d", c.want, c.what, c.got)
		}
	}
	if got := log["unwrap by node"]; got < d.boots {
		return fmt.Errorf("%d processes opened the model, the audit log has %d releases of its key", d.boots, got)
	}
	d.step("reconciled: writes of %d processes with their journals, %d rotations, %d rollbacks, %d releases of the model's key with the audit log",
		len(d.counted), d.rotations, d.rollbacks, log["unwrap by node"])
	return nil
}

// auditCounts counts what was done and is in the audit log, by action and kind of caller.
func (d *demo) auditCounts(ctx context.Context) (map[string]int, error) {
	out, err := exec.CommandContext(ctx, d.rotor, "audit", "tail", "-o", "json", "--identity", filepath.Join(d.work, "server", "admin"), "--address", d.address).Output()
	if err != nil {
		return nil, fmt.Errorf("rotor audit tail: %w", err)
	}
	counts := map[string]int{}
	for l := range bytes.Lines(out) {
		var e struct{ Action, Caller, Outcome string }
		if err := json.Unmarshal(l, &e); err != nil {
			return nil, fmt.Errorf("rotor audit tail said %q", l)
		}
		if e.Outcome == "done" {
			counts[e.Action+" by "+kindOf(e.Caller)]++
		}
	}
	return counts, nil
}

func kindOf(caller string) string {
	name := caller[strings.LastIndexByte(caller, '/')+1:]
	kind, _, _ := strings.Cut(name, "-")
	return kind
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
	if d.planted("secret") {
		if err := appendTo(logs[0], needles[len(needles)-1]); err != nil {
			return err
		}
	}
	err = filepath.WalkDir(filepath.Join(d.work, "audit"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			logs = append(logs, path)
		}
		return err
	})
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
	d.step("%d logs and files of the audit log searched for %d secrets in %d encodings: %d found", len(logs), len(needles)/encodings, encodings, d.report.SecretsInLogs)
	return nil
}

func (d *demo) needles() ([][]byte, error) {
	raw := append([][]byte{[]byte(strings.Repeat("x", 96)), []byte(promptText)}, d.secrets...)
	tokens, err := d.tokens()
	if err != nil {
		return nil, err
	}
	raw = append(raw, tokens...)
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
		all = append(all, b, []byte(hex.EncodeToString(b)), []byte(base64.RawStdEncoding.EncodeToString(b)), []byte(base64.RawURLEncoding.EncodeToString(b)))
	}
	return all, nil
}

const encodings = 4 // of each secret that is looked for: raw, hex, two of base64

// tokens are the access tokens that instances got.
func (d *demo) tokens() (all [][]byte, err error) {
	files, err := filepath.Glob(filepath.Join(d.work, "issued", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, bytes.Fields(b)...)
	}
	if len(all) == 0 {
		return nil, errors.New("no instance got a token")
	}
	return all, nil
}

func appendTo(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
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
