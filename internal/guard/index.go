package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// written is what the log says of a path: the latest write.
type written struct {
	counter uint64
	hash    digest    // of the sealed blob
	rev     store.Rev // of the commit; not known when loaded
	at      int64     // its entry, counted from 1 in the order of the log
	deleted bool
	loaded  bool // from the ordered log at start, which keeps no revisions
}

// digest is a SHA-256. There is one of each path in memory, so it is not kept as the text that it is in the log.
type digest [sha256.Size]byte

func digestOf(blob []byte) digest { return sha256.Sum256(blob) }

// digestIn reads the hash of an entry. What is none matches no record: it becomes the digest that nothing is known to have.
func digestIn(text string) (d digest) {
	if b, err := hex.DecodeString(text); err == nil && len(b) == len(d) {
		d = digest(b)
	}
	return d
}

// index is the log's view of every record, fed from the log alone, in commit order.
type index struct {
	mu         sync.Mutex // guards what follows
	paths      map[string]written
	last       map[string]store.Rev // of each room: the last commit that wrote a record in it, as far as Follow has brought one
	gone       map[string]store.Rev // of each deletion mark: the last commit that deleted something under it
	entries    int64                // taken so far
	turns      map[uint64]int64     // root generation -> the entry that made it the current one
	erased     []erasure            // in order
	incarnated uint32               // the highest incarnation that a recovery began; 0: none
	generation uint64               // of the root key; 0 is 1
	since      time.Time            // when it became the current one; zero: with the first entry
	sealers    map[string]span      // that have wrapped a generation that is not erased
	began      time.Time            // of the first entry
	shredded   time.Time            // when the last shred was asked for
	destroyed  map[string]int64     // namespace, ID of the key and version -> the entry that destroyed it, counted from 1
	applied    store.Rev
	changed    chan struct{}                   // closed and replaced when applied grows
	lives      atomic.Pointer[map[string]life] // of the namespaces that were ever closed; it is replaced, with mu held
	opening    bool                            // Open is at work, and nobody follows the log yet
	ended      chan struct{}                   // closed when applied will grow no more
	why        error                           // set before that
}

func newIndex() *index {
	x := &index{
		paths: map[string]written{}, last: map[string]store.Rev{}, gone: map[string]store.Rev{}, turns: map[uint64]int64{}, sealers: map[string]span{}, destroyed: map[string]int64{},
		changed: make(chan struct{}), opening: true, ended: make(chan struct{}),
	}
	x.lives.Store(&map[string]life{})
	return x
}

// add takes an entry's writes; rev 0: from the ordered log. A counter that does not follow the last one is an old entry that somebody put
// in again, with the tag that it had then, to make the log vouch for an old record. fault.AuditBroken.
func (x *index) add(e audit.Entry, rev store.Rev) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.entries++
	if n, ok := incarnationEntry(e); ok {
		x.incarnated = max(x.incarnated, n)
	}
	if x.began.IsZero() {
		x.began = e.Time
	}
	x.turned(e)
	if e.Action == audit.ActDestroy && e.Class == audit.ClassChange && e.Outcome == "done" && e.Detail["destroyed"] == "true" {
		x.destroyed[versionName(e.Namespace, e.Detail["key_id"], e.Detail["version"])] = x.entries
	}
	for _, w := range e.Writes {
		if w.Path == rootPath {
			x.wrapped(e.Detail["set"])
		}
		if last := x.paths[w.Path].counter; w.Counter != last+1 {
			return fault.New(fault.AuditBroken, fmt.Sprintf("record %s goes from %d to %d", w.Path, last, w.Counter))
		}
		x.paths[w.Path] = written{w.Counter, digestIn(w.SHA256), rev, x.entries, w.SHA256 == audit.Deleted, rev == 0}
		room, rest, _ := strings.Cut(w.Path, "/")
		x.last[room] = max(x.last[room], rev)
		if room+"/" == gonePrefix {
			x.lived(rest, w.SHA256 != audit.Deleted, e.Detail["event"] == reopened)
		}
	}
	return nil
}

// span is the generations of the root key that a sealer has wrapped, as far as they are not erased.
type span struct{ low, high uint64 }

// turned follows the generations of the root key. Call with mu held.
func (x *index) turned(e audit.Entry) {
	generation, ok := rootEntry(e)
	if !ok {
		return
	}
	if policy.Action(e.Action) != actErase {
		x.turns[generation], x.generation, x.since = x.entries, generation, e.Time
		if policy.Action(e.Action) == policy.ActShred {
			x.shredded = e.Time
		}
		return
	}
	x.erased = append(x.erased, erasure{x.turns[generation], e.Time, x.entries})
	for id, s := range x.sealers {
		if s.low = max(s.low, generation); s.high < generation {
			delete(x.sealers, id)
			continue
		}
		x.sealers[id] = s
	}
}

// wrapped notes who wraps the current generation. Call with mu held.
func (x *index) wrapped(set string) {
	for id := range strings.SplitSeq(set, ", ") {
		if id == "" {
			continue
		}
		s, ok := x.sealers[id]
		if s.high = max(x.generation, 1); !ok {
			s.low = s.high
		}
		x.sealers[id] = s
	}
}

// wrappers are the sealers that have wrapped a generation before one, which is not erased, sorted; still says of each whether it has wrapped
// later ones as well.
func (x *index) wrappers(before uint64) (ids []string, still map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	still = map[string]bool{}
	for id, s := range x.sealers {
		if s.low < before {
			ids = append(ids, id)
		}
		still[id] = s.high >= before
	}
	slices.Sort(ids)
	return ids, still
}

// shreds are when the last shred was asked for, and when the log began.
func (x *index) shreds() (last, began time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.shredded, x.began
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

// erasure: what was deleted before an entry of the log is erased since a time.
type erasure struct {
	before int64
	since  time.Time
	at     int64 // its entry
}

// Trace is where in the log the end of a version's material stands, as indexes of entries; -1: nowhere.
type Trace struct {
	Destroyed, Deleted, Turned, Erased int64
}

// Indexes are those that there are, Destroyed first, each once.
func (t Trace) Indexes() []int64 {
	all := []int64{t.Destroyed}
	for _, i := range []int64{t.Deleted, t.Turned, t.Erased} {
		if i >= 0 && !slices.Contains(all, i) {
			all = append(all, i)
		}
	}
	return all
}

// TraceOf finds the end of a version of the key with an ID, whose material stood at a path. A name can be another key's by now.
func (g *Guard) TraceOf(namespace, keyID string, version uint32, path string) Trace {
	x := g.index
	x.mu.Lock()
	defer x.mu.Unlock()
	t := Trace{-1, -1, -1, -1}
	if at, ok := x.destroyed[versionName(namespace, keyID, number(uint64(version)))]; ok {
		t.Destroyed = at - 1
	}
	w := x.paths[path]
	if !w.deleted {
		return t
	}
	t.Deleted = w.at - 1
	for _, e := range x.erased {
		if w.at < e.before {
			t.Turned, t.Erased = e.before-1, e.at-1
			break
		}
	}
	return t
}

func versionName(namespace, keyID, version string) string {
	return namespace + "/" + keyID + "/" + version
}

// erasedAt says since when a deleted path is erased.
func (x *index) erasedAt(path string) (time.Time, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.erasedSince(x.paths[path])
}

// erasedSince is erasedAt. Call with mu held.
func (x *index) erasedSince(w written) (time.Time, bool) {
	for _, e := range x.erased {
		if w.deleted && w.at < e.before {
			return e.since, true
		}
	}
	return time.Time{}, false
}

// outside are the sealers that have wrapped a generation that is not erased, and are not in the wrap set now, sorted: who keeps one opens copies
// of the store of then.
func (x *index) outside(set map[string][]byte) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for id := range x.sealers {
		if _, in := set[id]; !in {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// rooted says since when the root key is the current one.
func (x *index) rooted() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.since.IsZero() {
		return x.began
	}
	return x.since
}

// withdrawn counts the paths under a prefix that are deleted and not erased, and says when something was erased last.
func (x *index) withdrawn(prefix string) (n int, last time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p, w := range x.paths {
		if !w.deleted || !strings.HasPrefix(p, prefix) {
			continue
		}
		if _, ok := x.erasedSince(w); !ok {
			n++
		}
	}
	if len(x.erased) > 0 {
		last = x.erased[len(x.erased)-1].since
	}
	return n, last
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

// end says that nothing comes any more, and why. Once.
func (x *index) end(why error) {
	x.why = why
	close(x.ended)
}

// errBehind: the store has come further than the log that a start has read, which has to read it again.
var errBehind = errors.New("guard: the store has changed since its log was read")

// starting says whether nobody follows the log yet.
func (x *index) starting() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.opening
}

// opened says that the log is followed from now on, or will be.
func (x *index) opened() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.opening = false
}

// wait returns when the index has seen the commit rev. fault.Unavailable when it never will, as the log is not followed any more; errBehind while
// it is not followed yet.
func (x *index) wait(ctx context.Context, rev store.Rev) error {
	for {
		x.mu.Lock()
		applied, changed, opening := x.applied, x.changed, x.opening
		x.mu.Unlock()
		if applied >= rev {
			return nil
		}
		if opening {
			return errBehind
		}
		select {
		case <-changed:
		case <-x.ended:
			return fault.Wrap(fault.Unavailable, "audit log", x.why).WithHint("this server has stopped; go to another one, or start it again")
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
	sum := digestOf(blob)
	return hex.EncodeToString(sum[:])
}
