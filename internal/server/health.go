package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/wire"
)

// Check is one of the things that have to hold before a server may get requests.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
}

// Readiness is the answer of all checks.
type Readiness struct {
	Ready  bool    `json:"ready"`
	Checks []Check `json:"checks"`
}

// health decides whether a server is ready.
type health struct {
	guard    *guard.Guard
	seals    *sealing.Keeper
	draining atomic.Bool
	patience time.Duration // that a check may take
	kept     time.Duration // that its answer stands for, so that strangers who ask cost the store nothing

	mu   sync.Mutex // guards what follows; held over a look, so that there is one at a time
	at   time.Time
	last Readiness
}

func newHealth(g *guard.Guard, k *sealing.Keeper) *health {
	return &health{guard: g, seals: k, patience: 2 * time.Second, kept: time.Second}
}

// look makes the checks, or answers what they said less than h.kept ago. Draining is always what it is now.
func (h *health) look(ctx context.Context) Readiness {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at.IsZero() || time.Since(h.at) > h.kept {
		h.last, h.at = h.check(ctx), time.Now()
	}
	out := Readiness{Ready: h.last.Ready && !h.draining.Load(), Checks: append([]Check(nil), h.last.Checks...)}
	return Readiness{out.Ready, append(out.Checks, checked("draining", h.drain()))}
}

func (h *health) drain() error {
	if h.draining.Load() {
		return fault.New(fault.Unavailable, "server").WithHint("it stops")
	}
	return nil
}

// sealed is why the server seals itself now. One that is sealed has no health; it answers for itself.
func (h *health) sealed() error {
	if why := h.seals.Why(); why != "" {
		return why.Fault()
	}
	return nil
}

func (h *health) check(ctx context.Context) Readiness {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.patience)
	defer cancel()
	rev, err := h.guard.Reach(ctx)
	checks := []Check{checked("unsealed", h.sealed()), checked("store", err)}
	if err == nil {
		err = h.guard.Followed(ctx, rev)
	}
	checks = append(checks, checked("log", err))
	out := Readiness{Ready: true, Checks: checks}
	for _, c := range checks {
		out.Ready = out.Ready && c.OK
	}
	return out
}

func checked(name string, err error) Check {
	c := Check{Name: name, OK: err == nil}
	if err != nil {
		c.Reason = err.Error()
	}
	return c
}

// alive answers everybody: the process runs and its listener takes requests.
func alive(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "ok\n") // the client is gone when this fails
}

// ready answers strangers with a bare 200 or 503, and who may see the status with the reasons.
func (h *health) ready(w http.ResponseWriter, r *http.Request) {
	state := h.look(r.Context())
	status, text := http.StatusOK, "ready\n"
	if !state.Ready {
		status, text = http.StatusServiceUnavailable, "not ready\n"
		wire.Failed(r.Context(), fault.New(fault.Unavailable, "server"))
	}
	w.Header().Set("Cache-Control", "no-store")
	if !h.guard.Allows(wire.Caller(r.Context()), policy.ActStatus, policy.Resource{}) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text) // the client is gone when this fails
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(state) // the client is gone when this fails
}
