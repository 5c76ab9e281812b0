package suite_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// TestXAESVectorFile reads the vectors that C2SP XAES-256-GCM.md publishes; nothing of rotor made them.
func TestXAESVectorFile(t *testing.T) {
	b, err := os.ReadFile("../../spec/vectors/xaes.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct{ Name, Key, Nonce, Plaintext, Data, Sealed string }
	}
	if err := json.Unmarshal(b, &file); err != nil || len(file.Cases) < 2 {
		t.Fatalf("%d cases, %v", len(file.Cases), err)
	}
	for _, c := range file.Cases {
		aead, err := suite.NewXAES(secret.Take(bytesOf(t, c.Key)))
		if err != nil {
			t.Fatal(err)
		}
		nonce, plain, data, sealed := bytesOf(t, c.Nonce), bytesOf(t, c.Plaintext), bytesOf(t, c.Data), bytesOf(t, c.Sealed)
		if got := aead.Seal(nil, nonce, plain, data); !bytes.Equal(got, sealed) {
			t.Errorf("%s: sealed %x, want %x", c.Name, got, sealed)
		}
		if got, err := aead.Open(nil, nonce, sealed, data); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: opened %q, %v", c.Name, got, err)
		}
	}
}

func bytesOf(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
