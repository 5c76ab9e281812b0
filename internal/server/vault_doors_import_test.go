package server_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/transit"
)

// foreign is what a key has that came from outside, as rotor's own API tells the front end of it: versions without a private half, and certificates.
func (d *doors) foreign(name string) string {
	d.Helper()
	var out strings.Builder
	for v := range d.record(name).All() {
		if v.PublicOnly || len(v.Chain) > 0 {
			fmt.Fprintf(&out, "%d: public alone %v, %d certificates; ", v.Number, v.PublicOnly, len(v.Chain))
		}
	}
	return out.String()
}

// record is what rotor's own API tells of a key, also of one that is put aside.
func (d *doors) record(name string) keyring.Key {
	d.Helper()
	k, err := d.kms.TransitGet(d.vault.t.Context(), d.caller, d.ref(name))
	if err != nil {
		d.fatal("%s: %v", name, err)
	}
	return k
}

// wrappingKey is the one that imports are wrapped with: both doors have to show the same.
func (d *doors) wrappingKey() []byte {
	a := d.ask("GET", "wrapping_key", nil)
	own, err := d.kms.TransitWrappingKey(d.vault.t.Context(), d.caller, "default", "transit")
	d.agree(a, err)
	block, _ := pem.Decode([]byte(a.str("public_key")))
	if block == nil || !bytes.Equal(block.Bytes, own) {
		d.fatal("another wrapping key: %s", a.text)
	}
	return own
}

var wrapHashes = []string{"", "SHA1", "SHA224", "SHA256", "SHA384", "SHA512"}

// comes draws how a key comes in through both doors: wrapped, or the public half alone, or something that is neither.
func (d *doors) comes(k *doorKey, material secret.Bytes) (body m, in kms.TransitImported) {
	hash := rapid.SampledFrom(wrapHashes).Draw(d.T, "hash")
	in.Hash, _ = transit.ParseWrapHash(hash)
	body = m{}
	if hash != "" {
		body["hash_function"] = hash
	}
	under := in.Hash
	what := rapid.SampledFrom([]string{"whole", "whole", "whole", "whole", "public", "public", "short", "another type", "another hash", "damaged", "not base64", "cut"}).Draw(d.T, "what")
	switch what {
	case "public":
		public, _ := suite.PublicOf(k.kind.algorithm, material)
		in.PublicKey = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
		body["public_key"] = string(in.PublicKey)
		return body, in
	case "short":
		material = secret.Copy(material.Reveal()[:material.Len()-1])
	case "another type":
		material, _, _ = suite.Generate(suite.ES384)
	case "another hash":
		under, _ = transit.ParseWrapHash("SHA384")
	}
	text, err := transit.Wrap(d.wrappingKey(), material, under)
	if err != nil {
		d.fatal("wrap: %v", err)
	}
	switch what {
	case "damaged":
		text = turned(text)
	case "not base64":
		text = "%" + text
	case "cut":
		text = text[:len(text)/2&^3]
	}
	in.Ciphertext, body["ciphertext"] = text, text
	return body, in
}

// material makes a key of a type.
func (d *doors) material(kind doorKind) secret.Bytes {
	material, _, err := suite.Generate(kind.algorithm)
	if err != nil {
		d.fatal("generate: %v", err)
	}
	return material
}

// came notes what came in.
func (k *doorKey) came(material secret.Bytes, in kms.TransitImported) {
	if in.Ciphertext == "" {
		k.halves = append(k.halves, material)
	}
}

// importKey brings the same key through both doors: from then on, one twin opens what the other made.
func (d *doors) importKey() {
	i := d.side()
	k := d.twins(d.kind())
	material := d.material(k.kind)
	body, in := d.comes(k, material)
	spec := kms.TransitSpec{Ref: d.ref(k.names[1-i]), Algorithm: k.kind.algorithm}
	_, spec.Transit.Spelling, _ = transit.ParseType(k.kind.name, "")
	body["type"] = k.kind.name
	for _, one := range []struct {
		name string
		to   *bool
		of   int
	}{
		{"exportable", &spec.Transit.Exportable, 2}, {"allow_plaintext_backup", &spec.Transit.PlaintextBackup, 2}, {"derived", &spec.Transit.Derived, 6}, {"allow_rotation", &spec.Transit.RotationAllowed, 2},
	} {
		if *one.to = d.coin(one.name, one.of); *one.to {
			body[one.name] = true
		}
	}
	if d.coin("period", 4) {
		spec.Schedule.Every, body["auto_rotate_period"] = 48*time.Hour, "48h"
	}
	k.derived = spec.Transit.Derived
	a := d.ask("POST", "keys/"+k.names[i]+"/import", body)
	_, err := d.kms.TransitImport(d.vault.t.Context(), d.caller, spec, in)
	if !underived(a, err) && d.agree(a, err) {
		k.imported = true
		k.came(material, in)
		d.keys = append(d.keys, k)
		d.crossed(k, i)
	}
}

// crossed has each twin open what the other makes, as they have the same material.
func (d *doors) crossed(k *doorKey, i int) {
	ctx, vault, own := d.vault.t.Context(), k.names[i], d.ref(k.names[1-i])
	switch x := (doorText{plain: "crossed", hash: "sha2-256", sound: true}); {
	case k.derived:
	case k.kind.aead || k.kind.rsa:
		a := d.ask("POST", "encrypt/"+vault, m{"plaintext": b64(x.plain)})
		made, err := one(d.kms.TransitEncrypt(ctx, d.caller, own, []kms.TransitItem{{Plaintext: []byte(x.plain)}}))
		if !d.works(k, a, err) {
			return
		}
		opened, err := one(d.kms.TransitDecrypt(ctx, d.caller, own, []kms.TransitItem{{Ciphertext: a.str("ciphertext")}}))
		if a := d.ask("POST", "decrypt/"+vault, m{"ciphertext": made.Ciphertext}); d.works(k, a, err) && (a.str("plaintext") != b64(x.plain) || string(opened.Plaintext) != x.plain) {
			d.fatal("%s and %q, want %q", a.text, opened.Plaintext, x.plain)
		}
	case k.kind.algorithm != suite.HMAC:
		body, it := x.checked(i)
		a := d.ask("POST", "sign/"+vault, body)
		made, err := one(d.kms.TransitSign(ctx, d.caller, own, []kms.TransitMessage{it}))
		if !d.works(k, a, err) {
			return
		}
		body["signature"], it.Text = made.Ciphertext, a.str("signature")
		right, err := one(d.kms.TransitVerify(ctx, d.caller, own, []kms.TransitMessage{it}))
		if a := d.ask("POST", "verify/"+vault, body); d.works(k, a, err) {
			d.valid(x, true, a.members(), right)
		}
	}
}

// works says whether both doors did what they can do with what came in whole.
func (d *doors) works(k *doorKey, a answer, err error) bool {
	d.Helper()
	good := d.agree(a, err)
	if !good && len(k.halves) == 0 {
		d.fatal("%d %s with a key that came in whole", a.status, a.text)
	}
	return good
}

// importVersion brings the next version of a key through both doors, or the private half of one.
func (d *doors) importVersion() {
	k, i := d.keyThat(func(k *doorKey) bool { return k.imported }), d.side()
	var material secret.Bytes
	if len(k.halves) > 0 && !d.coin("fresh", 3) {
		material = rapid.SampledFrom(k.halves).Draw(d.T, "half")
	} else {
		material = d.material(k.kind)
	}
	body, in := d.comes(k, material)
	var n uint32
	if d.coin("named", 3) {
		n = uint32(rapid.IntRange(0, 4).Draw(d.T, "version"))
		body["version"] = n
	}
	a := d.ask("POST", "keys/"+k.names[i]+"/import_version", body)
	_, err := d.kms.TransitImportVersion(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), in, n)
	if d.agree(a, err) {
		k.came(material, in)
	}
}

// template is a request for a certificate whose subject another is to have.
func (d *doors) template() (text, subject string) {
	switch {
	case d.coin("no template", 2):
		return "", ""
	case d.coin("bad template", 4):
		return "no request", ""
	}
	key, _, err := suite.Generate(suite.ES256)
	if err != nil {
		d.fatal("%v", err)
	}
	signer, err := suite.PrivateKey(suite.ES256, key)
	if err != nil {
		d.fatal("%v", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "board", Organization: []string{"ml"}}, DNSNames: []string{"board.example"}}, signer)
	if err != nil {
		d.fatal("%v", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "CN=board,O=ml [board.example]"
}

// requested reads a request for a certificate of version n of a key, or of its primary.
func (d *doors) requested(name, text string, n uint32, subject string) any {
	d.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 {
		d.fatal("%q", text)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		d.fatal("%v", err)
	}
	told := ""
	if r.Subject.String() != "" {
		told = fmt.Sprint(r.Subject, r.DNSNames)
	}
	if err := r.CheckSignature(); err != nil || told != subject {
		d.fatal("request of %q, want %q: %v", told, subject, err)
	}
	if public, err := x509.MarshalPKIXPublicKey(r.PublicKey); err != nil || !bytes.Equal(public, d.numbered(name, n).Public) {
		d.fatal("a request for another key than that of %s: %v", name, err)
	}
	return r.PublicKey
}

// numbered is a version of a key; 0: the primary.
func (d *doors) numbered(name string, n uint32) keyring.Version {
	d.Helper()
	k := d.record(name)
	if n == 0 {
		n = k.Primary
	}
	v, err := k.Version(n)
	if err != nil {
		d.fatal("%s: %v", name, err)
	}
	return v
}

// certify asks for a certificate of a version through each door, and gives it one, or a chain that is wrong.
func (d *doors) certify() {
	k, i := d.keyThat(func(k *doorKey) bool { return transit.Signs(k.kind.algorithm) && !k.derived }), d.side()
	if d.coin("rotate first", 3) {
		d.rotated(k)
	}
	var n uint32
	body := m{}
	if d.coin("named", 3) {
		n = uint32(rapid.IntRange(0, 4).Draw(d.T, "version"))
		body["version"] = n
	}
	template, subject := d.template()
	if template != "" {
		body["csr"] = template
	}
	a := d.ask("POST", "keys/"+k.names[i]+"/csr", body)
	text, err := d.kms.TransitCSR(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), n, template)
	if !d.agree(a, err) {
		return
	}
	var keys [2]any
	keys[i], keys[1-i] = d.requested(k.names[i], a.str("csr"), n, subject), d.requested(k.names[1-i], text, n, subject)
	delete(body, "csr")
	for range rapid.IntRange(1, 3).Draw(d.T, "chains") {
		chains := d.chains(keys)
		body["certificate_chain"] = chains[i]
		a = d.ask("POST", "keys/"+k.names[i]+"/set-certificate", body)
		_, err = d.kms.TransitSetCertificate(d.vault.t.Context(), d.caller, d.ref(k.names[1-i]), n, chains[1-i])
		if d.agree(a, err) {
			for j, name := range k.names {
				d.certified(name, d.numbered(name, n), chains[j])
			}
		}
	}
}

// chains are those that twins are given, for their keys; or what is no chain of theirs.
func (d *doors) chains(keys [2]any) (out [2]string) {
	ca := d.authority()
	leaf := func(key any) string { return d.leaf(key, ca) }
	what := rapid.SampledFrom([]string{"chain", "leaf", "another's", "authority", "two leaves", "nothing", "no certificate"}).Draw(d.T, "chain")
	for i, key := range keys {
		switch what {
		case "leaf":
			out[i] = leaf(key)
		case "chain":
			out[i] = leaf(key) + certPEM(ca)
		case "another's":
			out[i] = leaf(keys[1-i])
			if fmt.Sprint(keys[0]) == fmt.Sprint(keys[1]) { // imported
				out[i] = leaf(ca.Leaf.PublicKey)
			}
		case "authority":
			out[i] = certPEM(ca) + leaf(key)
		case "two leaves":
			out[i] = leaf(key) + leaf(key)
		case "no certificate":
			out[i] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
		}
	}
	return out
}

// authority is one that makes certificates.
func (d *doors) authority() tls.Certificate { return issue(d.vault.t, "ca", nil, true, time.Hour) }

// leaf is a certificate of a key.
func (d *doors) leaf(key any, ca tls.Certificate) string {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "board"}, NotBefore: ca.Leaf.NotBefore, NotAfter: ca.Leaf.NotAfter, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Leaf, key, ca.PrivateKey)
	if err != nil {
		d.fatal("%v", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// certified says that both doors tell of a chain that a version was given.
func (d *doors) certified(name string, v keyring.Version, chain string) {
	d.Helper()
	own, err := transit.ChainText(v.Chain)
	if want := strings.TrimSpace(chain); err != nil || strings.TrimSpace(own) != want {
		d.fatal("%s: rotor's door tells of %q, want %q: %v", name, own, want, err)
	}
	k := d.record(name)
	if !k.Seen(v) || k.AboveFloor(v.Number) != nil || k.Transit.Derived {
		return
	}
	a := d.ask("GET", "keys/"+name, nil)
	versions, _ := a.members()["keys"].(m)
	told, _ := versions[fmt.Sprint(v.Number)].(m)
	if got := strings.TrimSpace(fmt.Sprint(told["certificate_chain"])); got != strings.TrimSpace(own) {
		d.fatal("%s: Vault's door tells of %q, want %q", name, got, own)
	}
}
