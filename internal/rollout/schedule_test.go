package rollout_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/rollout"
	"github.com/rotorkms/rotor/internal/suite"
)

// scheduled makes the key with a schedule, on the server, so that it is rotated without anybody's acknowledgement.
func (w *world) scheduled(s keyring.Schedule) {
	w.t.Helper()
	_, err := w.kms.Create(w.t.Context(), admin, keyring.Key{Namespace: "default", Name: "records", Purpose: suite.Encrypt, Schedule: s})
	if err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// pass lets time go by, and whatever it brings happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestSchedulesRotate(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{Every: time.Hour})
		next := w.progress().Schedule.Next
		pass(time.Hour - time.Second)
		w.want("versions before the hour", w.key().Len(), 1)
		if !next.Equal(w.key().Created.Add(time.Hour)) {
			t.Errorf("next at %v", next)
		}
		pass(3 * time.Second)
		w.want("primary after the hour", w.key().Primary, uint32(2))
		pass(10 * time.Hour)
		w.want("primary after ten more", w.key().Primary, uint32(12))
		if err := w.progress().Schedule.Refused; err != nil {
			t.Errorf("refused: %v", err)
		}
	})
}

// TestSchedulesOfSeveralServers: whoever looks, and how many at the same moment, a due time brings one version.
func TestSchedulesOfSeveralServers(t *testing.T) {
	bubble(t, 4, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{Every: 10 * time.Minute})
		pass(5*10*time.Minute + time.Minute)
		w.want("versions of five due times", w.key().Len(), 6)
	})
}

// TestScheduleOfAServerThatWasDown: it rotates once, however many due times it has missed.
func TestScheduleOfAServerThatWasDown(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{Every: time.Hour})
		w.stop()
		pass(400 * 24 * time.Hour)
		w.start(1)
		pass(30 * time.Minute)
		w.want("versions", w.key().Len(), 2)
		w.want("primary", w.key().Primary, uint32(2))
	})
}

// TestScheduleUnderAClockThatJumps: a hundred jumps to and fro within an hour bring no more versions than the hour allows.
func TestScheduleUnderAClockThatJumps(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{Every: time.Hour})
		for i := range 100 {
			w.offset.Store(int64(time.Duration(i%2) * 365 * 24 * time.Hour))
			pass(30 * time.Second)
		}
		w.offset.Store(0)
		pass(2 * time.Minute)
		if n := w.key().Len(); n > 3 {
			t.Errorf("%d versions within an hour of jumps", n)
		}
		n := w.key().Len()
		pass(5 * time.Hour)
		if got := w.key().Len() - n; got < 4 || got > 6 {
			t.Errorf("%d versions in the five hours after", got)
		}
	})
}

func TestScheduleAfterUses(t *testing.T) {
	bubble(t, 2, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{MaxUses: 5})
		for i := range 14 {
			if _, _, err := w.kms.Encrypt(t.Context(), admin, ref, []byte("x"), nil); err != nil {
				t.Fatal(err)
			}
			pass(2 * time.Second)
			w.want("primary", w.key().Primary, uint32(1+(i+1)/5))
		}
	})
}

// TestScheduleAfterUsesAtAnotherServer: what another server counted is heard of within its minute.
func TestScheduleAfterUsesAtAnotherServer(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{MaxUses: 5})
		ctx, stop := context.WithCancel(t.Context())
		other, err := kms.New(ctx, kms.Config{Guard: w.guard, Now: w.now})
		if err != nil {
			t.Fatal(err)
		}
		for _, loop := range []func(context.Context) error{other.Run, other.CountUses} {
			go func() { _ = loop(ctx) }()
		}
		for range 5 {
			if _, _, err := other.Encrypt(t.Context(), admin, ref, []byte("x"), nil); err != nil {
				t.Fatal(err)
			}
		}
		pass(2 * time.Second)
		w.want("primary before the other has told", w.key().Primary, uint32(1))
		pass(time.Minute)
		w.want("primary after", w.key().Primary, uint32(2))
		stop()
		synctest.Wait()
	})
}

func TestScheduleInAWindow(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) { // the bubble begins at midnight UTC
		w.scheduled(keyring.Schedule{Every: time.Hour, Windows: []keyring.Window{{From: 120, To: 180}}})
		pass(2*time.Hour - time.Second)
		w.want("versions before the window", w.key().Len(), 1)
		pass(2 * time.Second)
		w.want("versions in the window", w.key().Len(), 2)
		pass(20 * time.Hour)
		w.want("versions outside of the window", w.key().Len(), 2)
	})
}

// warnings counts what is logged as one.
type warnings struct {
	atomic.Int32
}

func (*warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w *warnings) Handle(context.Context, slog.Record) error  { w.Add(1); return nil }
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler         { return w }
func (w *warnings) WithGroup(string) slog.Handler              { return w }

// TestScheduleThatIsRefused is tried again, less and less often, and says why.
func TestScheduleThatIsRefused(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		var warned warnings
		w.loops[0].Log = slog.New(&warned)
		w.scheduled(keyring.Schedule{Every: time.Minute})
		w.versions.Store(1)
		pass(time.Hour)
		if n := warned.Load(); n < 5 || n > 20 {
			t.Errorf("tried %d times within the hour", n)
		}
		w.want("versions under the quota", w.key().Len(), 1)
		s := w.progress().Schedule
		w.want("refused", fault.CodeOf(s.Refused), fault.QuotaReached)
		if d := time.Until(s.Retry); d <= 0 || d > 10*time.Minute {
			t.Errorf("tried again in %v", d)
		}
		idle := rollout.New(rollout.Config{KMS: w.kms, Fleet: w.fleet, Now: w.now, Log: quiet})
		w.want("refused, as a server says that does not lead", fault.CodeOf(idle.Progress(t.Context(), w.key()).Schedule.Refused), fault.QuotaReached)
		w.versions.Store(0)
		pass(10*time.Minute + 2*time.Second)
		if w.key().Len() < 2 {
			t.Error("not rotated once the quota was gone")
		}
		w.want("refused", w.progress().Schedule.Refused, nil)
	})
}

// TestScheduleOfWhoDoesNotLead: a server that takes itself for the leader, and is not any more, rotates nothing.
func TestScheduleOfWhoDoesNotLead(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.scheduled(keyring.Schedule{Every: time.Minute})
		lead := func() (guard.Cond, bool) { return guard.Cond{Path: "key/default/no-such-key", Rev: 1}, true }
		l := rollout.New(rollout.Config{KMS: w.kms, Fleet: w.fleet, Now: w.now, Log: quiet, Lead: lead})
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = l.Run(ctx) }()
		pass(10 * time.Minute)
		w.want("versions", w.key().Len(), 1)
		stop()
		synctest.Wait()
	})
}
