package rotor_test

import (
	"slices"
	"testing"

	"github.com/rotorkms/rotor"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// TestRotateToAnotherAlgorithm: holders take a version of another algorithm before it protects, and open and verify what was before and what comes
// after, also those that did not ask for it: tokens by the published key set.
func TestRotateToAnotherAlgorithm(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(&rotorv1.Key{Name: "records", Purpose: "encrypt", Custody: "fleet"})
	c.create(&rotorv1.Key{Name: "macs", Purpose: "mac", Custody: "fleet", Algorithm: "HMAC-SHA256"})
	c.create(&rotorv1.Key{Name: "tokens", Purpose: "sign", Algorithm: "Ed25519"})
	config := rotor.Config{Keys: []string{"records", "macs"}}
	a, b := c.mustDial("a", config), c.mustDial("b", config)
	type made struct {
		message, tag []byte
		version      uint32
		token        string
	}
	protect := func() (m made) {
		var err error
		if m.message, err = a.Key("records").Encrypt(t.Context(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if m.tag, m.version, err = a.Key("macs").Sign(t.Context(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if m.token, err = a.Token(t.Context(), rotor.TokenRequest{Key: "tokens", Audience: "x"}); err != nil {
			t.Fatal(err)
		}
		return m
	}
	check := func(m made) {
		t.Helper()
		if _, err := b.Key("records").Decrypt(t.Context(), m.message); err != nil {
			t.Error(err)
		}
		if err := b.Key("macs").Verify(t.Context(), []byte("x"), m.tag, m.version); err != nil {
			t.Error(err)
		}
		if _, err := b.VerifyToken(t.Context(), m.token, "x"); err != nil {
			t.Error(err)
		}
	}
	before := protect()
	for key, algorithm := range map[string]string{"records": "XChaCha20-Poly1305", "macs": "HMAC-SHA512", "tokens": "ES384"} {
		c.rotateTo(key, algorithm)
	}
	after := protect()
	if after.version != 2 || slices.Equal(before.message[:1], after.message[:1]) {
		t.Errorf("version %d, suites %d and %d", after.version, before.message[0], after.message[0])
	}
	check(before)
	check(after)
}
