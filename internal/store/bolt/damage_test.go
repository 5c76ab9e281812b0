package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// sample makes a store with branch pages, an inline bucket, an overflow page and free pages, and returns its file.
func sample(t testing.TB, path string) []byte {
	t.Helper()
	s := mustOpen(t, path, bolt.Options{History: 30})
	for i := range 8 {
		var ops []store.Op
		for j := range 10 {
			ops = append(ops, put(fmt.Sprintf("key/%02d/%d", i, j), fmt.Sprintf("value %d %d %s", i, j, strings.Repeat("v", 100))))
		}
		mustCommit(t, s, ops...)
	}
	mustCommit(t, s, put("large", strings.Repeat("L", 9000)))
	for i := range 40 {
		mustCommit(t, s, put("often", fmt.Sprint(i)), store.Op{Key: fmt.Sprintf("key/03/%d", i%10), Delete: true})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// content is all that a store would tell: its records and its history.
func content(t testing.TB, s store.Store) (all []string, err error) {
	t.Helper()
	rev, records := s.List(ctx, "")
	for r, err := range records {
		if err != nil {
			return nil, err
		}
		again, err := s.Get(ctx, r.Key)
		if err != nil {
			return nil, err
		}
		all = append(all, fmt.Sprintf("%q %q %d %t", r.Key, r.Value, r.Rev, bytes.Equal(r.Value, again.Value)))
	}
	if rev > 30 {
		for events, err := range s.Watch(ctx, "", rev-30) {
			if err != nil {
				return nil, err
			}
			if all = append(all, fmt.Sprintf("%+v", events)); events[0].Rev >= rev {
				break
			}
		}
	}
	return append(all, fmt.Sprint(rev)), nil
}

// damage flips bits at every stride-th byte: opening and reading give an error or exactly what was there.
func damage(t *testing.T, stride int) {
	path := filepath.Join(t.TempDir(), "store.db")
	good := sample(t, path)
	s := mustOpen(t, path, bolt.Options{History: 30})
	want, err := content(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused, right := 0, 0
	for at := 0; at < len(bytes.TrimRight(good, "\x00")); at += stride {
		if at >= 80 && at < 4096 || at >= 4096+80 && at < 8192 {
			continue // nothing but zeros behind the meta
		}
		mask := byte(1) << (at / stride % 8)
		if at%3 == 0 {
			mask = 0xFF
		}
		write(t, f, at, good[at]^mask)
		s, err := bolt.Open(path, bolt.Options{History: 30})
		if err == nil {
			var got []string
			if got, err = content(t, s); err == nil && !slices.Equal(got, want) {
				t.Fatalf("byte %d ^ %x: the store tells something else", at, mask)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		switch {
		case err == nil:
			right++
		case errors.Is(err, store.ErrCorrupt):
			refused++
		default:
			t.Fatalf("byte %d ^ %x: %v", at, mask, err)
		}
		write(t, f, at, good[at])
	}
	t.Logf("%d of %d flips refused", refused, refused+right)
	if refused == 0 || right == 0 {
		t.Error("the damage was always or never noticed, so the test says nothing")
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, good) {
		t.Errorf("reading changed the file (%v)", err)
	}
}

func write(t *testing.T, f *os.File, at int, b ...byte) {
	t.Helper()
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
}

func TestDamage(t *testing.T) { damage(t, 197) }

// TestMetaPages: each byte that counts of either meta page is noticed, although bbolt would go on with the other, older one.
func TestMetaPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	good := sample(t, path)
	for page := range 2 {
		for at := 16; at < 80; at++ {
			b := bytes.Clone(good)
			b[page*4096+at] ^= 1 << (at % 8)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := bolt.Open(path, bolt.Options{}); !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("meta page %d, byte %d: %v, %v", page, at, s, err)
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	good := sample(t, path)
	used := len(bytes.TrimRight(good, "\x00"))
	for _, n := range []int{0, 1, 100, 4096, 8191, 8192, 16384, used / 2, used - 4096} {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := bolt.Open(path, bolt.Options{}); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, used, err)
		}
	}
	if err := os.WriteFile(path, []byte("not a store, but long enough\n"+strings.Repeat("#", 40_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bolt.Open(path, bolt.Options{}); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("another file: %v", err)
	}
}

// TestDamageInUse: a record that is damaged under an open store is refused, also as a condition, and harms no other commit of its batch.
func TestDamageInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, bolt.Options{})
	mustCommit(t, s, put("bad", "the damaged value"), put("good", "another"))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], []byte("the damaged value"))
		if i < 0 {
			break
		}
		at += i
		write(t, f, at, 'T')
	}
	if r, err := s.Get(t.Context(), "bad"); !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("%q, %v", r.Value, err)
	}
	if _, records := s.List(t.Context(), ""); records != nil {
		for r, err := range records {
			if !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("list: %q, %v", r.Value, err)
			}
		}
	}
	for _, err := range s.Watch(t.Context(), "", 0) {
		if !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("watch: %v", err)
		}
		break
	}
	for range 6 {
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				if i%8 == 0 {
					_, err := s.Commit(ctx, []store.Cond{{Key: "bad", Rev: 1}}, []store.Op{put("never", "x")})
					if !errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrUnknown) {
						t.Errorf("commit on the damaged record: %v", err)
					}
					return
				}
				if _, err := s.Commit(ctx, []store.Cond{{Key: "good", Rev: 1}}, []store.Op{put(fmt.Sprint("n/", i), "x")}); err != nil {
					t.Errorf("commit beside it: %v", err)
				}
			})
		}
		wg.Wait()
	}
	mustCommit(t, s, put("bad", "repaired"))
	if r, err := s.Get(t.Context(), "bad"); err != nil || string(r.Value) != "repaired" {
		t.Errorf("%q, %v", r.Value, err)
	}
}

// TestMetaInUse: with the newer meta page damaged, bbolt would read the state before; with both, it panics holding its locks.
func TestMetaInUse(t *testing.T) {
	for _, both := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "store.db")
		s := mustOpen(t, path, bolt.Options{})
		mustCommit(t, s, put("k", "old"))
		mustCommit(t, s, put("k", "new"))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 8192)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		newer := 0
		if b[16+48] < b[4096+16+48] { // the low byte of the transaction
			newer = 4096
		}
		write(t, f, newer+16+20, 0xEE, 0xEE)
		if both {
			write(t, f, 4096-newer+16+20, 0xEE, 0xEE)
		}
		if r, err := s.Get(t.Context(), "k"); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("both %t: get %q, %v", both, r.Value, err)
		}
		for range 2 {
			if _, err := s.Commit(t.Context(), nil, []store.Op{put("k", "newer")}); !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("both %t: commit: %v", both, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed.db")
	s := mustOpen(f, path, bolt.Options{})
	mustCommit(f, s, put("k", "v"))
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "store.db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := bolt.Open(path, bolt.Options{})
		if err != nil {
			return
		}
		if _, err := content(t, s); err != nil {
			t.Errorf("verified, but: %v", err)
		}
		if _, err := s.Commit(t.Context(), nil, []store.Op{put("new", "x")}); err != nil {
			t.Errorf("verified, but: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
