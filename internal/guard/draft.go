package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// That a record is absent has no revision: between the look at its last counter and the commit, another server could make and delete it,
// and both would give out the same counter. So a commit that deletes also writes a deletion mark, one of 256 by the hash of the path, and
// a commit that writes what is absent is conditioned on the mark. Marks say nothing but their revision, which the log need not vouch for.

// markPrefix is where the marks are. They are not sealed and not in the log.
const markPrefix = "deleted/"

func markOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return markPrefix + hex.EncodeToString(sum[:1])
}

// draft is a commit in the making.
type draft struct {
	guard   *Guard
	roots   *roots               // that it is sealed under
	named   map[string]bool      // paths that the caller has conditioned
	present map[string]bool      // those of them that must be there
	marks   map[string]store.Rev // conditions on deletion marks
	gone    string               // path that must stay absent, as a namespace would be closed with it; empty: none
	conds   []store.Cond
	ops     []store.Op
	noted   []audit.Write
}

// conditions takes over the caller's conditions. fault.Conflict, RecordTampered.
func (d *draft) conditions(ctx context.Context, conds []Cond) error {
	d.conds = d.roots.fence()
	for _, c := range conds {
		d.named[c.Path], d.present[c.Path] = true, c.Rev != 0
		if err := d.guard.condition(ctx, c); err != nil {
			return err
		}
		d.conds = append(d.conds, store.Cond{Key: c.Path, Rev: c.Rev})
	}
	return nil
}

// write seals the writes with the counters that follow the last ones, and adds the conditions under which they do.
func (d *draft) write(ctx context.Context, writes []Write) error {
	deleted := map[string]bool{}
	for _, w := range writes {
		if !d.named[w.Path] {
			rev, err := d.guard.revOf(ctx, w.Path)
			if err != nil {
				return err
			}
			d.conds, d.present[w.Path] = append(d.conds, store.Cond{Key: w.Path, Rev: rev}), rev != 0
		}
		counter, err := d.counter(ctx, w.Path)
		if err != nil {
			return err
		}
		op, note := d.roots.current.write(w, counter+1)
		d.ops, d.noted = append(d.ops, op), append(d.noted, note)
		if mark := markOf(w.Path); w.Delete && !deleted[mark] {
			deleted[mark] = true
			d.ops = append(d.ops, store.Op{Key: mark, Value: secret.Random(8).Reveal()})
		}
	}
	for mark, rev := range d.marks {
		d.conds = append(d.conds, store.Cond{Key: mark, Rev: rev})
	}
	return nil
}

// counter is that of the last write of a path. For a record that must be there its own condition keeps it; for one that must not, the mark.
func (d *draft) counter(ctx context.Context, path string) (uint64, error) {
	for {
		counter, gone, applied := d.guard.index.absence(path)
		if d.present[path] {
			return counter, nil
		}
		if gone > applied { // read at the start, of a commit that the index has not seen yet
			if err := d.guard.index.wait(ctx, gone); err != nil {
				return 0, err
			}
			continue
		}
		if _, there := d.marks[markOf(path)]; !there {
			d.marks[markOf(path)] = gone
		}
		return counter, nil
	}
}

// moved says whether the commit can have failed because of what its caller knows nothing of: a deletion mark, or the root record.
func (d *draft) moved(ctx context.Context) (bool, error) {
	moved, err := d.guard.catchUp(ctx, d.roots)
	if err != nil || moved {
		return moved, err
	}
	if d.gone != "" {
		r, err := d.guard.store.Get(ctx, d.gone)
		if err == nil { // the next try finds it closed
			return true, d.guard.index.wait(ctx, r.Rev)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return false, storeFault(d.gone, err)
		}
	}
	return d.guard.marksMoved(ctx, d.marks)
}

// marksMoved says whether a commit can have failed because of a mark. The index has then caught up with it.
func (g *Guard) marksMoved(ctx context.Context, marks map[string]store.Rev) (bool, error) {
	moved := false
	for mark, rev := range marks {
		r, err := g.store.Get(ctx, mark)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, storeFault(mark, err)
		}
		if r.Rev != rev {
			moved = true
			if err := g.index.wait(ctx, r.Rev); err != nil {
				return false, err
			}
		}
	}
	return moved, nil
}

// loadMarks reads the marks at the start, after the log.
func (g *Guard) loadMarks(ctx context.Context) error {
	_, records := g.store.List(ctx, markPrefix)
	for r, err := range records {
		if err != nil {
			return storeFault(markPrefix, err)
		}
		g.index.marked(r.Key, r.Rev)
	}
	return nil
}

// unlogged says whether a path is one whose writes need no entry: marks of deletions, of a restore and of a witness, and what server replicas tell each other.
func unlogged(path string) bool {
	return strings.HasPrefix(path, restoredRoom) || strings.HasPrefix(path, markPrefix) || strings.HasPrefix(path, ReplicaPrefix)
}
