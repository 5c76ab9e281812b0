package fleet

import "sync"

// rounds shares work on a thing. Who asks gets the result of a round that began after it asked, so it is as good as one of its own; those who ask
// while one is under way share the next, which is told what all of them asked for.
type rounds[K comparable, Q, V any] struct {
	work func(K, []Q) (V, error)

	mu    sync.Mutex // guards what follows
	under map[K]*round[Q, V]
	next  map[K]*round[Q, V]
}

type round[Q, V any] struct {
	asked []Q // complete when it begins
	done  chan struct{}
	value V     // read after done
	err   error // read after done
}

func newRounds[K comparable, Q, V any](work func(K, []Q) (V, error)) *rounds[K, Q, V] {
	return &rounds[K, Q, V]{work: work, under: map[K]*round[Q, V]{}, next: map[K]*round[Q, V]{}}
}

// do asks for work on k. The first who asks for a round makes it when the round before has ended; the others wait.
func (r *rounds[K, Q, V]) do(k K, asked ...Q) (V, error) {
	r.mu.Lock()
	if n := r.next[k]; n != nil {
		n.asked = append(n.asked, asked...)
		r.mu.Unlock()
		<-n.done
		return n.value, n.err
	}
	n, before := &round[Q, V]{asked: asked, done: make(chan struct{})}, r.under[k]
	r.next[k] = n
	r.mu.Unlock()
	if before != nil {
		<-before.done
	}
	r.mu.Lock()
	delete(r.next, k)
	r.under[k] = n
	r.mu.Unlock()
	n.value, n.err = r.work(k, n.asked)
	r.mu.Lock()
	if r.under[k] == n {
		delete(r.under, k)
	}
	r.mu.Unlock()
	close(n.done)
	return n.value, n.err
}
