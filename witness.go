package rotor

import (
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/identity"
)

// keepEvery bounds how often the newest statement is written beside the identity.
const keepEvery = time.Minute

// witness keeps the newest statement of how far the cluster's log was. It is shown to every server that the process turns to, so that one
// whose store was set back, or is a copy, finds out.
type witness struct {
	dir *identity.Dir

	mu     sync.Mutex // guards what follows
	newest identity.Statement
	text   []byte    // nil: none
	kept   time.Time // when it was written last
}

func newWitness(dir *identity.Dir) *witness {
	w := &witness{dir: dir}
	if b := dir.Statement(); len(b) > 0 {
		w.take(b, time.Time{}) // what is no statement of this cluster is none
	}
	return w
}

// statement is the newest one.
func (w *witness) statement() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text
}

// take takes what a server states. show is what the server has to be shown because it states less, or something else of the same size.
func (w *witness) take(b []byte, now time.Time) (show []byte) {
	s, err := identity.OpenStatement(b, w.dir.ServerKey())
	if err != nil || s.Cluster != w.dir.Cluster() {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text != nil && !s.Supersedes(w.newest) {
		if s.Same(w.newest) {
			return nil
		}
		return w.text
	}
	w.newest, w.text = s, b
	if since := now.Sub(w.kept); !now.IsZero() && (since >= keepEvery || since < 0) && w.dir.KeepStatement(b) == nil {
		w.kept = now
	}
	return nil
}

// keep writes the newest one for the next process.
func (w *witness) keep() error {
	b := w.statement()
	if b == nil || !w.dir.IsInstance() {
		return nil
	}
	return w.dir.KeepStatement(b)
}
