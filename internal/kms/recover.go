package kms

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
)

// unknownVersions is how far a recovery without a newer log counts versions on: numbers below may name what was lost.
const unknownVersions = 100

// Recover brings every key into a new incarnation of the cluster, with the permit of a recovery: versions whose material is gone are
// destroyed, epochs and numbers go on above every one that was ever seen. past is what a newer log knows, nil without one: then numbers
// jump. Keys that are there already are left alone, so it can be called again. It returns how many keys it changed.
func Recover(ctx context.Context, g *guard.Guard, p *guard.Permit, incarnation uint32, past *guard.Past, now time.Time) (int, error) {
	records, _, err := g.List(ctx, keyPrefix)
	if err != nil {
		return 0, fmt.Errorf("read keys: %w", err)
	}
	materials, _, err := g.List(ctx, "material/")
	if err != nil {
		return 0, fmt.Errorf("read materials: %w", err)
	}
	there := map[string]bool{}
	for _, m := range materials {
		there[m.Path] = true
	}
	all, err := sorted(changesOf(records))
	if err != nil {
		return 0, err
	}
	changed := 0
	for _, r := range all {
		if r.head == nil { // it is lost, and what is left of the key is no key
			if err := dropPages(ctx, p, r); err != nil {
				return changed, err
			}
			continue
		}
		k, missing, err := keyring.Salvage(r.head, r.pages)
		if err != nil {
			return changed, fault.Wrap(fault.RecordTampered, r.path, err)
		}
		was := &state{key: k, rev: r.rev}
		if k.Epoch.Incarnation >= incarnation {
			continue
		}
		above := k.NextNumber() - 1 + unknownVersions
		if past != nil {
			above = uint32(past.Highest[strings.TrimPrefix(keyPath(k), keyPrefix)])
		}
		k = k.Recovered(incarnation, above, func(n uint32) bool { return there[materialPath(k, n)] }, now.UTC())
		detail := map[string]string{"step": "key", "key": k.Name, "above": fmt.Sprint(k.Above)}
		if missing > 0 { // a backup of the key may have them
			detail["missing"] = fmt.Sprint(missing)
		}
		if err := commitRecovered(ctx, p, was, r.head, k, detail); err != nil {
			return changed, err
		}
		changed++
	}
	return changed, nil
}

// dropPages deletes the pages of a key that is lost, so that the key can be restored from a backup of its own.
func dropPages(ctx context.Context, p *guard.Permit, r *parts) error {
	for batch := range slices.Chunk(r.pages, pagesAtOnce) {
		var writes []guard.Write
		for _, page := range batch {
			writes = append(writes, guard.Write{Path: r.path + "/" + strconv.FormatUint(uint64(page.Index), 10), Delete: true})
		}
		if _, err := p.Commit(ctx, nil, writes, map[string]string{"step": "key", "lost": r.path}); err != nil {
			return err
		}
	}
	return nil
}

// pagesAtOnce bounds how many pages one commit of a recovery writes. Each takes a condition, a write, and where there was none one more condition.
const pagesAtOnce = 16

// commitRecovered writes a key whose recovery may have changed any number of pages. Pages that do not fit into a commit with the head go first: what
// a recovery changes in them is that versions are destroyed, which it finds done when it is called again.
func commitRecovered(ctx context.Context, p *guard.Permit, was *state, before []byte, k keyring.Key, detail map[string]string) error {
	writes, err := recordsOf(k, shape{paged: was.key.InPages()}, math.MaxInt)
	if err != nil {
		return err
	}
	head, pages, rev := writes[0], writes[1:], was.rev
	for more := true; more; {
		batch := pages[:min(len(pages), pagesAtOnce)]
		pages = pages[len(batch):]
		more = len(pages) > 0
		value := head.Value
		if more {
			value = before
		}
		at, err := p.Commit(ctx, []guard.Cond{{Path: head.Path, Rev: rev}}, append([]guard.Write{{Path: head.Path, Value: value}}, batch...), detail)
		if err != nil {
			return err
		}
		rev = at
	}
	return nil
}

// Erased says since when the material of a version is erased; false while it is there or withdrawn only.
func (s *Service) Erased(k keyring.Key, n uint32) (time.Time, bool) {
	return s.guard.Erased(materialPath(k, n))
}
