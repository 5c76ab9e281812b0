package token_test

import (
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
