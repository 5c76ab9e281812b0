package rotation_test

import (
	"encoding/json"
	"time"

	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// This file is the server half of the model. It sees the key's record, the stored members, its own memory of lease requests
// and what the data set tells; every step is decided by package rotation, whose answers are kept by input (its functions are pure).

const tickLength = time.Second

func ticks(n int) time.Duration { return time.Duration(n) * tickLength }

// clock is what time it always is in the model: only ages count.
var clock = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func handle(n uint32) uint32 { return 1000 + n }

// node is a key's record, its times taken out (state keeps their ages), with the snapshots of all its epochs.
type node struct {
	key     keyring.Key
	history []uint16
}

type world struct {
	config
	nodes    []node
	nodeAt   map[string]uint16
	snaps    []*snapshot
	snapAt   map[string]uint16
	applied  map[[2]uint16]bool
	answers  map[question]reply
	over     []bool // by the age of the last lease request
	usable   []bool // by the age of the request that the process relies on
	leaseEnd uint8  // age from which on a lease is no use
	waitCap  int
	firstAt  keyring.Epoch
	steps    map[question]rotation.Step
}

func newWorld(c config) *world {
	w := &world{
		config: c, nodeAt: map[string]uint16{}, snapAt: map[string]uint16{}, applied: map[[2]uint16]bool{},
		answers: map[question]reply{}, steps: map[question]rotation.Step{},
	}
	k := keyring.Key{
		ID: "k", Namespace: "n", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Algorithm: suite.XAES256GCM,
		Rotation: keyring.Rotation{
			Silence: c.silence, MaxStale: max(ticks(c.stale), 1), Window: max(ticks(c.window), 1), Wait: max(ticks(c.wait), 1), Approvals: 2,
		},
	}
	k, err := rotation.First(k, keyring.Version{Handle: handle(1), Algorithm: suite.XAES256GCM}, clock)
	if err != nil {
		panic(err)
	}
	w.firstAt = k.Epoch
	w.intern(nil, k)
	leases := rotation.Leases{TTL: ticks(c.ttl), MaxSkew: ticks(c.skew), Session: clock.Add(-time.Hour)}
	for age := range c.ttl + c.skew + 1 {
		restarted := leases
		restarted.Session = clock.Add(-ticks(age))
		w.over = append(w.over, leases.Over(restarted.Session, clock) || restarted.Over(time.Time{}, clock))
	}
	for age := 0; ; age++ {
		w.usable = append(w.usable, w.usableAt(age))
		if !w.usable[age] {
			w.leaseEnd = uint8(age)
			break
		}
	}
	if c.silence == keyring.Fence || c.off == guardAcks {
		w.waitCap = c.ttl + 2*c.skew
	}
	return w
}

// intern gives a record its number.
func (w *world) intern(before []uint16, k keyring.Key) uint16 {
	k = k.Clone()
	k.Created, k.Since = time.Time{}, time.Time{}
	for v := range k.All() {
		for _, t := range []*time.Time{
			&v.Created, &v.Published, &v.Activated, &v.Demoted, &v.Deactivated, &v.Suspended, &v.Compromised, &v.Retired, &v.Destroyed,
		} {
			*t = time.Time{}
		}
		k = k.Put(v)
	}
	history := before
	if at := int(k.Epoch.Counter - w.firstAt.Counter); at >= len(before) {
		history = append(before[:len(before):len(before)], w.internSnapshot(k.Snapshot()))
	}
	name := fingerprint(struct {
		K keyring.Key
		H []uint16
	}{k, history})
	n, ok := w.nodeAt[name]
	if !ok {
		n = uint16(len(w.nodes))
		w.nodes = append(w.nodes, node{k, history})
		w.nodeAt[name] = n
	}
	return n
}

func (w *world) internSnapshot(s keyring.Snapshot) uint16 {
	name := fingerprint(s)
	n, ok := w.snapAt[name]
	if !ok {
		n = uint16(len(w.snaps))
		w.snaps = append(w.snaps, newSnapshot(s))
		w.snapAt[name] = n
	}
	return n
}

func fingerprint(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (w *world) epochAt(e uint8) keyring.Epoch {
	if e == 0 {
		return keyring.Epoch{}
	}
	return keyring.Epoch{Incarnation: w.firstAt.Incarnation, Counter: w.firstAt.Counter + uint64(e) - 1}
}

// op is a function of package rotation.
type op uint8

const (
	opStage op = iota
	opDistribute
	opPromote
	opSettle
	opBack
	opRetire
	opUnretire
	opAttempted
	opDestroy
	opNext
	opCounting
	opRenewable
)

// question is everything that the answer of a function of package rotation depends on.
type question struct {
	op      op
	version uint8
	node    uint16
	demoted [maxVersions]uint8
	retired [maxVersions]uint8
	members [maxInstances]uint8 // acknowledged epoch + 1; 0: no member
	census  census
}

type reply struct {
	ok      bool
	node    uint16
	demoted [maxVersions]uint8
	retired [maxVersions]uint8
	broken  string
}

func (w *world) ask(s *state, o op, version uint8) question {
	q := question{op: o, version: version, node: s.node, demoted: s.demoted, retired: s.retired}
	for i := range w.instances {
		if s.inst[i].member {
			q.members[i] = s.inst[i].acked + 1
		}
	}
	if o == opRetire || o == opDestroy {
		q.census = s.census
	}
	ignoresAcks := w.off == guardAcks && o == opPromote || w.off == guardCensus && (o == opRetire || o == opDestroy || o == opCounting)
	if ignoresAcks {
		q.members = [maxInstances]uint8{}
	}
	return q
}

// call lets package rotation take a step; ok is false if it refuses.
func (w *world) call(s *state, o op, version uint8) (state, bool) {
	next, ok, _ := w.commit(s, o, version)
	return next, ok
}

func (w *world) commit(s *state, o op, version uint8) (state, bool, string) {
	q := w.ask(s, o, version)
	r, known := w.answers[q]
	if !known {
		r = w.decide(q)
		w.answers[q] = r
	}
	to := *s
	if r.ok {
		to.node, to.demoted, to.retired = r.node, r.demoted, r.retired
	}
	return to, r.ok, r.broken
}

// decide asks package rotation.
func (w *world) decide(q question) reply {
	k := w.record(q)
	next, ok := w.perform(k, q)
	if !ok {
		return reply{}
	}
	if w.off == guardRollback && q.op == opPromote && k.Target < k.Primary {
		next = next.Edit(k.Primary, func(v *keyring.Version) { v.Phase = keyring.PhaseRetired })
	}
	r := reply{ok: true, broken: s3(k, next)}
	for v := range next.All() {
		r.demoted[v.Number-1], r.retired[v.Number-1] = age(v.Demoted), age(v.Retired)
	}
	r.node = w.intern(w.nodes[q.node].history, next)
	return r
}

func age(t time.Time) uint8 {
	if t.IsZero() {
		return 0
	}
	return uint8(clock.Sub(t) / tickLength)
}

// record is the key's record with its times.
func (w *world) record(q question) keyring.Key {
	k := w.nodes[q.node].key.Clone()
	for v := range k.All() {
		if v.Phase == keyring.PhaseDecryptOnly {
			v.Demoted = clock.Add(-ticks(int(q.demoted[v.Number-1])))
		}
		if v.Phase == keyring.PhaseRetired {
			v.Retired = clock.Add(-ticks(int(q.retired[v.Number-1])))
		}
		k = k.Put(v)
	}
	return k
}

func (w *world) membersOf(q question) []rotation.Member {
	var members []rotation.Member
	for i, acked := range q.members {
		if acked > 0 {
			members = append(members, rotation.Member{Instance: string(rune('A' + i)), Acked: w.epochAt(acked - 1)})
		}
	}
	return members
}

func (w *world) perform(k keyring.Key, q question) (keyring.Key, bool) {
	n, members := uint32(q.version), w.membersOf(q)
	next, err, ok := k, error(nil), true
	switch q.op {
	case opStage:
		next, err = rotation.Stage(k, keyring.Version{Handle: handle(uint32(k.Len() + 1)), Algorithm: suite.XAES256GCM}, clock)
	case opDistribute:
		next, err = rotation.Distribute(k, clock)
	case opPromote:
		next, err = rotation.Promote(k, members, clock, false)
	case opSettle:
		next, ok = rotation.Settle(k, clock)
	case opBack:
		next, err = rotation.Back(k, n, clock)
	case opRetire:
		next, err = rotation.Retire(k, n, w.evidence(k, q), members, clock)
	case opUnretire:
		next, err = rotation.Unretire(k, n)
	case opAttempted:
		next, ok = rotation.Attempted(k, n, clock)
	case opDestroy:
		for _, who := range []string{"a", "b"} {
			if next, err = rotation.Approve(next, n, who); err != nil {
				return k, false
			}
		}
		next, err = rotation.Destroy(next, n, w.evidence(k, q), members, clock)
	case opCounting:
		late, err := rotation.Counting(k, n, members)
		return k, err == nil && len(late) == 0
	}
	return next, err == nil && ok
}

// evidence is the census of the model as package rotation takes it.
func (w *world) evidence(k keyring.Key, q question) rotation.Census {
	free := k.At(int(q.version) - 1).Retired.Add(k.Rotation.Wait)
	c := rotation.Census{Version: uint32(q.census.version), Epoch: w.epochAt(q.census.epoch), Settled: q.census.settled, Started: free.Add(-tickLength)}
	if q.census.free {
		c.Started = free
	}
	if w.off == guardCensus {
		c.Epoch = k.Epoch
	}
	return c
}

// s3 checks a commit: one primary per epoch, and whatever holders are told changes with the epoch only.
func s3(before, after keyring.Key) string {
	was, is := before.Snapshot(), after.Snapshot()
	primaries := 0
	for _, v := range is.Versions {
		if v.Phase == keyring.PhasePrimary {
			primaries++
			if v.Number != is.Primary {
				return "S3"
			}
		}
	}
	if primaries != 1 || is.Epoch.Less(was.Epoch) {
		return "S3"
	}
	if is.Epoch == was.Epoch && fingerprint(was) != fingerprint(is) {
		return "S3"
	}
	if _, changed, err := holder.Apply(&holder.Key{Snapshot: was}, is); err != nil || changed != was.Epoch.Less(is.Epoch) {
		return "S3"
	}
	return ""
}

// next is what rollout asks before each step.
func (w *world) next(s *state) rotation.Step {
	q := w.ask(s, opNext, 0)
	step, known := w.steps[q]
	if !known {
		step, _ = rotation.Next(w.record(q), w.membersOf(q), clock)
		w.steps[q] = step
	}
	return step
}

// renews says whether the server answers a lease request with a lease.
func (w *world) renews(s *state, in instance) bool {
	if w.off == guardRenewal {
		return true
	}
	q := question{op: opRenewable, node: s.node, members: [maxInstances]uint8{in.acked + 1}}
	r, known := w.answers[q]
	if !known {
		r.ok = rotation.Renewable(w.nodes[s.node].key, w.epochAt(in.acked))
		w.answers[q] = r
	}
	return r.ok
}

// heard says whether the server knows that every member acknowledged what took the place of the versions before.
func (w *world) heard(s *state) bool {
	for v := range w.nodes[s.node].key.All() {
		if (v.Phase == keyring.PhaseDecryptOnly || v.Phase == keyring.PhaseRetired) && v.Number != w.nodes[s.node].key.Target && !w.counting(s, uint8(v.Number)) {
			return false
		}
	}
	return s.session == 0
}

// counting asks package rotation whether every member has acknowledged so much that a version may be counted.
func (w *world) counting(s *state, n uint8) bool {
	q := w.ask(s, opCounting, n)
	r, known := w.answers[q]
	if !known {
		_, r.ok = w.perform(w.record(q), q)
		w.answers[q] = r
	}
	return r.ok
}

// serverMoves are the steps of rollout, the operator, the campaign and the census. Each is one commit, conditioned on key and members.
func (w *world) serverMoves(s *state, out []move) []move {
	take := func(do action, o op, version uint8, then func(*state)) bool {
		to, ok, broken := w.commit(s, o, version)
		if !ok {
			return false
		}
		if then != nil {
			then(&to)
		}
		if to = w.canon(to); to != *s {
			if w.check != "" && w.check != "S3" {
				broken = ""
			}
			out = append(out, move{do, to, broken})
			out = w.decideLate(s, do, to, out)
		}
		return true
	}
	k := &w.nodes[s.node].key
	if k.Len() < w.versions {
		take(action{kind: kRotate}, opStage, 0, nil)
	}
	switch w.next(s) {
	case rotation.StepDistribute:
		take(action{kind: kDistribute}, opDistribute, 0, func(to *state) { to.waited = 0 })
	case rotation.StepSettle:
		take(action{kind: kSettle}, opSettle, 0, nil)
	}
	if w.off != guardAcks || int(s.waited) >= 2 { // its gate is its own, whatever Next says
		take(action{kPromote, 0, uint8(k.Target)}, opPromote, 0, afterPromotion)
	}
	plain := func(do action, to state) {
		if to = w.canon(to); to != *s {
			out = append(out, move{do: do, to: to})
		}
	}
	w.dropMoves(s, plain)
	if s.rolled < uint8(w.rollbacks) {
		for n := range uint8(k.Len()) {
			take(action{kBack, 0, n + 1}, opBack, n+1, func(to *state) {
				to.rolled++
				to.census, to.waited = census{}, 0
				if w.off != guardLower {
					to.floor = min(to.floor, n+1)
				}
			})
		}
	}
	if w.floor && k.Target == 0 && s.floor < uint8(k.Primary) && w.heard(s) {
		to := *s
		to.floor = uint8(k.Primary)
		plain(action{kind: kFloor}, to)
		if w.late && s.late.floor == 0 {
			sent := *s
			sent.late.floor, sent.late.old = uint8(k.Primary), false
			plain(action{kind: kFloorSent}, sent)
		}
	}
	w.campaignMoves(s, plain)
	w.censusMoves(s, plain)
	for n := range uint8(k.Len()) {
		if c := s.census; c.version != n+1 || int(c.cursor) < w.records {
			continue
		}
		take(action{kRetire, 0, n + 1}, opRetire, n+1, func(to *state) { to.census = census{} })
		take(action{kDestroy, 0, n + 1}, opDestroy, n+1, func(to *state) { to.census = census{} })
	}
	return out
}

func afterPromotion(to *state) { to.quiet, to.waited = 0, 0 }

// dropMoves: in fence mode a member leaves whose lease is over by this server's clock.
func (w *world) dropMoves(s *state, add func(action, state)) {
	if w.silence != keyring.Fence {
		return
	}
	for i := range uint8(w.instances) {
		in := s.inst[i]
		if !in.member || !w.over[in.heard] || int(in.acked) == len(w.nodes[s.node].history) {
			continue
		}
		to := *s
		to.inst[i].member, to.inst[i].acked, to.inst[i].stream, to.inst[i].synced = false, 0, 0, false
		add(action{kDrop, i, 0}, to)
	}
}

// campaignMoves re-encrypts one record under the primary; compare-and-swap makes it one step.
func (w *world) campaignMoves(s *state, add func(action, state)) {
	k := &w.nodes[s.node].key
	for r := range uint8(w.records) {
		v, err := k.Version(uint32(s.rec[r] &^ restored))
		if err != nil || v.Number == k.Primary || k.Target != 0 || k.MayProcess(v, time.Time{}, clock, false) != nil {
			continue
		}
		to := *s
		to.rec[r] = uint8(k.Primary)
		add(action{kCampaign, 0, r}, to)
	}
}

// censusMoves start a census or read one more record. A version that is found again after its retirement is brought back.
func (w *world) censusMoves(s *state, add func(action, state)) {
	k := &w.nodes[s.node].key
	c := s.census
	if c.version != 0 && int(c.cursor) < w.records {
		to := *s
		to.census.cursor++
		if s.rec[c.cursor]&^restored == c.version {
			to.census = census{}
			if back, ok := w.call(&to, opUnretire, c.version); ok {
				to = back
			}
		}
		add(action{kCount, 0, c.cursor}, to)
		return
	}
	for n := uint8(1); int(n) <= k.Len(); n++ {
		v := k.At(int(n) - 1)
		if v.Phase != keyring.PhaseDecryptOnly && v.Phase != keyring.PhaseRetired {
			continue
		}
		next := census{version: n, settled: w.settled(s, n)}
		next.free = v.Phase == keyring.PhaseRetired && (int(s.retired[n-1]) >= w.wait || w.off == guardFreeze)
		useless := !next.settled || v.Phase == keyring.PhaseRetired && !next.free
		done := c.version == n && c.free == next.free && c.settled == next.settled && !w.epochAt(c.epoch).Less(k.At(int(k.Primary)-1).Promoted)
		if useless && !w.eager || done {
			continue // would not be believed, or is done already
		}
		next.epoch = uint8(len(w.nodes[s.node].history))
		to := *s
		to.census = next
		add(action{kCensus, 0, n}, to)
	}
}

// settled says whether a census of a version would be believed: everybody acknowledged, and the data set's floor, or its
// in-flight time, excludes the version.
func (w *world) settled(s *state, n uint8) bool {
	if !w.counting(s, n) {
		return false
	}
	if w.floor {
		return s.floor > n
	}
	return int(s.quiet) > w.inflight
}
