package kms_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/local"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// onDisk is a service over a store on disk.
func onDisk(b *testing.B) (*kms.Service, store.Store) {
	b.Helper()
	sealer, err := local.Create(filepath.Join(b.TempDir(), "seal.key"))
	if err != nil {
		b.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(b.TempDir(), "store.db"), bolt.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() }) // it is thrown away
	c := guard.Config{Store: db, Sealers: []seal.Sealer{sealer}, Rules: rules{}, Now: time.Now}
	if _, err := guard.Init(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	g, err := guard.Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var ends []chan error
	run := func(loop func(context.Context) error) {
		end := make(chan error, 1)
		ends = append(ends, end)
		go func() { end <- loop(ctx) }()
	}
	run(g.Run)
	s, err := kms.New(b.Context(), kms.Config{Guard: g, Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	run(s.Run)
	b.Cleanup(func() {
		stop()
		for _, end := range ends {
			<-end
		}
	})
	return s, db
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRotateAt is the bar "rotate at version 10,000 costs at most 1.5 times rotate at version 1, and at most 1 kB of storage each": every step
// rotates a key that has about so many versions. Bytes are those of all records of the key but the entries of the log, with their names, for each
// version.
func BenchmarkRotateAt(b *testing.B) {
	for _, versions := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(versions), func(b *testing.B) {
			s, db := onDisk(b)
			keys := max(1, min(2000, 2000/versions)) // so that keys stay near the version
			refs := make([]kms.Ref, keys)
			rotate := func(r kms.Ref) {
				if _, err := s.TransitRotate(b.Context(), alice, r); err != nil {
					b.Fatal(err)
				}
			}
			fresh := func(i int) kms.Ref {
				r := kms.Ref{Namespace: "default", Name: fmt.Sprintf("transit/k%d", i)}
				if _, _, err := s.TransitCreate(b.Context(), alice, kms.TransitSpec{Ref: r}); err != nil {
					b.Fatal(err)
				}
				for range versions - 1 {
					rotate(r)
				}
				return r
			}
			if versions > 1 {
				keys = min(keys, 4)
			}
			for i := range keys {
				refs[i] = fresh(i)
			}
			runtime.GC()
			was := cpu(b)
			b.ResetTimer()
			for i := range b.N {
				rotate(refs[i%keys])
			}
			b.StopTimer()
			b.ReportMetric(float64(cpu(b)-was)/float64(b.N), "cpu-ns/op")
			k, _ := s.Lookup("default", refs[0].Name)
			b.ReportMetric(float64(bytesOf(b, db, k))/float64(k.Len()), "B/version")
		})
	}
}

// bytesOf is how much the records of a key take, with their names.
func bytesOf(b *testing.B, db store.Store, k keyring.Key) (n int) {
	b.Helper()
	prefixes := []string{"key/default/" + string(k.ID), "material/default/" + string(k.ID)}
	for v := range k.All() {
		prefixes = append(prefixes, fmt.Sprintf("handle/default/%08x", v.Handle))
	}
	for _, prefix := range prefixes {
		_, records := db.List(b.Context(), prefix)
		for r, err := range records {
			if err != nil {
				b.Fatal(err)
			}
			n += len(r.Key) + len(r.Value)
		}
	}
	return n
}
