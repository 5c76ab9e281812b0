//go:build slow

package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// TestFullFileSystem: a file system of 2 MiB, of its own for the child, that fills up and gets room again. Needs user namespaces or root.
func TestFullFileSystem(t *testing.T) {
	cmd := command(t, "tmpfs", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// slowChildren are the children that only slow tests start.
func slowChildren() map[string]func(path string) error {
	return map[string]func(path string) error{"tmpfs": childFileSystem, "disk": childDisk}
}

// childFileSystem is the child of TestFullFileSystem.
func childFileSystem(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ballast, path := filepath.Join(dir, "ballast"), filepath.Join(dir, "store.db")
	value := bytes.Repeat([]byte{'v'}, 3000)
	acked := 0
	for range 3 {
		s, err := bolt.Open(path, bolt.Options{History: 20})
		if err != nil {
			return err
		}
		if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("ballast: %w", err)
		}
		full := 0
		for n := 0; full < 5; n++ {
			_, err := s.Commit(ctx, nil, []store.Op{{Key: fmt.Sprint("n/", acked), Value: value}})
			switch {
			case errors.Is(err, store.ErrFull) && errors.Is(err, unix.ENOSPC):
				full++
			case err != nil || n > 10_000:
				return fmt.Errorf("commit %d: %w", n, err)
			default:
				acked++
			}
		}
		if err := os.Remove(ballast); err != nil {
			return err
		}
		for range 20 {
			if _, err := s.Commit(ctx, nil, []store.Op{{Key: fmt.Sprint("n/", acked), Value: value}}); err != nil {
				return fmt.Errorf("with room again: %w", err)
			}
			acked++
		}
		if err := s.Close(); err != nil {
			return err
		}
		if s, err = bolt.Open(path, bolt.Options{History: 20}); err != nil {
			return err
		}
		for n := range acked {
			if r, err := s.Get(ctx, fmt.Sprint("n/", n)); err != nil || !bytes.Equal(r.Value, value) {
				return fmt.Errorf("commit %d of %d: %w", n, acked, err)
			}
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	return nil
}
