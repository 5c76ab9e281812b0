package campaign_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
)

// shelf is a data set in memory, with two shards: IDs before "m" and the others. What a test puts into before happens before each call.
type shelf struct {
	mu     sync.Mutex // guards what follows
	values map[string][]byte
	floor  campaign.Floor
	info   campaign.Info

	before func(call string) error // without mu
}

func newShelf() *shelf {
	return &shelf{values: map[string][]byte{}, info: campaign.Info{Shards: []string{"a-l", "m-z"}, Floor: true}}
}

func (s *shelf) call(name string) error {
	if s.before == nil {
		return nil
	}
	return s.before(name)
}

func shardOf(id string) string {
	if id < "m" {
		return "a-l"
	}
	return "m-z"
}

func handleOf(message []byte) string {
	h, err := envelope.MessageHandle(message)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%08x", h)
}

func (s *shelf) Info(context.Context) (campaign.Info, error) {
	if err := s.call("info"); err != nil {
		return campaign.Info{}, err
	}
	return s.info, nil
}

func (s *shelf) Scan(_ context.Context, shard, cursor string, n int) (items []campaign.Item, next string, err error) {
	if err := s.call("scan"); err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.values)) {
		if shardOf(id) != shard || id <= cursor {
			continue
		}
		if len(items) == n {
			return items, items[n-1].ID, nil
		}
		items = append(items, campaign.Item{ID: id, Value: bytes.Clone(s.values[id]), Parts: []envelope.Part{part(id)}})
	}
	return items, "", nil
}

func (s *shelf) Swap(_ context.Context, swaps []campaign.Swap) (out []campaign.Outcome, err error) {
	if err := s.call("swap"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range swaps {
		switch v, ok := s.values[w.ID]; {
		case slices.Contains(s.floor.Reject, handleOf(w.New)):
			return nil, fault.New(fault.Unavailable, "below floor")
		case !ok:
			out = append(out, campaign.Gone)
		case !bytes.Equal(v, w.Old):
			out = append(out, campaign.Changed)
		default:
			s.values[w.ID] = bytes.Clone(w.New)
			out = append(out, campaign.Swapped)
		}
	}
	return out, nil
}

func (s *shelf) Census(_ context.Context, shard string) (map[string]uint64, uint64, error) {
	if err := s.call("census"); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	counts, unreadable := map[string]uint64{}, uint64(0)
	for id, v := range s.values {
		switch h := handleOf(v); {
		case shardOf(id) != shard:
		case h == "":
			unreadable++
		default:
			counts[h]++
		}
	}
	return counts, unreadable, nil
}

func (s *shelf) SetFloor(_ context.Context, f campaign.Floor) error {
	if err := s.call("floor"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Incarnation < s.floor.Incarnation || f.Incarnation == s.floor.Incarnation && f.Sequence < s.floor.Sequence {
		return fault.New(fault.Unavailable, "old floor")
	}
	s.floor = f
	return nil
}

func (s *shelf) put(_ testing.TB, id string, message []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.floor.Reject, handleOf(message)) {
		return errBelow
	}
	s.values[id] = bytes.Clone(message)
	return nil
}

func (s *shelf) all(testing.TB) map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values)
}
