package board

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// shard is the one shard of the board.
const shard = "all"

// maxBody bounds the body of one request of the data-set protocol.
const maxBody = 64 << 20

// Handler serves records to every peer, and the data-set protocol to the rotor server alone. peer names who sent a request, "" for
// nobody.
func (b *Board) Handler(peer func(*http.Request) string, server string) http.Handler {
	mux := http.NewServeMux()
	record := func(pattern string, f http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if peer(r) == "" {
				fail(w, http.StatusUnauthorized, "unauthenticated")
				return
			}
			f(w, r)
		})
	}
	record("GET /records", b.list)
	record("GET /records/{id}", b.get)
	record("PUT /records/{id}", b.put)
	record("DELETE /records/{id}", b.delete)
	set := func(pattern string, f http.HandlerFunc) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /rotor-dataset/v1"+path, func(w http.ResponseWriter, r *http.Request) {
			if peer(r) != server {
				fail(w, http.StatusForbidden, "denied")
				return
			}
			f(w, r)
		})
	}
	set("GET /info", b.info)
	set("GET /shards/{shard}/items", b.items)
	set("GET /shards/{shard}/census", b.census)
	set("POST /swap", b.swap)
	set("PUT /floor", b.putFloor)
	return mux
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code}) // the peer is gone when this fails
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		failure(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the peer is gone when this fails
}

func failure(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, ErrNotFound):
		fail(w, http.StatusNotFound, "not_found")
	case errors.Is(err, ErrCondition):
		fail(w, http.StatusPreconditionFailed, "conflict")
	case errors.Is(err, ErrBelowFloor):
		fail(w, http.StatusConflict, "below_floor")
	case errors.Is(err, ErrOldFloor):
		fail(w, http.StatusConflict, "old_floor")
	case errors.Is(err, ErrInvalid):
		fail(w, http.StatusBadRequest, "invalid")
	default:
		fail(w, http.StatusInternalServerError, "internal")
	}
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// condition is the revision that a write asks for: If-None-Match: * or If-Match. A write without one is refused.
func condition(r *http.Request) (revision uint64, ok bool) {
	if r.Header.Get("If-None-Match") == "*" {
		return 0, true
	}
	n, err := strconv.ParseUint(strings.Trim(r.Header.Get("If-Match"), `"`), 10, 64)
	return n, err == nil && n > 0
}

func (b *Board) list(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || n < 1 || n > maxPage {
		n = maxPage
	}
	items, _, err := b.List(r.URL.Query().Get("after"), n)
	ids := []string{}
	for _, i := range items {
		ids = append(ids, i.ID)
	}
	answer(w, map[string][]string{"ids": ids}, err)
}

func (b *Board) get(w http.ResponseWriter, r *http.Request) {
	revision, message, err := b.Get(r.PathValue("id"))
	if err != nil {
		failure(w, err)
		return
	}
	w.Header().Set("ETag", etag(revision))
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(message) // the peer is gone when this fails
}

func (b *Board) put(w http.ResponseWriter, r *http.Request) {
	at, ok := condition(r)
	if !ok {
		fail(w, http.StatusPreconditionRequired, "conflict")
		return
	}
	message, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxRecord+1))
	if err != nil || len(message) > MaxRecord {
		fail(w, http.StatusRequestEntityTooLarge, "too_large")
		return
	}
	revision, err := b.Put(r.PathValue("id"), at, message)
	if err != nil {
		failure(w, err)
		return
	}
	w.Header().Set("ETag", etag(revision))
	w.WriteHeader(http.StatusNoContent)
}

func (b *Board) delete(w http.ResponseWriter, r *http.Request) {
	at, ok := condition(r)
	if !ok {
		fail(w, http.StatusPreconditionRequired, "conflict")
		return
	}
	if err := b.Delete(r.PathValue("id"), at); err != nil {
		failure(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (b *Board) info(w http.ResponseWriter, _ *http.Request) {
	answer(w, map[string]any{"name": "board", "shards": []string{shard}, "floor": true}, nil)
}

type part struct {
	Label string `json:"label"`
	Value []byte `json:"value"`
}

type item struct {
	ID    string `json:"id"`
	Value []byte `json:"value"`
	Parts []part `json:"parts"`
}

func (b *Board) items(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("n"))
	if r.PathValue("shard") != shard || err != nil || n < 1 || n > maxPage {
		fail(w, http.StatusBadRequest, "invalid")
		return
	}
	found, next, err := b.List(r.URL.Query().Get("cursor"), n)
	out := struct {
		Items []item `json:"items"`
		Next  string `json:"next"`
	}{Items: []item{}, Next: next}
	for _, i := range found {
		it := item{ID: i.ID, Value: i.Message}
		for _, p := range Parts(i.ID) {
			it.Parts = append(it.Parts, part{p.Label, p.Value})
		}
		out.Items = append(out.Items, it)
	}
	answer(w, out, err)
}

func (b *Board) census(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("shard") != shard {
		fail(w, http.StatusBadRequest, "invalid")
		return
	}
	counts, unreadable, err := b.Census()
	answer(w, map[string]any{"counts": counts, "unreadable": unreadable}, err)
}

func (b *Board) swap(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Swaps []struct {
			ID  string `json:"id"`
			Old []byte `json:"old"`
			New []byte `json:"new"`
		} `json:"swaps"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil || len(in.Swaps) > maxPage {
		fail(w, http.StatusBadRequest, "invalid")
		return
	}
	results, err := b.swapAll(len(in.Swaps), func(i int) (string, []byte, []byte) { return in.Swaps[i].ID, in.Swaps[i].Old, in.Swaps[i].New })
	answer(w, map[string][]string{"results": results}, err)
}

// swapAll runs the swaps of a request at the same time, so that they share the syncs of the file.
func (b *Board) swapAll(n int, swap func(int) (id string, old, fresh []byte)) ([]string, error) {
	results, errs, done := make([]string, n), make([]error, n), make(chan struct{})
	for i := range n {
		go func() { // waited for below
			results[i], errs[i] = b.Swap(swap(i))
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	return results, errors.Join(errs...)
}

func (b *Board) putFloor(w http.ResponseWriter, r *http.Request) {
	var f Floor
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&f); err != nil {
		fail(w, http.StatusBadRequest, "invalid")
		return
	}
	answer(w, f, b.SetFloor(f))
}
