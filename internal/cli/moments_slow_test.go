//go:build slow

package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// workshop is a server of its own in a directory of its own.
type workshop struct {
	*testing.T
	dir, address string
}

func newWorkshop(t *testing.T) workshop {
	t.Helper()
	w := workshop{T: t, dir: t.TempDir()}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "rotor", "dev", "--listen", "127.0.0.1:0")
	cmd.Dir = w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatal(line, err)
	}
	w.address = address
	return w
}

func (w workshop) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.Context(), "rotor", args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "ROTOR_ADDRESS="+w.address, "ROTOR_IDENTITY="+filepath.Join(w.dir, "rotor-dev", "admin"))
	return cmd
}

func (w workshop) must(args ...string) []byte {
	w.Helper()
	cmd := w.command(args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		w.Fatalf("rotor %v: %v, %s", args, err, errs.String())
	}
	return out
}

// interrupted runs a command and signals it after a time. It must end as done, as given up, or by the signal itself.
func (w workshop) interrupted(s syscall.Signal, after time.Duration, args ...string) (done bool) {
	w.Helper()
	cmd := w.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(s) }) // it may have ended
	err := cmd.Wait()
	timer.Stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true
	case !errors.As(err, &exit):
		w.Fatal(err)
	case exit.ExitCode() == 1 && bytes.Contains(out.Bytes(), []byte("code: canceled")), exit.ExitCode() == 1 && bytes.Contains(out.Bytes(), []byte("code: outcome_unknown")):
	case exit.ExitCode() == 1 && bytes.Contains(out.Bytes(), []byte("code: rotation_in_flight")): // the one before arrived late
	case exit.Sys().(syscall.WaitStatus).Signaled(): // before it listened to signals
	default:
		w.Fatalf("after %s: %v: %s", after, err, out.String())
	}
	return false
}

// moments are spread over what a command takes.
func moments(test func(i int, s syscall.Signal, after time.Duration)) {
	for i := range 40 {
		test(i, []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2], time.Duration(i)*2*time.Millisecond)
	}
}

// TestInterruptedFiles ends encrypt and decrypt at many moments: the old file is there byte for byte or the new one is whole, and nothing
// else is in the directory.
func TestInterruptedFiles(t *testing.T) {
	w := newWorkshop(t)
	w.must("key", "create", "models", "--purpose", "wrap", "--yes")
	plain := bytes.Repeat([]byte("weights "), 3<<20)
	if err := os.WriteFile(filepath.Join(w.dir, "plain"), plain, 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("encrypt", "models", "plain", "--out", "first.rotor")
	dir := filepath.Join(w.dir, "out")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		whole func(b []byte) bool
	}{
		{[]string{"decrypt", "first.rotor", "--out", "out/x"}, func(b []byte) bool { return bytes.Equal(b, plain) }},
		{[]string{"encrypt", "models", "plain", "--out", "out/x"}, func([]byte) bool { return bytes.Equal(w.must("decrypt", "./out/x", "--out", "-"), plain) }},
	} {
		ended := map[bool]int{}
		moments(func(i int, s syscall.Signal, after time.Duration) {
			old, args := []byte("the old file"), c.args
			path := filepath.Join(dir, "x")
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if i%3 > 0 {
				args = append(args, "--force")
				if err := os.WriteFile(path, old, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			done := w.interrupted(s, after, args...)
			ended[done]++
			all, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			switch {
			case len(all) > 1 || len(all) == 1 && all[0].Name() != "x":
				t.Fatalf("%v after %s left %v", c.args, after, all)
			case done && !c.whole(b):
				t.Fatalf("%v after %s ended well and its file is wrong", c.args, after)
			case err != nil && i%3 > 0:
				t.Fatalf("%v after %s: the old file is gone", c.args, after)
			case err == nil && !bytes.Equal(b, old) && !c.whole(b):
				t.Fatalf("%v after %s left a part of a file", c.args, after)
			}
		})
		t.Logf("%s: %d ended well, %d were given up", c.args[0], ended[true], ended[false])
		if ended[false] == 0 {
			t.Errorf("no signal met %s at work", c.args[0])
		}
	}
}

// TestInterruptedRotate ends rotate at many moments: the key has one primary, whatever was begun goes on in the server or was not begun, and
// the next rotation works.
func TestInterruptedRotate(t *testing.T) {
	w := newWorkshop(t)
	w.must("key", "create", "records", "--purpose", "encrypt", "--yes")
	versions := func() (primary, target, n int) {
		var k struct {
			Primary, Target int
			Versions        []struct{ Phase string }
		}
		if err := json.Unmarshal(w.must("key", "show", "records", "-o", "json"), &k); err != nil {
			t.Fatal(err)
		}
		primaries := 0
		for _, v := range k.Versions {
			if v.Phase == "primary" {
				primaries++
			}
		}
		if primaries != 1 {
			t.Fatalf("%d primary versions: %+v", primaries, k)
		}
		return k.Primary, k.Target, len(k.Versions)
	}
	attempts, ended := 0, 0
	moments(func(_ int, s syscall.Signal, after time.Duration) {
		attempts++
		if w.interrupted(s, after, "rotate", "records", "--yes") {
			ended++
		}
		w.must("status", "records", "--watch") // until what was begun is over; a request may still be on its way
		if _, _, n := versions(); n > 1+attempts || n < 1+ended {
			t.Fatalf("after %s: %d versions after %d attempts, of which %d ended well", after, n, attempts, ended)
		}
	})
	w.must("rotate", "records", "--yes")
	primary, target, n := versions()
	if primary != n || target != 0 {
		t.Errorf("primary %d, target %d of %d versions", primary, target, n)
	}
	t.Logf("%d rotations ended well, %d were given up, %d of them went on in the server", ended, attempts-ended, n-2-ended)
	if ended == attempts {
		t.Error("no signal met rotate at work")
	}
}

// TestFullDisk encrypts and decrypts onto a file system of 1 MiB: the old file stays, nothing else does.
func TestFullDisk(t *testing.T) {
	w := newWorkshop(t)
	w.must("key", "create", "models", "--purpose", "wrap", "--yes")
	if err := os.WriteFile(filepath.Join(w.dir, "plain"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("encrypt", "models", "plain")
	if err := os.Mkdir(filepath.Join(w.dir, "small"), 0o700); err != nil {
		t.Fatal(err)
	}
	const script = `set -e
mount -t tmpfs -o size=1m none small
echo old > small/x
for c in "encrypt models plain --out small/x --force" "encrypt models plain --out small/y" "decrypt plain.rotor --out small/x --force" "decrypt plain.rotor --out small/y"; do
	if rotor $c 2> said; then echo "$c ended well"; exit 9; fi
	grep -q '^code: disk_full' said || { cat said; exit 8; }
	grep -q '^hint: ' said
	test "$(cat small/x)" = old
	test "$(ls -A small)" = x
done`
	cmd := w.command()
	cmd.Args = []string{"unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script}
	var err error
	if cmd.Path, err = exec.LookPath("unshare"); err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
