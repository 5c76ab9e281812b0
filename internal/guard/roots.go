package guard

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// This file is the generations of the root key (docs/decisions/0038). Everything is written under the current one. Each
// commit, of records and of the log, is conditioned on the root record that its keys were read from, so that once another generation is
// current nobody writes under an earlier one any more, whatever server it is.

// roots are the generations that can be opened. Immutable: replaced as a whole.
type roots struct {
	rev     store.Rev // of the root record
	record  rootRecord
	current hierarchy
	all     map[uint64]hierarchy
	logs    logKeys // of generations that are gone, and that the part of the log is tagged with that may not have been followed yet
}

// logKeys are what generations tag the log with.
type logKeys map[uint64]secret.Bytes

// logKeysPath is where the log keys of generations that are gone are kept, sealed as any record, for servers that are behind: one that was
// suspended while the root key was rotated twice still has entries before it that are tagged by a generation which it can open nowhere else.
// They open nothing. Who starts does not need them: it reads the log in order.
const logKeysPath = "guard/log-keys"

// keptLogs bounds how many generations of the root key a server can be behind and go on.
const keptLogs = 256

// encode is generation 8, key 32 of each of the newest, in order.
func (l logKeys) encode() []byte {
	all := slices.Sorted(maps.Keys(l))
	var out []byte
	for _, generation := range all[max(len(all)-keptLogs, 0):] {
		out = append(binary.BigEndian.AppendUint64(out, generation), l[generation].Reveal()...)
	}
	return out
}

func parseLogKeys(b []byte) logKeys {
	l := logKeys{}
	for one := range slices.Chunk(b, 8+32) {
		if len(one) == 8+32 {
			l[binary.BigEndian.Uint64(one)] = secret.Copy(one[8:])
		}
	}
	return l
}

// errGone: the blob is of a generation of the root key that is not there any more.
var errGone = errors.New("guard: the root generation is gone")

// fence are the conditions of every commit.
func (r *roots) fence() []store.Cond { return []store.Cond{{Key: rootPath, Rev: r.rev}} }

// older are the generations before the current one that still have records, in order.
func (r *roots) older() []uint64 {
	var out []uint64
	for g := range r.all {
		if g != r.current.generation {
			out = append(out, g)
		}
	}
	slices.Sort(out)
	return out
}

func (r *roots) olderLogs() []secret.Bytes {
	out := slices.Collect(maps.Values(r.logs))
	for _, g := range r.older() {
		out = append(out, r.all[g].log)
	}
	return out
}

// open opens a blob of any generation that is there. errGone.
func (r *roots) open(path string, blob []byte) (counter uint64, value []byte, err error) {
	generation := generationOf(blob)
	h, ok := r.all[generation]
	switch {
	case generation == 0:
		return 0, nil, errors.New("record is too short")
	case !ok:
		return 0, nil, errGone
	}
	return h.open(path, blob)
}

// use makes generations the guard's.
func (g *Guard) use(r *roots) {
	g.audit.Rekey(audit.Keys{
		Current: r.current.log, Older: r.olderLogs(), Until: r.rev, Fence: r.fence(),
		Moved: func(ctx context.Context) (bool, error) { return g.catchUp(ctx, r) },
	})
	g.keys.Store(r) // after the log has its keys: who seals under the new ones tags with the new ones
}

// catchUp reads the root record again when what was done under the keys r did not go through or open. It says whether there are others.
func (g *Guard) catchUp(ctx context.Context, r *roots) (moved bool, err error) {
	g.rootMu.Lock()
	defer g.rootMu.Unlock()
	if g.keys.Load() != r {
		return true, nil
	}
	rec, err := g.store.Get(ctx, rootPath)
	if err != nil {
		return false, storeFault(rootPath, err)
	}
	if rec.Rev == r.rev {
		return false, nil
	}
	for {
		next, err := unseal(ctx, Config{Store: g.store, Sealers: *g.sealers.Load()}, r.all)
		if err != nil {
			return false, err
		}
		if next.record.Cluster != r.record.Cluster || next.current.generation < r.current.generation {
			return false, fault.New(fault.RecordReplayed, rootPath)
		}
		next.logs, err = g.logsBetween(ctx, r, next)
		if errors.Is(err, errGone) { // it has moved on again since
			continue
		}
		if err != nil {
			return false, err
		}
		g.use(next)
		return true, nil
	}
}

// logsBetween are the log keys of the generations that are gone in next and that came after those that r began with: what is still to be
// followed may be tagged with any of them. errGone when next is not the newest; fault.Unavailable when a key is not kept any more, so that
// the log can only be read from its beginning: by a start.
func (g *Guard) logsBetween(ctx context.Context, r, next *roots) (logKeys, error) {
	known := maps.Clone(r.logs)
	if known == nil || g.index.at() >= r.rev { // nothing that comes is of before r
		known = logKeys{}
	}
	for generation, h := range r.all {
		known[generation] = h.log
	}
	var kept logKeys
	for generation := r.current.generation + 1; generation < next.current.generation; generation++ {
		if _, there := next.all[generation]; there {
			continue
		}
		if kept == nil {
			var err error
			if kept, err = g.keptLogKeys(ctx, next); err != nil {
				return nil, err
			}
		}
		key, ok := kept[generation]
		if !ok {
			return nil, fault.New(fault.Unavailable, "root generation "+number(generation)).
				WithHint("this server was behind while the root key was rotated more than once, and cannot follow; start it again")
		}
		known[generation] = key
	}
	maps.DeleteFunc(known, func(generation uint64, _ secret.Bytes) bool { _, there := next.all[generation]; return there })
	return known, nil
}

// keptLogKeys reads the log keys of generations that are gone. It is asked while the log is followed, which the record cannot wait for to be
// believed: its seal alone says that it was so once, and without a key that an earlier one lacks nothing is taken as true. errGone when next is not the
// newest root record.
func (g *Guard) keptLogKeys(ctx context.Context, next *roots) (logKeys, error) {
	rec, err := g.store.Get(ctx, logKeysPath)
	if errors.Is(err, store.ErrNotFound) {
		return logKeys{}, nil
	}
	if err != nil {
		return nil, storeFault(logKeysPath, err)
	}
	_, value, err := next.open(logKeysPath, rec.Value)
	switch {
	case errors.Is(err, errGone) && generationOf(rec.Value) > next.current.generation:
		return nil, errGone
	case err != nil:
		return nil, fault.Wrap(fault.RecordTampered, logKeysPath, err)
	}
	return parseLogKeys(value), nil
}

// latest makes the keys those of the root record as it is now. That somebody else has just moved on says nothing of when they read it.
func (g *Guard) latest(ctx context.Context) error {
	for moved := true; moved; {
		var err error
		if moved, err = g.catchUp(ctx, g.keys.Load()); err != nil {
			return err
		}
	}
	return nil
}

// openBlob opens a record's blob, with newer root keys if it is of a generation that is not known here yet. fault.RecordTampered;
// RecordReplayed around errGone when the generation is over.
func (g *Guard) openBlob(ctx context.Context, path string, blob []byte) (counter uint64, value []byte, err error) {
	for {
		r := g.keys.Load()
		counter, value, err = r.open(path, blob)
		switch {
		case err == nil:
			return counter, value, nil
		case !errors.Is(err, errGone):
			return 0, nil, fault.New(fault.RecordTampered, path)
		case generationOf(blob) < r.current.generation:
			return 0, nil, fault.Wrap(fault.RecordReplayed, path, errGone)
		}
		moved, err := g.catchUp(ctx, r)
		if err != nil {
			return 0, nil, err
		}
		if !moved {
			return 0, nil, fault.New(fault.RecordTampered, path)
		}
	}
}
