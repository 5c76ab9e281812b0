package storetest

import (
	"errors"
	"fmt"
	"maps"
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
	}
	answer struct {
		revs     []store.Rev // of get and list: the revision of each key
		at       store.Rev   // of list and commit
		conflict bool
	}
	// state is the revision of each key and of the store.
	state struct {
		revs map[string]store.Rev
		at   store.Rev
	}
)

var linearKeys = []string{"l/a", "l/b", "l/c"}

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
	const clients, each = 6, 60
	s := open(t, e, manyCommits)
	histories := make([][]porcupine.Operation, clients)
	start := time.Now()
	type client struct {
		random *rand.Rand
		known  map[string]store.Rev
	}
	all := make([]client, clients)
	for c := range all {
		all[c] = client{rand.New(rand.NewPCG(uint64(c), 1)), map[string]store.Rev{}}
	}
	// Round by round, so that what a client knows is out of date even where the scheduler runs one after the other.
	for range each {
		var wg sync.WaitGroup
		for c, client := range all {
			wg.Go(func() {
				in := choose(client.random, client.known)
				began := time.Since(start)
				out, err := do(t, s, in, client.known)
				if err != nil {
					t.Error(err)
					return
				}
				histories[c] = append(histories[c], porcupine.Operation{
					ClientId: c, Input: in, Call: int64(began), Output: out, Return: int64(time.Since(start)),
				})
			})
		}
		wg.Wait()
	}
	var history []porcupine.Operation
	commits, conflicts := 0, 0
	for _, h := range histories {
		for _, op := range h {
			if out, ok := op.Output.(answer); ok && out.conflict {
				conflicts++
			} else if in, ok := op.Input.(call); ok && in.op == "commit" {
				commits++
			}
		}
		history = append(history, h...)
	}
	if commits == 0 || conflicts == 0 {
		t.Errorf("the history has %d commits and %d conflicts, so it says nothing", commits, conflicts)
	}
	if !porcupine.CheckOperations(model, history) {
		t.Errorf("a history of %d operations is not linearizable", len(history))
	}
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
		var conds []store.Cond
		var ops []store.Op
		for i, key := range in.keys {
			conds = append(conds, store.Cond{Key: key, Rev: in.old[i]})
			ops = append(ops, store.Op{Key: key, Delete: in.del})
		}
		out.at, err = s.Commit(t.Context(), conds, ops)
		if errors.Is(err, store.ErrConflict) {
			return answer{conflict: true}, nil
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
