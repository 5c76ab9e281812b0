// Package doctor looks at a machine before and while it runs a server, or holds keys: what would let a key out, lose a commit or stop
// the fleet. It reads and changes nothing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/sandbox"
)

// State is how a check ended.
type State string

// The states. A failure makes the command fail.
const (
	OK   State = "ok"
	Warn State = "warn"
	Fail State = "fail"
)

// Finding is the answer of one check.
type Finding struct {
	Code  string `json:"code"` // names the check, for ever
	State State  `json:"state"`
	Found string `json:"found"`          // what is there
	Hint  string `json:"hint,omitempty"` // what to do, when it is not ok
}

// Certificate is one whose end matters.
type Certificate struct {
	Name string
	Ends time.Time
	Life time.Duration // from its begin to its end
	Auto bool          // it is renewed by itself well before its end
}

// Subject is what is looked at; what is empty is left out.
type Subject struct {
	Proc         string // mount point of procfs; default /proc
	Dir          string // the server's directory
	Private      []string
	Rules        string
	Seal         string // the local seal's key file
	Engine       string // of the store: bolt, postgres, etcd
	Certificates []Certificate
	Now          time.Time
	Ours, Theirs string    // versions of this program and of the server
	Asked        time.Time // when the server was asked, and
	ServerTime   time.Time // what time it said; zero: it was not asked
	Config       error     // what is wrong with the configuration
	HasConfig    bool
	Tokens       []hsm.Config // PKCS #11 tokens that the configuration names
}

// Look makes every check that there is something for, in the order of their codes.
func Look(s Subject) []Finding {
	if s.Proc == "" {
		s.Proc = "/proc"
	}
	checks := []func(Subject) []Finding{
		swap, coreDumps, clockSync, clockDrift, certificates, versions, modes, limits, disk, hardware, entropy, kernel, sealPlace, configuration, tokens,
	}
	var all []Finding
	for _, c := range checks {
		all = append(all, c(s)...)
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return strings.Compare(a.Code, b.Code) })
	return all
}

// Failed says whether a finding is a failure.
func Failed(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.State == Fail })
}

func one(code string, state State, found, hint string) []Finding {
	if state == OK {
		hint = ""
	}
	return []Finding{{code, state, found, hint}}
}

func when(bad bool, state State) State {
	if bad {
		return state
	}
	return OK
}

func swap(s Subject) []Finding {
	const hint = "keys in memory can be written to disk: swapoff -a, and take swap out of /etc/fstab; or let the server lock its memory (LimitMEMLOCK=infinity)"
	b, err := os.ReadFile(filepath.Join(s.Proc, "swaps"))
	if err != nil {
		return one("swap", Warn, err.Error(), hint)
	}
	areas := strings.Count(strings.TrimSpace(string(b)), "\n") // the first line is a heading
	return one("swap", when(areas > 0, Warn), fmt.Sprintf("%d areas", areas), hint)
}

func coreDumps(s Subject) []Finding {
	b, err := os.ReadFile(filepath.Join(s.Proc, "sys/fs/suid_dumpable"))
	found := strings.TrimSpace(string(b))
	return one("core_dumps", when(err != nil || found != "0", Warn), "fs.suid_dumpable = "+found,
		"the server turns its own dumps off; for all others: sysctl fs.suid_dumpable=0, and Storage=none in coredump.conf")
}

func clockSync(Subject) []Finding {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return one("clock_sync", Warn, err.Error(), "leases and certificates need a clock: run chrony or another NTP client")
	}
	bad := state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0
	found := "the kernel says that it is disciplined"
	if bad {
		found = "the kernel says that nobody disciplines it"
	}
	return one("clock_sync", when(bad, Warn), found, "leases and certificates need a clock: run chrony or another NTP client")
}

// The server tells its time in whole seconds.
const (
	driftWarn = 2 * time.Second
	driftFail = time.Minute // certificates are dated back by so much
)

func clockDrift(s Subject) []Finding {
	if s.ServerTime.IsZero() {
		return nil
	}
	d := s.Asked.Sub(s.ServerTime).Abs()
	state := when(d > driftWarn, Warn)
	if d > driftFail {
		state = Fail
	}
	return one("clock_drift", state, "some "+d.Truncate(time.Second).String()+" from the server", "certificates and tokens of one will not be valid for the other: set the clock that is wrong")
}

func certificates(s Subject) []Finding {
	var out []Finding
	for _, c := range s.Certificates {
		left, state := c.Ends.Sub(s.Now), OK
		switch {
		case left <= 0:
			state = Fail
		case left < c.Life/10, c.Auto && left < c.Life/4: // what is renewed by itself was due at half of its life
			state = Warn
		}
		hint := "docs/runbooks/expired-ca.md says how: an administrator's with rotor admin invite or rotor server admin, the authority's by a start of its servers"
		if c.Auto {
			hint = "it should have been renewed by now: look at the log of whoever holds it"
		}
		out = append(out, one("certificate_"+c.Name, state, "ends in "+daysOf(left)+", on "+c.Ends.UTC().Format(time.DateOnly), hint)...)
	}
	return out
}

func versions(s Subject) []Finding {
	if s.Theirs == "" {
		return nil
	}
	return one("versions", when(s.Ours != s.Theirs, Warn), "this is "+s.Ours+", the server "+s.Theirs, "versions that follow each other work together; bring both to the newer one")
}

// daysOf writes a time as people count it.
func daysOf(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Truncate(time.Minute).String()
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

func modes(s Subject) []Finding {
	var bad []string
	look := func(path string, not fs.FileMode) {
		if path == "" {
			return
		}
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&not != 0 {
			bad = append(bad, fmt.Sprintf("%s has mode %04o", path, info.Mode().Perm()))
		}
	}
	for _, path := range append([]string{s.Dir, s.Seal}, s.Private...) {
		look(path, 0o077)
	}
	for _, t := range s.Tokens {
		look(t.PINFile, 0o077)
		look(t.Module, 0o022) // it is code of the server
	}
	look(s.Rules, 0o022)
	if s.Dir == "" && len(s.Private) == 0 {
		return nil
	}
	found := "none but their owner can read what is secret or write the rules"
	if len(bad) > 0 {
		found = strings.Join(bad, "; ")
	}
	return one("file_modes", when(len(bad) > 0, Fail), found, "chmod 0700 directories, 0600 files; rules may be read by others, not written")
}

// What a server with the whole of its connections needs.
const needFiles = 24_000

func limits(s Subject) []Finding {
	if s.Dir == "" {
		return nil
	}
	var files, locked unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil || unix.Getrlimit(unix.RLIMIT_MEMLOCK, &locked) != nil {
		return nil
	}
	memory := "no limit"
	if locked.Cur != unix.RLIM_INFINITY {
		memory = fmt.Sprintf("%d KiB", locked.Cur>>10)
	}
	return append(
		one("limit_files", when(files.Max < needFiles, Warn), fmt.Sprintf("%d open files", files.Max), fmt.Sprintf("20,000 connections need %d: LimitNOFILE", needFiles)),
		one("limit_memlock", when(locked.Cur != unix.RLIM_INFINITY, Warn), memory, "memory is locked only when all of it may be: LimitMEMLOCK=infinity")...)
}

// Bounds of what is free on the disk of the server's directory, in bytes.
const (
	diskWarn = 2 << 30
	diskFail = 128 << 20
)

func disk(s Subject) []Finding {
	if s.Dir == "" {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.Dir, &st); err != nil {
		return one("disk_space", Fail, "statfs "+s.Dir+": "+err.Error(), "rotor server init makes it; else name a directory that is there")
	}
	free, state := st.Bavail*uint64(st.Bsize), OK
	switch {
	case free < diskFail:
		state = Fail
	case free < diskWarn:
		state = Warn
	}
	out := one("disk_space", state, fmt.Sprintf("%d MiB free", free>>20), "a full store takes no commit, and so no change; make room")
	if s.Engine == "bolt" {
		kind, bad := volatile(int64(st.Type)) //nolint:unconvert // 32 bits on some machines
		out = append(out, one("store_durability", when(bad, Fail), "on "+kind, "an acknowledged commit must outlive a crash: put the server's directory on a local disk")...)
	}
	return out
}

// volatile names file systems that lose what was synced, or whose locks and syncs are another machine's.
func volatile(kind int64) (name string, bad bool) {
	switch kind {
	case unix.TMPFS_MAGIC:
		return "tmpfs, which is memory", true
	case unix.RAMFS_MAGIC:
		return "ramfs, which is memory", true
	case unix.NFS_SUPER_MAGIC:
		return "NFS, whose locks and syncs are another machine's", true
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs, which goes away with its container", true
	}
	return fmt.Sprintf("file system %#x", kind), false
}

func hardware(Subject) []Finding {
	fast := cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAES
	found := "the processor has AES instructions"
	if !fast {
		found = "the processor has no AES instructions"
	}
	return one("hardware_aes", when(!fast, Warn), found, "AES in software is slow and not constant in time: use ChaCha20-Poly1305, or another machine")
}

func entropy(Subject) []Finding {
	_, err := unix.Getrandom(make([]byte, 32), unix.GRND_NONBLOCK)
	found := "the kernel's generator is seeded"
	if err != nil {
		found = "getrandom: " + err.Error()
	}
	return one("entropy", when(err != nil, Fail), found, "keys are made from it: wait until the machine has started, or give it virtio-rng")
}

func kernel(s Subject) []Finding {
	if s.Dir == "" {
		return nil
	}
	missing := sandbox.Missing()
	found := "it can shut the server in"
	if len(missing) > 0 {
		found = "no " + strings.Join(missing, ", no ")
	}
	return one("sandbox", when(len(missing) > 0, Warn), found, "Landlock needs Linux 5.13 and lsm=landlock,…; profile ha does not start without")
}

func sealPlace(s Subject) []Finding {
	if s.Seal == "" || s.Dir == "" {
		return nil
	}
	var a, b unix.Stat_t
	if unix.Stat(s.Seal, &a) != nil || unix.Stat(s.Dir, &b) != nil || s.Engine != "bolt" {
		return nil
	}
	return one("seal_place", when(a.Dev == b.Dev, Warn), "the local seal's key is on the disk of the store", "a copy of that disk opens every key: put it elsewhere (seal_key), or use another seal")
}

func configuration(s Subject) []Finding {
	if !s.HasConfig {
		return nil
	}
	found, hint := "it is valid", "docs/reference/configuration.md tells the keys"
	if s.Config != nil {
		found = s.Config.Error()
	}
	if f := (*fault.Error)(nil); errors.As(s.Config, &f) && f.Hint != "" {
		hint = f.Hint
	}
	return one("configuration", when(s.Config != nil, Fail), found, hint)
}

// tokens loads the module of each token and asks the token what it is, without logging in: a PIN that is tried too often locks it.
func tokens(s Subject) []Finding {
	var out []Finding
	for _, c := range s.Tokens {
		state, found, hint := OK, "", "check module, token and pin_file of the configuration, and what the vendor's tool says of the token"
		t, err := hsm.Open(c) //nolint:staticcheck // always fails in builds without PKCS #11
		if err == nil {       //nolint:staticcheck // so this is never true in them
			var i hsm.Info
			if i, err = t.Info(context.Background()); err == nil { // which bounds itself
				found = fmt.Sprintf("%s: %s %s, serial %s, by %s", i.Label, i.Maker, i.Model, i.Serial, i.Library)
			}
		}
		if err != nil {
			state, found = Fail, c.Token+": "+err.Error()
			var f *fault.Error
			if errors.As(err, &f) {
				hint = f.HintText()
			}
		}
		out = append(out, one("pkcs11_token", state, found, hint)...)
	}
	return out
}
