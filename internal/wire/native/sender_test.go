package native

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/fleet"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// box is a mailbox that keeps the latest alone, as a session does, and the process that reads from it.
type box struct {
	beat    atomic.Uint64 // 0: nothing is there
	fails   atomic.Pointer[error]
	got     chan uint64
	sending atomic.Int32
	most    atomic.Int32
}

func (b *box) poll(context.Context) (fleet.Down, bool, error) {
	if err := b.fails.Load(); err != nil {
		return fleet.Down{}, false, *err
	}
	n := b.beat.Swap(0)
	return fleet.Down{Lease: &fleet.Lease{Beat: n}}, n > 0, nil
}

// Send waits until the process reads.
func (b *box) Send(m *rotorv1.HoldDown) error {
	b.most.Store(max(b.most.Load(), b.sending.Add(1)))
	b.got <- m.GetLease().GetBeat()
	b.sending.Add(-1)
	return nil
}

func newSender(ctx context.Context) (*sender, *box) {
	b := &box{got: make(chan uint64)}
	return &sender{ctx: ctx, poll: b.poll, latest: func() ([]byte, error) { return nil, nil }, stream: b, log: slog.New(slog.DiscardHandler)}, b
}

// TestSlowReaderHoldsUpItself: a process that does not read has one sender, which waits, and then gets what is newest; others get theirs meanwhile.
func TestSlowReaderHoldsUpItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, behind := newSender(t.Context())
		quick, reads := newSender(t.Context())
		for n := uint64(1); n <= 1000; n++ {
			behind.beat.Store(n)
			slow.wake()
			reads.beat.Store(n)
			quick.wake()
			if got := <-reads.got; got != n {
				t.Fatalf("the process that reads got %d, want %d", got, n)
			}
			synctest.Wait()
		}
		if n := behind.most.Load(); n != 1 {
			t.Errorf("%d messages on their way to one process", n)
		}
		if first, last := <-behind.got, <-behind.got; first != 1 || last != 1000 {
			t.Errorf("it got %d and %d, want the one that was on its way and the newest", first, last)
		}
		for _, s := range []*sender{slow, quick} {
			if err := s.end(); err != nil {
				t.Error(err)
			}
			if s.running {
				t.Error("a goroutine for nothing")
			}
		}
	})
}

// TestSenderEnds: what is on its way is waited for, nothing follows, and what failed is told.
func TestSenderEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, b := newSender(ctx)
		b.beat.Store(1)
		s.wake()
		synctest.Wait()
		b.beat.Store(2)
		s.wake()
		cancel()
		ended := make(chan error)
		go func() { ended <- s.end() }()
		synctest.Wait()
		<-b.got
		if err := <-ended; fault.CodeOf(err) != fault.Canceled {
			t.Error(err)
		}
		s.wake()
		synctest.Wait()
		if b.beat.Load() != 2 {
			t.Error("it was sent after the end")
		}

		want := errors.New("the session has ended")
		s, b = newSender(t.Context())
		b.fails.Store(&want)
		s.wake()
		synctest.Wait()
		if err := s.end(); !errors.Is(err, want) {
			t.Error(err)
		}

		s, _ = newSender(t.Context())
		s.poll = func(context.Context) (fleet.Down, bool, error) { panic("a mistake") }
		s.wake()
		synctest.Wait()
		if err := s.end(); fault.CodeOf(err) != fault.Internal {
			t.Errorf("a panic is %v", err)
		}
	})
}
