package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/rotorkms/rotor/internal/store"
)

// The history that is checked for linearizability: reads, lists and conditional commits over a few keys.
type (
	call struct {
		op   string // get, list, commit
		keys []string
		old  []store.Rev // of a commit: the conditions
		del  bool
		id   string // of a commit: what it puts at linearMark, so that the log tells which commits happened
	}
	answer struct {
		revs     []store.Rev // of get and list: the revision of each key
		at       store.Rev   // of list and commit
		conflict bool
		unknown  bool
	}
	// state is the revision of each key and of the store.
	state struct {
		revs map[string]store.Rev
		at   store.Rev
	}
)

var linearKeys = []string{"l/a", "l/b", "l/c"}

// linearMark is written by every commit of the history.
const linearMark = "mark"

// model is the store as one thread would see it. A value is named by the revision that wrote it.
var model = porcupine.Model{
	Init: func() any { return state{revs: map[string]store.Rev{}} },
	Equal: func(a, b any) bool {
		x, y := a.(state), b.(state) //nolint:errcheck // Init and Step return nothing else
		return x.at == y.at && maps.Equal(x.revs, y.revs)
	},
	Step: func(before, input, output any) (bool, any) {
		s, in, out := before.(state), input.(call), output.(answer) //nolint:errcheck // the suite records nothing else
		if in.op != "commit" {
			for i, key := range in.keys {
				if s.revs[key] != out.revs[i] {
					return false, s
				}
			}
			return in.op == "get" || out.at == s.at, s
		}
		holds := true
		for i, key := range in.keys {
			holds = holds && s.revs[key] == in.old[i]
		}
		if out.conflict || !holds {
			return out.conflict && !holds, s
		}
		next := state{revs: maps.Clone(s.revs), at: out.at}
		for _, key := range in.keys {
			next.revs[key] = next.at
			if in.del {
				delete(next.revs, key)
			}
		}
		return out.at > s.at, next
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// testLinearizable: what concurrent clients saw could have happened one after the other.
func testLinearizable(t *testing.T, e Engine) {
	linear(t, []store.Store{open(t, e, manyCommits)}, nil)
}

// client is one of the concurrent clients of a history.
type client struct {
	id      int
	store   store.Store
	random  *rand.Rand
	known   map[string]store.Rev
	history []porcupine.Operation
	failed  map[string]bool // ids of commits that ended with an error which says that nothing was written
	errs    int             // calls that ended so
}

// linear lets clients, spread over the stores, make calls round by round, so that what a client knows is out of date even where the
// scheduler runs one after the other. It checks the history, and that the log holds exactly what was acknowledged. Where disturb is given,
// it runs beside each round, and calls may fail: with an unknown outcome, or with none.
func linear(t *testing.T, stores []store.Store, disturb func(round int)) {
	t.Helper()
	const clients, each = 6, 60
	all := make([]*client, clients)
	for c := range all {
		all[c] = &client{
			id: c, store: stores[c%len(stores)], random: rand.New(rand.NewPCG(uint64(c), 1)),
			known: map[string]store.Rev{}, failed: map[string]bool{},
		}
	}
	start := time.Now()
	for round := range each {
		var wg sync.WaitGroup
		if disturb != nil {
			wg.Go(func() { disturb(round) })
		}
		for _, c := range all {
			wg.Go(func() { c.turn(t, start, round, disturb != nil) })
		}
		wg.Wait()
	}
	marks := marksOf(t, stores[0])
	var history []porcupine.Operation
	commits, conflicts, unknown, errs := 0, 0, 0, 0
	for _, c := range all {
		errs += c.errs
		for id := range c.failed {
			if rev, there := marks[id]; there {
				t.Errorf("commit %s ended with an error that says that nothing was written, and is revision %d", id, rev)
			}
			delete(marks, id)
		}
		for _, op := range c.history {
			in, out := op.Input.(call), op.Output.(answer) //nolint:errcheck // turn records nothing else
			rev, there := marks[in.id]
			switch {
			case in.op != "commit":
			case out.conflict:
				conflicts++
				if there {
					t.Errorf("commit %s had a conflict, and is revision %d", in.id, rev)
				}
			case out.unknown:
				unknown++
				if !there { // it never happened, so it says nothing
					continue
				}
				op.Output = answer{at: rev}
			default:
				commits++
				if rev != out.at {
					t.Errorf("commit %s was acknowledged as revision %d, and the log has it as %d", in.id, out.at, rev)
				}
			}
			delete(marks, in.id)
			history = append(history, op)
		}
	}
	for id, rev := range marks {
		t.Errorf("nobody made %s, which is revision %d", id, rev)
	}
	if commits == 0 || conflicts == 0 {
		t.Errorf("%d commits and %d conflicts, so the history says nothing", commits, conflicts)
	}
	t.Logf("%d operations: %d commits, %d conflicts, %d outcomes unknown; %d calls failed", len(history), commits, conflicts, unknown, errs)
	if !porcupine.CheckOperations(model, history) {
		t.Errorf("a history of %d operations is not linearizable", len(history))
	}
}

// turn makes one call and records it.
func (c *client) turn(t *testing.T, start time.Time, round int, mayFail bool) {
	in := choose(c.random, c.known)
	in.id = fmt.Sprintf("%d/%d", c.id, round)
	began := time.Since(start)
	out, err := do(t, c.store, in, c.known)
	ended := int64(time.Since(start))
	switch {
	case err != nil && !mayFail:
		t.Error(err)
		return
	case errors.Is(err, store.ErrUnknown) && in.op == "commit":
		out, ended = answer{unknown: true}, math.MaxInt64 // it may take effect at any time
	case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrUnknown):
		t.Errorf("%s: %v", in.op, err) // a lost connection is none of these
		return
	case err != nil:
		c.failed[in.id] = true
		c.errs++
		return
	}
	c.history = append(c.history, porcupine.Operation{ClientId: c.id, Input: in, Call: int64(began), Output: out, Return: ended})
}

// marksOf is the revision of each commit of the history, by its id, as the log of the store has it.
func marksOf(t *testing.T, s store.Store) map[string]store.Rev {
	t.Helper()
	marks := map[string]store.Rev{}
	newest, _ := list(t, s, "none")
	w := watch(t, s, linearMark, 0)
	defer w.stop()
	for at := store.Rev(0); at < newest; {
		e := w.next()[0]
		if e.Rev <= at {
			t.Fatalf("the log has revision %d after %d", e.Rev, at)
		}
		at = e.Rev
		if twice, there := marks[string(e.Value)]; there {
			t.Errorf("commit %s was written twice, as revisions %d and %d", e.Value, twice, e.Rev)
		}
		marks[string(e.Value)] = e.Rev
	}
	return marks
}

// choose makes a call; a commit conditions on what the client last saw, which may be out of date.
func choose(random *rand.Rand, known map[string]store.Rev) call {
	keys := linearKeys[random.IntN(len(linearKeys)):][:1]
	switch n := random.IntN(10); {
	case n < 3:
		return call{op: "get", keys: keys}
	case n < 5:
		return call{op: "list", keys: linearKeys}
	case n < 7:
		keys = linearKeys[:2]
	}
	in := call{op: "commit", keys: keys, del: random.IntN(4) == 0}
	for _, key := range keys {
		in.old = append(in.old, known[key])
	}
	return in
}

// do makes the call and notes what the client has learned.
func do(t *testing.T, s store.Store, in call, known map[string]store.Rev) (out answer, err error) {
	switch in.op {
	case "get":
		r, err := s.Get(t.Context(), in.keys[0])
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return out, err
		}
		out.revs = []store.Rev{r.Rev}
	case "list":
		found := map[string]store.Rev{}
		at, records := s.List(t.Context(), "l/")
		for r, err := range records {
			if err != nil {
				return out, err
			}
			found[r.Key] = r.Rev
		}
		out.at = at
		for _, key := range in.keys {
			out.revs = append(out.revs, found[key])
		}
	default:
		ops := []store.Op{put(linearMark, in.id)}
		var conds []store.Cond
		for i, key := range in.keys {
			conds = append(conds, store.Cond{Key: key, Rev: in.old[i]})
			ops = append(ops, store.Op{Key: key, Delete: in.del})
		}
		out.at, err = s.Commit(t.Context(), conds, ops)
		if errors.Is(err, store.ErrConflict) {
			return answer{conflict: true}, nil
		}
		if err != nil {
			return out, err
		}
		for range in.keys {
			out.revs = append(out.revs, out.at)
			if in.del {
				out.revs[len(out.revs)-1] = 0
			}
		}
	}
	for i, key := range in.keys {
		known[key] = out.revs[i]
	}
	return out, err
}
