package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotorkms/rotor/internal/fault"
)

// tileHeight and tileWidth are fixed by C2SP tlog-tiles.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// Export calls write with every file of the log in the layout of C2SP tlog-tiles: checkpoint, tile/<L>/<N>, tile/entries/<N>.
func (l *Log) Export(ctx context.Context, write func(path string, data []byte) error) error {
	checkpoint, size, err := l.Checkpoint()
	if err != nil {
		return err
	}
	for n := int64(0); n*tileWidth < size; n++ {
		width := min(size-n*tileWidth, tileWidth)
		var bundle []byte
		for i := n * tileWidth; i < n*tileWidth+width; i++ {
			b, err := l.entry(ctx, i)
			if err != nil {
				return err
			}
			bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(b)))
			bundle = append(bundle, b...)
		}
		if err := write("tile/entries/"+tileName(n, int(width)), bundle); err != nil {
			return err
		}
	}
	for _, t := range tlog.NewTiles(tileHeight, 0, size) {
		l.mu.Lock()
		data, err := tlog.ReadTileData(t, l)
		l.mu.Unlock()
		if err != nil {
			return fmt.Errorf("read tile: %w", err)
		}
		if err := write(fmt.Sprintf("tile/%d/%s", t.L, tileName(t.N, t.W)), data); err != nil {
			return err
		}
	}
	return write("checkpoint", checkpoint)
}

// tileName encodes a tile's number in groups of three digits (C2SP tlog-tiles, "Merkle Tree").
func tileName(n int64, width int) string {
	name := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		name = fmt.Sprintf("x%03d/%s", n%1000, name)
	}
	if width < tileWidth {
		name += ".p/" + strconv.Itoa(width)
	}
	return name
}

// Report is what a verification found.
type Report struct {
	Origin  string
	Size    int64
	Root    string
	ByClass map[Class]int64
	Refused int64
	Actions map[string]int64
	Open    int64 // class-3 windows without a count: unknown, at most the rate limit

	each func(Entry) error
}

// Verify checks an exported log offline against the pinned verifier key: the checkpoint's signature, every entry's hash up to the
// root, each tile, the entries' encoding, and that the counters of every record go up by one. earlier are checkpoints that the verifier
// kept: a log is signed at every size that it had, so only they show that one was rolled back. fault.AuditBroken names what does not fit.
func Verify(log fs.FS, vkey string, earlier ...[]byte) (Report, error) {
	return Report{}.verify(log, vkey, earlier...)
}

func (r Report) verify(log fs.FS, vkey string, earlier ...[]byte) (Report, error) {
	b, err := fs.ReadFile(log, "checkpoint")
	if err != nil {
		return Report{}, fault.Wrap(fault.AuditBroken, "checkpoint", err)
	}
	origin, size, root, err := openCheckpoint(b, vkey)
	if err != nil {
		return Report{}, err
	}
	r.Origin, r.Size, r.Root, r.ByClass, r.Actions = origin, size, root.String(), map[Class]int64{}, map[string]int64{}
	tree := &Log{}
	counters := map[string]uint64{}
	for n := int64(0); n*tileWidth < size; n++ {
		width := min(size-n*tileWidth, tileWidth)
		bundle, err := fs.ReadFile(log, "tile/entries/"+tileName(n, int(width)))
		if err != nil {
			return r, fault.Wrap(fault.AuditBroken, fmt.Sprintf("entries from %d", n*tileWidth), err)
		}
		if err := r.bundle(tree, bundle, width, counters); err != nil {
			return r, err
		}
	}
	got, err := tlog.TreeHash(size, tree)
	if err != nil || got != root {
		return r, fault.New(fault.AuditBroken, "the entries do not hash to the signed root")
	}
	for _, c := range earlier {
		if err := extends(tree, c, vkey); err != nil {
			return r, err
		}
	}
	return r, checkTiles(log, tree, size)
}

// extends says whether the log begins with the one that a checkpoint was signed for.
func extends(tree *Log, checkpoint []byte, vkey string) error {
	_, size, root, err := openCheckpoint(checkpoint, vkey)
	if err != nil {
		return err
	}
	if size > tree.size {
		return fault.New(fault.AuditBroken, fmt.Sprintf("the log has %d entries and had %d: it was rolled back", tree.size, size))
	}
	if got, err := tlog.TreeHash(size, tree); err != nil || got != root {
		return fault.New(fault.AuditBroken, fmt.Sprintf("the first %d entries are not those of an earlier checkpoint", size))
	}
	return nil
}

func openCheckpoint(b []byte, vkey string) (origin string, size int64, root tlog.Hash, err error) {
	broken := func(why string, cause error) (string, int64, tlog.Hash, error) {
		return "", 0, tlog.Hash{}, fault.Wrap(fault.AuditBroken, why, cause)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return "", 0, tlog.Hash{}, fault.Wrap(fault.Invalid, "verifier key", err)
	}
	n, err := note.Open(b, note.VerifierList(verifier))
	if err != nil {
		return broken("checkpoint is not signed by the pinned key", err)
	}
	if _, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64); err != nil {
		return broken("checkpoint is malformed", err) // a signature has one encoding
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return broken("checkpoint is malformed", nil)
	}
	size, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return broken("checkpoint is malformed", err)
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(sum) != tlog.HashSize {
		return broken("checkpoint is malformed", err)
	}
	return lines[0], size, tlog.Hash(sum), nil
}

func (r *Report) bundle(tree *Log, b []byte, width int64, counters map[string]uint64) error {
	for range width {
		at := tree.size
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return fault.New(fault.AuditBroken, fmt.Sprintf("entry %d is cut off", at))
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		if err := tree.grow(b[2:n]); err != nil {
			return err
		}
		e, err := Decode(b[2:n])
		if err != nil {
			return fault.Wrap(fault.AuditBroken, fmt.Sprintf("entry %d", at), err)
		}
		if err := r.count(e, at, counters); err != nil {
			return err
		}
		if r.each != nil {
			if err := r.each(e); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	if len(b) > 0 {
		return fault.New(fault.AuditBroken, fmt.Sprintf("bytes after entry %d", tree.size-1))
	}
	return nil
}

func (r *Report) count(e Entry, at int64, counters map[string]uint64) error {
	r.ByClass[e.Class]++
	r.Actions[e.Action]++
	switch e.Outcome {
	case "refused":
		repeated, err := strconv.ParseInt(e.Detail["repeated"], 10, 64)
		if err != nil {
			repeated = 1
		}
		r.Refused += repeated
	case "open":
		r.Open++
	case "closed":
		r.Open--
	}
	for _, w := range e.Writes {
		if w.Counter != counters[w.Path]+1 {
			return fault.New(fault.AuditBroken, fmt.Sprintf("entry %d: record %s goes from %d to %d", at, w.Path, counters[w.Path], w.Counter))
		}
		counters[w.Path] = w.Counter
	}
	return nil
}

func checkTiles(log fs.FS, tree *Log, size int64) error {
	for _, t := range tlog.NewTiles(tileHeight, 0, size) {
		want, err := tlog.ReadTileData(t, tree)
		if err != nil {
			return fmt.Errorf("read tile: %w", err)
		}
		path := fmt.Sprintf("tile/%d/%s", t.L, tileName(t.N, t.W))
		got, err := fs.ReadFile(log, path)
		if err != nil {
			return fault.Wrap(fault.AuditBroken, path, err)
		}
		if !bytes.Equal(got, want) {
			return fault.New(fault.AuditBroken, path+" does not fit the entries")
		}
	}
	return nil
}
