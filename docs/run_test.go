package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A page is run as a newcomer runs it: from the top of a clone, with an empty home, and with the ports that it names. So that pages and
// other tests cannot be in each other's way, its shell is the first process of network and process namespaces of its own, which also ends
// everything that the page leaves running. Where the kernel does not allow that, pages run one after the other beside everybody else, and
// a port that is taken fails them.
var alone sync.Mutex // held by a page without a namespace of its own

// pageTime bounds one page; a page that waits for something that never comes is ended.
const pageTime = 3 * time.Minute

// inside is set in the process that brings the loopback interface of the new namespace up and then becomes the page's shell.
const inside = "ROTOR_DOCS_SCRIPT"

func TestMain(m *testing.M) {
	if script := os.Getenv(inside); script != "" {
		fmt.Fprintln(os.Stderr, become(script))
		os.Exit(1)
	}
	os.Exit(run(m))
}

// bin is the directory of the programs that make build makes.
var bin string

func run(m *testing.M) int {
	var err error
	if bin, err = os.MkdirTemp("", "rotor-docs-*"); err == nil {
		defer os.RemoveAll(bin)
		err = build(bin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func become(script string) error {
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	if os.Getpid() == 1 { // in a namespace of its own, which needs a /proc that tells of its processes
		err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, ""))
		if err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		return err
	}
	return syscall.Exec(bash, []string{"bash", script}, os.Environ())
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil || lo.Uint16()&unix.IFF_UP != 0 {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// build makes what make build makes.
func build(bin string) error {
	cmd := exec.Command("go", "build", "-o", bin+"/", "./cmd/rotor", "./examples/worker")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// clone makes a directory that looks like a built clone, as far as pages look at it.
func clone(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for to, from := range map[string]string{"bin": bin, "README.md": root + "/README.md", "Makefile": root + "/Makefile"} {
		from, err := filepath.Abs(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mark stands before the output of each block.
const mark = "=== block "

// runCommands runs the blocks in one shell that stops at the first command that fails, and compares what each prints.
func runCommands(t *testing.T, commands []block, expected map[int]block) (wrong []string) {
	t.Helper()
	if len(commands) == 0 {
		return nil
	}
	out, err := runScript(t, script(commands))
	parts := outputs(out)
	last := len(parts) - 1
	if last < 0 {
		return []string{fmt.Sprintf(" %v: %s", err, out)}
	}
	for i, text := range expected {
		if i > last || i == last && err != nil {
			continue
		}
		if line, ok := missingLine(parts[i], text.code); ok {
			wrong = append(wrong, fmt.Sprintf("%d: the block before does not print %q but\n%s", text.line-1, line, parts[i]))
		}
	}
	if err != nil {
		wrong = append(wrong, fmt.Sprintf("%d: %v\n%s", commands[last].line-1, err, parts[last]))
	}
	return wrong
}

func script(commands []block) string {
	var s strings.Builder
	s.WriteString("set -eu -o pipefail\n")
	for i, b := range commands {
		fmt.Fprintf(&s, "echo '%s%d'\n", mark, i)
		if b.lang == "python" {
			fmt.Fprintf(&s, "\"$PYTHON\" - <<'END OF PYTHON'\n%sEND OF PYTHON\n", b.code)
			continue
		}
		s.WriteString(makeCall.ReplaceAllString(b.code, ":"))
	}
	return s.String()
}

// runScript runs a shell script in a clone and returns all that was printed by it and what it started.
func runScript(t *testing.T, text string) (string, error) {
	t.Helper()
	dir, home := clone(t), t.TempDir()
	path := filepath.Join(home, "page.sh")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pageTime)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, flags := range []uintptr{unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS, unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS, 0} {
		cmd := exec.CommandContext(ctx, self)
		cmd.Dir, cmd.Env = dir, []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "PYTHON=" + python(t), "PYTHONPATH=" + absolute(t, root+"/python"), inside + "=" + path}
		attr := &syscall.SysProcAttr{Setpgid: true, Cloneflags: flags}
		if flags&unix.CLONE_NEWUSER != 0 {
			attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		if flags == 0 {
			alone.Lock()
			defer alone.Unlock()
		}
		cmd.SysProcAttr = attr
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		out, err := finish(t, cmd)
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) {
			t.Logf("no namespace of its own (%v)", err)
			continue
		}
		return out, err
	}
	return "", errors.New("no shell")
}

// finish runs a command to its end and then ends what it left running. The output goes to a file, because a pipe would be held open by
// what the page left running.
func finish(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return "", err
	}
	err = cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nothing is left where the page had a process namespace
	b, rerr := os.ReadFile(f.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(bytes.ToValidUTF8(b, []byte("?"))), err
}

func python(t *testing.T) string {
	t.Helper()
	venv := absolute(t, root+"/.cache/venv/bin/python")
	if _, err := os.Stat(venv); err == nil {
		return venv
	}
	return "python3"
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

var markLine = regexp.MustCompile(`(?m)^` + mark + `(\d+)\n`)

// outputs splits what was printed by block.
func outputs(out string) (parts []string) {
	at := markLine.FindAllStringSubmatchIndex(out, -1)
	for i, m := range at {
		end := len(out)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		if n, err := strconv.Atoi(out[m[2]:m[3]]); err != nil || n != i {
			return parts
		}
		parts = append(parts, out[m[1]:end])
	}
	return parts
}

// missingLine finds the first line of want that got does not have, in the order of want. White space between words does not count, and
// "…" stands for anything.
func missingLine(got, want string) (line string, missing bool) {
	lines := strings.Split(got, "\n")
	for _, w := range strings.Split(strings.TrimSpace(want), "\n") {
		for len(lines) > 0 && !pattern(w).MatchString(words(lines[0])) {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			return w, true
		}
		lines = lines[1:]
	}
	return "", false
}

func words(s string) string { return strings.Join(strings.Fields(s), " ") }

func pattern(line string) *regexp.Regexp {
	parts := strings.Split(words(line), "…")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
}
