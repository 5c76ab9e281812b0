// Package postgres is the engine for several servers: records live in a schema of a PostgreSQL 15 or later (jackc/pgx). One row holds the
// newest revision; whoever commits locks it, so revisions are dense and in the order in which commits become visible. Commits of one process
// that arrive together share one transaction.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rotorkms/rotor/internal/store"
)

// Options change how a store is opened; the zero value is good.
type Options struct {
	History int           // commits that a watch can look back; default 100,000
	Poll    time.Duration // how long a watch waits at most when a notification is lost; default 1 s
	Timeout time.Duration // how long a call tries to reach the server, and how long it waits for its answer; default 5 s
	Log     *slog.Logger  // default: slog.Default
}

// statementTime bounds one statement, on both sides; a List of everything is the longest.
const statementTime = time.Minute

// Store is an open store. It is safe for concurrent use.
type Store struct {
	config  config
	sql     statements
	history store.Rev
	poll    time.Duration
	timeout time.Duration
	log     *slog.Logger

	pool   *pgxpool.Pool
	queue  chan *pending
	ctx    context.Context // ends when the store closes or stops
	cancel context.CancelFunc
	loops  sync.WaitGroup

	closing sync.Once

	mu      sync.Mutex // guards what follows
	failed  error      // set for good when the store closes or stops
	known   mark       // the newest commit that this process has seen
	ring    ring       // the newest commits, for watches
	changed chan struct{}
}

// mark names a commit: its revision, and the random number of its transaction.
type mark struct {
	rev   store.Rev
	batch string
}

// Open connects to the server that the URL names, and makes or completes the schema. The URL is libpq's, with several hosts where there are
// several, and with schema=NAME (default rotor). The server must take writes: gates are never read from a replica. store.ErrUnavailable.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	c, err := parse(url)
	if err != nil {
		return nil, err
	}
	s := &Store{
		config: c, sql: statementsOf(c.schema), history: store.Rev(cmp.Or(max(o.History, 0), c.history, 100_000)),
		poll: cmp.Or(o.Poll, time.Second), timeout: cmp.Or(o.Timeout, 5*time.Second), log: o.Log,
		queue: make(chan *pending, maxBatch), changed: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.config.bound(s.timeout)
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.start(ctx); err != nil {
		s.cancel()
		if s.pool != nil {
			s.pool.Close()
		}
		return nil, fmt.Errorf("open store in postgres: %w", err)
	}
	return s, nil
}

func (s *Store) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(migrate(ctx, conn, s.config.schema), conn.Close(ctx))
	if err != nil {
		return plain(err)
	}
	pool := s.config.pool.Copy()
	pool.BeforeConnect, pool.AfterConnect = s.config.renew, s.admit
	if s.pool, err = pgxpool.NewWithConfig(s.ctx, pool); err != nil {
		return unavailable(err)
	}
	first, rev, err := s.head(ctx)
	if err != nil {
		return err
	}
	s.ring = ring{first: rev, newest: rev, compacted: first, commits: min(int(s.history), ringCommits)}
	s.loops.Go(s.tail)
	s.loops.Go(s.write)
	return nil
}

// connect makes a connection outside of the pool. store.ErrUnavailable.
func (s *Store) connect(ctx context.Context) (*pgx.Conn, error) {
	return s.connectWith(ctx, s.config.own.Copy())
}

func (s *Store) connectWith(ctx context.Context, c *pgx.ConnConfig) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, ours{}, true), s.timeout)
	defer cancel()
	if err := s.config.renew(ctx, c); err != nil {
		return nil, unavailable(err)
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, unavailable(err)
	}
	if err := s.admit(ctx, conn); err != nil {
		_ = conn.Close(ctx) // it has done nothing
		return nil, err
	}
	return conn, nil
}

// admit looks at each new connection: the server must not be a replica, commits must be as durable as it can make them, and it must still have
// the newest commit that this process knows of. One that has not is a server that lost commits, and stops the store.
func (s *Store) admit(ctx context.Context, conn *pgx.Conn) error {
	var replica bool
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery() FROM set_config('synchronous_commit',
		CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)`).Scan(&replica)
	if err != nil {
		return unavailable(err)
	}
	if replica {
		return fmt.Errorf("%w: the server is a replica", store.ErrUnavailable)
	}
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	if known.rev == 0 {
		return nil
	}
	var rev store.Rev
	var batch []byte
	if err := conn.QueryRow(ctx, s.sql.known, int64(known.rev)).Scan(number{&rev}, &batch); err != nil {
		return unavailable(err)
	}
	if rev < known.rev || batch != nil && string(batch) != known.batch {
		err := fmt.Errorf("%w: the server is at revision %d and has lost revision %d", store.ErrCorrupt, rev, known.rev)
		s.halt(err)
		return err
	}
	return nil
}

// saw notes the newest commit that this process knows of.
func (s *Store) saw(m mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.rev > s.known.rev {
		s.known = m
	}
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// halt stops the store for good: what comes later gets store.ErrClosed, with the reason.
func (s *Store) halt(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = fmt.Errorf("%w: stopped after: %w", store.ErrClosed, reason)
		s.log.Error("the store stops", "error", reason)
	}
	s.cancel()
	s.wake()
}

// wake tells watches that something changed. Call with mu held.
func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Close implements store.Store. A commit that is being decided is waited for; the others get store.ErrClosed.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		if s.failed == nil {
			s.failed = store.ErrClosed
		}
		s.wake()
		s.mu.Unlock()
		s.cancel()
		s.loops.Wait()
		s.pool.Close()
	})
	return nil
}
