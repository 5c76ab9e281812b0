package rotation

import (
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
)

// Leases are the server's half of the lease arithmetic. An instance counts its lease from the moment it sent the request and
// stops at TTL - margin; the server counts from the moment the request arrived and waits until TTL + MaxSkew, so that the
// server never takes a lease for over that the instance still relies on.
type Leases struct {
	TTL     time.Duration
	MaxSkew time.Duration // bound of the drift between two clocks during one TTL
	Session time.Time     // start of this server's own session: a lease that it does not know may have been granted just before
}

// End is when a lease is over whose request arrived at a time.
func (l Leases) End(arrived time.Time) time.Time { return arrived.Add(l.TTL + l.MaxSkew) }

// Over says whether a member's lease is over. last is the arrival of its last request in this session, zero when there was none.
func (l Leases) Over(last, now time.Time) bool {
	if last.Before(l.Session) {
		last = l.Session
	}
	return !now.Before(l.End(last))
}

// Renewable says whether a member that has acknowledged an epoch may have its lease renewed. In fence mode it may not while it is
// behind the distribution in flight: an instance whose heartbeats arrive, but to which nothing gets through, would otherwise hold
// up the promotion for ever (L2). What it holds by then runs to its end.
func Renewable(k keyring.Key, acked keyring.Epoch) bool {
	if k.Rotation.Defaults().Silence != keyring.Fence {
		return true
	}
	v, err := k.Version(k.Target)
	return err != nil || v.Phase == keyring.PhaseStaged || !acked.Less(v.Distributed)
}
