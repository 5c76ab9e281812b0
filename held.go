package rotor

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// held is one key as this process holds it. Operations read two pointers and take no lock.
type held struct {
	name    string
	state   atomic.Pointer[state]
	contact atomic.Pointer[contact]

	mu      sync.Mutex           // guards what follows, and makes changes of state one at a time
	session uint64               // number of the stream on which the server last sent the key
	refusal error                // why the server does not let it hold the key
	asked   time.Time            // when it was asked for again after a refusal
	changed chan struct{}        // closed and replaced at each change
	unknown map[uint32]time.Time // handles that the server did not know, and when it said so
	tried   map[uint32]uint64    // attempts on retired versions that the server has not heard of, by version
}

// contact is what the process knows of its connection, with the moment from which the cheap clock counts.
type contact struct {
	holder.Contact
	anchor anchor
}

// state is a key at one epoch with everything that can use it. It is immutable.
type state struct {
	key       *holder.Key
	fence     bool
	materials delivery.Materials              // by version; of live versions alone
	messages  map[uint32]*envelope.MessageKey // by handle
	primary   *envelope.MessageKey            // nil when nothing may protect
	protects  keyring.SnapshotVersion
}

// errIncomplete: the server believes that this process has material that it has not.
var errIncomplete = errors.New("rotor: a delivery lacks material")

// maxUnknown bounds the handles that are remembered as unknown.
const maxUnknown = 1024

// attempted counts an operation that was refused because its version is retired: the server, which waits before it destroys it, hears of it with the next
// lease request.
func (h *held) attempted(v keyring.SnapshotVersion, err error) {
	if fault.CodeOf(err) != fault.VersionRetired {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tried == nil {
		h.tried = map[uint32]uint64{}
	}
	h.tried[v.Number]++
}

// attempts takes what attempted counted.
func (h *held) attempts() (id keyring.KeyID, tried map[uint32]uint64) {
	st := h.state.Load()
	h.mu.Lock()
	defer h.mu.Unlock()
	if st == nil || len(h.tried) == 0 {
		return "", nil
	}
	tried, h.tried = h.tried, nil
	return st.key.Snapshot.Key, tried
}

func newHeld(name string) *held {
	return &held{name: name, changed: make(chan struct{}), unknown: map[uint32]time.Time{}}
}

// apply takes what a parcel brought: all encryptors are ready before the state is swapped, so that an acknowledgement that follows
// is true. It returns the state to acknowledge, nil when the parcel brought nothing new but has to be acknowledged again.
func (h *held) apply(session uint64, s keyring.Snapshot, fresh delivery.Materials) (*state, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var old *holder.Key
	now := h.state.Load()
	if now != nil {
		old = now.key
	}
	next, changed, err := holder.Apply(old, s)
	if err != nil {
		return nil, err
	}
	if !changed {
		h.session, h.refusal = session, nil
		h.notify()
		return now, nil
	}
	built, err := build(next, now, fresh)
	if err != nil {
		return nil, err
	}
	h.state.Store(built)
	h.session, h.refusal = session, nil
	clear(h.unknown)
	h.notify()
	return built, nil
}

// build prepares every live version.
func build(k *holder.Key, old *state, fresh delivery.Materials) (*state, error) {
	snap := k.Snapshot
	st := &state{key: k, fence: snap.Silence == keyring.Fence, materials: delivery.Materials{}, messages: map[uint32]*envelope.MessageKey{}}
	for _, v := range snap.Versions {
		if !v.Live() || snap.Custody != keyring.CustodyFleet {
			continue
		}
		m, ok := fresh[v.Number]
		if !ok && old != nil {
			m, ok = old.materials[v.Number]
		}
		if !ok {
			return nil, errors.Join(errIncomplete, fault.New(fault.SnapshotRefused, "material of key "+snap.Name))
		}
		st.materials[v.Number] = m
		if snap.Purpose != suite.Encrypt {
			continue
		}
		if old != nil && old.messages[v.Handle] != nil {
			st.messages[v.Handle] = old.messages[v.Handle]
			continue
		}
		mk, err := envelope.NewMessageKeyOf(v.Algorithm, m, v.Handle, string(snap.Namespace), string(snap.Key))
		if err != nil {
			return nil, err
		}
		st.messages[v.Handle] = mk
	}
	for _, v := range snap.Versions {
		if v.Number == snap.Primary {
			st.protects, st.primary = v, st.messages[v.Handle]
		}
	}
	return st, nil
}

// renewed notes an answered lease request for keys that the server knows this process to hold on the present stream.
func (h *held) renewed(session uint64, sent holder.Instant, ttl, margin time.Duration, c clock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.session != session || h.state.Load() == nil {
		return
	}
	var old holder.Contact
	if p := h.contact.Load(); p != nil {
		old = p.Contact
	}
	h.contact.Store(&contact{holder.Granted(old, sent, ttl, margin), newAnchor(c)})
	h.notify()
}

// reanchor reads both clocks again.
func (h *held) reanchor(c clock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.contact.Load(); p != nil {
		h.contact.Store(&contact{p.Contact, newAnchor(c)})
	}
}

// refuse notes the server's refusal. What the process held it may hold no longer, so it stops using it: the right was taken away, the
// instance was removed, or another process took its identity, and no rotation waits for this one any more.
func (h *held) refuse(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusal = err
	if c := fault.CodeOf(err); c == fault.Denied || c == fault.NotFound || c == fault.IdentityInUse {
		h.state.Store(nil)
		h.contact.Store(nil)
	}
	h.notify()
}

// notify wakes who waits. Call with mu held.
func (h *held) notify() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// until waits for a condition on the key.
func (h *held) until(ctx context.Context, ready func() (bool, error)) error {
	for {
		h.mu.Lock()
		changed := h.changed
		ok, err := ready()
		h.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, "key "+h.name, ctx.Err()).WithHint("the server did not deliver it in time")
		}
	}
}

// ready returns once the key can be used.
func (h *held) ready(ctx context.Context) error {
	return h.until(ctx, func() (bool, error) {
		return h.state.Load() != nil && h.contact.Load() != nil, h.refusal
	})
}

// isUnknown says whether the server said lately that it does not know a handle. While too many are remembered, every unknown handle
// counts as one, so that a flood of garbage asks the server maxUnknown times in unknownFor at the most.
func (h *held) isUnknown(handle uint32, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at, ok := h.unknown[handle]; ok && now.Sub(at) < unknownFor {
		return true
	}
	if len(h.unknown) >= maxUnknown {
		for n, at := range h.unknown {
			if now.Sub(at) >= unknownFor {
				delete(h.unknown, n)
			}
		}
	}
	return len(h.unknown) >= maxUnknown
}

func (h *held) noteUnknown(handle uint32, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.unknown) < maxUnknown {
		h.unknown[handle] = now
	}
}

// begin checks before an operation that the key may be used, by the cheap clock.
func (h *held) begin(c clock) (*state, time.Time, error) {
	st, contact := h.state.Load(), h.contact.Load()
	now := c.Now()
	if st == nil || contact == nil {
		return nil, now, h.absent()
	}
	return st, now, st.key.Usable(contact.Contact, contact.anchor.instantAt(now))
}

// absent says why there is no key.
func (h *held) absent() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refusal != nil {
		return h.refusal
	}
	return fault.New(fault.Unavailable, "key "+h.name).WithHint("it has not been delivered yet; call Ready first")
}

// end checks after an operation of a key in fence mode that the lease was running all the time, by both clocks.
func (h *held) end(st *state, c clock) error {
	if !st.fence {
		return nil
	}
	contact := h.contact.Load()
	if contact == nil {
		return h.absent() // taken away meanwhile
	}
	return st.key.Usable(contact.Contact, c.Instant())
}

// material finds the key bytes of a version, for the proof of an acknowledgement.
func (st *state) material(n uint32) (secret.Bytes, bool) {
	m, ok := st.materials[n]
	return m, ok
}

// wipe takes the key away when the client closes. Operations in flight end with the keys that they began with: the encryptors hold
// expanded keys, so that none can run under bytes that are half overwritten. MAC keys, which are used as they are, are left to the
// collector.
func (h *held) wipe() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusal = fault.New(fault.Unavailable, "key "+h.name).WithHint("the client is closed")
	h.contact.Store(nil)
	if st := h.state.Swap(nil); st != nil && st.key.Snapshot.Purpose == suite.Encrypt {
		for _, m := range st.materials {
			m.Destroy()
		}
	}
	h.notify()
}
