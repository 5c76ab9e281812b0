package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// disk is a file whose writes since the last sync may reach the platter in any way when the power fails: each 512-byte sector of each
// write, or not. It can be told to die before a deed.
type disk struct {
	durable []byte
	memory  []byte
	dirty   []sector
	deeds   int // until it dies; negative: never
}

type sector struct {
	at   int
	data []byte
}

const sectorSize = 512

var errDead = errors.New("the process was killed")

func (d *disk) deed() error {
	if d.deeds == 0 {
		return errDead
	}
	d.deeds--
	return nil
}

// ReadAt implements io.ReaderAt.
func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(d.memory).ReadAt(b, off)
}

// WriteAt implements io.WriterAt. A process can die after any sector of it.
func (d *disk) WriteAt(b []byte, off int64) (int, error) {
	for n := 0; n < len(b); n += sectorSize {
		if err := d.deed(); err != nil {
			return n, err
		}
		s := sector{int(off) + n, bytes.Clone(b[n:min(n+sectorSize, len(b))])}
		copy(d.memory[s.at:], s.data)
		d.dirty = append(d.dirty, s)
	}
	return len(b), nil
}

// Sync implements device.
func (d *disk) Sync() error {
	if err := d.deed(); err != nil {
		return err
	}
	d.dirty, d.durable = nil, bytes.Clone(d.memory)
	return nil
}

// fail returns what is on the platter after a power failure: of the sectors that were not synced those that keep says.
func (d *disk) fail(keep func(i int) bool) []byte {
	b := bytes.Clone(d.durable)
	for i, s := range d.dirty {
		if keep(i) {
			copy(b[s.at:], s.data)
		}
	}
	return b
}

// kms wraps under any version; the material of version n is n repeated.
type kms struct{ version uint32 }

// WrapDEK implements Wrapper.
func (k kms) WrapDEK(_ context.Context, dek Secret, immutable []byte) (Wrap, error) {
	aead, err := suite.NewAEAD(suite.XAES256GCM, secret.Copy(bytes.Repeat([]byte{byte(k.version)}, 32)))
	if err != nil {
		return Wrap{}, err
	}
	return SealDEK(aead, Wrap{Type: WrapKMS, KeyID: "k", Version: k.version, Algorithm: suite.XAES256GCM, ProtectTime: time.Unix(1, 0)}, immutable, dek)
}

// UnwrapDEK implements Unwrapper.
func (k kms) UnwrapDEK(_ context.Context, w Wrap, immutable []byte) (Secret, error) {
	aead, err := suite.NewAEAD(suite.XAES256GCM, secret.Copy(bytes.Repeat([]byte{byte(w.Version)}, 32)))
	if err != nil {
		return Secret{}, err
	}
	return OpenDEK(aead, w, immutable)
}

// wraps fill most of a slot, so that every sector of it counts.
const wraps = 64

func rewrapOn(d *disk, version uint32) error {
	return rewrite(d, int64(len(d.memory)), func(h Header) (uint64, []Wrap, error) {
		dek, err := kms{}.UnwrapDEK(context.Background(), h.Wraps[0], h.Raw)
		if err != nil {
			return 0, nil, err
		}
		w, err := kms{version}.WrapDEK(context.Background(), dek, h.Raw)
		return h.Generation + 1, slices.Repeat([]Wrap{w}, wraps), err
	})
}

func scrubOn(d *disk) error {
	return rewrite(d, int64(len(d.memory)), func(h Header) (uint64, []Wrap, error) { return h.Generation, h.Wraps, nil })
}

// survives checks that a file opens with the right plaintext, and gives the version that it is wrapped under.
func survives(b []byte) (uint32, error) {
	f, err := Open(context.Background(), bytes.NewReader(b), int64(len(b)), kms{})
	if err != nil {
		return 0, err
	}
	got, err := f.ReadAll(context.Background())
	if err == nil && string(got) != "weights" {
		err = fault.New(fault.Internal, "plaintext")
	}
	return f.Header().Wraps[0].Version, err
}

// platters are ways in which the sectors that were not synced may have reached the platter.
func platters(d *disk) map[string][]byte {
	out := map[string][]byte{
		"none": d.fail(func(int) bool { return false }), "all": d.fail(func(int) bool { return true }),
		"even": d.fail(func(i int) bool { return i%2 == 0 }), "odd": d.fail(func(i int) bool { return i%2 == 1 }),
	}
	for n := 0; n < len(d.dirty); n += 5 {
		out[fmt.Sprintf("first %d", n)] = d.fail(func(i int) bool { return i < n })
		out[fmt.Sprintf("all but %d", n)] = d.fail(func(i int) bool { return i != n })
		out[fmt.Sprintf("last %d", n)] = d.fail(func(i int) bool { return i >= n })
	}
	return out
}

// TestRewrapSurvivesEveryCrash kills a rewrap, or a scrub, before each of its deeds, lets a second one run as far, and fails the power: the
// file opens with its plaintext every time, and once a rewrap has returned, under its version.
func TestRewrapSurvivesEveryCrash(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(t.Context(), &out, Options{Wrappers: slices.Repeat([]Wrapper{kms{1}}, wraps)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("weights")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	second := map[string]func(*disk) error{"rewrap": func(d *disk) error { return rewrapOn(d, 3) }, "scrub": scrubOn}
	const deeds = slotSize/sectorSize + 2
	crashes := 0
	for first := range deeds + 1 {
		for name, again := range second {
			for then := 0; then <= deeds; then += 2 {
				d := &disk{durable: out.Bytes(), memory: bytes.Clone(out.Bytes()), deeds: first}
				firstErr := rewrapOn(d, 2)
				if first == deeds && firstErr != nil {
					t.Fatalf("%d deeds are enough: %v", first, firstErr)
				}
				d.deeds = then
				againErr := again(d)
				for way, b := range platters(d) {
					crashes++
					version, err := survives(b)
					if err != nil {
						t.Fatalf("killed after %d deeds, %s after %d, %s written: %v", first, name, then, way, err)
					}
					if firstErr == nil && version == 1 || againErr == nil && name == "rewrap" && version != 3 {
						t.Fatalf("killed after %d deeds, %s after %d, %s written: version %d", first, name, then, way, version)
					}
				}
			}
		}
	}
	t.Logf("%d power failures survived", crashes)
}
