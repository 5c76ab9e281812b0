package fleet

import (
	"context"
	"crypto/hmac"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Bounds of one session, whatever its process asks for.
const (
	MaxKeys    = 256 // keys that it holds, and names in one message
	maxRefused = 256 // refusals that wait to be sent
	joinBatch  = 64  // keys that one commit makes it a holder of: each is a condition, and the store takes 100
)

// Hello is how a process introduces itself; the wire layer has checked that the certificate's key signed it.
type Hello struct {
	Incarnation []byte
	Session     []byte
	Public      []byte // HPKE
	Namespace   keyring.Namespace
}

// Ack says that every encryptor of the process can use a key as of an epoch.
type Ack struct {
	Key   keyring.KeyID
	Epoch keyring.Epoch
	Proof []byte
}

// Lease answers a lease request.
type Lease struct {
	Beat     uint64
	TTL      time.Duration
	Withheld []keyring.KeyID // keys that it is not for (rotation.Renewable)
}

// Down is one message to the process; exactly one field is set.
type Down struct {
	Lease   *Lease
	Parcel  *delivery.Parcel
	Refused *Refused
}

// Refused says that the process may not hold a key.
type Refused struct {
	Name string
	Err  error
}

// Session is one stream of one process.
type Session struct {
	fleet     *Fleet
	caller    policy.Caller
	address   delivery.Address
	namespace keyring.Namespace
	parcels   *delivery.Sender // used by take alone
	wake      chan struct{}    // something is in the mailbox
	done      chan struct{}    // closed when the fleet ended the session
	once      sync.Once

	heard time.Time // of the last lease request, or the start. Guarded by fleet.mu

	mu      sync.Mutex // guards what follows; taken after fleet.mu
	why     error      // why done was closed
	attend  func()     // nil: nobody wants to be told of news
	lease   *Lease     // latest only
	refused []Refused
	keys    map[keyring.KeyID]*line
}

// line is what the session knows of one key. Ten thousand sessions have some each.
type line struct {
	out       *outgoing     // to be sent; latest only
	sent      keyring.Epoch // the last one
	delivered []uint32      // versions whose material was sent
	told      bool          // sent says something
	dropping  bool          // this server itself takes the key away
}

// outgoing is a key to be sent, with the versions whose release is audited already.
type outgoing struct {
	*news
	released []uint32
}

// news is a key with what is the same for all its holders.
type news struct {
	key  keyring.Key
	text delivery.Encoded
}

func newsOf(k keyring.Key) (*news, error) {
	e, err := delivery.Encode(k.Snapshot())
	return &news{k, e}, err
}

// live lists the versions whose material a holder has.
func (n *news) live() (all []uint32) {
	if n.key.Custody != keyring.CustodyFleet {
		return nil
	}
	for _, v := range n.text.Versions {
		if v.Live() {
			all = append(all, v.Number)
		}
	}
	return all
}

// Connect starts a session. A newer process of an instance replaces the older one, unless the older one's stream is alive.
// fault.IdentityInUse, fault.Unauthenticated, fault.Invalid.
func (f *Fleet) Connect(ctx context.Context, c policy.Caller, h Hello) (*Session, error) {
	if c.Instance == "" {
		return nil, fault.New(fault.Unauthenticated, c.Name).WithHint("only a joined instance can hold keys")
	}
	if len(h.Incarnation) != delivery.NonceSize || len(h.Session) != delivery.NonceSize {
		return nil, fault.New(fault.Invalid, "hello")
	}
	if err := delivery.CheckPublic(h.Public); err != nil {
		return nil, err
	}
	s := &Session{
		fleet: f, caller: c, namespace: h.Namespace,
		address: delivery.Address{Cluster: f.cluster, Instance: c.Instance, Incarnation: h.Incarnation, Session: h.Session},
		wake:    make(chan struct{}, 1), done: make(chan struct{}),
		keys: map[keyring.KeyID]*line{},
	}
	s.parcels = delivery.NewSender(s.address, h.Public, f.signer.Sign)
	asked := ctx
	ctx, cancel := f.whole(ctx)
	defer cancel()
	for {
		old, err := f.vacate(ctx, s)
		if err != nil {
			return nil, err
		}
		err = f.enrol(asked, s, old)
		if err == nil && f.seat(s) {
			return s, nil
		}
		if err != nil && fault.CodeOf(err) != fault.Conflict || ctx.Err() != nil {
			return nil, err
		}
	}
}

// seat makes a session the one of its instance, if the instance is this process's and this server's.
func (f *Fleet) seat(s *Session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := s.address.Instance
	m := f.members[name]
	if m == nil || m.Incarnation != hexOf(s.address.Incarnation) || f.Replicas != nil && (m.Home != f.Replicas.ID() || m.Away) {
		return false
	}
	if other := f.sessions[name]; other != nil {
		f.end(other, fault.New(fault.IdentityInUse, "instance "+name))
	}
	s.heard = f.Now()
	f.sessions[name] = s
	f.hearing(name).last = s.heard
	return true
}

// patience bounds how long a new process waits for another server to notice that the older one has gone.
const patience = 3 * time.Second

// vacate ends the stream that an instance has so far; not if it is the living one of another process. It returns the member that the instance
// is then, nil when it is none. fault.IdentityInUse.
func (f *Fleet) vacate(ctx context.Context, s *Session) (*member, error) {
	limited, cancel := context.WithTimeout(ctx, min(patience, f.Leases.TTL))
	defer cancel()
	inUse := fault.New(fault.IdentityInUse, "instance "+s.address.Instance)
	for {
		f.mu.Lock()
		changed, old := f.changed, f.sessions[s.address.Instance]
		if old != nil && !hmac.Equal(old.address.Incarnation, s.address.Incarnation) && f.Now().Before(old.heard.Add(f.Leases.TTL)) {
			f.mu.Unlock()
			return nil, inUse
		}
		if old != nil {
			f.end(old, inUse)
		}
		m := f.members[s.address.Instance]
		away := f.Replicas == nil || m == nil || m.Incarnation == hexOf(s.address.Incarnation) || m.Home == f.Replicas.ID() || !f.connected(m)
		if m != nil {
			m = m.clone()
		}
		f.mu.Unlock()
		if away {
			return m, nil
		}
		select {
		case <-changed:
		case <-f.Replicas.Changed():
		case <-limited.Done():
			return nil, inUse
		}
	}
}

// enrol stores the process as the instance's, in place of an older one, and this server as its home. fault.Conflict when somebody else was
// faster; memory knows by then.
func (f *Fleet) enrol(ctx context.Context, s *Session, old *member) error {
	name, mine, home := s.address.Instance, hexOf(s.address.Incarnation), ""
	if f.Replicas != nil {
		home = f.Replicas.ID()
	}
	same := old != nil && old.Incarnation == mine
	if same && (home == "" || old.Home == home && !old.Away) {
		return nil
	}
	next, how := &member{Instance: name, Incarnation: mine, Home: home, Joined: f.Now().UTC(), Keys: map[keyring.KeyID]*keyring.Epoch{}}, joins
	if old != nil {
		next.rev = old.rev
	}
	if same {
		if old.Home != home {
			f.adopt(old)
		}
		next, how = old, moves
		next.Home, next.Away = home, false
	}
	return f.change(how, name, func(context.Context, *group) (verdict, error) {
		if ctx.Err() != nil { // nobody waits for it
			return verdict{}, fault.Wrap(fault.Canceled, "", ctx.Err())
		}
		now := f.find(name)
		if (now == nil) != (old == nil) || now != nil && now.rev != next.rev {
			return verdict{}, fault.New(fault.Conflict, "instance "+name)
		}
		if same { // what it has acknowledged meanwhile
			next.Keys = now.Keys
		}
		return verdict{next: next}, nil
	})
}

// adopt counts the leases of a process that another server has granted so far from now. It has asked for none after it left that server.
func (f *Fleet) adopt(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, now := f.hearing(m.Instance), f.Now()
	for id := range m.Keys {
		h.lease[id] = now
	}
}

// Hold makes the session a holder of keys by name. Membership and snapshot are one linearizable step: the join commits only if
// the key is still what is about to be sent. Keys that are refused are answered one by one, and are no longer held. fault.TooLarge.
func (s *Session) Hold(ctx context.Context, names []string) error {
	if len(names) > MaxKeys {
		return fault.New(fault.TooLarge, "keys of one message")
	}
	var ids []keyring.KeyID
	for _, name := range names {
		k, err := s.mayHold(ctx, name)
		if err != nil {
			if err := s.refuse(k, name, err); err != nil {
				return err
			}
			continue
		}
		ids = append(ids, k.ID)
	}
	for some := range slices.Chunk(ids, joinBatch) {
		keys, err := s.join(ctx, some)
		if err != nil {
			return err
		}
		for _, k := range keys {
			s.fleet.publish(ctx, k, []*Session{s}, true)
		}
	}
	return nil
}

// mayHold asks for the right to hold a key: material needs deliver, public keys need verify.
func (s *Session) mayHold(ctx context.Context, name string) (keyring.Key, error) {
	k, ok := s.fleet.Keys.Lookup(s.namespace, name)
	if !ok { // another server may have made it a moment ago
		if err := s.fleet.Keys.CatchUp(ctx); err != nil {
			return k, err
		}
		k, ok = s.fleet.Keys.Lookup(s.namespace, name)
	}
	res := policy.Resource{Namespace: string(s.namespace), Key: name, Labels: k.Labels}
	if _, err := s.fleet.Guard.Admit(ctx, s.caller, holdAction(k), res); err != nil {
		if fault.CodeOf(err) == fault.Denied { // the action would tell what kind of key it is, and that there is one
			err = fault.New(fault.Denied, "key "+name)
		}
		return k, err
	}
	if !ok {
		return k, fault.New(fault.NotFound, "key "+name)
	}
	if !k.Holdable() {
		return k, fault.New(fault.WrongPurpose, "key "+name).WithHint("its custody is %s: its material never leaves the server", k.Custody)
	}
	return k, nil
}

func holdAction(k keyring.Key) policy.Action {
	if k.Purpose == suite.Sign {
		return policy.ActVerify
	}
	return policy.ActDeliver
}

// join stores that the process holds keys, and returns them as they are in that commit. A process that holds them already is told
// what they are now.
func (s *Session) join(ctx context.Context, ids []keyring.KeyID) ([]keyring.Key, error) {
	f := s.fleet
	for {
		keys, all, err := s.held(ctx, ids)
		if err != nil || all {
			return keys, err
		}
		err = f.change(holds, s.address.Instance, func(commit context.Context, g *group) (v verdict, err error) {
			if v.next, err = s.member(); err != nil {
				return v, err
			}
			if ctx.Err() != nil { // nobody waits for it
				return v, fault.Wrap(fault.Canceled, "", ctx.Err())
			}
			if keys, v.conds, err = g.read(commit, ids); err != nil {
				return v, err
			}
			before := len(v.next.Keys)
			for _, id := range ids {
				if v.next.Keys[id] == nil {
					v.next.Keys[id] = &keyring.Epoch{}
				}
			}
			switch {
			case len(v.next.Keys) > MaxKeys:
				return v, fault.New(fault.TooLarge, "keys of one instance")
			case len(v.next.Keys) == before: // since it was looked at
				return v, fault.New(fault.Conflict, "instance "+s.address.Instance)
			}
			f.arrive(v.next) // before the commit: from then on a gate may look at the lease
			return v, nil
		})
		if fault.CodeOf(err) != fault.Conflict || ctx.Err() != nil {
			return keys, err
		}
	}
}

// dropped says whether this server itself takes a key from the session.
func (s *Session) dropped(id keyring.KeyID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.line(id).dropping
}

// drops notes whether this server takes a key from the session.
func (s *Session) drops(id keyring.KeyID, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line(id).dropping = now
}

// line finds or makes what is known of a key. Call with mu held.
func (s *Session) line(id keyring.KeyID) *line {
	l := s.keys[id]
	if l == nil {
		l = &line{}
		s.keys[id] = l
	}
	return l
}

// Holds says whether the session's process holds a key. It looks at no other member: a process may ask as often as it likes.
func (s *Session) Holds(id keyring.KeyID) bool {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[s.address.Instance]
	return f.sessions[s.address.Instance] == s && m != nil && m.Keys[id] != nil
}

// member copies the session's member, as long as the session is the instance's.
func (s *Session) member() (*member, error) {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[s.address.Instance]
	if f.sessions[s.address.Instance] != s || m == nil {
		return nil, fault.New(fault.LeaseOver, "instance "+s.address.Instance)
	}
	return m.clone(), nil
}

// arrive counts the leases of keys that a process takes up from now: what it asked before on this stream was answered for them too.
func (f *Fleet) arrive(next *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, m, now := f.hearing(next.Instance), f.members[next.Instance], f.Now()
	for id := range next.Keys {
		if m == nil || m.Keys[id] == nil {
			h.lease[id] = now
		}
	}
}

// refuse answers that the process may not hold a key. If it held it, it does not any more: no rotation waits for it, and nothing is
// sent to it. It is told, and stops.
func (s *Session) refuse(k keyring.Key, name string, why error) error {
	if err := s.drop(k.ID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refused) == maxRefused {
		return fault.New(fault.TooLarge, "refused keys of instance "+s.address.Instance)
	}
	s.refused = append(s.refused, Refused{name, why})
	l := s.line(k.ID)
	l.out, l.delivered = nil, nil // if it may hold the key again, it gets everything again
	s.poke()
	return nil
}

// drop takes a key from the session's member.
func (s *Session) drop(id keyring.KeyID) error {
	f := s.fleet
	if m, err := s.member(); err != nil || m.Keys[id] == nil {
		return err
	}
	s.drops(id, true)
	defer s.drops(id, false)
	return f.change(refuses, s.address.Instance, func(context.Context, *group) (verdict, error) {
		m, err := s.member()
		if err != nil || m.Keys[id] == nil {
			return verdict{}, err
		}
		delete(m.Keys, id)
		return verdict{next: m}, nil
	})
}

// poke tells that there may be something to send. Call with mu held.
func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
	if s.attend != nil {
		s.attend()
	}
}

// Attend makes f be called whenever Poll may have something. f must not block, and use no method of the session.
func (s *Session) Attend(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attend = f
	f()
}

// Beat notes a lease request and answers it. In fence mode a key is left out while the process is behind its distribution. A server whose
// own session is over answers nothing: another may have taken it for dead, and count the leases that it granted before.
func (s *Session) Beat(beat uint64) {
	f := s.fleet
	if f.Replicas != nil && !f.Replicas.Fresh() {
		return
	}
	f.mu.Lock()
	m := f.members[s.address.Instance]
	if f.sessions[s.address.Instance] != s || m == nil {
		f.mu.Unlock()
		return
	}
	h, l := f.hearing(s.address.Instance), &Lease{Beat: beat, TTL: f.Leases.TTL}
	s.heard = f.Now()
	h.last = s.heard
	for id, acked := range m.Keys {
		if k, ok := f.Keys.Key(id); ok && !rotation.Renewable(k, *acked) {
			l.Withheld = append(l.Withheld, id)
			continue
		}
		h.lease[id] = s.heard
	}
	f.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = l
	s.poke()
}

// Acknowledge takes an acknowledgement if its proof shows that the process can use the key. fault.DecryptFailed when it does not.
func (s *Session) Acknowledge(ctx context.Context, a Ack) error {
	if m, err := s.member(); err != nil || m.Keys[a.Key] == nil {
		return nil //nolint:nilerr // of a key that it does not hold, or holds no more: it acknowledges nothing, and learns nothing of the key
	}
	k, ok := s.fleet.Keys.Key(a.Key)
	if !ok {
		return fault.New(fault.NotFound, "key "+string(a.Key))
	}
	if k.Epoch.Less(a.Epoch) { // this server's view is older than what the join sent
		fresh, _, err := s.fleet.Keys.Record(ctx, a.Key)
		if err != nil {
			return err
		}
		k = fresh
	}
	if k.Epoch != a.Epoch {
		return nil // overtaken by a newer epoch, whose acknowledgement follows; a proof can be checked for the present one only
	}
	want, err := delivery.Proof(s.address, k.Snapshot(), func(n uint32) (m secret.Bytes, ok bool) {
		m, err := s.fleet.Keys.Material(ctx, k, n)
		return m, err == nil
	})
	if err != nil {
		return err
	}
	if !hmac.Equal(want, a.Proof) {
		return fault.New(fault.DecryptFailed, "acknowledgement of key "+k.Name)
	}
	f := s.fleet
	f.mu.Lock()
	m := f.members[s.address.Instance]
	current := f.sessions[s.address.Instance] == s && m != nil && m.Keys[a.Key] != nil
	if current && m.Keys[a.Key].Less(a.Epoch) {
		*m.Keys[a.Key] = a.Epoch
		f.unsaved[m.Instance] = true
		select {
		case f.flush <- struct{}{}:
		default:
		}
	}
	f.mu.Unlock()
	if current && f.OnChange != nil {
		f.OnChange(a.Key)
	}
	return nil
}

// Next returns the next message to send. It blocks until there is one, ctx ends, or the fleet ended the session.
func (s *Session) Next(ctx context.Context) (Down, error) {
	for {
		if d, ok, err := s.Poll(ctx); ok || err != nil {
			return d, err
		}
		select {
		case <-s.wake:
		case <-s.done:
		case <-ctx.Done():
			return Down{}, fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// Poll returns the next message to send, if there is one. When the fleet has ended the session it fails, after the last message.
func (s *Session) Poll(ctx context.Context) (Down, bool, error) {
	d, ok, err := s.take(ctx)
	if ok || err != nil {
		return d, ok, err
	}
	select {
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		return Down{}, false, s.why
	default:
		return Down{}, false, nil
	}
}

// Done is closed when the fleet ended the session.
func (s *Session) Done() <-chan struct{} { return s.done }

// take returns what is to be sent next. The lease comes last: when a process hears that its lease is renewed, it has been sent
// everything that was there when it asked, so that it knows what the answer to an earlier question was.
func (s *Session) take(ctx context.Context) (Down, bool, error) {
	s.mu.Lock()
	if len(s.refused) > 0 {
		r := s.refused[0]
		s.refused = s.refused[1:]
		s.mu.Unlock()
		return Down{Refused: &r}, true, nil
	}
	for _, line := range s.keys {
		o := line.out
		if o == nil {
			continue
		}
		line.out = nil
		s.mu.Unlock()
		p, err := s.pack(ctx, o)
		if err != nil {
			return Down{}, false, err
		}
		return Down{Parcel: &p}, true, nil
	}
	l := s.lease
	s.lease = nil
	s.mu.Unlock()
	return Down{Lease: l}, l != nil, nil
}

// pack makes the parcel, outside of all locks.
func (s *Session) pack(ctx context.Context, o *outgoing) (delivery.Parcel, error) {
	var m delivery.Materials
	for _, n := range o.live() {
		if !slices.Contains(o.released, n) {
			continue
		}
		b, err := s.fleet.Keys.Material(ctx, o.key, n)
		if err != nil {
			return delivery.Parcel{}, fmt.Errorf("open material for %s: %w", s.address.Instance, err)
		}
		if m == nil {
			m = delivery.Materials{}
		}
		m[n] = b
	}
	p, err := s.parcels.Pack(o.text, m, s.fleet.Now().UTC())
	if err != nil {
		return p, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.line(o.key.ID)
	for n := range m {
		if !slices.Contains(l.delivered, n) {
			l.delivered = append(l.delivered, n)
		}
	}
	l.sent, l.told = o.key.Epoch, true
	return p, nil
}

// Close ends the session. After a clean leave the member is gone at once; otherwise it stays a member (block waits for it,
// fence until its lease is over).
func (s *Session) Close(ctx context.Context, clean bool) {
	f := s.fleet
	f.mu.Lock()
	mine := f.sessions[s.address.Instance] == s
	if mine {
		delete(f.sessions, s.address.Instance)
	}
	f.mu.Unlock()
	if !mine {
		return
	}
	ctx, cancel := f.whole(ctx)
	defer cancel()
	what, gone := f.away, "end of stream"
	if clean {
		what, gone = f.left, "leave"
	}
	if err := what(ctx, s); err != nil && ctx.Err() == nil && f.life.Err() == nil {
		f.Log.WarnContext(ctx, gone+" not stored", "instance", s.address.Instance, "error", err)
	}
}

// left makes the process of a session leave.
func (f *Fleet) left(ctx context.Context, s *Session) error {
	return f.goes(ctx, leaves, s.address.Instance, func(m *member) bool {
		return m.Incarnation == hexOf(s.address.Incarnation)
	})
}

// away tells the other servers that the stream of a process has ended, so that another process of its instance can take its place with one of
// them. This server remains the one that knows how long its leases run.
func (f *Fleet) away(_ context.Context, s *Session) error {
	if f.Replicas == nil {
		return nil
	}
	name := s.address.Instance
	return f.change(ends, name, func(context.Context, *group) (verdict, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		m, another := f.members[name], f.sessions[name] != nil
		if f.draining || another || m == nil || m.Away || m.Home != f.Replicas.ID() || m.Incarnation != hexOf(s.address.Incarnation) {
			return verdict{}, nil
		}
		next := m.clone()
		next.Away = true
		return verdict{next: next}, nil
	})
}

// end makes Next fail. Call with fleet.mu held.
func (f *Fleet) end(s *Session, why error) {
	s.once.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.why = why
		close(s.done)
		s.poke()
	})
	if f.sessions[s.address.Instance] == s {
		delete(f.sessions, s.address.Instance)
	}
}
