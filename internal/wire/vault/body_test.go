package vault_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rotorkms/rotor/internal/wire/vault"
)

// TestBodiesAreBounded: what is deeper or has more elements than the limits is refused before it is decoded.
func TestBodiesAreBounded(t *testing.T) {
	array := func(n int) string {
		return `{"batch_input":[` + strings.TrimSuffix(strings.Repeat("{},", n), ",") + `]}`
	}
	for what, c := range map[string]struct {
		text string
		ok   bool
	}{
		"nothing":                 {"", true},
		"10,000 items":            {array(10_000), true},
		"10,001 items":            {array(10_001), false},
		"100,000 items":           {array(100_000), false},
		"commas in a string":      {`{"a":"` + strings.Repeat(",", 20_000) + `"}`, true},
		"escaped quotes":          {`{"a":"` + strings.Repeat(`\",`, 20_000) + `"}`, true},
		"after a string":          {`{"a\\":"\\",` + array(10_001)[1:], false},
		"32 deep":                 {strings.Repeat(`{"a":`, 31) + "[]" + strings.Repeat("}", 31), true},
		"33 deep":                 {strings.Repeat(`{"a":`, 32) + "[]" + strings.Repeat("}", 32), false},
		"a million brackets":      {strings.Repeat("[", 1_000_000), false},
		"many arrays":             {`{"a":[` + strings.TrimSuffix(strings.Repeat(array(100)+",", 6_000), ",") + `]}`, false},
		"a string without an end": {`{"a":"`, true}, // which the decoder refuses
	} {
		if err := vault.Bounded([]byte(c.text)); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzBody: a body that is taken is a JSON object within the limits, and one within the limits that is an object is taken.
func FuzzBody(f *testing.F) {
	for _, s := range []string{"", " ", "{}", `{"a":"\""}`, `{"a":[1,2,{"b":null}]}`, `[1]`, `{"a":`, `{"a":"\\"}`, "{}{}", "\xff", `{"batch_input":[{"plaintext":"eA=="},{}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := vault.Parse(b)
		var m map[string]json.RawMessage
		is := json.Unmarshal(b, &m) == nil || strings.TrimSpace(string(b)) == ""
		if err == nil && (!is || n != len(m)) {
			t.Errorf("%q: taken with %d members", b, n)
		}
		if err != nil && is && vault.Bounded(b) == nil {
			t.Errorf("%q: %v", b, err)
		}
		told := vault.Names(b)
		for name := range m {
			if plain := utf8.Valid(b) && !strings.Contains(string(b), `\`); err == nil && plain && !slices.Contains(told, name) {
				t.Errorf("%q: of %q only %q are told", b, name, told)
			}
		}
	})
}

// TestBodiesAreLentRoom: the memory of a batch's body is empty when the next request gets it, and what was decoded does not share it.
func TestBodiesAreLentRoom(t *testing.T) {
	for size, lent := range map[int]bool{100: false, 5000: true, 60_000: true, 70_000: false} {
		want := strings.Repeat("c2VjcmV0", size/8)
		var got struct{ Plaintext string }
		h := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/transit/encrypt/app", strings.NewReader(`{"plaintext":"`+want+`"}`))
		room, err := vault.Lent(h, &got)
		if err != nil || got.Plaintext != want || (room != nil) != lent {
			t.Errorf("%d bytes: %v; lent: %t; %.20q", size, err, room != nil, got.Plaintext)
		}
		if i := slices.IndexFunc(room, func(b byte) bool { return b != 0 }); i >= 0 {
			t.Errorf("%d bytes: what was lent has %.20q", size, room[i:])
		}
	}
}

func TestRoutesAreFound(t *testing.T) {
	all := []string{"keys", "keys/:name", "keys/:name/rotate", "sign/:name(/:algorithm)", "mounts/*path", "mounts/*path/tune", "*path", "random/:source/:bytes", "random(/:bytes)", "keys/special"}
	for path, want := range map[string]string{
		"keys": "keys map[]", "keys/a": "keys/:name map[name:a]", "keys/special": "keys/special map[]", "keys/a/rotate": "keys/:name/rotate map[name:a]", "keys/a/x": "*path map[path:keys/a/x]",
		"sign/a": "sign/:name(/:algorithm) map[name:a]", "sign/a/sha2-256": "sign/:name(/:algorithm) map[algorithm:sha2-256 name:a]",
		"mounts/a/b": "mounts/*path map[path:a/b]", "mounts/a/b/tune": "mounts/*path/tune map[path:a/b]", "mounts/tune": "mounts/*path map[path:tune]",
		"random": "random(/:bytes) map[]", "random/7": "random(/:bytes) map[bytes:7]", "random/all/7": "random/:source/:bytes map[bytes:7 source:all]",
		"": " map[]", "keys//rotate": " map[]", "x//y": " map[]", "/": " map[]",
	} {
		if p, vars := vault.Find(all, path); p+" "+fmt.Sprint(vars) != want {
			t.Errorf("%s: %s %v", path, p, vars)
		}
	}
}
