package campaign_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/internal/campaign"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// message makes a ciphertext of a version that is known by its handle alone.
func message(t testing.TB, handle uint32, text string) []byte {
	k, err := envelope.NewMessageKey(secret.Random(32), handle, "default", "key")
	if err != nil {
		t.Fatal(err)
	}
	m, err := k.Encrypt(nil, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestAdapters is the contract of campaign.Adapter.
func TestAdapters(t *testing.T) {
	places(t, func(t *testing.T, make func(*testing.T) place) {
		t.Run("scan", func(t *testing.T) {
			p := make(t)
			for i := range 25 {
				if err := p.put(t, fmt.Sprintf("%c%d", 'a'+i, i), message(t, 1, "x")); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range []int{1, 7, 500} {
				if got := scanAll(t, p, n); !maps.EqualFunc(got, p.all(t), bytes.Equal) {
					t.Errorf("pages of %d: %d items", n, len(got))
				}
			}
		})
		t.Run("swap", func(t *testing.T) {
			p := make(t)
			old, fresh := message(t, 1, "old"), message(t, 2, "new")
			if err := p.put(t, "a", old); err != nil {
				t.Fatal(err)
			}
			for _, step := range []struct {
				id       string
				old      []byte
				want     campaign.Outcome
				contents []byte
			}{{"a", fresh, campaign.Changed, old}, {"b", old, campaign.Gone, old}, {"a", old, campaign.Swapped, fresh}, {"a", old, campaign.Changed, fresh}} {
				got, err := p.Swap(t.Context(), []campaign.Swap{{ID: step.id, Old: step.old, New: fresh}})
				if err != nil || !slices.Equal(got, []campaign.Outcome{step.want}) || !bytes.Equal(p.all(t)["a"], step.contents) {
					t.Fatalf("%s: %v, %v", step.want, got, err)
				}
			}
		})
		t.Run("census and floor", func(t *testing.T) {
			p := make(t)
			for id, h := range map[string]uint32{"a": 1, "n": 1, "o": 2} {
				if err := p.put(t, id, message(t, h, "x")); err != nil {
					t.Fatal(err)
				}
			}
			if got := censusAll(t, p); !maps.Equal(got, map[string]uint64{"00000001": 2, "00000002": 1}) {
				t.Fatal(got)
			}
			floor := campaign.Floor{Key: "k", Incarnation: 1, Sequence: 2, Reject: []string{"00000001"}}
			for range 2 { // the same one again is no error
				if err := p.SetFloor(t.Context(), floor); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.put(t, "z", message(t, 1, "late")); !errors.Is(err, errBelow) {
				t.Fatalf("a frozen write: %v", err)
			}
			if _, err := p.Swap(t.Context(), []campaign.Swap{{ID: "o", Old: p.all(t)["o"], New: message(t, 1, "x")}}); err == nil {
				t.Fatal("a swap to a rejected version was taken")
			}
			floor.Sequence, floor.Reject = 1, nil
			if err := p.SetFloor(t.Context(), floor); fault.CodeOf(err) != fault.Unavailable {
				t.Fatalf("an older floor: %v", err)
			}
			floor.Incarnation = 2 // a newer incarnation begins again
			if err := p.SetFloor(t.Context(), floor); err != nil {
				t.Fatal(err)
			}
			if err := p.put(t, "z", message(t, 1, "now")); err != nil {
				t.Fatal(err)
			}
		})
	})
}

func scanAll(t *testing.T, p place, n int) map[string][]byte {
	t.Helper()
	info, err := p.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, shard := range info.Shards {
		for cursor := ""; ; {
			items, next, err := p.Scan(t.Context(), shard, cursor, n)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				found[i.ID] = i.Value
			}
			if cursor = next; next == "" {
				break
			}
		}
	}
	return found
}

func censusAll(t *testing.T, p place) map[string]uint64 {
	t.Helper()
	info, err := p.Info(t.Context())
	if err != nil || !info.Floor {
		t.Fatal(info, err)
	}
	all := map[string]uint64{}
	for _, shard := range info.Shards {
		counts, unreadable, err := p.Census(t.Context(), shard)
		if err != nil || unreadable != 0 {
			t.Fatal(unreadable, err)
		}
		for h, n := range counts {
			all[h] += n
		}
	}
	return all
}

// TestLargePage checks that the board's pages stay small enough for the server whatever its records are.
func TestLargePage(t *testing.T) {
	b := newBoard(t)
	for i := range 150 {
		if err := b.put(t, fmt.Sprintf("r%03d", i), message(t, 1, strings.Repeat("x", 60<<10))); err != nil {
			t.Fatal(err)
		}
	}
	if got := scanAll(t, b, 500); len(got) != 150 {
		t.Errorf("%d items", len(got))
	}
}

// answers is a data set that answers every request with the same status and body.
func answers(t *testing.T, status int, header http.Header, body []byte) campaign.Adapter {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		maps.Copy(w.Header(), header)
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return campaign.HTTP(s.URL, trusting(s))
}

// TestHostileAnswers sends a server what no data set should answer. Each is refused as unavailable, within bounds.
func TestHostileAnswers(t *testing.T) {
	js := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	item := map[string]any{"id": "a", "value": []byte("x")}
	huge := append([]byte(`{"shards":["`), bytes.Repeat([]byte("x"), 2<<20)...)
	many := make([]string, 5000)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	info := func(a campaign.Adapter) error { _, err := a.Info(t.Context()); return err }
	scan := func(a campaign.Adapter) error { _, _, err := a.Scan(t.Context(), "s", "here", 2); return err }
	swap := func(a campaign.Adapter) error {
		_, err := a.Swap(t.Context(), []campaign.Swap{{ID: "a"}})
		return err
	}
	census := func(a campaign.Adapter) error { _, _, err := a.Census(t.Context(), "s"); return err }
	floor := func(a campaign.Adapter) error { return a.SetFloor(t.Context(), campaign.Floor{}) }
	for name, c := range map[string]struct {
		status int
		body   []byte
		call   func(campaign.Adapter) error
	}{
		"not JSON":            {200, []byte("<html>"), info},
		"nothing":             {200, nil, info},
		"huge":                {200, huge, info},
		"error":               {500, nil, info},
		"no content":          {204, nil, info},
		"no shards":           {200, js(map[string]any{"shards": []string{}}), info},
		"an empty shard":      {200, js(map[string]any{"shards": []string{""}}), info},
		"a long shard":        {200, js(map[string]any{"shards": []string{strings.Repeat("s", 300)}}), info},
		"the same shard":      {200, js(map[string]any{"shards": []string{"a", "b", "a"}}), info},
		"many shards":         {200, js(map[string]any{"shards": many}), info},
		"more than asked for": {200, js(map[string]any{"items": []any{item, item, item}}), scan},
		"the same id twice":   {200, js(map[string]any{"items": []any{item, item}}), scan},
		"no id":               {200, js(map[string]any{"items": []any{map[string]any{"value": []byte("x")}}}), scan},
		"a long id":           {200, js(map[string]any{"items": []any{map[string]any{"id": strings.Repeat("i", 2000)}}}), scan},
		"a cursor in place":   {200, js(map[string]any{"items": []any{item}, "next": "here"}), scan},
		"a long cursor":       {200, js(map[string]any{"items": []any{item}, "next": strings.Repeat("c", 5000)}), scan},
		"huge page":           {200, append([]byte(`{"next":"`), bytes.Repeat([]byte("x"), 17<<20)...), scan},
		"too few results":     {200, js(map[string]any{"results": []string{}}), swap},
		"too many results":    {200, js(map[string]any{"results": []string{"swapped", "swapped"}}), swap},
		"unknown result":      {200, js(map[string]any{"results": []string{"done"}}), swap},
		"no counts":           {200, js(map[string]any{"unreadable": 0}), census},
		"negative counts":     {200, []byte(`{"counts":{"00000001":-1}}`), census},
		"fractions":           {200, []byte(`{"counts":{"00000001":0.5}}`), census},
		"a refused floor":     {409, js(map[string]any{"code": "old_floor"}), floor},
	} {
		t.Run(name, func(t *testing.T) { want(t, c.call(answers(t, c.status, nil, c.body)), fault.Unavailable) })
	}
}

// TestAnswersDoNotGrowInMemory: the smallest elements that a page has room for take little more memory than its length.
func TestAnswersDoNotGrowInMemory(t *testing.T) {
	for what, body := range map[string]string{
		"items": `{"items":[` + strings.Repeat("{},", 5<<20) + `{}]}`, "parts": `{"items":[{"id":"a","parts":[` + strings.Repeat("{},", 5<<20) + `{}]}]}`,
	} {
		a := answers(t, http.StatusOK, nil, []byte(body))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := a.Scan(t.Context(), "s", "here", 500)
		runtime.ReadMemStats(&after)
		if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; fault.CodeOf(err) != fault.Unavailable || grown > 256 { // reading it takes some 100
			t.Errorf("%s: %d MiB for a page of %d MiB: %v", what, grown, len(body)>>20, err)
		}
	}
}

// TestRedirect checks that no answer sends the server anywhere else, in the clear or not.
func TestRedirect(t *testing.T) {
	asked := make(chan string, 8)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	t.Cleanup(elsewhere.Close)
	for _, status := range []int{301, 302, 303, 307, 308} {
		a := answers(t, status, http.Header{"Location": {elsewhere.URL + "/secret"}}, nil)
		_, err := a.Info(t.Context())
		want(t, err, fault.Unavailable)
		want(t, a.SetFloor(t.Context(), campaign.Floor{}), fault.Unavailable)
	}
	if len(asked) > 0 {
		t.Errorf("the server was led to %s", <-asked)
	}
}

// TestUnreachable checks that a data set that is gone is unavailable.
func TestUnreachable(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	a := campaign.HTTP(s.URL, trusting(s))
	s.Close()
	_, err := a.Info(t.Context())
	want(t, err, fault.Unavailable)
}

// FuzzAnswers feeds every call with an answer. It must not panic, and what it accepts follows the protocol.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"shards":["all"],"floor":true}`, `{"items":[{"id":"a","value":"eA==","parts":[{"label":"l","value":"eA=="}]}],"next":"a"}`,
		`{"results":["swapped"]}`, `{"counts":{"00000001":3},"unreadable":1}`, `{}`, `[]`, `null`, `{"shards":null}`, `{"items":[{}]}`,
	} {
		f.Add([]byte(seed))
	}
	var body atomic.Pointer[[]byte]
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*body.Load()) }))
	f.Cleanup(s.Close)
	a := campaign.HTTP(s.URL, trusting(s))
	f.Fuzz(func(t *testing.T, b []byte) {
		body.Store(&b)
		if i, err := a.Info(t.Context()); err == nil && (len(i.Shards) == 0 || slices.Contains(i.Shards, "")) {
			t.Errorf("shards %q", i.Shards)
		}
		if items, next, err := a.Scan(t.Context(), "s", "c", 3); err == nil && (len(items) > 3 || next == "c") {
			t.Errorf("%d items, next %q", len(items), next)
		}
		if out, err := a.Swap(t.Context(), []campaign.Swap{{ID: "a"}}); err == nil && len(out) != 1 {
			t.Errorf("%d outcomes", len(out))
		}
		if counts, _, err := a.Census(t.Context(), "s"); err == nil && counts == nil {
			t.Error("no counts")
		}
	})
}
