package storetest_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
	"github.com/rotorkms/rotor/internal/store/storetest"
)

// world is one store in memory that several handles share, with connections that break. A fault is what a bad engine would do.
type world struct {
	fault string

	mu    sync.Mutex // guards what follows
	under *mem.Store
	cuts  int
	calls int
}

// handle is one server's.
type handle struct {
	w      *world
	ctx    context.Context
	cancel context.CancelCauseFunc
	first  bool
	stale  map[string]store.Record // guarded by w.mu
}

func (w *world) engine() storetest.Engine {
	return storetest.Engine{
		Open: func(_ *testing.T, history int) store.Store {
			w.mu.Lock()
			w.under, w.cuts = mem.NewHistory(history), 0
			w.mu.Unlock()
			return w.handle(true)
		},
		Again: func(*testing.T, int) store.Store { return w.handle(false) },
		Cut: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.cuts = 3
		},
	}
}

func (w *world) handle(first bool) *handle {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &handle{w: w, ctx: ctx, cancel: cancel, first: first, stale: map[string]store.Record{}}
}

// broken says whether the connection of this call breaks.
func (w *world) broken() (bool, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	if w.cuts > 0 {
		w.cuts--
		return true, w.calls
	}
	return false, w.calls
}

// errLost is a connection that broke before anything was written.
var errLost = errors.New("connection lost")

func (h *handle) Get(ctx context.Context, key string) (store.Record, error) {
	if h.ctx.Err() != nil {
		return store.Record{}, store.ErrClosed
	}
	r, err := h.w.under.Get(ctx, key)
	if h.w.fault == "stale reads" && !h.first && err == nil {
		h.w.mu.Lock()
		defer h.w.mu.Unlock()
		old, there := h.stale[key]
		h.stale[key] = r
		if there {
			return old, nil
		}
	}
	return r, err
}

func (h *handle) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	if h.ctx.Err() != nil {
		return 0, func(yield func(store.Record, error) bool) { yield(store.Record{}, store.ErrClosed) }
	}
	rev, all := h.w.under.List(ctx, prefix)
	if h.w.fault == "list at a later revision" && !h.first && rev > 0 {
		rev++
	}
	return rev, all
}

func (h *handle) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if h.ctx.Err() != nil {
		return 0, store.ErrClosed
	}
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	if h.w.fault == "conditions of the second handle" && !h.first {
		conds = nil
	}
	broken, n := h.w.broken()
	switch {
	case !broken:
		return h.w.under.Commit(ctx, conds, ops)
	case n%3 == 0:
		return 0, errLost
	case n%3 == 1:
		return 0, fmt.Errorf("%w: before it was sent", store.ErrUnknown)
	}
	rev, err := h.w.under.Commit(ctx, conds, ops)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", errLost, store.ErrUnknown)
	case h.w.fault == "written, and an error that denies it":
		return 0, errLost
	case h.w.fault == "blind retry":
		return h.w.under.Commit(ctx, nil, ops)
	case h.w.fault == "acknowledged, and lost":
		_, _ = h.w.under.Commit(ctx, nil, []store.Op{{Key: "mark", Delete: true}})
		return rev + 1, nil
	}
	return 0, fmt.Errorf("%w: after it was sent", store.ErrUnknown)
}

func (h *handle) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		run, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(h.ctx, cancel)()
		n := 0
		var held []store.Event
		for events, err := range h.w.under.Watch(run, prefix, after) {
			if h.ctx.Err() != nil {
				err, events = store.ErrClosed, nil
			}
			n++
			switch {
			case err != nil || h.first || n < 10:
			case h.w.fault == "watch misses" && n == 11, h.w.fault == "half a commit" && len(events) > 1 && len(events[1:]) == 0:
				continue
			case h.w.fault == "half a commit" && len(events) > 1:
				events = events[:1]
			case h.w.fault == "watch repeats" && n == 11:
				if !yield(slices.Clone(events), nil) {
					return
				}
			case h.w.fault == "watch reorders" && n == 11:
				held = events
				continue
			}
			if !yield(events, err) || err != nil {
				return
			}
			if held != nil {
				if !yield(held, nil) {
					return
				}
				held = nil
			}
		}
	}
}

func (h *handle) Close() error {
	h.cancel(store.ErrClosed)
	return nil
}

const faultWord = "ROTOR_STORETEST_FAULT"

// TestSuite: the suite passes a good engine with several handles and breaking connections. With a fault in the environment it must fail.
func TestSuite(t *testing.T) {
	storetest.Run(t, (&world{fault: os.Getenv(faultWord)}).engine())
}

// TestSuiteFindsFaults runs the suite on bad engines, each in a process of its own.
func TestSuiteFindsFaults(t *testing.T) {
	if os.Getenv(faultWord) != "" {
		return // this is the child, which runs TestSuite alone
	}
	for fault, name := range map[string]string{
		"stale reads":                          "SharedReads",
		"list at a later revision":             "SharedReads",
		"conditions of the second handle":      "SharedLinearizable",
		"written, and an error that denies it": "Disturbed",
		"blind retry":                          "Disturbed",
		"acknowledged, and lost":               "Disturbed",
		"watch misses":                         "SharedWatch",
		"watch repeats":                        "SharedWatch",
		"watch reorders":                       "SharedWatch",
		"half a commit":                        "SharedWatch",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuite$/^"+name+"$")
			cmd.Env = append(os.Environ(), faultWord+"="+fault)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("%s passed an engine that does: %s: %v\n%s", name, fault, err, out)
			}
		})
	}
}
