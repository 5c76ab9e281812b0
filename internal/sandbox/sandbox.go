// Package sandbox shuts a process in once it serves: no privileges but locked memory, no files beside those that it was given, no program
// started, none of the system calls that a key server has no use for. What comes in through a hole in the process finds little to go on with.
// Linux alone: Landlock for files (landlock(7)), seccomp for system calls (seccomp(2)).
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	lsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/rotorkms/rotor/internal/fault"
)

// Harden does what costs nothing and cannot fail a server that is set up well, before any key is in memory: no core dumps, not even by
// request of another process of the same user (which also may not attach), and memory that is not swapped where the limit allows all of it to be locked.
func Harden() (locked bool, err error) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return false, fmt.Errorf("turn core dumps off: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return false, fmt.Errorf("become undumpable: %w", err)
	}
	return lockMemory(), nil
}

// Become gives up root for good and goes on as a user, with its group and no other. Whoever is not root is that already, or is refused.
// fault.Invalid, Denied.
func Become(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return fault.New(fault.Invalid, "user").WithHint("no user %s on this machine", name)
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	switch {
	case uerr != nil || gerr != nil || uid == 0:
		return fault.New(fault.Invalid, "user").WithHint("a user that is not root")
	case os.Geteuid() == uid:
		return nil
	case os.Geteuid() != 0:
		return fault.New(fault.Denied, "user "+name).WithHint("start it as root or as %s", name)
	}
	if err := errors.Join(unix.Setgroups(nil), unix.Setresgid(gid, gid, gid), unix.Setresuid(uid, uid, uid)); err != nil {
		return fmt.Errorf("become %s: %w", name, err)
	}
	return nil
}

// Config says what is left of the world.
type Config struct {
	Read    []string // directories that may be read, beside those of the system (see system)
	Write   []string // directories that may be read and written
	Require bool     // a kernel that cannot do all of it is an error
}

// Report is what was done.
type Report struct {
	Landlock int      // version of the kernel's interface, 0: none
	Missing  []string // what this machine cannot do
}

// Missing names what this machine cannot do: parts of the kernel, or a /proc that would tell of this process.
func Missing() (names []string) {
	if _, err := lsys.LandlockGetABIVersion(); err != nil {
		names = append(names, "landlock")
	}
	if !seccomp.Supported() {
		names = append(names, "seccomp")
	}
	if !ownProc() {
		names = append(names, "/proc of the process's own PID namespace")
	}
	return names
}

// ownProc says whether /proc tells of this process. With cgo its threads are found there, to restrict each of them, and where they are not the
// library that does it ends the process.
func ownProc() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// Enter shuts the process in, all threads of it, for good. It cannot be undone, and what is open stays open. fault.Unavailable with Require.
func Enter(c Config) (Report, error) {
	var r Report
	r.Missing = Missing()
	if v, err := lsys.LandlockGetABIVersion(); err == nil {
		r.Landlock = v
	}
	if c.Require && len(r.Missing) > 0 {
		return r, fault.New(fault.Unavailable, "sandbox").WithHint("there is no %s", strings.Join(r.Missing, " and no "))
	}
	if !ownProc() {
		r.Landlock = 0
		return r, nil
	}
	if err := dropCapabilities(); err != nil {
		return r, err
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); err != nil {
		return r, fmt.Errorf("give up new privileges: %w", err)
	}
	if r.Landlock > 0 {
		if err := restrictFiles(c); err != nil {
			return r, err
		}
	}
	if seccomp.Supported() {
		if err := restrictCalls(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// dropCapabilities keeps CAP_IPC_LOCK if the process has it, and nothing else, for this process and for what it would become.
func dropCapabilities() error {
	now, next := cap.GetProc(), cap.NewSet()
	keep, err := now.GetFlag(cap.Permitted, cap.IPC_LOCK)
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if may, err := now.GetFlag(cap.Effective, cap.SETPCAP); err == nil && may {
		for v := cap.Value(0); v < cap.MaxBits(); v++ {
			if v != cap.IPC_LOCK {
				if err := cap.DropBound(v); err != nil {
					return fmt.Errorf("bound capabilities: %w", err)
				}
			}
		}
	}
	if keep {
		if err := errors.Join(next.SetFlag(cap.Permitted, true, cap.IPC_LOCK), next.SetFlag(cap.Effective, true, cap.IPC_LOCK)); err != nil {
			return fmt.Errorf("keep locked memory: %w", err)
		}
	}
	if err := next.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// system are the directories that a Go program with TLS, DNS and C libraries reads while it runs.
func system() []string {
	return []string{
		"/etc", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
		"/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/proc/self", "/sys/fs/cgroup",
	}
}

// devices may be read and written.
func devices() []string { return []string{"/dev/null", "/dev/urandom", "/dev/random"} }

// restrictFiles leaves the given directories and no way to run what is in them. Version 8 of the interface is asked for: later ones would
// also shut the sockets of local databases.
func restrictFiles(c Config) error {
	read := landlock.PathAccess(lsys.AccessFSReadFile|lsys.AccessFSReadDir, append(system(), c.Read...)...).IgnoreIfMissing()
	write := landlock.RWDirs(c.Write...).IgnoreIfMissing()
	if err := landlock.V8.BestEffort().RestrictPaths(read, write, landlock.RWFiles(devices()...).IgnoreIfMissing()); err != nil {
		return fmt.Errorf("restrict files: %w", err)
	}
	return nil
}
