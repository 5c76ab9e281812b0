// Package replica keeps the sessions of the servers that share a store, and elects the one among them that leads. A session is a record
// that its server rewrites all the time; who has not seen it change for its TTL, by a clock of its own, takes the server for dead. The
// leader's record names a session and changes only when the lead does, so that every commit of a leader can be conditioned on it: a
// leader that was deposed while it slept commits nothing. No clock is compared with another machine's.
//
// What stands here is neither sealed nor in the audit log. Whoever can write the store can take the lead away and give it back, which
// delays rotations; every step of a leader has its own conditions besides.
package replica

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"crypto/rand"

	"golang.org/x/sys/unix"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// Where the records are.
const (
	Prefix        = "replica/"
	sessionPrefix = Prefix + "session/"
	leaderPath    = Prefix + "leader"
	formatPath    = Prefix + "format"
)

// Passing says whether a record is about servers that run now, and has revisions in it: a copy of the store on another engine leaves it out.
func Passing(path string) bool { return strings.HasPrefix(path, Prefix) && path != formatPath }

// Format is the newest format of records that this build writes. A store says which one its servers have agreed on; a build that does not
// know it does not touch the store. Raise it with every change that an older build would get wrong, and write nothing of it before Keeper.Format
// says that every server on the store knows it.
//
//	1: the first
//	2: join tokens name several servers
const Format = 2

// FormatManyAddresses is the first in which servers read join tokens that name several servers.
const FormatManyAddresses = 2

// DefaultTTL is how long a session lasts without a sign of life.
const DefaultTTL = 5 * time.Second

const (
	beats     = 5  // signs of life in one TTL
	margin    = 10 // the part of a TTL, one in so many, that two clocks may drift apart in it
	forgetTTL = 60 // a session that has been dead for so many TTLs is deleted
	calmTTL   = 6  // a newer format waits for so many TTLs in which all who live know it, so that an old server may be started again meanwhile
)

// Config is what a Keeper needs.
type Config struct {
	Store   store.Store
	Address string        // host:port that clients reach this server at, shown to people
	Version string        // of the build, shown to people
	Issuer  string        // that this server's access tokens name, shown to people
	TTL     time.Duration // 0: DefaultTTL
	Newest  int           // format that this build can write, of tests; 0: Format
	// Caught returns when this server's memory has everything of the commits up to a revision. Until it has, a sign of life of this server
	// does not count for the server itself. nil: it always has.
	Caught func(ctx context.Context, rev store.Rev) error
	// Seen is a revision up to which this server's memory has everything. nil: 0.
	Seen func() store.Rev
	// Clock counts on while the machine sleeps. nil: CLOCK_BOOTTIME.
	Clock func() time.Duration
	Now   func() time.Time
	Log   *slog.Logger
}

// record is a stored session.
type record struct {
	Address string        `json:"address"`
	Version string        `json:"version"`
	Issuer  string        `json:"issuer,omitempty"`
	Format  int           `json:"format"` // the newest that it can write
	Started time.Time     `json:"started"`
	TTL     time.Duration `json:"ttl"`
	Beat    uint64        `json:"beat"`
	Seen    store.Rev     `json:"seen"` // everything up to here is in its memory
}

// observed is a session as this server has seen it.
type observed struct {
	record
	rev     store.Rev
	changed time.Duration // when, by this server's clock
	gone    bool          // deleted
}

// leader is the stored leader.
type leader struct {
	Session string `json:"session"`
}

// Keeper keeps one server's session. Safe for concurrent use.
type Keeper struct {
	Config
	id    string
	began time.Duration

	mu       sync.Mutex // guards what follows
	own      record
	rev      store.Rev     // of the own record, 0: none
	ended    bool          // Close was called
	heard    time.Duration // when the last own sign of life was sent that came back through the watch and found memory caught up
	heardRev store.Rev     // its revision
	sessions map[string]observed
	leader   leader
	term     store.Rev     // of the leader's record, 0: none
	watched  store.Rev     // everything up to here has been observed
	format   int           // that the store's servers have agreed on
	fmtRev   store.Rev     // of its record
	calm     time.Duration // since when all who live have known a newer one, as this server has seen as the leader; 0: they do not, or it does not lead
	changed  chan struct{} // closed and replaced at each change
}

// New makes a keeper with a session of its own. Start stores it.
func New(c Config) *Keeper {
	c.TTL, c.Newest = cmp.Or(c.TTL, DefaultTTL), cmp.Or(c.Newest, Format)
	if c.Clock == nil {
		c.Clock = boottime
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var id [8]byte
	rand.Read(id[:])
	return &Keeper{
		Config: c, id: hex.EncodeToString(id[:]), began: c.Clock(), sessions: map[string]observed{}, changed: make(chan struct{}),
		own: record{Address: c.Address, Version: c.Version, Issuer: c.Issuer, Format: c.Newest, Started: c.Now().UTC().Truncate(time.Second), TTL: c.TTL},
	}
}

func boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("replica: no CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(t.Nano())
}

// ID names this server's session.
func (k *Keeper) ID() string { return k.id }

// CheckFormat says whether this build may touch a store. It writes nothing. fault.StoreNewer.
func CheckFormat(ctx context.Context, s store.Store) error {
	r, err := s.Get(ctx, formatPath)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read format of the store: %w", err)
	}
	_, err = parseFormat(r.Value, Format)
	return err
}

// MarkFormat notes the format in a store that has no note of it. fault.StoreNewer.
func MarkFormat(ctx context.Context, s store.Store) error { return markFormat(ctx, s, Format) }

func markFormat(ctx context.Context, s store.Store, newest int) error {
	value, _ := json.Marshal(newest) // a number always encodes
	_, err := s.Commit(ctx, []store.Cond{{Key: formatPath}}, []store.Op{{Key: formatPath, Value: value}})
	if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
		return fmt.Errorf("note format of the store: %w", err)
	}
	r, err := s.Get(ctx, formatPath)
	if err != nil {
		return fmt.Errorf("read format of the store: %w", err)
	}
	_, err = parseFormat(r.Value, newest)
	return err
}

// parseFormat reads the note of the format. fault.StoreNewer, RecordTampered.
func parseFormat(b []byte, newest int) (int, error) {
	var n int
	if err := json.Unmarshal(b, &n); err != nil || n < 1 {
		return 0, fault.New(fault.RecordTampered, formatPath)
	}
	if n > newest {
		return n, fault.New(fault.StoreNewer, fmt.Sprintf("store of format %d", n)).WithHint("this build knows formats up to %d; run a newer one", newest)
	}
	return n, nil
}

// Introduce sets the host:port and the issuer of tokens that the session names, before Start.
func (k *Keeper) Introduce(address, issuer string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Address, k.own.Address = address, address
	k.Issuer, k.own.Issuer = issuer, issuer
}

// Start stores the session and reads the others'. Run goes on with it; the session is fresh once Run has given the next sign of life.
// fault.StoreNewer.
func (k *Keeper) Start(ctx context.Context) error {
	if err := markFormat(ctx, k.Store, k.Newest); err != nil {
		return err
	}
	if _, err := k.renew(ctx); err != nil {
		return err
	}
	return k.list(ctx)
}

// Await returns once the session is fresh.
func (k *Keeper) Await(ctx context.Context) error {
	for {
		k.mu.Lock()
		fresh, changed := k.fresh(), k.changed
		k.mu.Unlock()
		if fresh {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, "session of this server", ctx.Err())
		}
	}
}

// list reads every session and the leader. fault.StoreNewer.
func (k *Keeper) list(ctx context.Context) error {
	now := k.Clock()
	rev, records := k.Store.List(ctx, Prefix)
	var all []store.Record
	for r, err := range records {
		if err != nil {
			return fmt.Errorf("read sessions of servers: %w", err)
		}
		if r.Key == formatPath {
			if _, err := parseFormat(r.Value, k.Newest); err != nil {
				return err // the others moved on after Start had looked, or while no watch told
			}
		}
		all = append(all, r)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.sessions
	k.sessions, k.watched, k.term, k.leader = map[string]observed{}, rev, 0, leader{}
	for id, o := range old {
		if !o.gone {
			o.gone, o.changed, o.rev = true, now, 0 // unless it is among what was read
		}
		k.sessions[id] = o
	}
	for _, r := range all {
		if was, ok := old[strings.TrimPrefix(r.Key, sessionPrefix)]; ok && was.rev == r.Rev {
			k.sessions[strings.TrimPrefix(r.Key, sessionPrefix)] = was
			continue
		}
		k.see(store.Event{Key: r.Key, Value: r.Value, Rev: r.Rev}, now)
	}
	k.notify()
	return nil
}

// see takes over one record. Call with mu held.
func (k *Keeper) see(e store.Event, now time.Duration) {
	switch {
	case e.Key == leaderPath:
		k.leader, k.term = leader{}, 0
		if !e.Deleted && json.Unmarshal(e.Value, &k.leader) == nil {
			k.term = e.Rev
		}
	case e.Key == formatPath && !e.Deleted:
		if n, err := parseFormat(e.Value, k.Newest); err == nil {
			k.format, k.fmtRev = n, e.Rev
		}
	case strings.HasPrefix(e.Key, sessionPrefix):
		id := strings.TrimPrefix(e.Key, sessionPrefix)
		o := k.sessions[id]
		o.changed, o.rev, o.gone = now, e.Rev, e.Deleted
		if e.Deleted {
			o.rev = 0
		} else if r, err := parseSession(e.Value); err == nil {
			o.record = r
		}
		k.sessions[id] = o
	}
}

// maxTTL bounds what is believed of another's TTL: a record that somebody made up does not hold the lead for ever.
const maxTTL = time.Minute

func parseSession(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	r.TTL = min(max(r.TTL, 0), maxTTL)
	return r, nil
}

// notify wakes who waits. Call with mu held.
func (k *Keeper) notify() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// Run keeps the session alive, watches the others and stands for the lead until ctx ends. fault.StoreNewer when the others have moved on
// to a format that this build does not know.
func (k *Keeper) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var watch sync.WaitGroup
	var failed error
	watch.Go(func() {
		defer stop()
		failed = k.watch(ctx)
	})
	defer watch.Wait()
	tick := time.NewTicker(k.TTL / beats)
	defer tick.Stop()
	for {
		err := k.beat(ctx)
		if err == nil {
			err = errors.Join(k.stand(ctx), k.tidy(ctx))
		}
		if err != nil && ctx.Err() == nil {
			k.Log.WarnContext(ctx, "session of this server not kept", "error", err)
		}
		select {
		case <-ctx.Done():
			watch.Wait()
			return failed
		case <-tick.C:
		}
	}
}

// watch follows the records of all servers until ctx ends.
func (k *Keeper) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		k.mu.Lock()
		after := k.watched
		k.mu.Unlock()
		for events, err := range k.Store.Watch(ctx, Prefix, after) {
			if errors.Is(err, store.ErrCompacted) {
				if err := k.list(ctx); err != nil && ctx.Err() == nil {
					return err
				}
				break
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch servers: %w", err)
			}
			if err := k.observe(events); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *Keeper) observe(events []store.Event) error {
	now := k.Clock()
	k.mu.Lock()
	defer k.mu.Unlock()
	lead := k.term
	for _, e := range events {
		if e.Key == formatPath && !e.Deleted {
			if _, err := parseFormat(e.Value, k.Newest); err != nil {
				return err
			}
		}
		k.see(e, now)
		k.watched = max(k.watched, e.Rev)
	}
	if k.term != lead && k.leader.Session == k.id {
		k.Log.Info("this server leads", "session", k.id)
	}
	k.notify()
	return nil
}

// beat rewrites the own session. Only once that commit has come back through the watch, and memory has caught up with it, does the session
// last for another TTL, counted from before the commit: what this server does while it is fresh, it does on what was there when others may
// still have counted it dead.
func (k *Keeper) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.TTL)
	defer cancel()
	sent := k.Clock()
	at, err := k.renew(ctx)
	if err != nil || at == 0 {
		return err
	}
	for {
		k.mu.Lock()
		watched, changed := k.watched, k.changed
		k.mu.Unlock()
		if watched >= at {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("watch of the servers is behind: %w", ctx.Err())
		}
	}
	if k.Caught != nil {
		if err := k.Caught(ctx, at); err != nil {
			return err
		}
	}
	k.came(sent, at)
	return nil
}

// came notes a sign of life that has come back.
func (k *Keeper) came(sent time.Duration, at store.Rev) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heard, k.heardRev = sent, at
	k.notify()
}

// renew commits a sign of life; 0 after Close.
func (k *Keeper) renew(ctx context.Context) (store.Rev, error) {
	k.mu.Lock()
	next, rev, ended := k.own, k.rev, k.ended
	k.mu.Unlock()
	if ended {
		return 0, nil
	}
	next.Beat++
	if k.Seen != nil {
		next.Seen = k.Seen()
	}
	value, err := json.Marshal(next)
	if err != nil {
		return 0, fmt.Errorf("encode session: %w", err)
	}
	path := sessionPrefix + k.id
	at, err := k.Store.Commit(ctx, []store.Cond{{Key: path, Rev: rev}}, []store.Op{{Key: path, Value: value}})
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown) {
		at, err = k.reread(ctx, next, err)
	}
	if err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.own, k.rev = next, at
	return at, nil
}

// reread looks what became of a beat that failed: it was made after all, or the next one has another condition.
func (k *Keeper) reread(ctx context.Context, next record, cause error) (store.Rev, error) {
	r, err := k.Store.Get(ctx, sessionPrefix+k.id)
	if errors.Is(err, store.ErrNotFound) {
		r.Rev, err = 0, nil
	}
	if err != nil {
		return 0, errors.Join(cause, err)
	}
	if got, err := parseSession(r.Value); r.Rev != 0 && err == nil && got.Beat == next.Beat {
		return r.Rev, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rev = r.Rev
	return 0, cause
}

// stand takes the lead if nobody alive has it.
func (k *Keeper) stand(ctx context.Context) error {
	k.mu.Lock()
	conds, ok := k.vacant()
	k.mu.Unlock()
	if !ok {
		return nil
	}
	value, err := json.Marshal(leader{k.id})
	if err != nil {
		return fmt.Errorf("encode leader: %w", err)
	}
	_, err = k.Store.Commit(ctx, conds, []store.Op{{Key: leaderPath, Value: value}})
	if errors.Is(err, store.ErrConflict) {
		return nil // somebody else was faster, or is not dead
	}
	return err
}

// vacant says whether the lead can be taken, and under which conditions. Call with mu held.
func (k *Keeper) vacant() ([]store.Cond, bool) {
	if !k.fresh() {
		return nil, false
	}
	conds := []store.Cond{{Key: leaderPath, Rev: k.term}}
	if k.term == 0 {
		return conds, true
	}
	if k.leader.Session == k.id {
		return nil, false
	}
	_, session, dead := k.dead(k.leader.Session)
	return append(conds, session), dead
}

// tidy deletes, for who leads, the sessions that are long dead, and agrees on the newest format that all who live know.
func (k *Keeper) tidy(ctx context.Context) error {
	lead, ok := k.Lead()
	k.mu.Lock()
	if !ok {
		k.calm = 0
		k.mu.Unlock()
		return nil
	}
	conds, ops, format := []store.Cond{lead}, []store.Op(nil), k.Newest
	for id, o := range k.sessions {
		since, cond, dead := k.dead(id)
		switch {
		case o.gone && since > forgetTTL*k.TTL:
			delete(k.sessions, id) // unknown is dead as well
		case !dead:
			format = min(format, o.Format)
		case !o.gone && since > forgetTTL*k.TTL && len(ops) < 10:
			conds, ops = append(conds, cond), append(ops, store.Op{Key: sessionPrefix + id, Delete: true})
		}
	}
	if k.fmtRev != 0 && k.calmAt(format) {
		value, _ := json.Marshal(format) // a number always encodes
		conds, ops = append(conds, store.Cond{Key: formatPath, Rev: k.fmtRev}), append(ops, store.Op{Key: formatPath, Value: value})
	}
	k.mu.Unlock()
	if len(ops) == 0 {
		return nil
	}
	if _, err := k.Store.Commit(ctx, conds, ops); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}

// calmAt says whether the store may move on to a format: all who live know it, and have for a while. Call with mu held.
func (k *Keeper) calmAt(format int) bool {
	now := k.Clock()
	switch {
	case format <= k.format:
		k.calm = 0
	case k.calm == 0:
		k.calm = now
	}
	return k.calm != 0 && now-k.calm >= calmTTL*k.TTL
}

// fresh says whether the own session lasts. Call with mu held.
func (k *Keeper) fresh() bool { return !k.ended && k.heardRev != 0 && k.Clock() < k.heard+k.TTL }

// Fresh says whether this server's own session lasts: no other server takes it for dead yet, and its memory is no older than its session.
func (k *Keeper) Fresh() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fresh()
}

// Lead says whether this server leads, and the condition under which each of its commits as a leader stands.
func (k *Keeper) Lead() (store.Cond, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return store.Cond{Key: leaderPath, Rev: k.term}, k.term != 0 && k.leader.Session == k.id && k.fresh()
}

// Turn is Lead for audit.Turn: change is closed when it may have changed.
func (k *Keeper) Turn() (mine bool, change <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.term != 0 && k.leader.Session == k.id && k.fresh(), k.changed
}

// Changed is closed at the next change of any session or of the lead.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// Format is the format of records that the store's servers have agreed on.
func (k *Keeper) Format() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.format
}

// DeadFor says whether a session is over, for how long by this server's clock, and the condition that it is still: what is decided on a
// session's end must be committed under it. A session that nobody knows ended before this server began.
func (k *Keeper) DeadFor(id string) (since time.Duration, cond store.Cond, dead bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dead(id)
}

// dead is DeadFor with mu held. Silence counts up to the last own sign of life that came back: what others committed before it has been
// seen, and what they committed since has not.
func (k *Keeper) dead(id string) (since time.Duration, cond store.Cond, dead bool) {
	cond = store.Cond{Key: sessionPrefix + id}
	if id == k.id {
		return 0, cond, false
	}
	o, known := k.sessions[id]
	if !known {
		return k.Clock() - k.began, cond, k.fresh()
	}
	cond.Rev = o.rev
	if o.gone {
		return k.Clock() - o.changed, cond, true
	}
	since = k.heard - (o.changed + o.TTL + o.TTL/margin)
	return since, cond, since >= 0
}

// Behind names the servers, by address, that may act on memory that is older than a revision. Who is dead and comes back catches up first,
// and not only with the revision but with the sign of life that it comes back by; this server has to have given one since as well, to know
// who is dead.
func (k *Keeper) Behind(rev store.Rev) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	if !k.fresh() || k.heardRev < rev {
		names = append(names, "server "+k.Address)
	}
	for id, o := range k.sessions {
		if _, _, dead := k.dead(id); id == k.id || dead || o.Seen >= rev {
			continue
		}
		names = append(names, "server "+o.Address)
	}
	slices.Sort(names)
	return names
}

// Info describes a session.
type Info struct {
	ID, Address, Version string
	Issuer               string
	Format               int // the newest that it knows
	Started              time.Time
	Alive, Leads, Self   bool
}

// Sessions describes all sessions that are stored, by address.
func (k *Keeper) Sessions() []Info {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []Info
	for id, o := range k.sessions {
		if o.gone {
			continue
		}
		_, _, dead := k.dead(id)
		alive := !dead
		if id == k.id {
			alive = k.fresh()
		}
		all = append(all, Info{id, o.Address, o.Version, o.Issuer, o.Format, o.Started, alive, alive && k.term != 0 && k.leader.Session == id, id == k.id})
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Close ends the session and gives up the lead at once, so that nobody has to wait for its end. Call it while Run still runs or after.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	k.ended = true
	lead := k.term != 0 && k.leader.Session == k.id
	term := k.term
	k.notify()
	k.mu.Unlock()
	ops := []store.Op{{Key: sessionPrefix + k.id, Delete: true}}
	if lead {
		_, err := k.Store.Commit(ctx, []store.Cond{{Key: leaderPath, Rev: term}}, append(ops, store.Op{Key: leaderPath, Delete: true}))
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	_, err := k.Store.Commit(ctx, nil, ops)
	return err
}
