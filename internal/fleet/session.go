package fleet

import (
	"context"
	"crypto/hmac"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/delivery"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// MaxKeys bounds the keys of one session.
const MaxKeys = 256

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
	Beat uint64
	TTL  time.Duration
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
	public    []byte
	wake      chan struct{} // something is in the mailbox
	done      chan struct{} // closed when the fleet ended the session
	once      sync.Once

	mu        sync.Mutex // guards what follows
	why       error      // why done was closed
	lease     *Lease     // latest only
	refused   []Refused
	box       map[keyring.KeyID]*outgoing // latest only
	delivered map[keyring.KeyID]map[uint32]bool
}

// outgoing is a snapshot to be sent, with the versions whose release is audited already.
type outgoing struct {
	key      keyring.Key
	released map[uint32]bool
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
	s := &Session{
		fleet: f, caller: c, namespace: h.Namespace, public: h.Public,
		address: delivery.Address{Cluster: f.cluster, Instance: c.Instance, Incarnation: h.Incarnation, Session: h.Session},
		wake:    make(chan struct{}, 1), done: make(chan struct{}),
		box: map[keyring.KeyID]*outgoing{}, delivered: map[keyring.KeyID]map[uint32]bool{},
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.sessions[c.Instance]; old != nil {
		if !hmac.Equal(old.address.Incarnation, h.Incarnation) && f.Now().Before(f.heard[c.Instance].Add(f.Leases.TTL)) {
			return nil, fault.New(fault.IdentityInUse, "instance "+c.Instance)
		}
		f.end(old, fault.New(fault.IdentityInUse, "instance "+c.Instance))
	}
	m := f.members[c.Instance]
	if m == nil || m.Incarnation != hexOf(h.Incarnation) {
		next := &member{Instance: c.Instance, Incarnation: hexOf(h.Incarnation), Joined: f.Now().UTC(), Keys: map[keyring.KeyID]*keyring.Epoch{}}
		if m != nil {
			next.rev = m.rev
		}
		if err := f.admitMember(ctx, next, "join "+c.Instance); err != nil {
			return nil, err
		}
	}
	f.sessions[c.Instance] = s
	f.heard[c.Instance] = f.Now()
	return s, nil
}

// admitMember stores a member that joins or changes what it holds. Call with mu held.
func (f *Fleet) admitMember(ctx context.Context, next *member, what string, conds ...guard.Cond) error {
	cond, write := f.bump()
	p := f.Guard.System("fleet", policy.ActDeliver, policy.Resource{})
	rev, err := f.put(ctx, p, []guard.Write{write}, []*member{next}, what, append(conds, cond)...)
	if err != nil {
		return f.reload(ctx, err)
	}
	next.rev = rev
	f.members[next.Instance] = next
	f.bumped(rev)
	return nil
}

// Hold makes the session a holder of keys by name. Membership and snapshot are one linearizable step: the join commits only if
// the key is still what is about to be sent. Keys that are refused are answered one by one.
func (s *Session) Hold(ctx context.Context, names []string) error {
	var keys []keyring.Key
	for _, name := range names {
		k, err := s.mayHold(ctx, name)
		if err != nil {
			s.refuse(name, err)
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil
	}
	keys, err := s.join(ctx, keys)
	if err != nil {
		return err
	}
	for _, k := range keys {
		s.fleet.publish(ctx, k, []*Session{s})
		if s.fleet.OnChange != nil {
			s.fleet.OnChange(k.ID)
		}
	}
	return nil
}

// mayHold asks for the right to hold a key: material needs deliver, public keys need verify.
func (s *Session) mayHold(ctx context.Context, name string) (keyring.Key, error) {
	k, ok := s.fleet.Keys.Lookup(s.namespace, name)
	res := policy.Resource{Namespace: string(s.namespace), Key: name, Labels: k.Labels}
	action := policy.ActDeliver
	if k.Purpose == suite.Sign {
		action = policy.ActVerify
	}
	if _, err := s.fleet.Guard.Admit(ctx, s.caller, action, res); err != nil {
		return k, err
	}
	if !ok {
		return k, fault.New(fault.NotFound, "key "+name)
	}
	if k.Custody != keyring.CustodyFleet && k.Purpose != suite.Sign {
		return k, fault.New(fault.WrongPurpose, "key "+name).WithHint("its custody is %s: its material never leaves the server", k.Custody)
	}
	return k, nil
}

func (s *Session) join(ctx context.Context, keys []keyring.Key) ([]keyring.Key, error) {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		m := f.members[s.address.Instance]
		if f.sessions[s.address.Instance] != s || m == nil {
			return nil, fault.New(fault.LeaseOver, "instance "+s.address.Instance)
		}
		next := m.clone()
		var conds []guard.Cond
		for i, k := range keys {
			fresh, cond, err := f.Keys.Record(ctx, k.ID)
			if err != nil {
				return nil, err
			}
			keys[i], conds = fresh, append(conds, cond)
			if next.Keys[k.ID] == nil {
				next.Keys[k.ID] = &keyring.Epoch{}
			}
		}
		if len(next.Keys) > MaxKeys {
			return nil, fault.New(fault.TooLarge, "keys of one instance")
		}
		if len(next.Keys) == len(m.Keys) {
			return keys, nil // held already: a new stream of the same process
		}
		err := f.admitMember(ctx, next, "hold "+s.address.Instance, conds...)
		if fault.CodeOf(err) == fault.Conflict {
			continue
		}
		return keys, err
	}
}

func (s *Session) refuse(name string, err error) {
	s.mu.Lock()
	s.refused = append(s.refused, Refused{name, err})
	s.mu.Unlock()
	s.poke()
}

// Publish pushes a changed key to its holders.
func (f *Fleet) Publish(ctx context.Context, k keyring.Key) {
	f.mu.Lock()
	var to []*Session
	for name, s := range f.sessions {
		if m := f.members[name]; m != nil && m.Keys[k.ID] != nil {
			to = append(to, s)
		}
	}
	f.mu.Unlock()
	f.publish(ctx, k, to)
}

// publish audits the release of material that is new to the sessions, as one entry, and then puts the snapshot into their boxes.
func (f *Fleet) publish(ctx context.Context, k keyring.Key, to []*Session) {
	var release []string
	fresh := map[*Session]map[uint32]bool{}
	for _, s := range to {
		if n := s.missing(k); len(n) > 0 {
			fresh[s] = n
			release = append(release, s.address.Instance)
		}
	}
	if len(release) > 0 {
		slices.Sort(release)
		p := f.Guard.System("fleet", policy.ActDeliver, policy.Resource{Namespace: string(k.Namespace), Key: k.Name, Labels: k.Labels})
		if err := p.Release(ctx, map[string]string{"instances": strings.Join(release, " "), "epoch": fmt.Sprint(k.Epoch.Counter)}); err != nil {
			f.Log.ErrorContext(ctx, "delivery not audited, so not made", "key", k.Name, "error", err)
			return
		}
	}
	for _, s := range to {
		s.post(k, fresh[s])
	}
}

// missing returns the live versions whose material the session has not got.
func (s *Session) missing(k keyring.Key) map[uint32]bool {
	if k.Custody != keyring.CustodyFleet {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	need := map[uint32]bool{}
	for _, v := range k.Snapshot().Versions {
		if v.Live() && !s.delivered[k.ID][v.Number] {
			need[v.Number] = true
		}
	}
	return need
}

func (s *Session) post(k keyring.Key, released map[uint32]bool) {
	s.mu.Lock()
	o := s.box[k.ID]
	if o == nil {
		o = &outgoing{released: map[uint32]bool{}}
		s.box[k.ID] = o
	}
	if !k.Epoch.Less(o.key.Epoch) {
		o.key = k
	}
	maps.Copy(o.released, released)
	s.mu.Unlock()
	s.poke()
}

func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Beat notes a lease request and answers it.
func (s *Session) Beat(beat uint64) {
	f := s.fleet
	f.mu.Lock()
	if f.sessions[s.address.Instance] != s {
		f.mu.Unlock()
		return
	}
	f.heard[s.address.Instance] = f.Now()
	f.mu.Unlock()
	s.mu.Lock()
	s.lease = &Lease{Beat: beat, TTL: f.Leases.TTL}
	s.mu.Unlock()
	s.poke()
}

// Acknowledge takes an acknowledgement if its proof shows that the process can use the key. fault.DecryptFailed when it does not.
func (s *Session) Acknowledge(ctx context.Context, a Ack) error {
	k, ok := s.fleet.Keys.Key(a.Key)
	if !ok {
		return fault.New(fault.NotFound, "key "+string(a.Key))
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
		if d, ok, err := s.take(ctx); ok || err != nil {
			return d, err
		}
		select {
		case <-s.wake:
		case <-s.done:
			s.mu.Lock()
			defer s.mu.Unlock()
			return Down{}, s.why
		case <-ctx.Done():
			return Down{}, fault.Wrap(fault.Canceled, "", ctx.Err())
		}
	}
}

// Done is closed when the fleet ended the session.
func (s *Session) Done() <-chan struct{} { return s.done }

func (s *Session) take(ctx context.Context) (Down, bool, error) {
	s.mu.Lock()
	if s.lease != nil {
		l := s.lease
		s.lease = nil
		s.mu.Unlock()
		return Down{Lease: l}, true, nil
	}
	if len(s.refused) > 0 {
		r := s.refused[0]
		s.refused = s.refused[1:]
		s.mu.Unlock()
		return Down{Refused: &r}, true, nil
	}
	var o *outgoing
	for id, next := range s.box {
		o = next
		delete(s.box, id)
		break
	}
	s.mu.Unlock()
	if o == nil {
		return Down{}, false, nil
	}
	p, err := s.pack(ctx, o)
	if err != nil {
		return Down{}, false, err
	}
	return Down{Parcel: &p}, true, nil
}

// pack makes the parcel, outside of all locks.
func (s *Session) pack(ctx context.Context, o *outgoing) (delivery.Parcel, error) {
	m := delivery.Materials{}
	snap := o.key.Snapshot()
	for _, v := range snap.Versions {
		if !v.Live() || !o.released[v.Number] {
			continue
		}
		b, err := s.fleet.Keys.Material(ctx, o.key, v.Number)
		if err != nil {
			return delivery.Parcel{}, fmt.Errorf("open material for %s: %w", s.address.Instance, err)
		}
		m[v.Number] = b
	}
	p, err := delivery.Pack(s.address, s.public, snap, m, s.fleet.Now().UTC(), s.fleet.Guard.Sign)
	if err != nil {
		return p, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.delivered[o.key.ID] == nil {
		s.delivered[o.key.ID] = map[uint32]bool{}
	}
	for n := range m {
		s.delivered[o.key.ID][n] = true
	}
	return p, nil
}

// Close ends the session. After a clean leave the member is gone at once; otherwise it stays a member (block waits for it,
// fence until its lease is over).
func (s *Session) Close(ctx context.Context, clean bool) {
	f := s.fleet
	f.mu.Lock()
	var left *member
	if f.sessions[s.address.Instance] == s {
		delete(f.sessions, s.address.Instance)
		if m := f.members[s.address.Instance]; clean && m != nil && m.Incarnation == hexOf(s.address.Incarnation) {
			if err := f.leave(ctx, m, "leave "+m.Instance); err != nil {
				f.Log.WarnContext(ctx, "leave not stored", "instance", m.Instance, "error", err)
			} else {
				left = m
			}
		}
	}
	f.mu.Unlock()
	f.notify(left)
}

// end makes Next fail. Call with fleet.mu held.
func (f *Fleet) end(s *Session, why error) {
	s.once.Do(func() {
		s.mu.Lock()
		s.why = why
		s.mu.Unlock()
		close(s.done)
	})
	if f.sessions[s.address.Instance] == s {
		delete(f.sessions, s.address.Instance)
	}
}
