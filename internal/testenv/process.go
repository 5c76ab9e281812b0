//go:build services

package testenv

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// startTime bounds how long a server may take until it answers.
const startTime = 60 * time.Second

// output is what a process printed, for the report of a failure.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is a server that runs.
type process struct {
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when it has ended
}

// start runs a command in a process group of its own; with uid 0 it runs as user and group of that number instead.
func start(t testing.TB, asUser int, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), out: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if asUser != 0 && os.Getuid() == 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(asUser), Gid: uint32(asUser)}
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v (scripts/services installs it)", path, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is nobody's question: tests kill it
		close(p.done)
	}()
	return p
}

// signal sends a signal to the whole group.
func (p *process) signal(s syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, s) } // gone already is fine

// kill ends the group and waits.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// await asks until ready says yes. It fails the test when the process ends or startTime is over.
func (p *process) await(t testing.TB, ready func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx) {
		select {
		case <-p.done:
			t.Fatalf("%s ended:\n%s", p.cmd.Path, p.out)
		case <-ctx.Done():
			t.Fatalf("%s does not answer:\n%s", p.cmd.Path, p.out)
		case <-tick.C:
		}
	}
}

// inTree is a path within rotor's tree, in which the test runs.
func inTree(t testing.TB, path string) string {
	t.Helper()
	for dir, _ := os.Getwd(); filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "arch_test.go")); err == nil {
			return filepath.Join(dir, path)
		}
	}
	t.Fatal("not in rotor's tree")
	return ""
}

// Ports that FreePort gives: below those that the kernel gives to connections (ip_local_port_range, from 32768 on), one of which could have the port by the
// time that a server takes it, and after those that services have.
const (
	firstPort = 12_000
	lastPort  = 32_000
)

// given counts the ports that FreePort looked at. Processes begin at different ones, as tests of several packages run at once.
var given atomic.Int64

// FreePort finds a port of the loopback that nobody has now and that only who asks for it by its number can get.
func FreePort(t testing.TB) int {
	t.Helper()
	for range lastPort - firstPort {
		port := firstPort + int(int64(os.Getpid())*97+given.Add(1))%(lastPort-firstPort)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no port is free")
	return 0
}
