//go:build services

package testenv

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SoftHSM is a SoftHSM 2 of the test's own with one token. Its files are its memory, so that it can be taken away and brought back.
type SoftHSM struct {
	Module  string // the library
	Conf    string // that SOFTHSM2_CONF names, also for this process
	Label   string // of the token
	PINFile string
	Dir     string // of the tokens

	t testing.TB
}

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// removeTries bounds how often a token's directory is removed while its library writes.
const removeTries = 1000

// SoftHSM2 makes a token and lets this process find it. The library reads where it is when it is begun, so tests of one process that use it follow each other.
func SoftHSM2(t testing.TB) *SoftHSM {
	t.Helper()
	root, err := os.MkdirTemp("", "softhsm-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a call that was given up goes on in the library for a moment, and may write while the directory goes
		for range removeTries {
			if err = os.RemoveAll(root); err == nil {
				return
			}
		}
		t.Error(err)
	})
	s := &SoftHSM{
		Module: softHSM, Conf: filepath.Join(root, "softhsm2.conf"), Label: "rotor " + strings.ToLower(rand.Text()[:8]), PINFile: filepath.Join(root, "pin"),
		Dir: filepath.Join(root, "tokens"), t: t,
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.write(s.Conf, "directories.tokendir = "+s.Dir+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	t.Setenv("SOFTHSM2_CONF", s.Conf)
	pin := rand.Text()[:12]
	s.SetPIN(pin)
	s.util("--init-token", "--free", "--label", s.Label, "--so-pin", rand.Text()[:12], "--pin", pin)
	return s
}

func (s *SoftHSM) write(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// util runs SoftHSM's tool.
func (s *SoftHSM) util(args ...string) {
	s.t.Helper()
	if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("softhsm2-util: %v (scripts/services installs it)\n%s", err, out)
	}
}

// SetPIN writes another PIN into the PIN's file.
func (s *SoftHSM) SetPIN(pin string) {
	s.t.Helper()
	_ = os.Remove(s.PINFile) // with the mode that it had
	s.write(s.PINFile, pin+"\n")
}

// Remove takes the token away.
func (s *SoftHSM) Remove() {
	s.t.Helper()
	if err := os.Rename(s.Dir, s.Dir+".away"); err != nil {
		s.t.Fatal(err)
	}
}

// Insert brings it back.
func (s *SoftHSM) Insert() {
	s.t.Helper()
	if err := os.Rename(s.Dir+".away", s.Dir); err != nil {
		s.t.Fatal(err)
	}
}

// Renew sets the token up anew under its label and PIN: what was in it is gone.
func (s *SoftHSM) Renew() {
	s.t.Helper()
	pin, err := os.ReadFile(s.PINFile)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.util("--init-token", "--free", "--label", s.Label, "--so-pin", rand.Text()[:12], "--pin", strings.TrimSpace(string(pin)))
}

// Hide takes the objects that are in the token now out of it, until they are put back.
func (s *SoftHSM) Hide() (back func()) {
	s.t.Helper()
	var hidden []string
	for _, path := range s.objects() {
		if err := os.Rename(path, path+".hidden"); err != nil {
			s.t.Fatal(err)
		}
		hidden = append(hidden, path)
	}
	return func() {
		s.t.Helper()
		for _, path := range hidden {
			if err := os.Rename(path+".hidden", path); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

func (s *SoftHSM) objects() []string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.Dir, "*", "*-*.object")) // token.object is the token itself
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

// Objects counts what is in the token.
func (s *SoftHSM) Objects() int {
	s.t.Helper()
	return len(s.objects())
}

// Stall lets the token take calls and not answer: its files are locked, as by another process. asked has a value for whoever waits for one, while a call of the library waits for a lock.
func (s *SoftHSM) Stall() (asked <-chan struct{}, letGo func()) {
	s.t.Helper()
	paths, err := filepath.Glob(filepath.Join(s.Dir, "*", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	var held []*os.File
	inodes := map[string]bool{}
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		held = append(held, f)
		lock := unix.Flock_t{Type: unix.F_WRLCK} // of the open file: one of this process would not keep its library out
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lock); err != nil {
			s.t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			s.t.Fatal(err)
		}
		inodes[strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)] = true
	}
	ctx, cancel := context.WithCancel(context.Background())
	waits, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with letGo, which waits for it
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var tell chan struct{}
			if blocked(inodes) {
				tell = waits
			}
			select {
			case tell <- struct{}{}:
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return waits, func() {
		cancel()
		<-ended
		for _, f := range held {
			f.Close()
		}
	}
}

// blocked says whether somebody waits for a lock of one of these files (proc_locks(5)).
func blocked(inodes map[string]bool) bool {
	f, err := os.Open("/proc/locks")
	if err != nil {
		panic(fmt.Sprintf("this machine does not show its locks: %v", err))
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 1: -> POSIX  ADVISORY  READ 4242 fd:00:2531452 0 EOF
		if fields := strings.Fields(lines.Text()); len(fields) > 6 && fields[1] == "->" {
			at := strings.Split(fields[6], ":")
			if inodes[at[len(at)-1]] {
				return true
			}
		}
	}
	return false
}
