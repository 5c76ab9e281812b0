package transit

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Params go with one encryption, and again with its decryption.
type Params struct {
	Context    []byte // names the derived key; needed by derived keys and ignored by others
	Associated []byte // authenticated and not kept; AEADs alone
	Nonce      []byte // of convergent version 1, where callers choose it
}

// convergentKey is the length of the key that nonces of convergent version 3 are made with, in bytes.
const convergentKey = 32

// boxes are buffers for ciphertexts on their way into texts, up to keptBox bytes long.
var boxes = sync.Pool{New: func() any { return new([]byte) }}

const keptBox = 4096

// Encrypt makes the text of a ciphertext: vault:vN: and base64 of nonce, ciphertext and tag, or of what RSAES-OAEP with SHA-256 makes. fault.Invalid
// with a Refusal, TooLarge for what RSA cannot hold.
func (k *Key) Encrypt(plaintext []byte, p Params) (string, error) {
	room, _ := boxes.Get().(*[]byte) // it has no others
	defer boxes.Put(room)
	var body []byte
	var err error
	switch {
	case is(k.algorithm, classRSA):
		body, err = k.encryptRSA(plaintext, p)
	case is(k.algorithm, classAEAD):
		if body, err = k.seal((*room)[:0], plaintext, p); cap(body) <= keptBox {
			*room = body
		}
	default:
		err = CanEncrypt(k.algorithm)
	}
	if err != nil {
		return "", err
	}
	return Format(k.number, body), nil
}

// EncryptSecret is Encrypt of a key.
func (k *Key) EncryptSecret(m secret.Bytes, p Params) (string, error) {
	return k.Encrypt(m.Reveal(), p)
}

func (k *Key) encryptRSA(plaintext []byte, p Params) ([]byte, error) {
	if len(p.Associated) > 0 {
		return nil, refused(Refusal("associated_data not supported for key type " + TypeName(k.algorithm)))
	}
	if len(p.Nonce) > 0 {
		return nil, refused(WithNonce)
	}
	_, public := k.rsa()
	if most := public.Size() - 2*sha256.Size - 2; len(plaintext) > most {
		return nil, fault.Wrap(fault.TooLarge, "plaintext", Refusal("failed to RSA encrypt the plaintext: crypto/rsa: message too long for RSA key size"))
	}
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, public, plaintext, nil)
}

// seal appends to dst.
func (k *Key) seal(dst, plaintext []byte, p Params) ([]byte, error) {
	if len(p.Nonce) > 0 && k.settings.Convergent != 1 {
		return nil, refused(WithNonce)
	}
	aead, nonces, err := k.cipher(p.Context, k.settings.Convergent == 3)
	if err != nil {
		return nil, err
	}
	if k.settings.Convergent == 0 {
		return suite.Seal(aead, dst, plaintext, p.Associated), nil
	}
	if aead.NonceSize() != k.nonce { // the module of FIPS mode approves of no nonces but its own
		return nil, fault.New(fault.AlgorithmForbidden, "convergent encryption").WithHint("it does not run in FIPS mode")
	}
	nonce := p.Nonce
	switch k.settings.Convergent {
	case 1:
		if len(nonce) != k.nonce {
			return nil, refused(Refusal(fmt.Sprintf("base64-decoded nonce must be %d bytes long when using convergent encryption with this key", k.nonce)))
		}
		return aead.Seal(dst, nonce, plaintext, p.Associated), nil
	case 2:
		nonces = secret.Copy(p.Context)
	}
	mac := hmac.New(sha256.New, nonces.Reveal())
	mac.Write(plaintext)
	nonce = mac.Sum(nil)[:k.nonce]
	return aead.Seal(append(dst, nonce...), nonce, plaintext, p.Associated), nil
}

// Decrypt opens the body that Parse found in a text. fault.DecryptFailed, one for whatever is wrong with what was encrypted; Invalid with a Refusal
// for what is wrong with the request.
func (k *Key) Decrypt(body []byte, p Params) ([]byte, error) {
	switch {
	case is(k.algorithm, classRSA):
		private, _ := k.rsa()
		if private == nil {
			return nil, refused("cannot decrypt ciphertext, key version does not have a private counterpart")
		}
		if len(p.Associated) > 0 {
			return nil, refused(Refusal("associated_data not supported for key type " + TypeName(k.algorithm)))
		}
		out, err := rsa.DecryptOAEP(sha256.New(), nil, private, body, nil)
		if err != nil {
			return nil, fault.Wrap(fault.DecryptFailed, "ciphertext", WrongRSA)
		}
		return out, nil
	case is(k.algorithm, classAEAD):
		return k.open(body, p)
	}
	return nil, CanDecrypt(k.algorithm)
}

func (k *Key) open(body []byte, p Params) ([]byte, error) {
	if k.settings.Convergent == 1 {
		if len(p.Nonce) != k.nonce {
			return nil, refused("invalid convergent nonce supplied")
		}
		body = append(bytes.Clone(p.Nonce), body...)
	}
	aead, _, err := k.cipher(p.Context, false)
	if err != nil {
		return nil, err
	}
	out, err := suite.Open(aead, nil, body, p.Associated)
	if err == nil {
		return out, nil
	}
	words := WrongCipher
	switch { // what everybody sees of key and text, and no more
	case len(body) < k.nonce:
		words = TooShort
	case k.algorithm == suite.ChaCha20Poly1305 || k.algorithm == suite.XChaCha20Poly1305:
		words = WrongChaCha
	}
	return nil, fault.Wrap(fault.DecryptFailed, "ciphertext", words)
}

// cipher is the AEAD of a context, and the key of its nonces where it has one.
func (k *Key) cipher(context []byte, nonces bool) (a cipher.AEAD, _ secret.Bytes, err error) {
	if !k.settings.Derived {
		return k.aead, secret.Bytes{}, nil
	}
	n := k.keyBytes
	if nonces {
		n += convergentKey
	}
	b, err := k.derive(context, n)
	if err != nil {
		return nil, secret.Bytes{}, err
	}
	a, err = suite.NewAEAD(k.algorithm, secret.Take(b.Reveal()[:k.keyBytes]))
	return a, secret.Take(b.Reveal()[k.keyBytes:]), err
}

// derive makes the key of a context, of n bytes. fault.Invalid with NoContext.
func (k *Key) derive(context []byte, n int) (secret.Bytes, error) {
	if len(context) == 0 {
		return secret.Bytes{}, refused(NoContext)
	}
	if k.settings.Counter {
		return secret.Take(counter(k.input, context)[:n]), nil
	}
	b, err := hkdf.Expand(sha256.New, k.prk.Reveal(), string(context), n)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("derive key: %w", err)
	}
	return secret.Take(b), nil
}

// counter is one block of the KDF in counter mode (SP 800-108, 4.1) with HMAC-SHA256, a counter that begins with 0, the context, and the length in
// bits: 256.
func counter(key secret.Bytes, context []byte) []byte {
	h := hmac.New(sha256.New, key.Reveal())
	h.Write([]byte{0, 0, 0, 0})
	h.Write(context)
	h.Write(binary.BigEndian.AppendUint32(nil, 8*sha256.Size))
	return h.Sum(nil)
}

// DataKey makes a data key of 128, 256 or 512 bits. fault.Invalid.
func DataKey(bits int) (secret.Bytes, error) {
	switch bits {
	case 128, 256, 512:
		return secret.Random(bits / 8), nil
	}
	return secret.Bytes{}, refused("invalid bit length")
}
