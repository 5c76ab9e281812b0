// Package etcd is the engine on etcd (server 3.4 and later): any number of servers share one store under a prefix. A commit is one
// transaction; revisions are etcd's own, which others who use the cluster move, too.
package etcd

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotorkms/rotor/internal/store"
)

// What stands behind the prefix. Every commit puts the head, so its revision is that of the newest commit, whoever else moves etcd's.
const (
	recordPart = "/k/" // then the record's key
	headPart   = "/head"
)

const (
	pageRecords = 256 // of a list
	attempts    = 3   // reads of one call, in its time, before a member that hangs is given up
)

// Store is a connection to etcd. It is safe for concurrent use.
type Store struct {
	config Config
	prefix string // of records
	now    atomic.Pointer[client]
	renew  sync.Mutex // held while another client is made

	compactions atomic.Int64 // that failed

	seen atomic.Int64 // newest revision that an answer has named

	run     context.Context // ends at Close
	stop    context.CancelFunc
	loops   sync.WaitGroup
	closing sync.Once
}

// Open connects to etcd and reads once, to say at once what is wrong. store.ErrUnavailable when there is no answer in time.
func Open(ctx context.Context, c Config) (*Store, error) {
	c = c.defaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("configuration of etcd: %w", err)
	}
	c.CompactEvery = cmp.Or(c.CompactEvery, 5*time.Minute)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Store{config: c, prefix: c.Prefix + recordPart}
	s.run, s.stop = context.WithCancel(context.Background())
	first, err := s.connect()
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("open etcd: %w", s.failure(ctx, err))
	}
	s.now.Store(first)
	if _, _, err := s.head(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open etcd: %w", err), s.Close())
	}
	if c.History > 0 {
		s.loops.Go(s.compactLoop)
	}
	return s, nil
}

// failure is the error of a read, or of a commit that wrote nothing. store.ErrClosed, ErrCorrupt, ErrUnavailable, ctx's error.
func (s *Store) failure(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case s.run.Err() != nil:
		return store.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(rpctypes.Error(err), rpctypes.ErrCorrupt):
		return fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	case transient(err):
		return fmt.Errorf("%w: %s", store.ErrUnavailable, err.Error()) // as text: a deadline of ours is none of the caller's
	}
	return err
}

// transient says whether another try, or another member, may answer.
func transient(err error) bool {
	var coded rpctypes.EtcdError
	if errors.As(rpctypes.Error(err), &coded) {
		return coded.Code() == codes.Unavailable || errors.Is(coded, rpctypes.ErrTooManyRequests) || staleToken(coded)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown: // a member of 3.4 calls its own deadline unknown
		_, ok := status.FromError(err)
		return ok
	}
	return false
}

// staleToken: the token of a user has expired, or was given before the rights were changed. The client gets another one before it says so.
func staleToken(err error) bool {
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision)
}

// answer is what one read got.
type answer struct {
	rev    int64 // of the cluster
	ranges []*pb.RangeResponse
}

// read runs reads, several as one transaction, until a member answers or time is up. They are linearizable but where they name a revision.
func (s *Store) read(ctx context.Context, ops ...clientv3.Op) (answer, error) {
	if err := ctx.Err(); err != nil {
		return answer{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	pause := newPause()
	for {
		by := s.now.Load()
		a, err := s.try(bounded, ops)
		if err == nil {
			s.saw(a.rev)
			return a, nil
		}
		if s.run.Err() == nil && bounded.Err() == nil && s.renewed(by) {
			continue
		}
		if s.run.Err() != nil || !transient(err) || !pause.wait(bounded) {
			return answer{}, s.failure(ctx, err)
		}
	}
}

func (s *Store) try(ctx context.Context, ops []clientv3.Op) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout/attempts)
	defer cancel()
	op := ops[0]
	if len(ops) > 1 {
		op = clientv3.OpTxn(nil, ops, nil)
	}
	resp, err := s.now.Load().Do(ctx, op)
	if err != nil {
		return answer{}, err
	}
	if len(ops) == 1 {
		return answer{resp.Get().Header.GetRevision(), []*pb.RangeResponse{(*pb.RangeResponse)(resp.Get())}}, nil
	}
	a := answer{rev: resp.Txn().Header.GetRevision()}
	for _, r := range resp.Txn().Responses {
		a.ranges = append(a.ranges, r.GetResponseRange())
	}
	return a, nil
}

// saw notes a revision that etcd has reached.
func (s *Store) saw(rev int64) {
	for {
		old := s.seen.Load()
		if rev <= old || s.seen.CompareAndSwap(old, rev) {
			return
		}
	}
}

// head reads the revision of the newest commit (0 when there is none), and that of the cluster at the same moment.
func (s *Store) head(ctx context.Context) (newest, cluster int64, err error) {
	a, err := s.read(ctx, s.headOp())
	if err != nil {
		return 0, 0, err
	}
	newest, _ = a.head()
	return newest, a.rev, nil
}

func (s *Store) headOp() clientv3.Op { return clientv3.OpGet(s.config.Prefix + headPart) }

// head takes the head out of the first read.
func (a answer) head() (rev int64, id string) {
	for _, kv := range a.ranges[0].GetKvs() {
		rev, id = kv.GetModRevision(), string(kv.GetValue())
	}
	return rev, id
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if len(key) > store.MaxKeyBytes {
		return store.Record{}, store.ErrNotFound
	}
	a, err := s.read(ctx, clientv3.OpGet(s.prefix+key))
	if err != nil {
		return store.Record{}, fmt.Errorf("get: %w", err)
	}
	for _, kv := range a.ranges[0].GetKvs() {
		return s.record(kv.GetKey(), kv.GetValue(), kv.GetModRevision()), nil
	}
	return store.Record{}, store.ErrNotFound
}

func (s *Store) record(key, value []byte, rev int64) store.Record {
	return store.Record{Key: strings.TrimPrefix(string(key), s.prefix), Value: append([]byte{}, value...), Rev: store.Rev(rev)}
}

// List implements store.Store. All pages are read at the revision of the first, before the first record is yielded; when that revision is
// compacted away meanwhile, it begins again.
func (s *Store) List(ctx context.Context, prefix string) (store.Rev, iter.Seq2[store.Record, error]) {
	rev, found, err := s.list(ctx, prefix)
	for errors.Is(err, rpctypes.ErrCompacted) {
		rev, found, err = s.list(ctx, prefix)
	}
	if err != nil {
		err = fmt.Errorf("list: %w", err)
		return 0, func(yield func(store.Record, error) bool) { yield(store.Record{}, err) }
	}
	return store.Rev(rev), func(yield func(store.Record, error) bool) {
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (s *Store) list(ctx context.Context, prefix string) (rev int64, found []store.Record, err error) {
	from, end := s.prefix+prefix, clientv3.GetPrefixRangeEnd(s.prefix+prefix)
	page := func(at int64) clientv3.Op {
		return clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(pageRecords), clientv3.WithRev(at))
	}
	a, err := s.read(ctx, s.headOp(), page(0))
	if err != nil {
		return 0, nil, err
	}
	rev, _ = a.head()
	snapshot, got := a.rev, a.ranges[1]
	for {
		for _, kv := range got.GetKvs() {
			found = append(found, s.record(kv.GetKey(), kv.GetValue(), kv.GetModRevision()))
			from = string(kv.GetKey()) + "\x00"
		}
		if !got.GetMore() {
			return rev, found, nil
		}
		if a, err = s.read(ctx, page(snapshot)); err != nil {
			return 0, nil, err
		}
		got = a.ranges[0]
	}
}

// Commit implements store.Store. Once it is sent ctx no longer counts: waiting, for no longer than the timeout, beats not knowing.
func (s *Store) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (store.Rev, error) {
	if err := store.Check(conds, ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if s.run.Err() != nil {
		return 0, store.ErrClosed
	}
	id, seen := rand.Text(), s.seen.Load()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
	defer cancel()
	pause := newPause()
	for {
		by := s.now.Load()
		resp, err := by.Txn(bounded).If(s.compares(conds)...).Then(s.puts(ops, id)...).Commit()
		switch {
		case err == nil && !resp.Succeeded:
			s.saw(resp.Header.GetRevision())
			return 0, store.ErrConflict
		case err == nil:
			s.saw(resp.Header.GetRevision())
			return store.Rev(resp.Header.GetRevision()), nil
		case staleToken(err) && pause.wait(bounded): // nothing was written; the client has got another token by now
		case refused(err) && s.renewed(by): // nothing was written, for our password is another one by now
		case errors.Is(err, rpctypes.ErrNoSpace):
			return s.full(context.WithoutCancel(ctx), id, seen)
		case refused(err):
			return 0, fmt.Errorf("commit: %w", s.failure(context.Background(), err))
		default:
			s.renewed(by) // for the next one: what became of this one is not known
			return 0, fmt.Errorf("%w: %s", store.ErrUnknown, err.Error())
		}
	}
}

func (s *Store) compares(conds []store.Cond) []clientv3.Cmp {
	out := make([]clientv3.Cmp, len(conds))
	for i, c := range conds {
		out[i] = clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", int64(c.Rev)) // etcd takes 0 for absent, too
	}
	return out
}

func (s *Store) puts(ops []store.Op, id string) []clientv3.Op {
	out := make([]clientv3.Op, 0, len(ops)+1)
	for _, o := range ops {
		if o.Delete {
			out = append(out, clientv3.OpDelete(s.prefix+o.Key))
		} else {
			out = append(out, clientv3.OpPut(s.prefix+o.Key, string(o.Value)))
		}
	}
	return append(out, clientv3.OpPut(s.config.Prefix+headPart, id))
}

// refused lists the answers that etcd gives before it proposes a transaction to its members. All others, and silence, may come after it.
func refused(err error) bool {
	for _, known := range []error{
		rpctypes.ErrTooManyRequests, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrDuplicateKey, rpctypes.ErrEmptyKey,
		rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrNotCapable, rpctypes.ErrCorrupt,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// full finds out what "no space" meant: etcd says it before it proposes a transaction, and also after it has applied the one that passed
// its quota. seen is a revision that the cluster had reached before the commit, which therefore has a greater one.
func (s *Store) full(ctx context.Context, id string, seen int64) (store.Rev, error) {
	a, err := s.read(ctx, s.headOp())
	if err != nil {
		return 0, fmt.Errorf("%w: no space, and then %s", store.ErrUnknown, err.Error())
	}
	switch rev, last := a.head(); {
	case last == id:
		return store.Rev(rev), nil
	case rev <= seen:
		return 0, fmt.Errorf("%w: %w", store.ErrFull, rpctypes.ErrNoSpace)
	}
	return 0, fmt.Errorf("%w: %w, while others committed", store.ErrUnknown, rpctypes.ErrNoSpace)
}

// compactLoop keeps the cluster's history bounded until Close. Any server may do it, and what does not work now will later: it is said, once for each
// reason in a row, and counted.
func (s *Store) compactLoop() {
	tick := time.NewTicker(s.config.CompactEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-tick.C:
			err := s.Compact(s.run)
			if err == nil || s.run.Err() != nil {
				said = ""
				continue
			}
			s.compactions.Add(1)
			if text := err.Error(); text != said {
				s.config.Log.Warn("etcd's history was not compacted: it grows until its quota is used up", "error", err)
				said = text
			}
		case <-s.run.Done():
			return
		}
	}
}

// CompactionsFailed counts how often the history could not be bounded since Open.
func (s *Store) CompactionsFailed() int64 { return s.compactions.Load() }

// Compact makes the cluster forget what is older than the history before the newest commit.
func (s *Store) Compact(ctx context.Context) error {
	newest, _, err := s.head(ctx)
	if err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	at := newest - int64(s.config.History)
	if at <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	if _, err := s.now.Load().Compact(ctx, at); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact: %w", s.failure(ctx, err))
	}
	return nil
}

// Close implements store.Store. A commit that waits gets ErrUnknown.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		s.stop()
		s.loops.Wait()
		err = s.now.Load().Close()
	})
	if errors.Is(err, context.Canceled) { // what the client says of itself
		return nil
	}
	return err
}
