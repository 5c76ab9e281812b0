package suite

import (
	"fmt"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// Transport is a way in which key material travels sealed to a public key: into a cluster by import, out of it by export.
type Transport string

// TransportRSA is PKCS #11's CKM_RSA_AES_KEY_WRAP, which cloud services and tokens speak: a fresh AES-256 key under RSAES-OAEP with SHA-256 and an
// empty label, then the material under AES-KWP with that key. The others are the HPKE algorithms by their names.
const TransportRSA Transport = "RSA-OAEP-256+AES-KWP"

// Transports lists the ways, the default first.
func Transports() []Transport {
	return []Transport{Transport(HPKEXWing), Transport(HPKEMLKEM768P256), Transport(HPKEP256), Transport(HPKEX25519), TransportRSA}
}

// transportKEK is the size of the key between RSA and the material, in bytes.
const transportKEK = 32

// transportInfo is the info of HPKE: what the material is sealed for.
func transportInfo(label string) []byte { return []byte("rotor/key-transport/1\x00" + label) }

// algorithms are those that the recipient's key may be of.
func (t Transport) algorithms() []Algorithm {
	switch t {
	case TransportRSA:
		return []Algorithm{RSAOAEP256, RSAOAEP256_4k, RSAOAEP256_2k}
	case Transport(HPKEXWing), Transport(HPKEMLKEM768P256), Transport(HPKEP256), Transport(HPKEX25519):
		return []Algorithm{Algorithm(t)}
	}
	return nil
}

// FIPS says whether the way runs in FIPS mode.
func (t Transport) FIPS() bool {
	for _, a := range t.algorithms() {
		if s, err := Lookup(a); err != nil || !s.FIPS {
			return false
		}
	}
	return t.algorithms() != nil
}

// GenerateTransport makes a key pair that material can be sealed to. fault.AlgorithmForbidden for an unknown way.
func GenerateTransport(t Transport) (private secret.Bytes, public []byte, err error) {
	all := t.algorithms()
	if all == nil {
		return private, nil, unknownTransport(t)
	}
	return Generate(all[0])
}

func unknownTransport(t Transport) error {
	return fault.New(fault.AlgorithmForbidden, "transport "+string(t)).WithHint("one of %v", Transports())
}

// SealKey seals material to a public key. label says what for and is given again to OpenKey; RSA does not bind it. fault.AlgorithmForbidden,
// Invalid.
func SealKey(t Transport, public []byte, label string, key secret.Bytes) ([]byte, error) {
	err := unknownTransport(t)
	for _, a := range t.algorithms() {
		if _, perr := ParsePublic(a, public); perr != nil {
			err = perr
			continue
		}
		if t != TransportRSA {
			return EncryptTo(a, public, key.Reveal(), transportInfo(label))
		}
		kek := secret.Random(transportKEK)
		defer kek.Destroy()
		front, err := EncryptTo(a, public, kek.Reveal(), nil)
		if err != nil {
			return nil, err
		}
		back, err := WrapKWP(kek, key)
		return append(front, back...), err
	}
	return nil, err
}

// OpenKey opens what SealKey made for the pair of GenerateTransport. fault.DecryptFailed.
func OpenKey(t Transport, private secret.Bytes, label string, blob []byte) (secret.Bytes, error) {
	all := t.algorithms()
	if all == nil {
		return secret.Bytes{}, unknownTransport(t)
	}
	d, err := NewDecrypter(all[0], private)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open sealed key: %w", err)
	}
	if t != TransportRSA {
		key, err := d.Decrypt(blob, transportInfo(label))
		return secret.Take(key), err
	}
	failed := fault.New(fault.DecryptFailed, "sealed key")
	n := d.spec.RSABits / 8
	if len(blob) < n {
		return secret.Bytes{}, failed
	}
	kek, err := d.Decrypt(blob[:n], nil)
	if err != nil || len(kek) != transportKEK {
		return secret.Bytes{}, failed
	}
	k := secret.Take(kek)
	defer k.Destroy()
	key, err := UnwrapKWP(k, blob[n:])
	if err != nil {
		return secret.Bytes{}, failed
	}
	return key, nil
}
