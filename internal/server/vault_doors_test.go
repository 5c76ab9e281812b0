package server_test

import (
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
	rotorv1 "github.com/rotorkms/rotor/proto/rotor/v1"
)

// doors are the two ways to a server's keys: Vault's API, and rotor's own. Each key has a twin; a step is made through one door with the one and through the other
// with its twin, and which of them is which is drawn anew each time, so that both keys know both doors. rotor's own is the native protocol for what it has about
// keys of Vault's clients (show, rotate, undelete), and for their use, which it refuses, the use cases that stand behind every protocol.
type doors struct {
	*rapid.T
	vault  *vaultClient
	native rotorv1.KeyServiceClient
	kms    *kms.Service
	caller policy.Caller
	run    int
	made   int
	keys   []*doorKey
	log    []string
}

// doorKey is a key and its twin, and what was made with each.
type doorKey struct {
	names            [2]string
	kind             doorKind
	derived          bool
	imported         bool
	texts, sums, sig []doorText
	halves           []secret.Bytes // that came in without their private half, which may come yet
}

// doorKind is a type of keys.
type doorKind struct {
	name      string
	algorithm suite.Algorithm
	aead      bool
	rsa       bool
}

// doorText is a ciphertext, an HMAC or a signature of each twin.
type doorText struct {
	of      [2]string
	context string
	data    string // associated
	plain   string // or the input
	hash    string
	with    m    // what else it is verified with
	sound   bool // it is as it was made
}

var doorKinds = []doorKind{
	{"aes256-gcm96", suite.AES256GCM, true, false}, {"aes256-gcm96", suite.AES256GCM, true, false}, {"aes128-gcm96", suite.AES128GCM, true, false},
	{"chacha20-poly1305", suite.ChaCha20Poly1305, true, false}, {"ed25519", suite.Ed25519, false, false}, {"ecdsa-p256", suite.ES256, false, false},
	{"hmac", suite.HMAC, false, false}, {"rsa-2048", suite.RSA2048, false, true}, {"mldsa-44", suite.MLDSA44, false, false},
}

// bounded has rapid check so many times, unless the command line says otherwise, and leave no file: the server remembers earlier runs, so that none repeats another.
// The flags are the process's, so a test that calls it is not parallel.
func bounded(t *testing.T, checks string) {
	t.Helper()
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.nofailfile": "true", "rapid.shrinktime": "5s"} {
		if given[name] {
			continue
		}
		f := flag.Lookup(name)
		was := f.Value.String()
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Value.Set(was) })
	}
}

// TestVaultTwoDoors makes the same random calls through Vault's API and through rotor's own, and compares outcomes, reasons of refusals, versions, plaintexts and, after
// every step, what the native protocol tells of both keys. What one door made, the other opens.
func TestVaultTwoDoors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.operator()
	bounded(t, "15")
	runs, calls := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		d := &doors{
			T: rt, vault: c, native: w.client().Admin().Keys, kms: w.KMS(), caller: policy.Caller{Kind: policy.KindCredential, Name: "credential/operator"}, run: runs,
		}
		for range rapid.IntRange(10, 40).Draw(rt, "calls") {
			d.step()
		}
		calls += len(d.log)
	})
	t.Logf("%d runs, %d calls", runs, calls)
	if !t.Failed() && calls < 200 {
		t.Errorf("only %d calls", calls)
	}
}

// even draws a number of a byte, none more often than another, which IntRange prefers small ones to.
var even = rapid.Custom(func(t *rapid.T) (n int) {
	for range 8 {
		if n *= 2; rapid.Bool().Draw(t, "bit") {
			n++
		}
	}
	return n
})

func (d *doors) step() {
	if len(d.keys) == 0 {
		d.create()
	} else {
		steps := []func(){
			d.create, d.configure, d.configure, d.rotate, d.rotate, d.trim, d.delete, d.setAside, d.backup, d.list, d.encrypt, d.encrypt, d.encryptBatch, d.decrypt, d.decrypt, d.decryptBatch,
			d.rewrap, d.rewrapBatch, d.dataKey, d.hmac, d.hmacBatch, d.verifyHMAC, d.verifyHMACBatch, d.sign, d.signBatch, d.verify, d.verifyBatch, d.nothing,
			d.importKey, d.importKey, d.importVersion, d.importVersion, d.importVersion, d.certify, d.certify, d.certify,
		}
		steps[even.Draw(d.T, "step")%len(steps)]()
	}
	for _, k := range d.keys {
		d.alike(k)
	}
}

func (d *doors) key() *doorKey { return d.keys[rapid.IntRange(0, len(d.keys)-1).Draw(d.T, "key")] }

// keyThat prefers keys that a step can be done with.
func (d *doors) keyThat(can func(*doorKey) bool) *doorKey {
	all := slices.DeleteFunc(slices.Clone(d.keys), func(k *doorKey) bool { return !can(k) })
	if len(all) == 0 || d.coin("any", 8) {
		return d.key()
	}
	return all[rapid.IntRange(0, len(all)-1).Draw(d.T, "able key")]
}

// side is which of two twins goes through Vault's API.
func (d *doors) side() int { return rapid.IntRange(0, 1).Draw(d.T, "side") }

func (d *doors) coin(label string, of int) bool {
	return rapid.IntRange(0, of-1).Draw(d.T, label) == 0
}

func (d *doors) ref(name string) kms.Ref {
	return kms.Ref{Namespace: "default", Name: "transit/" + name}
}

// ask goes through Vault's door.
func (d *doors) ask(method, path string, body m) answer {
	a := d.vault.do(method, "transit/"+path, body)
	d.log = append(d.log, fmt.Sprintf("%s %s %v -> %d %.200s", method, path, body, a.status, a.text))
	return a
}

func (d *doors) fatal(format string, args ...any) {
	d.Helper()
	d.Fatalf(format+"\n%s", append(args, strings.Join(d.log, "\n"))...)
}

// agree compares an answer with what came out of the other door; good: both did it.
func (d *doors) agree(a answer, err error) (good bool) {
	d.Helper()
	d.log = append(d.log, fmt.Sprintf("    own: %v", err))
	if err == nil && a.status/100 == 2 {
		return true
	}
	if why := disagrees(a.status, a.errors(), err); why != "" {
		d.fatal("%s: %d %s, own %v", why, a.status, a.text, err)
	}
	return false
}

// doorWords are what Vault's door says of a fault that has no words of its own.
var doorWords = map[fault.Code][]string{
	fault.NotFound:       {"not found", "could not be found", "invalid key name"},
	fault.UnknownVersion: {"version is too new"},
	fault.BelowFloor:     {"too old"},
	fault.DecryptFailed:  {"message authentication failed"},
	fault.Exists:         {"already exists"},
}

// disagrees says how an answer is not the one to an error; empty: it is.
func disagrees(status int, text string, err error) string {
	switch {
	case (err == nil) != (status/100 == 2 && text == ""):
		return "one door did it and the other not"
	case err == nil:
		return ""
	case fault.CodeOf(err) == fault.Internal || status >= 500:
		return "a fault of ours"
	case fault.CodeOf(err) == fault.NotFound && status == http.StatusNotFound && text == "":
		return ""
	}
	words := doorWords[fault.CodeOf(err)]
	if own := transit.Text(err); own != "" {
		words = []string{own}
	}
	if len(words) == 0 {
		words = []string{string(fault.CodeOf(err))}
	}
	for _, w := range words {
		if strings.Contains(text, w) {
			return ""
		}
	}
	return fmt.Sprintf("%q is none of %q", text, words)
}

// alike compares what the native protocol tells of twins, and what Vault's door tells of one of them.
func (d *doors) alike(k *doorKey) {
	d.Helper()
	var told [2]string
	for i, name := range k.names {
		out, err := d.native.Get(d.vault.t.Context(), connect.NewRequest(&rotorv1.KeyRef{Name: "transit/" + name}))
		if err != nil {
			d.fatal("%s: %v", name, err)
		}
		told[i] = anonymous(out.Msg)
		if i == 0 {
			d.shown(name, out.Msg)
		}
	}
	if told[0] != told[1] {
		d.fatal("twins differ: %s", apart(told[0], told[1]))
	}
	if a, b := d.foreign(k.names[0]), d.foreign(k.names[1]); a != b {
		d.fatal("twins differ: %s and %s", a, b)
	}
}

// apart is where two texts begin to differ.
func apart(a, b string) string {
	at := 0
	for at < len(a) && at < len(b) && a[at] == b[at] {
		at++
	}
	from := max(at-60, 0)
	return fmt.Sprintf("%.120s\n%.120s", a[from:], b[from:])
}

// anonymous is a key without what is its own: names, times and numbers that nobody chose.
func anonymous(k *rotorv1.Key) string {
	k.Id, k.Name, k.Created = "", "", nil
	there := func(t **timestamppb.Timestamp) {
		if *t != nil {
			*t = &timestamppb.Timestamp{Seconds: 1}
		}
	}
	there(&k.BackedUp)
	there(&k.Due)
	for _, v := range k.Versions {
		v.Handle, v.Public = 0, nil
		for _, t := range []**timestamppb.Timestamp{&v.Created, &v.Activated, &v.Retired, &v.Originated, &v.LastProtected, &v.LastProcessed} {
			there(t)
		}
	}
	t := k.GetTransit()
	t.Former = ""
	for _, at := range []**timestamppb.Timestamp{&t.SoftDeleted, &t.Deleted, &t.Restored, &t.BackedUp} {
		there(at)
	}
	return protojson.MarshalOptions{Multiline: false}.Format(k)
}

// shown compares a key as Vault's door shows it with the key.
func (d *doors) shown(name string, k *rotorv1.Key) {
	d.Helper()
	a := d.vault.do("GET", "transit/keys/"+name, nil)
	t := k.GetTransit()
	seen := 0
	for _, v := range k.GetVersions() {
		if v.GetNumber() >= max(t.GetMinDecryption(), t.GetMinAvailable(), 1) {
			seen++
		}
	}
	want := map[string]any{
		"latest_version": float64(k.GetPrimary()), "min_decryption_version": float64(max(t.GetMinDecryption(), 1)), "min_encryption_version": float64(t.GetMinEncryption()),
		"min_available_version": float64(t.GetMinAvailable()), "deletion_allowed": t.GetDeletionAllowed(), "exportable": t.GetExportable(), "allow_plaintext_backup": t.GetPlaintextBackup(),
		"derived": t.GetDerived(), "soft_deleted": t.GetSoftDeleted() != nil,
	}
	for member, value := range want {
		if a.members()[member] != value {
			d.fatal("%s: %s is %v at Vault's door and %v at rotor's", name, member, a.members()[member], value)
		}
	}
	if versions, ok := a.members()["keys"].(m); ok && len(versions) != seen {
		d.fatal("%s: %d versions at Vault's door and %d at rotor's", name, len(versions), seen)
	}
}

// kind draws a type of keys.
func (d *doors) kind() doorKind {
	kind := doorKinds[rapid.IntRange(0, len(doorKinds)-1).Draw(d.T, "kind")]
	if kind.rsa && !d.coin("dear", 3) {
		kind = doorKinds[0]
	}
	return kind
}

// twins draws names for a new key and its twin: those of others now and then.
func (d *doors) twins(kind doorKind) *doorKey {
	d.made++
	k := &doorKey{names: [2]string{fmt.Sprintf("a%d-%d", d.run, d.made), fmt.Sprintf("b%d-%d", d.run, d.made)}, kind: kind}
	if len(d.keys) > 0 && d.coin("again", 6) {
		k.names = d.key().names
	}
	return k
}

func (d *doors) create() {
	i, kind := d.side(), d.kind()
	k := d.twins(kind)
	spec := kms.TransitSpec{Ref: d.ref(k.names[1-i]), Algorithm: kind.algorithm}
	_, spec.Transit.Spelling, _ = transit.ParseType(kind.name, "")
	body := m{"type": kind.name}
	set := func(name string, to *bool, of int) {
		if *to = d.coin(name, of); *to {
			body[name] = true
		}
	}
	set("exportable", &spec.Transit.Exportable, 2)
	set("allow_plaintext_backup", &spec.Transit.PlaintextBackup, 2)
	set("derived", &spec.Transit.Derived, 4)
	if spec.Transit.Derived && d.coin("convergent", 2) {
		body["convergent_encryption"], spec.Transit.Convergent = true, transit.ConvergentVersion
	}
	k.derived = spec.Transit.Derived
	a := d.ask("POST", "keys/"+k.names[i], body)
	_, created, err := d.kms.TransitCreate(d.vault.t.Context(), d.caller, spec)
	if underived(a, err) || !d.agree(a, err) {
		return
	}
	if warned := a.body["warnings"] != nil; warned == created {
		d.fatal("it was there already at one door alone: %s", a.text)
	}
	if created {
		d.keys = append(d.keys, k)
	}
}

// underived says whether a key was refused as those of its type cannot be derived, which the front end says in Vault's words.
func underived(a answer, err error) bool {
	return a.status == http.StatusBadRequest && strings.Contains(a.text, "not supported for keys of type") && fault.CodeOf(err) == fault.Invalid
}

func (d *doors) configure() {
	k, i := d.key(), d.side()
	var ch kms.TransitChange
	body := m{}
	number := func(name string, to **uint32) {
		if d.coin(name, 2) {
			n := uint32(rapid.IntRange(0, 3).Draw(d.T, name))
			*to, body[name] = &n, n
		}
	}
	number("min_decryption_version", &ch.MinDecryption)
	number("min_encryption_version", &ch.MinEncryption)
	for name, to := range map[string]**bool{"deletion_allowed": &ch.DeletionAllowed} {
		if d.coin(name, 2) {
			is := !d.coin("not", 4)
			*to, body[name] = &is, is
		}
	}
	a := d.ask("POST", "keys/"+k.names[i]+"/config", body)
	_, err := d.kms.TransitConfigure(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), ch)
	d.agree(a, err)
}

func (d *doors) rotate() { d.rotated(d.key()) }

func (d *doors) rotated(k *doorKey) {
	i := d.side()
	a := d.ask("POST", "keys/"+k.names[i]+"/rotate", nil)
	out, err := d.native.Rotate(d.vault.t.Context(), connect.NewRequest(&rotorv1.RotateRequest{Key: &rotorv1.KeyRef{Name: "transit/" + k.names[1-i]}}))
	d.log = append(d.log, fmt.Sprintf("    own: %v", err))
	if (err == nil) != (a.status == http.StatusOK) {
		d.fatal("rotated through one door alone: %d %s, own %v", a.status, a.text, err)
	}
	if err == nil && a.members()["latest_version"] != float64(out.Msg.GetPrimary()) {
		d.fatal("version %v and %d", a.members()["latest_version"], out.Msg.GetPrimary())
	}
}

func (d *doors) trim() {
	k, i, n := d.key(), d.side(), rapid.IntRange(0, 3).Draw(d.T, "min")
	a := d.ask("POST", "keys/"+k.names[i]+"/trim", m{"min_available_version": n})
	_, err := d.kms.TransitTrim(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), uint32(n))
	d.agree(a, err)
}

// delete deletes, and now and then brings back.
func (d *doors) delete() {
	k, i := d.key(), d.side()
	a := d.ask("DELETE", "keys/"+k.names[i], nil)
	gone, err := d.kms.TransitDelete(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]))
	if !d.agree(a, err) {
		return
	}
	d.keys = slices.DeleteFunc(d.keys, func(o *doorKey) bool { return o == k })
	for _, name := range k.names {
		if a := d.ask("GET", "keys/"+name, nil); a.status != http.StatusNotFound {
			d.fatal("%s is still there", name)
		}
	}
	if d.coin("for good", 2) {
		return
	}
	former := [2]string{}
	former[1-i] = gone.Name
	for other := range d.kms.All() {
		if other.Deleted() && other.Transit.Former == "transit/"+k.names[i] {
			former[i] = other.Name
		}
	}
	for _, name := range former {
		if _, err := d.native.Undelete(d.vault.t.Context(), connect.NewRequest(&rotorv1.UndeleteRequest{Key: &rotorv1.KeyRef{Name: name}})); err != nil {
			d.fatal("undelete %s: %v", name, err)
		}
	}
	d.keys = append(d.keys, k)
}

// setAside puts a key aside, or takes one up again.
func (d *doors) setAside() {
	k, i := d.key(), d.side()
	if d.coin("back", 2) {
		a := d.ask("POST", "keys/"+k.names[i]+"/soft-delete-restore", nil)
		_, err := d.kms.TransitUnsoftDelete(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]))
		d.agree(a, err)
		return
	}
	a := d.ask("DELETE", "keys/"+k.names[i]+"/soft-delete", nil)
	_, err := d.kms.TransitSoftDelete(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]))
	d.agree(a, err)
}

// backup takes a backup through each door and restores it through the other, under another name: what was made before opens there, too.
func (d *doors) backup() {
	k, i := d.key(), d.side()
	a := d.ask("GET", "backup/"+k.names[i], nil)
	own, err := d.kms.TransitBackup(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]))
	if !d.agree(a, err) {
		return
	}
	d.made++
	to := *k
	to.texts, to.sums, to.sig = slices.Clone(k.texts), slices.Clone(k.sums), slices.Clone(k.sig)
	to.names[i], to.names[1-i] = fmt.Sprintf("c%d-%d", d.run, d.made), fmt.Sprintf("d%d-%d", d.run, d.made)
	_, err = d.kms.TransitRestore(d.vault.t.Context(), d.caller, kms.TransitRestoring{Namespace: "default", Mount: "transit", Name: to.names[i], Backup: secret.Copy([]byte(a.str("backup")))})
	if d.agree(d.ask("POST", "restore/"+to.names[1-i], m{"backup": string(own.Reveal())}), err) {
		d.keys = append(d.keys, &to)
	}
	own.Destroy()
}

func (d *doors) list() {
	a := d.ask("LIST", "keys", nil)
	own, err := d.kms.TransitList(d.vault.t.Context(), d.caller, "default", "transit")
	if !d.agree(a, err) {
		return
	}
	if got := fmt.Sprint(a.members()["keys"]); got != fmt.Sprint(own) {
		d.fatal("%s and %v", got, own)
	}
}

// nothing asks for what is not there.
func (d *doors) nothing() {
	ctx, ref := d.vault.t.Context(), d.ref("none")
	item, message := []kms.TransitItem{{Ciphertext: "vault:v1:AAAA"}}, []kms.TransitMessage{{Hash: transit.SHA256, Text: "vault:v1:AAAA"}}
	var err error
	switch what := rapid.SampledFrom([]string{"decrypt", "rewrap", "hmac", "sign", "verify", "datakey/wrapped"}).Draw(d.T, "what"); what {
	case "decrypt":
		_, err = d.kms.TransitDecrypt(ctx, d.caller, ref, item)
		d.agree(d.ask("POST", what+"/none", m{"ciphertext": "vault:v1:AAAA"}), err)
	case "rewrap":
		_, err = d.kms.TransitRewrap(ctx, d.caller, ref, item)
		d.agree(d.ask("POST", what+"/none", m{"ciphertext": "vault:v1:AAAA"}), err)
	case "hmac":
		_, err = d.kms.TransitHMAC(ctx, d.caller, ref, message)
		d.agree(d.ask("POST", what+"/none", m{"input": ""}), err)
	case "sign":
		_, err = d.kms.TransitSign(ctx, d.caller, ref, message)
		d.agree(d.ask("POST", what+"/none", m{"input": ""}), err)
	case "verify":
		_, err = d.kms.TransitVerify(ctx, d.caller, ref, message)
		d.agree(d.ask("POST", what+"/none", m{"input": "", "signature": "vault:v1:AAAA"}), err)
	default:
		_, _, _, err = d.kms.TransitDataKey(ctx, d.caller, ref, 256, kms.TransitItem{}, false)
		d.agree(d.ask("POST", what+"/none", nil), err)
	}
}

// doorItem is one thing to do, as each door takes it.
type doorItem struct {
	body m
	own  kms.TransitItem
	text doorText
}

var doorPlains = []string{"", "a", "hello, world", strings.Repeat("long ", 300)}

// plain draws something to encrypt, with what a key of its type needs, or nearly so.
func (d *doors) plain(k *doorKey) (it doorItem) {
	it.text.plain = rapid.SampledFrom(doorPlains[:3]).Draw(d.T, "plaintext")
	if k.kind.aead {
		it.text.plain = rapid.SampledFrom(doorPlains).Draw(d.T, "plaintext")
	}
	if k.derived != d.coin("wrong", 12) {
		it.text.context = rapid.SampledFrom([]string{"c", "d"}).Draw(d.T, "context")
	}
	if k.kind.aead && d.coin("associated", 4) {
		it.text.data = "data"
	}
	it.body, it.own = it.text.item()
	it.body["plaintext"], it.own.Plaintext = b64(it.text.plain), []byte(it.text.plain)
	d.version(it.body, &it.own.Version)
	return it
}

// version names one, now and then.
func (d *doors) version(body m, own *uint32) {
	if d.coin("named", 3) {
		*own = uint32(rapid.IntRange(0, 4).Draw(d.T, "version"))
		body["key_version"] = *own
	}
}

// item is what a text is opened with.
func (x doorText) item() (body m, own kms.TransitItem) {
	body = m{}
	if x.context != "" {
		body["context"], own.Context = b64(x.context), []byte(x.context)
	}
	if x.data != "" {
		body["associated_data"], own.AssociatedData = b64(x.data), []byte(x.data)
	}
	return body, own
}

// one is the only result of a request.
func one(out []kms.TransitResult, err error) (kms.TransitResult, error) {
	if err != nil {
		return kms.TransitResult{}, err
	}
	return out[0], out[0].Err
}

func (d *doors) encrypt() {
	k, i := d.key(), d.side()
	it := d.plain(k)
	a := d.ask("POST", "encrypt/"+k.names[i], it.body)
	own, err := one(d.kms.TransitEncrypt(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitItem{it.own}))
	if d.agree(a, err) {
		d.keep(k, i, it.text, a.members(), own)
	}
}

// keep notes ciphertexts of twins, which have to be of one version, and equal where they converge.
func (d *doors) keep(k *doorKey, i int, x doorText, vault m, own kms.TransitResult) {
	d.Helper()
	if vault["key_version"] != float64(own.Version) {
		d.fatal("version %v and %d", vault["key_version"], own.Version)
	}
	x.of[i], x.of[1-i] = fmt.Sprint(vault["ciphertext"]), own.Ciphertext
	if len(x.of[0]) != len(x.of[1]) {
		d.fatal("%q and %q", x.of[0], x.of[1])
	}
	k.texts = append(k.texts, x)
}

func (d *doors) encryptBatch() {
	k, i := d.key(), d.side()
	var items []doorItem
	var bodies []m
	var own []kms.TransitItem
	for n := rapid.IntRange(1, 4).Draw(d.T, "items"); len(items) < n; {
		it := d.plain(k)
		if len(items) > 0 && (it.text.context == "") != (items[0].text.context == "") { // the front end refuses the whole
			continue
		}
		items, bodies, own = append(items, it), append(bodies, it.body), append(own, it.own)
	}
	a := d.ask("POST", "encrypt/"+k.names[i], m{"batch_input": bodies})
	out, err := d.kms.TransitEncrypt(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), own)
	d.each(a, out, err, func(j int, got m) { d.keep(k, i, items[j].text, got, out[j]) })
}

// each compares the items of a batch, and calls f with those that both doors did.
func (d *doors) each(a answer, out []kms.TransitResult, err error, f func(j int, got m)) {
	d.Helper()
	if err != nil {
		d.agree(a, err)
		return
	}
	results := a.batch()
	if len(results) != len(out) {
		d.fatal("%d results and %d: %s", len(results), len(out), a.text)
	}
	failed := 0
	for j, r := range out {
		text, _ := results[j]["error"].(string)
		status := http.StatusOK
		if text != "" {
			status, failed = http.StatusBadRequest, failed+1
		}
		if why := disagrees(status, text, r.Err); why != "" {
			d.fatal("item %d: %s: %v, own %v", j, why, results[j], r.Err)
		}
		if r.Err == nil {
			f(j, results[j])
		}
	}
	if failed > 0 && a.status/100 == 2 && !strings.HasPrefix(d.log[len(d.log)-1], "POST rewrap") {
		d.fatal("%d items failed, and the answer is %d", failed, a.status)
	}
}

// text draws a ciphertext, or something near one.
func (d *doors) text(of []doorText) (x doorText, ok bool) {
	if len(of) == 0 || d.coin("bad", 5) {
		bad := rapid.SampledFrom([]string{"vault:v1:AAAA", "vault:v9:AAAA", "vault:v0:AAAA", "vault:v1:%%", "vault:vx:AAAA", "nonsense", "vault:v1:" + b64(strings.Repeat("x", 60))}).Draw(d.T, "bad text")
		return doorText{of: [2]string{bad, bad}, context: "c", hash: "sha2-256"}, true
	}
	x = of[rapid.IntRange(0, len(of)-1).Draw(d.T, "text")]
	if d.coin("changed", 8) {
		for i := range x.of {
			x.of[i] = turned(x.of[i])
		}
		x.plain += "."
		x.sound = false
	}
	return x, true
}

// turned changes a bit of what is in base64.
func turned(s string) string {
	at := strings.LastIndexByte(s, ':') + 1
	b, err := base64.StdEncoding.DecodeString(s[at:])
	if err != nil || len(b) == 0 {
		return s
	}
	b[len(b)-1] ^= 1
	return s[:at] + base64.StdEncoding.EncodeToString(b)
}

func (d *doors) decrypt() {
	k, i := d.key(), d.side()
	x, _ := d.text(k.texts)
	body, it := x.item()
	body["ciphertext"], it.Ciphertext = x.of[i], x.of[1-i]
	a := d.ask("POST", "decrypt/"+k.names[i], body)
	own, err := one(d.kms.TransitDecrypt(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitItem{it}))
	if d.agree(a, err) && (a.str("plaintext") != b64(x.plain) || string(own.Plaintext) != x.plain) {
		d.fatal("%q and %q, want %q", a.str("plaintext"), own.Plaintext, x.plain)
	}
}

// texts draws a few ciphertexts, with bodies and items.
func (d *doors) some(k *doorKey, i int) (xs []doorText, bodies []m, own []kms.TransitItem) {
	for n := rapid.IntRange(1, 4).Draw(d.T, "items"); len(xs) < n; {
		x, _ := d.text(k.texts)
		if len(xs) > 0 && (x.context == "") != (xs[0].context == "") {
			x.context = xs[0].context
			x.plain += "!" // which nothing opens as
		}
		body, it := x.item()
		body["ciphertext"], it.Ciphertext = x.of[i], x.of[1-i]
		xs, bodies, own = append(xs, x), append(bodies, body), append(own, it)
	}
	return xs, bodies, own
}

func (d *doors) decryptBatch() {
	k, i := d.key(), d.side()
	xs, bodies, items := d.some(k, i)
	a := d.ask("POST", "decrypt/"+k.names[i], m{"batch_input": bodies})
	out, err := d.kms.TransitDecrypt(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), items)
	d.each(a, out, err, func(j int, got m) {
		if plain := strings.TrimSuffix(xs[j].plain, "!"); got["plaintext"] != b64(plain) || string(out[j].Plaintext) != plain {
			d.fatal("item %d: %v and %q, want %q", j, got["plaintext"], out[j].Plaintext, plain)
		}
	})
}

func (d *doors) rewrap() {
	k, i := d.key(), d.side()
	x, _ := d.text(k.texts)
	body, it := x.item()
	body["ciphertext"], it.Ciphertext = x.of[i], x.of[1-i]
	d.version(body, &it.Version)
	a := d.ask("POST", "rewrap/"+k.names[i], body)
	own, err := one(d.kms.TransitRewrap(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitItem{it}))
	if d.agree(a, err) {
		d.rewrapped(k, i, x, a.members(), own)
	}
}

func (d *doors) rewrapped(k *doorKey, i int, x doorText, got m, own kms.TransitResult) {
	d.Helper()
	if got["changed"] != own.Changed {
		d.fatal("changed: %v and %v", got["changed"], own.Changed)
	}
	d.keep(k, i, x, got, own)
}

func (d *doors) rewrapBatch() {
	k, i := d.key(), d.side()
	xs, bodies, items := d.some(k, i)
	a := d.ask("POST", "rewrap/"+k.names[i], m{"batch_input": bodies})
	out, err := d.kms.TransitRewrap(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), items)
	d.each(a, out, err, func(j int, got m) {
		xs[j].plain = strings.TrimSuffix(xs[j].plain, "!")
		d.rewrapped(k, i, xs[j], got, out[j])
	})
}

// dataKey makes a data key through each door, which the other opens.
func (d *doors) dataKey() {
	k, i, bits := d.key(), d.side(), rapid.SampledFrom([]int{128, 256, 512, 100}).Draw(d.T, "bits")
	it := d.plain(k)
	delete(it.body, "plaintext")
	it.body["bits"], it.own.Plaintext = bits, nil
	a := d.ask("POST", "datakey/plaintext/"+k.names[i], it.body)
	plain, text, version, err := d.kms.TransitDataKey(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), bits, it.own, true)
	if bits == 100 && err != nil && a.status == http.StatusBadRequest { // there can be two mistakes; which of them is told is nobody's promise
		return
	}
	if !d.agree(a, err) {
		return
	}
	defer plain.Destroy()
	if a.members()["key_version"] != float64(version) || len(a.str("plaintext")) != base64.StdEncoding.EncodedLen(plain.Len()) || plain.Len() != bits/8 {
		d.fatal("%s, and version %d of %d bytes", a.text, version, plain.Len())
	}
	body, own := it.text.item()
	body["ciphertext"], own.Ciphertext = text, a.str("ciphertext")
	back := d.ask("POST", "decrypt/"+k.names[1-i], body)
	out, err := one(d.kms.TransitDecrypt(d.vault.t.Context(), d.caller, d.ref(k.names[i]), []kms.TransitItem{own}))
	if d.agree(back, err) && (back.str("plaintext") != base64.StdEncoding.EncodeToString(plain.Reveal()) || base64.StdEncoding.EncodeToString(out.Plaintext) != a.str("plaintext")) {
		d.fatal("a data key of one door is another one at the other")
	}
}

// message draws something to authenticate.
func (d *doors) message() (x doorText, body m, own kms.TransitMessage) {
	x.plain = rapid.SampledFrom(doorPlains).Draw(d.T, "input")
	x.hash = rapid.SampledFrom([]string{"sha2-256", "sha2-512", "sha3-256"}).Draw(d.T, "hash")
	h, _ := transit.ParseHash(x.hash)
	body, own = m{"input": b64(x.plain), "hash_algorithm": x.hash}, kms.TransitMessage{Input: []byte(x.plain), Hash: h}
	own.Options.Hash = h
	d.version(body, &own.Version)
	return x, body, own
}

func (d *doors) hmac() {
	k, i := d.key(), d.side()
	x, body, it := d.message()
	a := d.ask("POST", "hmac/"+k.names[i], body)
	own, err := one(d.kms.TransitHMAC(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitMessage{it}))
	if d.agree(a, err) {
		x.made(i, a.str("hmac"), own.Ciphertext)
		k.sums = append(k.sums, x)
	}
}

func (d *doors) verifyHMAC() {
	k, i := d.key(), d.side()
	x, _ := d.text(k.sums)
	h, _ := transit.ParseHash(x.hash)
	a := d.ask("POST", "verify/"+k.names[i], m{"input": b64(x.plain), "hash_algorithm": x.hash, "hmac": x.of[i]})
	own, err := one(d.kms.TransitVerifyHMAC(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitMessage{{Input: []byte(x.plain), Hash: h, Text: x.of[1-i]}}))
	if d.agree(a, err) {
		d.valid(x, true, a.members(), own)
	}
}

// valid compares what is said of an HMAC or a signature with the truth. alike: it is verified as it was made.
func (d *doors) valid(x doorText, alike bool, got m, own kms.TransitResult) {
	d.Helper()
	if is := got["valid"]; is != own.Valid || is == true && !x.sound || is == false && x.sound && alike {
		d.fatal("valid: %v and %v: %+v", is, own.Valid, x)
	}
}

// options are how a signature is made, for both doors.
func (x *doorText) options(o *transit.SignOptions, body m) {
	o.Hash, _ = transit.ParseHash(x.hash)
	o.Salt = transit.SaltAuto
	if x.context != "" {
		o.Context, body["context"] = []byte(x.context), b64(x.context)
	}
	for name, value := range x.with {
		body[name] = value
	}
	if x.with["signature_algorithm"] != nil {
		o.Padding = x.with["signature_algorithm"].(string)
	}
	if x.with["marshaling_algorithm"] == "jws" {
		o.Marshaling = transit.JWS
	}
}

// unsigned draws something to sign with a key, and how.
func (d *doors) unsigned(k *doorKey) (x doorText, body m, it kms.TransitMessage) {
	x, body, it = d.message()
	x.with = m{}
	for _, one := range [][2]string{{"marshaling_algorithm", "jws"}, {"signature_algorithm", "pkcs1v15"}} {
		if d.coin(one[0], 3) {
			x.with[one[0]] = one[1]
		}
	}
	if k.derived != d.coin("wrong", 12) {
		x.context = "c"
	}
	x.options(&it.Options, body)
	return x, body, it
}

func (d *doors) sign() {
	k, i := d.key(), d.side()
	x, body, it := d.unsigned(k)
	a := d.ask("POST", "sign/"+k.names[i], body)
	own, err := one(d.kms.TransitSign(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitMessage{it}))
	if !d.agree(a, err) {
		return
	}
	if a.members()["key_version"] != float64(own.Version) {
		d.fatal("version %v and %d", a.members()["key_version"], own.Version)
	}
	x.made(i, a.str("signature"), own.Ciphertext)
	k.sig = append(k.sig, x)
	b, it := x.checked(i)
	own, err = one(d.kms.TransitVerify(d.vault.t.Context(), d.caller, d.ref(k.names[i]), []kms.TransitMessage{it}))
	if a := d.ask("POST", "verify/"+k.names[1-i], b); d.agree(a, err) {
		d.valid(x, true, a.members(), own)
	}
}

// checked is what a signature of one key and its twin are verified with: that of key i through the own door.
func (x *doorText) checked(i int) (m, kms.TransitMessage) {
	body := m{"input": b64(x.plain), "hash_algorithm": x.hash, "signature": x.of[1-i]}
	it := kms.TransitMessage{Input: bytes.Clone([]byte(x.plain)), Text: x.of[i]}
	x.options(&it.Options, body)
	return body, it
}

func (d *doors) verify() {
	k, i := d.key(), d.side()
	x, _ := d.text(k.sig)
	body, it := x.checked(1 - i)
	a := d.ask("POST", "verify/"+k.names[i], body)
	own, err := one(d.kms.TransitVerify(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), []kms.TransitMessage{it}))
	if d.agree(a, err) {
		d.valid(x, true, a.members(), own)
	}
}
