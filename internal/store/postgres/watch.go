package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rotorkms/rotor/internal/store"
)

// Bounds of what is read of the log at once (with at most one commit above), and of what is kept in memory for watches.
const (
	readCommits = 256
	readBytes   = 1 << 20
	ringCommits = 4096
	ringBytes   = 16 << 20
)

// logged is a commit of the log.
type logged struct {
	mark
	events []store.Event
	bytes  int
}

// ring holds the newest commits, so that the watches of one process read the log once.
type ring struct {
	first     store.Rev // revision before the oldest that is held
	newest    store.Rev
	compacted store.Rev // newest that the log no longer holds
	commits   int       // how many are held at most
	bytes     int       // held now
	log       []logged  // first+1 … newest
}

func (r *ring) add(all []logged, compacted store.Rev) {
	for _, c := range all {
		r.newest, r.bytes = c.rev, r.bytes+c.bytes
		r.log = append(r.log, c)
	}
	r.compacted = max(r.compacted, compacted)
	n := 0
	for n < len(r.log) && (len(r.log)-n > r.commits || r.bytes > ringBytes || r.log[n].rev <= r.compacted) {
		r.bytes -= r.log[n].bytes
		r.first = r.log[n].rev
		n++
	}
	r.log = r.log[n:]
}

// tail follows the log for the watches of this process: a notification wakes it, and the clock when one is lost.
func (s *Store) tail() {
	quiet := false
	for n := 0; s.ctx.Err() == nil; n++ {
		began := time.Now()
		err := s.follow()
		if s.ctx.Err() != nil {
			return
		}
		if time.Since(began) > s.timeout {
			n, quiet = 0, false
		}
		if !quiet {
			s.log.Warn("connection to postgres lost; trying again", "error", err)
			quiet = true
		}
		_ = pause(s.ctx, n) // the loop looks why
	}
}

// follow follows the log on one connection until that breaks.
func (s *Store) follow() error {
	conn, err := s.connect(s.ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.timeout)
		defer cancel()
		_ = conn.Close(ctx) // it only read
	}()
	if _, err := conn.Exec(s.ctx, "LISTEN "+s.sql.channel); err != nil {
		return err
	}
	for {
		if err := s.advance(conn); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(s.ctx, s.poll)
		_, err := conn.WaitForNotification(wait)
		over := wait.Err() != nil
		cancel()
		if err != nil && !over || s.ctx.Err() != nil || conn.IsClosed() {
			return err
		}
	}
}

// advance reads what is new into the ring.
func (s *Store) advance(conn *pgx.Conn) error {
	for {
		s.mu.Lock()
		newest := s.ring.newest
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
		p, err := s.since(ctx, conn, newest)
		cancel()
		if errors.Is(err, store.ErrCompacted) { // away for too long: watches read the log themselves, and are told so
			p, err = page{rev: p.rev, first: p.first}, nil
			s.mu.Lock()
			s.ring = ring{first: p.rev, newest: p.rev, compacted: p.first, commits: s.ring.commits}
			s.wake()
			s.mu.Unlock()
		}
		if errors.Is(err, store.ErrCorrupt) {
			s.halt(err)
		}
		if err != nil {
			return err
		}
		if len(p.log) == 0 {
			return nil
		}
		s.saw(p.log[len(p.log)-1].mark)
		s.mu.Lock()
		s.ring.add(p.log, p.first)
		s.wake()
		s.mu.Unlock()
	}
}

// page is a part of the log, and the head at that moment.
type page struct {
	rev, first store.Rev
	log        []logged
}

// querier is a connection or the pool.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// since reads the log after a revision, within bounds. store.ErrCompacted, with the head, and store.ErrCorrupt.
func (s *Store) since(ctx context.Context, from querier, after store.Rev) (p page, err error) {
	rows, err := from.Query(ctx, s.sql.since, int64(after), readCommits, readBytes)
	if err != nil {
		return p, err
	}
	defer rows.Close()
	for rows.Next() {
		var rev *int64
		var batch, events []byte
		if err := rows.Scan(number{&p.rev}, number{&p.first}, &rev, &batch, &events); err != nil {
			return p, err
		}
		if rev == nil {
			continue
		}
		c := logged{mark: mark{store.Rev(*rev), string(batch)}, bytes: len(events)}
		if c.events, err = parseEvents(events, c.rev); err != nil {
			return p, err
		}
		p.log = append(p.log, c)
	}
	if err := rows.Err(); err != nil {
		return p, err
	}
	if after < p.first {
		p.log = nil
		return p, store.ErrCompacted
	}
	for i, c := range p.log {
		if c.rev != after+store.Rev(i)+1 {
			return p, fmt.Errorf("%w: the log has revision %d instead of %d", store.ErrCorrupt, c.rev, after+store.Rev(i)+1)
		}
	}
	if len(p.log) == 0 && p.rev > after {
		return p, fmt.Errorf("%w: the log ends at revision %d instead of %d", store.ErrCorrupt, after, p.rev)
	}
	return p, nil
}

// Watch implements store.Store. The first look is at the server's log, so that what is compacted there is told at once; then it follows the
// ring as long as that reaches back to where it is.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		at, live := after, false
		for {
			commits, changed, err := s.recent(ctx, at, live)
			if err == nil && commits == nil && changed == nil {
				commits, err = s.older(ctx, at)
				live = true
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, c := range commits {
				at = c.rev
				events := under(c.events, prefix)
				if len(events) == 0 {
					continue
				}
				if err := ctx.Err(); err != nil {
					yield(nil, err)
					return
				}
				if err := s.failure(); err != nil {
					yield(nil, err)
					return
				}
				if !yield(events, nil) {
					return
				}
			}
			if changed != nil {
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
		}
	}
}

// recent returns what the ring holds after a revision, or the channel to wait on, or neither: then the log has to be read.
func (s *Store) recent(ctx context.Context, at store.Rev, live bool) ([]logged, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case s.failed != nil:
		return nil, nil, s.failed
	case !live:
		return nil, nil, nil
	case at >= s.ring.newest:
		return nil, s.changed, nil
	case at < s.ring.first:
		return nil, nil, nil
	}
	return s.ring.log[at-s.ring.first:], nil, nil // what is in it never changes
}

// older reads the log after a revision. A server that cannot be reached is waited for.
func (s *Store) older(ctx context.Context, at store.Rev) (log []logged, err error) {
	const never = store.Rev(1) << 62
	if at >= never {
		return nil, nil
	}
	for {
		err = s.read(ctx, s.timeout, func(ctx context.Context) error {
			p, err := s.since(ctx, s.pool, at)
			log = p.log
			return err
		})
		if !errors.Is(err, store.ErrUnavailable) {
			return log, err
		}
	}
}
