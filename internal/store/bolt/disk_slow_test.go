//go:build slow

package bolt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/bolt"
)

// disk is a file system of one folder that keeps what was synced. At a power cut, of what was not synced an arbitrary part is there, by sectors and in any
// order; so is a name whose folder was not synced. A sync that fails drops what it was to write, as Linux does: the next one
// succeeds without it.
type disk struct {
	fs.Inode

	mu      sync.Mutex // guards what follows, and all files
	names   map[string]*file
	durable map[string]*file
	syncs   int
	failAt  int  // the sync that fails; 0: none
	lies    bool // a sync does nothing and succeeds: to see the tests fail
	off     bool // the power is cut
}

// file is what a process sees, what is durable, and the writes between the two.
type file struct {
	fs.Inode
	disk    *disk
	seen    []byte
	durable []byte
	pending []change
}

// change is one sector, or less, or a new length when data is nil.
type change struct {
	at   int64
	data []byte
}

const sector = 512

func newDisk(content []byte) *disk {
	d := &disk{names: map[string]*file{}, durable: map[string]*file{}}
	if content != nil {
		f := &file{disk: d, seen: slices.Clone(content), durable: slices.Clone(content)}
		d.names["store.db"], d.durable["store.db"] = f, f
	}
	return d
}

func (w change) apply(b []byte) []byte {
	if w.data == nil {
		if int64(len(b)) < w.at {
			return append(b, make([]byte, w.at-int64(len(b)))...)
		}
		return b[:w.at]
	}
	if end := w.at + int64(len(w.data)); int64(len(b)) < end {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[w.at:], w.data)
	return b
}

// cut ends the disk and gives what is on it; nil when the file's name is not.
func (d *disk) cut(random *rand.Rand) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	f := d.durable["store.db"]
	if f == nil && random.IntN(2) == 0 {
		f = d.names["store.db"]
	}
	if f == nil {
		return nil
	}
	part := random.Float64()
	for _, i := range random.Perm(len(f.pending)) {
		if random.Float64() < part {
			f.durable = f.pending[i].apply(f.durable)
		}
	}
	return f.durable
}

// OnAdd shows what is there at the mount.
func (d *disk) OnAdd(ctx context.Context) {
	for name, f := range d.names {
		d.AddChild(name, d.NewPersistentInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), true)
	}
}

func (d *disk) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &file{disk: d}
	d.names[name] = f
	f.attr(&out.Attr)
	return d.NewPersistentInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), nil, 0, 0
}

func (d *disk) Link(_ context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	f, ok := target.(*file)
	if !ok {
		return nil, syscall.EPERM
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] != nil {
		return nil, syscall.EEXIST
	}
	d.names[name] = f
	f.attr(&out.Attr)
	return f.EmbeddedInode(), 0
}

func (d *disk) Unlink(_ context.Context, name string) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	return 0
}

func (d *disk) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return folder{d}, 0, 0
}

// folder is the open folder.
type folder struct{ disk *disk }

func (h folder) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) { return nil, 0 }

func (h folder) Fsyncdir(context.Context, uint32) syscall.Errno {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	h.disk.durable = map[string]*file{}
	for name, f := range h.disk.names {
		h.disk.durable[name] = f
	}
	return 0
}

func (f *file) attr(out *fuse.Attr) {
	out.Mode, out.Size, out.Nlink = syscall.S_IFREG|0o600, uint64(len(f.seen)), 1
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.attr(&out.Attr)
	return 0
}

func (f *file) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		f.do(change{at: int64(size)})
	}
	f.attr(&out.Attr)
	return 0
}

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) { return nil, 0, 0 }

func (f *file) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return fuse.ReadResultData(slices.Clone(f.seen[min(off, int64(len(f.seen))):min(off+int64(len(dest)), int64(len(f.seen)))])), 0
}

func (f *file) do(w change) {
	f.seen = w.apply(f.seen)
	f.pending = append(f.pending, w)
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.off {
		return 0, syscall.EIO
	}
	for n := 0; n < len(data); {
		end := min(len(data), n+sector-int((off+int64(n))%sector))
		f.do(change{off + int64(n), slices.Clone(data[n:end])})
		n = end
	}
	return uint32(len(data)), 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.syncs++
	switch {
	case f.disk.off:
		return syscall.EIO
	case f.disk.lies:
		return 0
	case f.disk.syncs == f.disk.failAt:
		f.pending = nil
		return syscall.EIO
	}
	for _, w := range f.pending {
		f.durable = w.apply(f.durable)
	}
	f.pending = nil
	return 0
}

// childDisk commits without end, and says what was acknowledged. Once an outcome is unknown everything else has to be refused.
func childDisk(path string) error {
	s, err := bolt.Open(path, bolt.Options{History: 50})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wrong := func(what string, err error) { // at once, for the other writers go on
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
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
				_, err := s.Commit(ctx, nil, []store.Op{put(a, fmt.Sprint(n, pad)), put(b, fmt.Sprint(n, pad))})
				if err == nil {
					fmt.Printf("%d %d\n", w, n)
					continue
				}
				if !errors.Is(err, store.ErrUnknown) && !errors.Is(err, store.ErrClosed) {
					wrong("commit:", err)
				}
				break
			}
			for range 5 {
				if _, err := s.Commit(ctx, nil, []store.Op{put(a, "after"), put(b, "after")}); !errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrUnknown) {
					wrong("a commit after a failed sync:", err)
				}
				if _, err := s.Get(ctx, a); !errors.Is(err, store.ErrClosed) {
					wrong("a read after a failed sync:", err)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// onDisk lets a child write on a disk until it has acknowledged so many commits or ends by itself.
func onDisk(t *testing.T, d *disk, acks int, acked []int) (ended error) {
	t.Helper()
	dir := t.TempDir()
	server, err := fs.Mount(dir, d, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "rotor-test"}})
	if err != nil {
		t.Fatalf("mount (needs root and /dev/fuse): %v", err)
	}
	defer func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	cmd := command(t, "disk", filepath.Join(dir, "store.db"))
	var said strings.Builder
	cmd.Stderr = &said
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
		if n == acks {
			d.mu.Lock()
			d.off = true // from now on nothing reaches the disk, and no sync is acknowledged
			d.mu.Unlock()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil && said.Len() > 0 {
		return errors.New(said.String())
	}
	return nil
}

// lost compares what is on the disk with what was acknowledged: the file is whole, each commit is there whole or not at all, none is missing.
func lost(t *testing.T, content []byte, acked []int) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	if content != nil {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := bolt.Open(path, bolt.Options{History: 50})
	if err != nil {
		return err
	}
	defer s.Close()
	for w, n := range acked {
		a, errA := s.Get(t.Context(), fmt.Sprintf("w/%d/a", w))
		b, errB := s.Get(t.Context(), fmt.Sprintf("w/%d/b", w))
		if n == 0 && errors.Is(errA, store.ErrNotFound) && errors.Is(errB, store.ErrNotFound) {
			continue
		}
		var got int
		fmt.Sscan(string(a.Value), &got)
		if errA != nil || errB != nil || string(a.Value) != string(b.Value) || a.Rev != b.Rev || got < n {
			return fmt.Errorf("writer %d, acknowledged %d: %d at %d and %.9q at %d, %w", w, n, got, a.Rev, b.Value, b.Rev, errors.Join(errA, errB))
		}
		acked[w] = got
	}
	return nil
}

// TestPowerCuts: the power goes again and again, while a disk has some of what was not synced.
func TestPowerCuts(t *testing.T) {
	var content []byte
	acked := make([]int, crashWriters)
	for round := range 150 {
		random := rand.New(rand.NewPCG(uint64(round), 1))
		d := newDisk(content)
		if err := onDisk(t, d, random.IntN(60), acked); err != nil {
			t.Fatalf("round %d: the child: %v", round, err)
		}
		content = d.cut(random)
		if err := lost(t, content, acked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("acknowledged %v", acked)
}

// TestFailedSyncs: whichever sync fails, and with it what it was to write, the store stops, and nothing acknowledged is lost.
func TestFailedSyncs(t *testing.T) {
	stopped := 0
	for failAt := 1; failAt <= 60; failAt++ { // making the file takes the first ones
		random := rand.New(rand.NewPCG(uint64(failAt), 2))
		d, acked := newDisk(nil), make([]int, crashWriters)
		d.failAt = failAt
		if err := onDisk(t, d, 1<<30, acked); err != nil && !strings.Contains(err.Error(), "input/output error") {
			t.Fatalf("sync %d fails: the child: %v", failAt, err)
		} else if err != nil && slices.Max(acked) > 0 {
			t.Fatalf("sync %d fails: the child did not stop: %v", failAt, err)
		}
		if err := lost(t, d.cut(random), acked); err != nil {
			t.Fatalf("sync %d fails: %v", failAt, err)
		}
		if slices.Max(acked) > 0 {
			stopped++
		}
	}
	if stopped < 40 {
		t.Errorf("only %d of 60 syncs failed after something was acknowledged", stopped)
	}
}

// TestLyingDisk: a disk that only says that it has synced loses something, which these tests see. So they can fail.
func TestLyingDisk(t *testing.T) {
	for round := range 20 {
		random := rand.New(rand.NewPCG(uint64(round), 3))
		d, acked := newDisk(nil), make([]int, crashWriters)
		d.lies = true
		if err := onDisk(t, d, 40, acked); err != nil {
			t.Fatalf("round %d: the child: %v", round, err)
		}
		if err := lost(t, d.cut(random), acked); err != nil {
			t.Logf("round %d: %v", round, err)
			return
		}
	}
	t.Error("nothing was lost in 20 rounds")
}
