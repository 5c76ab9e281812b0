package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// This file turns the root key over: a new generation, everything that lives sealed again under it, the old generation out of the root
// record, and, for a shred, out of every sealer. Each step is one commit and says in the store how far it is, so that whoever opens the
// store next goes on.

// What the log says of a turn. The index reads them back: they decide what is erased.
const (
	actRetireRoot policy.Action = "server.retire-root" // nothing is left under the older generations
	actErase      policy.Action = audit.ActErase       // every sealer has forgotten them
	actReseal     policy.Action = "server.reseal"
)

const (
	forgetPath   = "guard/forget"
	backupPrefix = "backup/"
	// sealBatch and sealBytes bound one commit of sealing again: each record takes a condition and an operation of the store's 100.
	sealBatch = 45
	sealBytes = 512 << 10
	// tendEvery is how often a turn that cannot go on is tried again.
	tendEvery = time.Minute
)

// forgetting is what is left of generations that are out of use and not forgotten yet.
type forgetting struct {
	Wraps  map[uint64]map[string][]byte `json:"wraps"`            // generation -> sealer's ID -> blob, to prove that they do not open; also of sealers that left while it was current
	Gone   map[string]time.Time         `json:"gone,omitempty"`   // sealers that left and that nobody has any more, as somebody has said
	Before uint64                       `json:"before,omitempty"` // asked for: forget what is older; 0: not asked for
	Seal   uint64                       `json:"seal,omitempty"`   // the generation of the sealers that Before was wrapped at
	Asked  time.Time                    `json:"asked,omitzero"`
	By     string                       `json:"by,omitempty"`
}

// Turn makes another root key the current one, proven by every sealer of the wrap set before it is; sealing again what lives follows by
// itself (Run). With shred the sealers forget the older generations once nothing lives under them and no backup of them is to be kept. It
// returns the new generation. fault.InUse while an earlier turn is not done, Unavailable when a sealer of the wrap set is not there.
func (g *Guard) Turn(ctx context.Context, p *Permit, shred bool) (uint64, error) {
	if p == nil || p.guard == nil {
		return 0, fault.New(fault.Denied, "no permit")
	}
	g.turnMu.Lock()
	defer g.turnMu.Unlock()
	if err := g.latest(ctx); err != nil { // the wrap set may have changed
		return 0, err
	}
	for {
		r := g.keys.Load()
		next, err := g.turnOnce(ctx, p, r, shred)
		if fault.CodeOf(err) != fault.Conflict {
			return next, err
		}
		if moved, cerr := g.catchUp(ctx, r); cerr != nil || !moved { // else another server was taking the last turn further
			return 0, errors.Join(err, cerr)
		}
	}
}

func (g *Guard) turnOnce(ctx context.Context, p *Permit, r *roots, shred bool) (uint64, error) {
	if len(r.record.Older) > 0 {
		return 0, fault.New(fault.InUse, "root generation "+number(r.older()[0])).WithHint("records are still being sealed again after the last rotation; see rotor server roots")
	}
	next := r.current.generation + 1
	if next > maxGeneration {
		return 0, fault.New(fault.TooLarge, "root generation")
	}
	root := secret.Random(32)
	wraps, err := g.wrapForAll(ctx, r, root, r.record.Generation+1)
	if err != nil {
		return 0, err
	}
	f, frev, err := g.forgetting(ctx)
	if err != nil {
		return 0, err
	}
	if shred {
		f.Before, f.Seal, f.Asked, f.By = next, r.record.Generation+1, g.now().UTC(), p.caller.Name
	}
	rec := r.record
	rec.Generation, rec.Root, rec.Wraps, rec.Older = rec.Generation+1, next, wraps, map[uint64]map[string][]byte{r.current.generation: r.record.Wraps}
	rec.Tag = rec.tag(root)
	detail := map[string]string{"generation": number(next), "set": strings.Join(slices.Sorted(maps.Keys(wraps)), ", "), "shred": strconv.FormatBool(shred)}
	if err := g.putRoot(ctx, p, r, rec, f, frev, nil, detail); err != nil {
		return 0, err
	}
	g.wakeTender()
	return next, nil
}

// wrapForAll wraps a root for every sealer of the wrap set, and proves each wrap by opening it.
func (g *Guard) wrapForAll(ctx context.Context, r *roots, root secret.Bytes, generation uint64) (map[string][]byte, error) {
	here := map[string]seal.Sealer{}
	for _, s := range *g.sealers.Load() {
		here[s.ID()] = s
	}
	wraps := map[string][]byte{}
	for _, id := range slices.Sorted(maps.Keys(r.record.Wraps)) {
		s := here[id]
		if s == nil {
			return nil, fault.New(fault.Unavailable, "sealer "+id).WithHint("it is in the wrap set and not configured at this server")
		}
		blob, err := s.Wrap(ctx, root, generation)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, "sealer "+id, err)
		}
		back, err := s.Unwrap(ctx, blob)
		if errors.Is(err, seal.ErrNeedsShares) {
			return nil, fault.Wrap(fault.Unavailable, "sealer "+id, err).WithHint("bring enough shares first, which prove that they open the new root key: rotor server unseal")
		}
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, "sealer "+id, fmt.Errorf("test unwrap: %w", err))
		}
		same := back.Equal(root)
		back.Destroy()
		if !same {
			return nil, fault.New(fault.SealWrong, "sealer "+id).WithHint("what it unwrapped is not what it wrapped")
		}
		wraps[id] = blob
	}
	return wraps, nil
}

// forgetting reads what is not forgotten yet; the revision 0 when there is nothing.
func (g *Guard) forgetting(ctx context.Context) (forgetting, store.Rev, error) {
	f := forgetting{Wraps: map[uint64]map[string][]byte{}, Gone: map[string]time.Time{}}
	rec, err := g.Get(ctx, forgetPath)
	if fault.CodeOf(err) == fault.NotFound {
		return f, 0, nil
	}
	if err != nil {
		return f, 0, err
	}
	if err := json.Unmarshal(rec.Value, &f); err != nil {
		return f, 0, fault.Wrap(fault.RecordTampered, forgetPath, err)
	}
	return f, rec.Rev, nil
}

// keep keeps a wrap of a sealer, to prove later that it opens no more.
func (f *forgetting) keep(generation uint64, id string, blob []byte) {
	if f.Wraps[generation] == nil {
		f.Wraps[generation] = map[string][]byte{}
	}
	f.Wraps[generation][id] = blob
}

// wrapOf is any wrap that a sealer has made.
func (f *forgetting) wrapOf(id string) []byte {
	for _, wraps := range f.Wraps {
		if blob, ok := wraps[id]; ok {
			return blob
		}
	}
	return nil
}

// putRoot replaces the root record r by rec, together with the record of what is to be forgotten and what else is given, and goes over to it.
func (g *Guard) putRoot(ctx context.Context, p *Permit, r *roots, rec rootRecord, f forgetting, frev store.Rev, more []Write, detail map[string]string) error {
	value, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode root: %w", err)
	}
	rest, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode what to forget: %w", err)
	}
	conds := []Cond{{Path: rootPath, Rev: r.rev}, {Path: forgetPath, Rev: frev}}
	writes := append([]Write{{Path: rootPath, Value: value, plain: true}, {Path: forgetPath, Value: rest}}, more...)
	_, err = p.Commit(ctx, conds, writes, detail)
	if err != nil && fault.CodeOf(err) != fault.OutcomeUnknown {
		return err
	}
	_, cerr := g.catchUp(ctx, r)
	return errors.Join(err, cerr)
}

// tend takes the turn that is in flight further until ctx ends, and begins one when a shred is due: at the server whose turn it is.
func (g *Guard) tend(ctx context.Context) error {
	every := tendEvery
	if g.shredEvery > 0 {
		every = min(every, g.shredEvery)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		mine, changed := true, (<-chan struct{})(nil)
		if g.turn != nil {
			mine, changed = g.turn()
		}
		err := g.tendOnce(ctx, mine)
		if err != nil && ctx.Err() == nil {
			g.log.WarnContext(ctx, "root keys: not done yet", "error", err)
		}
		g.tending.Store(&err)
		if mine {
			changed = nil // it sees that it lost the turn when it is next needed
		}
		select {
		case <-tick.C:
		case <-g.tender:
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// tendOnce does what the server is there for whose turn it is; the others say what a shred waits for, as far as they know.
func (g *Guard) tendOnce(ctx context.Context, mine bool) error {
	if !mine {
		f, _, err := g.forgetting(ctx)
		if err != nil || f.Before == 0 {
			return err
		}
		return g.backupsExpired(ctx, f.Before)
	}
	if err := g.schedule(ctx); err != nil {
		return fmt.Errorf("shred on schedule: %w", err)
	}
	return g.Tend(ctx)
}

// schedule begins a shred when one is due: something was destroyed that is not erased, the last one was asked for long enough ago, and none waits.
func (g *Guard) schedule(ctx context.Context) error {
	if g.shredEvery == 0 || len(g.Detected()) > 0 {
		return nil
	}
	last, began := g.index.shreds()
	if last.IsZero() {
		last = began
	}
	if n, _ := g.index.withdrawn(materialPrefix); n == 0 || g.now().Before(last.Add(g.shredEvery)) {
		return nil
	}
	f, _, err := g.forgetting(ctx)
	if err != nil || f.Before != 0 || len(g.keys.Load().older()) > 0 {
		return err
	}
	_, err = g.Turn(ctx, g.System("schedule", policy.ActShred, policy.Resource{}), true)
	return err
}

func (g *Guard) wakeTender() {
	select {
	case g.tender <- struct{}{}:
	default:
	}
}

// Tend takes the turn that is in flight as far as it can go now: it seals again, takes the older generation out of the root record, has the
// sealers forget. Run calls it. nil: nothing is left to do. fault.InUse while backups have to be kept.
func (g *Guard) Tend(ctx context.Context) error {
	if err := g.refuse(); err != nil {
		return err
	}
	select { // one at a time, and nobody waits longer than its context
	case g.further <- struct{}{}:
		defer func() { <-g.further }()
	case <-ctx.Done():
		return fault.Wrap(fault.Canceled, "root keys", ctx.Err())
	}
	for range tendTries {
		if err := g.furtherOnce(ctx); fault.CodeOf(err) != fault.Conflict {
			return err
		}
	}
	return fault.New(fault.Conflict, "root keys")
}

// tendTries bounds how often other servers may be faster in one Tend. Each time one was, the turn has come further.
const tendTries = 8

// furtherOnce is one attempt of Tend. fault.Conflict when another server has taken the turn further meanwhile.
func (g *Guard) furtherOnce(ctx context.Context) error {
	if err := g.latest(ctx); err != nil { // another server may have made another root key
		return err
	}
	r := g.keys.Load()
	if len(r.older()) > 0 {
		if err := g.index.wait(ctx, r.rev); err != nil { // it knows all rooms that something is under an older generation in
			return err
		}
		for {
			left, err := g.reseal(ctx, r.current.generation)
			if err != nil {
				return err
			}
			if left == 0 {
				break
			}
		}
		if err := g.retire(ctx, r); err != nil {
			return err
		}
	}
	return g.forget(ctx)
}

// reseal makes one pass over everything and seals again what is under a generation older than current. left is how many records it found so; those
// that somebody else wrote meanwhile are done already.
func (g *Guard) reseal(ctx context.Context, current uint64) (left int, err error) {
	for _, room := range g.index.rooms() {
		if room == "seal/" {
			continue
		}
		var paths []string
		_, records := g.store.List(ctx, room)
		for r, err := range records {
			if err != nil {
				return left, storeFault(room, err)
			}
			if generationOf(r.Value) < current {
				paths = append(paths, r.Key)
			}
		}
		left += len(paths)
		if err := g.resealAll(ctx, paths); err != nil {
			return left, err
		}
	}
	return left, nil
}

func (g *Guard) resealAll(ctx context.Context, paths []string) error {
	p := g.System("roots", actReseal, policy.Resource{})
	for len(paths) > 0 {
		var conds []Cond
		var writes []Write
		size := 0
		for len(paths) > 0 && len(writes) < sealBatch && size < sealBytes {
			rec, err := g.Get(ctx, paths[0])
			if err != nil && fault.CodeOf(err) != fault.NotFound {
				return err
			}
			if err == nil && size > 0 && size+len(rec.Value) > sealBytes {
				break
			}
			paths = paths[1:]
			if err != nil {
				continue // deleted meanwhile
			}
			size += len(rec.Value)
			conds, writes = append(conds, Cond{Path: rec.Path, Rev: rec.Rev}), append(writes, Write{Path: rec.Path, Value: rec.Value})
		}
		if len(writes) == 0 {
			continue
		}
		_, err := p.Commit(ctx, conds, writes, map[string]string{"generation": number(g.keys.Load().current.generation)})
		if err != nil && fault.CodeOf(err) != fault.Conflict { // the next pass finds what somebody else was faster with
			return err
		}
	}
	return nil
}

// retire takes the older generations out of the root record r: a pass has found nothing under them, nobody writes under them any more, and
// what they tagged in the log is in order. r is the one that the pass was made for: of generations that became older since nothing is known,
// and everything may be under them. fault.Conflict when the root record is another one by now.
func (g *Guard) retire(ctx context.Context, r *roots) error {
	if err := g.audit.Settled(ctx); err != nil {
		return err
	}
	f, frev, err := g.forgetting(ctx)
	if err != nil {
		return err
	}
	for generation, wraps := range r.record.Older {
		for id, blob := range wraps {
			f.keep(generation, id, blob)
		}
	}
	logs, err := g.retiredLogs(ctx, r)
	if err != nil {
		return err
	}
	rec := r.record
	rec.Older = nil
	rec.Tag = rec.tag(r.current.root)
	p := g.System("roots", actRetireRoot, policy.Resource{})
	return g.putRoot(ctx, p, r, rec, f, frev, []Write{logs}, map[string]string{"generation": number(rec.root()), "retired": numbers(r.older())})
}

// retiredLogs adds the log keys of the generations of r that are older to those that are kept. The root record that it is committed with is
// its condition: whoever changes the one changes the other.
func (g *Guard) retiredLogs(ctx context.Context, r *roots) (Write, error) {
	logs := logKeys{}
	rec, err := g.Get(ctx, logKeysPath)
	if err == nil {
		logs = parseLogKeys(rec.Value)
	} else if fault.CodeOf(err) != fault.NotFound {
		return Write{}, err
	}
	for _, generation := range r.older() {
		logs[generation] = r.all[generation].log
	}
	return Write{Path: logKeysPath, Value: logs.encode()}, nil
}

// forget has every sealer forget the generations that a shred asked for, proves that their wraps do not open, and says so in the log.
func (g *Guard) forget(ctx context.Context) error {
	f, frev, err := g.forgetting(ctx)
	if err != nil || f.Before == 0 {
		return err
	}
	if err := g.backupsExpired(ctx, f.Before); err != nil {
		return err
	}
	r := g.keys.Load()
	if r.current.generation < f.Before || len(r.record.Older) > 0 {
		return fault.New(fault.InUse, "root generation "+number(r.current.generation))
	}
	asked, gone, err := g.forgetAll(ctx, r, f)
	if err != nil {
		return fault.Wrap(fault.GateClosed, "erasure before generation "+number(f.Before), err).WithHint("destroyed versions stay withdrawn, not erased")
	}
	detail := map[string]string{"generation": number(f.Before), "sealers": strings.Join(asked, ", "), "asked_by": f.By}
	if len(gone) > 0 {
		detail["gone"] = strings.Join(gone, ", ")
	}
	for generation := range f.Wraps {
		if generation < f.Before {
			delete(f.Wraps, generation)
		}
	}
	_, still := g.index.wrappers(f.Before)
	maps.DeleteFunc(f.Gone, func(id string, _ time.Time) bool { return !still[id] })
	f.Before, f.Seal, f.Asked, f.By = 0, 0, time.Time{}, ""
	value, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode what to forget: %w", err)
	}
	p := g.System("roots", actErase, policy.Resource{})
	rev, err := p.Commit(ctx, []Cond{{Path: forgetPath, Rev: frev}}, []Write{{Path: forgetPath, Value: value}}, detail)
	if err != nil {
		return err
	}
	return g.index.wait(ctx, rev)
}

// forgetAll makes every sealer forget that has wrapped what is to be forgotten, also those that left the wrap set since. gone are those that
// nobody has any more.
func (g *Guard) forgetAll(ctx context.Context, r *roots, f forgetting) (asked, gone []string, err error) {
	here := map[string]seal.Sealer{}
	for _, s := range *g.sealers.Load() {
		here[s.ID()] = s
	}
	var failed []error
	ids, _ := g.index.wrappers(f.Before)
	for _, id := range ids {
		s := here[id]
		if _, member := r.record.Wraps[id]; !member {
			if _, ok := f.Gone[id]; ok {
				gone = append(gone, id)
				continue
			}
			if former := g.former.Load(); s == nil && former != nil {
				s = (*former)(id, f.wrapOf(id))
			}
			if err := forgetOne(ctx, id, s, f); err != nil {
				failed = append(failed, fmt.Errorf("%w; it left the wrap set: configure it again until it has forgotten, or, when nobody has it any more: rotor server sealer gone", err))
			}
		} else {
			failed = append(failed, forgetOne(ctx, id, s, f))
		}
		asked = append(asked, id)
	}
	return asked, gone, errors.Join(failed...)
}

// SealerGone notes that nobody has a sealer any more that left the wrap set, so that no shred waits for it: a key file or shares that were
// destroyed. fault.NotFound when it has wrapped nothing that is left, InUse while it is in the set.
func (g *Guard) SealerGone(ctx context.Context, p *Permit, id string) error {
	rec, _, err := g.rootNow(ctx)
	if err != nil {
		return err
	}
	if _, member := rec.Wraps[id]; member {
		return fault.New(fault.InUse, "sealer "+id).WithHint("it is in the wrap set; remove it first")
	}
	if !slices.Contains(g.index.outside(rec.Wraps), id) {
		return fault.New(fault.NotFound, "sealer "+id).WithHint("rotor server roots lists those that left, as outside")
	}
	f, frev, err := g.forgetting(ctx)
	if err != nil {
		return err
	}
	f.Gone[id] = g.now().UTC()
	value, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode what to forget: %w", err)
	}
	_, err = p.Commit(ctx, []Cond{{Path: forgetPath, Rev: frev}}, []Write{{Path: forgetPath, Value: value}}, map[string]string{"change": "gone", "sealer": id})
	if err == nil {
		g.wakeTender()
	}
	return err
}

// SetFormer says how a sealer is found that left the wrap set, by its ID and a wrap that it made, if there is one left; it may return nil.
func (g *Guard) SetFormer(find func(id string, blob []byte) seal.Sealer) { g.former.Store(&find) }

// forgetOne makes one sealer forget, and tries what it must not open any more.
func forgetOne(ctx context.Context, id string, s seal.Sealer, f forgetting) error {
	if s == nil {
		return fmt.Errorf("%s: not configured at this server", id)
	}
	if err := s.Forget(ctx, f.Seal); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	for generation, wraps := range f.Wraps {
		blob, ok := wraps[id]
		if !ok || generation >= f.Before {
			continue
		}
		root, err := s.Unwrap(ctx, blob)
		if err == nil {
			root.Destroy()
			return fmt.Errorf("%s: it still opens generation %d", id, generation)
		}
		if !errors.Is(err, seal.ErrForgotten) && !errors.Is(err, seal.ErrWrongSealer) {
			return fmt.Errorf("%s: whether it opens generation %d is not known: %w", id, generation, err)
		}
	}
	return nil
}

// backupsExpired waits for backups that only an older generation opens. fault.InUse names the last of them.
func (g *Guard) backupsExpired(ctx context.Context, before uint64) error {
	all, err := g.Backups(ctx)
	if err != nil {
		return err
	}
	var last Backup
	for _, b := range all {
		if b.Generation < before && b.Expires.After(last.Expires) {
			last = b
		}
	}
	if last.Expires.After(g.now()) {
		return fault.New(fault.InUse, "backup "+last.ID).WithHint("it is kept until %s: what it holds is erased after that, or once rotor backup forget says that it is gone", last.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// Roots says how far the root keys are.
type Roots struct {
	Generation uint64
	Since      time.Time // when it became the current one
	Older      []uint64  // that records may still be under
	Sealers    []string  // the wrap set
	Outside    []string  // sealers that were in it, and that have not forgotten: who keeps one opens copies of the store from then
	Withdrawn  int       // destroyed materials that are not erased yet
	Erased     time.Time
	Asked      time.Time // a shred that is not done; zero: none
	Why        error     // what it waits for; nil: it is at work
}

// Roots says how far the root keys are.
func (g *Guard) Roots(ctx context.Context) (Roots, error) {
	if len(g.Detected()) == 0 {
		if err := g.latest(ctx); err != nil { // the wrap set may have changed
			return Roots{}, err
		}
	}
	r := g.keys.Load()
	f, _, err := g.forgetting(ctx)
	if err != nil {
		return Roots{}, err
	}
	out := Roots{Generation: r.current.generation, Since: g.index.rooted(), Older: r.older(), Sealers: slices.Sorted(maps.Keys(r.record.Wraps)), Asked: f.Asked}
	out.Outside = slices.DeleteFunc(g.index.outside(r.record.Wraps), func(id string) bool {
		_, gone := f.Gone[id]
		return gone
	})
	out.Withdrawn, out.Erased = g.index.withdrawn(materialPrefix)
	if why := g.tending.Load(); why != nil {
		out.Why = *why
	}
	return out, nil
}

// Erased says when what stood at a path that was deleted was erased: when every sealer had forgotten the root generations that it was
// ever sealed under. false: it may still open for who has an old copy of the store and the seal.
func (g *Guard) Erased(path string) (time.Time, bool) { return g.index.erasedAt(path) }

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func numbers(all []uint64) string {
	var out []string
	for _, n := range all {
		out = append(out, number(n))
	}
	return strings.Join(out, " ")
}

// rootEntry reads back what an entry says of the root keys. ok: it is one of them.
func rootEntry(e audit.Entry) (generation uint64, ok bool) {
	if e.Outcome != "done" || e.Class != audit.ClassChange {
		return 0, false
	}
	switch policy.Action(e.Action) {
	case policy.ActRotateRoot, policy.ActShred, actErase:
	default:
		return 0, false
	}
	generation, err := strconv.ParseUint(e.Detail["generation"], 10, 64)
	return generation, err == nil
}
