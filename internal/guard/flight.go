package guard

import (
	"context"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/store"
)

// catchTime bounds one look at the store's revision.
const catchTime = 5 * time.Second

// look is one read of the store's revision for everybody who asked before it began.
type look struct {
	done chan struct{} // closed when rev and err are there
	rev  store.Rev
	err  error
}

// looks let one read after the other run. Who asks while one runs waits for the next: the one that runs may have read too early.
type looks struct {
	mu      sync.Mutex // guards what follows
	running bool
	next    *look
}

// present is a revision that the store had not left behind when the call was made.
func (g *Guard) present(ctx context.Context) (store.Rev, error) {
	ls := &g.looks
	ls.mu.Lock()
	if ls.next == nil {
		ls.next = &look{done: make(chan struct{})}
	}
	l := ls.next
	if !ls.running {
		ls.running = true
		go g.lookOn(context.WithoutCancel(ctx)) // ends when nobody waits, after catchTime at the most
	}
	ls.mu.Unlock()
	select {
	case <-l.done:
		return l.rev, l.err
	case <-ctx.Done():
		return 0, fault.Wrap(fault.Canceled, "", ctx.Err())
	}
}

func (g *Guard) lookOn(ctx context.Context) {
	for {
		g.looks.mu.Lock()
		l := g.looks.next
		g.looks.next, g.looks.running = nil, l != nil
		g.looks.mu.Unlock()
		if l == nil {
			return
		}
		limited, cancel := context.WithTimeout(ctx, catchTime)
		l.rev, l.err = g.revision(limited)
		cancel()
		close(l.done)
	}
}

func (g *Guard) revision(ctx context.Context) (store.Rev, error) {
	rev, records := g.store.List(ctx, ReplicaPrefix+"\x00") // of nothing: its revision alone
	for _, err := range records {
		if err != nil {
			return 0, storeFault("revision", err)
		}
	}
	return rev, nil
}

// CaughtUp waits until the index has seen every commit acknowledged before the call, and returns the last of them that wrote a record in a
// room (the first element of its path; 0: none since the start). fault.Unavailable when the store cannot be asked or is not caught up with
// in time.
func (g *Guard) CaughtUp(ctx context.Context, room string) (store.Rev, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*catchTime)
	defer cancel()
	rev, err := g.present(ctx)
	if err != nil {
		return 0, err
	}
	if err := g.index.wait(ctx, rev); err != nil {
		return 0, err
	}
	return g.index.lastOf(room), nil
}

// Reached waits until the index has seen a revision, and returns the last commit up to now that wrote a record in each of some rooms.
func (g *Guard) Reached(ctx context.Context, rev store.Rev, room string) (store.Rev, error) {
	if err := g.index.wait(ctx, rev); err != nil {
		return 0, err
	}
	return g.index.lastOf(room), nil
}

// Seen is the revision up to which the index knows every commit.
func (g *Guard) Seen() store.Rev { return g.index.at() }

// SeenBy is Seen for a room whose own tables are as far as a commit: that far, while there is a later one about the room.
func (g *Guard) SeenBy(room string, tables store.Rev) store.Rev {
	rev := g.Seen() // before the other: they only grow
	if tables < g.LastOf(room) {
		return min(rev, tables)
	}
	return rev
}

// LastOf is the last commit that the index knows of that wrote a record in a room.
func (g *Guard) LastOf(room string) store.Rev { return g.index.lastOf(room) }
