package rotor

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/rpc"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

const (
	firstBeat  = time.Second      // period of lease requests before the server has said how long a lease is
	leaveTime  = 2 * time.Second  // bound of a clean leave
	steadyTime = 10 * time.Second // a stream that lived so long starts the backoff anew
)

type holdStream = connect.BidiStreamForClient[rotorv1.HoldUp, rotorv1.HoldDown]

// run keeps one stream to the server open until ctx ends, and then leaves.
func (c *Client) run(ctx context.Context) {
	tries := 0
	for number := uint64(1); ctx.Err() == nil; number++ {
		opened := time.Now()
		c.reanchor()
		err := c.hold(ctx, number)
		if ctx.Err() != nil {
			return
		}
		if time.Since(opened) > steadyTime {
			tries = 0
		}
		c.failed(ctx, err, tries)
		if !wait(ctx, backoff(tries)) {
			return
		}
		tries++
	}
}

// failed logs a broken stream, and passes on to who waits what only a person can mend.
func (c *Client) failed(ctx context.Context, err error, tries int) {
	level := c.config.Log.DebugContext
	if tries == 3 || fault.CodeOf(err) != fault.Unavailable && fault.CodeOf(err) != fault.Canceled {
		level = c.config.Log.WarnContext
	}
	level(ctx, "stream to the server ended", "error", err)
	switch fault.CodeOf(err) {
	case fault.IdentityInUse, fault.Unauthenticated, fault.Denied:
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, h := range c.held {
			h.refuse(err)
		}
	}
}

// talk is one stream.
type talk struct {
	client  *Client
	number  uint64
	stream  *holdStream
	address delivery.Address
	parcels *delivery.Receiver
	cancel  context.CancelFunc
	acks    chan *rotorv1.Ack
	show    chan []byte // a statement that the server has to see

	mu       sync.Mutex // guards what follows
	ttl      time.Duration
	beat     uint64
	sent     map[uint64]holder.Instant  // of the requests without an answer, and of the last one with an answer
	late     time.Time                  // when the oldest without an answer was sent, zero: none
	withheld map[string]bool            // keys that the last answer was not for
	asked    map[uint64][]chan struct{} // who waits for the answer to a request, by its beat
	retimed  chan struct{}              // the length of a lease is known now, or has changed
}

// hold opens a stream, introduces the process and serves the stream until it breaks or ctx ends.
func (c *Client) hold(ctx context.Context, number uint64) error {
	live, cancel := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx for the clean leave
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(2*leaveTime, cancel) })() // a server that hangs does not hold Close up
	t := &talk{client: c, number: number, cancel: cancel, acks: make(chan *rotorv1.Ack, 64), show: make(chan []byte, 1), sent: map[uint64]holder.Instant{}}
	t.asked, t.retimed = map[uint64][]chan struct{}{}, make(chan struct{}, 1)
	t.address = delivery.Address{Cluster: c.dir.Cluster(), Instance: c.Instance(), Incarnation: c.process, Session: make([]byte, delivery.NonceSize)}
	rand.Read(t.address.Session)
	t.parcels = delivery.NewReceiver(t.address, c.private, c.verify.signed)
	signature, err := c.dir.SignHello(delivery.HelloInput(t.address, c.private.Public()))
	if err != nil {
		return err
	}
	t.stream = c.admin.Fleet.Hold(live)
	err = t.stream.Send(&rotorv1.HoldUp{Hello: &rotorv1.Hello{
		Incarnation: c.process, Session: t.address.Session, HpkePublic: c.private.Public(), Signature: signature, Namespace: c.Namespace(),
		Statement: c.witness.statement(),
	}})
	if err != nil {
		_, err = t.stream.Receive() // has the server's reason
		return rpc.Decode(err)
	}
	var up sync.WaitGroup
	up.Go(func() {
		t.write(ctx, live)
	})
	err = t.read(live)
	cancel()
	up.Wait()
	t.orphan()
	return errors.Join(rpc.Decode(err), ignore(t.stream.CloseResponse()))
}

// orphan leaves those who wait for an answer to the next stream.
func (t *talk) orphan() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.client.mu.Lock()
	defer t.client.mu.Unlock()
	for _, waiters := range t.asked {
		t.client.orphans = append(t.client.orphans, waiters...)
	}
	t.asked = nil
}

// ignore drops the error of closing what has failed already.
func ignore(error) error { return nil }

// write sends lease requests, acknowledgements and wishes, until the stream breaks or the client closes.
func (t *talk) write(ctx, live context.Context) {
	_, waiters := t.client.wishes() // a stream begins by asking for everything
	if !t.send(&rotorv1.HoldUp{Keys: t.client.names()}) || !t.request(waiters) {
		return
	}
	timer := time.NewTimer(firstBeat)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			t.client.reanchor()
			if t.dead() || !t.request(nil) {
				t.cancel()
				return
			}
			timer.Reset(t.period())
		case <-t.retimed:
			timer.Reset(t.period())
		case a := <-t.acks:
			if !t.send(&rotorv1.HoldUp{Acks: []*rotorv1.Ack{a}}) {
				return
			}
		case b := <-t.show:
			if !t.send(&rotorv1.HoldUp{Statement: b}) {
				return
			}
		case <-t.client.wished:
			if names, waiters := t.client.wishes(); len(names) > 0 && (!t.send(&rotorv1.HoldUp{Keys: names}) || !t.request(waiters)) {
				return
			}
		case <-live.Done():
			return
		case <-ctx.Done():
			t.leave(live)
			return
		}
	}
}

// maxAttempts bounds the attempts that one message reports.
const maxAttempts = 1024

// attempts are those on retired versions since the last call. What a stream that breaks takes with it is not counted again.
func (c *Client) attempts() (out []*rotorv1.Attempt) {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.held))
	c.mu.Unlock()
	for _, h := range all {
		id, tried := h.attempts()
		for n, count := range tried {
			if len(out) < maxAttempts {
				out = append(out, &rotorv1.Attempt{KeyId: string(id), Version: n, Count: count})
			}
		}
	}
	return out
}

// leave tells the server that the process goes, and waits until it has heard.
func (t *talk) leave(live context.Context) {
	if t.send(&rotorv1.HoldUp{Leave: true, Attempts: t.client.attempts()}) {
		_ = t.stream.CloseRequest() // a stream that is broken is left already
		wait(live, leaveTime)       // the server ends the stream, which cancels live
	}
	t.cancel()
}

func (t *talk) send(m *rotorv1.HoldUp) bool {
	if err := t.stream.Send(m); err != nil {
		t.cancel()
		return false
	}
	return true
}

// request asks for a lease, which will count from now. The server answers after everything that was asked before; then the waiters are
// told.
func (t *talk) request(waiters []chan struct{}) bool {
	c := t.client.config.clock
	t.mu.Lock()
	t.beat++
	n := t.beat
	t.sent[n] = c.Instant()
	if len(waiters) > 0 {
		t.asked[n] = waiters
	}
	if t.late.IsZero() {
		t.late = c.Now()
	}
	t.mu.Unlock()
	return t.send(&rotorv1.HoldUp{Beat: n, Attempts: t.client.attempts()})
}

// period is three requests per lease.
func (t *talk) period() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ttl == 0 {
		return firstBeat
	}
	return t.ttl / 3
}

// dead says whether the server has not answered for a whole lease.
func (t *talk) dead() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.late.IsZero() && t.client.config.clock.Now().Sub(t.late) > max(t.ttl, 2*firstBeat)
}

func (t *talk) read(ctx context.Context) error {
	for {
		m, err := t.stream.Receive()
		if err != nil {
			return err
		}
		switch {
		case m.GetLease() != nil:
			t.stated(m.GetLease().GetStatement())
			t.leased(m.GetLease())
		case m.GetParcel() != nil:
			t.parcel(ctx, m.GetParcel())
		case m.GetRefusal() != nil:
			if h := t.client.find(m.GetRefusal().GetName()); h != nil {
				h.refuse(rpc.Parse(m.GetRefusal().GetFault()))
			}
		}
	}
}

// stated takes how far the server says that its log is.
func (t *talk) stated(b []byte) {
	if len(b) == 0 {
		return
	}
	if show := t.client.witness.take(b, t.client.config.clock.Now()); show != nil {
		select {
		case t.show <- show:
		default: // one is on its way
		}
	}
}

// leased takes the answer to a lease request: every key that the server sent on this stream is good until the lease ends.
func (t *talk) leased(l *rotorv1.Lease) {
	t.mu.Lock()
	sent, ok := t.sent[l.GetBeat()]
	ttl := time.Duration(l.GetTtlNs())
	if !ok || ttl <= 0 {
		t.mu.Unlock()
		return
	}
	if t.ttl != ttl {
		t.ttl = ttl
		select {
		case t.retimed <- struct{}{}:
		default:
		}
	}
	for n := range t.sent {
		if n < l.GetBeat() {
			delete(t.sent, n)
		}
	}
	var answered []chan struct{}
	for n, waiters := range t.asked {
		if n <= l.GetBeat() {
			answered = append(answered, waiters...)
			delete(t.asked, n)
		}
	}
	t.withheld = map[string]bool{}
	for _, id := range l.GetWithheld() {
		t.withheld[id] = true
	}
	withheld := t.withheld
	t.late = time.Time{}
	t.mu.Unlock()
	t.client.renewed(t.number, sent, ttl, withheld)
	for _, w := range answered {
		close(w)
	}
}

// granted is the newest answered request, for a key that arrives after it; not ok when the answer was not for the key.
func (t *talk) granted(id string) (sent holder.Instant, ttl time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.withheld[id] {
		return sent, 0, false
	}
	for _, s := range t.sent {
		if t.ttl > 0 && (!ok || s.Boot < sent.Boot) {
			sent, ok = s, true
		}
	}
	return sent, t.ttl, ok
}

// parcel installs a delivered key and acknowledges it.
func (t *talk) parcel(ctx context.Context, p *rotorv1.Parcel) {
	c := t.client
	s, materials, err := t.parcels.Unpack(delivery.Parcel{
		Body: p.GetBody(), Sealed: p.GetSealed(), Encapsulated: p.GetEncapsulated(),
		Signature: delivery.Signature{Index: p.GetIndex(), Size: p.GetSize(), Path: p.GetPath(), Bytes: p.GetSignature()},
	})
	if err != nil {
		c.config.Log.ErrorContext(ctx, "delivery refused", "error", err)
		if errors.Is(err, delivery.ErrGap) {
			t.cancel() // a new stream brings everything
		}
		return
	}
	h := c.find(s.Name)
	if h == nil {
		return // not asked for
	}
	st, err := h.apply(t.number, s, materials)
	if err != nil {
		c.config.Log.ErrorContext(ctx, "delivery refused", "key", s.Name, "error", err)
		if errors.Is(err, errIncomplete) {
			t.cancel() // a new stream brings everything
		}
		return
	}
	proof, err := delivery.Proof(t.address, st.key.Snapshot, st.material)
	if err != nil {
		c.config.Log.ErrorContext(ctx, "delivery not acknowledged", "key", s.Name, "error", err)
		return
	}
	if sent, ttl, ok := t.granted(string(s.Key)); ok {
		h.renewed(t.number, sent, ttl, ttl/leaseMargin, c.config.clock)
	}
	e := st.key.Snapshot.Epoch
	select {
	case t.acks <- &rotorv1.Ack{KeyId: string(s.Key), Incarnation: e.Incarnation, Epoch: e.Counter, Proof: proof}:
	case <-ctx.Done():
	}
}

// leaseMargin is the part of a lease, one in so many, that the process does not use: what the clocks may differ by.
const leaseMargin = 10

func (c *Client) renewed(number uint64, sent holder.Instant, ttl time.Duration, withheld map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		if st := h.state.Load(); st != nil && withheld[string(st.key.Snapshot.Key)] {
			continue
		}
		h.renewed(number, sent, ttl, ttl/leaseMargin, c.config.clock)
	}
}

// reanchor reads both clocks again for every key: what the machine slept since the last time, the cheap clock does not see.
func (c *Client) reanchor() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		h.reanchor(c.config.clock)
	}
}

func (c *Client) find(name string) *held {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[name]
}

func (c *Client) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(c.held))
	for name := range c.held {
		names = append(names, name)
	}
	return names
}
