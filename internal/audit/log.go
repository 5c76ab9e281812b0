package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/pack"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// Where the log lives in the store.
const (
	pendingPrefix = "log/new/"   // random name -> tag 32, entry: committed, not in order yet
	entryPrefix   = "log/entry/" // index in 16 hex digits -> entry, packed or not
	statePath     = "log/state"  // size and root, tagged
)

// Waiting begins the keys of entries that are not in order yet: they are in the order of their commits, which a copy of the store has to keep.
const Waiting = pendingPrefix

// Log is the log of one store. Safe for concurrent use.
type Log struct {
	store  store.Store
	keys   atomic.Pointer[Keys]
	signer note.Signer
	packs  func() bool // nil: never

	mu       sync.Mutex // guards what follows
	hashes   []tlog.Hash
	size     int64
	state    store.Rev     // of the state record
	advanced chan struct{} // closed and replaced when the size grows

	waiting  sync.Mutex    // guards queue, followed and handed; taken after mu
	queue    []pending     // committed, in commit order, not in the log yet
	followed store.Rev     // everything up to this commit has been put into the queue
	handed   chan struct{} // closed and replaced when followed grows
	more     chan struct{}

	over    chan struct{} // closed when Follow has ended: nothing comes any more
	endOnce sync.Once
}

// Keys are what the log tags its records with, and the fence of its commits. They change with the root key.
type Keys struct {
	Current secret.Bytes
	Older   []secret.Bytes // of earlier root keys: what commits up to Until are tagged with, which may still wait or come
	Until   store.Rev      // the commit of the root record that the keys were read from: later ones are tagged with Current alone; 0: of any
	Fence   []store.Cond   // conditions of every commit: that root record
	// Moved is asked when the fence did not hold or no key fits: whether there are other keys now, which Rekey was called with. May be nil.
	Moved func(ctx context.Context) (bool, error)
}

// Rekey changes the keys.
func (l *Log) Rekey(k Keys) { l.keys.Store(&k) }

// moved says whether there are newer keys than those that did not fit.
func (l *Log) moved(ctx context.Context, than *Keys) (bool, error) {
	if l.keys.Load() != than {
		return true, nil
	}
	if than.Moved == nil {
		return false, nil
	}
	return than.Moved(ctx)
}

type pending struct {
	key   string
	rev   store.Rev
	entry []byte
}

// head is the state record.
type head struct {
	Size int64  `json:"size"`
	Root string `json:"root"`
	Tag  string `json:"tag"` // HMAC-SHA256 over size and root
}

// Load reads and verifies the whole log, and calls seen with every entry in order, those that wait for the sequencer last, each
// with the revision of the commit that made it (0 for those already in order). It returns the revision to watch from.
// older are the keys of earlier roots, of which something may still be there. fault.AuditBroken. It costs one hash per entry: about a second per million.
func Load(ctx context.Context, s store.Store, mac secret.Bytes, seen func(Entry, store.Rev) error, older ...secret.Bytes) (*Log, store.Rev, error) {
	l := &Log{store: s, more: make(chan struct{}, 1), advanced: make(chan struct{}), handed: make(chan struct{}), over: make(chan struct{})}
	l.Rekey(Keys{Current: mac, Older: older})
	rev, records := s.List(ctx, "log/")
	var h head
	var waiting []pending
	var entries int64
	for r, err := range records {
		if err != nil {
			return nil, 0, fmt.Errorf("read audit log: %w", err)
		}
		switch {
		case r.Key == statePath:
			l.state = r.Rev
			if err := json.Unmarshal(r.Value, &h); err != nil {
				return nil, 0, fault.Wrap(fault.AuditBroken, "log state", err)
			}
		case strings.HasPrefix(r.Key, entryPrefix):
			if r.Key != entryPath(entries) {
				return nil, 0, fault.New(fault.AuditBroken, fmt.Sprintf("entry %d is missing", entries))
			}
			if err := l.load(r.Value, entries, seen); err != nil {
				return nil, 0, err
			}
			entries++
		case strings.HasPrefix(r.Key, pendingPrefix):
			entry, err := l.untag(r)
			if err != nil {
				return nil, 0, err
			}
			if r.Rev > rev {
				return nil, 0, fault.New(fault.AuditBroken, "a waiting entry is of a revision to come")
			}
			waiting = append(waiting, pending{r.Key, r.Rev, entry})
		}
	}
	if err := l.matches(h); err != nil {
		return nil, 0, err
	}
	slices.SortFunc(waiting, func(a, b pending) int { return cmp.Or(cmp.Compare(a.rev, b.rev), cmp.Compare(a.key, b.key)) })
	for _, p := range waiting {
		if err := show(p.entry, p.rev, seen); err != nil {
			return nil, 0, fault.Wrap(fault.AuditBroken, "waiting entry", err)
		}
	}
	l.enqueue(waiting, rev)
	return l, rev, nil
}

// load takes an entry that is in order. fault.AuditBroken.
func (l *Log) load(record []byte, i int64, seen func(Entry, store.Rev) error) error {
	entry, err := unpacked(record, i)
	if err != nil {
		return err
	}
	if err := l.grow(entry); err != nil {
		return err
	}
	if err := show(entry, 0, seen); err != nil {
		return fault.Wrap(fault.AuditBroken, fmt.Sprintf("entry %d", i), err)
	}
	return nil
}

// unpacked is the entry in a record, whose hash tells whether it is the one that was put into order. fault.AuditBroken.
func unpacked(record []byte, i int64) ([]byte, error) {
	entry, err := pack.Unpack(record, MaxEntry)
	if err != nil {
		return nil, fault.Wrap(fault.AuditBroken, fmt.Sprintf("entry %d", i), err)
	}
	return entry, nil
}

func show(b []byte, rev store.Rev, seen func(Entry, store.Rev) error) error {
	e, err := Decode(b)
	if err != nil {
		return err
	}
	return seen(e, rev)
}

// grow adds an entry to the tree in memory. Call with mu held, or before the log is shared.
func (l *Log) grow(entry []byte) error {
	more, err := tlog.StoredHashesForRecordHash(l.size, tlog.RecordHash(entry), l)
	if err != nil {
		return fmt.Errorf("hash audit entry %d: %w", l.size, err)
	}
	l.hashes = append(l.hashes, more...)
	l.size++
	return nil
}

// ReadHashes implements tlog.HashReader over the tree in memory.
func (l *Log) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		if n < 0 || n >= int64(len(l.hashes)) {
			return nil, fmt.Errorf("no hash %d", n)
		}
		out[i] = l.hashes[n]
	}
	return out, nil
}

// matches compares the tree with what the state record says.
func (l *Log) matches(h head) error {
	if l.state == 0 && l.size == 0 {
		return nil
	}
	want, err := l.head()
	if err != nil {
		return err
	}
	tag, _ := hex.DecodeString(h.Tag)
	if !l.tagged(tag, store.Record{Key: statePath, Value: []byte(fmt.Sprintf("%d %s", h.Size, h.Root)), Rev: l.state}) {
		return fault.New(fault.AuditBroken, "log state was changed from outside")
	}
	if h.Size != want.Size || h.Root != want.Root {
		return fault.New(fault.AuditBroken, fmt.Sprintf("log has %d entries with root %s, its state says %d with %s", want.Size, want.Root, h.Size, h.Root))
	}
	return nil
}

func (l *Log) head() (head, error) {
	root, err := tlog.TreeHash(l.size, l)
	if err != nil {
		return head{}, fmt.Errorf("hash audit log: %w", err)
	}
	h := head{Size: l.size, Root: root.String()}
	h.Tag = hex.EncodeToString(l.tag(statePath, []byte(fmt.Sprintf("%d %s", h.Size, h.Root))))
	return h, nil
}

func (l *Log) tag(name string, b []byte) []byte { return tag(l.keys.Load().Current, name, b) }

func tag(mac secret.Bytes, name string, b []byte) []byte {
	h := hmac.New(sha256.New, mac.Reveal())
	h.Write([]byte(name + "\x00"))
	h.Write(b)
	return h.Sum(nil)
}

// tagged says whether a tag is of one of the keys that the commit of a record can be tagged with.
func (l *Log) tagged(have []byte, r store.Record) bool {
	k := l.keys.Load()
	all := []secret.Bytes{k.Current}
	if k.Until == 0 || r.Rev <= k.Until {
		all = append(all, k.Older...)
	}
	return slices.ContainsFunc(all, func(mac secret.Bytes) bool { return hmac.Equal(have, tag(mac, r.Key, r.Value)) })
}

// newest checks what another server may have tagged with keys that this one has not got yet, as long as there are newer ones: somebody else may
// have fetched those after which another root key has come already.
func (l *Log) newest(ctx context.Context, check func() error) error {
	for {
		k := l.keys.Load()
		err := check()
		if err == nil {
			return nil
		}
		if moved, merr := l.moved(ctx, k); merr != nil || !moved {
			return errors.Join(err, merr)
		}
	}
}

func (l *Log) untag(r store.Record) ([]byte, error) {
	if len(r.Value) < sha256.Size || !l.tagged(r.Value[:sha256.Size], store.Record{Key: r.Key, Value: r.Value[sha256.Size:], Rev: r.Rev}) {
		return nil, fault.New(fault.AuditBroken, "a waiting entry was put in or changed from outside")
	}
	return r.Value[sha256.Size:], nil
}

// Op is the operation that commits an entry, to be put into the commit that it records.
func (l *Log) Op(e Entry) (store.Op, error) { return l.op(e, randomName()) }

func (l *Log) op(e Entry, name string) (store.Op, error) {
	b, err := e.Encode()
	if err != nil {
		return store.Op{}, err
	}
	key := pendingPrefix + name
	return store.Op{Key: key, Value: append(l.tag(key, b), b...)}, nil
}

func randomName() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Append commits entries alone. They keep their order in the log.
func (l *Log) Append(ctx context.Context, entries ...Entry) error {
	name := randomName()
	for {
		k := l.keys.Load()
		var ops []store.Op
		for i, e := range entries {
			op, err := l.op(e, fmt.Sprintf("%s-%02d", name, i))
			if err != nil {
				return err
			}
			ops = append(ops, op)
		}
		_, err := l.store.Commit(ctx, k.Fence, ops)
		again, err := l.again(ctx, k, err)
		if again {
			continue
		}
		if err != nil {
			return fmt.Errorf("commit audit entry: %w", err)
		}
		return nil
	}
}

// again says whether a commit failed at the fence, so that nothing was written and it may be tried with newer keys.
func (l *Log) again(ctx context.Context, used *Keys, err error) (bool, error) {
	if !errors.Is(err, store.ErrConflict) {
		return false, err
	}
	moved, merr := l.moved(ctx, used)
	if merr != nil {
		return false, merr
	}
	return moved, err
}

// Commit is one commit of the store as the log sees it.
type Commit struct {
	Rev     store.Rev
	Entries []Entry
	Others  []store.Event // what it changed outside the log
}

// Follow calls seen with each commit, in commit order, until ctx ends, hands the new entries to the sequencer, and follows what another
// server's sequencer has put into order. fault.AuditBroken when somebody without the log's key wrote into it.
func (l *Log) Follow(ctx context.Context, after store.Rev, seen func(Commit) error) error {
	defer l.endOnce.Do(func() { close(l.over) })
	for events, err := range l.store.Watch(ctx, "", after) {
		if err != nil {
			return err
		}
		c, batch, step, err := l.sort(ctx, events)
		if err != nil {
			return err
		}
		if err := seen(c); err != nil {
			return err
		}
		if err := l.advance(ctx, step); err != nil {
			return err
		}
		l.enqueue(batch, c.Rev)
	}
	return nil
}

// sort takes a commit apart: what is outside the log, new entries, and a step of a sequencer, nil when it has none.
func (l *Log) sort(ctx context.Context, events []store.Event) (c Commit, batch []pending, s *step, err error) {
	c = Commit{Rev: events[0].Rev}
	s = &step{rev: c.Rev}
	for _, ev := range events {
		switch {
		case !strings.HasPrefix(ev.Key, "log/"):
			c.Others = append(c.Others, ev)
		case ev.Key == statePath && !ev.Deleted:
			s.state = ev.Value
		case strings.HasPrefix(ev.Key, entryPrefix) && !ev.Deleted:
			s.entries = append(s.entries, ev)
		case strings.HasPrefix(ev.Key, pendingPrefix) && !ev.Deleted:
			var b []byte
			err := l.newest(ctx, func() (err error) {
				b, err = l.untag(store.Record{Key: ev.Key, Value: ev.Value, Rev: ev.Rev})
				return err
			})
			if err != nil {
				return c, nil, nil, err
			}
			e, err := Decode(b)
			if err != nil {
				return c, nil, nil, fault.Wrap(fault.AuditBroken, "waiting entry", err)
			}
			batch, c.Entries = append(batch, pending{ev.Key, ev.Rev, b}), append(c.Entries, e)
		}
	}
	slices.SortFunc(batch, func(a, b pending) int { return cmp.Compare(a.key, b.key) })
	if s.state == nil {
		s = nil
	}
	return c, batch, s, nil
}

// step is one commit of a sequencer, this server's or another's.
type step struct {
	rev     store.Rev
	state   []byte
	entries []store.Event
}

// advance takes over what another server's sequencer did: it must have taken the entries that wait here, in their order. Its own steps
// this server knows already. fault.AuditBroken.
func (l *Log) advance(ctx context.Context, s *step) error {
	if s == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.rev <= l.state {
		return nil
	}
	var h head
	if err := json.Unmarshal(s.state, &h); err != nil {
		return fault.Wrap(fault.AuditBroken, "log state", err)
	}
	slices.SortFunc(s.entries, func(a, b store.Event) int { return cmp.Compare(a.Key, b.Key) })
	waiting := l.first(len(s.entries))
	for i, e := range s.entries {
		entry, err := unpacked(e.Value, l.size)
		if err != nil {
			return err
		}
		if i >= len(waiting) || e.Key != entryPath(l.size) || !bytes.Equal(entry, waiting[i].entry) {
			return fault.New(fault.AuditBroken, "log was put into another order than that of its commits")
		}
		if err := l.grow(entry); err != nil {
			return err
		}
	}
	l.state = s.rev
	if err := l.newest(ctx, func() error { return l.matches(h) }); err != nil {
		return err
	}
	l.took(len(s.entries))
	return nil
}

// took drops the first n waiting entries, which are in the log now. Call with mu held.
func (l *Log) took(n int) {
	l.waiting.Lock()
	l.queue = slices.Delete(l.queue, 0, n)
	l.waiting.Unlock()
	close(l.advanced)
	l.advanced = make(chan struct{})
}

// first returns the first n waiting entries, or as many as there are.
func (l *Log) first(n int) []pending {
	l.waiting.Lock()
	defer l.waiting.Unlock()
	return slices.Clone(l.queue[:min(n, len(l.queue))])
}

// enqueue hands the entries of the commits up to rev to the sequencer.
func (l *Log) enqueue(batch []pending, rev store.Rev) {
	l.waiting.Lock()
	l.queue, l.followed = append(l.queue, batch...), rev
	close(l.handed)
	l.handed = make(chan struct{})
	l.waiting.Unlock()
	if len(batch) == 0 {
		return
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func entryPath(i int64) string { return fmt.Sprintf("%s%016x", entryPrefix, i) }

// SetSigner gives the log its checkpoint key, which is itself kept in a record that the log vouches for.
func (l *Log) SetSigner(skey string) error {
	s, err := note.NewSigner(skey)
	if err != nil {
		return fmt.Errorf("open checkpoint key: %w", err)
	}
	l.signer = s
	return nil
}

// NewKey makes a checkpoint key pair in the format of signed notes; the verifier key is public and to be pinned.
func NewKey(name string) (skey secret.Bytes, vkey string, err error) {
	s, v, err := note.GenerateKey(rand.Reader, name)
	return secret.Take([]byte(s)), v, err
}

// Checkpoint signs the present size and root. The commit that reached them is durable already.
func (l *Log) Checkpoint() ([]byte, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	root, err := tlog.TreeHash(l.size, l)
	if err != nil {
		return nil, 0, fmt.Errorf("hash audit log: %w", err)
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), l.size, base64.StdEncoding.EncodeToString(root[:]))
	signed, err := note.Sign(&note.Note{Text: text}, l.signer)
	return signed, l.size, err
}

// errOver: the log is not followed any more.
func errOver() error {
	return fault.New(fault.Unavailable, "audit log").WithHint("this server has stopped; go to another one, or start it again")
}

// Settled waits until everything that was committed before the call is in the log: handed over by Follow, and put into order by Sequence.
// fault.Unavailable when Follow has ended.
func (l *Log) Settled(ctx context.Context) error {
	rev, records := l.store.List(ctx, statePath)
	for _, err := range records {
		if err != nil {
			return fmt.Errorf("read log state: %w", err)
		}
	}
	for {
		l.mu.Lock()
		advanced := l.advanced
		l.mu.Unlock()
		handed, done := l.ordered(rev)
		if done {
			return nil
		}
		select {
		case <-advanced:
		case <-handed:
		case <-l.over:
			return errOver()
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// ordered says whether every entry of the commits up to rev is in the log; handed is closed when Follow has got further.
func (l *Log) ordered(rev store.Rev) (handed <-chan struct{}, done bool) {
	l.waiting.Lock()
	defer l.waiting.Unlock()
	return l.handed, l.followed >= rev && (len(l.queue) == 0 || l.queue[0].rev > rev)
}

// entry reads an entry that is in the tree and compares it with its leaf. fault.AuditBroken.
func (l *Log) entry(ctx context.Context, i int64) ([]byte, error) {
	r, err := l.store.Get(ctx, entryPath(i))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fault.New(fault.AuditBroken, fmt.Sprintf("entry %d is missing", i))
	}
	if err != nil {
		return nil, fmt.Errorf("read audit entry %d: %w", i, err)
	}
	entry, err := unpacked(r.Value, i)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	leaf := l.hashes[tlog.StoredHashIndex(0, i)]
	l.mu.Unlock()
	if tlog.RecordHash(entry) != leaf {
		return nil, fault.New(fault.AuditBroken, fmt.Sprintf("entry %d was changed from outside", i))
	}
	return entry, nil
}

// Tail calls f with the entries from an index on; with follow it waits for more until ctx ends. fault.Unavailable when Follow ends before.
func (l *Log) Tail(ctx context.Context, from int64, follow bool, f func(index int64, entry []byte) error) error {
	from = max(from, 0)
	for {
		l.mu.Lock()
		size, advanced := l.size, l.advanced
		l.mu.Unlock()
		for ; from < size; from++ {
			b, err := l.entry(ctx, from)
			if err != nil {
				return err
			}
			if err := f(from, b); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-advanced:
		case <-l.over:
			return errOver()
		case <-ctx.Done():
			return nil
		}
	}
}

// Stats is how long the log is: the entries in order, and those that are committed and wait to be put into order.
func (l *Log) Stats() (entries int64, waiting int) {
	l.mu.Lock()
	entries = l.size
	l.mu.Unlock()
	l.waiting.Lock()
	defer l.waiting.Unlock()
	return entries, len(l.queue)
}
