// Package fleet keeps the members: which process of which instance holds which key, what it has acknowledged, and until when its
// lease runs. Membership and acknowledgements are stored; lease deadlines are in memory. It pushes signed snapshots to the holders.
// What a member that is silent means for a rotation is decided by rollout.
package fleet

import (
	"cmp"
	"context"
	"encoding/hex"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	room         = "fleet"
	membersPath  = room + "/members" // bumped by every join and leave; gates are conditioned on it
	memberPrefix = room + "/member/"
)

// Keys is what fleet needs to know of the keys.
type Keys interface {
	// Lookup finds a key by name.
	Lookup(ns keyring.Namespace, name string) (keyring.Key, bool)
	// Key finds a key by ID.
	Key(id keyring.KeyID) (keyring.Key, bool)
	// Record reads a key linearizably, with the condition that it did not change since. fault.NotFound.
	Record(ctx context.Context, id keyring.KeyID) (keyring.Key, guard.Cond, error)
	// CatchUp returns once Lookup and Key know every commit acknowledged before the call.
	CatchUp(ctx context.Context) error
	// Material opens the material of a live version. fault.VersionRetired, VersionDestroyed.
	Material(ctx context.Context, k keyring.Key, n uint32) (secret.Bytes, error)
}

// Replicas are the servers that share the store. The lease of a member is granted by one of them at a time, its home, which stands in the
// member's record; only its home knows when it was last heard of.
type Replicas interface {
	// ID names this server's session.
	ID() string
	// Fresh says whether no other server takes this one for dead.
	Fresh() bool
	// DeadFor says whether a session is over, for how long, and the condition under which that stands.
	DeadFor(id string) (since time.Duration, cond store.Cond, dead bool)
	// Changed is closed when any of this may have changed.
	Changed() <-chan struct{}
}

// Config is what a Fleet needs.
type Config struct {
	Guard *guard.Guard
	Keys  Keys
	// Leases: TTL and MaxSkew; Session is set by New.
	Leases rotation.Leases
	// Replicas: nil when no other server can open the store.
	Replicas Replicas
	Now      func() time.Time
	Log      *slog.Logger
	// OnChange is called after a member joined, left or acknowledged. It may read the Fleet and change nothing in it.
	OnChange func(keyring.KeyID)
}

// member is the stored record of one instance.
type member struct {
	Instance    string                           `json:"instance"`
	Incarnation string                           `json:"incarnation"`
	Home        string                           `json:"home,omitempty"` // session of the server that grants its leases
	Away        bool                             `json:"away,omitempty"` // its stream has ended, and another process may take its place
	Joined      time.Time                        `json:"joined"`
	Keys        map[keyring.KeyID]*keyring.Epoch `json:"keys"` // the acknowledged epoch of each key it holds

	rev store.Rev
}

// Fleet is the members of one cluster as this server knows them.
type Fleet struct {
	Config
	cluster string
	signer  *delivery.Signer

	commits sync.Mutex // held over each read-decide-commit that bumps the members record, so that they do not conflict; taken before mu

	queueMu sync.Mutex // guards queue
	queue   []*change  // of members, that wait to be committed
	queued  chan struct{}

	records  *rounds[keyring.KeyID, struct{}, keyring.Key] // keys as the store has them
	catching *rounds[struct{}, struct{}, struct{}]
	releases *rounds[released, string, struct{}] // to instances

	mu       sync.Mutex    // guards what follows; never held over I/O, so that leases and acknowledgements wait for no disk
	applied  store.Rev     // memory is what the store had at this revision, but for acknowledgements that are not stored yet
	changed  chan struct{} // closed and replaced when applied grows
	rev      store.Rev     // of the members record
	count    uint64        // its content
	members  map[string]*member
	sessions map[string]*Session
	heard    map[string]*hearing
	draining bool            // streams end because the server does
	unsaved  map[string]bool // members with acknowledgements that are not stored yet
	unsent   map[keyring.KeyID]bool

	flush chan struct{}

	life context.Context // ends with Run
	halt context.CancelFunc
}

// hearing is when an instance was last heard of. In memory alone: leases end with the server (rotation.Leases.Session).
type hearing struct {
	last  time.Time
	lease map[keyring.KeyID]time.Time // arrival of the last request that was answered with a lease for the key
}

// New reads the stored members.
func New(ctx context.Context, c Config) (*Fleet, error) {
	c.Leases.Session = c.Now()
	f := &Fleet{
		Config: c, cluster: c.Guard.ClusterID(), signer: delivery.NewSigner(c.Guard.Sign), sessions: map[string]*Session{}, heard: map[string]*hearing{},
		unsaved: map[string]bool{}, unsent: map[keyring.KeyID]bool{}, flush: make(chan struct{}, 1), changed: make(chan struct{}),
		members: map[string]*member{}, queued: make(chan struct{}, 1),
	}
	f.share()
	f.life, f.halt = context.WithCancel(context.WithoutCancel(ctx))
	return f, f.load(ctx)
}

// Members returns the holders of a key and the condition under which a gate over them may be passed.
func (f *Fleet) Members(id keyring.KeyID) ([]rotation.Member, guard.Cond) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var holders []rotation.Member
	for _, m := range f.members {
		if acked, ok := m.Keys[id]; ok {
			holders = append(holders, rotation.Member{Instance: m.Instance, Acked: *acked})
		}
	}
	return holders, guard.Cond{Path: membersPath, Rev: f.rev}
}

// Silent returns those of the named members whose lease for a key is over, as far as this server can say: it granted it, or the server that
// did is dead for long enough.
func (f *Fleet) Silent(id keyring.KeyID, names []string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		m := f.members[name]
		if m == nil {
			return true
		}
		over, _ := f.over(m, id)
		return !over
	})
}

// over says whether a member's lease for a key is over, and the conditions under which that stands. Call with mu held.
func (f *Fleet) over(m *member, id keyring.KeyID) (bool, []guard.Cond) {
	h, now := f.hearing(m.Instance), f.Now()
	if f.Replicas == nil {
		return f.Leases.Over(h.lease[id], now), nil
	}
	if m.Home == f.Replicas.ID() {
		if _, known := h.lease[id]; !known { // it is of this session, so that this server may have granted it until now
			h.lease[id] = now
		}
		return f.Leases.Over(h.lease[id], now), nil
	}
	since, cond, dead := f.Replicas.DeadFor(m.Home)
	return dead && since >= f.Leases.TTL+f.Leases.MaxSkew, []guard.Cond{{Path: cond.Key, Rev: cond.Rev}}
}

// connected says whether a member has a stream, here or at another server. Call with mu held.
func (f *Fleet) connected(m *member) bool {
	if f.Replicas == nil || m.Home == f.Replicas.ID() {
		return f.sessions[m.Instance] != nil
	}
	_, _, dead := f.Replicas.DeadFor(m.Home)
	return !m.Away && !dead
}

// hearing finds or makes what is known of an instance. Call with mu held.
func (f *Fleet) hearing(name string) *hearing {
	h := f.heard[name]
	if h == nil {
		h = &hearing{lease: map[keyring.KeyID]time.Time{}}
		f.heard[name] = h
	}
	return h
}

// Info describes one instance.
type Info struct {
	Name      string
	Connected bool
	Heard     time.Time // by this server; zero when another has its stream
	Keys      []string
	Behind    []string // keys of which it has not acknowledged the present epoch
}

// List describes all members, by name.
func (f *Fleet) List() []Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Info
	for _, m := range f.members {
		i := Info{Name: m.Instance, Connected: f.connected(m), Heard: f.hearing(m.Instance).last}
		for id, acked := range m.Keys {
			k, ok := f.Keys.Key(id)
			if !ok {
				continue
			}
			i.Keys = append(i.Keys, k.Name)
			if acked.Less(k.Epoch) {
				i.Behind = append(i.Behind, k.Name)
			}
		}
		slices.Sort(i.Keys)
		slices.Sort(i.Behind)
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Count returns how many members there are and how many of them are connected.
func (f *Fleet) Count() (members, connected int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		if f.connected(m) {
			connected++
		}
	}
	return len(f.members), connected
}

func (m *member) clone() *member {
	c := *m
	c.Keys = make(map[keyring.KeyID]*keyring.Epoch, len(m.Keys))
	for id, e := range m.Keys {
		acked := *e
		c.Keys[id] = &acked
	}
	return &c
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
