package guard

import (
	"context"
	"errors"
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
	logs    []secret.Bytes // what earlier generations tagged the log with, also those that are gone
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
	out := slices.Clone(r.logs)
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
		Current: r.current.log, Older: r.olderLogs(), Fence: r.fence(),
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
	next, err := unseal(ctx, Config{Store: g.store, Sealers: *g.sealers.Load()}, r.all)
	if err != nil {
		return false, err
	}
	if next.record.Cluster != r.record.Cluster || next.current.generation < r.current.generation {
		return false, fault.New(fault.RecordReplayed, rootPath)
	}
	for generation, h := range r.all {
		if _, kept := next.all[generation]; !kept {
			next.logs = append(next.logs, h.log)
		}
	}
	next.logs = append(next.logs, r.logs...)
	g.use(next)
	return true, nil
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
	r := g.keys.Load()
	counter, value, err = r.open(path, blob)
	if errors.Is(err, errGone) && generationOf(blob) > r.current.generation {
		moved, merr := g.catchUp(ctx, r)
		if merr != nil {
			return 0, nil, merr
		}
		if moved {
			counter, value, err = g.keys.Load().open(path, blob)
		}
	}
	if errors.Is(err, errGone) && generationOf(blob) < r.current.generation {
		return 0, nil, fault.Wrap(fault.RecordReplayed, path, errGone)
	}
	if err != nil {
		return 0, nil, fault.New(fault.RecordTampered, path)
	}
	return counter, value, nil
}
