//go:build services

package server_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/testenv"
)

// twins are rotor and a real Vault that are asked the same.
type twins struct {
	*rapid.T
	rotor, real *vaultClient
	run         int
	keys        []*twinKey
	log         []string
}

// twinKey is a key of a name at both, which the test knows something of.
type twinKey struct {
	name    string
	kind    string
	derived bool
	texts   []twinText // ciphertexts
	sums    []twinText // HMACs
	sigs    []twinText
}

// twinText is what each made of one thing.
type twinText struct {
	rotor, real string
	with        m // what it is read with
	plain       string
}

// TestVaultDifferential asks rotor and a real Vault the same random sequences, and compares status, texts of errors, members and those values that are
// not random. What differs on purpose stands in differences.
func TestVaultDifferential(t *testing.T) {
	w := newWorld(t)
	rotor, real := w.operator(), testenv.Vault(t)
	there := &vaultClient{t, real.Address + "/v1/", real.Root, http.Header{}, as(t, "")}
	runs, calls := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		d := &twins{T: rt, rotor: rotor, real: there, run: runs}
		for range rapid.IntRange(5, 25).Draw(rt, "calls") {
			d.step()
		}
		calls += len(d.log)
	})
	t.Logf("%d calls", calls)
}

// step makes one call.
func (d *twins) step() {
	if len(d.keys) == 0 {
		d.create()
		return
	}
	steps := []func(){
		d.create, d.read, d.rotate, d.configure, d.trim, d.delete, d.encrypt, d.encrypt, d.encryptBatch, d.decrypt, d.decrypt, d.decryptBatch, d.decryptBad, d.rewrap, d.dataKey,
		d.hmac, d.verifyHMAC, d.sign, d.verify, d.export, d.backup, d.tools,
	}
	rapid.SampledFrom(steps).Draw(d.T, "step")()
}

func (d *twins) key() *twinKey { return rapid.SampledFrom(d.keys).Draw(d.T, "key") }

func (d *twins) coin(label string, of int) bool {
	return rapid.IntRange(0, of-1).Draw(d.T, label) == 0
}

// ask calls both with one body, or one for each, and compares.
func (d *twins) ask(method, path string, body, realBody m) (r, v answer) {
	d.Helper()
	r = d.rotor.do(method, path, body)
	if realBody == nil {
		realBody = body
	}
	v = d.real.do(method, path, realBody)
	b, _ := json.Marshal(body) // what was sent already
	d.log = append(d.log, fmt.Sprintf("%s %s %s -> %d", method, path, b, v.status))
	if why := compare(path, r, v); why != "" {
		d.Fatalf("%s\n%s\nrotor: %d %.600s\nVault: %d %.600s", why, strings.Join(d.log, "\n"), r.status, r.text, v.status, v.text)
	}
	return r, v
}

// kinds are the types of keys, the cheap ones more often.
var kinds = []string{"aes256-gcm96", "aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "rsa-2048", "hmac"}

func (d *twins) create() {
	k := &twinKey{name: fmt.Sprintf("d%d-%d", d.run, len(d.keys)), kind: rapid.SampledFrom(kinds).Draw(d.T, "kind")}
	body := m{"type": k.kind}
	for _, flag := range []string{"exportable", "allow_plaintext_backup"} {
		if d.coin(flag, 2) {
			body[flag] = true
		}
	}
	switch {
	case slices.Contains(kinds[:4], k.kind) && d.coin("convergent", 4):
		k.derived, body["derived"], body["convergent_encryption"] = true, true, true
	case (slices.Contains(kinds[:4], k.kind) || k.kind == "ed25519") && d.coin("derived", 3):
		k.derived, body["derived"] = true, true
	case k.kind == "hmac":
		body["key_size"] = rapid.SampledFrom([]int{32, 33, 512}).Draw(d.T, "size")
	}
	d.mistake(body, m{"type": "nonsense"}, m{"derived": true, "type": "rsa-2048"}, m{"derived": true, "type": "hmac", "key_size": 32}, m{"convergent_encryption": true, "derived": false}, m{"type": "hmac", "key_size": 16})
	if len(d.keys) > 0 && d.coin("again", 6) {
		k.name = d.key().name
	}
	r, v := d.ask("POST", "transit/keys/"+k.name, body, nil)
	if r.status/100 == 2 && v.status/100 == 2 && !slices.ContainsFunc(d.keys, func(o *twinKey) bool { return o.name == k.name }) {
		d.keys = append(d.keys, k)
	}
}

// none takes a member away.
type none struct{}

// mistake makes at most one in a request: with two, which of them is told is nobody's promise.
func (d *twins) mistake(body m, of ...m) {
	if _, may := body["key_version"]; may || !d.coin("mistake", 3) { // the version may be a mistake already
		return
	}
	for name, value := range rapid.SampledFrom(of).Draw(d.T, "what") {
		if _, take := value.(none); take {
			delete(body, name)
		} else {
			body[name] = value
		}
	}
}

func (d *twins) read() {
	d.ask("GET", "transit/keys/"+d.key().name, nil, nil)
}

func (d *twins) rotate() {
	d.ask("POST", "transit/keys/"+d.key().name+"/rotate", nil, nil)
}

func (d *twins) configure() {
	body := m{}
	for _, field := range []string{"min_decryption_version", "min_encryption_version"} {
		if d.coin(field, 3) {
			body[field] = rapid.IntRange(0, 3).Draw(d.T, field)
			break // two can be two mistakes
		}
	}
	if len(body) == 0 {
		d.mistake(body, m{"min_decryption_version": -1}, m{"min_encryption_version": -1}, m{"min_decryption_version": 99}, m{"min_encryption_version": 99})
	}
	for _, field := range []string{"deletion_allowed", "exportable", "allow_plaintext_backup"} {
		if d.coin(field, 3) {
			body[field] = d.coin("value", 2)
		}
	}
	if d.coin("period", 6) {
		body["auto_rotate_period"] = rapid.SampledFrom([]string{"0", "1h", "90000"}).Draw(d.T, "period")
	}
	d.ask("POST", "transit/keys/"+d.key().name+"/config", body, nil)
}

func (d *twins) trim() {
	d.ask("POST", "transit/keys/"+d.key().name+"/trim", m{"min_available_version": rapid.IntRange(1, 3).Draw(d.T, "min")}, nil)
}

func (d *twins) delete() {
	k := d.key()
	_, v := d.ask("DELETE", "transit/keys/"+k.name, nil, nil)
	if v.status == http.StatusNoContent {
		d.keys = slices.DeleteFunc(d.keys, func(o *twinKey) bool { return o == k })
		d.ask("GET", "transit/keys/"+k.name, nil, nil)
		d.ask("POST", "transit/decrypt/"+k.name, m{"ciphertext": "vault:v1:AAAA"}, nil)
	}
}

var plains = []string{"", "YQ==", "aGVsbG8gd29ybGQ="}

// item is one thing to encrypt, right or nearly so.
func (d *twins) item(k *twinKey) m {
	body := m{"plaintext": rapid.SampledFrom(plains).Draw(d.T, "plaintext")}
	if k.derived {
		body["context"] = rapid.SampledFrom([]string{"Yw==", "ZA=="}).Draw(d.T, "context")
	}
	if slices.Contains(kinds[:4], k.kind) && d.coin("associated", 4) {
		body["associated_data"] = "Yg=="
	}
	if d.coin("version", 4) {
		body["key_version"] = rapid.IntRange(0, 3).Draw(d.T, "version")
	}
	if !k.encrypts() { // which is a mistake itself
		return m{"plaintext": "YQ=="}
	}
	d.mistake(body, m{"plaintext": none{}}, m{"plaintext": "%%%"}, m{"plaintext": "YQ"}, m{"context": none{}}, m{"context": "!"}, m{"key_version": -1}, m{"key_version": 99})
	return body
}

func (k *twinKey) encrypts() bool {
	return slices.Contains(kinds[:4], k.kind) || strings.HasPrefix(k.kind, "rsa")
}

func (k *twinKey) signs() bool {
	return !slices.Contains(kinds[:4], k.kind) && k.kind != "hmac"
}

// params are what an item is read with.
func params(item m) m {
	out := m{}
	for _, name := range []string{"context", "associated_data", "nonce"} {
		if v, ok := item[name]; ok {
			out[name] = v
		}
	}
	return out
}

func (d *twins) encrypt() {
	k := d.key()
	body := d.item(k)
	r, v := d.ask("POST", "transit/encrypt/"+k.name, body, nil)
	if v.status == http.StatusOK {
		plain, _ := body["plaintext"].(string)
		k.texts = append(k.texts, twinText{r.str("ciphertext"), v.str("ciphertext"), params(body), plain})
	}
}

func (d *twins) encryptBatch() {
	k := d.key()
	var items []m
	for range rapid.IntRange(0, 4).Draw(d.T, "items") {
		item := d.item(k)
		if d.coin("reference", 3) {
			item["reference"] = "r"
		}
		items = append(items, item)
	}
	body := m{"batch_input": items}
	if d.coin("partial", 4) {
		body["partial_failure_response_code"] = 207
	}
	d.ask("POST", "transit/encrypt/"+k.name, body, nil)
}

// with joins parameters and one more member.
func with(p m, name string, value any) m {
	out := maps.Clone(p)
	out[name] = value
	return out
}

func (d *twins) some(of []twinText) (twinText, bool) {
	if len(of) == 0 {
		return twinText{}, false
	}
	return rapid.SampledFrom(of).Draw(d.T, "text"), true
}

func (d *twins) decrypt() {
	k := d.key()
	if x, ok := d.some(k.texts); ok {
		d.ask("POST", "transit/decrypt/"+k.name, with(x.with, "ciphertext", x.rotor), with(x.with, "ciphertext", x.real))
	}
}

func (d *twins) decryptBatch() {
	k := d.key()
	var here, there []m
	for range rapid.IntRange(1, 3).Draw(d.T, "items") {
		x, ok := d.some(k.texts)
		if !ok {
			return
		}
		if d.coin("bad", 4) {
			x.rotor, x.real = "vault:v1:AAAA", "vault:v1:AAAA"
		}
		here, there = append(here, with(x.with, "ciphertext", x.rotor)), append(there, with(x.with, "ciphertext", x.real))
	}
	d.ask("POST", "transit/decrypt/"+k.name, m{"batch_input": here}, m{"batch_input": there})
}

// decryptBad changes a text that is right.
func (d *twins) decryptBad() {
	k := d.key()
	body := m{}
	if k.derived {
		body["context"] = "Yw=="
	}
	x, ok := d.some(k.texts)
	how := rapid.IntRange(0, 8).Draw(d.T, "how")
	if !ok || how < 6 {
		body["ciphertext"] = []string{"", "vault:v1", "vault:v1:%%%", "vault:v9:AAAA", "vault:vx:AAAA", "nonsense", "vault:v1:AAAA", "vault:v-1:AAAA", "vault:v1:" + b64(strings.Repeat("x", 60))}[how]
		d.ask("POST", "transit/decrypt/"+k.name, body, nil)
		return
	}
	change := []func(string) string{
		func(s string) string { return s[:9] + flip(s[9:]) }, func(s string) string { return strings.Replace(s, "vault:v", "vault:v0", 1) }, func(s string) string { return s[:len(s)-8] },
	}[how-6]
	d.ask("POST", "transit/decrypt/"+k.name, with(x.with, "ciphertext", change(x.rotor)), with(x.with, "ciphertext", change(x.real)))
}

// flip changes a bit in the middle of what is in base64.
func flip(s string) string {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) == 0 {
		return s
	}
	b[len(b)/2] ^= 1
	return base64.StdEncoding.EncodeToString(b)
}

func (d *twins) rewrap() {
	k := d.key()
	x, ok := d.some(k.texts)
	if !ok || x.with["associated_data"] != nil { // Vault of this version cannot
		return
	}
	r, v := d.ask("POST", "transit/rewrap/"+k.name, with(x.with, "ciphertext", x.rotor), with(x.with, "ciphertext", x.real))
	if v.status == http.StatusOK {
		k.texts = append(k.texts, twinText{r.str("ciphertext"), v.str("ciphertext"), x.with, x.plain})
	}
}

func (d *twins) dataKey() {
	k := d.key()
	body := m{}
	if k.derived {
		body["context"] = "Yw=="
	}
	if d.coin("bits", 2) {
		body["bits"] = rapid.SampledFrom([]int{0, 128, 256, 512, 100}).Draw(d.T, "bits")
	}
	how := rapid.SampledFrom([]string{"plaintext", "wrapped"}).Draw(d.T, "how")
	if !k.encrypts() {
		body = m{}
	} else if len(body) < 2 && d.coin("neither", 8) {
		how = "nonsense"
	}
	r, v := d.ask("POST", "transit/datakey/"+how+"/"+k.name, body, nil)
	if len(r.str("plaintext")) != len(v.str("plaintext")) {
		d.Fatalf("data keys of %d and %d characters", len(r.str("plaintext")), len(v.str("plaintext")))
	}
}

var hashNames = []string{"sha1", "sha2-224", "sha2-256", "sha2-384", "sha2-512", "sha3-224", "sha3-256", "sha3-384", "sha3-512"}

// message is one to sign or authenticate, right or nearly so.
func (d *twins) message(k *twinKey, hash string) m {
	body := m{"input": rapid.SampledFrom(plains).Draw(d.T, "input")}
	if d.coin("hash", 2) {
		body[hash] = rapid.SampledFrom(hashNames).Draw(d.T, "hash")
	}
	if d.coin("version", 4) {
		body["key_version"] = rapid.IntRange(0, 3).Draw(d.T, "version")
	}
	if k.derived {
		body["context"] = "Yw=="
	}
	return body
}

func (d *twins) hmac() {
	k := d.key()
	body := d.message(k, "algorithm") // as it is called in every version of Vault
	d.mistake(body, m{"input": none{}}, m{"input": "%%%"}, m{"algorithm": "md5"}, m{"key_version": -1}, m{"key_version": 99})
	r, v := d.ask("POST", "transit/hmac/"+k.name, body, nil)
	if v.status == http.StatusOK {
		delete(body, "key_version")
		k.sums = append(k.sums, twinText{r.str("hmac"), v.str("hmac"), body, ""})
	}
}

func (d *twins) verifyHMAC() {
	k := d.key()
	x, ok := d.some(k.sums)
	switch {
	case !ok || d.coin("bad", 4):
		bad := rapid.SampledFrom([]string{"", "vault:v1", "vault:v1:%%%", "vault:v9:AAAA", "vault:vx:AAAA", "nonsense", "vault:v1:AAAA"}).Draw(d.T, "hmac")
		d.ask("POST", "transit/verify/"+k.name, m{"input": "YQ==", "hmac": bad}, nil)
	default:
		if d.coin("other", 4) {
			x.with = with(x.with, "input", "b3RoZXI=")
		}
		d.ask("POST", "transit/verify/"+k.name, with(x.with, "hmac", x.rotor), with(x.with, "hmac", x.real))
	}
}

func (d *twins) sign() {
	k := d.key()
	body := d.message(k, "hash_algorithm")
	for name, values := range map[string][]string{"signature_algorithm": {"pss", "pkcs1v15"}, "marshaling_algorithm": {"asn1", "jws"}, "salt_length": {"auto", "hash", "20"}} {
		if d.coin(name, 3) {
			body[name] = rapid.SampledFrom(values).Draw(d.T, name)
		}
	}
	if slices.Contains([]string{"rsa-2048", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521"}, k.kind) && d.coin("prehashed", 4) {
		body["prehashed"], body["hash_algorithm"], body["input"] = true, "sha2-256", base64.StdEncoding.EncodeToString(make([]byte, 32))
	}
	if !k.signs() { // which is a mistake itself
		d.ask("POST", "transit/sign/"+k.name, m{"input": "YQ=="}, nil)
		return
	}
	d.mistake(body, m{"input": "%%%"}, m{"hash_algorithm": "md5"}, m{"marshaling_algorithm": "x"}, m{"salt_length": "x"}, m{"salt_length": "-7"}, m{"key_version": 99}, m{"key_version": -1}, m{"context": none{}})
	r, v := d.ask("POST", "transit/sign/"+k.name, body, nil)
	if v.status == http.StatusOK {
		delete(body, "key_version")
		k.sigs = append(k.sigs, twinText{r.str("signature"), v.str("signature"), body, ""})
	}
}

func (d *twins) verify() {
	k := d.key()
	x, ok := d.some(k.sigs)
	switch {
	case !ok || d.coin("bad", 4):
		bad := rapid.SampledFrom([]string{"", "vault:v1", "vault:v1:%%%", "vault:v9:AAAA", "vault:vx:AAAA", "nonsense", "vault:v1:AAAA"}).Draw(d.T, "signature")
		body := m{"input": "YQ==", "signature": bad}
		if k.derived {
			body["context"] = "Yw=="
		}
		d.ask("POST", "transit/verify/"+k.name, body, nil)
	default:
		if d.coin("other", 4) {
			x.with = with(x.with, "input", base64.StdEncoding.EncodeToString([]byte(strings.Repeat("other", 64))[:32]))
		}
		d.ask("POST", "transit/verify/"+k.name, with(x.with, "signature", x.rotor), with(x.with, "signature", x.real))
	}
}

func (d *twins) export() {
	kind := rapid.SampledFrom([]string{"encryption-key", "signing-key", "hmac-key", "nonsense"}).Draw(d.T, "export")
	d.ask("GET", "transit/export/"+kind+"/"+d.key().name+rapid.SampledFrom([]string{"", "/latest", "/1", "/3"}).Draw(d.T, "version"), nil, nil)
}

func (d *twins) backup() {
	d.ask("GET", "transit/backup/"+d.key().name, nil, nil)
}

func (d *twins) tools() {
	switch rapid.IntRange(0, 3).Draw(d.T, "tool") {
	case 0:
		d.ask("POST", "transit/hash", m{"input": rapid.SampledFrom(plains).Draw(d.T, "input"), "algorithm": rapid.SampledFrom(append(hashNames, "md5")).Draw(d.T, "hash"), "format": rapid.SampledFrom([]string{"hex", "base64"}).Draw(d.T, "format")}, nil)
	case 1:
		d.ask("POST", "transit/random/"+fmt.Sprint(rapid.SampledFrom([]int{0, 7, 32}).Draw(d.T, "bytes")), m{"format": rapid.SampledFrom([]string{"hex", "base64", "x"}).Draw(d.T, "format")}, nil)
	case 2:
		d.ask("LIST", "transit/keys", nil, nil)
	case 3:
		missing := rapid.SampledFrom([]string{"keys/%s/rotate", "keys/%s/config", "encrypt/%s", "decrypt/%s", "rewrap/%s", "hmac/%s", "sign/%s", "verify/%s", "datakey/wrapped/%s"}).Draw(d.T, "missing")
		if missing != "encrypt/%s" { // which makes it
			d.ask("POST", "transit/"+fmt.Sprintf(missing, "missing"), m{"plaintext": "YQ==", "input": "YQ==", "signature": "x", "ciphertext": "vault:v1:AAAA"}, nil)
		}
	}
}

// random are members whose values nobody can foresee; of their members the types are compared.
var random = []string{"ciphertext", "signature", "hmac", "public_key", "creation_time", "random_bytes", "backup", "time", "plaintext_key"}

// compare says how an answer of rotor is not as Vault's; empty: it is.
func compare(path string, r, v answer) string {
	for _, d := range differences {
		if d.path.MatchString(path) && d.is(r, v) {
			return ""
		}
	}
	if v.status == http.StatusInternalServerError && r.status >= 207 { // Vault calls many mistakes of callers its own
		return ""
	}
	if r.status != v.status {
		return fmt.Sprintf("status %d, Vault %d", r.status, v.status)
	}
	if a, b := said(r), said(v); a != b {
		return fmt.Sprintf("it says %q, Vault %q", a, b)
	}
	return lacks(path, "data", r.body["data"], v.body["data"])
}

// said is the text of an answer's errors, in one form.
func said(a answer) string {
	return strings.Join(strings.Fields(strings.NewReplacer("1 error occurred:", "", "* ", "").Replace(a.errors())), " ")
}

// lacks says what of Vault's members is not in rotor's, or of another type or value. What rotor has more is its own.
func lacks(path, name string, r, v any) string {
	switch v := v.(type) {
	case map[string]any:
		got, ok := r.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %v, Vault %v", name, r, v)
		}
		for member, value := range v {
			if why := lacks(path, member, got[member], value); why != "" {
				return why
			}
		}
		return ""
	case []any:
		got, ok := r.([]any)
		if !ok || len(got) != len(v) && name != "keys" { // lists of all names hold those of other runs
			return fmt.Sprintf("%s is %v, Vault %v", name, r, v)
		}
		for i := range got {
			if i < len(v) && name != "keys" {
				if why := lacks(path, name, got[i], v[i]); why != "" {
					return why
				}
			}
		}
		return ""
	}
	if _, number := v.(float64); slices.Contains(random, name) || number && regexp.MustCompile(`^[0-9]+$`).MatchString(name) || strings.Contains(path, "/export/") && name != "name" && name != "type" ||
		strings.Contains(path, "/datakey/") {
		if fmt.Sprintf("%T", r) != fmt.Sprintf("%T", v) {
			return fmt.Sprintf("%s is a %T, Vault's a %T", name, r, v)
		}
		return ""
	}
	if r != v {
		return fmt.Sprintf("%s is %v, Vault %v", name, r, v)
	}
	return ""
}

// differences are where rotor answers otherwise on purpose.
var differences = []struct {
	why  string
	path *regexp.Regexp
	is   func(r, v answer) bool
}{
	{"Vault prints the number of a hash in place of its name", regexp.MustCompile(`^transit/(hmac|verify)/`), func(r, v answer) bool {
		return r.status == v.status && strings.HasPrefix(said(r), "unsupported algorithm") && strings.HasPrefix(said(v), "unsupported algorithm")
	}},
}
