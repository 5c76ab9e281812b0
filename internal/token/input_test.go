package token_test

import (
	"encoding/base64"
	"testing"

	"github.com/rotorkms/rotor/internal/token"
)

func TestIsInput(t *testing.T) {
	for msg, want := range map[string]bool{
		"eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0": true, "eyJhbGciOiJFZERTQSJ9==.e30": true, "ey\nJhbGciOiJFZERTQSJ9.e30": true,
		"eyJh!bGciOiJFZERTQSJ9.e30": true, "ICB7ImFsZyI6IkVkRFNBIn0.e30": true, "eyJhbGciOiJFZERTQSJ9.": true, "eyJhbGciOiJFZERTQSJ9.e30.x": true,
		"": false, "hello": false, "hello. world": false, "a digest 3q2+7w==": false, "eyJhbGciOiJFZERTQSJ9": false, `{"sub":"a.b"}`: false, ".": false,
	} {
		if got := token.IsInput([]byte(msg)); got != want {
			t.Errorf("%q: %v", msg, got)
		}
	}
}

// TestIsInputOfOtherParsers: headers that JSON has no name for, and that parsers of JSON in use take all the same.
func TestIsInputOfOtherParsers(t *testing.T) {
	const header = `{"alg":"ES256","typ":"at+jwt","kid":"default-00000001"}`
	wide := func(size, at int, mark string) string { // UTF-16 and UTF-32
		out := []byte(mark)
		for _, c := range []byte(header) {
			unit := make([]byte, size)
			unit[at] = c
			out = append(out, unit...)
		}
		return string(out)
	}
	for _, h := range []string{
		"\xEF\xBB\xBF" + header,                                                                                                                        // Python's json, TextDecoder of JavaScript, Gson
		wide(2, 0, ""), wide(2, 1, ""), wide(2, 0, "\xFF\xFE"), wide(2, 1, "\xFE\xFF"), wide(4, 0, ""), wide(4, 3, ""), wide(4, 3, "\x00\x00\xFE\xFF"), // Python's json
		"\x0B\x0C\x00 " + header, "\u00A0\u2028" + header, "\xFF" + header, // org.json, decoders that drop what is no UTF-8
		"/**/" + header, "/* a */ // b\n# c\r" + header, ")]}'\n" + header, // Ruby's json, Json.NET, Gson
		"/***/ {}",
	} {
		if msg := base64.RawURLEncoding.EncodeToString([]byte(h)) + ".e30"; !token.IsInput([]byte(msg)) {
			t.Errorf("%q can be signed", h)
		}
	}
	for _, h := range []string{"", "/* {", "// {", "# {", "[{}]", "//", "a{"} {
		if msg := base64.RawURLEncoding.EncodeToString([]byte(h)) + ".e30"; token.IsInput([]byte(msg)) {
			t.Errorf("%q cannot be signed", h)
		}
	}
}
