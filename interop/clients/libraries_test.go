package clients_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	wrapper "github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
	"gocloud.dev/secrets/hashivault"
)

// owner makes a key on a mount of its own for an application that only uses it.
func (j job) owner(c check, mount, key string, settings values) transit {
	e := transit{c, j.admin, mount}
	mounts, err := j.admin.Sys().ListMounts()
	c.ok(err, "list the mounts")
	if mounts[mount+"/"] == nil {
		c.ok(j.admin.Sys().Mount(mount, &api.MountInput{Type: "transit"}), "mount")
	}
	e.write("keys/"+key, settings)
	return e
}

// user is the policy of an application that encrypts and decrypts with a key.
func user(mount, key string) string {
	return `path "` + mount + `/encrypt/` + key + `" { capabilities = ["update"] }
path "` + mount + `/decrypt/` + key + `" { capabilities = ["update"] }
`
}

// comesIn logs the application in by AppRole and returns its token.
func (j job) comesIn(c check, policy string) string {
	roleID, secretID := j.role(c, policy)
	s, err := j.at("").Logical().Write("auth/approle/login", values{"role_id": roleID, "secret_id": secretID})
	c.ok(err, "log in")
	return s.Auth.ClientToken
}

// renews has the Go client, which libraries are given, renew their token.
func (j job) renews(c check, token string) {
	s, err := j.at(token).Auth().Token().RenewSelf(600)
	c.ok(err, "renew")
	c.same(s.Auth.LeaseDuration, 600, "the time")
}

// tinkHCVault is github.com/tink-crypto/tink-go-hcvault: envelopes whose key encryption key is the engine's, and the engine itself as an AEAD.
func tinkHCVault(t *testing.T, j job) {
	const mount = "interop/tink"
	var e transit
	made := tinkMade{}
	j.step(t, "keys", func(c check) { e = j.owner(c, mount, "orders", nil) })
	j.step(t, "login", func(c check) {
		made.client = j.at(j.comesIn(c, user(mount, "orders")+user(mount, "derived")))
		made.uri = "hcvault://" + strings.TrimPrefix(j.address, "https://") + "/" + mount + "/keys/"
	})
	j.step(t, "use", func(c check) { made.make(c) })
	j.step(t, "rotate", func(c check) {
		e.write("keys/orders/rotate", nil)
		text, err := made.aead(c, "orders").Encrypt([]byte("two"), nil)
		c.ok(err, "encrypt")
		e.prefix(string(text), "2")
	})
	j.step(t, "old", func(c check) { made.opens(c) })
	j.step(t, "renew", func(c check) { j.renews(c, made.client.Token()) })
	j.step(t, "denied", func(c check) {
		_, err := made.aead(c, "other").Encrypt([]byte("x"), nil)
		c.says(err, "permission denied", "use another key")
		revoked := tinkMade{client: j.at("revoked"), uri: made.uri}
		_, err = revoked.aead(c, "orders").Encrypt([]byte("x"), nil)
		c.says(err, "permission denied", "use no token")
	})
	j.step(t, "more", func(c check) {
		j.owner(c, mount, "derived", values{"derived": true})
		tinkDerived(c, made.client, mount)
	})
}

// tinkMade is what an application of Tink made before its key was rotated.
type tinkMade struct {
	client         *api.Client
	uri            string // of the engine's keys
	first, message []byte
	keyset         bytes.Buffer
}

func (m *tinkMade) aead(c check, key string) tink.AEAD {
	kms, err := hcvault.NewClientWithAEADOptions(m.uri, m.client.Logical())
	c.ok(err, "make a client")
	a, err := kms.GetAEAD(m.uri + key)
	c.ok(err, "get the key")
	return a
}

func (m *tinkMade) make(c check) {
	a := m.aead(c, "orders")
	var err error
	m.first, err = a.Encrypt([]byte("one"), []byte("row 1"))
	c.ok(err, "encrypt")
	_, err = a.Decrypt(m.first, []byte("row 2"))
	c.says(err, "message authentication failed", "decrypt for another row")
	m.message, err = aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), a).Encrypt([]byte("a long text"), []byte("row 1"))
	c.ok(err, "encrypt in an envelope")
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	c.ok(err, "make a keyset")
	c.ok(handle.Write(keyset.NewBinaryWriter(&m.keyset), a), "write the keyset encrypted")
}

func (m *tinkMade) opens(c check) {
	a := m.aead(c, "orders")
	plain, err := a.Decrypt(m.first, []byte("row 1"))
	c.ok(err, "decrypt")
	c.same(string(plain), "one", "the plaintext")
	plain, err = aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), a).Decrypt(m.message, []byte("row 1"))
	c.ok(err, "open the envelope")
	c.same(string(plain), "a long text", "the plaintext")
	_, err = keyset.Read(keyset.NewBinaryReader(bytes.NewReader(m.keyset.Bytes())), a)
	c.ok(err, "read the keyset")
}

// tinkDerived uses keys that are derived from the associated data, as clients before 2.5 have it.
func tinkDerived(c check, client *api.Client, mount string) {
	legacy, err := hcvault.NewAEAD("/"+mount+"/keys/derived", client.Logical(), hcvault.WithLegacyContextParamater())
	c.ok(err, "make the older client")
	text, err := legacy.Encrypt([]byte("x"), []byte("tenant 1"))
	c.ok(err, "encrypt")
	_, err = legacy.Decrypt(text, []byte("tenant 2"))
	c.says(err, "message authentication failed", "decrypt for another tenant")
	plain, err := legacy.Decrypt(text, []byte("tenant 1"))
	c.ok(err, "decrypt")
	c.same(string(plain), "x", "the plaintext")
	_, err = legacy.Encrypt([]byte("x"), nil)
	c.says(err, "missing 'context' for key derivation", "encrypt for nobody")
}

// gocloud is gocloud.dev/secrets/hashivault.
func gocloud(t *testing.T, j job) {
	const mount = "interop/gocloud"
	var e transit
	var token string
	var first []byte
	j.step(t, "keys", func(c check) { e = j.owner(c, mount, "orders", nil) })
	j.step(t, "login", func(c check) { token = j.comesIn(c, user(mount, "orders")) })
	encrypts := func(c check, version string) []byte {
		keeper := hashivault.OpenKeeper(j.at(token), "orders", &hashivault.KeeperOptions{Engine: mount})
		defer keeper.Close()
		text, err := keeper.Encrypt(j.ctx, []byte("one"))
		c.ok(err, "encrypt")
		e.prefix(string(text), version)
		return text
	}
	decrypts := func(c check, text []byte) {
		keeper := hashivault.OpenKeeper(j.at(token), "orders", &hashivault.KeeperOptions{Engine: mount})
		defer keeper.Close()
		plain, err := keeper.Decrypt(j.ctx, text)
		c.ok(err, "decrypt")
		c.same(string(plain), "one", "the plaintext")
	}
	j.step(t, "use", func(c check) {
		first = encrypts(c, "1")
		decrypts(c, first)
	})
	j.step(t, "rotate", func(c check) {
		e.write("keys/orders/rotate", nil)
		encrypts(c, "2")
	})
	j.step(t, "old", func(c check) { decrypts(c, first) })
	j.step(t, "rewrap", func(c check) { decrypts(c, e.rewrapped("orders", string(first), "2")) })
	j.step(t, "renew", func(c check) { j.renews(c, token) })
	j.step(t, "denied", func(c check) {
		keeper := hashivault.OpenKeeper(j.at(token), "others", &hashivault.KeeperOptions{Engine: mount})
		defer keeper.Close()
		_, err := keeper.Encrypt(j.ctx, []byte("x"))
		c.says(err, "permission denied", "use another key")
	})
}

// kmsWrapping is github.com/hashicorp/go-kms-wrapping/wrappers/transit, which auto-unseal, Boundary and others are made with.
func kmsWrapping(t *testing.T, j job) {
	const mount = "interop/wrapping"
	var e transit
	var token string
	var w *wrapper.Wrapper
	open := func(c check, key string) (*wrapper.Wrapper, error) {
		w := wrapper.NewWrapper()
		_, err := w.SetConfig(j.ctx, wrapping.WithConfigMap(map[string]string{
			"address": j.address, "tls_ca_cert": j.ca, "token": token, "mount_path": mount, "key_name": key, "key_id_prefix": "it-",
		}))
		return w, err
	}
	var first *wrapping.BlobInfo
	j.step(t, "keys", func(c check) { e = j.owner(c, mount, "orders", nil) })
	j.step(t, "login", func(c check) { token = j.comesIn(c, user(mount, "orders")) })
	j.step(t, "use", func(c check) {
		var err error
		w, err = open(c, "orders")
		c.ok(err, "open")
		first, err = w.Encrypt(j.ctx, []byte("one"))
		c.ok(err, "encrypt")
		c.same(first.KeyInfo.KeyId, "it-v1", "the key's ID")
	})
	j.step(t, "rotate", func(c check) {
		e.write("keys/orders/rotate", nil)
		_, err := w.Encrypt(j.ctx, []byte("two"))
		c.ok(err, "encrypt")
		id, err := w.KeyId(j.ctx)
		c.ok(err, "ask for the key's ID")
		c.same(id, "it-v2", "the key's ID") // by which its users know that what they have is to be wrapped again
	})
	j.step(t, "old", func(c check) {
		plain, err := w.Decrypt(j.ctx, first)
		c.ok(err, "decrypt")
		c.same(string(plain), "one", "the plaintext")
	})
	j.step(t, "rewrap", func(c check) {
		plain, err := w.Decrypt(j.ctx, &wrapping.BlobInfo{Ciphertext: e.rewrapped("orders", string(first.Ciphertext), "2")})
		c.ok(err, "decrypt what was rewrapped")
		c.same(string(plain), "one", "the plaintext")
	})
	j.step(t, "renew", func(c check) { // it has renewed its token when it was opened, and has a watcher
		self, err := j.at(token).Auth().Token().LookupSelf()
		c.ok(err, "look the token up")
		if self.Data["last_renewal"] == nil {
			c.fail("the token was never renewed: %v", self.Data)
		}
		c.ok(w.Finalize(context.Background()), "close")
	})
	j.step(t, "denied", func(c check) {
		_, err := open(c, "others")
		c.says(err, "permission denied", "use another key")
	})
}
