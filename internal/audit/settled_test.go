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
