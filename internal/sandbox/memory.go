package sandbox

import (
	"bufio"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockMemory locks what the process touches from now on, if the limit lets all of it be locked (LimitMEMLOCK=infinity of systemd): one that is too
// low would make the process fail later, in the middle of something. Locked memory is not given back to the system. Pages that are as they stand in
// a file hold no secret that is not there and are never written to swap, so the program's own are left out.
func lockMemory() bool {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) != nil || l.Cur != unix.RLIM_INFINITY {
		return false
	}
	if unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT) != nil {
		return false
	}
	for _, r := range mapped() {
		_, _, _ = unix.Syscall(unix.SYS_MUNLOCK, r.from, r.length, 0) // at worst more is locked than has to be
	}
	return true
}

// Settle gives back what only the start needed, once the process serves: garbage of the heap, and pages of files (the program and the store) that the
// start ran through. What is needed again is mapped again from the page cache. Anonymous memory, where secrets are, stays as it is, locked or not.
// What the kernel cannot do of it is left.
func Settle() {
	debug.FreeOSMemory()
	for _, r := range mapped() {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r.from, r.length, unix.MADV_NOHUGEPAGE) // or reading one line maps 2 MiB of the file
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r.from, r.length, unix.MADV_DONTNEED)
	}
}

// region is a part of the address space.
type region struct{ from, length uintptr }

// mapped are the parts of the address space that are as they stand in a file. None where the kernel does not tell.
func mapped() []region {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // it was only read
	return asInFiles(f)
}

// asInFiles reads proc_pid_smaps(5): mappings of files that cannot be written to and have no page of their own. Such pages have those that the
// loader relocated before it took the right to write away (RELRO): to drop them would undo that.
func asInFiles(smaps io.Reader) (out []region) {
	var r region
	clean := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && len(fields[1]) == 4: // from-to perms offset device inode path
			r, clean = span(fields[0]), fields[1][1] == '-' && fields[4] != "0"
		case len(fields) == 3 && (fields[0] == "Anonymous:" || fields[0] == "Swap:"):
			clean = clean && fields[1] == "0"
		case len(fields) > 0 && fields[0] == "VmFlags:": // the last line of each
			if clean && r.length > 0 {
				out = append(out, r)
			}
			clean = false
		}
	}
	return out
}

// span reads "from-to"; it has no length if it is neither.
func span(text string) region {
	from, to, _ := strings.Cut(text, "-")
	a, err := strconv.ParseUint(from, 16, 64)
	b, err2 := strconv.ParseUint(to, 16, 64)
	if err != nil || err2 != nil || b < a {
		return region{}
	}
	return region{uintptr(a), uintptr(b - a)}
}
