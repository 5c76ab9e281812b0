package audit_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotorkms/rotor/internal/audit"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
	"github.com/rotorkms/rotor/internal/store/mem"
)

// TestSettledWaitsForWhatWasCommitted: an entry that is durable, but that nobody has handed to the sequencer yet, is not settled.
func TestSettledWaitsForWhatWasCommitted(t *testing.T) { synctest.Test(t, settled) }

func settled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := mem.New()
	log, rev, err := audit.Load(ctx, s, secret.Random(32), func(audit.Entry, store.Rev) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Append(ctx, audit.Entry{Action: "test", Caller: "a", Class: audit.ClassUse, Outcome: "closed", Time: time.Unix(1, 0).UTC()}); err != nil {
		t.Fatal(err)
	}
	over, end := context.WithTimeout(ctx, time.Second)
	defer end()
	if err := log.Settled(over); fault.CodeOf(err) != fault.Canceled {
		t.Fatalf("settled before anybody has seen the entry: %v", err)
	}
	done := make(chan error, 2)
	go func() { done <- log.Follow(ctx, rev, func(audit.Commit) error { return nil }) }() // ends with ctx
	go func() { done <- log.Sequence(ctx, nil) }()                                        // ends with ctx
	if err := log.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := log.Tail(ctx, 0, false, func(int64, []byte) error { n++; return nil }); err != nil || n != 1 {
		t.Fatalf("%d entries are in order, %v", n, err)
	}
	cancel()
	<-done
	<-done
}

// TestKeysMoveOnTwice: somebody else fetches newer keys while one that fits none is looked at, and they are not the newest. What is tagged with the
// newest is taken all the same, be it an entry or a step of another server's sequencer.
func TestKeysMoveOnTwice(t *testing.T) {
	for _, tagged := range []string{"entry", "step"} {
		t.Run(tagged, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { movedTwice(t, tagged == "entry") }) })
	}
}

func movedTwice(t *testing.T, entry bool) {
	ctx, cancel := context.WithCancel(t.Context())
	s, macs := mem.New(), []secret.Bytes{secret.Random(32), secret.Random(32), secret.Random(32)}
	load := func(mac secret.Bytes) (*audit.Log, store.Rev) {
		l, rev, err := audit.Load(ctx, s, mac, func(audit.Entry, store.Rev) error { return nil }, macs...)
		if err != nil {
			t.Fatal(err)
		}
		return l, rev
	}
	oldest, rev := load(macs[0])
	newest, _ := load(macs[2])
	last := audit.Keys{Current: macs[2], Older: macs[:2]}
	oldest.Rekey(audit.Keys{Current: macs[0], Moved: func(context.Context) (bool, error) {
		oldest.Rekey(audit.Keys{Current: macs[1], Older: macs[:1], Moved: func(context.Context) (bool, error) {
			oldest.Rekey(last)
			return true, nil
		}})
		return true, nil
	}})
	writer := oldest
	if entry {
		writer = newest
	}
	if err := writer.Append(ctx, audit.Entry{Action: "test", Caller: "a", Class: audit.ClassUse, Outcome: "closed", Time: time.Unix(1, 0).UTC()}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 3)
	for _, l := range []*audit.Log{oldest, newest} {
		go func() { done <- l.Follow(ctx, rev, func(audit.Commit) error { return nil }) }() // ends with ctx
	}
	go func() { done <- newest.Sequence(ctx, nil) }() // ends with ctx
	if err := oldest.Settled(ctx); err != nil {
		t.Error(err)
	}
	cancel()
	for range 3 {
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}
	if n, _ := oldest.Stats(); n != 1 {
		t.Errorf("%d entries", n)
	}
}
