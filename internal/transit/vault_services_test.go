//go:build services

package transit_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/testenv"
	"github.com/rotorkms/rotor/internal/transit"
)

var update = flag.Bool("update", false, "write testdata/vault.json")

func (vector) text(s string, associated []byte) vectorText {
	return vectorText{s, base64.StdEncoding.EncodeToString(associated)}
}

func hashName(h transit.Hash) string {
	for _, name := range []string{"none", "sha1", "sha2-224", "sha2-256", "sha2-384", "sha2-512", "sha3-224", "sha3-256", "sha3-384", "sha3-512"} {
		if got, _ := transit.ParseHash(name); got == h {
			return name
		}
	}
	return ""
}

func pemBytes(t testing.TB, s string) []byte {
	t.Helper()
	b, _ := pem.Decode([]byte(s))
	if b == nil {
		t.Fatal(s)
	}
	return b.Bytes
}

// vaultKey is a key of a real server with two versions, and the same versions here.
type vaultKey struct {
	*testenv.VaultServer
	t      *testing.T
	name   string
	a      suite.Algorithm
	backup transit.Backup
	text   string // of the backup
	here   map[uint32]*transit.Key
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func (v vaultKey) do(path string, body map[string]any) map[string]any {
	v.t.Helper()
	data, _ := v.Do(v.Root, http.MethodPost, "transit/"+path, body)["data"].(map[string]any)
	return data
}

func (v vaultKey) get(path string) map[string]any {
	v.t.Helper()
	data, _ := v.Do(v.Root, http.MethodGet, "transit/"+path, nil)["data"].(map[string]any)
	return data
}

// fetch takes a key's versions over by its backup.
func (v *vaultKey) fetch() {
	v.t.Helper()
	v.text = v.get("backup/" + v.name)["backup"].(string)
	var err error
	if v.backup, err = transit.ParseBackup(secret.Copy([]byte(v.text))); err != nil {
		v.t.Fatal(err)
	}
	v.here = map[uint32]*transit.Key{}
	for _, n := range v.backup.Versions {
		s := v.backup.Settings
		s.Convergent = n.Convergent
		k, err := transit.New(v.backup.Algorithm, n.Number, n.Bundle, n.Public, s)
		if err != nil {
			v.t.Fatal(err)
		}
		v.here[n.Number] = k
	}
}

func newVaultKey(t *testing.T, s *testenv.VaultServer, name, kind string, settings map[string]any) *vaultKey {
	t.Helper()
	a, _, err := transit.ParseType(kind, "")
	if err != nil {
		t.Fatal(err)
	}
	v := &vaultKey{VaultServer: s, t: t, name: name, a: a}
	body := map[string]any{"type": kind, "exportable": true, "allow_plaintext_backup": true}
	for k, value := range settings {
		body[k] = value
	}
	v.do("keys/"+name, body)
	v.do("keys/"+name+"/rotate", nil)
	v.fetch()
	if len(v.here) != 2 || v.backup.Algorithm != a || v.backup.Latest != 2 {
		t.Fatalf("%s: %+v", name, v.backup)
	}
	return v
}

// vaultTypes are those that the real server has.
var vaultTypes = []struct {
	kind     string
	settings map[string]any
}{
	{"aes128-gcm96", nil}, {"aes256-gcm96", nil}, {"chacha20-poly1305", nil},
	{"aes128-gcm96", map[string]any{"derived": true}}, {"aes256-gcm96", map[string]any{"derived": true}}, {"chacha20-poly1305", map[string]any{"derived": true}},
	{"aes128-gcm96", map[string]any{"derived": true, "convergent_encryption": true}}, {"aes256-gcm96", map[string]any{"derived": true, "convergent_encryption": true}},
	{"chacha20-poly1305", map[string]any{"derived": true, "convergent_encryption": true}},
	{"ecdsa-p256", nil}, {"ecdsa-p384", nil}, {"ecdsa-p521", nil}, {"ed25519", nil}, {"ed25519", map[string]any{"derived": true}},
	{"rsa-2048", nil}, {"rsa-3072", nil}, {"rsa-4096", nil}, {"hmac", map[string]any{"key_size": 64}},
}

// TestRealVault: what a real server makes is read here and the other way round: ciphertext, signatures and HMACs of each type and setting, backups,
// exports, imports.
func TestRealVault(t *testing.T) {
	s := testenv.Vault(t)
	var file vectors
	for i, c := range vaultTypes {
		v := newVaultKey(t, s, fmt.Sprintf("key-%d", i), c.kind, c.settings)
		made := v.vector()
		if transit.Encrypts(v.a) {
			v.exchangeCiphertext(&made)
		}
		if transit.Signs(v.a) {
			v.exchangeSignatures(&made)
		}
		v.exchangeHMACs(&made)
		v.compareExports()
		v.restoreThere()
		v.importThere()
		file.Cases = append(file.Cases, made)
	}
	if *update {
		b, err := json.MarshalIndent(file, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/vault.json", append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (v *vaultKey) vector() vector { return vector{Type: string(v.a), Backup: v.text} }

func (v *vaultKey) context() map[string]any {
	if v.backup.Settings.Derived {
		return map[string]any{"context": b64(ctx)}
	}
	return map[string]any{}
}

func (v *vaultKey) exchangeCiphertext(made *vector) {
	v.t.Helper()
	p := transit.Params{Context: ctx}
	for _, associated := range [][]byte{nil, ad} {
		if associated != nil && !transit.Associates(v.a) {
			continue
		}
		p.Associated = associated
		for number, k := range v.here {
			body := v.context()
			body["plaintext"], body["key_version"] = b64(text), number
			if associated != nil {
				body["associated_data"] = b64(associated)
			}
			there := v.do("encrypt/"+v.name, body)["ciphertext"].(string)
			n, box, err := transit.Parse(there)
			if err != nil || n != number {
				v.t.Fatalf("%s: %v", there, err)
			}
			if got, err := k.Decrypt(box, p); err != nil || string(got) != string(text) {
				v.t.Errorf("%s, %+v: %q, %v", v.a, v.backup.Settings, got, err)
			}
			here, err := k.Encrypt(text, p)
			if err != nil {
				v.t.Fatal(err)
			}
			if v.backup.Settings.Convergent > 0 && here != there {
				v.t.Errorf("%s: %s there, %s here", v.a, there, here)
			}
			delete(body, "plaintext")
			delete(body, "key_version")
			body["ciphertext"] = here
			if got := v.do("decrypt/"+v.name, body)["plaintext"]; got != b64(text) {
				v.t.Errorf("%s, %+v: %v", v.a, v.backup.Settings, got)
			}
			made.Ciphertexts = append(made.Ciphertexts, made.text(there, associated))
		}
	}
}

func (v *vaultKey) exchangeSignatures(made *vector) {
	v.t.Helper()
	for i, o := range options(v.a) {
		if len(options(v.a)) > 20 && v.a != suite.RSA2048 && i%5 != 0 {
			continue // the same code for each length
		}
		body := v.context()
		name := hashName(o.Hash)
		body["input"], body["hash_algorithm"], body["marshaling_algorithm"] = b64(text), name, []string{"asn1", "jws"}[o.Marshaling]
		if o.Padding != "" {
			body["signature_algorithm"] = o.Padding
		}
		switch o.Salt {
		case transit.SaltAuto:
		case transit.SaltHash:
			body["salt_length"] = "hash"
		default:
			body["salt_length"] = fmt.Sprint(o.Salt)
		}
		o.Context = ctx
		there := v.do("sign/"+v.name, body)["signature"].(string)
		number, sig, err := transit.ParseSignature(there, o.Marshaling)
		if err != nil {
			v.t.Fatal(err)
		}
		if ok, err := v.here[number].Verify(text, sig, o); !ok || err != nil {
			v.t.Errorf("%s, %v: %t, %v", v.a, body, ok, err)
		}
		here, _, err := v.here[1].Sign(text, o)
		if err != nil {
			v.t.Fatal(err)
		}
		body["signature"] = here
		if ok := v.do("verify/"+v.name, body)["valid"]; ok != true {
			v.t.Errorf("%s, %v: %v there", v.a, body, ok)
		}
		if i%7 == 0 {
			delete(body, "signature")
			made.Signatures = append(made.Signatures, vectorSignature{there, name, o.Padding, o.Salt, int(o.Marshaling)})
		}
	}
}

func (v *vaultKey) exchangeHMACs(made *vector) {
	v.t.Helper()
	for _, name := range []string{"sha1", "sha2-224", "sha2-256", "sha2-384", "sha2-512", "sha3-224", "sha3-256", "sha3-384", "sha3-512"} {
		h, _ := transit.ParseHash(name)
		there := v.do("hmac/"+v.name+"/"+name, map[string]any{"input": b64(text), "key_version": 1})["hmac"].(string)
		here, err := v.here[1].HMAC(h, text)
		if err != nil || here != there {
			v.t.Errorf("%s, %s: %s there, %s here, %v", v.a, name, there, here, err)
		}
		made.HMACs = append(made.HMACs, vectorHMAC{there, name})
	}
}

func (v *vaultKey) compareExports() {
	v.t.Helper()
	for _, e := range []transit.Export{transit.ExportEncryption, transit.ExportSigning, transit.ExportHMAC} {
		if e.Check(v.a) != nil {
			continue
		}
		for number, want := range v.get("export/" + string(e) + "/" + v.name)["keys"].(map[string]any) {
			var n uint32
			_, _ = fmt.Sscan(number, &n)
			got, err := v.here[n].Export(e)
			if err != nil || string(got.Reveal()) != want {
				v.t.Errorf("%s, %s: another text, %v", v.a, e, err)
			}
		}
	}
	versions, _ := v.get("keys/" + v.name)["keys"].(map[string]any) // keys of HMACs show none
	for number, shown := range versions {
		var n uint32
		_, _ = fmt.Sscan(number, &n)
		want, _ := shown.(map[string]any)
		got, err := v.here[n].PublicText()
		if err != nil || want != nil && want["public_key"] != got && !v.backup.Settings.Derived {
			v.t.Errorf("%s: public key %v there, %s here, %v", v.a, want["public_key"], got, err)
		}
	}
}

// restoreThere gives the real server a backup that was made here.
func (v *vaultKey) restoreThere() {
	v.t.Helper()
	text, err := v.backup.Text(v.backup.Versions[0].Created)
	if err != nil {
		v.t.Fatal(err)
	}
	there := &vaultKey{VaultServer: v.VaultServer, t: v.t, name: v.name + "-restored", a: v.a}
	there.do("restore/"+there.name, map[string]any{"backup": string(text.Reveal())})
	there.fetch()
	for _, n := range there.backup.Versions {
		before, _ := v.here[n.Number].Portable()
		after, _ := there.here[n.Number].Portable()
		if !before.Equal(after) || len(there.backup.Versions) != 2 {
			v.t.Errorf("%s: version %d came back as another", v.a, n.Number)
		}
	}
	var made vector
	if transit.Encrypts(v.a) {
		there.exchangeCiphertext(&made)
	}
	there.exchangeHMACs(&made)
	if transit.Signs(v.a) {
		o := transit.SignOptions{Hash: transit.SHA256, Context: ctx}
		sig, _, err := v.here[1].Sign(textBytes(), o)
		if err != nil {
			v.t.Fatal(err)
		}
		body := v.context()
		body["input"], body["signature"] = b64(textBytes()), sig
		if ok := there.do("verify/"+there.name, body)["valid"]; ok != true {
			v.t.Errorf("%s: %v", v.a, ok)
		}
	}
}

func textBytes() []byte { return text }

// importThere gives the real server a key that was made here, and lets it hand that key out again, wrapped for a key of here.
func (v *vaultKey) importThere() {
	v.t.Helper()
	if v.backup.Settings.Convergent != 0 || v.a == suite.RSA3072 || v.a == suite.RSA4096 {
		return // imports cannot converge; the longer RSA keys are as the first
	}
	der := pemBytes(v.t, v.get("wrapping_key")["public_key"].(string))
	for i, name := range []string{"SHA256", "SHA1", "SHA512"} {
		if i > 0 && v.a != suite.AES256GCM {
			continue
		}
		h, _ := transit.ParseWrapHash(name)
		portable, err := v.here[2].Portable()
		if err != nil {
			v.t.Fatal(err)
		}
		blob, err := transit.Wrap(der, portable, h)
		if err != nil {
			v.t.Fatal(err)
		}
		kind, _ := transit.Describe(v.a, "")
		imported := v.name + "-" + strings.ToLower(name)
		v.do("keys/"+imported+"/import", map[string]any{"type": kind, "ciphertext": blob, "hash_function": name, "exportable": true, "allow_plaintext_backup": true, "derived": v.backup.Settings.Derived})
		there := &vaultKey{VaultServer: v.VaultServer, t: v.t, name: imported, a: v.a}
		there.fetch()
		if got, _ := there.here[1].Portable(); !got.Equal(portable) || !there.backup.Imported {
			v.t.Errorf("%s: it imported another key", v.a)
		}
		v.handOut(imported, portable, h, name)
	}
}

// handOut has the real server hand a key out, wrapped for one of here. A key that it made itself it does not take for that.
func (v *vaultKey) handOut(imported string, portable secret.Bytes, h transit.Hash, name string) {
	v.t.Helper()
	own, err := recipient()
	if err != nil {
		v.t.Fatal(err)
	}
	to := imported + "-to"
	blob, err := transit.Wrap(pemBytes(v.t, v.get("wrapping_key")["public_key"].(string)), own, transit.SHA256)
	if err != nil {
		v.t.Fatal(err)
	}
	v.do("keys/"+to+"/import", map[string]any{"type": "rsa-4096", "ciphertext": blob})
	blob = v.get("byok-export/" + to + "/" + imported + "?hash=" + name)["keys"].(map[string]any)["1"].(string)
	got, err := transit.Unwrap(own, blob, h)
	if err != nil || !got.Equal(portable) {
		v.t.Errorf("%s: handed out: %v", v.a, err)
	}
}

// recipient is a key that others are wrapped for, made once.
var recipient = sync.OnceValues(func() (secret.Bytes, error) {
	key, _, err := suite.Generate(transit.WrappingAlgorithm)
	return key, err
})
