// Package backup writes a store into one encrypted, authenticated stream and makes a store of it again. Records go through as they are:
// sealed. The stream's data key is wrapped under the root key, so the cluster's sealers open a backup, and when they have forgotten the root's
// generation nothing does. Layout: a line of magic, a line of JSON (header), then a rotor file (spec/file.md) with the records.
package backup

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	magic       = "rotor-backup/1\n"
	contentType = "application/x-rotor-backup"
	maxHeader   = 1 << 20
	rootKey     = "seal/root"
	waiting     = "log/new/" // entries of the log that are not in order yet
	endOfStream = 1<<32 - 1  // in the place of a key's length
	// batchItems and batchBytes bound one commit of a restore.
	batchItems = 90
	batchBytes = 768 << 10
)

// Header stands in the clear in front of a backup. What it says of the backup is also bound to the encrypted part.
type Header struct {
	ID       string          `json:"id"`
	Created  time.Time       `json:"created"`
	Expires  time.Time       `json:"expires"`
	Revision uint64          `json:"revision"`
	Root     json.RawMessage `json:"root"` // the root record: who opens it
}

// Create writes a backup of what the store has at one revision, while it serves, in constant memory. The caller needs the right; that the
// backup left is in the log before its first byte.
func Create(ctx context.Context, g *guard.Guard, p *guard.Permit, keep time.Duration, w io.Writer) (guard.Backup, error) {
	s, err := g.NewBackup(ctx, p, keep)
	if err != nil {
		return s.Backup, err
	}
	b := s.Backup
	header, err := json.Marshal(Header{b.ID, b.Created, b.Expires, uint64(s.Rev), s.Root})
	if err != nil {
		return b, fmt.Errorf("encode header: %w", err)
	}
	if _, err := io.WriteString(w, magic+string(header)+"\n"); err != nil {
		return b, err
	}
	out, err := envelope.NewWriter(ctx, w, envelope.Options{
		ContentType: contentType, Context: map[string]string{"backup": b.ID, "expires": b.Expires.Format(time.RFC3339), "revision": fmt.Sprint(s.Rev)},
		Wrappers: []envelope.Wrapper{s.Wrapper},
	})
	if err != nil {
		return b, err
	}
	n := uint64(0)
	for r, err := range s.Records {
		if err != nil {
			return b, fmt.Errorf("read store: %w", err)
		}
		if _, err := out.Write(encode(r)); err != nil {
			return b, err
		}
		n++
	}
	if _, err := out.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, endOfStream), n)); err != nil {
		return b, err
	}
	return b, out.Close()
}

func encode(r store.Record) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16+len(r.Key)+len(r.Value)), uint32(len(r.Key)))
	b = append(b, r.Key...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Rev))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Value)))
	return append(b, r.Value...)
}

// reader reads the records of a backup.
type reader struct {
	Header
	in *bufio.Reader
	n  uint64
}

// open reads the header and unwraps the data key with the sealers. fault.MalformedFile, SealWrong, DecryptFailed.
func open(ctx context.Context, r io.Reader, sealers []seal.Sealer) (*reader, error) {
	in := bufio.NewReader(r)
	line, err := lineOf(in, len(magic))
	if err != nil || line != magic {
		return nil, fault.Wrap(fault.MalformedFile, "backup", err)
	}
	if line, err = lineOf(in, maxHeader); err != nil {
		return nil, fault.Wrap(fault.MalformedFile, "backup", err)
	}
	out := &reader{}
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&out.Header); err != nil {
		return nil, fault.Wrap(fault.MalformedFile, "backup", err)
	}
	u, _, err := guard.BackupOpener(ctx, sealers, out.Root)
	if err != nil {
		return nil, err
	}
	bound := &binding{Unwrapper: u, header: out.Header}
	plain, err := envelope.NewReader(ctx, in, bound)
	if err != nil {
		return nil, err
	}
	out.in = bufio.NewReader(plain)
	return out, nil
}

// lineOf reads a line of at most so many bytes.
func lineOf(in *bufio.Reader, limit int) (string, error) {
	var b []byte
	for len(b) < limit {
		c, err := in.ReadByte()
		if err != nil {
			return "", err
		}
		if b = append(b, c); c == '\n' {
			return string(b), nil
		}
	}
	return "", errors.New("line is too long")
}

// binding refuses a file whose header in the clear is another's.
type binding struct {
	envelope.Unwrapper
	header Header
}

// UnwrapDEK implements envelope.Unwrapper.
func (b *binding) UnwrapDEK(ctx context.Context, w envelope.Wrap, immutable []byte) (envelope.Secret, error) {
	m, err := envelope.ParseImmutable(immutable)
	h := b.header
	if err != nil || m.ContentType != contentType || m.Context["backup"] != h.ID || m.Context["expires"] != h.Expires.Format(time.RFC3339) ||
		m.Context["revision"] != fmt.Sprint(h.Revision) {
		return envelope.Secret{}, fault.New(fault.DecryptFailed, "backup")
	}
	return b.Unwrapper.UnwrapDEK(ctx, w, immutable)
}

// next reads a record; io.EOF after the last, if they were all there.
func (r *reader) next() (rec store.Record, err error) {
	fail := func(err error) (store.Record, error) {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fault.New(fault.TruncatedFile, "backup")
		}
		return store.Record{}, err
	}
	var front [8]byte
	if _, err := io.ReadFull(r.in, front[:4]); err != nil {
		return fail(err)
	}
	size := binary.BigEndian.Uint32(front[:4])
	if size == endOfStream {
		if _, err := io.ReadFull(r.in, front[:]); err != nil {
			return fail(err)
		}
		if _, err := r.in.ReadByte(); binary.BigEndian.Uint64(front[:]) != r.n || !errors.Is(err, io.EOF) {
			return store.Record{}, cmp.Or(ignoreEOF(err), error(fault.New(fault.MalformedFile, "backup")))
		}
		return store.Record{}, io.EOF
	}
	if size == 0 || size > store.MaxKeyBytes {
		return store.Record{}, fault.New(fault.MalformedFile, "backup")
	}
	key := make([]byte, size)
	if _, err := io.ReadFull(r.in, key); err != nil {
		return fail(err)
	}
	if _, err := io.ReadFull(r.in, front[:]); err != nil {
		return fail(err)
	}
	rec.Key, rec.Rev = string(key), store.Rev(binary.BigEndian.Uint64(front[:]))
	if _, err := io.ReadFull(r.in, front[:4]); err != nil {
		return fail(err)
	}
	if size = binary.BigEndian.Uint32(front[:4]); size > store.MaxBytes {
		return store.Record{}, fault.New(fault.MalformedFile, "backup")
	}
	rec.Value = make([]byte, size)
	if _, err := io.ReadFull(r.in, rec.Value); err != nil {
		return fail(err)
	}
	r.n++
	return rec, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Report is what a backup holds.
type Report struct {
	Header
	Records uint64
}

// Restore fills an empty store. It is marked as restored, so that the server which opens it comes up in recovery mode. A restore that was
// cut off leaves a store that nobody opens. fault.Exists when the store has records.
func Restore(ctx context.Context, r io.Reader, sealers []seal.Sealer, to store.Store) (Report, error) {
	_, records := to.List(ctx, "")
	for _, err := range records {
		if err != nil {
			return Report{}, fmt.Errorf("read store: %w", err)
		}
		return Report{}, fault.New(fault.Exists, "store").WithHint("restore into an empty one")
	}
	in, err := open(ctx, r, sealers)
	if err != nil {
		return Report{}, err
	}
	var root []byte
	var later []store.Record
	var batch []store.Op
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := to.Commit(ctx, nil, batch)
		batch, size = nil, 0
		return err
	}
	for {
		rec, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Report{}, err
		}
		switch {
		case rec.Key == rootKey:
			root = rec.Value
			continue
		case strings.HasPrefix(rec.Key, waiting):
			later = append(later, rec)
			continue
		}
		if n := len(rec.Key) + len(rec.Value); len(batch) == batchItems || size+n > batchBytes {
			if err := flush(); err != nil {
				return Report{}, fmt.Errorf("write store: %w", err)
			}
		}
		batch, size = append(batch, store.Op{Key: rec.Key, Value: rec.Value}), size+len(rec.Key)+len(rec.Value)
	}
	if err := flush(); err != nil {
		return Report{}, fmt.Errorf("write store: %w", err)
	}
	if root == nil {
		return Report{}, fault.New(fault.MalformedFile, "backup")
	}
	if err := restoreWaiting(ctx, to, later); err != nil {
		return Report{}, err
	}
	mark, err := json.Marshal(in.Header)
	if err != nil {
		return Report{}, fmt.Errorf("encode mark: %w", err)
	}
	_, err = to.Commit(ctx, nil, []store.Op{{Key: rootKey, Value: root}, {Key: guard.RestoredPath, Value: mark}}) // last: without it nothing opens
	return Report{in.Header, in.n}, err
}

// restoreWaiting writes entries that wait for their order in that of their commits, each commit of its own again.
func restoreWaiting(ctx context.Context, to store.Store, later []store.Record) error {
	slices.SortFunc(later, func(a, b store.Record) int { return cmp.Or(cmp.Compare(a.Rev, b.Rev), cmp.Compare(a.Key, b.Key)) })
	for len(later) > 0 {
		n := 1
		for n < len(later) && later[n].Rev == later[0].Rev {
			n++
		}
		var ops []store.Op
		for _, r := range later[:n] {
			ops = append(ops, store.Op{Key: r.Key, Value: r.Value})
		}
		if _, err := to.Commit(ctx, nil, ops); err != nil {
			return fmt.Errorf("write store: %w", err)
		}
		later = later[n:]
	}
	return nil
}

// Verify restores a backup into scratch, which is empty, and opens it: the log, its counters and every record have to be in order.
// fault.AuditBroken, Recovery with what is wrong.
func Verify(ctx context.Context, r io.Reader, sealers []seal.Sealer, scratch store.Store, now func() time.Time) (Report, error) {
	report, err := Restore(ctx, r, sealers, scratch)
	if err != nil {
		return report, err
	}
	g, err := guard.Open(ctx, guard.Config{Store: scratch, Sealers: sealers, Recovery: true, Now: now})
	if err != nil {
		return report, err
	}
	for _, d := range g.Detected() {
		if d.Kind != "restored" {
			return report, fault.New(fault.Recovery, "backup "+report.ID).WithHint("%s", d.String())
		}
	}
	return report, nil
}

// HeaderSize bounds what stands before the records of a backup, in bytes.
const HeaderSize = len(magic) + maxHeader

// ReadHeader reads what stands in the clear in front of a backup, which nothing proves yet. fault.MalformedFile.
func ReadHeader(b []byte) (Header, error) {
	in := bufio.NewReader(bytes.NewReader(b))
	line, err := lineOf(in, len(magic))
	if err != nil || line != magic {
		return Header{}, fault.Wrap(fault.MalformedFile, "backup", err)
	}
	var h Header
	if line, err = lineOf(in, maxHeader); err == nil {
		err = json.Unmarshal([]byte(line), &h)
	}
	if err != nil {
		return Header{}, fault.Wrap(fault.MalformedFile, "backup", err)
	}
	return h, nil
}
