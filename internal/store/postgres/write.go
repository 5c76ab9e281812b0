package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotorkms/rotor/internal/store"
)

// Bounds of the commits that share one transaction: their number, and the bytes that they write, with at most one commit above.
const (
	maxBatch      = 512
	maxBatchBytes = 4 << 20
)

// pending is a commit that waits for its transaction.
type pending struct {
	conds []store.Cond
	ops   []store.Op
	taken atomic.Bool // by the writer, or by its caller, who has given up
	rev   store.Rev
	err   error
	done  chan struct{}
}

func (p *pending) size() (n int) {
	for _, o := range p.ops {
		n += len(o.Key) + len(o.Value)
	}
	return n
}

// Commit implements store.Store. Once the writer has taken it, it is decided within bounds and ctx no longer counts: waiting beats not
// knowing.
func (s *Store) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := s.failure(); err != nil {
		return 0, err
	}
	p := &pending{conds: conds, ops: ops, done: make(chan struct{})}
	select {
	case s.queue <- p:
	case <-s.ctx.Done():
		return 0, s.failure()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-p.done:
	case <-s.ctx.Done():
		if p.taken.CompareAndSwap(false, true) {
			return 0, s.failure()
		}
		<-p.done
	case <-ctx.Done():
		if p.taken.CompareAndSwap(false, true) {
			return 0, ctx.Err()
		}
		<-p.done
	}
	return p.rev, p.err
}

// writer has the connection that commits.
type writer struct {
	*Store
	conn   *pgx.Conn
	warned atomic.Bool // the server warned during the last commit
}

// write is the one writer: it takes all commits that wait, and decides them in one transaction.
func (s *Store) write() {
	w := &writer{Store: s}
	defer w.drop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case p := <-s.queue:
			if batch := s.gather(p); len(batch) > 0 {
				w.decide(batch)
			}
		}
	}
}

// gather adds what waits to the first commit, leaving out those whose callers have given up.
func (s *Store) gather(p *pending) (batch []*pending) {
	size := 0
	for {
		if p.taken.CompareAndSwap(false, true) {
			batch = append(batch, p)
			size += p.size()
		}
		if len(batch) == maxBatch || size >= maxBatchBytes {
			return batch
		}
		select {
		case p = <-s.queue:
		default:
			return batch
		}
	}
}

// decide writes a batch and answers everybody in it.
func (w *writer) decide(batch []*pending) {
	err := w.settle(batch)
	for _, p := range batch {
		if err != nil { // also a conflict is no longer one: it may have been with a commit that never happened
			p.rev, p.err = 0, err
		}
		close(p.done)
	}
}

// settle tries a batch until it is decided, as long as it is certain that nothing was written, and the time for it is not over.
func (w *writer) settle(batch []*pending) error {
	end := time.Now().Add(w.timeout)
	for n := 0; ; n++ {
		attempt, err := w.attempt(batch)
		if err == nil {
			return nil
		}
		if errors.Is(err, store.ErrCorrupt) {
			return err
		}
		if attempt.sent && ambiguous(err) {
			w.drop()
			happened, found := w.resolve(attempt)
			if found != nil {
				return fmt.Errorf("%w: %w; asked again: %w", store.ErrUnknown, err, found)
			}
			if happened {
				w.saw(attempt.mark)
				return nil
			}
		} else if e, ok := server(err); !ok || fatal(e) || e.Code == stateReadOnly {
			w.drop()
		} else if rolled := w.rollback(); rolled != nil {
			w.drop()
		}
		if !transient(err) || time.Now().After(end) || w.ctx.Err() != nil {
			return plain(err)
		}
		_ = pause(w.ctx, n) // the loop looks why
	}
}

// attempt is one try of a transaction.
type attempt struct {
	mark mark // of its last commit
	sent bool // its COMMIT was sent, or may have been
}

// attempt runs one transaction, in two round trips: lock and read, then write and commit. An error of the first says that nothing was written.
func (w *writer) attempt(batch []*pending) (attempt, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), w.timeout/2) // so that there is time for another
	defer cancel()
	if err := w.ready(ctx); err != nil {
		return attempt{}, err
	}
	c, err := w.begin(ctx, batch)
	if err != nil {
		return attempt{}, err
	}
	old := c.rev
	for _, p := range batch {
		p.rev, p.err = c.apply(p)
	}
	if c.rev == old {
		return attempt{}, w.rollback() // nothing but conflicts
	}
	c.batch = make([]byte, 16)
	_, _ = rand.Read(c.batch) // it never fails
	a := attempt{mark: mark{c.rev, string(c.batch)}, sent: true}
	if err := w.send(c, old); err != nil {
		return a, err
	}
	w.saw(a.mark)
	return a, nil
}

// ready makes the connection.
func (w *writer) ready(ctx context.Context) error {
	if w.conn != nil && !w.conn.IsClosed() {
		return nil
	}
	w.drop()
	conn, err := w.connectWriter(ctx)
	if err != nil {
		return err
	}
	w.conn = conn
	return nil
}

func (w *writer) connectWriter(ctx context.Context) (*pgx.Conn, error) {
	c := w.config.own.Copy()
	c.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" || n.Severity == "WARNING" {
			w.warned.Store(true)
		}
	}
	conn, err := w.connectWith(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, sql := range []string{w.sql.lock, w.sql.revs, w.sql.put, w.sql.remove, w.sql.log, w.sql.advance, w.sql.trim, w.sql.notify} {
		if _, err := conn.Prepare(ctx, sql, sql); err != nil {
			_ = conn.Close(ctx) // it has done nothing
			return nil, err
		}
	}
	return conn, nil
}

// drop gives up the connection.
func (w *writer) drop() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), w.timeout)
	defer cancel()
	_ = w.conn.Close(ctx) // what it had to say was heard
	w.conn = nil
}

func (w *writer) rollback() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), w.timeout)
	defer cancel()
	if w.conn == nil {
		return nil
	}
	_, err := w.conn.Exec(ctx, "ROLLBACK")
	return err
}

// begin locks the head and reads the revisions of all records that the batch names.
func (w *writer) begin(ctx context.Context, batch []*pending) (*changes, error) {
	c := &changes{revs: map[string]store.Rev{}, values: map[string][]byte{}, history: w.history}
	for _, p := range batch {
		for _, cond := range p.conds {
			c.revs[cond.Key] = 0
		}
		for _, o := range p.ops {
			c.revs[o.Key] = 0
		}
	}
	keys := make([][]byte, 0, len(c.revs))
	for key := range c.revs {
		keys = append(keys, []byte(key))
	}
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	b.Queue(w.sql.lock).QueryRow(func(row pgx.Row) error { return row.Scan(number{&c.rev}, number{&c.first}) })
	b.Queue(w.sql.revs, keys).Query(func(rows pgx.Rows) error {
		var key []byte
		var rev int64
		_, err := pgx.ForEachRow(rows, []any{&key, &rev}, func() error {
			c.revs[string(key)] = store.Rev(rev)
			return nil
		})
		return err
	})
	return c, w.conn.SendBatch(ctx, b).Close()
}

// send writes the changes and commits.
func (w *writer) send(c *changes, old store.Rev) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), w.timeout)
	defer cancel()
	b := &pgx.Batch{}
	if puts := c.puts(); len(puts.keys) > 0 {
		b.Queue(w.sql.put, puts.keys, puts.values, puts.revs)
	}
	if gone := c.gone(); len(gone) > 0 {
		b.Queue(w.sql.remove, gone)
	}
	b.Queue(w.sql.log, c.logRevs, c.batch, c.log)
	first := max(c.first, c.rev-min(c.rev, w.history))
	b.Queue(w.sql.advance, int64(c.rev), int64(first))
	if step := max(w.history/64, 1); c.rev/step != old/step { // in strides, because a stride is as cheap as one
		b.Queue(w.sql.trim, int64(first))
	}
	tag := ""
	b.Queue("COMMIT").Exec(func(t pgconn.CommandTag) error {
		tag = t.String()
		return nil
	})
	// It wakes the watches of all servers; one that is lost costs them a poll. In the transaction it would hold a lock of the whole
	// database cluster until the commit is durable.
	b.Queue(w.sql.notify, w.sql.channel)
	w.warned.Store(false)
	if err := w.conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	switch {
	case tag != "COMMIT":
		return fmt.Errorf("the server answered COMMIT with %s", tag)
	case w.warned.Load(): // above all: somebody ended the wait for synchronous replicas
		return errWarned
	}
	return nil
}

// errWarned: the commit is on the primary, and perhaps nowhere else.
var errWarned = errors.New("the server warned that the commit may not have been replicated")

// resolve finds out whether a transaction of unknown outcome happened. Its lock on the head is ours only when it has ended. That it happened
// counts once a commit after it is durable, on synchronous replicas too: the server may have crashed while it waited for them.
func (w *writer) resolve(a attempt) (happened bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), w.timeout)
	defer cancel()
	for n := 0; ; n++ {
		happened, err := w.ask(ctx, a)
		if err == nil {
			return happened, nil
		}
		w.drop()
		if !transient(err) || pause(ctx, n) != nil || w.Store.ctx.Err() != nil {
			return false, err
		}
	}
}

func (w *writer) ask(ctx context.Context, a attempt) (happened bool, err error) {
	if err := w.ready(ctx); err != nil {
		return false, err
	}
	w.warned.Store(false)
	err = pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		var rev, first, found int64
		if err := tx.QueryRow(ctx, w.sql.lock).Scan(&rev, &first); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, w.sql.find, int64(a.mark.rev), []byte(a.mark.batch)).Scan(&found); err != nil {
			return err
		}
		if happened = found > 0; !happened && store.Rev(first) >= a.mark.rev {
			return fmt.Errorf("%w: revision %d is out of the history", store.ErrCompacted, a.mark.rev)
		}
		_, err := tx.Exec(ctx, w.sql.prove) // the row lock alone makes PostgreSQL 15 wait for replicas; a write need not rest on that
		return err
	})
	if err == nil && w.warned.Load() {
		err = errWarned
	}
	return happened, err
}
