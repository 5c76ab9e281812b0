//go:build services

package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rotorkms/rotor"
	"github.com/rotorkms/rotor/internal/server"
	"github.com/rotorkms/rotor/internal/testenv"
)

// processes are servers of one cluster, each a process.
type processes struct {
	t     *testing.T
	bin   string
	dir   string
	ports []int
	procs []*exec.Cmd
	logs  []string
}

// newProcesses chooses where so many servers run. config says what to make; configure, what they run with.
func newProcesses(t *testing.T, bin string, n int) *processes {
	t.Helper()
	p := &processes{t: t, bin: bin, dir: t.TempDir(), procs: make([]*exec.Cmd, n), logs: make([]string, n)}
	for range n {
		p.ports = append(p.ports, testenv.FreePort(t))
	}
	return p
}

// config is that of the cluster, for Init.
func (p *processes) config() server.Config {
	p.t.Helper()
	c := server.Config{Dir: p.dir, Listen: p.address(0), Rules: filepath.Join(p.dir, "rules.yaml")}
	if err := os.WriteFile(c.Rules, []byte(rules), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// configure writes the file that the servers read; their directory and rules are named already.
func (p *processes) configure(format string, args ...any) {
	p.t.Helper()
	text := fmt.Sprintf("dir: %s\nrules: %s\n", p.dir, filepath.Join(p.dir, "rules.yaml")) + fmt.Sprintf(format, args...)
	if err := os.WriteFile(p.file(), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *processes) file() string { return filepath.Join(p.dir, "rotor.yaml") }

func (p *processes) address(i int) string { return fmt.Sprintf("127.0.0.1:%d", p.ports[i]) }

// addresses are those of all servers, from one on.
func (p *processes) addresses(from int) string {
	var all []string
	for i := range p.ports {
		all = append(all, p.address((from+i)%len(p.ports)))
	}
	return strings.Join(all, ",")
}

// start runs a server and returns when it answers.
func (p *processes) start(i int) {
	p.t.Helper()
	c := exec.Command(p.bin, "server", "run", "--config", p.file(), "--listen", p.address(i)) //nolint:noctx // killed below
	log, err := os.Create(filepath.Join(p.t.TempDir(), "log"))
	if err != nil {
		p.t.Fatal(err)
	}
	c.Stderr = log
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.procs[i], p.logs[i] = c, log.Name()
	p.t.Cleanup(func() {
		_ = c.Process.Kill() // gone already is fine
		_ = c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "listening on ") {
		p.t.Fatalf("server %d: %q, %v: %s", i, line, err, p.log(i))
	}
}

// log is what a server has logged since it was started.
func (p *processes) log(i int) string {
	b, _ := os.ReadFile(p.logs[i]) // empty says enough
	return string(b)
}

func (p *processes) kill(i int) {
	p.t.Helper()
	if err := p.procs[i].Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.procs[i].Wait() // it was killed
}

func (p *processes) signal(i int, s syscall.Signal) {
	p.t.Helper()
	if err := p.procs[i].Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *processes) dial(config rotor.Config, from int) *rotor.Client {
	p.t.Helper()
	config.Address = p.addresses(from)
	c, err := rotor.Dial(p.t.Context(), config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

// tryGet asks for a path; status 0 is no answer.
func tryGet(ctx context.Context, h *http.Client, url string) (status int, body string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	resp, err := h.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// instead is what a process that a test started does; false in the process of the tests.
func instead() bool {
	testenv.Child()
	if len(os.Args) != 2 || os.Args[1] != soakChild {
		return false
	}
	if err := soakClients(); err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
	return true
}

// sweep removes what the tests built: a directory of the system's for such files.
func sweep() {
	if commandDir != "" {
		_ = os.RemoveAll(commandDir)
	}
}

// commandDir holds the command once a test has asked for it.
var commandDir string

// command builds it, once for all tests.
var command = sync.OnceValue(func() (err error) {
	if commandDir, err = os.MkdirTemp("", "rotor-built-"); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-o", commandDir, "github.com/rotorkms/rotor/cmd/rotor") //nolint:noctx // it ends by itself
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
})

// built is the command.
func built(t *testing.T) string {
	t.Helper()
	if err := command(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(commandDir, "rotor")
}
