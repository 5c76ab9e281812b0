package guard

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// windowLength is how long one class-3 entry stands for.
const windowLength = time.Minute

// windowKey is what a window counts. A caller's permit is not kept: it has the request that it came with, and what that was to encrypt.
type windowKey struct {
	caller, namespace, key string
	action                 policy.Action
	version                uint32
}

// entry is what the log says of a window.
func (k windowKey) entry(g *Guard, rule, outcome string, detail map[string]string) audit.Entry {
	p := Permit{guard: g, caller: policy.Caller{Name: k.caller}, action: k.action, resource: policy.Resource{Namespace: k.namespace, Key: k.key}, rule: rule}
	detail["version"] = fmt.Sprint(k.version)
	return p.entry(audit.ClassUse, outcome, detail)
}

// window counts uses within one minute. There is one of each version that was used, so it is small.
type window struct {
	mu     sync.Mutex // guards what follows; held while the entry is written
	minute int64      // that the open entry was written for; 0: none
	id     [8]byte    // joins the open entry to the closed one
	count  uint64
	closed bool   // its count is written and the window out of use
	rule   string // by which its first use was allowed
}

// windows are the open windows. Guarded by mu.
type windows struct {
	mu  sync.RWMutex
	all map[windowKey]*window
	// unwritten are counts for which the store had no room. They are of the minute in which it filled: without room no window opens.
	unwritten []audit.Entry
}

// kept takes the counts that wait for room.
func (ws *windows) kept() []audit.Entry {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	entries := ws.unwritten
	ws.unwritten = nil
	return entries
}

// keep holds counts until there is room.
func (ws *windows) keep(entries []audit.Entry) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.unwritten = append(ws.unwritten, entries...)
}

func (ws *windows) of(k windowKey, rule string) *window {
	ws.mu.RLock()
	w := ws.all[k]
	ws.mu.RUnlock()
	if w != nil {
		return w
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w = ws.all[k]; w == nil {
		w = &window{rule: strings.Clone(rule)}
		k.caller, k.namespace, k.key = strings.Clone(k.caller), strings.Clone(k.namespace), strings.Clone(k.key) // they may be parts of the request
		ws.all[k] = w
	}
	return w
}

// drop takes a closed window out, unless another has taken its place.
func (ws *windows) drop(k windowKey, w *window) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all[k] == w {
		delete(ws.all, k)
	}
}

// Use records bulk use of a key version: the first use in a minute waits until a window-open entry is durable, later ones
// only count.
func (p *Permit) Use(ctx context.Context, version uint32) error {
	return p.UseN(ctx, version, 1)
}

// UseN is Use of a request that uses the version so many times.
func (p *Permit) UseN(ctx context.Context, version uint32, n uint64) error {
	if p == nil || p.guard == nil {
		return fault.New(fault.Denied, "no permit")
	}
	if err := p.guard.refuse(); err != nil {
		return err
	}
	k := windowKey{p.caller.Name, p.resource.Namespace, p.resource.Key, p.action, version}
	ws := &p.guard.windows
	for {
		w := ws.of(k, p.rule)
		counted, err := w.use(ctx, p, k, n)
		if counted || err != nil {
			return err
		}
		ws.drop(k, w)
	}
}

// use counts n uses, unless the window was closed since it was looked up.
func (w *window) use(ctx context.Context, p *Permit, k windowKey, n uint64) (counted bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false, nil
	}
	if minute := p.guard.minute(); w.minute != minute {
		if err := w.open(ctx, p, k, minute); err != nil {
			return false, err
		}
	}
	w.count += n
	return true, nil
}

// open closes the window's last minute and opens another, in one commit. Call with mu held.
func (w *window) open(ctx context.Context, p *Permit, k windowKey, minute int64) error {
	var id [8]byte
	rand.Read(id[:])
	opening := k.entry(p.guard, p.rule, "open", map[string]string{"window": hex.EncodeToString(id[:])})
	if err := p.guard.audit.Append(ctx, append(w.closing(p.guard, k), opening)...); err != nil {
		return storeFault(string(p.action), err)
	}
	w.count, w.minute, w.id = 0, minute, id
	return nil
}

// closing is the entry with the count. Call with mu held.
func (w *window) closing(g *Guard, k windowKey) []audit.Entry {
	if w.minute == 0 {
		return nil
	}
	return []audit.Entry{k.entry(g, w.rule, "closed", map[string]string{"window": hex.EncodeToString(w.id[:]), "count": fmt.Sprint(w.count)})}
}

func (g *Guard) minute() int64 { return g.now().Unix() / int64(windowLength/time.Second) }

// sweep closes the windows that were not used in the last minute, until ctx ends. A store that is full or away ends it as little as it ends Follow;
// one that is damaged or closed does.
func (g *Guard) sweep(ctx context.Context) error {
	tick := time.NewTicker(windowLength)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			err := g.CloseWindows(ctx, false)
			if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrClosed) || fault.CodeOf(err) == fault.AuditBroken {
				return err
			}
			if err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "counts of uses: not written yet", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// CloseWindows writes the counts of windows and of repeated refusals; all: of the present minute too, as when the server stops. What the
// store does not take is kept for the next call, but for entries of which it is not known whether it did: written again they would count twice.
func (g *Guard) CloseWindows(ctx context.Context, all bool) error {
	if len(g.Detected()) > 0 { // nothing more is written to a store that is not the one that it was
		return nil
	}
	minute := g.minute()
	g.windows.mu.RLock()
	open := maps.Clone(g.windows.all)
	g.windows.mu.RUnlock()
	entries := append(g.windows.kept(), g.refusals.end(minute, all)...)
	for k, w := range open {
		w.mu.Lock()
		if !w.closed && (all || w.minute != minute) {
			w.closed = true
			entries = append(entries, w.closing(g, k)...)
		}
		closed := w.closed
		w.mu.Unlock()
		if closed {
			g.windows.drop(k, w)
		}
	}
	for len(entries) > 0 {
		n := min(len(entries), 50)
		if err := g.audit.Append(ctx, entries[:n]...); err != nil {
			if errors.Is(err, store.ErrUnknown) {
				entries = entries[n:]
			}
			g.windows.keep(entries)
			return fmt.Errorf("close use windows: %w", err)
		}
		entries = entries[n:]
	}
	return nil
}
