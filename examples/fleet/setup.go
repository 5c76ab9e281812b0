package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// rules give every process what it needs and nothing more.
const rules = `version: 1
rules:
  - name: administrators
    callers: ["admin/*"]
    actions: ["*"]
    keys: {namespace: "**", names: ["**"]}
  - name: instances hold the fleet's keys
    callers: ["spiffe://rotor.local/instance/node-*"]
    actions: [deliver]
    keys: {namespace: default, names: [records, prompts]}
  - name: instances open models
    callers: ["spiffe://rotor.local/instance/node-*"]
    actions: [unwrap]
    keys: {namespace: default, names: [models]}
  - name: instances get tokens
    callers: ["spiffe://rotor.local/instance/node-*"]
    actions: [token.issue]
    keys: {namespace: default, names: [tokens]}
  - name: the security officer is the second to approve a destruction
    callers: ["spiffe://rotor.local/instance/officer-*"]
    actions: [key.show, destroy]
    keys: {namespace: default, names: ["*"]}
`

// patience bounds every wait of the demo.
const patience = 90 * time.Second

func (d *demo) startServer(ctx context.Context) error {
	dir := filepath.Join(d.work, "server")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(rules), 0o600); err != nil {
		return err
	}
	var err error
	if d.address, err = freeAddress(); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, d.rotor, "server", "init", "--local-admin", "--dir", dir, "--listen", d.address, "-o", "json").Output()
	if err != nil {
		return fmt.Errorf("rotor server init: %w", err)
	}
	var made struct {
		CheckpointKey string `json:"checkpoint_key"`
	}
	if err := json.Unmarshal(out, &made); err != nil || made.CheckpointKey == "" {
		return fmt.Errorf("rotor server init said %q", out)
	}
	d.vkey = made.CheckpointKey
	if err := d.bootServer(); err != nil {
		return err
	}
	if d.admin, err = rotor.Dial(ctx, rotor.Config{Identity: filepath.Join(dir, "admin"), Address: d.address}); err != nil {
		return err
	}
	if err := d.awaitServer(ctx); err != nil {
		return err
	}
	d.step("rotor server at %s, store and seal new, audit log pinned by %s…", d.address, d.vkey[:32])
	return nil
}

// freeAddress finds a port that stays the server's over a restart: below those that the kernel gives to connections (from 32768 on), which would be
// one of the fleet's that tries to reach the server meanwhile.
func freeAddress() (string, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(20_000))); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", err
}

func (d *demo) bootServer() (err error) {
	d.server, err = start(d.work, "server", d.hear, d.rotor, "server", "run", "--dir", filepath.Join(d.work, "server"),
		"--listen", d.address, "--lease-ttl", d.lease.String())
	return err
}

// awaitServer returns once the server answers.
func (d *demo) awaitServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := d.admin.Admin().Server.Status(ctx, connect.NewRequest(&rotorv1.StatusRequest{}))
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-d.server.done:
			return fmt.Errorf("the server ended: %w", d.server.failure())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *demo) createKeys(ctx context.Context) error {
	second := int64(time.Second)
	for _, k := range []*rotorv1.Key{
		{Name: keyModels, Purpose: "wrap", Custody: "server", Rotation: &rotorv1.Rotation{DestroyWaitNs: 2 * second, DestroyApprovals: 2}},
		{Name: keyRecords, Purpose: "encrypt", Custody: "fleet", Rotation: &rotorv1.Rotation{
			Silence: "block", WindowNs: 3600 * second, DestroyWaitNs: 2 * second, DestroyApprovals: 2,
		}},
		{Name: keyPrompts, Purpose: "encrypt", Custody: "fleet", Rotation: &rotorv1.Rotation{Silence: "fence"}},
		{Name: keyTokens, Purpose: "sign", Custody: "server", Rotation: &rotorv1.Rotation{MarginNs: second}},
	} {
		if _, err := d.admin.Admin().Keys.Create(ctx, connect.NewRequest(&rotorv1.CreateRequest{Key: k})); err != nil {
			return fmt.Errorf("create key %s: %w", k.GetName(), err)
		}
	}
	d.step("keys: models (server), records (fleet, block), prompts (fleet, fence), tokens (server)")
	return nil
}

func (d *demo) encryptModel(ctx context.Context) error {
	src, err := os.Open(d.model)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	hash := sha256.New()
	d.sealed = filepath.Join(d.work, "model.rotor")
	err = d.admin.EncryptFile(ctx, keyModels, io.TeeReader(src, hash), d.sealed, rotor.FileOptions{
		ContentType: "application/onnx", Context: map[string]string{"model": filepath.Base(d.model)},
	})
	if err != nil {
		return fmt.Errorf("encrypt model: %w", err)
	}
	d.digest = fmt.Sprintf("%x", hash.Sum(nil))
	d.step("model %s encrypted, sha256 %s…", filepath.Base(d.model), d.digest[:16])
	return nil
}

// invite leaves a join token where the process looks for it.
func (d *demo) invite(ctx context.Context, name string) error {
	out, err := d.admin.Admin().Fleet.Invite(ctx, connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
	if err != nil {
		return fmt.Errorf("invite %s: %w", name, err)
	}
	token := []byte(out.Msg.GetToken())
	d.mu.Lock()
	d.secrets = append(d.secrets, token)
	d.mu.Unlock()
	return os.WriteFile(filepath.Join(d.work, "tokens", name), token, 0o600)
}

func (d *demo) startBoard(ctx context.Context) error {
	if err := d.invite(ctx, "board"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if d.board, err = start(d.work, "board", d.hear, self, "board", "-work", d.work); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if d.boardAddr, err = d.board.await(ctx); err != nil {
		return err
	}
	_, err = d.admin.Admin().Data.Register(ctx, connect.NewRequest(&rotorv1.RegisterRequest{DataSet: &rotorv1.DataSet{
		Name: "board", Key: &rotorv1.KeyRef{Name: keyRecords}, Url: "https://" + d.boardAddr + "/rotor-dataset/v1",
	}}))
	if err != nil {
		return fmt.Errorf("register the board: %w", err)
	}
	d.step("board at %s, registered as a data set of key records", d.boardAddr)
	return nil
}

func nodeName(n int) string { return fmt.Sprintf("node-%02d", n) }

func (d *demo) startFleet(ctx context.Context) error {
	for n := range d.instances {
		if err := d.launch(ctx, nodeName(n)); err != nil {
			return err
		}
	}
	if err := d.awaitAll(ctx); err != nil {
		return err
	}
	d.step("%d instances have joined, opened the model in memory and serve", d.instances)
	return nil
}

// launch invites an instance and starts its process.
func (d *demo) launch(ctx context.Context, name string) error {
	if err := d.invite(ctx, name); err != nil {
		return err
	}
	return d.boot(name)
}

// boot starts the process of an instance that has an identity or a token.
func (d *demo) boot(name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	plant := d.planted("operation") && name == nodeName(0)
	p, err := start(d.work, name, d.hear, self, "instance", "-name", name, "-work", d.work, "-board", d.boardAddr,
		"-model", d.sealed, "-digest", d.digest, "-rate", fmt.Sprint(d.rate), fmt.Sprintf("-probe=%v", !d.quiet), fmt.Sprintf("-plant=%v", plant))
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.members[name] = p
	d.mu.Unlock()
	return nil
}

// awaitAll returns when every instance that runs is ready, and tells all of them where all are.
func (d *demo) awaitAll(ctx context.Context) error {
	d.mu.Lock()
	all := maps.Clone(d.members)
	d.mu.Unlock()
	for name, p := range all {
		if err := d.awaitOne(ctx, name, p); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) awaitOne(ctx context.Context, name string, p *process) error {
	d.mu.Lock()
	_, known := d.addresses[name]
	d.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	address, err := p.await(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.addresses[name] = address
	d.boots++
	d.mu.Unlock()
	return d.publish()
}

// publish writes the list of neighbours.
func (d *demo) publish() error {
	d.mu.Lock()
	b, err := json.Marshal(d.addresses)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	path := filepath.Join(d.work, "neighbours.json")
	tmp := fmt.Sprintf("%s.%d", path, time.Now().UnixNano())
	return errors.Join(os.WriteFile(tmp, b, 0o600), os.Rename(tmp, path))
}

// planted says whether a fault is to be planted.
func (d *demo) planted(what string) bool { return slices.Contains(strings.Split(d.plant, ","), what) }

// hear notes what a process says: every failed operation counts, and every refusal but those of the key in fence mode by an instance that
// was frozen.
func (d *demo) hear(p *process, l line) {
	d.mu.Lock()
	expected := d.frozen[p.name] && l.Reason == "lease_over" && (l.What == "encrypt" || l.What == "infer")
	switch {
	case l.Kind == "refused" && expected:
		d.report.Refusals = append(d.report.Refusals, refusal{l.What + " by " + p.name + ", thawed", l.Reason})
	case l.Kind == "refused" || l.Kind == "failed":
		d.report.FailedOperations++
	}
	d.mu.Unlock()
	if l.Kind == "failed" || l.Kind == "refused" && !expected {
		d.step("FAILED: %s by %s: %s", l.What, p.name, bytes.TrimSpace([]byte(l.Reason)))
	}
}
