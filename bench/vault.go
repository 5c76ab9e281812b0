package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	vaultTime   = 1500 * time.Millisecond // that one operation is measured for in a round
	vaultWarm   = 500 * time.Millisecond
	vaultBatch  = 100
	vaultTurns  = 10_000 // versions that a key gets
	vaultSample = 200    // rotations at either end whose median counts
)

// vaultPolicy is what the token of the bench may do: what an application may.
const vaultPolicy = `path "transit/+/app" { capabilities = ["update"] }
path "transit/datakey/plaintext/app" { capabilities = ["update"] }
path "transit/+/signer" { capabilities = ["update"] }
path "transit/+/turning" { capabilities = ["update"] }`

// vaultServer is rotor, as clients of Vault find it.
type vaultServer struct {
	*process
	target        // with a token that goes by a policy
	admin  string // token of an administrator
	flags  []string
}

func startVaultServer(ctx context.Context, o options) (*vaultServer, error) {
	dir := filepath.Join(o.dir, "vault")
	s := &vaultServer{process: &process{dir: dir}, flags: []string{"--dir", dir, "--rules", filepath.Join(o.dir, "vault.yaml")}}
	if err := os.WriteFile(filepath.Join(o.dir, "vault.yaml"), []byte(crowdRules), 0o600); err != nil {
		return nil, err
	}
	init := append([]string{"server", "init", "--local-admin", "--listen", "127.0.0.1:0"}, s.flags...)
	if out, err := exec.CommandContext(ctx, o.rotor, init...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("init a server: %w: %s", err, out)
	}
	if _, err := s.run(ctx, o, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	login := exec.CommandContext(ctx, o.rotor, "login", "--vault", "--identity", filepath.Join(dir, "admin"), "--address", s.target.address)
	login.Stderr = os.Stderr
	out, err := login.Output()
	if err != nil {
		return nil, s.told(fmt.Errorf("log in: %w", err))
	}
	m := regexp.MustCompile(`VAULT_TOKEN='?([A-Za-z0-9_.-]+)`).FindSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("a login that says %q", out)
	}
	s.admin = string(m[1])
	return s, s.prepare(ctx)
}

// run starts the server, and says how long it took until it answered as one that is ready.
func (s *vaultServer) run(ctx context.Context, o options, listen string) (time.Duration, error) {
	s.cmd = exec.CommandContext(ctx, o.rotor, append([]string{"server", "run", "--listen", listen}, s.flags...)...)
	log, err := os.OpenFile(filepath.Join(o.dir, "vault.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	s.cmd.Stderr = log
	start := time.Now()
	line, err := s.process.start()
	if err != nil {
		return 0, s.told(err)
	}
	s.target.address = strings.TrimPrefix(line, "listening on ")
	for ctx.Err() == nil {
		r, err := vaultHTTP.Get("https://" + s.target.address + "/v1/sys/health")
		if err == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return time.Since(start), nil
			}
		}
	}
	return 0, ctx.Err()
}

// vaultHTTP is for what is not measured.
var vaultHTTP = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}} //nolint:gosec // it talks to its own child

// ask sends one request and reads the data of the answer.
func (t target) ask(ctx context.Context, token, path string, body any, data any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+t.address+"/v1/"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("X-Vault-Token", token)
	resp, err := vaultHTTP.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, out)
	}
	if data == nil {
		return nil
	}
	return json.Unmarshal(out, data)
}

// prepare makes the keys, and a token that goes by a policy.
func (s *vaultServer) prepare(ctx context.Context) error {
	var made struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	type fields map[string]any
	err := errors.Join(
		s.ask(ctx, s.admin, "transit/keys/app", fields{}, nil),
		s.ask(ctx, s.admin, "transit/keys/turning", fields{}, nil),
		s.ask(ctx, s.admin, "transit/keys/counted", fields{}, nil),
		s.ask(ctx, s.admin, "transit/keys/signer", fields{"type": "ed25519"}, nil),
		s.ask(ctx, s.admin, "sys/policies/acl/app", fields{"policy": vaultPolicy}, nil),
		s.ask(ctx, s.admin, "auth/token/create", fields{"policies": []string{"app"}, "ttl": "1h"}, &made),
	)
	s.target.token = made.Auth.Token
	return err
}

// sealed has a server encrypt 256 bytes.
func (t target) sealed(ctx context.Context, text string) (string, error) {
	var out struct {
		Data struct {
			Ciphertext string `json:"ciphertext"`
		} `json:"data"`
	}
	return out.Data.Ciphertext, errors.Join(t.ask(ctx, t.token, "transit/encrypt/app", bareItem{Plaintext: text}, &out))
}

// vaultOp is one operation at both servers.
type vaultOp struct {
	name string
	path string
	work float64 // of one request, in units
	unit string
	bar  float64 // of the ratio
	p99  float64 // ms; 0: none
	body func(ctx context.Context, t target) (any, error)

	rotor, bare []traffic
}

func vaultOps() []*vaultOp {
	raw := make([]byte, 256)
	rand.Read(raw)
	text := base64.StdEncoding.EncodeToString(raw)
	ciphertext := func(ctx context.Context, t target) (any, error) {
		c, err := t.sealed(ctx, text)
		return bareItem{Ciphertext: c}, err
	}
	is := func(item bareItem) func(context.Context, target) (any, error) {
		return func(context.Context, target) (any, error) { return item, nil }
	}
	return []*vaultOp{
		{name: "encrypt_256B", path: "transit/encrypt/app", work: 1, unit: "1/s", bar: 0.5, p99: 5, body: is(bareItem{Plaintext: text})},
		{name: "encrypt_batch_100", path: "transit/encrypt/app", work: 1, unit: "batches/s", bar: 0.8, body: is(bareItem{Batch: slices.Repeat([]bareItem{{Plaintext: text}}, vaultBatch)})},
		{name: "decrypt_256B", path: "transit/decrypt/app", work: 1, unit: "1/s", bar: 0.5, body: ciphertext},
		{name: "rewrap_256B", path: "transit/rewrap/app", work: 1, unit: "1/s", bar: 0.5, body: ciphertext},
		{name: "datakey", path: "transit/datakey/plaintext/app", work: 1, unit: "1/s", bar: 0.5, body: is(bareItem{})},
		{name: "sign_ed25519", path: "transit/sign/signer", work: 1, unit: "1/s", bar: 0.5, body: is(bareItem{Input: text})},
	}
}

// vault measures the front end for Vault's clients against a bare handler: two processes, which take turns with the same clients.
func vault(ctx context.Context, o options) (rows []Row, err error) {
	if o.rotor == "" {
		return nil, nil
	}
	s, err := startVaultServer(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { s.stop() }()
	ready, err := s.restart(ctx, o)
	if err != nil {
		return nil, err
	}
	rows, err = s.idle(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := s.forgetPeak(); err != nil {
		return nil, err
	}
	more, err := s.operations(ctx, o)
	if err != nil {
		return nil, s.told(err)
	}
	rows = append(rows, more...)
	for _, part := range []func(context.Context) ([]Row, error){s.whileTurning, s.auditVolume, func(ctx context.Context) ([]Row, error) { return s.turns(ctx, o) }} {
		more, err := part(ctx)
		if err != nil {
			return nil, s.told(err)
		}
		rows = append(rows, more...)
	}
	peak, err := s.memoryRows("vault_memory_peak", "VmHWM", 80)
	if err != nil {
		return nil, err
	}
	rows = append(rows, peak...)
	late, err := s.restart(ctx, o)
	return append(rows,
		atMost("vault_ready_after_start", ready.Seconds()*1000, "ms", 50),
		Row{"vault_ready_with_10000_versions", late.Seconds() * 1000, "ms", "with a few", late.Seconds() / ready.Seconds(), "", true, 0}), err
}

// operations measures each operation at both servers, by turns.
func (s *vaultServer) operations(ctx context.Context, o options) ([]Row, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	bare := &process{cmd: exec.CommandContext(ctx, self, bareVaultWord, o.dir)}
	bare.cmd.Stderr = os.Stderr
	line, err := bare.start()
	if err != nil {
		return nil, err
	}
	defer bare.stop()
	other := target{strings.TrimPrefix(line, "listening on "), "none"}
	var rows []Row
	for _, op := range vaultOps() {
		if err := s.operation(ctx, o, op, other); err != nil {
			return nil, fmt.Errorf("%s: %w", op.name, err)
		}
		rows = append(rows, op.rows()...)
	}
	return rows, nil
}

func (s *vaultServer) operation(ctx context.Context, o options, op *vaultOp, bare target) error {
	requests := map[target][]byte{}
	for _, t := range []target{s.target, bare} {
		item, err := op.body(ctx, t)
		if err != nil {
			return err
		}
		body, err := json.Marshal(item)
		if err != nil {
			return err
		}
		requests[t] = t.request(op.path, body)
		if op.name == "rewrap_256B" && t == s.target { // what there is to do
			if err := s.ask(ctx, s.admin, "transit/keys/app/rotate", map[string]any{}, nil); err != nil {
				return err
			}
		}
		if _, err := t.send(ctx, requests[t], vaultWarm); err != nil {
			return err
		}
	}
	if err := s.profile(ctx, o, op.name, requests[s.target]); err != nil {
		return err
	}
	for range max(o.rounds/2, 1) {
		for _, t := range []target{s.target, bare} {
			l, err := t.send(ctx, requests[t], vaultTime)
			if err != nil {
				return err
			}
			if l.failed > 0 {
				return fmt.Errorf("%d of %d failed: %s", l.failed, len(l.times), l.failure)
			}
			if t == s.target {
				op.rotor = append(op.rotor, l)
			} else {
				op.bare = append(op.bare, l)
			}
		}
	}
	return nil
}

// profile keeps a profile of the server under an operation, where they are asked for.
func (s *vaultServer) profile(ctx context.Context, o options, name string, request []byte) error {
	if o.profiles == "" {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		done <- s.fetch(ctx, "/debug/pprof/profile?seconds=4", filepath.Join(o.profiles, "vault-"+name+".cpu"))
	}()
	if _, err := s.send(ctx, request, 5*time.Second); err != nil {
		return err
	}
	return <-done
}

func (s *vaultServer) fetch(ctx context.Context, path, to string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.target.address+path, http.NoBody)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+s.admin)
	resp, err := vaultHTTP.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, b)
	}
	return errors.Join(err, os.WriteFile(to, b, 0o600))
}

func (op *vaultOp) rows() []Row {
	best := func(all []traffic) (rate, p99 float64) {
		p99 = all[0].at(0.99)
		for _, l := range all {
			rate, p99 = max(rate, l.rate()*op.work), min(p99, l.at(0.99))
		}
		return rate, p99
	}
	rate, p99 := best(op.rotor)
	bare, bareP99 := best(op.bare)
	ratio := rate / bare
	rows := []Row{
		{"vault_" + op.name, rate, op.unit, fmt.Sprintf("bare handler (%.4g)", bare), ratio, fmt.Sprintf(">= %g", op.bar), ratio >= op.bar, 0},
		{"vault_" + op.name + "_p99", p99, "ms", "bare handler", p99 / bareP99, "", true, 0},
	}
	if op.p99 > 0 {
		rows[1] = atMost(rows[1].Name, p99, "ms", op.p99)
	}
	return rows
}

// whileTurning encrypts with a key at rest and with one that rotates as fast as one client can make it.
func (s *vaultServer) whileTurning(ctx context.Context) ([]Row, error) {
	body, err := json.Marshal(bareItem{Plaintext: base64.StdEncoding.EncodeToString(make([]byte, 256))})
	if err != nil {
		return nil, err
	}
	request := s.request("transit/encrypt/turning", body)
	var rest, turning []traffic
	rotations, failed, failure := 0, 0, ""
	for range 3 {
		l, err := s.send(ctx, request, 2*vaultTime)
		if err != nil {
			return nil, err
		}
		rest = append(rest, l)
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := s.ask(ctx, s.admin, "transit/keys/turning/rotate", map[string]any{}, nil); err != nil {
					done <- err
					return
				}
				rotations++
			}
		}()
		l, err = s.send(ctx, request, 2*vaultTime)
		close(stop)
		if err := errors.Join(err, <-done); err != nil {
			return nil, err
		}
		turning = append(turning, l)
		failed, failure = failed+l.failed, failure+l.failure
	}
	if failed > 0 {
		fmt.Fprintln(os.Stderr, "bench: while a key rotates:", failure)
	}
	least := func(all []traffic) float64 {
		p := all[0].at(0.99)
		for _, l := range all {
			p = min(p, l.at(0.99))
		}
		return p
	}
	p99 := least(turning)
	ratio := p99 / least(rest)
	return []Row{
		{"vault_encrypt_while_rotating_p99", p99, "ms", fmt.Sprintf("a key at rest (%d rotations)", rotations), ratio, "<= 1.5", ratio <= 1.5, 0},
		{"vault_encrypt_while_rotating_failed", float64(failed), "requests", "0", float64(failed), "<= 0", failed == 0, 0},
	}, nil
}

// rotations rotates one key ten thousand times.
func (s *vaultServer) rotations(ctx context.Context) ([]Row, error) {
	times := make([]time.Duration, 0, vaultTurns)
	for range vaultTurns {
		start := time.Now()
		if err := s.ask(ctx, s.admin, "transit/keys/counted/rotate", map[string]any{}, nil); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	median := func(t []time.Duration) float64 {
		t = slices.Sorted(slices.Values(t))
		return t[len(t)/2].Seconds() * 1000
	}
	first, last := median(times[:vaultSample]), median(times[len(times)-vaultSample:])
	ratio := last / first
	return []Row{{"vault_rotate_at_version_10000", last, "ms", "at version 1", ratio, "<= 1.5", ratio <= 1.5, 0}}, nil
}

// restart stops the server and starts it again, and says how long that took: the best of five.
func (s *vaultServer) restart(ctx context.Context, o options) (best time.Duration, err error) {
	for range 5 {
		s.stop()
		ready, err := s.run(ctx, o, "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		if best == 0 || ready < best {
			best = ready
		}
	}
	return best, nil
}
