// Package fleet keeps the members: which process of which instance holds which key, what it has acknowledged, and until when its
// lease runs. Membership and acknowledgements are stored; lease deadlines are in memory. It pushes signed snapshots to the holders.
// What a member that is silent means for a rotation is decided by rollout.
package fleet

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
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
	// OnChange is called, without locks held, after a member joined, left or acknowledged.
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

	mu       sync.Mutex // guards what follows; held over commits that change the membership, so that memory follows the store
	rev      store.Rev  // of the members record
	count    uint64     // its content
	members  map[string]*member
	sessions map[string]*Session
	heard    map[string]time.Time // arrival of the last lease request of each instance
	unsaved  map[string]bool      // members with acknowledgements that are not stored yet

	flush chan struct{}
}

// New reads the stored members.
func New(ctx context.Context, c Config) (*Fleet, error) {
	c.Leases.Session = c.Now()
	f := &Fleet{
		Config: c, cluster: c.Guard.ClusterID(), sessions: map[string]*Session{}, heard: map[string]time.Time{},
		unsaved: map[string]bool{}, flush: make(chan struct{}, 1),
	}
	return f, f.load(ctx)
}

func (f *Fleet) load(ctx context.Context) error {
	rec, err := f.Guard.Get(ctx, membersPath)
	switch {
	case fault.CodeOf(err) == fault.NotFound:
		f.rev, f.count = 0, 0
	case err != nil:
		return fmt.Errorf("read members: %w", err)
	default:
		f.rev = rec.Rev
		if err := json.Unmarshal(rec.Value, &f.count); err != nil {
			return fault.Wrap(fault.RecordTampered, membersPath, err)
		}
	}
	records, _, err := f.Guard.List(ctx, memberPrefix)
	if err != nil {
		return fmt.Errorf("read members: %w", err)
	}
	f.members = map[string]*member{}
	for _, rec := range records {
		m := &member{rev: rec.Rev}
		if err := json.Unmarshal(rec.Value, m); err != nil {
			return fault.Wrap(fault.RecordTampered, rec.Path, err)
		}
		f.members[m.Instance] = m
	}
	return nil
}

// Run stores acknowledgements in batches until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.flush:
			if err := f.saveAcks(ctx); err != nil && ctx.Err() == nil {
				f.Log.WarnContext(ctx, "acknowledgements not stored", "error", err)
			}
		}
	}
}

// ackBatch bounds the members per commit, below the store's bound of items.
const ackBatch = 40

// saveAcks stores what was acknowledged since the last time. An acknowledgement that is lost in a crash is repeated by the
// instance when it connects again.
func (f *Fleet) saveAcks(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.unsaved) > 0 {
		var batch []*member
		for name := range f.unsaved {
			if m := f.members[name]; m != nil && len(batch) < ackBatch {
				batch = append(batch, m)
			}
			delete(f.unsaved, name)
			if len(batch) == ackBatch {
				break
			}
		}
		if len(batch) == 0 {
			return nil
		}
		p := f.Guard.System("fleet", policy.ActDeliver, policy.Resource{})
		rev, err := f.put(ctx, p, nil, batch, "acknowledge")
		if err != nil {
			return err
		}
		for _, m := range batch {
			m.rev = rev
		}
	}
	return nil
}

// put writes member records under the condition that they did not change since they were read.
func (f *Fleet) put(ctx context.Context, p *guard.Permit, also []guard.Write, batch []*member, what string, conds ...guard.Cond) (store.Rev, error) {
	for _, m := range batch {
		value, err := json.Marshal(m)
		if err != nil {
			return 0, fmt.Errorf("encode member %s: %w", m.Instance, err)
		}
		conds = append(conds, guard.Cond{Path: memberPrefix + m.Instance, Rev: m.rev})
		also = append(also, guard.Write{Path: memberPrefix + m.Instance, Value: value})
	}
	return p.Commit(ctx, conds, also, map[string]string{"change": what})
}

// bump is the condition and the write by which a join or leave changes the members record. Call with mu held.
func (f *Fleet) bump() (guard.Cond, guard.Write) {
	value, _ := json.Marshal(f.count + 1) // a number always encodes
	return guard.Cond{Path: membersPath, Rev: f.rev}, guard.Write{Path: membersPath, Value: value}
}

// bumped notes that the members record was changed by the commit rev. Call with mu held.
func (f *Fleet) bumped(rev store.Rev) { f.rev, f.count = rev, f.count+1 }

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

// Silent returns those of the named members whose lease is over by this server's clock.
func (f *Fleet) Silent(names []string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.Now()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return f.members[name] == nil || !f.Leases.Over(f.heard[name], now)
	})
}

// Drop makes a member whose lease is over leave one key (fence). Its stream is ended, so that no later lease can revive what
// it had; it has to join again.
func (f *Fleet) Drop(ctx context.Context, id keyring.KeyID, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[name]
	if m == nil || m.Keys[id] == nil || !f.Leases.Over(f.heard[name], f.Now()) {
		return nil
	}
	left := m.clone()
	delete(left.Keys, id)
	if s := f.sessions[name]; s != nil {
		f.end(s, fault.New(fault.LeaseOver, "instance "+name))
	}
	cond, write := f.bump()
	k, _ := f.Keys.Key(id)
	p := f.Guard.System("fleet", policy.ActRotate, policy.Resource{Namespace: string(k.Namespace), Key: k.Name, Labels: k.Labels})
	rev, err := f.put(ctx, p, []guard.Write{write}, []*member{left}, "fence "+name, cond)
	if err != nil {
		return f.reload(ctx, err)
	}
	left.rev = rev
	f.members[name] = left
	f.bumped(rev)
	f.Log.InfoContext(ctx, "member fenced", "instance", name, "key", k.Name)
	return nil
}

// Remove makes an instance leave everything at once and ends its stream.
func (f *Fleet) Remove(ctx context.Context, name string) error {
	f.mu.Lock()
	m := f.members[name]
	if s := f.sessions[name]; s != nil {
		f.end(s, fault.New(fault.Denied, "instance "+name))
	}
	var err error
	if m != nil {
		err = f.leave(ctx, m, "remove "+name)
	}
	f.mu.Unlock()
	f.notify(m)
	return err
}

// leave deletes a member. Call with mu held.
func (f *Fleet) leave(ctx context.Context, m *member, what string) error {
	cond, write := f.bump()
	p := f.Guard.System("fleet", policy.ActRemove, policy.Resource{})
	path := memberPrefix + m.Instance
	rev, err := p.Commit(ctx, []guard.Cond{cond, {Path: path, Rev: m.rev}}, []guard.Write{write, {Path: path, Delete: true}}, map[string]string{"change": what})
	if err != nil {
		return f.reload(ctx, err)
	}
	f.bumped(rev)
	delete(f.members, m.Instance)
	delete(f.unsaved, m.Instance)
	return nil
}

// reload reads the members again after a commit failed, because somebody else may have changed them. Call with mu held.
func (f *Fleet) reload(ctx context.Context, cause error) error {
	if err := f.load(ctx); err != nil {
		f.Log.WarnContext(ctx, "members not read again", "error", err)
	}
	return cause
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
		i := Info{Name: m.Instance, Connected: f.sessions[m.Instance] != nil, Heard: f.heard[m.Instance]}
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
