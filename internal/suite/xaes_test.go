package suite_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha3"
	"encoding/hex"
	"testing"

	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

func xaes(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	a, err := suite.NewAEAD(suite.XAES256GCM, secret.Copy(key))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// cmacXAES is the construction built otherwise: SP 800-108r1's counter KDF over CMAC, itself AES-CBC-MAC with the last block masked
// (SP 800-38B, 6.2), and the library's GCM.
func cmacXAES(t testing.TB, key, nonce, plaintext, data []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	cmac := func(m []byte) []byte { // of one whole block
		l := make([]byte, 16)
		cipher.NewCBCEncrypter(block, make([]byte, 16)).CryptBlocks(l, l)
		k1, carry := make([]byte, 16), l[0]>>7
		for i := range 16 {
			k1[i] = l[i] << 1
			if i < 15 {
				k1[i] |= l[i+1] >> 7
			}
		}
		if carry == 1 {
			k1[15] ^= 0x87
		}
		out := make([]byte, 16)
		cipher.NewCBCEncrypter(block, k1).CryptBlocks(out, m) // the IV is XORed to the block, as the mask is
		return out
	}
	var derived []byte
	for i := byte(1); i <= 2; i++ {
		derived = append(derived, cmac(append([]byte{0, i, 'X', 0}, nonce[:12]...))...)
	}
	inner, err := aes.NewCipher(derived)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(inner)
	if err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(nil, nonce[12:], plaintext, data)
}

// TestXAESVectors holds the vectors of C2SP's XAES-256-GCM.md: the top bit of L is 0 in the first and 1 in the second.
func TestXAESVectors(t *testing.T) {
	nonce, plaintext := []byte("ABCDEFGHIJKLMNOPQRSTUVWX"), []byte("XAES-256-GCM")
	for _, v := range []struct {
		key        byte
		data, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		key := bytes.Repeat([]byte{v.key}, 32)
		sealed := xaes(t, key).Seal(nil, nonce, plaintext, []byte(v.data))
		if hex.EncodeToString(sealed) != v.want {
			t.Errorf("key %d: %x", v.key, sealed)
		}
		if opened, err := xaes(t, key).Open(nil, nonce, sealed, []byte(v.data)); err != nil || !bytes.Equal(opened, plaintext) {
			t.Errorf("key %d: opened %q, %v", v.key, opened, err)
		}
		if other := cmacXAES(t, key, nonce, plaintext, []byte(v.data)); hex.EncodeToString(other) != v.want {
			t.Errorf("key %d: the independent construction gives %x", v.key, other)
		}
	}
}

// TestXAESAccumulated is the specification's accumulated randomized test of 10,000 iterations.
func TestXAESAccumulated(t *testing.T) {
	random, sum := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	read := func(n int) []byte {
		b := make([]byte, n)
		random.Read(b)
		return b
	}
	for i := range 10_000 {
		key, nonce := read(32), read(24)
		plaintext := read(int(read(1)[0]))
		data := read(int(read(1)[0]))
		a := xaes(t, key)
		sealed := a.Seal(nil, nonce, plaintext, data)
		sum.Write(sealed)
		if opened, err := a.Open(nil, nonce, sealed, data); err != nil || !bytes.Equal(opened, plaintext) {
			t.Fatalf("iteration %d does not open: %v", i, err)
		}
	}
	got := make([]byte, 32)
	sum.Read(got)
	if want := "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"; hex.EncodeToString(got) != want {
		t.Errorf("accumulated %x", got)
	}
}

func FuzzXAES(f *testing.F) {
	f.Add(make([]byte, 32), make([]byte, 24), []byte("plaintext"), []byte("data"))
	f.Fuzz(func(t *testing.T, key, nonce, plaintext, data []byte) {
		if len(key) != 32 || len(nonce) != 24 {
			return
		}
		if got, want := xaes(t, key).Seal(nil, nonce, plaintext, data), cmacXAES(t, key, nonce, plaintext, data); !bytes.Equal(got, want) {
			t.Errorf("%x, the independent construction says %x", got, want)
		}
		if _, err := xaes(t, key).Open(nil, nonce, plaintext, data); err == nil && len(plaintext) < 16 {
			t.Error("opened what has no tag")
		}
	})
}

func TestXAESRefuses(t *testing.T) {
	for n := range 65 {
		_, err := suite.NewXAES(secret.Random(n))
		if (err == nil) != (n == 32) {
			t.Errorf("key of %d bytes: %v", n, err)
		}
	}
	a := xaes(t, make([]byte, 32))
	if a.NonceSize() != 24 || a.Overhead() != 16 {
		t.Errorf("sizes %d, %d", a.NonceSize(), a.Overhead())
	}
	nonce, data := make([]byte, 24), []byte("data")
	sealed := a.Seal(nil, nonce, []byte("plaintext"), data)
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		if got, err := a.Open(nil, nonce, bad, data); err == nil || got != nil {
			t.Errorf("bit %d of the ciphertext: %q, %v", i, got, err)
		}
	}
	for i := range 24 * 8 { // both halves of the nonce count
		bad := bytes.Clone(nonce)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := a.Open(nil, bad, sealed, data); err == nil {
			t.Errorf("bit %d of the nonce does not count", i)
		}
	}
	for n := range sealed {
		if _, err := a.Open(nil, nonce, sealed[:n], data); err == nil {
			t.Errorf("%d bytes open", n)
		}
	}
	if _, err := a.Open(nil, nonce, sealed, nil); err == nil {
		t.Error("the associated data do not count")
	}
	if _, err := a.Open(nil, nonce[:12], sealed, data); err == nil {
		t.Error("a short nonce opens")
	}
	defer func() {
		if recover() == nil {
			t.Error("a short nonce seals")
		}
	}()
	a.Seal(nil, nonce[:12], nil, nil)
}

// TestXAESAllocations: appending to a buffer that is large enough allocates the message's key alone (bar: at most 2).
func TestXAESAllocations(t *testing.T) {
	a, nonce, data := xaes(t, make([]byte, 32)), make([]byte, 24), []byte("data")
	plaintext, buffer := make([]byte, 256), make([]byte, 0, 1024)
	sealed := a.Seal(nil, nonce, plaintext, data)
	if n := testing.AllocsPerRun(100, func() { a.Seal(buffer, nonce, plaintext, data) }); n > 2 {
		t.Errorf("sealing allocates %v times", n)
	}
	n := testing.AllocsPerRun(100, func() {
		if _, err := a.Open(buffer, nonce, sealed, data); err != nil {
			t.Error(err)
		}
	})
	if n > 2 {
		t.Errorf("opening allocates %v times", n)
	}
}
