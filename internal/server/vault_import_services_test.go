//go:build services

package server_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/cli"
	"github.com/rotorkms/rotor/internal/testenv"
)

// TestImportVault: rotor import vault brings keys of every type from a real Vault with all their versions, and what was encrypted and signed there is read
// at rotor unchanged; the plan says what it would do and what cannot move; a second run proves what is there.
func TestImportVault(t *testing.T) {
	w, real := newWorld(t), testenv.Vault(t)
	op := w.operator()
	there := &vaultClient{t, real.Address + "/v1/", real.Root, op.header, op.http}
	want := map[string]string{"kept": "re-encrypt"}
	there.must("POST", "transit/keys/kept", m{"derived": true})
	kept := there.must("POST", "transit/encrypt/kept", m{"plaintext": "YQ==", "context": "Yg=="}).str("ciphertext")
	type made struct{ text, sig string }
	before := map[string]made{}
	for _, kind := range []string{"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "ecdsa-p256", "ecdsa-p521", "ed25519", "rsa-2048", "hmac"} {
		for _, way := range []string{"backup", "export"} {
			name := kind + "-" + way
			settings := m{"type": kind, "exportable": true, "allow_plaintext_backup": way == "backup"}
			if kind == "hmac" {
				settings["key_size"] = 48
			}
			there.must("POST", "transit/keys/"+name, settings)
			var x made
			if a := there.do("POST", "transit/encrypt/"+name, m{"plaintext": "YQ=="}); a.status == 200 {
				x.text = a.str("ciphertext")
			}
			if a := there.do("POST", "transit/sign/"+name, m{"input": "YQ=="}); a.status == 200 {
				x.sig = a.str("signature")
			}
			there.must("POST", "transit/keys/"+name+"/rotate", nil)
			before[name], want[name] = x, way
		}
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(real.Root+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ROTOR_ADDRESS", w.Address())
	run := func(status int, more ...string) map[string]map[string]any {
		t.Helper()
		var out, log bytes.Buffer
		args := append([]string{"import", "vault", "--identity", w.admin, "--address", real.Address, "--token-file", token, "--ca-file", real.CAFile, "-o", "json"}, more...)
		if got := cli.Run(t.Context(), args, strings.NewReader(""), &out, &log); got != status {
			t.Fatalf("%v: exit status %d, want %d: %s %s", more, got, status, &out, &log)
		}
		if strings.Contains(out.String()+log.String(), real.Root) {
			t.Error("the token is printed")
		}
		var all []map[string]any
		if err := json.Unmarshal(out.Bytes(), &all); err != nil {
			t.Fatalf("%s: %v", &out, err)
		}
		keys := map[string]map[string]any{}
		for _, k := range all {
			keys[k["key"].(string)] = k
		}
		return keys
	}
	plan := run(3, "--plan")
	reencrypted(t, op, there, plan["kept"]["steps"].([]any), kept)
	for name, k := range plan {
		if k["way"] != want[name] || k["proved"] != false || (k["steps"] != nil) != (name == "kept") {
			t.Errorf("plan: %v", k)
		}
	}
	for name, k := range run(0, "--yes") {
		if k["way"] != want[name] || k["proved"] != (name != "kept") {
			t.Errorf("%v", k)
		}
	}
	for name, x := range before {
		if x.text != "" && op.must("POST", "transit/decrypt/"+name, m{"ciphertext": x.text}).str("plaintext") != "YQ==" {
			t.Errorf("%s: what was encrypted there is not read", name)
		}
		if x.sig != "" && op.must("POST", "transit/verify/"+name, m{"input": "YQ==", "signature": x.sig}).members()["valid"] != true {
			t.Errorf("%s: what was signed there does not verify", name)
		}
		op.must("POST", "transit/keys/"+name+"/rotate", nil)
	}
	if k := run(0, "--yes", "--key", "hmac-export")["hmac-export"]; k["way"] != "there" || k["proved"] != true {
		t.Errorf("again: %v", k)
	}
	there.must("POST", "transit/keys/other", m{"exportable": true}) // one that may leave is the same here or none
	op.must("POST", "transit/keys/other", nil)
	if k := run(5, "--yes", "--key", "other")["other"]; k["proved"] != false {
		t.Errorf("another key of the name: %v", k)
	}
}

// reencrypted does what the steps of a plan say for a key that the source does not let out.
func reencrypted(t *testing.T, here, there *vaultClient, steps []any, text string) {
	t.Helper()
	if len(steps) != 5 || steps[0] != "make it here: write transit/keys/kept type=aes256-gcm96 derived=true" || !strings.Contains(steps[2].(string), "transit/decrypt/kept at the source, transit/encrypt/kept here (batch_input") {
		t.Fatalf("%q", steps)
	}
	here.must("POST", "transit/keys/kept", m{"type": "aes256-gcm96", "derived": "true"})
	plain := there.must("POST", "transit/decrypt/kept", m{"batch_input": []m{{"ciphertext": text, "context": "Yg=="}}}).batch()[0]["plaintext"]
	moved := here.must("POST", "transit/encrypt/kept", m{"batch_input": []m{{"plaintext": plain, "context": "Yg=="}}}).batch()[0]["ciphertext"]
	if got := here.must("POST", "transit/decrypt/kept", m{"ciphertext": moved, "context": "Yg=="}).str("plaintext"); got != "YQ==" {
		t.Errorf("%q", got)
	}
	here.must("POST", "transit/keys/kept/config", m{"deletion_allowed": true})
	here.must("DELETE", "transit/keys/kept", nil)
}
