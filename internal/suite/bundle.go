package suite

import (
	"crypto"
	"encoding/binary"

	"filippo.io/mldsa/x509"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/secret"
)

// HMACKeySize is the length of the HMAC key that each version of purpose Transit has beside its key, in bytes.
const HMACKeySize = 32

// bundleFormat is the first byte of a bundle: 1, the length of the key in 2 bytes (big endian), the key, the HMAC key.
const bundleFormat = 1

const bundleHead = 3

// GenerateTransit makes the material of a version of purpose Transit: the Bundle of a fresh key and a fresh HMAC key. size is the length of an HMAC
// key in bytes, 0 for the algorithm's shortest, and ignored by algorithms of one length. public is as Generate returns it. fault.Invalid,
// AlgorithmForbidden.
func GenerateTransit(a Algorithm, size int) (bundle secret.Bytes, public []byte, err error) {
	s, err := forPurpose(a, Transit)
	if err != nil {
		return secret.Bytes{}, nil, err
	}
	var key secret.Bytes
	if s.KeyMax > 0 && size != 0 {
		if err := s.checkLength(size); err != nil {
			return secret.Bytes{}, nil, err
		}
		key = secret.Random(size)
	} else if key, public, err = Generate(a); err != nil {
		return secret.Bytes{}, nil, err
	}
	defer key.Destroy()
	mac := secret.Random(HMACKeySize)
	defer mac.Destroy()
	bundle, err = Bundle(key, mac)
	return bundle, public, err
}

// Bundle joins the key of a version of purpose Transit, raw or PKCS #8, and its HMAC key into one secret. The key is empty for a version whose
// public half alone is known. fault.Invalid for an HMAC key of another length, or a key of 64 KiB or more.
func Bundle(key, mac secret.Bytes) (secret.Bytes, error) {
	if mac.Len() != HMACKeySize || key.Len() >= 1<<16 {
		return secret.Bytes{}, fault.New(fault.Invalid, "key").WithHint("a key of less than 64 KiB and an HMAC key of %d bytes", HMACKeySize)
	}
	b := make([]byte, 0, bundleHead+key.Len()+mac.Len())
	b = binary.BigEndian.AppendUint16(append(b, bundleFormat), uint16(key.Len()))
	b = append(append(b, key.Reveal()...), mac.Reveal()...)
	return secret.Take(b), nil
}

// SplitBundle is the inverse of Bundle; what it returns are copies. fault.Invalid for anything that Bundle does not make.
func SplitBundle(bundle secret.Bytes) (key, mac secret.Bytes, err error) {
	b := bundle.Reveal()
	if len(b) < bundleHead || b[0] != bundleFormat || len(b) != bundleHead+int(binary.BigEndian.Uint16(b[1:]))+HMACKeySize {
		return key, mac, fault.New(fault.Invalid, "material").WithHint("it is not the bundle of a key and its HMAC key")
	}
	at := len(b) - HMACKeySize
	return secret.Copy(b[bundleHead:at]), secret.Copy(b[at:]), nil
}

// PublicOfBundle checks the key in a bundle as PublicOf does. fault.Invalid, AlgorithmForbidden.
func PublicOfBundle(a Algorithm, bundle secret.Bytes) ([]byte, error) {
	if _, err := forPurpose(a, Transit); err != nil {
		return nil, err
	}
	key, mac, err := SplitBundle(bundle)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	mac.Destroy()
	return PublicOf(a, key)
}

// PrivateKey parses the private half of a pair of purpose Transit, for the padding and hash that its caller names. fault.Invalid,
// AlgorithmForbidden.
func PrivateKey(a Algorithm, material secret.Bytes) (crypto.Signer, error) {
	s, err := forPurpose(a, Transit)
	if err != nil {
		return nil, err
	}
	return parseSigner(s, material)
}

// EncodePrivate is the inverse of PrivateKey: PKCS #8. fault.AlgorithmForbidden when the key is of another algorithm.
func EncodePrivate(a Algorithm, key crypto.Signer) (secret.Bytes, error) {
	s, err := forPurpose(a, Transit)
	if err != nil {
		return secret.Bytes{}, err
	}
	if !s.fits(key.Public()) {
		return secret.Bytes{}, fault.New(fault.AlgorithmForbidden, "private key for "+string(a))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Bytes{}, fault.Wrap(fault.Invalid, "private key for "+string(a), err)
	}
	return secret.Take(der), nil
}
