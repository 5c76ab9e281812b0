package movein

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/transit"
)

// Copy carries an item out: it copies the key, unless it is there, and proves it. Repeating it is harmless: what is there is proved again.
// fault.WrongState for an item that cannot be copied, RecordTampered when the key here is not the source's.
func (m Move) Copy(ctx context.Context, item Item, now time.Time) error {
	var content transit.Backup
	var err error
	defer func() { forget(content) }()
	switch item.Way {
	case Backup:
		content, err = m.byBackup(ctx, item.Key)
	case Export:
		content, err = m.byExport(ctx, item, now)
	case There:
	default:
		return fault.New(fault.WrongState, "key "+item.Key).WithHint("%s", item.Why)
	}
	if err != nil {
		return err
	}
	if err := m.prove(ctx, item); err != nil {
		return err
	}
	if err := m.readsEach(ctx, item); err != nil {
		return err
	}
	return m.proveEach(ctx, item, content)
}

func forget(content transit.Backup) {
	for _, v := range content.Versions {
		v.Bundle.Destroy()
	}
}

func (m Move) byBackup(ctx context.Context, name string) (content transit.Backup, err error) {
	var out struct{ Backup text }
	if err := m.From.get(ctx, "GET", &out, "backup", name); err != nil {
		return content, err
	}
	defer out.Backup.Destroy()
	if content, err = transit.ParseBackup(out.Backup.Bytes); err != nil { // rather here than in the middle of the other end
		return content, err
	}
	return content, m.To.restore(ctx, name, out.Backup.Bytes)
}

func (m Move) byExport(ctx context.Context, item Item, now time.Time) (b transit.Backup, err error) {
	k := item.known
	a, err := k.algorithm()
	if err != nil {
		return b, err
	}
	kind := transit.ExportEncryption
	switch {
	case transit.Signs(a):
		kind = transit.ExportSigning
	case !transit.Encrypts(a):
		kind = transit.ExportHMAC
	}
	keys, err := m.export(ctx, kind, item.Key)
	if err != nil {
		return b, err
	}
	macs, err := m.export(ctx, transit.ExportHMAC, item.Key)
	if err != nil {
		return b, err
	}
	b = transit.Backup{
		Name: item.Key, Algorithm: a, Settings: transit.Settings{Derived: k.Derived, Counter: k.Derived && k.KDF == "hmac-sha256-counter"},
		MinDecryption: uint32(k.MinDecryption), MinEncryption: uint32(k.MinEncryption), MinAvailable: uint32(k.oldest()), Latest: uint32(k.Latest), // #nosec G115 -- bounded by ParseBackup at the other end
		Exportable: true, DeletionAllowed: k.Deletion, Imported: k.Imported, RotationAllowed: k.Rotation, AutoRotate: k.autoRotate(),
	}
	if k.Convergent {
		b.Settings.Convergent = transit.ConvergentVersion
		if k.ConvergentBy > 0 {
			b.Settings.Convergent = k.ConvergentBy
		}
	}
	for _, number := range slices.SortedFunc(maps.Keys(keys), byNumber) {
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil || n > uint64(b.Latest) {
			return b, fault.New(fault.Invalid, "export of key "+item.Key).WithHint("version %q", number)
		}
		if err := b.Add(uint32(n), k.created(number), keys[number].Bytes, macs[number].Bytes); err != nil {
			return b, err
		}
	}
	text, err := b.Text(now)
	if err != nil {
		return b, err
	}
	defer text.Destroy()
	return b, m.To.restore(ctx, item.Key, text)
}

func byNumber(a, b string) int {
	x, _ := strconv.Atoi(a) // what is none is refused where it is used
	y, _ := strconv.Atoi(b)
	return x - y
}

// export fetches one text of each version.
func (m Move) export(ctx context.Context, kind transit.Export, name string) (map[string]text, error) {
	var out struct{ Keys map[string]text }
	err := m.From.get(ctx, "GET", &out, "export", string(kind), name)
	return out.Keys, err
}

// sample is what proofs are made with.
type sample struct{ plain, context string }

func newSample() sample { return sample{b64([]byte(rand.Text())), b64([]byte(rand.Text()))} }

// prove has each end read what the other made under the latest version, and the target what the source made under the oldest that may protect. fault.RecordTampered.
func (m Move) prove(ctx context.Context, item Item) error {
	a, err := item.known.algorithm()
	if err != nil {
		return err
	}
	versions := []int{item.known.Latest}
	if oldest := max(item.known.oldest(), item.known.MinEncryption); oldest < item.known.Latest {
		versions = append(versions, oldest)
	}
	for _, v := range versions {
		for _, ends := range [][2]*Server{{m.From, m.To}, {m.To, m.From}} {
			if ends[0] == m.To && v != item.known.Latest {
				continue // at rotor only the latest version of what came in protects
			}
			if err := proof(ctx, ends[0], ends[1], item, v, transit.Encrypts(a), transit.Signs(a)); err != nil {
				return err
			}
		}
	}
	return nil
}

// proof has one end make what the other reads.
func proof(ctx context.Context, makes, reads *Server, item Item, version int, encrypts, signs bool) error {
	s := newSample()
	differs := func(what string) error {
		return fault.New(fault.RecordTampered, "key "+item.Key).WithHint("version %d: what the %s %s, the %s does not know: the keys are not the same", version, makes.What, what, reads.What)
	}
	params := func(more map[string]any) map[string]any { return item.known.params(s, more) }
	if encrypts {
		var made struct{ Ciphertext string }
		if err := makes.post(ctx, params(map[string]any{"plaintext": s.plain, "key_version": version}), &made, "encrypt", item.Key); err != nil {
			return err
		}
		var read struct{ Plaintext string }
		if err := reads.post(ctx, params(map[string]any{"ciphertext": made.Ciphertext}), &read, "decrypt", item.Key); err != nil || read.Plaintext != s.plain {
			return differs("encrypts")
		}
	}
	if signs {
		var made struct{ Signature string }
		if err := makes.post(ctx, params(map[string]any{"input": s.plain, "key_version": version}), &made, "sign", item.Key); err != nil {
			return err
		}
		var read struct{ Valid bool }
		if err := reads.post(ctx, params(map[string]any{"input": s.plain, "signature": made.Signature}), &read, "verify", item.Key); err != nil || !read.Valid {
			return differs("signs")
		}
	}
	var made struct{ HMAC string }
	if err := makes.post(ctx, map[string]any{"input": s.plain, "key_version": version}, &made, "hmac", item.Key); err != nil {
		return err
	}
	var read struct{ Valid bool }
	if err := reads.post(ctx, map[string]any{"input": s.plain, "hmac": made.HMAC}, &read, "verify", item.Key); err != nil || !read.Valid {
		return differs("authenticates")
	}
	return nil
}

// Summary counts the ways of a plan.
func Summary(plan []Item) string {
	n := map[Way]int{}
	for _, i := range plan {
		n[i.Way]++
	}
	return fmt.Sprintf("%d keys to copy, %d here already, %d to re-encrypt, %d left", n[Backup]+n[Export], n[There], n[Reencrypt], n[Left])
}
