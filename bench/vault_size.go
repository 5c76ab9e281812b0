package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// idle is the memory of a server that nobody uses: with the program's file as the linker left it in the page cache, where a kernel maps whole blocks
// of up to 2 MiB of it as soon as a line is read, and with the file read from the disk, as after the machine has started.
func (s *vaultServer) idle(ctx context.Context, o options) (rows []Row, err error) {
	for _, name := range []string{"vault_memory_idle", "vault_memory_idle_from_disk"} {
		if len(rows) > 0 {
			s.stop()
			if err := forgetFile(o.rotor); err != nil {
				return nil, err
			}
			if _, err := s.run(ctx, o, "127.0.0.1:0"); err != nil {
				return nil, err
			}
		}
		if _, err := s.settled(ctx); err != nil {
			return nil, err
		}
		more, err := s.memoryRows(name, "VmRSS", 30)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// forgetFile has the kernel read a file from the disk when it is needed next.
func forgetFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// memoryRows are a line of the server's status and, of now, what of its memory is its own and what is pages of files (the program and the store).
func (s *vaultServer) memoryRows(name, line string, limit float64) ([]Row, error) {
	all, err := s.memory(line)
	own, err2 := s.memory("RssAnon")
	files, err3 := s.memory("RssFile")
	return []Row{
		atMost(name, all/1000, "MB", limit),
		plain(name+"_anonymous", own/1000, "MB"), plain(name+"_files", files/1000, "MB"),
	}, errors.Join(err, err2, err3)
}

// plain is a row for information.
func plain(name string, value float64, unit string) Row {
	return Row{name, value, unit, "", 0, "", true, 0}
}

// census is what is in the store's file.
type census struct {
	file    int64 // bytes
	live    int64 // bytes of pages that are in use: the file without its free pages
	entries int64 // bytes of the audit log, names of its records included
	records int64 // the same of keys, handles, material and counts
}

// census counts what is in a copy of the file, made while nothing was written.
func (s *vaultServer) census(ctx context.Context) (c census, err error) {
	from, to := filepath.Join(s.dir, "rotor.db"), filepath.Join(s.dir, "copy.db")
	defer func() { err = errors.Join(err, os.Remove(to)) }()
	for {
		before, err := os.Stat(from)
		if err != nil {
			return c, err
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return c, err
		}
		after, err := os.Stat(from)
		if err := errors.Join(err, ctx.Err(), os.WriteFile(to, b, 0o600)); err != nil {
			return c, err
		}
		if before.ModTime().Equal(after.ModTime()) && before.Size() == after.Size() {
			c.file = after.Size()
			break
		}
	}
	db, err := bbolt.Open(to, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		return c, err
	}
	return c, errors.Join(db.View(c.count), db.Close())
}

func (c *census) count(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		st := b.Stats()
		c.live += int64(st.BranchAlloc + st.LeafAlloc)
		if string(name) != "data" {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			room, _, _ := bytes.Cut(k, []byte("/"))
			switch n := int64(len(k) + len(v)); string(room) {
			case "log":
				c.entries += n
			case "key", "handle", "material", "volume":
				c.records += n
			}
			return nil
		})
	})
}

// auditVolume is how much the audit log grows with requests.
func (s *vaultServer) auditVolume(ctx context.Context) ([]Row, error) {
	var rows []Row
	text := base64.StdEncoding.EncodeToString(make([]byte, 256))
	for _, c := range []struct {
		name  string
		item  bareItem
		limit float64
	}{{"request", bareItem{Plaintext: text}, 600}, {"batch_100", bareItem{Batch: slices.Repeat([]bareItem{{Plaintext: text}}, vaultBatch)}, 1500}} {
		body, err := json.Marshal(c.item)
		if err != nil {
			return nil, err
		}
		before, err := s.census(ctx)
		if err != nil {
			return nil, err
		}
		l, err := s.send(ctx, s.request("transit/encrypt/app", body), 2*vaultTime)
		if err != nil {
			return nil, err
		}
		after, err := s.census(ctx)
		if err != nil {
			return nil, err
		}
		rows = append(rows, atMost("vault_audit_per_"+c.name, float64(after.entries-before.entries)/float64(len(l.times)), "B", c.limit))
	}
	return rows, nil
}

// turns rotates one key ten thousand times, and says what that took and what it left.
func (s *vaultServer) turns(ctx context.Context, o options) ([]Row, error) {
	before, err := s.census(ctx)
	if err != nil {
		return nil, err
	}
	heap, err := s.heap(ctx, o)
	if err != nil {
		return nil, err
	}
	rows, err := s.rotations(ctx)
	if err != nil {
		return nil, err
	}
	after, err := s.census(ctx)
	if err != nil {
		return nil, err
	}
	now, err := s.heap(ctx, o)
	each := func(a, b int64) float64 { return float64(b-a) / vaultTurns }
	return append(rows,
		atMost("vault_storage_of_a_rotation", each(before.live, after.live), "B", 1000),
		plain("vault_storage_of_a_rotation_file", each(before.file, after.file), "B"),
		plain("vault_storage_of_a_rotation_records", each(before.records, after.records), "B"),
		plain("vault_storage_of_a_rotation_audit", each(before.entries, after.entries), "B"),
		plain("vault_memory_of_a_version", each(heap, now), "B")), err
}

var heapLine = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)

// heap is what the server's heap holds after a collection, in bytes: the index of the log, the key with its versions, and what else there is.
func (s *vaultServer) heap(ctx context.Context, o options) (int64, error) {
	path := filepath.Join(o.dir, "vault.heap")
	if err := s.fetch(ctx, "/debug/pprof/heap?gc=1&debug=1", path); err != nil {
		return 0, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	m := heapLine.FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("a profile without its total: %.100q", b)
	}
	return strconv.ParseInt(string(m[1]), 10, 64)
}
