package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/store"
)

// This file finds a store that is not the one that it was. A store is consistent in itself at every moment, so an older copy of it is, too:
// only what is known outside tells. Statements are such knowledge: how far the log was, signed by the server, kept in a file beside each
// server and by every instance, who are its witnesses. Each is of one incarnation of the cluster, and a recovery begins the next.

const (
	// RestoredPath is the mark that a restore leaves: the store is older than the cluster was. It is not sealed.
	RestoredPath = restoredRoom + "mark"
	// WitnessPath is where a server leaves the statement of a witness that its store contradicts, for the other servers and for its own next
	// start. It is not sealed; its signature is what counts.
	WitnessPath = restoredRoom + "witness"

	restoredRoom  = "restored/"
	maxDetections = 100
	// stateEvery bounds how often a new statement is signed for witnesses.
	stateEvery = time.Second
)

// Statement signs how far the log is now.
func (g *Guard) Statement() ([]byte, error) {
	b, _, err := g.StatementAt()
	return b, err
}

// StatementAt is Statement, with the size that it is of.
func (g *Guard) StatementAt() ([]byte, int64, error) {
	size, root, err := g.audit.Head()
	if err != nil {
		return nil, 0, err
	}
	b, err := identity.Statement{Cluster: g.ClusterID(), Incarnation: g.Incarnation(), Size: size, Root: root, Time: g.now().UTC()}.Sign(g.Sign)
	return b, size, err
}

// latest is the last statement that was signed for witnesses.
type latest struct {
	mu   sync.Mutex // guards what follows
	made time.Time
	size int64
	text []byte
}

// Latest is a statement of the last second, the same for all who ask within it. nil while something is detected.
func (g *Guard) Latest() (text []byte, err error) {
	if g.refuse() != nil {
		return nil, nil
	}
	l := &g.witnesses
	l.mu.Lock()
	defer l.mu.Unlock()
	now := g.now()
	if since := now.Sub(l.made); l.text != nil && since >= 0 && since < stateEvery {
		return l.text, nil
	}
	if size, _ := g.audit.Stats(); l.text == nil || size != l.size {
		if l.text, l.size, err = g.StatementAt(); err != nil {
			return nil, err
		}
	}
	l.made = now
	return l.text, nil
}

// Incarnation is the cluster's: 1 until the first recovery.
func (g *Guard) Incarnation() uint32 { return g.index.incarnation() }

// Detection is one thing that shows that the store is not the one that it was.
type Detection struct {
	Kind  string // rolled back, forked, restored, recovery unfinished, foreign, lost, tampered, replayed
	About string
}

// String names it.
func (d Detection) String() string { return d.Kind + ": " + d.About }

// Detected is what was found at Open, or by a witness since; a guard that has any admits nobody and commits nothing but a recovery.
func (g *Guard) Detected() []Detection {
	if d := g.detected.Load(); d != nil {
		return *d
	}
	return nil
}

// Suspended is closed when something is detected after Open.
func (g *Guard) Suspended() <-chan struct{} { return g.suspended }

// suspend adds to what is detected.
func (g *Guard) suspend(d Detection) {
	g.detecting.Lock()
	defer g.detecting.Unlock()
	have := g.Detected()
	if slices.Contains(have, d) || len(have) >= maxDetections {
		return
	}
	all := append(slices.Clone(have), d)
	g.detected.Store(&all)
	if len(have) == 0 {
		close(g.suspended)
	}
}

// refuse is the answer to everything while something is detected; nil when nothing is.
func (g *Guard) refuse() error {
	d := g.Detected()
	if len(d) == 0 {
		return nil
	}
	return fault.New(fault.Recovery, d[0].String())
}

func detections(d []Detection) string {
	var out []string
	for _, one := range d {
		out = append(out, one.String())
	}
	return strings.Join(out, "; ")
}

// keepTime bounds how long a suspension waits until its reason is in the store.
const keepTime = 5 * time.Second

// Witness compares the log with a statement that somebody kept, and suspends the guard when they cannot both be true. The statement is left
// in the store then, so that every other server and the next start find the same. It returns what it found, the zero Detection for nothing.
// fault.Invalid for a statement of somebody else, which has no effect.
func (g *Guard) Witness(ctx context.Context, b []byte) (Detection, error) {
	s, err := identity.OpenStatement(b, g.PublicKey())
	if err != nil {
		return Detection{}, err
	}
	d, err := g.contradicts(ctx, s)
	if err != nil || d.Kind == "" {
		return d, err
	}
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime) // before suspend, which ends the server and with it the request
	defer cancel()
	if _, err := g.store.Commit(keep, nil, []store.Op{{Key: WitnessPath, Value: b}}); err != nil {
		g.log.ErrorContext(ctx, "the statement of a witness is not kept, so that the next start does not know of it", "detected", d.String(), "error", err)
	}
	g.suspend(d)
	return d, nil
}

// CheckStore compares the log in memory with the store that it was read from, and suspends the guard when the store has gone back or is
// another: this server is a witness itself. Call it again and again.
func (g *Guard) CheckStore(ctx context.Context) (Detection, error) {
	why, err := g.audit.Agrees(ctx)
	if err != nil || why == "" {
		return Detection{}, err
	}
	d := Detection{"rolled back", "under a running server: " + why}
	g.suspend(d)
	return d, nil
}

// hearing takes what other servers were told by witnesses.
func (g *Guard) hearing(ctx context.Context) error {
	for {
		select {
		case <-g.told:
		case <-ctx.Done():
			return nil
		}
		s, ok := g.reported(ctx)
		if !ok {
			continue
		}
		if d, err := g.contradicts(ctx, s); err == nil && d.Kind != "" {
			g.suspend(d)
		}
	}
}

// tell wakes hearing.
func (g *Guard) tell() {
	select {
	case g.told <- struct{}{}:
	default:
	}
}

// conviction is what the statements say together that the store contradicts.
type conviction struct {
	mu          sync.Mutex // guards what follows
	last        time.Time  // of the newest of them
	incarnation uint32     // the highest
}

func (c *conviction) add(s identity.Statement, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := s.Time; at.Before(now) {
		now = at // else the clock of who signed it is ahead
	}
	if now.After(c.last) {
		c.last = now
	}
	c.incarnation = max(c.incarnation, s.Incarnation)
}

func (c *conviction) get() (last time.Time, incarnation uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.incarnation
}

// contradicts compares the log with a statement of this cluster.
func (g *Guard) contradicts(ctx context.Context, s identity.Statement) (Detection, error) {
	d, err := g.compared(ctx, s)
	if err == nil && d.Kind != "" && s.Cluster == g.ClusterID() {
		g.convicted.add(s, g.now())
	}
	return d, err
}

func (g *Guard) compared(ctx context.Context, s identity.Statement) (Detection, error) {
	own := g.Incarnation()
	when := s.Time.UTC().Format(time.RFC3339)
	switch {
	case s.Cluster != g.ClusterID():
		return Detection{"foreign", "a statement of cluster " + s.Cluster}, nil
	case s.Incarnation > own:
		return Detection{"rolled back", fmt.Sprintf("the cluster was at incarnation %d on %s, the store is at %d", s.Incarnation, when, own)}, nil
	case s.Incarnation < own:
		return Detection{}, nil
	}
	root, err := g.rootAt(ctx, s.Size)
	if fault.CodeOf(err) == fault.NotFound {
		if g.Incarnation() > own { // a recovery has ended meanwhile
			return Detection{}, nil
		}
		return Detection{"rolled back", fmt.Sprintf("the log had %d entries on %s and has fewer now: an older copy of the store was put back, or works beside the store", s.Size, when)}, nil
	}
	if err != nil {
		return Detection{}, err
	}
	if root != s.Root {
		return Detection{"forked", fmt.Sprintf("the log's first %d entries are others than on %s: two servers worked on copies of one store", s.Size, when)}, nil
	}
	return Detection{}, nil
}

// rootAt is the root that the log had at an earlier size. fault.NotFound; errBehind at a start that has read a shorter log than the store has now:
// nobody follows it yet, so what is missing would not come.
func (g *Guard) rootAt(ctx context.Context, size int64) (string, error) {
	if g.index.starting() {
		if behind, err := g.audit.Behind(ctx, size); err != nil {
			return "", err
		} else if behind {
			return "", errBehind
		}
	}
	return g.audit.RootAt(ctx, size)
}

// inspect finds everything that is wrong with a store whose log verifies: c.Statements, marks, and each record against the log.
func (g *Guard) inspect(ctx context.Context, c Config) ([]Detection, error) {
	found, err := g.records(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := g.store.Get(ctx, RestoredPath); err == nil {
		found = append(found, Detection{"restored", "the store is a restored backup"})
	}
	if w, ok := g.index.latest(recoveryPath); ok && !w.deleted {
		r, err := g.recovering(ctx)
		if errors.Is(err, errBehind) {
			return nil, err
		}
		if err == nil && r.Target != 0 {
			found = append(found, Detection{"recovery unfinished", "it was approved and did not come to its end"})
		}
	}
	if g.snapshot == nil { // without its keys nothing can be said of signatures
		return found, nil
	}
	for _, b := range c.Statements {
		s, err := identity.OpenStatement(b, g.PublicKey())
		if err != nil {
			found = append(found, Detection{"foreign", "a kept statement is not signed by this cluster"})
			continue
		}
		if found, err = g.compare(ctx, found, s); err != nil {
			return nil, err
		}
	}
	if s, ok := g.reported(ctx); ok {
		return g.compare(ctx, found, s)
	}
	return found, nil
}

// compare adds what a statement shows, if that is anything and not known yet.
func (g *Guard) compare(ctx context.Context, found []Detection, s identity.Statement) ([]Detection, error) {
	d, err := g.contradicts(ctx, s)
	if err != nil || d.Kind == "" || slices.Contains(found, d) || len(found) >= maxDetections {
		return found, err
	}
	return append(found, d), nil
}

// reported reads the statement that a witness brought to any of the servers. What is not signed by this cluster somebody else put there, and
// says nothing.
func (g *Guard) reported(ctx context.Context) (identity.Statement, bool) {
	r, err := g.store.Get(ctx, WitnessPath)
	if err != nil {
		return identity.Statement{}, false
	}
	s, err := identity.OpenStatement(r.Value, g.PublicKey())
	return s, err == nil
}

// records compares every record with the log. Up to maxDetections are named.
func (g *Guard) records(ctx context.Context) (found []Detection, err error) {
	for _, room := range g.index.rooms() {
		err := g.checkRoom(ctx, room, func(path string, cause error) error {
			kind := "tampered"
			switch {
			case fault.CodeOf(cause) == fault.RecordReplayed:
				kind = "replayed"
			case cause == nil:
				kind = "lost"
			case fault.CodeOf(cause) != fault.RecordTampered:
				return cause
			}
			if len(found) < maxDetections {
				found = append(found, Detection{kind, "record " + path})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}
