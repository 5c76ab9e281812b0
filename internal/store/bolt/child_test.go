package bolt_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// Tests of crashes and of failing system calls run this test binary again, as a child whose kernel misbehaves as asked.
const (
	childMode = "ROTOR_BOLT_CHILD"
	childPath = "ROTOR_BOLT_PATH"
)

func TestMain(m *testing.M) {
	mode, path := os.Getenv(childMode), os.Getenv(childPath)
	if mode == "" {
		os.Exit(m.Run())
	}
	run, ok := children[mode]
	if !ok {
		run = slowChildren()[mode]
	}
	if err := run(path); err != nil {
		fmt.Fprintln(os.Stderr, mode+":", err)
		os.Exit(1)
	}
}

var children = map[string]func(path string) error{
	"write":      childWrite,
	"resize":     childResize,
	"room":       childRoom,
	"data":       func(path string) error { return childFull(path, deny(unix.SYS_PWRITE64, unix.ENOSPC, 8192, 0)) },
	"meta":       func(path string) error { return childFull(path, deny(unix.SYS_PWRITE64, unix.ENOSPC, 0, 8192)) },
	"sync":       func(path string) error { return childStopped(path, deny(unix.SYS_FDATASYNC, unix.EIO, 0, 0)) },
	"syncENOSPC": func(path string) error { return childStopped(path, deny(unix.SYS_FDATASYNC, unix.ENOSPC, 0, 0)) },
	"writeEIO":   func(path string) error { return childStopped(path, deny(unix.SYS_PWRITE64, unix.EIO, 8192, 0)) },
}

func command(t *testing.T, mode, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childMode+"="+mode, childPath+"="+path)
	return cmd
}

// deny is a seccomp filter: the system call fails with errno; of pwrite64 only calls with from <= offset, and offset < to unless
// that is 0.
func deny(call uintptr, errno unix.Errno, from, to uint32) []unix.SockFilter {
	const load, jumpEqual, jumpMore, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
		unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	if to == 0 {
		to = 1<<32 - 1
	}
	if call != unix.SYS_PWRITE64 {
		return []unix.SockFilter{
			{Code: load}, {Code: jumpEqual, K: uint32(call), Jf: 1},
			{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}, {Code: ret, K: unix.SECCOMP_RET_ALLOW},
		}
	}
	return []unix.SockFilter{
		{Code: load}, {Code: jumpEqual, K: uint32(call), Jf: 4},
		{Code: load, K: 16 + 3*8}, // the low half of the offset
		{Code: jumpMore, K: from, Jf: 2}, {Code: jumpMore, K: to, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}, {Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
}

// install puts all threads of the process under a filter, for good.
func install(filter []unix.SockFilter) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// childFull: under the filter each commit finds the disk full, also conditional ones that wait together; nothing is lost or stops.
func childFull(path string, filter []unix.SockFilter) error {
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		return err
	}
	rev, err := s.Commit(ctx, nil, []store.Op{put("k", "acknowledged")})
	if err != nil {
		return err
	}
	if err := install(filter); err != nil {
		return err
	}
	for range 20 {
		errs := make([]error, 64)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { // the condition of each holds, so none may hear of a conflict with one that never happened
				_, errs[i] = s.Commit(ctx, []store.Cond{{Key: "k", Rev: rev}}, []store.Op{put("k", "never")})
			})
		}
		wg.Wait()
		for _, err := range errs {
			if !errors.Is(err, store.ErrFull) || !errors.Is(err, unix.ENOSPC) || errors.Is(err, store.ErrUnknown) {
				return fmt.Errorf("commit: %w", err)
			}
		}
	}
	if r, err := s.Get(ctx, "k"); err != nil || string(r.Value) != "acknowledged" || r.Rev != rev {
		return fmt.Errorf("get: %+v, %w", r, err)
	}
	return s.Close()
}

// childStopped: under the filter the outcome of a commit is unknown, and the store stops for good.
func childStopped(path string, filter []unix.SockFilter) error {
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		return err
	}
	rev, err := s.Commit(ctx, nil, []store.Op{put("k", "acknowledged")})
	if err != nil {
		return err
	}
	watched := make(chan error)
	go func() {
		for _, err := range s.Watch(ctx, "", rev) {
			watched <- err
			return
		}
	}()
	if err := install(filter); err != nil {
		return err
	}
	if _, err := s.Commit(ctx, nil, []store.Op{put("u", "perhaps")}); !errors.Is(err, store.ErrUnknown) {
		return fmt.Errorf("commit: %w", err)
	}
	if _, err := s.Commit(ctx, nil, []store.Op{put("u", "later")}); !errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrUnknown) {
		return fmt.Errorf("commit after it: %w", err)
	}
	if _, err := s.Get(ctx, "k"); !errors.Is(err, store.ErrClosed) {
		return fmt.Errorf("get after it: %w", err)
	}
	if err := <-watched; !errors.Is(err, store.ErrClosed) {
		return fmt.Errorf("watch after it: %w", err)
	}
	return s.Close()
}

// TestFailingCalls: whatever the kernel answers, what was acknowledged is there afterwards and the file is whole.
func TestFailingCalls(t *testing.T) {
	for _, mode := range []string{"data", "meta", "sync", "syncENOSPC", "writeEIO", "resize", "room"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "store.db")
			if out, err := command(t, mode, path).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			s := mustOpen(t, path, bolt.Options{})
			if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != "acknowledged" {
				t.Errorf("%+v, %v", r, err)
			}
			if _, err := s.Get(t.Context(), "never"); !errors.Is(err, store.ErrNotFound) {
				t.Error(err)
			}
			mustCommit(t, s, put("k", "afterwards"))
		})
	}
}

// limit sets how long a file may become; 0 is no limit.
func limit(bytes uint64) error {
	signal.Ignore(unix.SIGXFSZ)
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &l); err != nil {
		return err
	}
	if l.Cur = bytes; bytes == 0 {
		l.Cur = l.Max
	}
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &l)
}

// fill commits until there is no room, gets room, and goes on; nothing acknowledged is lost on the way.
func fill(s store.Store, bytes uint64) error {
	if _, err := s.Commit(ctx, nil, []store.Op{put("k", "acknowledged")}); err != nil {
		return err
	}
	acked := 0
	for range 3 {
		if err := limit(bytes); err != nil {
			return err
		}
		for n := 0; ; n++ {
			_, err := s.Commit(ctx, nil, []store.Op{put(fmt.Sprintf("n/%06d", acked), strings.Repeat("x", 2000))})
			if errors.Is(err, store.ErrFull) && errors.Is(err, unix.EFBIG) || errors.Is(err, store.ErrFull) && strings.Contains(err.Error(), "too large") {
				break
			}
			if err != nil || n > 1000 {
				return fmt.Errorf("commit %d: %w", n, err)
			}
			acked++
		}
		if err := limit(0); err != nil {
			return err
		}
		if _, err := s.Commit(ctx, nil, []store.Op{put("room", "again")}); err != nil {
			return fmt.Errorf("with room again: %w", err)
		}
		bytes *= 2
	}
	_, records := s.List(ctx, "n/")
	for _, err := range records {
		if err != nil {
			return err
		}
		acked--
	}
	if acked != 0 {
		return fmt.Errorf("%d commits were lost", acked)
	}
	return nil
}

// childResize finds no room when the file is made longer.
func childResize(path string) error {
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		return err
	}
	return errors.Join(fill(s, 100_000), s.Close())
}

// childRoom finds no room in the middle of the file, as on a disk that reserves nothing.
func childRoom(path string) error {
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		return err
	}
	for i := range 100 {
		if _, err := s.Commit(ctx, nil, []store.Op{put(fmt.Sprint("o/", i), strings.Repeat("y", 5000))}); err != nil {
			return err
		}
	}
	return errors.Join(fill(s, 20_000), s.Close())
}

const crashWriters = 4

// childWrite commits without end, and says what was acknowledged.
func childWrite(path string) error {
	s, err := bolt.Open(path, bolt.Options{History: 50})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for w := range crashWriters {
		wg.Go(func() {
			a, b := fmt.Sprintf("w/%d/a", w), fmt.Sprintf("w/%d/b", w)
			n := 0
			if r, err := s.Get(ctx, a); err == nil {
				fmt.Sscan(string(r.Value), &n)
			}
			for {
				n++
				pad := strings.Repeat(" x", n%500)
				if _, err := s.Commit(ctx, nil, []store.Op{put(a, fmt.Sprint(n, pad)), put(b, fmt.Sprint(n, pad))}); err != nil {
					panic(err)
				}
				fmt.Printf("%d %d\n", w, n)
			}
		})
	}
	wg.Wait()
	return nil
}

// crash kills -9 a writing child again and again, after ever other numbers of acknowledgements.
func crash(t *testing.T, rounds int) {
	path := filepath.Join(t.TempDir(), "store.db")
	acked := make([]int, crashWriters)
	for round := range rounds {
		cmd := command(t, "write", path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var w, v int
			if _, err := fmt.Sscan(lines.Text(), &w, &v); err == nil {
				acked[w] = v
			}
			if n == 5+round*7%90 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		s := mustOpen(t, path, bolt.Options{History: 50})
		for w, n := range acked {
			a, errA := s.Get(t.Context(), fmt.Sprintf("w/%d/a", w))
			b, errB := s.Get(t.Context(), fmt.Sprintf("w/%d/b", w))
			if n == 0 && errors.Is(errA, store.ErrNotFound) && errors.Is(errB, store.ErrNotFound) {
				continue
			}
			var got int
			fmt.Sscan(string(a.Value), &got)
			if errA != nil || errB != nil || string(a.Value) != string(b.Value) || a.Rev != b.Rev || got < n {
				t.Fatalf("round %d, writer %d, acknowledged %d: %d at %d and %.9q at %d, %v, %v", round, w, n, got, a.Rev, b.Value, b.Rev, errA, errB)
			}
			acked[w] = got
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d rounds, acknowledged %v", rounds, acked)
}

func TestCrash(t *testing.T) { crash(t, 6) }
