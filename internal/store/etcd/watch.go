package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotorkms/rotor/internal/store"
)

// errStopped: the reader of a watch has gone, so nothing more is to be yielded.
var errStopped = errors.New("the reader has gone")

// compactedError: a stream started before the revision, which is the oldest that etcd keeps.
type compactedError int64

func (e compactedError) Error() string {
	return fmt.Sprintf("etcd is compacted up to revision %d", int64(e))
}

// Watch implements store.Store. The client's own watch would go on by itself after a cut, at the revision after the last event; when
// that is the very revision of a compaction, etcd before 3.4.36 leaves out what was deleted there. So each stream here starts one revision
// early, where etcd refuses a compacted start, and leaves out what was seen.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Rev) iter.Seq2[[]store.Event, error] {
	return func(yield func([]store.Event, error) bool) {
		w := watcher{store: s, prefix: s.prefix + prefix, at: int64(after), yield: yield, pause: newPause()}
		for {
			by := s.now.Load()
			err := w.stream(ctx)
			if errors.Is(err, errStopped) {
				return
			}
			if at := compactedError(0); errors.As(err, &at) {
				err = w.skip(ctx, int64(at))
			}
			switch {
			case s.run.Err() != nil:
				err = store.ErrClosed
			case ctx.Err() != nil:
				err = ctx.Err()
			case s.renewed(by):
				continue
			case err == nil || transient(err) || errors.Is(err, store.ErrUnavailable):
				w.pause.wait(ctx)
				continue
			}
			yield(nil, err)
			return
		}
	}
}

// watcher is one watch over its streams.
type watcher struct {
	store  *Store
	prefix string
	at     int64 // everything up to this revision has been yielded
	yield  func([]store.Event, error) bool
	pause  pause
}

// stream yields commits until something ends it.
func (w *watcher) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx)) // a member that has lost the others ends the stream
	defer cancel()
	defer context.AfterFunc(w.store.run, cancel)()
	stream, err := w.store.now.Load().watch.Watch(ctx)
	if err != nil {
		return err
	}
	create := &pb.WatchCreateRequest{
		Key: []byte(w.prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(w.prefix)), StartRevision: max(w.at, 1), Fragment: true,
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	if err != nil && !errors.Is(err, io.EOF) { // what is wrong with the stream, Recv says
		return err
	}
	var events []*mvccpb.Event
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		switch {
		case resp.GetCompactRevision() != 0:
			return compactedError(resp.GetCompactRevision())
		case resp.GetCanceled() && strings.Contains(resp.GetCancelReason(), "permission denied"):
			return fmt.Errorf("watch: %w", rpctypes.ErrPermissionDenied)
		case resp.GetCanceled():
			return fmt.Errorf("watch: %w: %s", store.ErrUnavailable, resp.GetCancelReason())
		}
		w.pause = newPause()
		if events = append(events, resp.GetEvents()...); resp.GetFragment() {
			continue // etcd cuts a large answer anywhere
		}
		if err := w.deliver(ctx, events); err != nil {
			return err
		}
		events = nil
	}
}

// deliver yields the events of an answer, which holds whole commits, one commit at a time.
func (w *watcher) deliver(ctx context.Context, events []*mvccpb.Event) error {
	for len(events) > 0 {
		rev, n := events[0].GetKv().GetModRevision(), 1
		for n < len(events) && events[n].GetKv().GetModRevision() == rev {
			n++
		}
		commit := events[:n]
		events = events[n:]
		if rev <= w.at {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		w.store.saw(rev)
		out := make([]store.Event, n)
		for i, e := range commit {
			r := w.store.record(e.GetKv().GetKey(), e.GetKv().GetValue(), rev)
			out[i] = store.Event{Key: r.Key, Value: r.Value, Rev: r.Rev}
			if e.GetType() == mvccpb.Event_DELETE {
				out[i].Deleted, out[i].Value = true, nil
			}
		}
		w.at = rev
		if !w.yield(out, nil) {
			return errStopped
		}
	}
	return nil
}

// skip goes over what was compacted away, when none of it after w.at is a commit of ours: the oldest revision that is kept still tells the
// newest commit before it. store.ErrCompacted.
func (w *watcher) skip(ctx context.Context, oldest int64) error {
	a, err := w.store.read(ctx, clientv3.OpGet(w.store.config.Prefix+headPart, clientv3.WithRev(oldest)))
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil // once more meanwhile: the next stream says how far
	}
	if err != nil {
		return err
	}
	if last, _ := a.head(); last > w.at {
		return store.ErrCompacted
	}
	w.at = max(w.at, oldest)
	return nil
}

// pause is the time before the next try: it doubles from 10 ms to half a second.
type pause struct{ next time.Duration }

func newPause() pause { return pause{10 * time.Millisecond} }

// wait reports false when ctx has ended instead.
func (p *pause) wait(ctx context.Context) bool {
	t := time.NewTimer(p.next)
	defer t.Stop()
	p.next = min(2*p.next, 500*time.Millisecond)
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
