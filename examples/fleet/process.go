package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// process is one operating-system process that the demo started.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu    sync.Mutex // guards what follows
	last  line       // the newest count
	ready chan string
	held  chan line     // it stands between encryption and write of this record
	idle  chan struct{} // it begins no more operations
	err   error
}

// start runs a program with its standard error in a log file. hear is called with each line that it says.
func start(work, name string, hear func(*process, line), program string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(work, "logs", name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(program, args...), done: make(chan struct{}), ready: make(chan string, 1), held: make(chan line, 1), idle: make(chan struct{}, 1)}
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing outlives the demo
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() { // ends with the process
		p.listen(io.TeeReader(out, log), hear)
		err := errors.Join(p.cmd.Wait(), log.Close())
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

func (p *process) listen(r io.Reader, hear func(*process, line)) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		var l line
		if json.Unmarshal(s.Bytes(), &l) != nil {
			continue // the server's own words
		}
		switch l.Kind {
		case "count":
			p.mu.Lock()
			p.last = l
			p.mu.Unlock()
		case "ready":
			p.ready <- l.Address
		case "resting":
			p.idle <- struct{}{}
		case "encrypted":
			p.held <- l
		default:
			hear(p, l)
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line that is too long
}

// await returns the address at which the process serves.
func (p *process) await(ctx context.Context) (string, error) {
	select {
	case a := <-p.ready:
		return a, nil
	case <-p.done:
		return "", fmt.Errorf("%s ended before it was ready: %w", p.name, p.failure())
	case <-ctx.Done():
		return "", fmt.Errorf("%s did not become ready: %w", p.name, ctx.Err())
	}
}

func (p *process) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *process) count() line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// rest makes it begin no more operations, and returns when the last one has ended.
func (p *process) rest(ctx context.Context) error {
	if err := p.signal(syscall.SIGHUP); err != nil {
		return err
	}
	select {
	case <-p.idle:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended: %w", p.name, p.failure())
	case <-ctx.Done():
		return fmt.Errorf("%s did not come to rest: %w", p.name, ctx.Err())
	}
}

// kill ends it as a power cut would.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	return err
}

// stop asks it to end, and waits.
func (p *process) stop(patience time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return nil //nolint:nilerr // it has ended already
	}
	select {
	case <-p.done:
		return p.failure()
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("%s did not stop in %s", p.name, patience), p.kill())
	}
}

func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }
