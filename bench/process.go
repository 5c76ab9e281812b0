package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// raiseFiles lets this process and the server that it starts have a connection for each watcher.
func raiseFiles(n int) error {
	want := uint64(n + 1000)
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur >= want {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(l.Max, want)})
}

// process is a server in a process of its own.
type process struct {
	dir, address string
	cmd          *exec.Cmd
}

func startServer(ctx context.Context, o options) (*process, error) {
	s := &process{dir: filepath.Join(o.dir, "crowd")}
	flags := []string{"--dir", s.dir, "--listen", "127.0.0.1:0", "--rules", filepath.Join(o.dir, "crowd.yaml")}
	if err := os.WriteFile(filepath.Join(o.dir, "crowd.yaml"), []byte(crowdRules), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, o.rotor, append([]string{"server", "init", "--local-admin"}, flags...)...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("init a server: %w: %s", err, out)
	}
	s.cmd = exec.CommandContext(ctx, o.rotor, append([]string{"server", "run", "--lease-ttl", "1h"}, flags...)...)
	log, err := os.Create(filepath.Join(o.dir, "crowd.log"))
	if err != nil {
		return nil, err
	}
	s.cmd.Stderr = log
	line, err := s.start()
	s.address = strings.TrimPrefix(line, "listening on ")
	return s, err
}

// start starts the process and returns the first line that it prints.
func (s *process) start() (string, error) {
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := s.cmd.Start(); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("start a server: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// told adds the end of the server's log to an error.
func (s *process) told(err error) error {
	b, _ := os.ReadFile(s.cmd.Stderr.(*os.File).Name()) // what there is
	return fmt.Errorf("%w; the server said: …%s", err, b[max(0, len(b)-4096):])
}

func (s *process) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = s.cmd.Wait()                          // how is nobody's question
}

// cpu is the time that the server has computed (proc_pid_stat(5), in 10 ms).
func (s *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2)
}

// memory is a line of the server's /proc/PID/status, in KB of 1000 bytes.
func (s *process) memory(line string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib * 1.024, err
		}
	}
	return 0, errors.New("the kernel does not tell " + line)
}

// forgetPeak makes VmHWM begin anew (proc_pid_clear_refs(5)).
func (s *process) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0o600)
}

// settled is the resident memory, in KB of 1000 bytes, when the server has come to rest: it has not fallen for twenty seconds.
func (s *process) settled(ctx context.Context) (float64, error) {
	least, err := s.memory("VmRSS")
	for calm := 0; calm < 40 && err == nil; calm++ {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		var now float64
		if now, err = s.memory("VmRSS"); now < 0.995*least {
			least, calm = now, 0
		}
	}
	return least, err
}
