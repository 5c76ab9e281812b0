package server_test

import (
	"fmt"
	"strings"
	"testing"
)

// TestVaultOneVersionRevoked: of five versions the third is suspended, resumed and revoked through Vault's paths; the others go on, and a revoked
// latest version has another in its place.
func TestVaultOneVersionRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	c.must("POST", "transit/keys/five", nil)
	texts := map[int]string{}
	for n := 1; n <= 5; n++ {
		if n > 1 {
			c.must("POST", "transit/keys/five/rotate", nil)
		}
		texts[n] = c.must("POST", "transit/encrypt/five", m{"plaintext": b64("x")}).str("ciphertext")
	}
	opens := func(refused int) {
		t.Helper()
		for n, text := range texts {
			a := c.do("POST", "transit/decrypt/five", m{"ciphertext": text})
			if want := map[bool]int{true: 400, false: 200}[n == refused]; a.status != want {
				t.Errorf("version %d while %d is out: %d %s", n, refused, a.status, a.text)
			}
		}
	}
	c.must("POST", "transit/keys/five/versions/3/suspend", m{"reason": "a laptop is missing"})
	opens(3)
	c.must("POST", "transit/keys/five/versions/3/resume", nil)
	opens(0)
	a := c.must("POST", "transit/keys/five/versions/3/compromise", m{"reason": "it was found"})
	if v := a.members()["versions"].(m)["3"].(m); v["state"] != "compromised" || a.str("latest_version") != "5" {
		t.Errorf("%s", a.text)
	}
	opens(3)
	c.refuses(400, "compromised", "POST", "transit/keys/five/versions/3/resume", nil)
	if a := c.must("POST", "transit/rewrap/five", m{"ciphertext": texts[2]}); a.str("key_version") != "5" {
		t.Errorf("%s", a.text)
	}
	c.must("POST", "transit/keys/five/versions/5/compromise", nil)
	eventually(t, "the revoked latest version is replaced", func() bool { return c.must("GET", "transit/keys/five", nil).str("latest_version") == "6" })
	c.refuses(400, "encryption key not found", "POST", "transit/keys/none/versions/1/suspend", nil)
	for _, n := range []string{"0", "x", "9", "4294967296"} {
		if a := c.do("POST", "transit/keys/five/versions/"+n+"/suspend", nil); a.status != 400 || a.errors() == "" {
			t.Errorf("version %s: %d %s", n, a.status, a.text)
		}
	}
}

// TestVaultSchedules: whatever a schedule can say is set and read through Vault's paths, and what is not named stays.
func TestVaultSchedules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	reads := func(a answer, want string) {
		t.Helper()
		d := a.members()
		if got := fmt.Sprint(d["auto_rotate_period"], d["auto_rotate_jitter"], d["auto_rotate_max_uses"], d["auto_rotate_windows"]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	reads(c.must("POST", "transit/keys/plain", nil), "0 0 0 []")
	reads(c.must("POST", "transit/keys/k", m{"auto_rotate_period": 3600, "auto_rotate_jitter": "10", "auto_rotate_max_uses": 1000,
		"auto_rotate_windows": []string{"Sat,Sun 02:00-05:00 Europe/Berlin", "04:00-05:00"}}), "3600 10 1000 [Sat,Sun 02:00-05:00 Europe/Berlin 04:00-05:00 UTC]")
	reads(c.must("POST", "transit/keys/k/config", m{"auto_rotate_max_uses": 7}), "3600 10 7 [Sat,Sun 02:00-05:00 Europe/Berlin 04:00-05:00 UTC]")
	reads(c.must("POST", "transit/keys/k/config", m{"auto_rotate_windows": "Mon 01:00-02:00; 03:00-04:00 Asia/Tokyo"}), "3600 10 7 [Mon 01:00-02:00 UTC 03:00-04:00 Asia/Tokyo]")
	reads(c.must("POST", "transit/keys/k/config", m{"auto_rotate_period": "0"}), "0 0 7 [Mon 01:00-02:00 UTC 03:00-04:00 Asia/Tokyo]")
	reads(c.must("POST", "transit/keys/k/config", m{"auto_rotate_max_uses": 0}), "0 0 0 []")
	for field, wrong := range (m{"auto_rotate_jitter": 51, "auto_rotate_max_uses": -1, "auto_rotate_windows": "when the moon is full", "auto_rotate_period": "500ms"}) {
		if a := c.do("POST", "transit/keys/k/config", m{field: wrong}); a.status != 400 || a.errors() == "" {
			t.Errorf("%s: %d %s", field, a.status, a.text)
		}
	}
	c.refuses(400, "no", "POST", "transit/keys/k/config", m{"auto_rotate_jitter": 10}) // of no time
	reads(c.must("GET", "transit/keys/k", nil), "0 0 0 []")

	// Seconds, and uses, with nobody asking for a rotation.
	c.must("POST", "transit/keys/k/config", m{"auto_rotate_max_uses": 2})
	for range 2 {
		c.must("POST", "transit/encrypt/k", m{"plaintext": b64("x")})
	}
	eventually(t, "the uses are over", func() bool { return c.must("GET", "transit/keys/k", nil).str("latest_version") == "2" })
	c.must("POST", "transit/keys/k/config", m{"auto_rotate_max_uses": 0, "auto_rotate_period": "1s"})
	eventually(t, "the second is over", func() bool { return c.must("GET", "transit/keys/k", nil).str("latest_version") != "2" })
}

// TestVaultStagedRotation: a key with a margin shows its next version before that protects.
func TestVaultStagedRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	if a := c.must("POST", "transit/keys/slow", m{"type": "ed25519", "rotation_margin": "1h"}); a.str("rotation_margin") != "3600" {
		t.Errorf("%s", a.text)
	}
	a := c.must("POST", "transit/keys/slow/rotate", nil)
	if a.str("latest_version") != "1" || len(a.members()["versions"].(m)) != 2 || a.members()["rotation_required"] != true {
		t.Errorf("%s", a.text)
	}
	if got := c.must("POST", "transit/sign/slow", m{"input": b64("x")}).str("key_version"); got != "1" {
		t.Errorf("version %s signs before its time", got)
	}

	// The margin can be changed: what is shown already goes by the new one, and later versions by what it is then.
	c.refuses(400, "rotation_margin", "POST", "transit/keys/slow/config", m{"rotation_margin": "-1h"})
	c.refuses(400, "rotation_margin", "POST", "transit/keys/slow/config", m{"rotation_margin": "1500ms"})
	if a := c.must("POST", "transit/keys/slow/config", m{"deletion_allowed": true}); a.str("rotation_margin") != "3600" {
		t.Errorf("%s", a.text)
	}
	if a := c.must("POST", "transit/keys/slow/config", m{"rotation_margin": 0}); a.str("rotation_margin") != "0" {
		t.Errorf("%s", a.text)
	}
	eventually(t, "the margin is over", func() bool { return c.must("GET", "transit/keys/slow", nil).str("latest_version") == "2" })
	if a := c.must("POST", "transit/keys/slow/rotate", nil); a.str("latest_version") != "3" {
		t.Errorf("%s", a.text)
	}
	c.must("POST", "transit/keys/slow/config", m{"rotation_margin": "2h"})
	if a := c.must("POST", "transit/keys/slow/rotate", nil); a.str("latest_version") != "3" || a.str("rotation_margin") != "7200" {
		t.Errorf("%s", a.text)
	}
	if log := w.entries(); !strings.Contains(log, `"margin":"2h0m0s"`) {
		t.Error("the log does not tell of the margin")
	}
}

// eventually asks again until something is so, as long as a test may take.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for !is() && !t.Failed() {
	}
	t.Log(what)
}
