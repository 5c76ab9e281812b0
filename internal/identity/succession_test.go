package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/rotorkms/rotor/internal/identity"
)

// TestSucceeds: only a certificate of the same authority is taken for its next one, whatever else the key has signed.
func TestSucceeds(t *testing.T) {
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	made := func(key, signer int, edit func(*x509.Certificate)) *x509.Certificate {
		t.Helper()
		tpl := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "rotor CA a"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1e9, 0), IsCA: true,
			BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: "a"}},
		}
		edit(tpl)
		der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &keys[key].PublicKey, keys[signer])
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	same := func(*x509.Certificate) {}
	pinned := made(0, 0, same)
	if !identity.Succeeds(pinned, made(0, 0, func(c *x509.Certificate) { c.NotAfter = time.Unix(2e9, 0) })) {
		t.Error("one that ends later is refused")
	}
	leaf := func(c *x509.Certificate) {
		c.IsCA, c.MaxPathLenZero, c.KeyUsage = false, false, x509.KeyUsageDigitalSignature
	}
	spoiled := made(0, 0, same)
	spoiled.Signature[len(spoiled.Signature)-1] ^= 1
	for what, next := range map[string]*x509.Certificate{
		"another key, signed by it":      made(1, 1, same),
		"another key, signed by the old": made(1, 0, same),
		"a leaf":                         made(0, 0, leaf),
		"with authorities below it":      made(0, 0, func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = false, 3 }),
		"another subject":                made(0, 0, func(c *x509.Certificate) { c.Subject.CommonName = "rotor CA b" }),
		"another trust domain":           made(0, 0, func(c *x509.Certificate) { c.URIs[0].Host = "b" }),
		"no trust domain":                made(0, 0, func(c *x509.Certificate) { c.URIs = nil }),
		"a signature of nobody":          spoiled,
	} {
		if identity.Succeeds(pinned, next) {
			t.Error(what)
		}
	}
}
