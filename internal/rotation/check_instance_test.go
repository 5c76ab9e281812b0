package rotation_test

import (
	"fmt"
	"time"

	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
)

// This file is the instance half of the model. What an instance believes, may use, protects and processes with is asked of
// package holder, once for each input (its functions are pure), and kept in tables.

// instanceMoves are the deeds of one instance and of the network between it and the server.
func (w *world) instanceMoves(s *state, i uint8, add func(action, state)) {
	in := s.inst[i]
	if in.stream == 0 && s.session == 0 {
		add(action{kJoin, i, 0}, w.join(*s, i))
	}
	if in.stream != 0 {
		w.streamMoves(s, i, add)
	}
	if w.crashes && (in.has != 0 || in.stream != 0) {
		to := *s
		to.inst[i] = instance{member: in.member, acked: in.acked, heard: in.heard, disk: in.disk}
		add(action{kCrash, i, 0}, to)
		if in.member && s.session == 0 {
			to.inst[i] = instance{disk: in.disk}
			add(action{kLeave, i, 0}, to)
		}
	}
	if w.serves(s, int(i)) {
		w.serveMoves(s, i, add)
	}
	if w.off == guardSession && s.replaced && in.has != 0 && in.synced {
		to := *s
		to.inst[i].lease = 0
		add(action{kStaleBeat, i, 0}, to)
	}
	if w.off == guardCache {
		w.cacheMoves(s, i, add)
	}
}

// join: membership and snapshot are one commit, so nothing older than the key as it is now comes on the new stream.
func (w *world) join(s state, i uint8) state {
	in := &s.inst[i]
	in.member, in.acked, in.heard, in.synced = true, 0, 0, false
	in.stream = uint8(len(w.nodes[s.node].history))
	if w.off == guardJoin {
		in.stream = 1
	}
	if w.joinCounts {
		in.acked = uint8(len(w.nodes[s.node].history))
		return s
	}
	s.waited = 0 // L2 grants a newcomer its time
	return s
}

func (w *world) streamMoves(s *state, i uint8, add func(action, state)) {
	in := s.inst[i]
	newest := uint8(len(w.nodes[s.node].history))
	for e := in.stream; e <= newest; e++ {
		if has := w.apply(s, in.has, e); has != in.has || !in.synced {
			to := *s
			to.inst[i].has, to.inst[i].synced = has, true
			add(action{kDeliver, i, e}, to)
		}
	}
	if !in.member {
		return
	}
	if s.session == 0 && in.synced && in.has == newest && in.acked != newest {
		to := *s
		to.inst[i].acked = newest
		add(action{kAck, i, 0}, to)
	}
	if int(s.session) <= w.session && w.renews(s, in) {
		to := *s
		to.inst[i].heard = 0
		add(action{kBeat, i, 0}, to)
	}
	if in.synced || w.off == guardRejoin && in.has != 0 {
		to := *s
		to.inst[i].lease = w.granted(in)
		add(action{kAnswer, i, 0}, to)
	}
}

func (w *world) serveMoves(s *state, i uint8, add func(action, state)) {
	if v := w.protects(s, int(i)); v != 0 {
		to := *s
		to.flight[v] = 1
		add(action{kEncrypt, i, v}, to)
	}
	if s.session != 0 {
		return
	}
	for r := range uint8(w.records) {
		v := s.rec[r] &^ restored
		if next, ok := w.call(s, opAttempted, v); ok {
			next.census = census{}
			add(action{kAttempt, i, r}, next)
		}
	}
}

// cacheMoves are those of the mutant that keeps its keys on disk and starts from there.
func (w *world) cacheMoves(s *state, i uint8, add func(action, state)) {
	in := s.inst[i]
	if in.has != 0 && in.disk != in.has {
		to := *s
		to.inst[i].disk = in.has
		add(action{kSave, i, 0}, to)
	}
	if in.has == 0 && in.disk != 0 {
		to := *s
		to.inst[i].has, to.inst[i].lease = in.disk, 0
		add(action{kLoad, i, 0}, to)
	}
}

// serves says whether an instance may be using the key: its clock may be as slow as the configuration allows.
func (w *world) serves(s *state, i int) bool {
	in := s.inst[i]
	if in.has == 0 {
		return false
	}
	return w.usable[in.lease] || w.off == guardFence
}

// processes asks whether an instance can process a ciphertext under a version.
func (w *world) processes(s *state, i int, version uint8) bool {
	return w.held(s, i).processes&(1<<version) != 0
}

// protects asks which version an instance encrypts with; 0: none.
func (w *world) protects(s *state, i int) uint8 { return w.held(s, i).protects }

func (w *world) held(s *state, i int) *snapshot {
	return w.snaps[w.nodes[s.node].history[s.inst[i].has-1]]
}

// snapshot is one snapshot with what the holder that has it can do.
type snapshot struct {
	wire      keyring.Snapshot
	processes uint32 // bit n: version n
	protects  uint8
}

func newSnapshot(wire keyring.Snapshot) *snapshot {
	s := &snapshot{wire: wire}
	k := &holder.Key{Snapshot: wire}
	for n := range uint32(maxVersions + 1) {
		if _, err := k.Process(handle(n), clock); err == nil {
			s.processes |= 1 << n
		}
	}
	if v, err := k.Protect(clock); err == nil {
		s.protects = uint8(v.Number)
	}
	return s
}

// apply asks which epoch an instance has after a snapshot arrived.
func (w *world) apply(s *state, has, arrived uint8) uint8 {
	history := w.nodes[s.node].history
	if has == 0 {
		if _, changed, err := holder.Apply(nil, w.snaps[history[arrived-1]].wire); changed && err == nil {
			return arrived
		}
		return 0
	}
	if w.off == guardOlder {
		return arrived
	}
	pair := [2]uint16{history[has-1], history[arrived-1]}
	takes, known := w.applied[pair]
	if !known {
		_, changed, err := holder.Apply(&holder.Key{Snapshot: w.snaps[pair[0]].wire}, w.snaps[pair[1]].wire)
		takes = changed && err == nil
		w.applied[pair] = takes
	}
	if takes {
		return arrived
	}
	return has
}

// instant is a reading of the process's clocks, a number of ticks before now.
func instant(ago int) holder.Instant {
	const now = 1 << 50
	return holder.Instant{Boot: now, Real: now}.Add(-time.Duration(ago) * tickLength)
}

// contactAt is what a process knows whose last answered request was sent so many ticks ago.
func (w *world) contactAt(age int) holder.Contact {
	return holder.Granted(holder.Contact{}, instant(age), ticks(w.ttl), ticks(w.margin))
}

// usableAt asks package holder whether a key may be used, by a clock that lost up to lag ticks since the request was sent.
func (w *world) usableAt(age int) bool {
	k := &holder.Key{Snapshot: w.snaps[0].wire}
	return k.Usable(w.contactAt(age), instant(min(age, w.lag))) == nil
}

// granted asks package holder what the answer to the last lease request makes of the contact; it returns the age of the
// request that counts.
func (w *world) granted(in instance) uint8 {
	c := holder.Granted(w.contactAt(int(in.lease)), instant(int(in.heard)), ticks(w.ttl), ticks(w.margin))
	if c.Heard == instant(int(in.heard)) {
		return in.heard
	}
	return in.lease
}

func (w *world) describe(s *state, i int) string {
	in := s.inst[i]
	text := "down"
	if in.has != 0 {
		text = fmt.Sprintf("has %d", in.has-1)
		if w.serves(s, i) {
			text += " serving"
		}
	} else if in.stream != 0 {
		text = "joining"
	}
	switch {
	case !in.member:
		text += ", no member"
	case in.acked == 0:
		text += ", no ack"
	default:
		text += fmt.Sprintf(", ack %d", in.acked-1)
	}
	return text
}
