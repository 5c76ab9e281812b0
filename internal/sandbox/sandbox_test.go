package sandbox_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/sandbox"
)

// inside is set in the process that shuts itself in; it answers with a line of JSON.
const inside = "ROTOR_SANDBOX_TEST"

func TestMain(m *testing.M) {
	if text := os.Getenv(inside); text != "" {
		var j job
		if err := json.Unmarshal([]byte(text), &j); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = json.NewEncoder(os.Stdout).Encode(j.run())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// job is what the process is to do.
type job struct {
	User           string
	Own, Read, Out string // directories: to write, to read, and one that it is not given
	URL            string
	Lock           bool    // its limit lets it lock all memory
	Off            bool    // it does not shut itself in: what would happen then
	Flags          uintptr // namespaces of its own; nothing is tried in them
}

// outcome is how each try ended: ok, or the error.
type outcome map[string]string

func said(err error) string {
	var no syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &no):
		return no.Error()
	}
	return err.Error()
}

func (j job) run() outcome {
	out := outcome{}
	if j.User != "" {
		out["become"] = said(sandbox.Become(j.User))
	}
	if j.Lock {
		out["limit"] = said(unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}))
	}
	locked, err := sandbox.Harden()
	out["harden"], out["locked"] = said(err), fmt.Sprint(locked)
	if !j.Off {
		r, err := sandbox.Enter(sandbox.Config{Read: []string{j.Read}, Write: []string{j.Own}, Require: true})
		out["enter"], out["missing"] = said(err), fmt.Sprint(r.Missing)
	}
	if j.Flags != 0 {
		return out
	}
	sandbox.Settle() // whatever it gives back, the process goes on
	j.try(out)
	status, err := os.ReadFile("/proc/self/status")
	out["status"] = string(status)
	if err != nil {
		out["status"] = said(err)
	}
	return out
}

func (j job) try(out outcome) {
	tries := map[string]func() error{
		"exec": func() error { return syscall.Exec("/bin/true", []string{"true"}, nil) },
		"run":  func() error { return exec.Command("/bin/true").Run() },
		"read outside": func() error {
			_, err := os.ReadFile(filepath.Join(j.Out, "secret"))
			return err
		},
		"list outside":  func() error { _, err := os.ReadDir(j.Out); return err },
		"write outside": func() error { return os.WriteFile(filepath.Join(j.Out, "new"), nil, 0o600) },
		"write what is to be read": func() error {
			return os.WriteFile(filepath.Join(j.Read, "rules.yaml"), []byte("x"), 0o600)
		},
		"read what is to be read": func() error { _, err := os.ReadFile(filepath.Join(j.Read, "rules.yaml")); return err },
		"replace own": func() error {
			tmp := filepath.Join(j.Own, ".tmp")
			return errors.Join(os.WriteFile(tmp, []byte("x"), 0o600), os.Rename(tmp, filepath.Join(j.Own, "file")))
		},
		"make own directory": func() error { return os.Mkdir(filepath.Join(j.Own, "dir"), 0o700) },
		"talk": func() error {
			resp, err := http.Get(j.URL)
			if err == nil {
				err = resp.Body.Close()
			}
			return err
		},
		"look up": func() error { _, err := net.LookupHost("localhost"); return err },
		"listen": func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				err = l.Close()
			}
			return err
		},
		"threads":  threads,
		"trace":    func() error { return syscall.PtraceAttach(os.Getppid()) },
		"unshare":  func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"the hour": func() error { return unix.Settimeofday(&unix.Timeval{Sec: -1}) },
	}
	names := []string{}
	for name := range tries {
		if name != "exec" && (!j.Off || slices.Contains(harmless(), name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		out[name] = said(tries[name]())
	}
	if !j.Off { // it would not come back
		out["exec"] = said(tries["exec"]())
	}
}

// threads makes new threads, and has each of them look whether it is shut in, too.
func threads() error {
	var wait sync.WaitGroup
	errs := make(chan error, 8)
	for range 8 {
		wait.Go(func() {
			runtime.LockOSThread()
			if err := syscall.Exec("/bin/true", []string{"true"}, nil); !errors.Is(err, syscall.EPERM) {
				errs <- fmt.Errorf("a thread may: %w", err)
			}
		})
	}
	wait.Wait()
	close(errs)
	return <-errs
}

// start runs the test's own program as the process that shuts itself in.
func start(t *testing.T, j job) outcome {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), exe)
	c.Env = append(os.Environ(), inside+"="+string(text))
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: j.Flags}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	b, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	var out outcome
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// prepared makes the directories, which a user that is not root can reach too.
func prepared(t *testing.T) job {
	t.Helper()
	root := t.TempDir()
	j := job{Own: filepath.Join(root, "own"), Read: filepath.Join(root, "read"), Out: filepath.Join(root, "out")}
	for _, dir := range []string{j.Own, j.Read, j.Out} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Join(j.Read, "rules.yaml"), filepath.Join(j.Out, "secret")} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(s.Close)
	j.URL = s.URL
	return j
}

// allowed are the tries that have to go well inside, as they do outside.
var allowed = []string{"read what is to be read", "replace own", "make own directory", "talk", "look up", "listen"}

// harmless are the tries that can be made where nothing is shut.
func harmless() []string {
	return append(slices.Clone(allowed), "run", "read outside", "list outside", "write outside", "write what is to be read")
}

// TestInside: what a server does goes well; programs, other files and other calls are refused, in old threads and new ones.
func TestInside(t *testing.T) {
	out := start(t, prepared(t))
	want := outcome{"harden": "ok", "enter": "ok", "missing": "[]", "threads": "ok"}
	for _, name := range allowed {
		want[name] = "ok"
	}
	for _, name := range []string{"exec", "run", "trace", "unshare"} {
		want[name] = syscall.EPERM.Error()
	}
	for _, name := range []string{"read outside", "list outside", "write outside", "write what is to be read"} {
		want[name] = syscall.EACCES.Error()
	}
	want["the hour"] = syscall.EPERM.Error()
	for name, w := range want {
		if out[name] != w {
			t.Errorf("%s: %s, want %s", name, out[name], w)
		}
	}
	for _, line := range []string{"NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(out["status"], line) {
			t.Errorf("no %s in the status", line)
		}
	}
	for _, line := range strings.Split(out["status"], "\n") {
		if name, set, ok := strings.Cut(line, ":\t"); ok && (name == "CapEff" || name == "CapPrm" || name == "CapInh" || name == "CapAmb" || name == "CapBnd") {
			const ipcLock = "0000000000004000"
			if set != "0000000000000000" && set != ipcLock {
				t.Errorf("capabilities are left: %s", line)
			}
		}
	}
}

// TestOutside shows that the tries of TestInside go well where nothing is shut, so that the refusals there are the sandbox's.
func TestOutside(t *testing.T) {
	j := prepared(t)
	j.Off = true
	out := start(t, j)
	for _, name := range harmless() {
		if out[name] != "ok" {
			t.Errorf("%s: %s", name, out[name])
		}
	}
	if !strings.Contains(out["status"], "Seccomp:\t0") {
		t.Error("a filter is there already")
	}
}

// TestForeignProc: in a PID namespace whose /proc tells of another's processes the threads cannot be found; that is said, and ends nobody.
func TestForeignProc(t *testing.T) {
	j := prepared(t)
	j.Flags = unix.CLONE_NEWPID
	if os.Getuid() != 0 {
		j.Flags |= unix.CLONE_NEWUSER
	}
	if out := start(t, j); !strings.Contains(out["enter"], "unavailable") || !strings.Contains(out["missing"], "/proc") {
		t.Errorf("%s, missing %s", out["enter"], out["missing"])
	}
}

// TestBecome: root is given up for good, its groups too; nobody else can become another.
func TestBecome(t *testing.T) {
	if os.Geteuid() != 0 {
		if err := sandbox.Become("root"); fault.CodeOf(err) != fault.Invalid {
			t.Error(err)
		}
		return
	}
	out := start(t, job{User: "nobody", Own: "/nonexistent", Read: "/nonexistent", Out: "/root"})
	if out["become"] != "ok" || out["enter"] != "ok" {
		t.Fatalf("%v", out)
	}
	for _, line := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t ", "CapPrm:\t0000000000000000"} {
		if !strings.Contains(out["status"], line) {
			t.Errorf("no %q in the status:\n%s", line, out["status"])
		}
	}
	for name, code := range map[string]fault.Code{"root": fault.Invalid, "no-such-user": fault.Invalid} {
		if err := sandbox.Become(name); fault.CodeOf(err) != code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLockedMemory: memory is locked when the limit lets all of it be, and only then. Where the test may raise the limit it sees both.
func TestLockedMemory(t *testing.T) {
	for _, lock := range []bool{false, true} {
		j := prepared(t)
		j.Lock = lock
		out := start(t, j)
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
			t.Fatal(err)
		}
		want := l.Cur == unix.RLIM_INFINITY || out["limit"] == "ok"
		if got := !strings.Contains(out["status"], "VmLck:\t       0 kB"); got != want || out["locked"] != fmt.Sprint(want) {
			t.Errorf("limit %d, raised: %s; locked: %s, %t", l.Cur, out["limit"], out["locked"], got)
		}
	}
}

// TestOtherNumberings: a call in the numbering of another architecture ends the process, as the names would not fit it.
func TestOtherNumberings(t *testing.T) {
	program, err := sandbox.Filter()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	here, err := arch.GetInfo(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	call := func(number int, architecture uint32, first uint64) int {
		data := make([]byte, 64) // struct seccomp_data; the machine here reads it as the network orders bytes
		binary.BigEndian.PutUint32(data[0:], uint32(number))
		binary.BigEndian.PutUint32(data[4:], architecture)
		binary.BigEndian.PutUint32(data[16:], uint32(first)) // its lower half comes first, as on the processors that rotor runs on
		binary.BigEndian.PutUint32(data[20:], uint32(first>>32))
		out, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	execve := here.SyscallNames["execve"]
	for _, c := range []struct {
		what string
		got  int
		want int
	}{
		{"execve", call(execve, uint32(here.ID), 0), unix.SECCOMP_RET_ERRNO | int(unix.EPERM)},
		{"execve of i386", call(arch.I386.SyscallNames["execve"], uint32(arch.I386.ID), 0), unix.SECCOMP_RET_KILL_PROCESS},
		{"read", call(here.SyscallNames["read"], uint32(here.ID), 0), unix.SECCOMP_RET_ALLOW},
		{"clone3", call(here.SyscallNames["clone3"], uint32(here.ID), 0), unix.SECCOMP_RET_ERRNO | int(unix.ENOSYS)},
		{"clone of a thread", call(here.SyscallNames["clone"], uint32(here.ID), unix.CLONE_THREAD|unix.CLONE_VM), unix.SECCOMP_RET_ALLOW},
		{"clone of a process", call(here.SyscallNames["clone"], uint32(here.ID), uint64(unix.SIGCHLD)), unix.SECCOMP_RET_ERRNO | int(unix.EPERM)},
	} {
		if uint32(c.got) != uint32(c.want) {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

// TestAsInFiles: a page of its own, also one in swap, keeps a mapping from being dropped, as does the right to write to it.
func TestAsInFiles(t *testing.T) {
	entry := func(span, perms, inode, anonymous, swap string) string {
		return span + " " + perms + " 00002000 fe:00 " + inode + "     /usr/bin/rotor\nSize: 8 kB\nAnonymous:      " + anonymous + " kB\nSwap:   " + swap + " kB\nSwapPss: 0 kB\nVmFlags: rd mr\n"
	}
	text := entry("1000-3000", "r-xp", "7", "0", "0") + // code
		entry("3000-4000", "r--p", "7", "4", "0") + // RELRO
		entry("4000-5000", "r--p", "7", "0", "4") + // the same in swap
		entry("5000-6000", "rw-p", "7", "0", "0") + // data
		entry("6000-7000", "r--p", "0", "0", "0") + // of no file
		entry("7000-9000", "r--s", "8", "0", "0") + // the store
		"a000-b000 r-xp 00002000 fe:00 7\nAnonymous: 0 kB\n" // cut short
	if got, want := fmt.Sprintf("%x", sandbox.AsInFiles(strings.NewReader(text))), "[{1000 2000} {7000 2000}]"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}
