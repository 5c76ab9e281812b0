//go:build services

package server_test

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/replica"
	"github.com/rotorkms/rotor/internal/testenv"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// The build that this one has to share a store with: the newest of the format before. It moves on with replica.Format.
const (
	pinned       = "13d14b1f62a367c91548a30073f27f3a82509c71"
	pinnedFormat = replica.FormatPages
)

// build is one version of what an operator and an application run.
type build struct{ rotor, member string }

// output runs a command at the top of the repository, or somewhere else.
func output(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// builds makes both versions of both commands: as they are, and as they were at the pinned commit.
func builds(t *testing.T) (old, now build) {
	t.Helper()
	dir, top := t.TempDir(), output(t, ".", "git", "rev-parse", "--show-toplevel")
	if shallow := output(t, top, "git", "rev-parse", "--is-shallow-repository"); shallow != "false" {
		output(t, top, "git", "fetch", "--quiet", "--unshallow") // this test builds an older commit
	}
	tree := filepath.Join(dir, "tree")
	output(t, top, "git", "archive", "--format=tar", "--output", filepath.Join(dir, "tree.tar"), pinned)
	if err := os.Mkdir(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	output(t, tree, "tar", "-xf", filepath.Join(dir, "tree.tar"))
	const member = "internal/server/testdata/member"
	if err := os.RemoveAll(filepath.Join(tree, member)); err != nil { // the older one, if it had one
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(tree, member), os.DirFS(filepath.Join(top, member))); err != nil {
		t.Fatal(err)
	}
	make := func(top, name string) build {
		b := build{filepath.Join(dir, name+"-rotor"), filepath.Join(dir, name+"-member")}
		output(t, top, "go", "build", "-trimpath", "-o", b.rotor, "./cmd/rotor")
		output(t, top, "go", "build", "-trimpath", "-o", b.member, "./"+member)
		return b
	}
	return make(tree, "old"), make(top, "now")
}

// member is a client process.
type member struct {
	name string
	in   io.Closer
	out  *bufio.Reader
	proc *exec.Cmd
	errs *strings.Builder
}

// join starts a client with a join token and waits until it holds its key.
func (r *processes) join(bin, name, token, dir string) *member {
	r.t.Helper()
	c := exec.CommandContext(r.t.Context(), bin, name, r.addresses(0), filepath.Join(r.t.TempDir(), name), dir)
	m := &member{name: name, proc: c, errs: &strings.Builder{}}
	c.Stderr = m.errs
	in, err := c.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err == nil {
		_, err = io.WriteString(in, token+"\n")
	}
	if err != nil {
		r.t.Fatal(err)
	}
	m.in, m.out = in, bufio.NewReader(out)
	if line, err := m.out.ReadString('\n'); line != "ready\n" {
		r.t.Fatalf("member %s: %q, %v: %v, %s", name, line, err, c.Wait(), m.errs)
	}
	return m
}

// end stops a client, of which nothing may have failed.
func (m *member) end(t *testing.T) {
	t.Helper()
	var got struct {
		Held, Read, Served, Failed int
		First                      string
	}
	if err := m.in.Close(); err != nil {
		t.Error(err)
	}
	if err := json.NewDecoder(m.out).Decode(&got); err != nil {
		t.Fatalf("member %s: %v, %s", m.name, err, m.errs)
	}
	if err := m.proc.Wait(); err != nil {
		t.Errorf("member %s: %v, %s", m.name, err, m.errs)
	}
	t.Logf("member %s: %+v", m.name, got)
	if got.Failed != 0 || got.Held == 0 || got.Read == 0 || got.Served == 0 {
		t.Errorf("member %s: %+v", m.name, got)
	}
}

// exchange stops a server in order, waits until the other leads, and starts another build in its place.
func (r *processes) exchange(i int, by build, led func()) {
	r.t.Helper()
	r.signal(i, syscall.SIGTERM)
	if err := r.procs[i].Wait(); err != nil {
		r.t.Errorf("server %d: %v", i, err)
	}
	led()
	r.bin = by.rotor
	r.start(i)
}

// status asks one server how the store's servers are.
func (r *processes) status(i int) *rotorv1.StatusResponse {
	r.t.Helper()
	c, err := rotor.Dial(r.t.Context(), rotor.Config{Identity: filepath.Join(r.dir, "admin"), Address: r.address(i)})
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	m, err := c.Admin().Server.Status(r.t.Context(), connect.NewRequest(&rotorv1.StatusRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Msg
}

// leads waits until a server says that it leads.
func (r *processes) leads(i int) {
	r.t.Helper()
	for {
		for _, s := range r.status(i).GetReplicas() {
			if s.GetSelf() && s.GetLeads() {
				return
			}
		}
		time.Sleep(20 * time.Millisecond) // each look is a new connection
	}
}

// TestTwoVersions: servers of this build and of the one before share a store while they are exchanged one by one, under load of clients of both. A
// rotation crosses both, whichever leads and whichever is asked; nothing fails. The store keeps the older format until the last old server has
// gone for a while; then it moves on, and the way back is closed.
func TestTwoVersions(t *testing.T) {
	old, now := builds(t)
	r := newProcesses(t, old.rotor, 2)
	r.config() // for its rules
	r.configure("store: %s\nsession_ttl: 1s\nsandbox: \"off\"\n", testenv.Postgres(t).URL)
	output(t, ".", old.rotor, "server", "init", "--local-admin", "--config", r.file())
	r.start(0)
	r.start(1)

	admin := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, 0)
	for name, custody := range map[string]string{"records": "fleet", "server": "server"} {
		if _, err := admin.Admin().Keys.Create(t.Context(), connect.NewRequest(&rotorv1.CreateRequest{
			Key: &rotorv1.Key{Name: name, Purpose: "encrypt", Custody: custody},
		})); err != nil {
			t.Fatal(err)
		}
	}
	messages, members := t.TempDir(), []*member(nil)
	join := func(by build, name string, asked int) {
		t.Helper()
		at := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, asked)
		token, err := at.Admin().Fleet.Invite(t.Context(), connect.NewRequest(&rotorv1.InviteRequest{Name: name}))
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, r.join(by.member, name, token.Msg.GetToken(), messages))
	}
	join(old, "old-0", 0)
	join(now, "now-0", 1) // a client that is newer than every server

	version := uint32(1)
	rotate := func(asked int) {
		t.Helper()
		version++
		at := r.dial(rotor.Config{Identity: filepath.Join(r.dir, "admin")}, asked)
		for _, name := range []string{"records", "server"} {
			ref := &rotorv1.KeyRef{Name: name}
			if _, err := at.Admin().Keys.Rotate(t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: ref})); err != nil {
				t.Fatal(err)
			}
			awaitPrimary(t, at, ref, version)
		}
	}
	rotate(0)

	r.exchange(0, now, func() { rotate(1) }) // N leads, N+1 will follow
	join(old, "old-1", 0)
	join(now, "now-1", 1)
	rotate(0)
	rotate(1)
	r.exchange(1, old, func() { r.leads(0) }) // N+1 leads, N will follow
	rotate(0)
	rotate(1)
	mixed := r.status(0)
	if mixed.GetFormat() != pinnedFormat || len(mixed.GetReplicas()) != 2 {
		t.Errorf("while an old server lives: %v", mixed)
	}
	for _, s := range mixed.GetReplicas() {
		if want := map[bool]uint32{true: replica.Format, false: pinnedFormat}[s.GetSelf()]; s.GetFormat() != want || !s.GetAlive() {
			t.Errorf("%v, want format %d", s, want)
		}
	}

	r.exchange(1, now, func() { rotate(0) })
	for r.status(0).GetFormat() != replica.Format || r.status(1).GetFormat() != replica.Format { // the last old server may still come back
		time.Sleep(100 * time.Millisecond) // each look is a new connection
	}
	rotate(1)
	for _, m := range members {
		m.end(t)
	}
	c := exec.CommandContext(t.Context(), old.rotor, "server", "run", "--config", r.file(), "--listen", "127.0.0.1:0")
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "store_newer") {
		t.Errorf("an old server on a store that has moved on: %v, %s", err, out)
	}
}
