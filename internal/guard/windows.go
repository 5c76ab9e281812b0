package guard

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
)

// windowLength is how long one class-3 entry stands for.
const windowLength = time.Minute

// windowKey is what a window counts.
type windowKey struct {
	caller, namespace, key string
	action                 policy.Action
	version                uint32
}

// window counts uses within one minute.
type window struct {
	minute atomic.Int64 // that the open entry was written for; 0: none
	count  atomic.Uint64
	mu     sync.Mutex // held while the entry is written
	permit Permit
}

// windows are the open windows. Guarded by mu.
type windows struct {
	mu  sync.RWMutex
	all map[windowKey]*window
}

// Use records bulk use of a key version: the first use in a minute waits until a window-open entry is durable, later ones
// only count.
func (p *Permit) Use(ctx context.Context, version uint32) error {
	if p == nil || p.guard == nil {
		return fault.New(fault.Denied, "no permit")
	}
	k := windowKey{p.caller.Name, p.resource.Namespace, p.resource.Key, p.action, version}
	ws := &p.guard.windows
	ws.mu.RLock()
	w := ws.all[k]
	ws.mu.RUnlock()
	if w == nil {
		ws.mu.Lock()
		if w = ws.all[k]; w == nil {
			w = &window{permit: *p}
			ws.all[k] = w
		}
		ws.mu.Unlock()
	}
	minute := p.guard.now().Unix() / int64(windowLength/time.Second)
	if w.minute.Load() != minute {
		if err := w.open(ctx, p, version, minute); err != nil {
			return err
		}
	}
	w.count.Add(1)
	return nil
}

// open closes the window's last minute and opens another, in one commit.
func (w *window) open(ctx context.Context, p *Permit, version uint32, minute int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.minute.Load() == minute {
		return nil
	}
	entries := append(w.closing(version), p.entry(audit.ClassUse, "open", map[string]string{"version": fmt.Sprint(version)}))
	if err := p.guard.audit.Append(ctx, entries...); err != nil {
		return storeFault(string(p.action), err)
	}
	w.count.Store(0)
	w.minute.Store(minute)
	return nil
}

func (w *window) closing(version uint32) []audit.Entry {
	if w.minute.Load() == 0 {
		return nil
	}
	return []audit.Entry{w.permit.entry(audit.ClassUse, "closed", map[string]string{
		"version": fmt.Sprint(version), "count": fmt.Sprint(w.count.Load()),
	})}
}

// sweep closes the windows that were not used in the last minute, until ctx ends; then all that are open.
func (g *Guard) sweep(ctx context.Context) error {
	tick := time.NewTicker(windowLength)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := g.CloseWindows(ctx, false); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// CloseWindows writes the counts of windows; all: of the present minute too, as when the server stops.
func (g *Guard) CloseWindows(ctx context.Context, all bool) error {
	minute := g.now().Unix() / int64(windowLength/time.Second)
	g.windows.mu.Lock()
	done := map[windowKey]*window{}
	for k, w := range g.windows.all {
		if all || w.minute.Load() < minute {
			done[k] = w
			delete(g.windows.all, k)
		}
	}
	g.windows.mu.Unlock()
	var entries []audit.Entry
	for k, w := range done {
		w.mu.Lock()
		entries = append(entries, w.closing(k.version)...)
		w.mu.Unlock()
	}
	for len(entries) > 0 {
		n := min(len(entries), 50)
		if err := g.audit.Append(ctx, entries[:n]...); err != nil {
			return fmt.Errorf("close use windows: %w", err)
		}
		entries = entries[n:]
	}
	return nil
}

// refusalKey is what repeated refusals are counted under.
type refusalKey struct {
	caller string
	action policy.Action
	key    string
}

// maxRefusals bounds the refusals that are told apart; what comes beyond shares one counter.
const maxRefusals = 10_000

// refusals are the refusals of the present minute. Guarded by mu.
type refusals struct {
	mu     sync.Mutex
	minute int64
	counts map[refusalKey]uint64
}

// refused writes the entry of a refusal, once a minute for the same one; the next minute's entry carries the count of the last.
func (g *Guard) refused(ctx context.Context, c policy.Caller, a policy.Action, r policy.Resource) error {
	k := refusalKey{c.Name, a, r.Key}
	minute := g.now().Unix() / 60
	rs := &g.refusals
	rs.mu.Lock()
	if rs.minute != minute {
		rs.minute, rs.counts = minute, map[refusalKey]uint64{}
	}
	if _, known := rs.counts[k]; !known && len(rs.counts) >= maxRefusals {
		k = refusalKey{caller: "others"}
	}
	rs.counts[k]++
	first := rs.counts[k] == 1
	rs.mu.Unlock()
	if !first {
		return nil
	}
	p := Permit{guard: g, caller: c, action: a, resource: r}
	if err := g.audit.Append(ctx, p.entry(audit.ClassRelease, "refused", nil)); err != nil {
		return storeFault(string(a), err)
	}
	return nil
}
