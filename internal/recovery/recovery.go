// Package recovery brings a store that is not the one that it was back into use, once those who may have approved it: custodians with their
// shares, at once, or, where a root of trust opens without people, an administrator after a delay that everybody can see.
package recovery

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/sealing"
	"github.com/rotorkms/rotor/internal/secret"
)

// Config is what a Service needs.
type Config struct {
	Guard *guard.Guard
	Seals *sealing.Keeper // takes custodians' shares; nil: nobody can bring any
	Delay time.Duration   // between the announcement and the recovery, where a root of trust opens without people
	Now   func() time.Time
	Log   *slog.Logger
}

// Service is the recovery of one store. Safe for concurrent use.
type Service struct {
	Config
	doing sync.Mutex // held over a recovery, so that there is one at a time
}

// New makes the service.
func New(c Config) *Service {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{Config: c}
}

// State is how far a recovery is.
type State struct {
	Detected    []string
	Announced   bool
	NotUntil    time.Time          // when it may begin without custodians; zero: never
	Approved    bool               // by custodians
	Shares      []sealing.Progress // that were brought so far
	Canceled    bool
	Done        bool
	Incarnation uint32 // that it has begun
	Keys        int    // that it has gone through
}

// Name is what people call it: announced, approved, canceled, done.
func (s State) Name() string {
	switch {
	case s.Done:
		return "done"
	case s.Canceled:
		return "canceled"
	case s.Approved:
		return "approved"
	}
	return "announced"
}

// State says how far the recovery is.
func (s *Service) State(ctx context.Context) (State, error) {
	var out State
	for _, d := range s.Guard.Detected() {
		out.Detected = append(out.Detected, d.String())
	}
	r, err := s.Guard.Recovering(ctx)
	if fault.CodeOf(err) == fault.NotFound {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Announced, out.NotUntil, out.Approved = true, r.NotUntil, !r.Approved.IsZero()
	if s.Seals != nil && !out.Approved {
		out.Shares = s.Seals.Shares()
	}
	return out, nil
}

// Past reads what a newer log knows. It is called only when the recovery begins; nil: there is no newer log.
type Past func() (*guard.Past, error)

// Recover announces the recovery, or, when that was done and those who may have approved it, does it. fault.WrongState when nothing is
// wrong with the store.
func (s *Service) Recover(ctx context.Context, by string, newer Past) (State, error) {
	s.doing.Lock()
	defer s.doing.Unlock()
	r, err := s.Guard.Recovering(ctx)
	if fault.CodeOf(err) == fault.NotFound {
		r, err = s.announce(ctx, by)
	}
	if err != nil {
		return State{}, err
	}
	out, err := s.State(ctx)
	if err != nil || !r.May(s.Now()) {
		return out, err
	}
	var past *guard.Past
	if newer != nil {
		if past, err = newer(); err != nil {
			return out, err
		}
	}
	p, incarnation, err := s.Guard.BeginRecovery(ctx, past)
	if err != nil {
		return out, err
	}
	if out.Keys, err = kms.Recover(ctx, s.Guard, p, incarnation, past, s.Now()); err != nil {
		return out, err
	}
	if err := s.Guard.EndRecovery(ctx, incarnation); err != nil {
		return out, err
	}
	out.Done, out.Incarnation = true, incarnation
	return out, nil
}

func (s *Service) announce(ctx context.Context, by string) (guard.Recovering, error) {
	delay := s.Delay
	if !sealing.Alone(s.Guard.Members()) {
		delay = -1
	}
	if s.Seals != nil {
		s.Seals.Forget() // what was brought before is no approval of this
	}
	return s.Guard.AskRecovery(ctx, by, delay)
}

// Cancel takes an announced recovery back. fault.NotFound, WrongState once it has begun.
func (s *Service) Cancel(ctx context.Context) (State, error) {
	s.doing.Lock()
	defer s.doing.Unlock()
	out, err := s.State(ctx)
	if err != nil {
		return out, err
	}
	if s.Seals != nil {
		s.Seals.Forget()
	}
	out.Canceled = true
	return out, s.Guard.CancelRecovery(ctx)
}

// Approve takes a custodian's share for the announced recovery; the last one that is needed approves it. The log has who brought it. Errors as
// of sealing.Keeper.Unseal; fault.NotFound when no recovery is announced, WrongState when it is approved.
func (s *Service) Approve(ctx context.Context, c policy.Caller, attempt string, share secret.Bytes) (sealing.Progress, error) {
	s.doing.Lock()
	defer s.doing.Unlock()
	r, err := s.Guard.Recovering(ctx)
	switch {
	case fault.CodeOf(err) == fault.NotFound:
		err = fault.New(fault.NotFound, "recovery").WithHint("none is announced: rotor server recover")
	case err == nil && r.May(s.Now()):
		err = fault.New(fault.WrongState, "recovery").WithHint("it needs no more shares: rotor server recover")
	case s.Seals == nil:
		err = fault.New(fault.NotFound, "custodians")
	}
	if err != nil {
		share.Destroy()
		return sealing.Progress{}, err
	}
	p, by, err := s.Seals.Approve(ctx, c.Name, attempt, share)
	s.Log.InfoContext(ctx, "a share for the recovery", "by", c.Name, "have", p.Have, "threshold", p.Threshold, "error", err)
	if err != nil || by == "" {
		return p, err
	}
	return p, s.Guard.ApproveRecovery(ctx, by)
}
