package board_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/envelope"
	"github.com/rotorkms/rotor/examples/fleet/board"
)

// message has the form of a ciphertext of the version with a handle.
func message(handle uint32, text string) []byte {
	b := append([]byte{1, byte(handle >> 24), byte(handle >> 16), byte(handle >> 8), byte(handle)}, make([]byte, envelope.MessageOverhead-5)...)
	return append(b, text...)
}

func open(t testing.TB) *board.Board {
	t.Helper()
	b, err := board.Open(filepath.Join(t.TempDir(), "board.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// TestPut holds writes to their conditions.
func TestPut(t *testing.T) {
	b := open(t)
	for _, c := range []struct {
		at   uint64
		want error
	}{{1, board.ErrCondition}, {0, nil}, {0, board.ErrCondition}, {2, board.ErrCondition}, {1, nil}, {1, board.ErrCondition}, {2, nil}} {
		if _, err := b.Put("a", c.at, message(1, "x")); !errors.Is(err, c.want) {
			t.Fatalf("at %d: %v, want %v", c.at, err, c.want)
		}
	}
	if n, m, err := b.Get("a"); n != 3 || err != nil || !bytes.Equal(m, message(1, "x")) {
		t.Fatal(n, m, err)
	}
	for name, err := range map[string]error{
		"no id": second(b.Put("", 0, message(1, "x"))), "a long id": second(b.Put(strings.Repeat("i", board.MaxID+1), 0, message(1, "x"))),
		"a large record": second(b.Put("b", 0, message(1, strings.Repeat("x", board.MaxRecord)))), "no message": second(b.Put("b", 0, []byte("text"))),
		"nothing": second(b.Put("b", 0, nil)),
	} {
		if !errors.Is(err, board.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Delete("a", 1); !errors.Is(err, board.ErrCondition) {
		t.Error(err)
	}
	if err := b.Delete("b", 1); !errors.Is(err, board.ErrNotFound) {
		t.Error(err)
	}
	if err := b.Delete("a", 3); err != nil {
		t.Error(err)
	}
}

func second(_ uint64, err error) error { return err }

// TestOneWriterWins lets many writers replace the same revision: one does.
func TestOneWriterWins(t *testing.T) {
	b := open(t)
	var wait sync.WaitGroup
	var mu sync.Mutex // guards won
	won := 0
	for i := range 32 {
		wait.Go(func() {
			if _, err := b.Put("a", 0, message(1, fmt.Sprint(i))); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			} else if !errors.Is(err, board.ErrCondition) {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if n, _, err := b.Get("a"); won != 1 || n != 1 || err != nil {
		t.Errorf("%d writers won, revision %d, %v", won, n, err)
	}
}

// TestFloorOrder takes floors only forwards, whatever order they come in, and holds each key's to itself.
func TestFloorOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := open(t)
		defer b.Close()
		newest := map[string]board.Floor{}
		for range rapid.IntRange(1, 6).Draw(rt, "floors") {
			f := board.Floor{
				Key: rapid.SampledFrom([]string{"k", "l"}).Draw(rt, "key"), Incarnation: rapid.Uint32Range(1, 2).Draw(rt, "incarnation"),
				Sequence: rapid.Uint64Range(1, 3).Draw(rt, "sequence"), Reject: []string{},
			}
			if rapid.Bool().Draw(rt, "reject") {
				f.Reject = []string{map[string]string{"k": "00000001", "l": "00000002"}[f.Key]}
			}
			old, known := newest[f.Key]
			newer := !known || f.Incarnation > old.Incarnation || f.Incarnation == old.Incarnation && f.Sequence > old.Sequence
			same := known && f.Incarnation == old.Incarnation && f.Sequence == old.Sequence && len(f.Reject) == len(old.Reject)
			switch err := b.SetFloor(f); {
			case (newer || same) != (err == nil), err != nil && !errors.Is(err, board.ErrOldFloor):
				rt.Fatalf("%+v after %+v: %v", f, old, err)
			case newer:
				newest[f.Key] = f
			}
		}
		for key, handle := range map[string]uint32{"k": 1, "l": 2} {
			_, err := b.Put(key, 0, message(handle, "x"))
			if rejected := len(newest[key].Reject) > 0; rejected != errors.Is(err, board.ErrBelowFloor) || !rejected && err != nil {
				rt.Fatalf("%s: %v under %+v", key, err, newest[key])
			}
		}
	})
}

// TestSwap replaces exactly what the caller saw.
func TestSwap(t *testing.T) {
	b := open(t)
	if _, err := b.Put("a", 0, message(1, "old")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id       string
		old, new []byte
		want     string
	}{
		{"a", message(1, "other"), message(2, "new"), "changed"}, {"b", message(1, "old"), message(2, "new"), "gone"},
		{"a", message(1, "old"), message(2, "new"), "swapped"}, {"a", message(1, "old"), message(2, "new"), "changed"},
	} {
		if got, err := b.Swap(c.id, c.old, c.new); got != c.want || err != nil {
			t.Errorf("%s: %s, %v", c.want, got, err)
		}
	}
	if n, _, err := b.Get("a"); n != 2 || err != nil { // an application that read before the swap has to read again
		t.Error(n, err)
	}
	if _, err := b.Swap("a", message(2, "new"), []byte("junk")); !errors.Is(err, board.ErrInvalid) {
		t.Error(err)
	}
}

// request sends one request as a peer and returns status and body.
func request(t *testing.T, b *board.Board, peer, method, path string, header map[string]string, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	b.Handler(func(*http.Request) string { return peer }, "server").ServeHTTP(w, r)
	out, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(out)
}

// TestHTTP holds the wire to who may ask, conditions and bounds.
func TestHTTP(t *testing.T) {
	b := open(t)
	m := string(message(1, "x"))
	fresh := map[string]string{"If-None-Match": "*"}
	items, all := "/rotor-dataset/v1/shards/all/items?n=", "/rotor-dataset/v1"
	js, err := json.Marshal(map[string]any{"swaps": make([]struct{}, 1001)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		peer, method, path string
		header             map[string]string
		body               string
		status             int
	}{
		{"", "GET", "/records", nil, "", 401},
		{"", "GET", "/records/a", nil, "", 401},
		{"", "PUT", "/records/a", fresh, m, 401},
		{"", "DELETE", "/records/a", map[string]string{"If-Match": `"1"`}, "", 401},
		{"", "GET", all + "/info", nil, "", 403},
		{"node", "GET", all + "/info", nil, "", 403},
		{"node", "GET", items + "5", nil, "", 403},
		{"node", "GET", all + "/shards/all/census", nil, "", 403},
		{"node", "POST", all + "/swap", nil, "{}", 403},
		{"node", "PUT", all + "/floor", nil, "{}", 403},
		{"node", "PUT", "/records/a", nil, m, 428},
		{"node", "PUT", "/records/a", map[string]string{"If-Match": "*"}, m, 428},
		{"node", "PUT", "/records/a", map[string]string{"If-Match": `"0"`}, m, 428},
		{"node", "PUT", "/records/a", map[string]string{"If-Match": `"1"`}, m, 412},
		{"node", "PUT", "/records/a", fresh, "no message", 400},
		{"node", "PUT", "/records/a", fresh, strings.Repeat("x", board.MaxRecord+1), 413},
		{"node", "PUT", "/records/" + strings.Repeat("i", board.MaxID+1), fresh, m, 400},
		{"node", "PUT", "/records/a", fresh, m, 204},
		{"node", "PUT", "/records/a", fresh, m, 412},
		{"node", "PUT", "/records/a", map[string]string{"If-Match": `"1"`}, m, 204},
		{"node", "GET", "/records/a", nil, "", 200},
		{"node", "GET", "/records/b", nil, "", 404},
		{"node", "GET", "/records?limit=-5", nil, "", 200},
		{"node", "DELETE", "/records/a", nil, "", 428},
		{"node", "DELETE", "/records/a", map[string]string{"If-Match": `"1"`}, "", 412},
		{"server", "GET", all + "/info", nil, "", 200},
		{"server", "GET", items + "0", nil, "", 400},
		{"server", "GET", items + "100000", nil, "", 400},
		{"server", "GET", "/rotor-dataset/v1/shards/other/items?n=1", nil, "", 400},
		{"server", "GET", "/rotor-dataset/v1/shards/other/census", nil, "", 400},
		{"server", "GET", all + "/shards/all/census", nil, "", 200},
		{"server", "POST", all + "/swap", nil, "nonsense", 400},
		{"server", "POST", all + "/swap", nil, string(js), 400},
		{"server", "PUT", all + "/floor", nil, "nonsense", 400},
		{"server", "PUT", all + "/floor", nil, `{"key":""}`, 400},
		{"server", "PUT", all + "/floor", nil, `{"key":"k","incarnation":1,"sequence":2,"reject":["00000001"]}`, 200},
		{"server", "PUT", all + "/floor", nil, `{"key":"k","incarnation":1,"sequence":1,"reject":[]}`, 409},
		{"node", "PUT", "/records/c", fresh, m, 409},
		{"node", "DELETE", "/records/a", map[string]string{"If-Match": `"2"`}, "", 204},
	} {
		if got, body := request(t, b, c.peer, c.method, c.path, c.header, c.body); got != c.status {
			t.Errorf("%s %s by %q: %d %s, want %d", c.method, c.path, c.peer, got, body, c.status)
		}
	}
}

// TestKill writes from a process of its own, kills it (-9) in the middle, and finds every write that was acknowledged.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "board.db")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestMain$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("BOARD_WRITER=%d", round), "BOARD_PATH="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := map[string]bool{}
		var id string
		for len(acknowledged) < 40 {
			if _, err := fmt.Fscanln(out, &id); err != nil {
				t.Fatal(err)
			}
			acknowledged[id] = true
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(out)
		_ = cmd.Wait() // killed
		for _, l := range strings.SplitAfter(string(rest), "\n") {
			if strings.HasSuffix(l, "\n") {
				acknowledged[strings.TrimSpace(l)] = true
			}
		}
		b, err := board.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for id := range acknowledged {
			if _, m, err := b.Get(id); err != nil || !bytes.Equal(m, message(1, id)) {
				t.Errorf("round %d: %s was acknowledged and is lost: %v", round, id, err)
			}
		}
		if _, err := b.Put(fmt.Sprint("floor", round), 0, message(9, "x")); !errors.Is(err, board.ErrBelowFloor) {
			t.Errorf("the floor is lost: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMain(m *testing.M) {
	if round := os.Getenv("BOARD_WRITER"); round != "" {
		writer(round, os.Getenv("BOARD_PATH"))
	}
	os.Exit(m.Run())
}

// writer writes from several goroutines until it is killed, and prints what was acknowledged.
func writer(round, path string) {
	b, err := board.Open(path)
	if err == nil && round == "0" {
		err = b.SetFloor(board.Floor{Key: "k", Incarnation: 1, Sequence: 1, Reject: []string{"00000009"}})
	}
	if err != nil {
		panic(err)
	}
	var wait sync.WaitGroup
	for n := range 4 {
		wait.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("r%s-%d-%d", round, n, i)
				if _, err := b.Put(id, 0, message(1, id)); err != nil {
					panic(err)
				}
				fmt.Println(id)
			}
		})
	}
	wait.Wait()
}

// TestLocked refuses a second process on one file.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "board.db")
	b, err := board.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if other, err := board.Open(path); err == nil {
		_ = other.Close()
		t.Error("two boards share a file")
	}
}
