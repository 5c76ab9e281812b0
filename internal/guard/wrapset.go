package guard

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// rootPath is where the root record stands.
const rootPath = "seal/root"

// rootRecord is the only record that is not sealed: it holds the wraps of the root key.
type rootRecord struct {
	Cluster    string                       `json:"cluster"`
	Generation uint64                       `json:"generation"`      // of the sealers: of the newest wrap
	Root       uint64                       `json:"root,omitempty"`  // generation of the root key; 0 is 1
	Wraps      map[string][]byte            `json:"wraps"`           // sealer's ID -> blob
	Older      map[uint64]map[string][]byte `json:"older,omitempty"` // generation of the root key -> wraps, while records of it are left
	Tag        []byte                       `json:"tag"`             // HMAC under the root over the rest
}

// root is the generation of the root key.
func (r rootRecord) root() uint64 { return max(r.Root, 1) }

// wrap wraps the root with every sealer, at the record's generation. fault.Invalid without a sealer.
func (r *rootRecord) wrap(ctx context.Context, sealers []seal.Sealer, root secret.Bytes) error {
	if len(sealers) == 0 {
		return fault.New(fault.Invalid, "seal").WithHint("name at least one sealer")
	}
	r.Wraps = map[string][]byte{}
	for _, s := range sealers {
		blob, err := s.Wrap(ctx, root, r.Generation)
		if err != nil {
			return fmt.Errorf("wrap root with %s: %w", s.ID(), err)
		}
		r.Wraps[s.ID()] = blob
	}
	return nil
}

// encode tags the record under the root and encodes it.
func (r *rootRecord) encode(root secret.Bytes) []byte {
	r.Tag = r.tag(root)
	b, _ := json.Marshal(r) // strings, numbers and bytes always encode
	return b
}

func (r rootRecord) tag(root secret.Bytes) []byte {
	r.Tag = nil
	b, _ := json.Marshal(r) // strings, numbers and bytes always encode
	h := hmac.New(sha256.New, root.Reveal())
	h.Write([]byte("rotor/root-record/1\x00"))
	h.Write(b)
	return h.Sum(nil)
}

// Wrapped is what the root record says before anything is opened: nobody vouches for it yet.
type Wrapped struct {
	Cluster string
	Wraps   map[string][]byte // sealer's ID -> blob
}

// ReadWraps reads the root record of a store that is still sealed, to learn which sealers can open it. fault.NotFound before Init,
// RecordTampered.
func ReadWraps(ctx context.Context, s store.Store) (Wrapped, error) {
	rec, _, err := readRoot(ctx, s)
	return Wrapped{rec.Cluster, rec.Wraps}, err
}

// ParseWraps reads the wrap set of a root record that stands elsewhere, such as before a backup; nothing proves it yet. fault.MalformedFile.
func ParseWraps(root []byte) (Wrapped, error) {
	var rec rootRecord
	if err := json.Unmarshal(root, &rec); err != nil || rec.Root > maxGeneration {
		return Wrapped{}, fault.New(fault.MalformedFile, "root record")
	}
	return Wrapped{rec.Cluster, rec.Wraps}, nil
}

func readRoot(ctx context.Context, s store.Store) (rootRecord, store.Record, error) {
	var rec rootRecord
	r, err := s.Get(ctx, rootPath)
	if errors.Is(err, store.ErrNotFound) {
		return rec, r, noRoot(ctx, s)
	}
	if err != nil {
		return rec, r, storeFault(rootPath, err)
	}
	if err := json.Unmarshal(r.Value, &rec); err != nil || rec.Root > maxGeneration {
		return rec, r, fault.New(fault.RecordTampered, rootPath)
	}
	return rec, r, nil
}

// unseal opens the generations of the root key that the root record names, but for those that are known. The record is believed only if
// its tag holds under the root that came out.
func unseal(ctx context.Context, c Config, known map[uint64]hierarchy) (*roots, error) {
	rec, r, err := readRoot(ctx, c.Store)
	if err != nil {
		return nil, err
	}
	out, err := rec.unseal(ctx, c.Sealers, known)
	if err != nil {
		return nil, err
	}
	out.rev = r.Rev
	return out, nil
}

// unseal opens all generations of a record, and believes it if its tag holds.
func (r rootRecord) unseal(ctx context.Context, sealers []seal.Sealer, known map[uint64]hierarchy) (*roots, error) {
	var err error
	rec := r
	out := &roots{record: rec, all: map[uint64]hierarchy{}}
	if out.current, err = rec.open(ctx, sealers, rec.root(), rec.Wraps, known); err != nil {
		return nil, err
	}
	if !hmac.Equal(rec.Tag, rec.tag(out.current.root)) {
		return nil, fault.New(fault.RecordTampered, rootPath)
	}
	out.all[rec.root()] = out.current
	for generation, wraps := range rec.Older {
		if out.all[generation], err = rec.open(ctx, sealers, generation, wraps, known); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// open opens one generation.
func (r rootRecord) open(ctx context.Context, sealers []seal.Sealer, generation uint64, wraps map[string][]byte, known map[uint64]hierarchy) (hierarchy, error) {
	if h, ok := known[generation]; ok && h.cluster == r.Cluster {
		return h, nil
	}
	root, err := unwrap(ctx, sealers, wraps)
	if err != nil {
		return hierarchy{}, err
	}
	return derive(root, r.Cluster, generation)
}

// unwrap opens a root key with any of the sealers, in their order. fault.Sealed, Unavailable, SealWrong.
func unwrap(ctx context.Context, sealers []seal.Sealer, wraps map[string][]byte) (secret.Bytes, error) {
	var failed []error
	for _, s := range sealers {
		blob, ok := wraps[s.ID()]
		if !ok {
			failed = append(failed, fmt.Errorf("%s: no wrap for it", s.ID()))
			continue
		}
		root, err := s.Unwrap(ctx, blob)
		if err == nil {
			return root, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", s.ID(), err))
	}
	err := errors.Join(failed...)
	switch {
	case errors.Is(err, seal.ErrNeedsShares):
		return secret.Bytes{}, fault.Wrap(fault.Sealed, "seal", err)
	case errors.Is(err, seal.ErrUnavailable):
		return secret.Bytes{}, fault.Wrap(fault.Unavailable, "seal", err)
	}
	return secret.Bytes{}, fault.Wrap(fault.SealWrong, "seal", err)
}

// noRoot tells an empty store from one that has lost its root record.
func noRoot(ctx context.Context, s store.Store) error {
	_, records := s.List(ctx, "")
	for _, err := range records {
		if err != nil {
			return storeFault(rootPath, err)
		}
		return fault.New(fault.RecordTampered, rootPath).WithHint("the store has records, but not the one with the wrapped root key; restore it from a backup")
	}
	return fault.New(fault.NotFound, "cluster in this store").WithHint("rotor server init makes one")
}

// WrapSet is who opens the root, as the log vouches for it.
type WrapSet struct {
	Generation uint64
	Wraps      map[string][]byte // sealer's ID -> blob
}

// Wraps reads the wrap set. fault.RecordTampered, RecordReplayed.
func (g *Guard) Wraps(ctx context.Context) (WrapSet, error) {
	rec, _, err := g.rootNow(ctx)
	return WrapSet{rec.Generation, rec.Wraps}, err
}

// Members are the IDs of the wrap set that the root was opened from, sorted.
func (g *Guard) Members() []string { return slices.Sorted(maps.Keys(g.keys.Load().record.Wraps)) }

// rootNow reads the root record and believes it only if its tag holds and the log knows no other.
func (g *Guard) rootNow(ctx context.Context) (rootRecord, store.Rev, error) {
	for {
		rec, r, err := readRoot(ctx, g.store)
		if err != nil {
			return rec, 0, err
		}
		if err := g.reach(ctx, r); err != nil {
			return rec, 0, err
		}
		want, ok := g.index.latest(rootPath)
		if ok && want.rev > r.Rev && !want.loaded {
			continue // it has been written since it was read
		}
		keys := g.keys.Load()
		if rec.root() > keys.current.generation { // another server has made another root key
			if moved, err := g.catchUp(ctx, keys); err != nil || !moved {
				return rec, 0, errors.Join(fault.New(fault.RecordTampered, rootPath), err)
			}
			continue
		}
		if rec.Cluster != keys.record.Cluster || !hmac.Equal(rec.Tag, rec.tag(keys.current.root)) {
			return rec, 0, fault.New(fault.RecordTampered, rootPath)
		}
		if ok && want.hash != digestOf(r.Value) {
			return rec, 0, fault.New(fault.RecordReplayed, rootPath)
		}
		return rec, r.Rev, nil
	}
}

// AddSealer adds a wrap by a sealer that has none. It is opened before it counts. fault.Exists, Unavailable, SealWrong, Conflict.
func (g *Guard) AddSealer(ctx context.Context, p *Permit, s seal.Sealer) error {
	return g.changeWraps(ctx, p, "add", s.ID(), func(rec *rootRecord) error {
		if _, there := rec.Wraps[s.ID()]; there {
			return fault.New(fault.Exists, "sealer "+s.ID())
		}
		return g.rewrap(ctx, rec, s)
	})
}

// RotateSealer makes a new wrap by a sealer, at a new generation of its own, and puts it in the place of the old one after it was
// opened. The sealer still opens the old one until it is told to forget. fault.NotFound, Unavailable, SealWrong, Conflict.
func (g *Guard) RotateSealer(ctx context.Context, p *Permit, s seal.Sealer) error {
	return g.changeWraps(ctx, p, "rotate", s.ID(), func(rec *rootRecord) error {
		if _, there := rec.Wraps[s.ID()]; !there {
			return fault.New(fault.NotFound, "sealer "+s.ID())
		}
		rec.Generation++
		return g.rewrap(ctx, rec, s)
	})
}

// ReplaceSealer takes out one sealer and puts another in, which was opened before: new shares for old. fault.NotFound, Exists,
// Unavailable, SealWrong, Conflict.
func (g *Guard) ReplaceSealer(ctx context.Context, p *Permit, old string, s seal.Sealer) error {
	return g.changeWraps(ctx, p, "replace "+old, s.ID(), func(rec *rootRecord) error {
		if _, there := rec.Wraps[old]; !there {
			return fault.New(fault.NotFound, "sealer "+old)
		}
		if _, there := rec.Wraps[s.ID()]; there {
			return fault.New(fault.Exists, "sealer "+s.ID())
		}
		delete(rec.Wraps, old)
		return g.rewrap(ctx, rec, s)
	})
}

// RemoveSealer takes a sealer out of the set. One of the others, of those that are given, has to open now. fault.NotFound, InUse for the
// last one, Unavailable when no other one opens, Conflict.
func (g *Guard) RemoveSealer(ctx context.Context, p *Permit, id string, others []seal.Sealer) error {
	return g.changeWraps(ctx, p, "remove", id, func(rec *rootRecord) error {
		if _, there := rec.Wraps[id]; !there {
			return fault.New(fault.NotFound, "sealer "+id)
		}
		delete(rec.Wraps, id)
		if len(rec.Wraps) == 0 {
			return fault.New(fault.InUse, "sealer "+id).WithHint("it is the only one; add another first")
		}
		var failed []error
		for _, s := range others {
			if _, there := rec.Wraps[s.ID()]; !there {
				continue
			}
			err := g.proves(ctx, s, rec.Wraps[s.ID()])
			if err == nil {
				return nil
			}
			failed = append(failed, err)
		}
		return fault.Wrap(fault.Unavailable, "seal", errors.Join(failed...)).
			WithHint("none of the other sealers opens now, so nothing is removed; make one reachable or bring shares")
	})
}

// ProveSealer opens the wrap that a sealer has in the set. fault.NotFound when it has none, Unavailable, SealWrong.
func (g *Guard) ProveSealer(ctx context.Context, s seal.Sealer) error {
	rec, _, err := g.rootNow(ctx)
	if err != nil {
		return err
	}
	blob, ok := rec.Wraps[s.ID()]
	if !ok {
		return fault.New(fault.NotFound, "sealer "+s.ID())
	}
	return g.proves(ctx, s, blob)
}

// Opens has a sealer open a wrap that it made, of the set as it was read last; the store is not asked. fault.Unavailable, SealWrong.
func (g *Guard) Opens(ctx context.Context, s seal.Sealer, wrap []byte) error {
	return g.proves(ctx, s, wrap)
}

// rewrap wraps the root with a sealer and opens the wrap before anything relies on it.
func (g *Guard) rewrap(ctx context.Context, rec *rootRecord, s seal.Sealer) error {
	blob, err := s.Wrap(ctx, g.keys.Load().current.root, rec.Generation)
	if err != nil {
		return sealFault(s.ID(), err)
	}
	if err := g.proves(ctx, s, blob); err != nil {
		return err
	}
	rec.Wraps[s.ID()] = blob
	return nil
}

// proves says whether a sealer gets the root out of a blob.
func (g *Guard) proves(ctx context.Context, s seal.Sealer, blob []byte) error {
	root, err := s.Unwrap(ctx, blob)
	if err != nil {
		return sealFault(s.ID(), err)
	}
	defer root.Destroy()
	if !root.Equal(g.keys.Load().current.root) {
		return fault.New(fault.SealWrong, "sealer "+s.ID()).WithHint("it gives another root key than the one it was given")
	}
	return nil
}

func sealFault(id string, err error) error {
	switch {
	case errors.Is(err, seal.ErrUnavailable):
		return fault.Wrap(fault.Unavailable, "sealer "+id, err)
	case fault.CodeOf(err) != fault.Internal:
		return err
	}
	return fault.Wrap(fault.SealWrong, "sealer "+id, err)
}

// changeWraps edits the root record in one commit. What edit has proven is what is committed, or nothing is.
func (g *Guard) changeWraps(ctx context.Context, p *Permit, what, id string, edit func(*rootRecord) error) error {
	rec, rev, err := g.rootNow(ctx)
	if err != nil {
		return err
	}
	if len(rec.Older) > 0 { // a sealer that comes now could not open them, and one that goes would stay in them
		return fault.New(fault.InUse, "wrap set").WithHint("records are being sealed again under a new root key; wait until that is done")
	}
	before := maps.Clone(rec.Wraps)
	if err := edit(&rec); err != nil {
		return err
	}
	detail := map[string]string{"change": what, "sealer": id, "set": strings.Join(slices.Sorted(maps.Keys(rec.Wraps)), ", ")}
	conds := []Cond{{rootPath, rev}}
	writes := []Write{{Path: rootPath, Value: rec.encode(g.keys.Load().current.root), plain: true}}
	if f, frev, err := g.leaving(ctx, before, rec); err != nil {
		return err
	} else if f != nil {
		conds, writes = append(conds, Cond{forgetPath, frev}), append(writes, Write{Path: forgetPath, Value: f})
	}
	_, err = p.Commit(ctx, conds, writes, detail)
	return err
}

// leaving keeps the wraps of sealers that leave the wrap set, which a shred has to make forget; one that comes is not gone any more. nil:
// nobody leaves.
func (g *Guard) leaving(ctx context.Context, before map[string][]byte, rec rootRecord) (value []byte, rev store.Rev, err error) {
	f, rev, err := g.forgetting(ctx)
	if err != nil {
		return nil, 0, err
	}
	changed := false
	for id, blob := range before {
		if _, stays := rec.Wraps[id]; !stays {
			f.keep(rec.root(), id, blob)
			changed = true
		}
	}
	for id := range rec.Wraps {
		if _, gone := f.Gone[id]; gone {
			delete(f.Gone, id)
			changed = true
		}
	}
	if !changed {
		return nil, 0, nil
	}
	value, err = json.Marshal(f)
	return value, rev, err
}

// SetSealers follows a change of the wrap set: these are who can be asked from now on.
func (g *Guard) SetSealers(sealers []seal.Sealer) {
	all := slices.Clone(sealers)
	g.sealers.Store(&all)
}

// Destroy overwrites the root keys and the keys of namespaces, after Run has returned. What was made of them goes with the guard.
func (g *Guard) Destroy() {
	g.kekMu.Lock()
	defer g.kekMu.Unlock()
	for _, h := range g.keys.Load().all {
		h.root.Destroy()
		h.log.Destroy()
	}
	for _, k := range g.keks {
		k.Destroy()
	}
	clear(g.keks)
}
