package kms

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/store"
)

// This file counts how often each version is used, and when it was last. Each server counts in memory and adds its counts to a record that all
// share, once a minute and when it stops. What a crash loses of them is what the audit log has as windows of use without an end, and the minute
// that was not added yet: the log stays the evidence, these are numbers for people and for schedules.

const (
	usageRoom   = "usage"
	usagePrefix = usageRoom + "/"
	// usageEvery is how often a server adds its counts.
	usageEvery = time.Minute
	// usageVersions is how many versions share a record.
	usageVersions = 64
	// usageBatch is how many records one commit adds to, so that its entry of the log stays small.
	usageBatch = 25
	// usageFlights is how many additions a record remembers, so that one whose answer was lost is not made twice: one for each of the servers that
	// may have come between (identity.maxAddresses).
	usageFlights = 16
)

// Uses is how a version was used, by any server of the store.
type Uses struct {
	Protected     uint64    `json:"protected,omitempty"` // how often it encrypted, wrapped, signed or made a MAC
	Processed     uint64    `json:"processed,omitempty"` // how often it decrypted, unwrapped or verified
	LastProtected time.Time `json:"last_protected,omitzero"`
	LastProcessed time.Time `json:"last_processed,omitzero"`
}

func (u Uses) plus(o Uses) Uses {
	u.Protected, u.Processed = u.Protected+o.Protected, u.Processed+o.Processed
	if u.LastProtected.Before(o.LastProtected) {
		u.LastProtected = o.LastProtected
	}
	if u.LastProcessed.Before(o.LastProcessed) {
		u.LastProcessed = o.LastProcessed
	}
	return u
}

// usePage is the record of some versions of a key.
type usePage struct {
	Versions map[uint32]Uses `json:"versions"`
	Added    []string        `json:"added"` // IDs of the last additions, the newest last
	rev      store.Rev
}

// meter counts the uses of a version at this server that are not on their way into the record yet.
type meter struct {
	protected, processed         atomic.Uint64
	lastProtected, lastProcessed atomic.Int64 // Unix seconds; 0: never
}

func (m *meter) read() Uses {
	return Uses{m.protected.Load(), m.processed.Load(), second(m.lastProtected.Load()), second(m.lastProcessed.Load())}
}

func second(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return time.Unix(unix, 0).UTC()
}

// flight is an addition to a record that is on its way: until the record has it, its counts are told from here.
type flight struct {
	id   string
	uses map[uint32]Uses
}

// usage is what this server knows of uses.
type usage struct {
	metersMu sync.RWMutex // guards meters, not what they count
	meters   map[materialID]*meter

	mu      sync.Mutex // guards what follows; held while meters are emptied, so that nothing is seen twice or not at all
	pages   map[string]usePage
	flights map[string]flight

	loaded store.Rev // up to where the records were read at the start; what came after is heard, also what is older than this server's own additions
}

func usagePath(ns keyring.Namespace, id keyring.KeyID, n uint32) string {
	return usagePrefix + string(ns) + "/" + string(id) + "/" + strconv.FormatUint(uint64(n/usageVersions), 10)
}

func (u *usage) meter(id materialID) *meter {
	u.metersMu.RLock()
	m := u.meters[id]
	u.metersMu.RUnlock()
	if m != nil {
		return m
	}
	u.metersMu.Lock()
	defer u.metersMu.Unlock()
	if m = u.meters[id]; m == nil {
		m = &meter{}
		u.meters[id] = m
	}
	return m
}

// kind says which of the two things a use is.
type kind bool

const (
	protects  kind = true
	processes kind = false
)

// count counts n uses of a version, after they are in the log.
func (u *usage) count(id materialID, what kind, n uint64, now time.Time) {
	m := u.meter(id)
	if what == protects {
		m.protected.Add(n)
		m.lastProtected.Store(now.Unix())
		return
	}
	m.processed.Add(n)
	m.lastProcessed.Store(now.Unix())
}

// of is how a version was used, as far as this server knows: its own uses up to now, those of others up to what they added last.
func (u *usage) of(ns keyring.Namespace, id keyring.KeyID, n uint32) Uses {
	path := usagePath(ns, id, n)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.metersMu.RLock()
	m := u.meters[materialID{id, n}]
	u.metersMu.RUnlock()
	sum := u.pages[path].Versions[n].plus(u.flights[path].uses[n])
	if m != nil {
		sum = sum.plus(m.read())
	}
	return sum
}

// all is of for every version of a key from a number on that was used.
func (u *usage) all(k keyring.Key, from uint32) map[uint32]Uses {
	out := map[uint32]Uses{}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.metersMu.RLock()
	defer u.metersMu.RUnlock()
	page := ""
	for v := range k.From(from) {
		if path := usagePath(k.Namespace, k.ID, v.Number); path != page {
			page = path
			maps.Copy(out, u.pages[path].Versions)
			for n, uses := range u.flights[path].uses {
				out[n] = out[n].plus(uses)
			}
		}
		if m := u.meters[materialID{k.ID, v.Number}]; m != nil {
			out[v.Number] = out[v.Number].plus(m.read())
		}
	}
	return out
}

// take makes flights of what the meters have. Where one is still on its way, its meters wait for the next time.
func (u *usage) take(namespaceOf func(keyring.KeyID) (keyring.Namespace, bool)) map[string]flight {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.metersMu.RLock()
	defer u.metersMu.RUnlock()
	waiting := maps.Clone(u.flights)
	for id, m := range u.meters {
		ns, ok := namespaceOf(id.key)
		if !ok || m.protected.Load() == 0 && m.processed.Load() == 0 {
			continue
		}
		path := usagePath(ns, id.key, id.version)
		if _, late := waiting[path]; late {
			continue
		}
		f, ok := u.flights[path]
		if !ok {
			f = flight{newFlightID(), map[uint32]Uses{}}
			u.flights[path] = f
		}
		had := m.read()
		had.Protected, had.Processed = m.protected.Swap(0), m.processed.Swap(0)
		f.uses[id.version] = had
	}
	return maps.Clone(u.flights)
}

func newFlightID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// landed notes a record as it is at a revision; what it has of this server's flights is not told from there any more.
func (u *usage) landed(path string, p usePage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p.rev <= u.pages[path].rev {
		return
	}
	u.pages[path] = p
	if f, ok := u.flights[path]; ok && slices.Contains(p.Added, f.id) {
		delete(u.flights, path)
	}
}

// loadUses reads the records of uses.
func (s *Service) loadUses(ctx context.Context) error {
	s.usage.meters, s.usage.pages, s.usage.flights = map[materialID]*meter{}, map[string]usePage{}, map[string]flight{}
	records, rev, err := s.guard.List(ctx, usagePrefix)
	if err != nil {
		return fmt.Errorf("read uses: %w", err)
	}
	for _, r := range records {
		p, err := decodeUses(r)
		if err != nil {
			return err
		}
		s.usage.landed(r.Path, p)
	}
	s.usage.loaded = rev
	return nil
}

func decodeUses(r guard.Record) (usePage, error) {
	p := usePage{rev: r.Rev}
	if err := json.Unmarshal(r.Value, &p); err != nil {
		return p, fault.Wrap(fault.RecordTampered, r.Path, err)
	}
	return p, nil
}

// followUses hears what other servers add, until ctx ends.
func (s *Service) followUses(ctx context.Context) error {
	for changes, err := range s.guard.Watch(ctx, usagePrefix, s.usage.loaded) {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch uses: %w", err)
		}
		for _, c := range changes {
			if c.Deleted {
				continue
			}
			p, err := decodeUses(c.Record)
			if err != nil {
				return err
			}
			s.usage.landed(c.Path, p)
		}
	}
	return nil
}

// UsesOf is how a version of a key was used, without asking whether anybody may; for the server's own loops. What other servers counted is up to a
// minute old.
func (s *Service) UsesOf(k keyring.Key, n uint32) Uses { return s.usage.of(k.Namespace, k.ID, n) }

// Usage is how a key is used, and whether its primary version should be rotated away from.
type Usage struct {
	Key      keyring.Key
	Versions map[uint32]Uses // of versions that were ever used
	Next     time.Time       // when its schedule begins the next rotation by time; zero: it does not
	Required []string        // why rotation is required; none: it is not (rotation.Required)
}

// Usage is how a key is used, as it is now; what other servers counted is up to a minute old.
func (s *Service) Usage(ctx context.Context, c policy.Caller, ref Ref) (Usage, error) {
	k, err := s.Get(ctx, c, ref)
	if err != nil {
		return Usage{}, err
	}
	return s.UsageOf(k, 0), nil
}

// UsageOf is Usage without asking whether anybody may, for who has the key from a use case. It tells of the versions from a number on.
func (s *Service) UsageOf(k keyring.Key, from uint32) Usage {
	u, now := Usage{Key: k, Versions: s.usage.all(k, from)}, s.now()
	protected := s.UsesOf(k, k.Primary).Protected
	u.Next, u.Required = rotation.NextDue(k, protected, now), rotation.Required(k, protected, now)
	if s.volumeLow(k, protected) {
		u.Required = append(u.Required, "its algorithm protects hardly more often under one key")
	}
	return u
}

// CountUses adds this server's counts to the records once a minute until ctx ends. What cannot be added waits for the next time.
func (s *Service) CountUses(ctx context.Context) error {
	tick := time.NewTicker(usageEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.FlushUses(ctx); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "counts of uses wait to be added", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// FlushUses adds this server's counts to the records now, as when it stops.
func (s *Service) FlushUses(ctx context.Context) error {
	flights := s.usage.take(func(id keyring.KeyID) (keyring.Namespace, bool) {
		k, ok := s.Key(id)
		return k.Namespace, ok
	})
	var errs []error
	for paths := range slices.Chunk(slices.Sorted(maps.Keys(flights)), usageBatch) {
		errs = append(errs, s.add(ctx, paths, flights))
	}
	return errors.Join(errs...)
}

// usageConflicts is how often in a row an addition is made anew because another server was faster.
const usageConflicts = 16

// add adds flights to their records in one commit. One of unknown outcome stays in flight: the record knows whether it came.
func (s *Service) add(ctx context.Context, paths []string, flights map[string]flight) error {
	p := s.guard.System("kms", actUsage, policy.Resource{})
	for conflicts := 0; ; conflicts++ {
		var conds []guard.Cond
		var writes []guard.Write
		pages := map[string]usePage{}
		for _, path := range paths {
			page, err := s.usePage(ctx, path)
			if err != nil {
				return err
			}
			f := flights[path]
			if slices.Contains(page.Added, f.id) {
				s.usage.landed(path, page)
				continue
			}
			conds = append(conds, guard.Cond{Path: path, Rev: page.rev})
			page = page.with(f)
			value, err := json.Marshal(page)
			if err != nil {
				return fmt.Errorf("encode %s: %w", path, err)
			}
			pages[path], writes = page, append(writes, guard.Write{Path: path, Value: value})
		}
		if len(writes) == 0 {
			return nil
		}
		rev, err := p.Commit(ctx, conds, writes, nil)
		if fault.CodeOf(err) == fault.Conflict && conflicts < usageConflicts {
			continue
		}
		if err != nil {
			return err
		}
		for path, page := range pages {
			page.rev = rev
			s.usage.landed(path, page)
		}
		return nil
	}
}

// actUsage is the action that entries of the log have when a server adds its counts; no rule is about it.
const actUsage policy.Action = "usage"

// usePage reads a record of uses; one that is not there yet is empty.
func (s *Service) usePage(ctx context.Context, path string) (usePage, error) {
	r, err := s.guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return usePage{}, nil
	}
	if err != nil {
		return usePage{}, err
	}
	return decodeUses(r)
}

// with is the record with a flight added.
func (p usePage) with(f flight) usePage {
	next := usePage{Versions: maps.Clone(p.Versions), Added: append(slices.Clone(p.Added), f.id)}
	if next.Versions == nil {
		next.Versions = map[uint32]Uses{}
	}
	for n, u := range f.uses {
		next.Versions[n] = next.Versions[n].plus(u)
	}
	next.Added = next.Added[max(0, len(next.Added)-usageFlights):]
	return next
}
