package rotation_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/holder"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
	"github.com/rotorkms/rotor/internal/suite"
)

// This file is a model of its own for one more guard of the design: a store that is put back. What the model of the other files takes
// for granted, that a version's number says which material it is, is what breaks here: after the copy that is put back, numbers and epochs can
// be given out a second time. So versions are known by their handles, which are fresh each time, and there are no clocks.

// guardIncarnation: a store that was put back goes on as a new incarnation of the cluster (keyring.Key.Recovered).
const guardIncarnation guard = "restored store without a new incarnation"

const (
	maxMade    = 3 // versions that are ever made, over both pasts
	maxHolders = 2
)

// past is what the store holds: the key's record and the acknowledgements that it has stored.
type past struct {
	Key   keyring.Key
	Acked [maxHolders]keyring.Epoch
}

// restorable is a state. Fields are exported for fingerprint alone.
type restorable struct {
	Server  past
	Copy    *past // taken of the store; nil: not yet
	Back    bool  // it was put back
	Made    int
	Holders [maxHolders]*holder.Key
	Record  uint32   // handle that the one record is under
	New     []uint32 // handles of versions that were promoted since the copy was put back
}

// restoring is one search.
type restoring struct {
	off   guard
	index map[string]int
	all   []restorable
	from  []int
	what  []string
	back  [][]int // the states that lead to each
}

func restorableStart() restorable {
	k := keyring.Key{
		ID: "k", Namespace: "n", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Algorithm: suite.XAES256GCM, Epoch: keyring.Epoch{Incarnation: 1},
		Rotation: keyring.Rotation{Silence: keyring.Block, MaxStale: 1, Window: 1, Wait: 1, Approvals: 2},
	}
	k, err := rotation.First(k, keyring.Version{Handle: handle(1), Algorithm: suite.XAES256GCM}, clock)
	if err != nil {
		panic(err)
	}
	s := restorable{Server: past{Key: k}, Made: 1, Record: handle(1)}
	for i := range s.Holders {
		s.Server.Acked[i], s.Holders[i] = k.Epoch, &holder.Key{Snapshot: k.Snapshot()}
	}
	return s
}

func (s restorable) members() (all []rotation.Member) {
	for i, e := range s.Server.Acked {
		all = append(all, rotation.Member{Instance: string(rune('A' + i)), Acked: e})
	}
	return all
}

// moves lists everything that can happen in a state.
func (r *restoring) moves(s restorable, add func(what string, to restorable)) {
	serve := func(what string, k keyring.Key, err error) {
		if err == nil {
			to := s
			to.Server.Key = timeless(k)
			if v := k.Primary; s.Back && v != s.Server.Key.Primary {
				p, _ := k.Version(v) // it is there
				to.New = append(to.New[:len(to.New):len(to.New)], p.Handle)
			}
			add(what, to)
		}
	}
	k := s.Server.Key
	if s.Made < maxMade {
		fresh, err := rotation.Stage(k, keyring.Version{Handle: handle(uint32(s.Made + 1)), Algorithm: suite.XAES256GCM}, clock)
		to := s
		to.Server.Key, to.Made = timeless(fresh), s.Made+1
		if err == nil {
			add("operator: rotate", to)
		}
	}
	next, err := rotation.Distribute(k, clock)
	serve("server: distribute", next, err)
	next, err = rotation.Promote(k, s.members(), clock, false)
	serve("server: promote", next, err)
	if next, ok := rotation.Settle(k, clock.Add(time.Hour)); ok {
		serve("server: settle", next, nil)
	}
	for i, h := range s.Holders {
		if got, changed, err := holder.Apply(h, k.Snapshot()); err == nil && changed {
			to := s
			to.Holders[i] = got
			add(fmt.Sprintf("%c gets the snapshot", 'A'+i), to)
		}
		if h.Snapshot.Epoch == k.Epoch && s.Server.Acked[i] != k.Epoch { // as fleet takes it: of the present epoch alone
			to := s
			to.Server.Acked[i] = k.Epoch
			add(fmt.Sprintf("%c's acknowledgement arrives", 'A'+i), to)
		}
		if v, err := h.Protect(clock); err == nil && v.Handle != s.Record && slices.Contains(s.New, v.Handle) { // others say nothing of s1
			to := s
			to.Record = v.Handle
			add(fmt.Sprintf("%c encrypts", 'A'+i), to)
		}
	}
	r.faults(s, add)
}

// faults: a copy of the store is taken, and later put back.
func (r *restoring) faults(s restorable, add func(what string, to restorable)) {
	if s.Back {
		return
	}
	if s.Copy == nil {
		to, c := s, s.Server
		to.Copy = &c
		add("a copy of the store is taken", to)
		return
	}
	to := s
	to.Server, to.Back, to.Copy = *s.Copy, true, nil
	if r.off != guardIncarnation {
		to.Server.Key = timeless(to.Server.Key.Recovered(2, uint32(s.Made), func(uint32) bool { return true }, clock))
	}
	add("the copy is put back", to)
}

// timeless takes the times out: only what happened counts.
func timeless(k keyring.Key) keyring.Key {
	k = k.Clone()
	k.Created, k.Since = time.Time{}, time.Time{}
	for v := range k.All() {
		for _, t := range []*time.Time{&v.Created, &v.Published, &v.Activated, &v.Demoted, &v.Deactivated} {
			*t = time.Time{}
		}
		k = k.Put(v)
	}
	return k
}

// s1: what is written under a version that was promoted since, everybody can process. What was under versions that the copy did not have is
// lost with it.
func (s restorable) s1() bool {
	for _, h := range s.New {
		if h != s.Record {
			continue
		}
		for _, k := range s.Holders {
			if _, err := k.Process(h, clock); err != nil {
				return false
			}
		}
	}
	return true
}

// goal is what has to stay in reach once a copy was put back: everybody has what the server has, and the server a version that it made since.
func (s restorable) goal() bool {
	for i, k := range s.Holders {
		if k.Snapshot.Epoch != s.Server.Key.Epoch || fingerprint(k.Snapshot) != fingerprint(s.Server.Key.Snapshot()) || s.Server.Acked[i] != s.Server.Key.Epoch {
			return false
		}
	}
	return s.Back && (len(s.New) > 0 || s.Made == maxMade)
}

// search looks at every state, breadth first, and says what breaks first and how. A second one looks at the same states.
func (r *restoring) search(check string) (broken string, trace []string) {
	searched := r.index != nil
	if !searched {
		r.index = map[string]int{}
		r.add(restorableStart(), -1, "start")
	}
	for at := 0; at < len(r.all); at++ {
		if check == "S1" && !r.all[at].s1() {
			return "S1", r.trace(at)
		}
		if searched {
			continue
		}
		r.moves(r.all[at], func(what string, to restorable) { r.add(to, at, what) })
	}
	if check == "L1" {
		return r.live()
	}
	return "", nil
}

func (r *restoring) add(s restorable, from int, what string) {
	name := r.name(s)
	at, known := r.index[name]
	if !known {
		at = len(r.all)
		r.index[name] = at
		r.all, r.from, r.what, r.back = append(r.all, s), append(r.from, from), append(r.what, what), append(r.back, nil)
	}
	if from >= 0 {
		r.back[at] = append(r.back[at], from)
	}
}

// name is the same for states that are alike but for which holder is which.
func (r *restoring) name(s restorable) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v %d %d %v", r.past(&s.Server), s.Back, s.Made, s.Record, s.New)
	if s.Copy != nil {
		b.WriteString(r.past(s.Copy))
	}
	var holders []string
	for i, h := range s.Holders {
		one := fmt.Sprint(s.Server.Acked[i], r.snapshot(h.Snapshot))
		if s.Copy != nil {
			one += fmt.Sprint(s.Copy.Acked[i])
		}
		holders = append(holders, one)
	}
	slices.Sort(holders)
	return b.String() + strings.Join(holders, "|")
}

func (r *restoring) past(p *past) string {
	k := &p.Key
	return fmt.Sprint(k.Epoch, k.Primary, k.Target, k.Above, k.Versions)
}

func (r *restoring) snapshot(s keyring.Snapshot) string {
	return fmt.Sprint(s.Epoch, s.Primary, s.Versions)
}

// live: from every state after the copy was put back there is a way to the goal.
func (r *restoring) live() (broken string, trace []string) {
	reached, queue := make([]bool, len(r.all)), []int(nil)
	for i, s := range r.all {
		if s.goal() {
			reached[i], queue = true, append(queue, i)
		}
	}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, f := range r.back[queue[0]] {
			if !reached[f] {
				reached[f], queue = true, append(queue, f)
			}
		}
	}
	for i, s := range r.all {
		if s.Back && !reached[i] {
			return "L1", r.trace(i)
		}
	}
	return "", nil
}

func (r *restoring) trace(at int) (lines []string) {
	for ; at >= 0; at = r.from[at] {
		s := r.all[at]
		line := fmt.Sprintf("%-32s | server %d.%d", r.what[at], s.Server.Key.Epoch.Incarnation, s.Server.Key.Epoch.Counter)
		for v := range s.Server.Key.All() {
			line += fmt.Sprintf(" v%d/%d:%s", v.Number, v.Handle, v.Phase)
		}
		for i, h := range s.Holders {
			line += fmt.Sprintf(" | %c has %d.%d, acknowledged %d.%d", 'A'+i, h.Snapshot.Epoch.Incarnation, h.Snapshot.Epoch.Counter, s.Server.Acked[i].Incarnation, s.Server.Acked[i].Counter)
		}
		lines = append([]string{line + fmt.Sprintf(" | record under %d", s.Record)}, lines...)
	}
	return lines
}

// TestRestoredStore: with the new incarnation nothing breaks, from whatever moment the copy is; without it both do.
func TestRestoredStore(t *testing.T) {
	clean := &restoring{}
	for _, check := range []string{"S1", "L1"} {
		if broken, trace := clean.search(check); broken != "" {
			t.Errorf("%s is broken with the guard on:\n%s", broken, strings.Join(trace, "\n"))
		}
		mutant := &restoring{off: guardIncarnation}
		broken, trace := mutant.search(check)
		if broken != check {
			t.Errorf("NOT CAUGHT: %s: want %s broken", guardIncarnation, check)
			continue
		}
		t.Logf("caught: %-50s breaks %s in %2d steps (%d states; %d with the guard on)\n%s",
			guardIncarnation, broken, len(trace)-1, len(mutant.all), len(clean.all), strings.Join(trace, "\n"))
	}
	if len(clean.all) < 1000 {
		t.Errorf("only %d states", len(clean.all))
	}
}
