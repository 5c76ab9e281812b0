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

	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	membersPath  = "fleet/members" // bumped by every join and leave; gates are conditioned on it
	memberPrefix = "fleet/member/"
)

// Keys is what fleet needs to know of the keys.
type Keys interface {
	// Lookup finds a key by name.
	Lookup(ns keyring.Namespace, name string) (keyring.Key, bool)
	// Key finds a key by ID.
	Key(id keyring.KeyID) (keyring.Key, bool)
	// Record reads a key linearizably, with the condition that it did not change since. fault.NotFound.
	Record(ctx context.Context, id keyring.KeyID) (keyring.Key, guard.Cond, error)
	// Material opens the material of a live version. fault.VersionRetired, VersionDestroyed.
	Material(ctx context.Context, k keyring.Key, n uint32) (secret.Bytes, error)
}

// Config is what a Fleet needs.
type Config struct {
	Guard *guard.Guard
	Keys  Keys
	// Leases: TTL and MaxSkew; Session is set by New.
	Leases rotation.Leases
	Now    func() time.Time
	Log    *slog.Logger
	// OnChange is called after a member joined, left or acknowledged. It may read the Fleet and change nothing in it.
	OnChange func(keyring.KeyID)
}

// member is the stored record of one instance.
type member struct {
	Instance    string                           `json:"instance"`
	Incarnation string                           `json:"incarnation"`
	Joined      time.Time                        `json:"joined"`
	Keys        map[keyring.KeyID]*keyring.Epoch `json:"keys"` // the acknowledged epoch of each key it holds

	rev store.Rev
}

// Fleet is the members of one cluster as this server knows them.
type Fleet struct {
	Config
	cluster string

	commits sync.Mutex // held over each read-decide-commit of member records; taken before mu
	stale   bool       // a commit's outcome is unknown, so memory may be behind the store. Guarded by commits

	mu       sync.Mutex // guards what follows; never held over I/O, so that leases and acknowledgements wait for no disk
	rev      store.Rev  // of the members record
	count    uint64     // its content
	members  map[string]*member
	sessions map[string]*Session
	heard    map[string]*hearing
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
		Config: c, cluster: c.Guard.ClusterID(), sessions: map[string]*Session{}, heard: map[string]*hearing{},
		unsaved: map[string]bool{}, unsent: map[keyring.KeyID]bool{}, flush: make(chan struct{}, 1),
	}
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

// Silent returns those of the named members whose lease for a key is over by this server's clock.
func (f *Fleet) Silent(id keyring.KeyID, names []string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return f.members[name] == nil || !f.over(name, id) })
}

// over says whether a member's lease for a key is over. Call with mu held.
func (f *Fleet) over(name string, id keyring.KeyID) bool {
	return f.Leases.Over(f.hearing(name).lease[id], f.Now())
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

func (f *Fleet) notify(m *member) {
	if m == nil || f.OnChange == nil {
		return
	}
	for id := range m.Keys {
		f.OnChange(id)
	}
}

// Info describes one instance.
type Info struct {
	Name      string
	Connected bool
	Heard     time.Time
	Keys      []string
	Behind    []string // keys of which it has not acknowledged the present epoch
}

// List describes all members, by name.
func (f *Fleet) List() []Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Info
	for _, m := range f.members {
		i := Info{Name: m.Instance, Connected: f.sessions[m.Instance] != nil, Heard: f.hearing(m.Instance).last}
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
	return len(f.members), len(f.sessions)
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
