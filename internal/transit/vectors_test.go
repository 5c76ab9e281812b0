package transit_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"testing"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// vectors are what a real Vault made (TestRealVault -update).
type vectors struct{ Cases []vector }

type vector struct {
	Type        string
	Backup      string
	Ciphertexts []vectorText
	Signatures  []vectorSignature
	HMACs       []vectorHMAC
}

type vectorText struct{ Text, Associated string }

type vectorSignature struct {
	Text, Hash, Padding string
	Salt, Marshaling    int
}

type vectorHMAC struct{ Text, Hash string }

// TestVaultVectors reads what a real Vault made, without one: each backup, and what its versions encrypted, signed and authenticated.
func TestVaultVectors(t *testing.T) {
	b, err := os.ReadFile("testdata/vault.json")
	if err != nil {
		t.Fatal(err)
	}
	var file vectors
	if err := json.Unmarshal(b, &file); err != nil || len(file.Cases) < 18 {
		t.Fatalf("%d cases, %v", len(file.Cases), err)
	}
	ciphers, signed, macs := 0, 0, 0
	for _, c := range file.Cases {
		backup, err := transit.ParseBackup(secret.Take([]byte(c.Backup)))
		if err != nil || backup.Algorithm != suite.Algorithm(c.Type) {
			t.Fatalf("%s: %v", c.Type, err)
		}
		keys := map[uint32]*transit.Key{}
		for _, v := range backup.Versions {
			s := backup.Settings
			s.Convergent = v.Convergent
			if keys[v.Number], err = transit.New(backup.Algorithm, v.Number, v.Bundle, v.Public, s); err != nil {
				t.Fatal(err)
			}
		}
		for _, x := range c.Ciphertexts {
			associated, _ := base64.StdEncoding.DecodeString(x.Associated)
			n, body, err := transit.Parse(x.Text)
			if err != nil {
				t.Fatal(err)
			}
			ciphers++
			if got, err := keys[n].Decrypt(body, transit.Params{Context: ctx, Associated: associated}); err != nil || string(got) != string(text) {
				t.Errorf("%s: %q, %v", c.Type, got, err)
			}
		}
		for _, x := range c.Signatures {
			h, _ := transit.ParseHash(x.Hash)
			o := transit.SignOptions{Hash: h, Padding: x.Padding, Salt: x.Salt, Marshaling: transit.Marshaling(x.Marshaling), Context: ctx}
			n, body, err := transit.ParseSignature(x.Text, o.Marshaling)
			if err != nil {
				t.Fatal(err)
			}
			signed++
			if ok, err := keys[n].Verify(text, body, o); !ok || err != nil {
				t.Errorf("%s, %+v: %t, %v", c.Type, x, ok, err)
			}
		}
		for _, x := range c.HMACs {
			h, _ := transit.ParseHash(x.Hash)
			macs++
			if got, err := keys[1].HMAC(h, text); err != nil || got != x.Text {
				t.Errorf("%s, %s: %s, %v", c.Type, x.Hash, got, err)
			}
		}
	}
	if ciphers < 40 || signed < 20 || macs < 150 {
		t.Errorf("%d ciphertexts, %d signatures, %d HMACs", ciphers, signed, macs)
	}
	t.Logf("%d ciphertexts, %d signatures, %d HMACs", ciphers, signed, macs)
}
