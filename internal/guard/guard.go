// Package guard is the one door. Who wants to act gets a permit from Admit, and only a permit commits; the commit carries the audit
// entry of what it did. Records are sealed here, and believed only if they are what the audit log says was written last.
package guard

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// Decider says whether rules allow something, and which.
type Decider interface {
	// Allows returns the name of the rule that allows it.
	Allows(c policy.Caller, a policy.Action, r policy.Resource) (rule string, ok bool)
}

// Spender is a Decider some of whose rules are good for a number of uses.
type Spender interface {
	// Spend counts one use of a rule, durably before it returns. fault.Denied when there is none left.
	Spend(ctx context.Context, rule string) error
}

// Config is what a guard needs.
type Config struct {
	Store   store.Store
	Sealers []seal.Sealer // the wrap set: any one opens
	Rules   Decider       // nil denies everything
	Turn    audit.Turn    // whose turn it is to put the log into order; nil: always this one's
	Packs   func() bool   // whether everybody who may read the log reads packed entries; nil: no
	Now     func() time.Time
	Log     *slog.Logger

	// Before is a guard of the same store that this process had open and whose Run has ended: the generations of the root key that it opened need no
	// sealer. nil: there was none.
	Before *Guard

	Statements [][]byte      // that were kept outside the store: a log that contradicts one is found at Open
	ShredEvery time.Duration // after which what was destroyed is erased without anybody asking; 0: never
	Recovery   bool          // open also a store that is not the one that it was; the guard then admits nobody, and Detected says why
}

// Guard is the door of one store. Safe for concurrent use.
type Guard struct {
	store    store.Store
	now      func() time.Time
	log      *slog.Logger
	sealers  atomic.Pointer[[]seal.Sealer]
	rules    atomic.Pointer[Decider]
	keys     atomic.Pointer[roots]
	audit    *audit.Log
	index    *index
	after    store.Rev // where the watch of the log starts
	pin      string    // verifier key of the checkpoint key
	snapshot ed25519.PrivateKey
	windows  windows
	refusals refusals
	turn     audit.Turn
	looks    looks

	detected  atomic.Pointer[[]Detection]
	detecting sync.Mutex    // held while detected grows
	suspended chan struct{} // closed when it does after Open
	told      chan struct{} // full when a witness has come to another server
	witnesses latest
	convicted conviction

	rootMu  sync.Mutex    // held while the root record is read again
	turnMu  sync.Mutex    // held while another root key is made
	further chan struct{} // full while a turn is taken further
	tender  chan struct{}
	former  atomic.Pointer[func(id string, blob []byte) seal.Sealer]

	shredEvery time.Duration
	tending    atomic.Pointer[error] // why the turn in flight is not done

	kekMu sync.Mutex // guards keks
	keks  map[string]secret.Bytes
}

// ClusterID names the cluster for ever: 16 random bytes in hex, made at Init.
func (g *Guard) ClusterID() string { return g.keys.Load().record.Cluster }

// CheckpointKey is the verifier key of the audit log, to be pinned by auditors, as Init gave it.
func (g *Guard) CheckpointKey() string { return g.pin }

// SetRules swaps the rules.
func (g *Guard) SetRules(d Decider) { g.rules.Store(&d) }

// Run follows the log, puts it into order and closes use windows until ctx ends. Nothing is believed while it does not run, and once it has ended
// nobody waits for what it would have brought: fault.Unavailable.
func (g *Guard) Run(ctx context.Context) (err error) {
	defer func() { g.index.end(err) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wait sync.WaitGroup
	errs := make(chan error, 5)
	sequence := func(ctx context.Context) error { return g.audit.Sequence(ctx, g.turn) }
	for _, loop := range []func(context.Context) error{g.follow, sequence, g.sweep, g.tend, g.hearing} {
		wait.Go(func() {
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				errs <- err
			}
			stop()
		})
	}
	wait.Wait()
	select {
	case err := <-errs:
		return fmt.Errorf("guard stopped: %w", err)
	default:
		return nil
	}
}

func (g *Guard) follow(ctx context.Context) error {
	return g.audit.Follow(ctx, g.after, func(c audit.Commit) error {
		vouched := map[string]string{}
		before := g.Incarnation()
		for _, e := range c.Entries {
			if err := g.index.add(e, c.Rev); err != nil {
				return err
			}
			for _, w := range e.Writes {
				vouched[w.Path] = w.SHA256
			}
		}
		for _, e := range c.Others {
			if strings.HasPrefix(e.Key, markPrefix) {
				g.index.marked(e.Key, e.Rev)
			}
			if e.Key == WitnessPath && !e.Deleted {
				g.tell()
			}
			if unlogged(e.Key) {
				continue
			}
			if hash := hashOf(e.Value); !e.Deleted && vouched[e.Key] != hash || e.Deleted && vouched[e.Key] != audit.Deleted {
				g.log.ErrorContext(ctx, "a record was changed past the door and will be refused", "path", e.Key)
			}
		}
		if g.Incarnation() > before { // a recovery has come to its end, here or at another server
			g.detected.Store(nil)
		}
		g.index.reached(c.Rev)
		for _, e := range c.Entries {
			if _, ok := rootEntry(e); ok || policy.Action(e.Action) == policy.ActSeal {
				g.wakeTender() // another server may have been asked for it
			}
		}
		return nil
	})
}

// ReplicaPrefix is where server replicas keep what they tell each other (package replica). It is neither sealed nor in the log: only who
// leads and who is alive stands there, and every commit of a leader is conditioned on more.
const ReplicaPrefix = "replica/"

// Record is an opened record.
type Record struct {
	Path    string
	Value   []byte
	Counter uint64
	Rev     store.Rev
}

// Get reads a record and believes it only if the log does. fault.NotFound, RecordTampered, RecordReplayed.
func (g *Guard) Get(ctx context.Context, path string) (Record, error) {
	for {
		known := g.index.at()
		r, err := g.store.Get(ctx, path)
		if errors.Is(err, store.ErrNotFound) {
			again, err := g.absent(ctx, path)
			if err != nil {
				return Record{}, err
			}
			if again {
				continue
			}
			return Record{}, fault.New(fault.NotFound, path)
		}
		if err != nil {
			return Record{}, storeFault(path, err)
		}
		if err := g.reach(ctx, r); err != nil {
			return Record{}, err
		}
		out, moved, err := g.believe(ctx, r, known)
		if moved {
			continue
		}
		return out, err
	}
}

// reach waits until the index has seen the commit that wrote a record. A revision that the store has not reached itself was put there
// from outside, and would never come. fault.RecordTampered.
func (g *Guard) reach(ctx context.Context, r store.Record) error {
	if g.index.at() >= r.Rev {
		return nil
	}
	rev, err := g.revision(ctx)
	if err != nil {
		return err
	}
	if r.Rev > rev {
		return fault.New(fault.RecordTampered, r.Key).WithHint("its revision is of a commit to come")
	}
	return g.index.wait(ctx, r.Rev)
}

// absent says that a record is rightly absent, or that it has appeared and must be read again. fault.RecordTampered.
func (g *Guard) absent(ctx context.Context, path string) (again bool, err error) {
	rev, records := g.store.List(ctx, path)
	for r, err := range records {
		if err != nil {
			return false, storeFault(path, err)
		}
		if r.Key == path {
			return true, nil
		}
	}
	if err := g.index.wait(ctx, rev); err != nil {
		return false, err
	}
	w, ok := g.index.latest(path)
	switch {
	case !ok || w.deleted:
		return false, nil
	case w.rev > rev:
		return true, nil
	}
	return false, lost(path)
}

// believe opens a blob that the log must know as the latest. It was read from a store that had reached the revision known. moved: the
// log knows of a later commit, so it has to be read again.
func (g *Guard) believe(ctx context.Context, r store.Record, known store.Rev) (out Record, moved bool, err error) {
	want, ok := g.index.latest(r.Key)
	if ok && want.rev > r.Rev && want.rev > known && !want.loaded {
		return Record{}, true, nil
	}
	if r.Key == rootPath { // it opened, so its tag holds
		if !ok || want.hash != digestOf(r.Value) {
			return Record{}, false, fault.New(fault.RecordReplayed, r.Key)
		}
		return Record{Path: r.Key, Value: r.Value, Counter: want.counter, Rev: r.Rev}, false, nil
	}
	counter, value, err := g.openBlob(ctx, r.Key, r.Value)
	if errors.Is(err, errGone) { // it was sealed again, perhaps since it was read
		if again, err := g.writtenSince(ctx, r.Key, r.Rev); err != nil || again {
			return Record{}, again, err
		}
	}
	if err != nil {
		return Record{}, false, err
	}
	if !ok || want.deleted || counter != want.counter || digestOf(r.Value) != want.hash {
		return Record{}, false, fault.New(fault.RecordReplayed, r.Key)
	}
	return Record{Path: r.Key, Value: value, Counter: counter, Rev: r.Rev}, false, nil
}

// writtenSince says whether a record of a generation that is gone was written again after a commit: before the root record without that
// generation was committed, as far as the index then is.
func (g *Guard) writtenSince(ctx context.Context, path string, rev store.Rev) (bool, error) {
	if err := g.index.wait(ctx, g.keys.Load().rev); err != nil {
		return false, err
	}
	now, _ := g.index.latest(path)
	return now.rev > rev, nil
}

// List reads all records under a prefix from one snapshot. Each is believed as in Get, and none that the log knows may be missing.
func (g *Guard) List(ctx context.Context, prefix string) ([]Record, store.Rev, error) {
retry:
	for {
		rev, records := g.store.List(ctx, prefix)
		var raw []store.Record
		for r, err := range records {
			if err != nil {
				return nil, 0, storeFault(prefix, err)
			}
			raw = append(raw, r)
		}
		if err := g.index.wait(ctx, rev); err != nil {
			return nil, 0, err
		}
		var out []Record
		for _, r := range raw {
			if r.Rev > rev {
				return nil, 0, fault.New(fault.RecordTampered, r.Key).WithHint("its revision is of a commit to come")
			}
			rec, moved, err := g.believe(ctx, r, rev)
			if moved {
				continue retry
			}
			if err != nil {
				return nil, 0, err
			}
			out = append(out, rec)
		}
		missing, newer := g.index.missing(prefix, out, rev)
		if missing != "" && newer {
			continue
		}
		if missing != "" {
			return nil, 0, lost(missing)
		}
		return out, rev, nil
	}
}

// Change is one record of a watched commit.
type Change struct {
	Record
	Deleted bool
	Later   bool // it cannot be opened any more, as its root generation is gone; a later commit, which wrote it again, has all of it
}

// checkRoom compares the records of a room with the log, so that what was changed while the server was down is named before anything is
// served. wrong is told of each that is not what the log says, with nil for one that is lost. What another server wrote meanwhile is compared
// when it is read.
func (g *Guard) checkRoom(ctx context.Context, room string, wrong func(path string, cause error) error) error {
	rev, records := g.store.List(ctx, room)
	there := map[string]bool{}
	for r, err := range records {
		if err != nil {
			return storeFault(room, err)
		}
		there[r.Key] = true
		w, ok := g.index.latest(r.Key)
		if ok && !w.deleted && w.hash == digestOf(r.Value) || r.Rev > g.after && r.Rev <= rev {
			continue
		}
		if _, _, err := g.believe(ctx, r, g.after); err != nil {
			if err := wrong(r.Key, err); err != nil {
				return err
			}
		}
	}
	if rev != g.after {
		return nil
	}
	for _, path := range g.index.living(room) {
		if !there[path] {
			if err := wrong(path, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func lost(path string) error {
	return fault.New(fault.RecordTampered, path).WithHint("the log says that it exists, the store has lost it")
}

// Watch yields the records under a prefix that each commit after a revision changed, in commit order. Each is what the log says that
// the commit wrote; of one that was overwritten since, it must only be an earlier one. fault.RecordTampered, RecordReplayed.
func (g *Guard) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]Change, error] {
	return func(yield func([]Change, error) bool) {
		for changes, err := range g.WatchAll(ctx, prefix, after) {
			changes = slices.DeleteFunc(changes, func(c Change) bool { return c.Later })
			if err == nil && len(changes) == 0 {
				continue
			}
			if !yield(changes, err) {
				return
			}
		}
	}
}

// WatchAll is Watch for whoever puts several records together: it also says of which ones the contents come later.
func (g *Guard) WatchAll(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]Change, error] {
	return func(yield func([]Change, error) bool) {
		for events, err := range g.store.Watch(ctx, prefix, after) {
			if err != nil {
				yield(nil, err)
				return
			}
			var out []Change
			for _, e := range events {
				c, err := g.change(ctx, e)
				if err != nil {
					yield(nil, err)
					return
				}
				out = append(out, c)
			}
			if len(out) > 0 && !yield(out, nil) {
				return
			}
		}
	}
}

// change is what an event says, if the log says so too.
func (g *Guard) change(ctx context.Context, e store.Event) (Change, error) {
	c := Change{Record: Record{Path: e.Key, Rev: e.Rev}, Deleted: e.Deleted}
	if err := g.index.wait(ctx, e.Rev); err != nil {
		return c, err
	}
	if !e.Deleted {
		var err error
		c.Counter, c.Value, err = g.openBlob(ctx, e.Key, e.Value)
		if errors.Is(err, errGone) {
			again, werr := g.writtenSince(ctx, e.Key, e.Rev)
			if c.Later = again; again || werr != nil {
				return c, werr
			}
		}
		if err != nil {
			return c, err
		}
	}
	w, ok := g.index.latest(e.Key)
	good := false
	switch {
	case !ok:
	case w.loaded: // the watch began before the log was read
		good = e.Rev <= g.after && (e.Deleted || c.Counter <= w.counter)
	case w.rev > e.Rev:
		good = e.Deleted || c.Counter < w.counter
	case w.rev == e.Rev:
		good = w.deleted == e.Deleted && (e.Deleted || w.hash == digestOf(e.Value))
	}
	if !good {
		return c, fault.New(fault.RecordReplayed, e.Key)
	}
	return c, nil
}

// Sign signs with the server's snapshot key, which instances pin when they join; domain separates its uses.
func (g *Guard) Sign(domain string, msg []byte) []byte {
	return ed25519.Sign(g.snapshot, identity.ServerInput(domain, msg))
}

// PublicKey is the public half of Sign's key.
func (g *Guard) PublicKey() ed25519.PublicKey {
	public, _ := g.snapshot.Public().(ed25519.PublicKey) // it is of no other type
	return public
}

// storeFault turns an engine's error into what callers see.
func storeFault(what string, err error) error {
	switch {
	case errors.Is(err, store.ErrConflict):
		return fault.Wrap(fault.Conflict, what, err)
	case errors.Is(err, store.ErrUnknown):
		return fault.Wrap(fault.OutcomeUnknown, what, err)
	case errors.Is(err, store.ErrCorrupt):
		return fault.Wrap(fault.StoreCorrupt, what, err)
	case errors.Is(err, store.ErrFull):
		return fault.Wrap(fault.DiskFull, what, err)
	case errors.Is(err, store.ErrTooLarge):
		return fault.Wrap(fault.TooLarge, what, err)
	case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrUnavailable):
		return fault.Wrap(fault.Unavailable, what, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(fault.Canceled, what, err)
	}
	return fmt.Errorf("store, %s: %w", what, err)
}
