package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// written is what the log says of a path: the latest write.
type written struct {
	counter uint64
	hash    string
	deleted bool
	rev     store.Rev // of the commit; not known when loaded
	loaded  bool      // from the ordered log at start, which keeps no revisions
}

// index is the log's view of every record, fed from the log alone, in commit order.
type index struct {
	mu      sync.Mutex // guards what follows
	paths   map[string]written
	last    map[string]store.Rev // of each room: the last commit that wrote a record in it, as far as Follow has brought one
	gone    map[string]store.Rev // of each deletion mark: the last commit that deleted something under it
	applied store.Rev
	changed chan struct{} // closed and replaced when applied grows
}

func newIndex() *index {
	return &index{paths: map[string]written{}, last: map[string]store.Rev{}, gone: map[string]store.Rev{}, changed: make(chan struct{})}
}

// add takes an entry's writes; rev 0: from the ordered log. A counter that does not follow the last one is an old entry that somebody put
// in again, with the tag that it had then, to make the log vouch for an old record. fault.AuditBroken.
func (x *index) add(e audit.Entry, rev store.Rev) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, w := range e.Writes {
		if last := x.paths[w.Path].counter; w.Counter != last+1 {
			return fault.New(fault.AuditBroken, fmt.Sprintf("record %s goes from %d to %d", w.Path, last, w.Counter))
		}
		x.paths[w.Path] = written{w.Counter, w.SHA256, w.SHA256 == audit.Deleted, rev, rev == 0}
		room, _, _ := strings.Cut(w.Path, "/")
		x.last[room] = max(x.last[room], rev)
	}
	return nil
}

// marked notes the last deletion under a mark.
func (x *index) marked(mark string, rev store.Rev) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.gone[mark] = max(x.gone[mark], rev)
}

// absence is the counter of the last write of a path and the revision of the last deletion under its mark, of one moment: a path that is
// absent, and under whose mark nothing was deleted since, was not written since.
func (x *index) absence(path string) (counter uint64, gone, applied store.Rev) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.paths[path].counter, x.gone[markOf(path)], x.applied
}

// lastOf is the last commit that wrote a record in a room.
func (x *index) lastOf(room string) store.Rev {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last[room]
}

// rooms are the first elements of all paths that the log knows, sorted.
func (x *index) rooms() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	seen := map[string]bool{}
	for p := range x.paths {
		room, _, _ := strings.Cut(p, "/")
		seen[room+"/"] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func (x *index) at() store.Rev {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.applied
}

func (x *index) reached(rev store.Rev) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if rev > x.applied {
		x.applied = rev
		close(x.changed)
		x.changed = make(chan struct{})
	}
}

func (x *index) latest(path string) (written, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	w, ok := x.paths[path]
	return w, ok
}

// wait returns when the index has seen the commit rev.
func (x *index) wait(ctx context.Context, rev store.Rev) error {
	for {
		x.mu.Lock()
		applied, changed := x.applied, x.changed
		x.mu.Unlock()
		if applied >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// missing finds a path under prefix that the log knows and a snapshot at rev did not hold; the index has seen rev. newer: the
// log knows it from a later commit, so the snapshot must be read again.
func (x *index) missing(prefix string, have []Record, rev store.Rev) (path string, newer bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	there := make(map[string]bool, len(have))
	for _, r := range have {
		there[r.Path] = true
	}
	for p, w := range x.paths {
		if !w.deleted && !there[p] && strings.HasPrefix(p, prefix) {
			return p, w.rev > rev
		}
	}
	return "", false
}

func hashOf(blob []byte) string {
	sum := sha256.Sum256(blob)
	return hex.EncodeToString(sum[:])
}
