package campaign

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of what a data set may answer, in bytes and numbers.
const (
	maxAnswer = 64 << 20
	maxShards = 4096
	batchSize = 500
)

// Info is what a data set says of itself.
type Info struct {
	Shards []string `json:"shards"`
	Floor  bool     `json:"floor"` // whether it can refuse ciphertext by version
}

// Item is one ciphertext of a data set with the associated data that it was made with.
type Item struct {
	ID    string
	Value []byte
	Parts []envelope.Part
}

// Swap replaces a value if it is exactly Old.
type Swap struct {
	ID  string `json:"id"`
	Old []byte `json:"old"`
	New []byte `json:"new"`
}

// Outcome is what became of a swap.
type Outcome string

// The outcomes.
const (
	Swapped Outcome = "swapped"
	Changed Outcome = "changed" // somebody wrote meanwhile; the writer wins
	Gone    Outcome = "gone"
)

// Floor says which versions a data set refuses. It is ordered by (Incarnation, Sequence): an older one is never taken over a newer.
type Floor struct {
	Key         string   `json:"key"`
	Incarnation uint32   `json:"incarnation"`
	Sequence    uint64   `json:"sequence"`
	Reject      []string `json:"reject"` // handles, 8 hex digits each
}

// Adapter is a registered place where ciphertext lives. Each method fails with fault.Unavailable when it cannot be reached.
type Adapter interface {
	// Info describes the data set.
	Info(ctx context.Context) (Info, error)
	// Scan returns up to n items of a shard after a cursor, and the next cursor, empty at the end.
	Scan(ctx context.Context, shard, cursor string, n int) (items []Item, next string, err error)
	// Swap does compare-and-swap, one outcome for each swap.
	Swap(ctx context.Context, swaps []Swap) ([]Outcome, error)
	// Census counts the ciphertexts of a shard by handle, and those that no handle could be read of, by a full scan.
	Census(ctx context.Context, shard string) (counts map[string]uint64, unreadable uint64, err error)
	// SetFloor makes the data set refuse versions, durably before it returns.
	SetFloor(ctx context.Context, f Floor) error
}

// httpSet speaks the data-set protocol (spec/dataset-protocol.md).
type httpSet struct {
	client *http.Client
	base   string
}

// Info implements Adapter.
func (h httpSet) Info(ctx context.Context) (i Info, err error) {
	if err = h.call(ctx, http.MethodGet, "/info", nil, &i); err == nil && (len(i.Shards) == 0 || len(i.Shards) > maxShards) {
		err = h.malformed()
	}
	return i, err
}

// Scan implements Adapter.
func (h httpSet) Scan(ctx context.Context, shard, cursor string, n int) ([]Item, string, error) {
	var out struct {
		Items []struct {
			ID    string `json:"id"`
			Value []byte `json:"value"`
			Parts []struct {
				Label string `json:"label"`
				Value []byte `json:"value"`
			} `json:"parts"`
		} `json:"items"`
		Next string `json:"next"`
	}
	q := url.Values{"cursor": {cursor}, "n": {strconv.Itoa(n)}}
	if err := h.call(ctx, http.MethodGet, "/shards/"+url.PathEscape(shard)+"/items?"+q.Encode(), nil, &out); err != nil {
		return nil, "", err
	}
	if len(out.Items) > n || out.Next == cursor && out.Next != "" {
		return nil, "", h.malformed()
	}
	items := make([]Item, len(out.Items))
	for i, it := range out.Items {
		items[i] = Item{ID: it.ID, Value: it.Value}
		for _, p := range it.Parts {
			items[i].Parts = append(items[i].Parts, envelope.Part{Label: p.Label, Value: p.Value})
		}
	}
	return items, out.Next, nil
}

// Swap implements Adapter.
func (h httpSet) Swap(ctx context.Context, swaps []Swap) ([]Outcome, error) {
	var out struct {
		Results []Outcome `json:"results"`
	}
	if err := h.call(ctx, http.MethodPost, "/swap", map[string][]Swap{"swaps": swaps}, &out); err != nil {
		return nil, err
	}
	if len(out.Results) != len(swaps) {
		return nil, h.malformed()
	}
	return out.Results, nil
}

// Census implements Adapter.
func (h httpSet) Census(ctx context.Context, shard string) (map[string]uint64, uint64, error) {
	var out struct {
		Counts     map[string]uint64 `json:"counts"`
		Unreadable uint64            `json:"unreadable"`
	}
	err := h.call(ctx, http.MethodGet, "/shards/"+url.PathEscape(shard)+"/census", nil, &out)
	if err == nil && out.Counts == nil {
		err = h.malformed()
	}
	return out.Counts, out.Unreadable, err
}

// SetFloor implements Adapter.
func (h httpSet) SetFloor(ctx context.Context, f Floor) error {
	return h.call(ctx, http.MethodPut, "/floor", f, nil)
}

func (h httpSet) malformed() error {
	return fault.New(fault.Unavailable, "data set at "+h.base).WithHint("its answer does not follow the data-set protocol")
}

func (h httpSet) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request to data set: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, h.base+path, body)
	if err != nil {
		return fault.Wrap(fault.Invalid, "data set at "+h.base, err)
	}
	resp, err := h.client.Do(r)
	if err != nil {
		return fault.Wrap(fault.Unavailable, "data set at "+h.base, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fault.Wrap(fault.Unavailable, "data set at "+h.base, err)
	case resp.StatusCode != http.StatusOK:
		return fault.New(fault.Unavailable, "data set at "+h.base).WithHint("it answered %d", resp.StatusCode)
	case len(b) > maxAnswer:
		return h.malformed()
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return h.malformed()
	}
	return nil
}
