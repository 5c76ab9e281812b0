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
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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
	hurry chan struct{} // has one when the next sign of life shall not wait for its time

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
		Config: c, id: hex.EncodeToString(id[:]), began: c.Clock(), sessions: map[string]observed{}, changed: make(chan struct{}), hurry: make(chan struct{}, 1),
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
		case <-k.hurry:
		}
	}
}

// Changed is closed at the next change of any session or of the lead.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
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
