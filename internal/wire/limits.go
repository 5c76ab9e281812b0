package wire

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/rotorkms/rotor/internal/fault"
)

// Limits are what a listener lets one caller, one namespace and one address of strangers do. A rate of 0 has no limit. Each server counts for itself.
type Limits struct {
	CallerRate     float64 // requests of one caller in a second
	CallerBurst    int     // that may come at once; default the rate of two seconds
	NamespaceRate  float64 // the same, of the requests about keys of one namespace
	NamespaceBurst int
	LoginRate      float64 // logins from one address; default 20. Negative: no limit
	LoginBurst     int     // default 100
}

// Defaults of logins, and the bound of what is counted apart.
const (
	loginRate  = 20
	loginBurst = 100
	maxBuckets = 20_000 // callers, namespaces or addresses
	searched   = 16     // of which the fullest gives way, when there are too many
)

// limiter counts by Limits. It is replaced as a whole.
type limiter struct {
	now                            func() time.Time
	callers, namespaces, strangers *buckets
}

func newLimiter(l Limits, now func() time.Time) *limiter {
	if l.LoginRate == 0 {
		l.LoginRate, l.LoginBurst = loginRate, max(l.LoginBurst, loginBurst)
	}
	return &limiter{now, newBuckets(l.CallerRate, l.CallerBurst), newBuckets(l.NamespaceRate, l.NamespaceBurst), newBuckets(l.LoginRate, l.LoginBurst)}
}

// buckets are token buckets by name.
type buckets struct {
	rate  rate.Limit
	burst int

	mu  sync.Mutex // guards all
	all map[string]*rate.Limiter
}

func newBuckets(perSecond float64, burst int) *buckets {
	if perSecond <= 0 {
		return nil
	}
	if burst <= 0 {
		burst = max(1, int(2*perSecond))
	}
	return &buckets{rate: rate.Limit(perSecond), burst: burst, all: map[string]*rate.Limiter{}}
}

// take counts a request. fault.RateLimited.
func (b *buckets) take(name, what string, now time.Time) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.all[name]
	if l == nil {
		if len(b.all) >= maxBuckets {
			b.drop(now)
		}
		l = rate.NewLimiter(b.rate, b.burst)
		b.all[name] = l
	}
	if !l.AllowN(now, 1) {
		return fault.New(fault.RateLimited, what).WithHint("at most %v in a second, and %d at once", float64(b.rate), b.burst)
	}
	return nil
}

// drop lets one of some go: the fullest, of who has been quiet for longest. Call with mu held.
func (b *buckets) drop(now time.Time) {
	fullest, most, seen := "", -1e18, 0
	for name, l := range b.all {
		if tokens := l.TokensAt(now); tokens > most {
			fullest, most = name, tokens
		}
		if seen++; seen == searched || most >= float64(b.burst) {
			break
		}
	}
	delete(b.all, fullest)
}

// admit counts a request of a caller, or a login from an address. fault.RateLimited.
func (l *limiter) admit(p *peer, route Route) error {
	switch {
	case !p.caller.IsZero():
		return l.callers.take(p.caller.Name, "requests of "+p.caller.Name, l.now())
	case route.Login:
		return l.strangers.take(network(p.address), "logins from "+p.address, l.now())
	}
	return nil
}

// network is what an address is counted as: in IPv6 its network of 64 bits, as one host has all of it.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Unmap().Is4() {
		return address
	}
	n, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return address
	}
	return n.String()
}

// EnterNamespace counts a request about keys of a namespace. fault.RateLimited.
func EnterNamespace(ctx context.Context, namespace string) error {
	p, ok := ctx.Value(peerKey{}).(*peer)
	if !ok || p.limits == nil {
		return nil
	}
	return p.limits.namespaces.take(namespace, "requests in namespace "+namespace, p.limits.now())
}
