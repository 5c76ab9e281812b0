package rollout

import (
	"container/heap"
	"time"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/rotation"
)

// due says which keys the clock may have opened a gate of. A look at the clock costs as much as there is to do, not as much as there are keys.
type due struct {
	at    map[keyring.KeyID]time.Time
	queue queue // has every key of at, perhaps with other times too
}

type dueKey struct {
	at time.Time
	id keyring.KeyID
}

// note takes over when a key is due.
func (d *due) note(k keyring.Key) {
	at, ok := rotation.Due(k)
	was, there := d.at[k.ID]
	switch {
	case !ok:
		delete(d.at, k.ID)
	case !there || !was.Equal(at):
		d.at[k.ID] = at
		heap.Push(&d.queue, dueKey{at, k.ID})
	}
}

// pop returns the keys that are due and forgets them; whoever looks at one notes it again.
func (d *due) pop(now time.Time) []keyring.KeyID {
	var ids []keyring.KeyID
	for len(d.queue) > 0 && !now.Before(d.queue[0].at) {
		next, _ := heap.Pop(&d.queue).(dueKey) // it has no others
		if at, ok := d.at[next.id]; ok && at.Equal(next.at) {
			delete(d.at, next.id)
			ids = append(ids, next.id)
		}
	}
	return ids
}

// queue is a heap of times.
type queue []dueKey

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	k, _ := x.(dueKey)
	*q = append(*q, k)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	k := (*q)[last]
	*q = (*q)[:last]
	return k
}
