package wire

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// Limits of bodies.
const (
	MaxBodies = maxBodies
	MaxLarge  = maxLarge
	SmallBody = smallBody
)

// NewHastyServer is a server that waits for clients for a fraction of a second.
func NewHastyServer(c Config) *Server {
	return newServer(c, times{300 * time.Millisecond, 600 * time.Millisecond, 300 * time.Millisecond, 300 * time.Millisecond, 300 * time.Millisecond})
}

// FreezeLimits counts by other limits and by a clock that stands still.
func (s *Server) FreezeLimits(l Limits) *atomic.Int64 {
	var clock atomic.Int64
	s.limits.Store(newLimiter(l, func() time.Time { return time.Unix(0, clock.Load()) }))
	return &clock
}

// TestBucketsAreBounded: however many names come, so many are remembered, and who is being refused is not forgotten for them.
func TestBucketsAreBounded(t *testing.T) {
	t.Parallel()
	b, now := newBuckets(1, 2), time.Unix(0, 0)
	for range 3 {
		_ = b.take("greedy", "x", now)
	}
	for i := range 3 * maxBuckets {
		now = now.Add(time.Microsecond)
		_ = b.take(fmt.Sprint(i), "x", now)
	}
	if len(b.all) > maxBuckets {
		t.Errorf("%d names", len(b.all))
	}
	if err := b.take("greedy", "x", now); err == nil {
		t.Error("the flood of others gave a caller its burst again")
	}
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "::ffff:192.0.2.1", "2001:db8::1": "2001:db8::/64", "2001:db8::ffff:1": "2001:db8::/64", "fe80::1%eth0": "fe80::/64", "x": "x",
	} {
		if got := network(address); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}
