package fleet

import "sync"

// rounds shares reads. Who asks gets the result of a read that began after it asked, so it is as good as one of its own; those who ask while
// one is under way share the next.
type rounds[K comparable, V any] struct {
	read func(K) (V, error)

	mu    sync.Mutex // guards what follows
	under map[K]*round[V]
	next  map[K]*round[V]
}

type round[V any] struct {
	done  chan struct{}
	value V     // read after done
	err   error // read after done
}

func newRounds[K comparable, V any](read func(K) (V, error)) *rounds[K, V] {
	return &rounds[K, V]{read: read, under: map[K]*round[V]{}, next: map[K]*round[V]{}}
}

// do reads k. The first who asks for a round makes it when the round before has ended; the others wait.
func (r *rounds[K, V]) do(k K) (V, error) {
	r.mu.Lock()
	if n := r.next[k]; n != nil {
		r.mu.Unlock()
		<-n.done
		return n.value, n.err
	}
	n, before := &round[V]{done: make(chan struct{})}, r.under[k]
	r.next[k] = n
	r.mu.Unlock()
	if before != nil {
		<-before.done
	}
	r.mu.Lock()
	delete(r.next, k)
	r.under[k] = n
	r.mu.Unlock()
	n.value, n.err = r.read(k)
	r.mu.Lock()
	if r.under[k] == n {
		delete(r.under, k)
	}
	r.mu.Unlock()
	close(n.done)
	return n.value, n.err
}
