package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

const (
	writers = 64
	records = 10_000
	commits = 8_000 // of a round
	reads   = 200_000
	syncs   = 200
)

// engine measures the embedded store: durable commits of 64 writers and reads, against one write with fdatasync after the other.
func engine(ctx context.Context, o options) (rows []Row, err error) {
	s, err := bolt.Open(filepath.Join(o.dir, "store.db"), bolt.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	f, err := os.Create(filepath.Join(o.dir, "bare"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	value := noise(256)
	key := func(n int) string { return fmt.Sprintf("bench/%05d", n%records) }
	write := &measured{name: "commits", work: commits, unit: "/s", f: func() error {
		return together(commits, func(n int) error {
			_, err := s.Commit(ctx, nil, []store.Op{{Key: key(n), Value: value}})
			return err
		})
	}}
	read := &measured{name: "reads", work: reads, unit: "/s", f: func() error {
		return together(reads, func(n int) error {
			_, err := s.Get(ctx, key(n%commits))
			return err
		})
	}}
	bare := &measured{name: "fdatasync", work: syncs, unit: "/s", f: func() error {
		for n := range syncs {
			if _, err := f.WriteAt(value, int64(n)*4096); err != nil {
				return err
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return err
			}
		}
		return nil
	}}
	if err := takeTurns(ctx, max(o.rounds/2, 1), write, read, bare); err != nil {
		return nil, err
	}
	w, r := write.rate(), read.rate()
	return []Row{
		{"store_commits_64_writers", w, "/s", "5000 /s", w / 5000, ">= 1", w >= 5000, write.noise()},
		atLeast("store_commits_64_writers", *write, *bare, "one fdatasync after the other (limit of a lone writer)", 0),
		{"store_reads", r, "/s", "100000 /s", r / 100_000, ">= 1", r >= 100_000, read.noise()},
	}, nil
}

// together runs n calls on all writers.
func together(n int, f func(n int) error) error {
	errs := make([]error, writers)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := w; i < n && errs[w] == nil; i += writers {
				errs[w] = f(i)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
