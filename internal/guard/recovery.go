package guard

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// This file brings a store that is not the one that it was back into use. A recovery begins the next incarnation of the cluster.

const (
	incarnationPath = "guard/incarnation"
	recoveryPath    = "guard/recovery"
	// actIncarnation stands in the log for the end of a recovery; policy.ActRecover for each step.
	actIncarnation policy.Action = "server.incarnation"
)

// Recovering is a recovery that was asked for.
type Recovering struct {
	Asked    time.Time `json:"asked"`
	NotUntil time.Time `json:"not_until,omitzero"` // when it may begin without custodians; zero: never
	By       string    `json:"by"`
	Detected string    `json:"detected"`
	Approved time.Time `json:"approved,omitzero"`     // by custodians; zero: not yet
	Approver string    `json:"approved_by,omitempty"` // whose shares did
	Target   uint32    `json:"target,omitempty"`      // the incarnation that it leads to, once it has begun
}

// May says whether it may begin, or go on.
func (r Recovering) May(now time.Time) bool {
	return r.Target != 0 || !r.Approved.IsZero() || !r.NotUntil.IsZero() && !now.Before(r.NotUntil)
}

// recovering reads what stands in the store, also what came back with an older copy of it.
func (g *Guard) recovering(ctx context.Context) (Recovering, error) {
	var out Recovering
	r, err := g.Get(ctx, recoveryPath)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(r.Value, &out); err != nil {
		return out, fault.Wrap(fault.RecordTampered, recoveryPath, err)
	}
	return out, nil
}

// Recovering reads what was asked for. One that the cluster has signed statements after is of a time that is over: it came back with the copy of
// the store, and neither its announcement nor its approval is for this recovery. fault.NotFound.
func (g *Guard) Recovering(ctx context.Context) (Recovering, error) {
	r, err := g.recovering(ctx)
	if err == nil && g.overtaken(r) {
		return Recovering{}, fault.New(fault.NotFound, "recovery").WithHint("one that is older than the newest statement is in the store; announce it anew")
	}
	return r, err
}

func (g *Guard) overtaken(r Recovering) bool {
	last, _ := g.convicted.get()
	return last.After(r.Asked)
}

// AskRecovery announces a recovery in log and status; it may begin after the delay, or, with a negative one, once custodians approve alone.
// fault.Exists when one is announced, WrongState when there is nothing to recover from.
func (g *Guard) AskRecovery(ctx context.Context, by string, delay time.Duration) (Recovering, error) {
	if len(g.Detected()) == 0 {
		return Recovering{}, fault.New(fault.WrongState, "store").WithHint("nothing is wrong with it")
	}
	now := g.now().UTC()
	r := Recovering{Asked: now, By: by, Detected: detections(g.Detected())}
	if delay >= 0 {
		r.NotUntil = now.Add(delay)
	}
	var rev store.Rev
	if old, err := g.recovering(ctx); err == nil && g.overtaken(old) {
		rec, err := g.Get(ctx, recoveryPath)
		if err != nil {
			return Recovering{}, err
		}
		rev = rec.Rev
	}
	err := g.putRecovering(ctx, r, rev, "ask")
	if fault.CodeOf(err) == fault.Conflict {
		return r, fault.New(fault.Exists, "recovery")
	}
	return r, err
}

// ApproveRecovery notes that custodians approve the announced recovery. Their shares have been proven by then. fault.NotFound, WrongState once
// it has begun, Conflict.
func (g *Guard) ApproveRecovery(ctx context.Context, by string) error {
	rec, err := g.Get(ctx, recoveryPath)
	if err != nil {
		return err
	}
	r, err := g.Recovering(ctx)
	if err != nil {
		return err
	}
	if r.Target != 0 {
		return fault.New(fault.WrongState, "recovery").WithHint("it has begun; finish it")
	}
	r.Approved, r.Approver = g.now().UTC(), by
	return g.putRecovering(ctx, r, rec.Rev, "approve")
}

// CancelRecovery takes an announced recovery back. fault.NotFound, WrongState once it has begun.
func (g *Guard) CancelRecovery(ctx context.Context) error {
	rec, err := g.Get(ctx, recoveryPath)
	if err != nil {
		return err
	}
	if r, err := g.recovering(ctx); err != nil || r.Target != 0 {
		return fault.Wrap(fault.WrongState, "recovery", err).WithHint("it has begun; finish it")
	}
	p := g.recoverer()
	_, err = p.Commit(ctx, []Cond{{Path: recoveryPath, Rev: rec.Rev}}, []Write{{Path: recoveryPath, Delete: true}}, map[string]string{"step": "cancel"})
	return err
}

func (g *Guard) putRecovering(ctx context.Context, r Recovering, rev store.Rev, step string) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode recovery: %w", err)
	}
	detail := map[string]string{"step": step, "detected": r.Detected, "by": r.By}
	if !r.NotUntil.IsZero() {
		detail["not_until"] = r.NotUntil.Format(time.RFC3339)
	}
	if r.Approver != "" {
		detail["approved_by"] = r.Approver
	}
	at, err := g.recoverer().Commit(ctx, []Cond{{Path: recoveryPath, Rev: rev}}, []Write{{Path: recoveryPath, Value: value}}, detail)
	if err != nil {
		return err
	}
	return g.index.wait(ctx, at)
}

// recoverer is the permit that works while something is detected.
func (g *Guard) recoverer() *Permit {
	p := g.System("recovery", policy.ActRecover, policy.Resource{})
	p.recovers = true
	return p
}

// Past is what a newer log knows.
type Past struct {
	Deleted     map[string]bool   // paths that do not exist at its end
	Exists      map[string]bool   // paths that do
	Incarnation uint32            // the highest
	Highest     map[string]uint64 // key's path (namespace/ID) -> highest version that had material
}

// NewPast is a past that knows nothing; Add gives it entries.
func NewPast() *Past {
	return &Past{Deleted: map[string]bool{}, Exists: map[string]bool{}, Highest: map[string]uint64{}}
}

// Add takes one entry, in the order of the log.
func (p *Past) Add(e audit.Entry) error {
	if n, ok := incarnationEntry(e); ok {
		p.Incarnation = max(p.Incarnation, n)
	}
	for _, w := range e.Writes {
		delete(p.Deleted, w.Path)
		delete(p.Exists, w.Path)
		if w.SHA256 == audit.Deleted {
			p.Deleted[w.Path] = true
		} else {
			p.Exists[w.Path] = true
		}
		if key, n, ok := versionOf(w.Path); ok {
			p.Highest[key] = max(p.Highest[key], n)
		}
	}
	return nil
}

// versionOf takes the path of a version's material apart.
func versionOf(path string) (key string, n uint64, ok bool) {
	rest, ok := strings.CutPrefix(path, materialPrefix)
	if !ok {
		return "", 0, false
	}
	at := strings.LastIndexByte(rest, '/')
	if at < 0 {
		return "", 0, false
	}
	var version uint64
	if _, err := fmt.Sscanf(rest[at+1:], "%d", &version); err != nil {
		return "", 0, false
	}
	return rest[:at], version, true
}

// BeginRecovery makes the store agree with its log, and with the deletions of a newer one if there is, and returns the permit that the
// rest of the recovery commits with and the incarnation that it leads to. It may be called again after a crash. fault.GateClosed before
// the delay is over, unless custodians approved.
func (g *Guard) BeginRecovery(ctx context.Context, past *Past) (*Permit, uint32, error) {
	rec, err := g.Get(ctx, recoveryPath)
	if err != nil {
		return nil, 0, err
	}
	r, err := g.Recovering(ctx)
	if err != nil {
		return nil, 0, err
	}
	if !r.May(g.now()) {
		when := "once custodians approve it"
		if !r.NotUntil.IsZero() {
			when = "at " + r.NotUntil.Format(time.RFC3339)
		}
		return nil, 0, fault.New(fault.GateClosed, "recovery").WithHint("it may begin %s", when)
	}
	if past == nil {
		past = NewPast()
	}
	_, shown := g.convicted.get()
	if target := max(g.Incarnation(), past.Incarnation, shown) + 1; r.Target < target {
		r.Target = target
		if err := g.putRecovering(ctx, r, rec.Rev, "begin"); err != nil {
			return nil, 0, err
		}
	}
	if err := g.keepRoot(ctx); err != nil {
		return nil, 0, err
	}
	if err := g.reconcile(ctx, past); err != nil {
		return nil, 0, err
	}
	return g.recoverer(), r.Target, nil
}

// keepRoot makes the log vouch for the root record that the store was opened with, where that is an older one that somebody put back. Sealers that
// were removed since are in the wrap set again; the entry has the set.
func (g *Guard) keepRoot(ctx context.Context) error {
	r := g.keys.Load()
	rec, err := g.store.Get(ctx, rootPath)
	if err != nil {
		return storeFault(rootPath, err)
	}
	if w, ok := g.index.latest(rootPath); ok && w.hash == digestOf(rec.Value) {
		return nil
	}
	value, err := json.Marshal(r.record)
	if err != nil {
		return fmt.Errorf("encode root: %w", err)
	}
	detail := map[string]string{"step": "root", "set": strings.Join(g.Members(), ", ")}
	at, err := g.recoverer().Commit(ctx, []Cond{{Path: rootPath, Rev: rec.Rev}}, []Write{{Path: rootPath, Value: value, plain: true}}, detail)
	if err != nil {
		return err
	}
	if _, err := g.catchUp(ctx, r); err != nil {
		return err
	}
	return g.index.wait(ctx, at)
}

// reconcile writes what the log and a newer one disagree with.
func (g *Guard) reconcile(ctx context.Context, past *Past) error {
	var todo []forced
	for _, room := range g.index.rooms() {
		seen := map[string]bool{}
		_, records := g.store.List(ctx, room)
		for r, err := range records {
			if err != nil {
				return storeFault(room, err)
			}
			seen[r.Key] = true
			if f, ok := g.judge(r, past); ok {
				todo = append(todo, f)
			}
		}
		for _, path := range g.index.living(room) {
			if !seen[path] {
				todo = append(todo, forced{path: path, why: "lost"})
			}
		}
	}
	for path := range past.Deleted { // of what this store never had: a backup of the key must not bring it back
		if _, known := g.index.latest(path); !known && strings.HasPrefix(path, materialPrefix) {
			todo = append(todo, forced{path: path, why: "deleted by the newer log"})
		}
	}
	for batch := range slices.Chunk(todo, sealBatch/2) {
		if err := g.force(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// forced is a record as a recovery writes it, whatever the log says: nil deletes.
type forced struct {
	path  string
	rev   store.Rev // that it has in the store; 0: it is not there
	value []byte
	why   string
}

// judge says what becomes of a record.
func (g *Guard) judge(r store.Record, past *Past) (forced, bool) {
	if r.Key == rootPath || r.Key == recoveryPath {
		return forced{}, false
	}
	w, known := g.index.latest(r.Key)
	if past.Deleted[r.Key] {
		return forced{path: r.Key, rev: r.Rev, why: "deleted by the newer log"}, true
	}
	if known && !w.deleted && w.hash == digestOf(r.Value) {
		return forced{}, false
	}
	if !known || w.deleted {
		return forced{path: r.Key, rev: r.Rev, why: "not in the log"}, true
	}
	_, value, err := g.keys.Load().open(r.Key, r.Value)
	if err != nil {
		return forced{path: r.Key, rev: r.Rev, why: "tampered"}, true
	}
	return forced{path: r.Key, rev: r.Rev, value: value, why: "replayed"}, true
}

// force commits records with the counters that follow the log's.
func (g *Guard) force(ctx context.Context, batch []forced) error {
	r := g.keys.Load()
	conds := r.fence()
	var ops []store.Op
	p := g.recoverer()
	why := map[string]string{"step": "reconcile"}
	e := p.entry(audit.ClassChange, "done", why)
	for _, f := range batch {
		last, _ := g.index.latest(f.path)
		op, note := r.current.write(Write{Path: f.path, Value: f.value, Delete: f.value == nil}, last.counter+1)
		if f.rev != 0 || !op.Delete {
			ops, conds = append(ops, op), append(conds, store.Cond{Key: f.path, Rev: f.rev})
		}
		e.Writes = append(e.Writes, note)
		e.Detail[clean(f.path, maxText)] = f.why
	}
	op, err := g.audit.Op(e)
	if err != nil {
		return fault.Wrap(fault.TooLarge, "audit entry", err)
	}
	rev, err := g.store.Commit(ctx, conds, append(ops, op))
	if err != nil {
		return storeFault("recover", err)
	}
	return g.index.wait(ctx, rev)
}

// EndRecovery raises the incarnation, which is the end: from then on the store is believed again.
func (g *Guard) EndRecovery(ctx context.Context, target uint32) error {
	rec, err := g.Get(ctx, recoveryPath)
	if err != nil {
		return err
	}
	inc, err := g.Get(ctx, incarnationPath)
	if err != nil && fault.CodeOf(err) != fault.NotFound {
		return err
	}
	if g.Incarnation() >= target {
		return fault.New(fault.WrongState, "incarnation")
	}
	conds := []Cond{{Path: recoveryPath, Rev: rec.Rev}, {Path: incarnationPath, Rev: inc.Rev}}
	writes := []Write{{Path: recoveryPath, Delete: true}, {Path: incarnationPath, Value: []byte(number(uint64(target)))}}
	for _, mark := range []string{RestoredPath, WitnessPath} {
		if _, err := g.store.Get(ctx, mark); err != nil {
			continue
		}
		if _, err := g.store.Commit(ctx, nil, []store.Op{{Key: mark, Delete: true}}); err != nil {
			return storeFault(mark, err)
		}
	}
	p := g.System("recovery", actIncarnation, policy.Resource{})
	p.recovers = true
	rev, err := p.Commit(ctx, conds, writes, map[string]string{"incarnation": number(uint64(target)), "detected": detections(g.Detected())})
	if err != nil {
		return err
	}
	if err := g.index.wait(ctx, rev); err != nil {
		return err
	}
	g.wakeTender()
	return nil
}

// incarnationEntry reads back which incarnation an entry began.
func incarnationEntry(e audit.Entry) (uint32, bool) {
	if policy.Action(e.Action) != actIncarnation || e.Outcome != "done" || e.Class != audit.ClassChange {
		return 0, false
	}
	var n uint32
	_, err := fmt.Sscanf(e.Detail["incarnation"], "%d", &n)
	return n, err == nil
}

// living are the paths under a prefix that the log knows to exist, sorted.
func (x *index) living(prefix string) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for p := range maps.Keys(x.paths) {
		if w := x.paths[p]; !w.deleted && strings.HasPrefix(p, prefix) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

func (x *index) incarnation() uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return max(x.incarnated, 1)
}
