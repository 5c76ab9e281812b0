package rotation_test

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/keyring"
)

// This file is the model's state and its moves. What the server decides (check_server_test.go) and what an instance does
// (check_instance_test.go) is asked of the real code; the network, the clocks, the store and the data set are modelled here.

const (
	maxInstances = 2
	maxRecords   = 2
	maxVersions  = 3
)

// guard names a guard that a mutant switches off.
type guard string

// The guards of the design.
const (
	guardNone       guard = ""
	guardAcks       guard = "fixed wait instead of acknowledgements"
	guardFence      guard = "silent members dropped but not fenced"
	guardSkew       guard = "clock skew above the margin"
	guardCache      guard = "serve from a disk cache before syncing"
	guardJoin       guard = "join answered by a stale replica"
	guardOlder      guard = "holder accepts an older or repeated snapshot"
	guardFloor      guard = "no floor, a writer frozen in mid-write"
	guardCensus     guard = "census before everyone acknowledged"
	guardRollback   guard = "rollback removes the new version"
	guardMembership guard = "membership in memory only, server restarts"
	guardSession    guard = "replica renews without its own session"
	guardFreeze     guard = "no freeze before the last census"

	// Not in the design, found while the checker was written.
	guardRenewal guard = "lease renewed to a member behind the distribution"
	guardRejoin  guard = "lease credited before the join's snapshot"
	guardLower   guard = "rolled back without lowering the floors"
)

// config is one model. Durations are in ticks.
type config struct {
	silence                       keyring.Silence
	instances, records            int
	versions                      int // that may be made
	rollbacks                     int
	ttl, margin, skew, lag, stale int // lag: how much slower than the server's an instance's clock may really be
	session                       int // of a replica
	window, wait                  int
	floor                         bool // the data set can refuse; otherwise a write lands within inflight ticks
	inflight                      int
	retention                     int // of the one backup of a record; 0: there is none
	crashes, restarts, replicas   bool
	eager                         bool // censuses are also started when they cannot be believed
	joinCounts                    bool // the epoch of a join counts as acknowledged, as its process has no older one
	late                          bool // the leader's steps may arrive after others'
	symmetry                      bool // instances and records that can be exchanged are sorted
	check                         string
	off                           guard
}

// Ages are in ticks, capped where a larger one makes no difference. Epochs are positions in the key's history plus 1; 0: none.
type state struct {
	node     uint16             // the key's record with its history
	demoted  [maxVersions]uint8 // age
	retired  [maxVersions]uint8 // age
	waited   uint8              // age of the distribution in flight
	quiet    uint8              // ticks since the server knows that everybody acknowledged the promotion
	rolled   uint8
	session  uint8 // ticks since the replica in charge lost the store; 0: it has it
	replaced bool  // a replica that was in charge before is still running
	floor    uint8
	census   census
	backup   uint8                  // 0: not taken, else its age + 1
	spent    bool                   // restored in this tick: once is enough, or one tick could hold epochs without end
	flight   [maxVersions + 1]uint8 // writes in flight under a version: age of the youngest + 1; 0: none
	late     late                   // what the leader decided and has not arrived
	rec      [maxRecords]uint8      // version of each record
	inst     [maxInstances]instance
}

// restored marks a record that came back from a backup, past every rule of the data set.
const restored = 0x80

type instance struct {
	member bool  // stored
	acked  uint8 // stored epoch
	heard  uint8 // age of the last lease request, by the replica in charge
	stream uint8 // oldest epoch that may still arrive on the stream, 0: no stream
	has    uint8 // epoch in the process's memory
	synced bool  // a snapshot of this stream has been applied
	lease  uint8 // age of the request whose answer the process relies on
	disk   uint8 // epoch in a cache on disk (guardCache)
}

type census struct {
	version uint8
	cursor  uint8 // records counted, all clean so far
	epoch   uint8
	free    bool // started after the wait
	settled bool // when it started, nothing could be written under the version any more
}

// kind is a kind of action.
type kind uint8

const (
	kTick kind = iota
	kJoin
	kDeliver
	kAck
	kBeat
	kAnswer
	kEncrypt
	kAttempt
	kRotate
	kDistribute
	kPromote
	kDrop
	kSettle
	kFloor
	kBack
	kCampaign
	kCensus
	kCount
	kRetire
	kDestroy
	kTakeover
	// What follows are faults: L1 is promised without them.
	kLand
	kCrash
	kLeave
	kRestart
	kForget
	kCut
	kStaleBeat
	kSave
	kLoad
	kBackup
	kRestore
	kDecide
	kLate
	kFloorSent
	kFloorLate
	kinds
)

// action is what happens; a and b are an instance, record, version or epoch.
type action struct {
	kind kind
	a, b uint8
}

func (a action) fault() bool { return a.kind >= kLand }

func (a action) String() string {
	who := string(rune('A' + a.a))
	switch a.kind {
	case kTick:
		return "a tick passes"
	case kJoin:
		return who + " joins"
	case kDeliver:
		return fmt.Sprintf("%s gets the snapshot of epoch %d", who, a.b-1)
	case kAck:
		return who + "'s acknowledgement arrives"
	case kBeat:
		return who + "'s lease request arrives"
	case kAnswer:
		return who + " gets the answer to its last lease request"
	case kEncrypt:
		return fmt.Sprintf("%s encrypts under v%d", who, a.b)
	case kAttempt:
		return fmt.Sprintf("%s tries to read r%d and is refused", who, a.b+1)
	case kRotate:
		return "operator: rotate"
	case kDistribute:
		return "server: distribute"
	case kPromote:
		return fmt.Sprintf("server: promote v%d", a.b)
	case kDrop:
		return "server: drop the silent member " + who
	case kSettle:
		return "server: the rollback window is over"
	case kFloor:
		return "server: raise the floor"
	case kBack:
		return fmt.Sprintf("operator: back to v%d", a.b)
	case kCampaign:
		return fmt.Sprintf("campaign: re-encrypt r%d", a.b+1)
	case kCensus:
		return fmt.Sprintf("census of v%d starts", a.b)
	case kCount:
		return fmt.Sprintf("census reads r%d", a.b+1)
	case kRetire:
		return fmt.Sprintf("server: retire v%d", a.b)
	case kDestroy:
		return fmt.Sprintf("server: destroy v%d", a.b)
	case kLand:
		return fmt.Sprintf("a write under v%d arrives at r%d", a.a, a.b+1)
	case kCrash:
		return who + " crashes"
	case kLeave:
		return who + " stops cleanly"
	case kRestart:
		return "the server restarts"
	case kForget:
		return "the server restarts and has lost the last acknowledgements"
	case kCut:
		return "the replica in charge loses the store"
	case kTakeover:
		return "another replica takes over"
	case kStaleBeat:
		return "the replaced replica renews the lease of " + who
	case kSave:
		return who + " writes its cache to disk"
	case kLoad:
		return who + " starts from its cache"
	case kBackup:
		return fmt.Sprintf("a backup of r%d is taken", a.b+1)
	case kDecide:
		return "the leader decides, and is late: " + action{kind: kind(a.b)}.String()
	case kLate:
		return "what was decided before arrives: " + action{kind: kind(a.b)}.String()
	case kFloorSent:
		return "the leader sends a floor"
	case kFloorLate:
		return fmt.Sprintf("the floor %d of before arrives at the data set", a.b)
	case kRestore:
		return fmt.Sprintf("r%d is restored from the backup", a.b+1)
	}
	return "?"
}

// move is an action with the state that it leads to.
type move struct {
	do     action
	to     state
	broken string
}

func (w *world) initial() state {
	s := state{node: 0, floor: 1}
	for r := range w.records {
		s.rec[r] = 1
	}
	for i := range w.instances {
		s.inst[i] = instance{member: true, acked: 1, stream: 1, has: 1, synced: true}
	}
	return w.canon(s)
}

// moves lists everything that can happen in a state.
func (w *world) moves(s *state, out []move) []move {
	add := func(do action, to state) {
		to = w.canon(to)
		if to != *s {
			out = append(out, move{do: do, to: to})
		}
	}
	add(action{kind: kTick}, w.tick(*s))
	for i := range w.instances {
		w.instanceMoves(s, uint8(i), add)
	}
	w.dataMoves(s, add)
	w.replicaMoves(s, add)
	if s.session == 0 {
		out = w.serverMoves(s, out)
	}
	if w.late {
		out = w.lateMoves(s, out)
		for i := range out {
			w.overtaken(s, &out[i])
		}
	}
	return out
}

// tick lets every clock go on by one.
func (w *world) tick(s state) state {
	for n := range maxVersions {
		s.demoted[n]++
		s.retired[n]++
	}
	s.late.tick()
	s.waited++
	if s.quiet < uint8(w.inflight)+1 && w.heard(&s) {
		s.quiet++
	}
	if s.session > 0 {
		s.session++
	}
	if s.backup > 0 {
		s.backup++
	}
	s.spent = false
	for v := range s.flight {
		if !w.floor && s.flight[v] > 0 {
			s.flight[v]++
		}
	}
	for i := range w.instances {
		s.inst[i].heard++
		s.inst[i].lease++
	}
	return s
}

// dataMoves are the writes that arrive at the data set and the backup of it.
func (w *world) dataMoves(s *state, add func(action, state)) {
	for r := range uint8(w.records) {
		for v := uint8(1); v <= maxVersions; v++ {
			if s.flight[v] == 0 || s.rec[r] == v || v < s.floor && w.off != guardFloor {
				continue
			}
			to := *s
			to.rec[r] = v
			add(action{kLand, v, r}, to)
		}
		if w.retention == 0 {
			continue
		}
		if s.backup == 0 && s.rec[r] == 1 {
			to := *s
			to.backup = 1
			add(action{kBackup, 0, r}, to)
		}
		if s.backup > 0 && int(s.backup)-1 < w.retention && !s.spent {
			to := *s
			to.rec[r], to.spent = 1|restored, true
			add(action{kRestore, 0, r}, to)
		}
	}
}

// replicaMoves are the faults of the server.
func (w *world) replicaMoves(s *state, add func(action, state)) {
	if w.restarts && s.session == 0 {
		to := w.newServer(*s)
		if w.off == guardMembership {
			for i := range w.instances {
				to.inst[i].member, to.inst[i].acked, to.inst[i].stream = false, 0, 0
			}
		}
		add(action{kind: kRestart}, to)
		for i := range w.instances {
			to.inst[i].acked = 0
		}
		add(action{kind: kForget}, to)
	}
	if !w.replicas {
		return
	}
	if s.session == 0 {
		to := *s
		to.session = 1
		add(action{kind: kCut}, to)
	}
	if int(s.session) > w.session+w.skew {
		to := w.newServer(*s)
		to.session, to.replaced = 0, true
		add(action{kind: kTakeover}, to)
		for i := range w.instances {
			to.inst[i].acked = 0
		}
		add(action{kTakeover, 0, 1}, to)
	}
}

// newServer is what a server's start leaves: what was in memory is gone.
func (w *world) newServer(s state) state {
	s.census, s.waited, s.quiet = census{}, 0, 0
	for i := range w.instances {
		s.inst[i].heard = 0 // unknown: counts from the start of the session (rotation.Leases.Session)
	}
	return s
}

// canon caps the ages, clears what no longer matters and sorts what can be exchanged, so that equal states are equal.
func (w *world) canon(s state) state {
	k := w.nodes[s.node].key
	for n := range maxVersions {
		demoted, retired := false, false
		if n < k.Len() {
			v := k.At(n)
			demoted = v.Phase == keyring.PhaseDecryptOnly && v.State == keyring.Active
			retired = v.Phase == keyring.PhaseRetired
		}
		s.demoted[n] = capped(s.demoted[n], w.window, demoted)
		s.retired[n] = capped(s.retired[n], w.wait, retired)
	}
	w.capLate(&s.late)
	s.waited = capped(s.waited, w.waitCap, underWay(k))
	s.quiet = capped(s.quiet, w.inflight+1, !w.floor)
	s.session = capped(s.session, w.session+w.skew+1, true)
	s.replaced = s.replaced && w.off == guardSession
	if s.backup > 0 {
		s.backup = 1 + capped(s.backup-1, w.retention, true)
	}
	for v := range s.flight {
		if int(s.flight[v]) > w.inflight+1 && !w.floor {
			s.flight[v] = 0
		}
	}
	for i := range w.instances {
		in := &s.inst[i]
		in.heard = capped(in.heard, w.ttl+w.skew, in.member && w.silence == keyring.Fence)
		in.lease = min(in.lease, w.leaseEnd)
		if in.has == 0 {
			in.lease = w.leaseEnd
		}
		if in.synced && w.off != guardOlder {
			in.stream = 1 // only what is newer than the memory can come
		}
	}
	if w.symmetry {
		s = w.sorted(s)
	}
	return s
}

// underWay says whether the target is with instances. To ask for a version that is not there makes an error with a hint, which took a sixth of the search.
func underWay(k keyring.Key) bool {
	if k.Target == 0 {
		return false
	}
	v, err := k.Version(k.Target)
	return err == nil && v.Phase != keyring.PhaseStaged
}

func (w *world) sorted(s state) state {
	if w.instances == 2 && s.inst[1].before(s.inst[0]) {
		s.inst[0], s.inst[1] = s.inst[1], s.inst[0]
	}
	if c := s.census.cursor; (c == 0 || int(c) == w.records) && w.records == 2 && s.rec[1] < s.rec[0] {
		s.rec[0], s.rec[1] = s.rec[1], s.rec[0]
	}
	return s
}

func (a instance) before(b instance) bool { return slices.Compare(a.bytes(), b.bytes()) < 0 }

func (a instance) bytes() []byte {
	b := [8]byte{a.acked, a.heard, a.stream, a.has, a.lease, a.disk}
	if a.member {
		b[6] = 1
	}
	if a.synced {
		b[7] = 1
	}
	return b[:]
}

func capped(age uint8, at int, counts bool) uint8 {
	if !counts {
		return 0
	}
	return min(age, uint8(at))
}

// broken names the property that a state breaks, empty: none.
func (w *world) broken(s *state) string {
	for _, p := range []struct {
		name  string
		holds func(*state) bool
	}{{"S2", w.s2}, {"S4", w.s4}, {"S1", w.s1}, {"S5", w.s5}, {"L2", w.l2}} {
		if (w.check == "" || w.check == p.name) && !p.holds(s) {
			return p.name
		}
	}
	return ""
}

// s1: no serving instance meets a ciphertext in the data set that it cannot process. What came back from a backup of before
// the retirement is refused by design.
func (w *world) s1(s *state) bool {
	for i := range w.instances {
		if !w.serves(s, i) {
			continue
		}
		for r := range w.records {
			if s.rec[r]&restored == 0 && !w.processes(s, i, s.rec[r]) {
				return false
			}
		}
	}
	return true
}

// s2: nothing in the data set is under a destroyed version.
func (w *world) s2(s *state) bool {
	for v := range w.nodes[s.node].key.All() {
		if v.Phase == keyring.PhaseDestroyed && w.any(s, func(rec uint8) bool { return uint32(rec&^restored) == v.Number }) {
			return false
		}
	}
	return true
}

// s4: what a settled census has counted as clean stays clean, and so does what is retired.
func (w *world) s4(s *state) bool {
	for r := range s.census.cursor {
		if s.census.settled && s.rec[r] == s.census.version {
			return false
		}
	}
	for v := range w.nodes[s.node].key.All() {
		if v.Phase == keyring.PhaseRetired && w.any(s, func(rec uint8) bool { return uint32(rec) == v.Number }) {
			return false
		}
	}
	return true
}

// s5: no serving instance protects with a version that the data set refuses, so that a refused writer can encrypt again.
func (w *world) s5(s *state) bool {
	for i := range w.instances {
		if w.serves(s, i) && w.protects(s, i) < s.floor {
			return false
		}
	}
	return true
}

// l2: in fence mode, once the bound has passed since the distribution, the last restart of a server and the last join, every
// member that a promotion still waits for can be dropped.
func (w *world) l2(s *state) bool {
	k := w.nodes[s.node].key
	v, err := k.Version(k.Target)
	if w.silence != keyring.Fence || s.session > 0 || err != nil || int(s.waited) < w.ttl+2*w.skew {
		return true
	}
	for i := range w.instances {
		in := s.inst[i]
		if in.member && w.epochAt(in.acked).Less(v.Distributed) && !w.over[in.heard] {
			return false
		}
	}
	return true
}

func (w *world) any(s *state, is func(uint8) bool) bool {
	for r := range w.records {
		if is(s.rec[r]) {
			return true
		}
	}
	return false
}

// goal is what L1 asks for: version 1 is destroyed. Where it is the primary again and the model may make no other version,
// there is nothing to ask for.
func (w *world) goal(s *state) bool {
	k := &w.nodes[s.node].key
	spent := k.Len() == w.versions && (k.Primary == 1 || k.Target == 1) && w.rollbacks > 0
	return spent || k.At(0).Phase == keyring.PhaseDestroyed
}

// line shows a step of a trace: the action and the state after it.
func (w *world) line(a action, s *state) string {
	var b strings.Builder
	what := "start"
	if *s != w.initial() || a != (action{}) {
		what = a.String()
	}
	k := w.nodes[s.node].key
	fmt.Fprintf(&b, "%-52s | epoch %d", what, len(w.nodes[s.node].history)-1)
	for v := range k.All() {
		fmt.Fprintf(&b, " v%d:%s", v.Number, v.Phase)
	}
	fmt.Fprintf(&b, " | floor %d, records", s.floor)
	for r := range w.records {
		fmt.Fprintf(&b, " v%d", s.rec[r]&^restored)
	}
	for i := range w.instances {
		fmt.Fprintf(&b, " | %c %s", 'A'+i, w.describe(s, i))
	}
	return b.String()
}
