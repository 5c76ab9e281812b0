//go:build services

package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// PostgreSQL is a server of the test's own, with fsync on. User and database are rotor, with a password over TCP.
type PostgreSQL struct {
	URL    string // postgres://rotor:…@127.0.0.1:port/rotor
	Socket string // the same by a Unix socket
	Port   int
	Dir    string // data directory

	t     testing.TB
	bin   string
	args  []string
	owner int
	proc  *process
}

// Postgres starts a server; settings are lines of postgresql.conf, such as "synchronous_commit=off". It is ended with the test.
func Postgres(t testing.TB, settings ...string) *PostgreSQL {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		t.Fatal("no PostgreSQL: scripts/services installs it")
	}
	slices.Sort(found)
	p := &PostgreSQL{t: t, bin: found[len(found)-1], Port: FreePort(t)}
	root, err := os.MkdirTemp("", "rotor-postgres-") // t.TempDir is root's alone; this one the server's user may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if os.Getuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		p.owner, _ = strconv.Atoi(nobody.Uid)
		if err := os.Chown(root, p.owner, p.owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil { // for those who come by the socket
		t.Fatal(err)
	}
	p.Dir = filepath.Join(root, "data")
	password := filepath.Join(root, "password")
	if err := os.WriteFile(password, []byte("fine-for-a-test"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("initdb", "-D", p.Dir, "-U", "rotor", "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8", "--locale=C", "--no-sync")
	p.args = []string{
		"-D", p.Dir, "-p", strconv.Itoa(p.Port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + root,
		"-c", "max_connections=200", "-c", "shared_buffers=32MB",
	}
	for _, s := range settings {
		p.args = append(p.args, "-c", s)
	}
	p.URL = fmt.Sprintf("postgres://rotor:fine-for-a-test@127.0.0.1:%d/rotor", p.Port)
	p.Socket = fmt.Sprintf("postgres://rotor:fine-for-a-test@/rotor?host=%s&port=%d", root, p.Port)
	t.Cleanup(p.Kill)
	p.Start()
	p.run("psql", fmt.Sprintf("postgres://rotor:fine-for-a-test@127.0.0.1:%d/postgres", p.Port), "-qc", "CREATE DATABASE rotor")
	return p
}

// run runs one of PostgreSQL's programs to its end.
func (p *PostgreSQL) run(name string, args ...string) {
	p.t.Helper()
	c := exec.Command(filepath.Join(p.bin, name), args...)
	c.Dir = "/"
	if p.owner != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(p.owner), Gid: uint32(p.owner)}}
	}
	if out, err := c.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Start starts the server again after Kill or Stop and waits until it answers.
func (p *PostgreSQL) Start() {
	p.t.Helper()
	p.proc = start(p.t, p.owner, filepath.Join(p.bin, "postgres"), p.args...)
	p.proc.await(p.t, func(ctx context.Context) bool {
		return exec.CommandContext(ctx, filepath.Join(p.bin, "pg_isready"), "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(p.Port)).Run() == nil
	})
}

// Kill ends every process of the server at once, as a power cut of the machine would end them (what was written stays in the page cache).
func (p *PostgreSQL) Kill() {
	if p.proc != nil {
		p.proc.kill()
	}
}

// Stop shuts the server down and waits.
func (p *PostgreSQL) Stop() {
	_ = syscall.Kill(p.proc.cmd.Process.Pid, syscall.SIGINT) // "fast" shutdown
	<-p.proc.done
}

// Freeze stops every process of the server (SIGSTOP); Thaw lets them go on.
func (p *PostgreSQL) Freeze() { p.all(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (p *PostgreSQL) Thaw() { p.all(syscall.SIGCONT) }

// all signals the server and its children, each of which leads a group of its own.
func (p *PostgreSQL) all(s syscall.Signal) {
	p.t.Helper()
	pid := p.proc.cmd.Process.Pid
	p.proc.signal(s)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || len(children) == 0 {
		p.t.Fatalf("children of PostgreSQL: %q, %v", children, err)
	}
	for child := range strings.FieldsSeq(string(children)) {
		if n, err := strconv.Atoi(child); err == nil {
			_ = syscall.Kill(n, s) // gone already is fine
		}
	}
}
