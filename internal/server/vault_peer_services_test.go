//go:build services

package server_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/rotorkms/rotor/internal/testenv"
)

// step is one request of a conversation that is had with a real Vault and with rotor.
type step struct {
	method, path string
	body         m
	keep         string // member of data that is kept under this name; $NAME in later paths and bodies stands for it
	known        string // why the answers differ; "": they do not
}

// TestVaultPeer has one conversation with a real Vault and with rotor: statuses, error texts, which members data has, and their values, where they are not of one
// server alone, are the same.
func TestVaultPeer(t *testing.T) {
	real := testenv.Vault(t)
	w := newWorld(t)
	ours := w.operator()
	theirs := &vaultClient{t, real.Address + "/v1/", real.Root, ours.header, ours.http}
	keptOurs, keptTheirs := map[string]string{}, map[string]string{}
	for i, s := range conversation() {
		a, b := s.ask(ours, keptOurs), s.ask(theirs, keptTheirs)
		diff := difference(a, b)
		if (diff != "") != (s.known != "") {
			t.Errorf("%d %s %s %v: %s\n  rotor: %d %.600s\n  Vault: %d %.600s", i, s.method, s.path, s.body, diff, a.status, a.text, b.status, b.text)
		}
	}
}

// ask sends a step.
func (s step) ask(c *vaultClient, kept map[string]string) answer {
	path, text := s.path, "null"
	if s.body != nil {
		b, _ := json.Marshal(s.body)
		text = string(b)
	}
	for name, value := range kept {
		path, text = strings.ReplaceAll(path, "$"+name, value), strings.ReplaceAll(text, "$"+name, value)
	}
	var body any
	if s.body != nil {
		body = []byte(text)
	}
	a := c.do(s.method, path, body)
	if s.keep != "" {
		kept[s.keep] = fmt.Sprint(a.members()[s.keep])
		if all := a.batch(); len(all) > 0 {
			kept[s.keep] = fmt.Sprint(all[0][s.keep])
		}
	}
	return a
}

// own are members whose values are of one server alone, or that rotor adds.
var (
	own   = []string{"ciphertext", "plaintext", "hmac", "signature", "keys", "backup", "public_key", "csr", "random_bytes", "publickey", "backup_info", "restore_info", "certificate-chain"}
	added = []string{"primary_version", "versions", "soft_deleted", "rotation_required", "rotation_reasons", "next_rotation", "changed", "schedule", "rotation_margin",
		"auto_rotate_jitter", "auto_rotate_max_uses", "auto_rotate_windows"}
)

// difference says what of two answers differs; "": nothing that counts.
func difference(a, b answer) string {
	// What a client has done wrong is 400 here also where Vault says 500, which clients take for a reason to try again.
	if words, ok := strings.CutPrefix(b.errors(), "1 error occurred:\n\t* "); ok && a.status == 400 && b.status == 500 && a.errors() == strings.TrimSpace(words) {
		return ""
	}
	if a.status != b.status {
		return fmt.Sprintf("status %d, want %d", a.status, b.status)
	}
	if a.errors() != b.errors() {
		return fmt.Sprintf("errors %q, want %q", a.errors(), b.errors())
	}
	return unlike("data", a.members(), b.members())
}

func unlike(where string, a, b m) string {
	for _, name := range added {
		delete(a, name)
	}
	if x, y := slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)); !slices.Equal(x, y) {
		return fmt.Sprintf("%s has %v, want %v", where, x, y)
	}
	for name, want := range b {
		got := a[name]
		if items, ok := want.([]any); ok {
			others, _ := got.([]any)
			if len(items) != len(others) {
				return fmt.Sprintf("%s.%s has %d, want %d", where, name, len(others), len(items))
			}
			for i := range items {
				x, xok := others[i].(m)
				y, yok := items[i].(m)
				if xok && yok {
					if d := unlike(fmt.Sprintf("%s.%s[%d]", where, name, i), x, y); d != "" {
						return d
					}
				}
			}
			continue
		}
		if !slices.Contains(own, name) && fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("%s.%s is %v, want %v", where, name, got, want)
		}
	}
	return ""
}

func posts(path string, body m) step { return step{method: "POST", path: path, body: body} }

func keeping(name string, s step) step {
	s.keep = name
	return s
}

func differing(why string, s step) step {
	s.known = why
	return s
}

// conversation is what is said.
func conversation() []step {
	return slices.Concat(aboutKeys(), aboutUse(), aboutSigning(), aboutMoving())
}

func reads(path string) step { return step{method: "GET", path: path} }

func aboutKeys() []step {
	return []step{
		{method: "LIST", path: "transit/keys"}, reads("transit/keys?list=true"), reads("transit/keys/a"), posts("transit/keys/a", nil), posts("transit/keys/a", m{"key_size": 0, "min_encryption_vrsn": 1}),
		reads("transit/keys/a"), {method: "LIST", path: "transit/keys/"}, posts("transit/keys/a/rotate", nil), posts("transit/keys/none/rotate", nil),
		posts("transit/keys/a/config", m{"min_decryption_version": 9}), posts("transit/keys/a/config", m{"min_decryption_version": -1}), posts("transit/keys/a/config", m{"min_encryption_version": 9}),
		posts("transit/keys/a/config", m{"min_decryption_version": 0}), posts("transit/keys/a/config", m{"min_encryption_version": 1, "min_decryption_version": 2}),
		posts("transit/keys/a/config", m{"auto_rotate_period": "90d"}), posts("transit/keys/a/config", m{"min_encryption_version": 2, "min_decryption_version": 2}), reads("transit/keys/a"), posts("transit/keys/a/config", nil),
		posts("transit/keys/none/config", nil), posts("transit/keys/a/trim", nil), posts("transit/keys/a/trim", m{"min_available_version": 3}), posts("transit/keys/a/trim", m{"min_available_version": 0}),
		posts("transit/keys/a/trim", m{"min_available_version": 2}), posts("transit/keys/a/trim", m{"min_available_version": 1}), posts("transit/keys/none/trim", m{"min_available_version": 1}), reads("transit/keys/a"),
		{method: "DELETE", path: "transit/keys/a"}, {method: "DELETE", path: "transit/keys/none"}, posts("transit/keys/a/config", m{"deletion_allowed": true}), {method: "DELETE", path: "transit/keys/a"}, reads("transit/keys/a"),
		posts("transit/keys/x", m{"type": "nope"}), posts("transit/keys/x", m{"key_size": 32}), posts("transit/keys/x", m{"type": "hmac", "key_size": 7}), posts("transit/keys/x", m{"convergent_encryption": true}),
		posts("transit/keys/x", m{"type": "rsa-2048", "derived": true}), posts("transit/keys/x", m{"type": "ed25519", "derived": true, "convergent_encryption": true}), differing("in other words", posts("transit/keys/x", m{"derived": "maybe"})),
		posts("transit/keys/h", m{"type": "hmac", "key_size": 32}), posts("transit/keys/h2", m{"type": "hmac", "key_size": 64}), posts("transit/keys/ed", m{"type": "ed25519"}), posts("transit/keys/ec", m{"type": "ecdsa-p256"}), posts("transit/keys/rsa", m{"type": "rsa-2048"}),
		posts("transit/keys/d", m{"derived": true}), posts("transit/keys/c", m{"derived": true, "convergent_encryption": true}), posts("transit/keys/edd", m{"type": "ed25519", "derived": true}),
		reads("transit/keys/h"), reads("transit/keys/ed"), reads("transit/keys/ec"), reads("transit/keys/rsa"), reads("transit/keys/c"), reads("transit/keys/edd"), reads("transit/keys/edd?context=Y3R4"),
		{method: "PATCH", path: "transit/keys/a", known: "415"}, {method: "DELETE", path: "transit/encrypt/a"}, reads("transit/encrypt/a"), reads("transit/nope"), reads("transit/"), reads("nowhere/x"),
		posts("transit/keys/a%20b", nil), posts("transit/keys/-a", nil), posts("transit/keys/a/b/c", nil),
	}
}

func aboutUse() []step {
	return []step{
		keeping("ciphertext", posts("transit/encrypt/k", m{"plaintext": b64("x")})), posts("transit/decrypt/k", m{"ciphertext": "$ciphertext"}), posts("transit/encrypt/k", m{}), posts("transit/encrypt/k", m{"plaintext": "!"}),
		differing("null is not there", posts("transit/encrypt/k", m{"plaintext": nil})), posts("transit/encrypt/k", m{"plaintext": ""}), posts("transit/encrypt/k", m{"plaintext": "", "key_version": 2}), posts("transit/encrypt/k", m{"plaintext": "", "key_version": -1}), differing("in other words", posts("transit/encrypt/k", m{"plaintext": "", "key_version": "x"})),
		differing("the words of a newer Vault", posts("transit/encrypt/k", m{"plaintext": "", "nonce": "AAAA"})), posts("transit/encrypt/k", m{"plaintext": "", "context": "!"}), differing("in other words", posts("transit/encrypt/k", m{"plaintext": "", "associated_data": "!"})),
		posts("transit/decrypt/k", m{}), posts("transit/decrypt/none", m{"ciphertext": "$ciphertext"}), posts("transit/decrypt/k", m{"ciphertext": "x"}), posts("transit/decrypt/k", m{"ciphertext": "vault:v1"}), posts("transit/decrypt/k", m{"ciphertext": "vault:vx:AAAA"}),
		posts("transit/decrypt/k", m{"ciphertext": "vault:v2:AAAA"}), posts("transit/decrypt/k", m{"ciphertext": "vault:v1:!"}), posts("transit/decrypt/k", m{"ciphertext": "vault:v1:AAAA"}), posts("transit/decrypt/k", m{"ciphertext": "vault:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
		posts("transit/decrypt/k", m{"ciphertext": "vault:v0:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}), posts("transit/decrypt/k", m{"ciphertext": "vault:v-1:AAAA"}), posts("transit/decrypt/k", m{"ciphertext": "$ciphertext", "associated_data": "YQ=="}),
		posts("transit/encrypt/d", m{"plaintext": ""}), posts("transit/encrypt/c", m{"plaintext": "", "context": "YQ=="}), posts("transit/encrypt/ed", m{"plaintext": ""}), posts("transit/encrypt/h", m{"plaintext": ""}), differing("in other words", posts("transit/encrypt/rsa", m{"plaintext": "", "associated_data": "YQ=="})),
		posts("transit/encrypt/rsa", m{"plaintext": b64(strings.Repeat("x", 300))}), posts("transit/decrypt/rsa", m{"ciphertext": "vault:v1:AAAA"}),
		posts("transit/encrypt/k", m{"batch_input": []m{}}), posts("transit/encrypt/k", m{"batch_input": []m{{"plaintext": "YQ==", "reference": "r"}, {"plaintext": "!"}, {"plaintext": "", "key_version": 7}}}),
		posts("transit/encrypt/k", m{"partial_failure_response_code": 207, "batch_input": []m{{"plaintext": "YQ=="}, {"plaintext": "!"}}}), posts("transit/encrypt/k", m{"batch_input": []m{{"plaintext": "YQ==", "context": "YQ=="}, {"plaintext": "YQ=="}}}),
		posts("transit/encrypt/new1", m{"batch_input": []m{{"plaintext": "YQ==", "context": "YQ=="}}}), reads("transit/keys/new1"), posts("transit/encrypt/new2", m{"plaintext": "", "type": "ecdsa-p256"}), posts("transit/encrypt/new2", m{"plaintext": "", "type": "nope"}),
		posts("transit/encrypt/new2", m{"plaintext": "", "convergent_encryption": true}), posts("transit/encrypt/new2", m{"plaintext": "", "type": "chacha20-poly1305"}), reads("transit/keys/new2"),
		differing("in the answer of the batch, and not of the request", posts("transit/decrypt/k", m{"batch_input": []m{{"ciphertext": "$ciphertext", "reference": "r"}, {"ciphertext": "x"}, {}}})), posts("transit/decrypt/k", m{"batch_input": []m{{"ciphertext": "$ciphertext"}}}),
		posts("transit/keys/k/rotate", nil), posts("transit/rewrap/k", m{"ciphertext": "$ciphertext"}), posts("transit/rewrap/k", m{}), posts("transit/rewrap/k", m{"ciphertext": "x"}), posts("transit/rewrap/none", m{"ciphertext": "x"}), posts("transit/rewrap/k", m{"ciphertext": "$ciphertext", "key_version": 1}),
		posts("transit/rewrap/k", m{"batch_input": []m{{"ciphertext": "$ciphertext", "reference": "r"}, {"ciphertext": "x"}}}), posts("transit/keys/k/config", m{"min_decryption_version": 2}), posts("transit/decrypt/k", m{"ciphertext": "$ciphertext"}), posts("transit/rewrap/k", m{"ciphertext": "$ciphertext"}),
		differing("in other words", posts("transit/encrypt/k", m{"plaintext": "", "key_version": 1})),
		posts("transit/datakey/plaintext/k", nil), posts("transit/datakey/wrapped/k", m{"bits": 512}), posts("transit/datakey/x/k", nil), posts("transit/datakey/plaintext/k", m{"bits": 7}), posts("transit/datakey/plaintext/none", nil), posts("transit/datakey/plaintext/d", nil), posts("transit/datakey/plaintext/k", m{"context": "!"}),
	}
}

func aboutSigning() []step {
	long := b64("12345678901234567890123456789012")
	return []step{
		keeping("hmac", posts("transit/hmac/h", m{"input": "YQ=="})), posts("transit/verify/h", m{"input": "YQ==", "hmac": "$hmac"}), posts("transit/verify/h", m{"input": "Yg==", "hmac": "$hmac"}), posts("transit/hmac/h", m{}), posts("transit/hmac/h/sha2-512", m{"input": ""}), differing("Vault shows no name", posts("transit/hmac/h/md5", m{"input": ""})),
		posts("transit/hmac/none", m{"input": ""}), posts("transit/hmac/k", m{"input": ""}), posts("transit/hmac/h", m{"input": "!"}), posts("transit/hmac/h", m{"input": "", "key_version": 7}), posts("transit/hmac/h", m{"batch_input": []m{{"input": "YQ==", "reference": "r"}, {}, {"input": "!"}}}),
		posts("transit/verify/h", m{"input": "", "hmac": "x"}), posts("transit/verify/h", m{"input": "", "hmac": "vault:v1"}), posts("transit/verify/h", m{"input": "", "hmac": "vault:v7:AAAA"}), posts("transit/verify/h", m{"input": "", "hmac": "vault:v1:!"}), differing("the words of a newer Vault", posts("transit/verify/h", m{"input": ""})),
		differing("valid is there also when it is false", posts("transit/verify/h", m{"batch_input": []m{{"input": "YQ==", "hmac": "$hmac", "reference": "r"}, {"input": "Yg==", "hmac": "$hmac"}, {"hmac": "$hmac"}}})), differing("the words of a newer Vault", posts("transit/verify/h", m{"batch_input": []m{{"input": "", "hmac": "x"}, {"input": "", "signature": "x"}}})), differing("the words of a newer Vault", posts("transit/verify/h", m{"batch_input": []m{{"input": ""}}})),
		posts("transit/sign/h", m{"input": ""}), posts("transit/sign/k", m{"input": ""}), posts("transit/sign/none", m{"input": ""}), posts("transit/sign/ec/md5", m{"input": ""}), posts("transit/sign/ec", m{"input": "", "marshaling_algorithm": "x"}), posts("transit/sign/rsa", m{"input": "", "signature_algorithm": "x"}),
		posts("transit/sign/rsa", m{"input": "", "salt_length": "x"}), posts("transit/sign/rsa", m{"input": "", "salt_length": 9999}), posts("transit/sign/rsa/none", m{"input": ""}), posts("transit/sign/ec", m{"input": "!"}), posts("transit/sign/ec", m{"input": "", "key_version": 7}), differing("in other words", posts("transit/sign/edd", m{"input": ""})), posts("transit/sign/edd", m{"input": "", "context": "YQ=="}), posts("transit/sign/ec", m{"input": "", "key_version": -1}), posts("transit/hmac/h", m{"input": "", "key_version": -1}),
		keeping("signature", posts("transit/sign/ed", m{"input": "YQ=="})), posts("transit/verify/ed", m{"input": "YQ==", "signature": "$signature"}), posts("transit/verify/ed", m{"input": "Yg==", "signature": "$signature"}), posts("transit/verify/ed", m{"input": "Yg==", "signature": "x"}), posts("transit/verify/ed", m{"input": "Yg==", "signature": "vault:v1:!"}),
		posts("transit/verify/ed", m{"input": "Yg==", "signature": "vault:v7:AAAA"}), differing("in other words", posts("transit/verify/ed", m{"input": "Yg==", "signature": "vault:v0:AAAA"})), posts("transit/verify/none", m{"input": "Yg==", "signature": "x"}), posts("transit/verify/k", m{"input": "Yg==", "signature": "vault:v1:AAAA"}), differing("the words of a newer Vault", posts("transit/verify/ed", m{"input": "Yg==", "signature": "x", "hmac": "x"})),
		keeping("signature", posts("transit/sign/ec", m{"input": long, "prehashed": true, "marshaling_algorithm": "jws"})), posts("transit/verify/ec", m{"input": long, "prehashed": true, "marshaling_algorithm": "jws", "signature": "$signature"}), posts("transit/verify/ec", m{"input": long, "prehashed": true, "signature": "$signature"}),
		keeping("signature", posts("transit/sign/rsa/sha2-512", m{"input": "YQ==", "signature_algorithm": "pkcs1v15"})), posts("transit/verify/rsa/sha2-512", m{"input": "YQ==", "signature_algorithm": "pkcs1v15", "signature": "$signature"}), posts("transit/verify/rsa/sha2-512", m{"input": "YQ==", "signature": "$signature"}),
		posts("transit/sign/ed", m{"batch_input": []m{{"input": "YQ==", "reference": "r"}, {"input": "!"}, {}}}), posts("transit/sign/ed", m{"batch_input": []m{}}), keeping("signature", posts("transit/sign/ed", m{"batch_input": []m{{"input": "YQ=="}}})),
		posts("transit/verify/ed", m{"batch_input": []m{{"input": "YQ==", "signature": "$signature", "reference": "r"}, {"input": "Yg==", "signature": "$signature"}, {"input": "!", "signature": "$signature"}}}),
		posts("transit/random", nil), posts("transit/random/16", m{"format": "hex"}), posts("transit/random/x", nil), posts("transit/random", m{"bytes": 0}), posts("transit/random", m{"format": "x"}), posts("transit/random/seal/7", nil), posts("transit/hash", m{"input": "YQ=="}), posts("transit/hash/sha2-512", m{"input": "YQ==", "format": "base64"}),
		posts("transit/hash", m{}), posts("transit/hash/md5", m{"input": ""}), posts("transit/hash", m{"input": "!"}), posts("transit/hash", m{"input": "", "format": "x"}),
	}
}

func aboutMoving() []step {
	return []step{
		reads("transit/wrapping_key"), reads("transit/export/encryption-key/k"), reads("transit/export/encryption-key/none"), reads("transit/export/nope/k"), posts("transit/keys/e", m{"exportable": true, "allow_plaintext_backup": true}), posts("transit/keys/e/rotate", nil),
		reads("transit/export/encryption-key/e"), reads("transit/export/encryption-key/e/1"), reads("transit/export/encryption-key/e/latest"), reads("transit/export/encryption-key/e/7"), reads("transit/export/encryption-key/e/x"), reads("transit/export/hmac-key/e"), reads("transit/export/signing-key/e"), reads("transit/export/public-key/ec"),
		reads("transit/export/public-key/ed"), differing("the words of a newer Vault", reads("transit/export/certificate-chain/k")), keeping("backup", reads("transit/backup/e")), reads("transit/backup/none"), reads("transit/backup/k"), posts("transit/restore", m{}), differing("in other words", posts("transit/restore", m{"backup": "x"})), posts("transit/restore", m{"backup": "$backup"}),
		posts("transit/restore/e2", m{"backup": "$backup"}), differing("backup_info stays with the key that was backed up", reads("transit/keys/e2")), posts("transit/restore/e2", m{"backup": "$backup"}), differing("in other words", posts("transit/restore", m{"backup": "$backup", "name": "a/b"})), differing("any RSA key can be the destination", reads("transit/byok-export/rsa/e")), reads("transit/byok-export/rsa/k"), reads("transit/byok-export/none/e"), reads("transit/byok-export/rsa/none"),
		differing("in other words", posts("transit/keys/imp/import", m{})), posts("transit/keys/imp/import", m{"ciphertext": "AAAA"}), differing("in other words", posts("transit/keys/imp/import", m{"ciphertext": "AAAA", "type": "nope"})), posts("transit/keys/k/import", m{"ciphertext": "AAAA"}), posts("transit/keys/none/import_version", m{"ciphertext": "AAAA"}), posts("transit/keys/k/import_version", m{"ciphertext": "AAAA"}),
		reads("transit/cache-config"), posts("transit/cache-config", m{"size": 7}), posts("transit/cache-config", m{"size": 100}), reads("transit/cache-config"), reads("transit/config/keys"), posts("transit/config/keys", m{"disable_upsert": true}), reads("transit/config/keys"), posts("transit/encrypt/notmade", m{"plaintext": ""}),
	}
}
