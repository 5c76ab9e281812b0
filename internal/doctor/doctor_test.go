package doctor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/doctor"
)

// machine is a procfs of the test's, and a server's directory as it should be.
func machine(t *testing.T) doctor.Subject {
	t.Helper()
	root := t.TempDir()
	s := doctor.Subject{
		Proc: filepath.Join(root, "proc"), Dir: filepath.Join(root, "dir"), Engine: "postgres", Now: time.Unix(1_800_000_000, 0), Ours: "1", Theirs: "1", HasConfig: true,
	}
	s.Asked, s.ServerTime = s.Now, s.Now
	s.Rules, s.Seal = filepath.Join(s.Dir, "rules.yaml"), filepath.Join(s.Dir, "seal.key")
	for path, text := range map[string]string{
		filepath.Join(s.Proc, "swaps"):                "Filename\tType\tSize\tUsed\tPriority\n",
		filepath.Join(s.Proc, "sys/fs/suid_dumpable"): "0\n", s.Rules: "", s.Seal: "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	s.Certificates = []doctor.Certificate{{Name: "identity", Ends: s.Now.Add(300 * 24 * time.Hour), Life: 365 * 24 * time.Hour}}
	return s
}

func stateOf(t *testing.T, all []doctor.Finding, code string) doctor.State {
	t.Helper()
	for _, f := range all {
		if f.Code == code {
			if (f.State == doctor.OK) != (f.Hint == "") || f.Found == "" {
				t.Errorf("%+v", f)
			}
			return f.State
		}
	}
	return ""
}

// TestEachCheckCanFail: every check is fine with what is fine, and says so when what it looks at is not.
func TestEachCheckCanFail(t *testing.T) {
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, code string
		spoil      func(s *doctor.Subject)
		want       doctor.State
	}{
		{"a swap area", "swap", func(s *doctor.Subject) {
			write(filepath.Join(s.Proc, "swaps"), "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1 0 -2\n")
		}, doctor.Warn},
		{"dumps of others", "core_dumps", func(s *doctor.Subject) { write(filepath.Join(s.Proc, "sys/fs/suid_dumpable"), "2\n") }, doctor.Warn},
		{"a clock that is off", "clock_drift", func(s *doctor.Subject) { s.ServerTime = s.Now.Add(10 * time.Second) }, doctor.Warn},
		{"a clock that is behind", "clock_drift", func(s *doctor.Subject) { s.ServerTime = s.Now.Add(-2 * time.Minute) }, doctor.Fail},
		{"a certificate that ends", "certificate_identity", func(s *doctor.Subject) { s.Certificates[0].Ends = s.Now.Add(24 * time.Hour) }, doctor.Warn},
		{"a certificate that ended", "certificate_identity", func(s *doctor.Subject) { s.Certificates[0].Ends = s.Now }, doctor.Fail},
		{"one that was not renewed", "certificate_identity", func(s *doctor.Subject) {
			s.Certificates[0].Auto, s.Certificates[0].Ends = true, s.Now.Add(s.Certificates[0].Life/5)
		}, doctor.Warn},
		{"another version", "versions", func(s *doctor.Subject) { s.Theirs = "2" }, doctor.Warn},
		{"a seal that others read", "file_modes", func(s *doctor.Subject) { chmod(t, s.Seal, 0o640) }, doctor.Fail},
		{"rules that others write", "file_modes", func(s *doctor.Subject) { chmod(t, s.Rules, 0o620) }, doctor.Fail},
		{"an identity that others read", "file_modes", func(s *doctor.Subject) { s.Private = []string{os.TempDir()} }, doctor.Fail},
		{"a directory that is not there", "disk_space", func(s *doctor.Subject) { s.Dir += "x" }, doctor.Fail},
		{"a configuration that is wrong", "configuration", func(s *doctor.Subject) { s.Config = errors.New("no") }, doctor.Fail},
		{"a seal beside the store", "seal_place", func(s *doctor.Subject) { s.Engine = "bolt" }, doctor.Warn},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := machine(t)
			good := doctor.Look(s)
			if got := stateOf(t, good, c.code); got != doctor.OK && (c.code != "seal_place" || got != "") {
				t.Errorf("before: %s is %q: %+v", c.code, got, good)
			}
			c.spoil(&s)
			bad := doctor.Look(s)
			if got := stateOf(t, bad, c.code); got != c.want {
				t.Errorf("%s is %q, want %q: %+v", c.code, got, c.want, bad)
			}
			if doctor.Failed(bad) != (c.want == doctor.Fail) {
				t.Errorf("failed: %t: %+v", doctor.Failed(bad), bad)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestDurability: a store in memory is a failure, whatever else is fine.
func TestDurability(t *testing.T) {
	s := machine(t)
	s.Engine, s.Dir = "bolt", "/dev/shm"
	all := doctor.Look(s)
	if got := stateOf(t, all, "store_durability"); got != doctor.Fail {
		t.Errorf("on tmpfs: %q", got)
	}
	s.Dir = "/proc"
	if got := stateOf(t, doctor.Look(s), "store_durability"); got != doctor.OK {
		t.Errorf("on what keeps its word: %q", got)
	}
}

// TestNothingToLookAt: without a server's directory, configuration or server those checks are left out, not passed.
func TestNothingToLookAt(t *testing.T) {
	var codes []string
	for _, f := range doctor.Look(doctor.Subject{Now: time.Now()}) {
		codes = append(codes, f.Code)
	}
	if got := strings.Join(codes, " "); got != "clock_sync core_dumps entropy hardware_aes swap" {
		t.Error(got)
	}
}
