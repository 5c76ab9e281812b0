package rotor

import (
	"net/http"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/holder"
)

// Clock is a clock that a test sets. It starts at the machine's time and goes on with it.
type Clock struct {
	mu         sync.Mutex // guards what follows
	boot, real time.Duration
	system     systemClock
}

// Now implements clock: the time of day, and of the monotonic clock, which a suspended machine stops.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.system.Now().Add(c.real)
}

// Instant implements clock.
func (c *Clock) Instant() holder.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.system.Instant()
	return holder.Instant{Boot: i.Boot + int64(c.boot), Real: i.Real + int64(c.real)}
}

// Pass lets time pass on every clock.
func (c *Clock) Pass(d time.Duration) { c.Set(d, d) }

// Set moves the clocks one by one: boot by the time that passed, awake or not, real by what the time of day was set by.
func (c *Clock) Set(boot, real time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boot, c.real = c.boot+boot, c.real+real
}

// WithClock makes a client run by a test's clock.
func (c Config) WithClock(k *Clock) Config { c.clock = k; return c }

// WithTransport puts something between client and server.
func (c Config) WithTransport(f func(http.RoundTripper) http.RoundTripper) Config {
	c.transport = f
	return c
}

// Bounds of the memory of unknown versions.
const (
	MaxUnknown = maxUnknown
	UnknownFor = unknownFor
)
