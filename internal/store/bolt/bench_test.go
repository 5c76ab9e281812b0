package bolt_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

const (
	benchWriters = 64
	benchValue   = 256 // bytes
)

// parallel runs n calls of f on benchWriters goroutines and returns calls per second.
func parallel(b *testing.B, n int, f func(writer, i int)) float64 {
	b.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for w := range benchWriters {
		wg.Go(func() {
			for i := w; i < n; i += benchWriters {
				f(w, i)
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(start).Seconds()
}

// BenchmarkCommits is the bar "64 writers >= 5,000 durable commits/s", beside bare bbolt (Batch, as its authors advise for many writers)
// and a bare write with fdatasync, in one run.
func BenchmarkCommits(b *testing.B) {
	value := make([]byte, benchValue)
	s := mustOpen(b, filepath.Join(b.TempDir(), "store.db"), bolt.Options{})
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "bare.db"), 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("b")); return err }); err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	n := max(b.N, 2000)
	b.ResetTimer()
	ours := parallel(b, n, func(w, i int) {
		if _, err := s.Commit(b.Context(), nil, []store.Op{{Key: fmt.Sprintf("w/%d/%d", w, i%1000), Value: value}}); err != nil {
			b.Error(err)
		}
	})
	b.StopTimer()
	batch := parallel(b, n, func(w, i int) {
		err := db.Batch(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("b")).Put(fmt.Appendf(nil, "w/%d/%d", w, i%1000), value)
		})
		if err != nil {
			b.Error(err)
		}
	})
	few := max(n/50, 100)
	update := parallel(b, few, func(w, i int) {
		err := db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("b")).Put(fmt.Appendf(nil, "w/%d/%d", w, i%1000), value)
		})
		if err != nil {
			b.Error(err)
		}
	})
	start := time.Now()
	for i := range few {
		if _, err := f.WriteAt(value, int64(i%16)*4096); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	bare := float64(few) / time.Since(start).Seconds()
	b.ReportMetric(ours, "commits/s")
	b.ReportMetric(ours/batch, "x_bbolt_batch")
	b.ReportMetric(ours/update, "x_bbolt_update")
	b.ReportMetric(ours/bare, "x_fdatasync")
}

// BenchmarkGet is the bar "reads >= 100,000/s", beside a bare bbolt View.
func BenchmarkGet(b *testing.B) {
	value := make([]byte, benchValue)
	s := mustOpen(b, filepath.Join(b.TempDir(), "store.db"), bolt.Options{})
	for i := 0; i < 10_000; i += 100 {
		var ops []store.Op
		for j := i; j < i+100; j++ {
			ops = append(ops, store.Op{Key: fmt.Sprintf("k/%05d", j), Value: value})
		}
		mustCommit(b, s, ops...)
	}
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "bare.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte("b"))
		for i := 0; err == nil && i < 10_000; i++ {
			err = bucket.Put(fmt.Appendf(nil, "k/%05d", i), value)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	n := max(b.N, 10_000)
	b.ResetTimer()
	ours := parallel(b, n, func(_, i int) {
		if _, err := s.Get(b.Context(), fmt.Sprintf("k/%05d", i%10_000)); err != nil {
			b.Error(err)
		}
	})
	b.StopTimer()
	bare := parallel(b, n, func(_, i int) {
		_ = db.View(func(tx *bbolt.Tx) error {
			_ = append([]byte{}, tx.Bucket([]byte("b")).Get(fmt.Appendf(nil, "k/%05d", i%10_000))...)
			return nil
		})
	})
	b.ReportMetric(ours, "reads/s")
	b.ReportMetric(ours/bare, "x_bbolt_view")
}
