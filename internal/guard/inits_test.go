package guard_test

import (
	"context"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/store"
)

// together is a store whose first commits wait for one another.
type together struct {
	store.Store
	come *sync.WaitGroup
}

func (s together) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	s.come.Done()
	s.come.Wait()
	return s.Store.Commit(ctx, conds, ops)
}

// TestInitsAtOnce: of inits that have all found the store empty one makes the cluster, whole.
func TestInitsAtOnce(t *testing.T) {
	w := newWorld(t, newMem())
	w.store = newMem()
	var come, wait sync.WaitGroup
	made, errs := make([]guard.InitResult, 4), make([]error, 4)
	come.Add(len(made))
	for i := range made {
		c := w.config()
		c.Store = together{w.store, &come}
		wait.Go(func() { made[i], errs[i] = guard.Init(t.Context(), c) })
	}
	wait.Wait()
	n := 0
	for i, err := range errs {
		if err == nil {
			n++
			w.made = made[i]
		} else if fault.CodeOf(err) != fault.Exists {
			t.Error(err)
		}
	}
	if n != 1 {
		t.Fatalf("%d clusters: %v", n, errs)
	}
	if g, _ := w.open(); g.ClusterID() != w.made.ClusterID || g.CheckpointKey() != w.made.CheckpointKey {
		t.Error("the cluster is not what its init said")
	}
}
