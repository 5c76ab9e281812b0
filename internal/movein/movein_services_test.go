//go:build services

package movein_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/movein"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/testenv"
	"github.com/rotorkms/rotor/internal/transit"
)

func end(t *testing.T, s *testenv.VaultServer, what string) *movein.Server {
	t.Helper()
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &movein.Server{
		HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}, URL: s.Address, Mount: "transit", What: what,
		Token: func() (string, error) { return s.Root, nil },
	}
}

// TestMove: every type moves by backup and by exports, between two real Vaults, so that what is right does not depend on rotor; a key that no version
// of may leave gets steps; what is there is proved, and another key of the name is found.
func TestMove(t *testing.T) {
	from, to := testenv.Vault(t), testenv.Vault(t)
	m := movein.Move{From: end(t, from, "source"), To: end(t, to, "target")}
	create := func(name string, settings map[string]any) {
		if settings["type"] == "hmac" {
			settings["key_size"] = 48
		}
		from.Do(from.Root, "POST", "transit/keys/"+name, settings)
		for range 2 {
			from.Do(from.Root, "POST", "transit/keys/"+name+"/rotate", nil)
		}
	}
	want := map[string]movein.Way{}
	for _, kind := range []string{"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "rsa-2048", "hmac"} {
		create(kind+"-backup", map[string]any{"type": kind, "exportable": true, "allow_plaintext_backup": true})
		create(kind+"-export", map[string]any{"type": kind, "exportable": true})
		create(kind+"-kept", map[string]any{"type": kind})
		want[kind+"-backup"], want[kind+"-export"], want[kind+"-kept"] = movein.Backup, movein.Export, movein.Reencrypt
	}
	for name, settings := range map[string]map[string]any{"derived": {"derived": true}, "convergent": {"derived": true, "convergent_encryption": true}, "ed-derived": {"derived": true, "type": "ed25519"}} {
		settings["exportable"] = true
		create(name, settings)
		want[name] = movein.Export
	}
	from.Do(from.Root, "POST", "transit/keys/derived/config", map[string]any{"min_decryption_version": 2})
	plan, err := m.Plan(t.Context(), nil)
	if err != nil || len(plan) != len(want) {
		t.Fatalf("%d items, %v", len(plan), err)
	}
	old := from.Do(from.Root, "POST", "transit/encrypt/convergent", map[string]any{"plaintext": b64("old"), "context": b64("c"), "key_version": 1})["data"].(map[string]any)["ciphertext"]
	for _, i := range plan {
		versions := 3
		if i.Key == "derived" {
			versions = 2
		}
		if i.Way != want[i.Key] || i.Versions != versions || (i.Way == movein.Reencrypt) != (len(i.Steps) > 1) || (i.Why == "") != (i.Way == movein.Backup || i.Way == movein.Export && versions == 3) {
			t.Errorf("%+v", i)
		}
		err := m.Copy(t.Context(), i, time.Now())
		if i.Way == movein.Reencrypt {
			if fault.CodeOf(err) != fault.WrongState {
				t.Errorf("%s: %v", i.Key, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", i.Key, err)
		}
	}
	got := to.Do(to.Root, "POST", "transit/decrypt/convergent", map[string]any{"ciphertext": old, "context": b64("c")})["data"].(map[string]any)["plaintext"]
	if got != b64("old") {
		t.Errorf("%v", got)
	}
	again(t, m, from, to)
}

// again: a second run finds what is there, and a key of the name that is another.
func again(t *testing.T, m movein.Move, from, to *testenv.VaultServer) {
	t.Helper()
	names := []string{"aes256-gcm96-backup", "hmac-export", "rsa-2048-export"}
	plan, err := m.Plan(t.Context(), names)
	if err != nil || !strings.HasPrefix(movein.Summary(plan), "0 keys to copy, 3 here already") {
		t.Fatalf("%+v, %v", plan, err)
	}
	for _, i := range plan {
		if err := m.Copy(t.Context(), i, time.Now()); err != nil {
			t.Errorf("%s: %v", i.Key, err)
		}
	}
	for _, kind := range []string{"aes256-gcm96", "ed25519", "hmac"} {
		settings := map[string]any{"type": kind, "exportable": true}
		if kind == "hmac" {
			settings["key_size"] = 32
		}
		from.Do(from.Root, "POST", "transit/keys/other-"+kind, settings)
		to.Do(to.Root, "POST", "transit/keys/other-"+kind, settings)
		plan, err := m.Plan(t.Context(), []string{"other-" + kind})
		if err != nil || plan[0].Way != movein.There {
			t.Fatalf("%+v, %v", plan, err)
		}
		if err := m.Copy(t.Context(), plan[0], time.Now()); fault.CodeOf(err) != fault.RecordTampered {
			t.Errorf("%s: %v", kind, err)
		}
	}
	begun(t, m, to)
	astray(t, m)
	denied := from.Token(`path "transit/keys/*" { capabilities = ["read"] }`)
	m.From.Token = func() (string, error) { return denied, nil }
	plan, err = m.Plan(t.Context(), []string{"other-hmac"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Copy(t.Context(), plan[0], time.Now()); fault.CodeOf(err) != fault.Denied {
		t.Error(err)
	}
}

// begun: who has made a key here by the first step of a plan finds the other steps in the next one, and is not told that the keys differ.
func begun(t *testing.T, m movein.Move, to *testenv.VaultServer) {
	t.Helper()
	for _, kind := range []string{"aes256-gcm96", "ed25519"} {
		name := kind + "-kept"
		first, err := m.Plan(t.Context(), []string{name})
		if err != nil {
			t.Fatal(err)
		}
		to.Do(to.Root, "POST", "transit/keys/"+name, map[string]any{"type": kind})
		for range 3 { // with fewer, as many, and more versions than the source
			plan, err := m.Plan(t.Context(), []string{name})
			if err != nil || plan[0].Way != movein.Reencrypt || !slices.Equal(plan[0].Steps, first[0].Steps[1:]) {
				t.Errorf("%+v, %v", plan, err)
			}
			to.Do(to.Root, "POST", "transit/keys/"+name+"/rotate", nil)
			to.Do(to.Root, "POST", "transit/keys/"+name+"/rotate", nil)
		}
	}
}

// astray: a name, a mount and an authority that are wrong are told as such before anything is copied.
func astray(t *testing.T, m movein.Move) {
	t.Helper()
	hint := func(m movein.Move, names []string, code fault.Code, want string) {
		t.Helper()
		_, err := m.Plan(t.Context(), names)
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != code || !strings.Contains(f.Hint, want) {
			t.Errorf("%v: %+v", err, f)
		}
	}
	hint(m, []string{"missing"}, fault.NotFound, "no key of the name")
	one := []string{"hmac-export"}
	from, to := *m.From, *m.To
	from.Mount, to.Mount = "nowhere", "nowhere"
	hint(movein.Move{From: &from, To: m.To}, nil, fault.NotFound, "no engine at nowhere/")
	hint(movein.Move{From: &from, To: m.To}, one, fault.NotFound, "no engine at nowhere/")
	hint(movein.Move{From: m.From, To: &to}, one, fault.NotFound, "no engine at nowhere/")
	from = *m.From
	from.HTTP = http.DefaultClient
	hint(movein.Move{From: &from, To: m.To}, nil, fault.Unavailable, "--ca-file")
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestEveryVersionIsProved: a key here that differs from the source's in one version, neither its oldest nor its latest, is found out; so is a source that does not know
// what was copied of it.
func TestEveryVersionIsProved(t *testing.T) {
	from, to := testenv.Vault(t), testenv.Vault(t)
	m := movein.Move{From: end(t, from, "source"), To: end(t, to, "target")}
	from.Do(from.Root, "POST", "transit/keys/k", map[string]any{"exportable": true, "allow_plaintext_backup": true})
	for range 2 {
		from.Do(from.Root, "POST", "transit/keys/k/rotate", nil)
	}
	text := from.Do(from.Root, "GET", "transit/backup/k", nil)["data"].(map[string]any)["backup"].(string)
	b, err := transit.ParseBackup(secret.Copy([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	if b.Versions[1].Bundle, _, err = suite.GenerateTransit(b.Algorithm, 0); err != nil {
		t.Fatal(err)
	}
	bent, err := b.Text(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	to.Do(to.Root, "POST", "transit/restore/k", map[string]any{"backup": string(bent.Reveal())})
	plan, err := m.Plan(t.Context(), []string{"k"})
	if err != nil || plan[0].Way != movein.There {
		t.Fatalf("%+v, %v", plan, err)
	}
	if err := m.Copy(t.Context(), plan[0], time.Now()); fault.CodeOf(err) != fault.RecordTampered {
		t.Errorf("another version 2 is here: %v", err)
	}
	if err := movein.ProveEach(t.Context(), m, plan[0], b); fault.CodeOf(err) != fault.RecordTampered {
		t.Errorf("another version 2 was copied: %v", err)
	}
}
