package kms_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/suite"
)

func with(a suite.Algorithm) func(*keyring.Key) {
	return func(k *keyring.Key) { k.Algorithm = a }
}

// TestEveryCipher: every algorithm that encrypts does so through the door, also the wraps of files and across a rotation.
func TestEveryCipher(t *testing.T) {
	w := newWorld(t)
	n := 0
	for _, s := range suite.All() {
		if s.Nonce == 0 {
			continue
		}
		n++
		name := "k" + string(rune('a'+n))
		k := w.create(name, suite.Encrypt, with(s.ID))
		m, _, err := w.Encrypt(t.Context(), alice, w.ref(k), text, parts)
		if err != nil || m[0] != s.Message || len(m) != 5+s.Nonce+len(text)+16 {
			t.Fatalf("%s: %x, %v", s.ID, m, err)
		}
		k = w.rotate(k)
		got, v, err := w.Decrypt(t.Context(), alice, w.ref(k), m, parts)
		if err != nil || v != 1 || !slices.Equal(got, text) {
			t.Errorf("%s: version %d, %q, %v", s.ID, v, got, err)
		}
		moved, ok, err := w.Reencrypt(t.Context(), k.ID, 2, m, parts)
		if err != nil || !ok || moved[0] != s.Message {
			t.Errorf("%s: %t, %v", s.ID, ok, err)
		}
		f := w.create(name+"-wrap", suite.Wrap, with(s.ID))
		wrap := must(w.Wrap(t.Context(), alice, w.ref(f), dek, immutable))(t)
		w.rotate(f)
		next, changed, err := w.Rewrap(t.Context(), alice, wrap, immutable)
		if err != nil || !changed || next.Version != 2 {
			t.Errorf("%s: %+v, %t, %v", s.ID, next, changed, err)
		}
		if d, err := w.Unwrap(t.Context(), alice, next, immutable); err != nil || !d.Equal(dek) {
			t.Errorf("%s: %v", s.ID, err)
		}
	}
	if n != 5 {
		t.Errorf("%d ciphers", n)
	}
}

// TestVolume: a version of AES-GCM protects 2^31 times and no more, whoever counts; a server that ends forfeits what it had taken; the next
// version begins anew, and what was protected stays readable.
func TestVolume(t *testing.T) {
	w := newWorld(t)
	big := func() *kms.Service {
		s := must(kms.New(t.Context(), kms.Config{Guard: w.guard, Now: w.now, Block: 1 << 30}))(t)
		w.run(s.Run)
		return s
	}
	k := w.create("gcm", suite.Encrypt, with(suite.AES256GCM))
	w.create("xaes", suite.Encrypt)
	var message []byte
	for range 2 { // each takes half of all uses and spends one
		var err error
		if message, _, err = big().Encrypt(t.Context(), alice, w.ref(k), text, parts); err != nil {
			t.Fatal(err)
		}
	}
	last := big()
	for _, s := range []*kms.Service{last, w.Service} {
		_, _, err := s.Encrypt(t.Context(), alice, w.ref(k), text, parts)
		wantCode(t, err, fault.VolumeOver)
	}
	if _, _, err := last.Decrypt(t.Context(), alice, w.ref(k), message, parts); err != nil {
		t.Error(err)
	}
	if got := w.taken(k, "1"); !slices.Equal(got, []string{"1073741824", "2147483648"}) {
		t.Errorf("entries of blocks: %v", got)
	}
	w.rotate(k)
	if _, v, err := w.Encrypt(t.Context(), alice, w.ref(k), text, parts); err != nil || v != 2 {
		t.Errorf("version %d: %v", v, err)
	}
}

// TestVolumeOfAFirstBlock: what a rotation took of the version that it made counts, though the version alone says so, whoever takes more.
func TestVolumeOfAFirstBlock(t *testing.T) {
	w := newWorld(t)
	big := func() *kms.Service {
		s := must(kms.New(t.Context(), kms.Config{Guard: w.guard, Now: w.now, Block: 1 << 30}))(t)
		w.run(s.Run)
		return s
	}
	k := w.transit("k", suite.AES256GCM)
	items := make([]kms.TransitItem, 1)
	must(big().TransitRotate(t.Context(), alice, w.ref(k)))(t)
	if r := one(t)(big().TransitEncrypt(t.Context(), alice, w.ref(k), items)); r.Err != nil { // the other half
		t.Fatal(r.Err)
	}
	wantCode(t, one(t)(big().TransitEncrypt(t.Context(), alice, w.ref(k), items)).Err, fault.VolumeOver)
	if got := w.taken(k, "2"); !slices.Equal(got, []string{"1073741824", "2147483648"}) {
		t.Errorf("entries of blocks: %v", got)
	}
}

// TestVolumeBlocks: a block is one commit, also under many at once, and servers never share one.
func TestVolumeBlocks(t *testing.T) {
	w := newWorld(t)
	k := w.create("gcm", suite.Encrypt, with(suite.ChaCha20Poly1305))
	var wait sync.WaitGroup
	for range 2 {
		s := must(kms.New(t.Context(), kms.Config{Guard: w.guard, Now: w.now, Block: 10}))(t)
		w.run(s.Run)
		for range 5 {
			wait.Go(func() {
				for range 5 {
					if _, _, err := s.Encrypt(t.Context(), alice, w.ref(k), text, nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wait.Wait()
	got := w.taken(k, "1")
	slices.Sort(got)
	if !slices.Equal(got, []string{"10", "20", "30", "40", "50", "60"}) { // 25 uses each are three blocks of ten each
		t.Errorf("%v", got)
	}
}

// taken lists the totals that entries about blocks of a key's version name.
func (w *world) taken(k keyring.Key, version string) (out []string) {
	for _, e := range w.entries() {
		if n := e.Detail["uses_taken"]; n != "" && e.Key == k.Name && e.Detail["version"] == version {
			out = append(out, n)
		}
	}
	return out
}

// TestLimitedKeysStayOnTheServer: nobody could count the uses of a holder.
func TestLimitedKeysStayOnTheServer(t *testing.T) {
	w := newWorld(t)
	for _, a := range []suite.Algorithm{suite.AES128GCM, suite.AES256GCM, suite.ChaCha20Poly1305} {
		_, err := w.Create(t.Context(), alice, keyring.Key{Namespace: "default", Name: "k", Purpose: suite.Encrypt, Custody: keyring.CustodyFleet, Algorithm: a})
		wantCode(t, err, fault.Invalid)
	}
	w.create("k", suite.Encrypt, with(suite.XChaCha20Poly1305), func(k *keyring.Key) { k.Custody = keyring.CustodyFleet })
}
