package campaign

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/fault"
)

// Bounds of what a data set may answer, in bytes and numbers. A data set is somebody else's program: whatever it answers costs no more
// than this.
const (
	maxPage   = 16 << 20 // one page of a scan; a data set with large values returns fewer than it was asked for
	maxAnswer = 1 << 20  // everything else
	maxShards = 4096
	maxName   = 256 // of a shard
	maxID     = 1024
	maxCursor = 4096
	maxSwap   = 4 << 20 // old and new values in one swap request
	batchSize = 500
	// maxElements bounds the members and elements of an answer, of which an empty one takes fifty times its length in memory.
	maxElements = 200_000
)

// Info is what a data set says of itself.
type Info struct {
	Shards []string `json:"shards"`
	Floor  bool     `json:"floor"` // whether it can refuse ciphertext by version
}

// ordered are the shards by name: a campaign that goes on after a crash knows by it which ones it has seen.
func (i Info) ordered() []string { return slices.Sorted(slices.Values(i.Shards)) }

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

// Adapter is a registered place where ciphertext lives. Each method fails with fault.Unavailable when it cannot be reached or answers
// what the protocol does not allow.
type Adapter interface {
	// Info describes the data set.
	Info(ctx context.Context) (Info, error)
	// Scan returns up to n items of a shard after a cursor, and the next cursor, empty at the end. What is there from the beginning to the
	// end of a scan is returned at least once.
	Scan(ctx context.Context, shard, cursor string, n int) (items []Item, next string, err error)
	// Swap does compare-and-swap, one outcome for each swap.
	Swap(ctx context.Context, swaps []Swap) ([]Outcome, error)
	// Census counts the ciphertexts of a shard by handle, and those that no handle could be read of, by a full scan.
	Census(ctx context.Context, shard string) (counts map[string]uint64, unreadable uint64, err error)
	// SetFloor makes the data set refuse versions, durably before it returns.
	SetFloor(ctx context.Context, f Floor) error
}

// httpSet speaks the data-set protocol (spec/dataset.md).
type httpSet struct {
	client *http.Client
	base   string
	verify func(tls.ConnectionState) error // the peer of every answer: a connection that is kept outlives a removal
}

// HTTP connects to a data set that speaks the data-set protocol at a URL. No answer leads anywhere else: redirects are not followed, and
// no proxy of the environment is used.
func HTTP(base string, config *tls.Config) Adapter {
	return httpSet{&http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10},
		Timeout:       callTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, strings.TrimSuffix(base, "/"), config.VerifyConnection}
}

// Info implements Adapter.
func (h httpSet) Info(ctx context.Context) (i Info, err error) {
	if err := h.call(ctx, http.MethodGet, "/info", nil, &i, maxAnswer); err != nil {
		return Info{}, err
	}
	if n := len(i.Shards); n == 0 || n > maxShards || len(slices.Compact(i.ordered())) < n {
		return Info{}, h.malformed("shards")
	}
	for _, name := range i.Shards {
		if name == "" || len(name) > maxName {
			return Info{}, h.malformed("shard")
		}
	}
	return i, nil
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
	if err := h.call(ctx, http.MethodGet, "/shards/"+url.PathEscape(shard)+"/items?"+q.Encode(), nil, &out, maxPage); err != nil {
		return nil, "", err
	}
	if len(out.Items) > n || len(out.Next) > maxCursor || out.Next == cursor && out.Next != "" {
		return nil, "", h.malformed("page")
	}
	items, seen := make([]Item, len(out.Items)), make(map[string]bool, len(out.Items))
	for i, it := range out.Items {
		if it.ID == "" || len(it.ID) > maxID || seen[it.ID] {
			return nil, "", h.malformed("id")
		}
		seen[it.ID] = true
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
	if err := h.call(ctx, http.MethodPost, "/swap", map[string][]Swap{"swaps": swaps}, &out, maxAnswer); err != nil {
		return nil, err
	}
	if len(out.Results) != len(swaps) {
		return nil, h.malformed("results")
	}
	for _, o := range out.Results {
		if o != Swapped && o != Changed && o != Gone {
			return nil, h.malformed("result")
		}
	}
	return out.Results, nil
}

// Census implements Adapter.
func (h httpSet) Census(ctx context.Context, shard string) (map[string]uint64, uint64, error) {
	var out struct {
		Counts     map[string]uint64 `json:"counts"`
		Unreadable uint64            `json:"unreadable"`
	}
	err := h.call(ctx, http.MethodGet, "/shards/"+url.PathEscape(shard)+"/census", nil, &out, maxAnswer)
	if err == nil && out.Counts == nil {
		err = h.malformed("counts")
	}
	return out.Counts, out.Unreadable, err
}

// SetFloor implements Adapter.
func (h httpSet) SetFloor(ctx context.Context, f Floor) error {
	return h.call(ctx, http.MethodPut, "/floor", f, nil, maxAnswer)
}

func (h httpSet) malformed(what string) error {
	return fault.New(fault.Unavailable, "data set at "+h.base).WithHint("its answer does not follow the data-set protocol: %s", what)
}

// call makes one request and decodes at most limit bytes of the answer.
func (h httpSet) call(ctx context.Context, method, path string, in, out any, limit int64) error {
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
	if h.verify != nil && resp.TLS != nil {
		if err := h.verify(*resp.TLS); err != nil {
			defer h.client.CloseIdleConnections()
			return fault.Wrap(fault.Unavailable, "data set at "+h.base, err)
		}
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return fault.Wrap(fault.Unavailable, "data set at "+h.base, err)
	case resp.StatusCode != http.StatusOK:
		return fault.New(fault.Unavailable, "data set at "+h.base).WithHint("it answered %d", resp.StatusCode)
	case int64(len(b)) > limit:
		return h.malformed("size")
	case out == nil:
		return nil
	case elements(b) > maxElements:
		return h.malformed("elements")
	}
	if err := json.Unmarshal(b, out); err != nil {
		return h.malformed("JSON")
	}
	return nil
}

// elements counts what begins or separates members and elements of a JSON text, without decoding it.
func elements(b []byte) (n int) {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++ // what it escapes ends no string
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '{' || c == '[' || c == ','):
			n++
		}
	}
	return n
}
