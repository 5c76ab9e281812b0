//go:build pkcs11

package hsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// What PKCS #11 3.0 added for Ed25519.
const (
	edwardsKey  = 0x40   // CKK_EC_EDWARDS
	makeEdwards = 0x1055 // CKM_EC_EDWARDS_KEY_PAIR_GEN
	signEdwards = 0x1057 // CKM_EDDSA
)

// MakeHMAC has the token make a key for HMAC that never leaves it. Nothing else may have the name. ErrAway, ErrUnable.
func (t *Token) MakeHMAC(ctx context.Context, n Name, size int) error {
	return t.do(ctx, func(s *session) error {
		if _, err := s.clear(n); err != nil { // of an attempt whose answer was lost
			return err
		}
		h, err := s.makeSecret(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, hidden(
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, size),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, false), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, false),
			pkcs11.NewAttribute(pkcs11.CKA_WRAP, false), pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false), pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false)))
		if err != nil {
			return fmt.Errorf("make HMAC key: %w", err)
		}
		return s.finish(h, n)
	})
}

// pair is how the token makes a key pair, and how its public half is read.
type pair struct {
	kind      uint
	mechanism uint
	public    []*pkcs11.Attribute
	read      []uint
	parse     func(values [][]byte) (crypto.PublicKey, error)
}

// MakeRSA has the token make an RSA pair with the exponent 65,537 whose private half never leaves it. Nothing else may have the name. ErrAway, ErrUnable.
func (t *Token) MakeRSA(ctx context.Context, n Name, bits int) (crypto.PublicKey, error) {
	return t.makePair(ctx, n, pair{
		kind: pkcs11.CKK_RSA, mechanism: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		public: []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})},
		read:   []uint{pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT},
		parse: func(v [][]byte) (crypto.PublicKey, error) {
			n, e := new(big.Int).SetBytes(v[0]), new(big.Int).SetBytes(v[1])
			if n.BitLen() != bits || !e.IsInt64() || e.Int64() != 65537 {
				return nil, fmt.Errorf("%w: an RSA key of %d bits", ErrUnable, bits)
			}
			return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
		},
	})
}

// MakeECDSA has the token make a pair on a curve of NIST whose private half never leaves it. Nothing else may have the name. ErrAway, ErrUnable.
func (t *Token) MakeECDSA(ctx context.Context, n Name, c elliptic.Curve) (crypto.PublicKey, error) {
	oid, ok := map[elliptic.Curve]asn1.ObjectIdentifier{
		elliptic.P256(): {1, 2, 840, 10045, 3, 1, 7}, elliptic.P384(): {1, 3, 132, 0, 34}, elliptic.P521(): {1, 3, 132, 0, 35}, // RFC 5480, 2.1.1.1
	}[c]
	params, err := asn1.Marshal(oid)
	if !ok || err != nil {
		return nil, fmt.Errorf("%w: curve %s", ErrUnable, c.Params().Name)
	}
	return t.makePair(ctx, n, pair{
		kind: pkcs11.CKK_EC, mechanism: pkcs11.CKM_EC_KEY_PAIR_GEN,
		public: []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params)}, read: []uint{pkcs11.CKA_EC_POINT},
		parse: func(v [][]byte) (crypto.PublicKey, error) {
			return ecdsa.ParseUncompressedPublicKey(c, octets(v[0]))
		},
	})
}

// MakeEd25519 has the token make a pair whose private half never leaves it. Nothing else may have the name. ErrAway, ErrUnable.
func (t *Token) MakeEd25519(ctx context.Context, n Name) (crypto.PublicKey, error) {
	params, err := asn1.Marshal(asn1.ObjectIdentifier{1, 3, 101, 112}) // RFC 8410, 3
	if err != nil {
		return nil, err
	}
	return t.makePair(ctx, n, pair{
		kind: edwardsKey, mechanism: makeEdwards,
		public: []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params)}, read: []uint{pkcs11.CKA_EC_POINT},
		parse: func(v [][]byte) (crypto.PublicKey, error) {
			p := octets(v[0])
			if len(p) != ed25519.PublicKeySize {
				return nil, fmt.Errorf("%w: an Ed25519 key of %d bytes", ErrUnable, len(p))
			}
			return ed25519.PublicKey(p), nil
		},
	})
}

// octets is what an OCTET STRING holds, which a point is wrapped in (2.40, 2.3.3), or the bytes of a library that does not.
func octets(b []byte) []byte {
	var p []byte
	if rest, err := asn1.Unmarshal(b, &p); err == nil && len(rest) == 0 {
		return p
	}
	return b
}

func (t *Token) makePair(ctx context.Context, n Name, p pair) (crypto.PublicKey, error) {
	out := make(chan crypto.PublicKey, 1)
	err := t.do(ctx, func(s *session) error {
		if _, err := s.clear(n); err != nil { // of an attempt whose answer was lost
			return err
		}
		public, private, err := s.generatePair(p)
		if err != nil {
			return fmt.Errorf("make key pair: %w", err)
		}
		key, err := s.readPublic(public, p)
		_ = s.destroy(public) // an object of the session, which ends with it
		if err != nil {
			_ = s.destroy(private) // of no use
			return err
		}
		if err := s.finish(private, n); err != nil {
			return err
		}
		return give(out, key)
	})
	if err != nil {
		return nil, err
	}
	return <-out, nil
}

func (s *session) generatePair(p pair) (public, private pkcs11.ObjectHandle, err error) {
	s.token.module.alone.Lock()
	defer s.token.module.alone.Unlock()
	return s.lib.GenerateKeyPair(s.at, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.mechanism, nil)},
		append([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, p.kind), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
			pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
		}, p.public...),
		hidden(pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, p.kind), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
			pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, false), pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false), pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false)))
}

func (s *session) readPublic(h pkcs11.ObjectHandle, p pair) (crypto.PublicKey, error) {
	var ask []*pkcs11.Attribute
	for _, a := range p.read {
		ask = append(ask, pkcs11.NewAttribute(a, nil))
	}
	got, err := s.lib.GetAttributeValue(s.at, h, ask)
	if err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	var values [][]byte
	for _, a := range got {
		values = append(values, a.Value)
	}
	return p.parse(values)
}

// SignECDSA signs a digest: r and s, each as long as the curve's order. ErrAway, ErrNoKey, ErrUnable.
func (t *Token) SignECDSA(ctx context.Context, n Name, digest []byte) ([]byte, error) {
	return t.sign(ctx, object{n, pkcs11.CKO_PRIVATE_KEY}, pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), digest)
}

// SignEd25519 signs a message. ErrAway, ErrNoKey, ErrUnable.
func (t *Token) SignEd25519(ctx context.Context, n Name, message []byte) ([]byte, error) {
	return t.sign(ctx, object{n, pkcs11.CKO_PRIVATE_KEY}, pkcs11.NewMechanism(signEdwards, nil), message)
}

// hashing are the mechanisms of a hash.
type hashing struct{ hash, mgf, pkcs1, hmac uint }

func hashingOf(h crypto.Hash) (hashing, error) {
	switch h {
	case crypto.SHA256:
		return hashing{pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, pkcs11.CKM_SHA256_RSA_PKCS, pkcs11.CKM_SHA256_HMAC}, nil
	case crypto.SHA384:
		return hashing{pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384, pkcs11.CKM_SHA384_RSA_PKCS, pkcs11.CKM_SHA384_HMAC}, nil
	case crypto.SHA512:
		return hashing{pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512, pkcs11.CKM_SHA512_RSA_PKCS, pkcs11.CKM_SHA512_HMAC}, nil
	}
	return hashing{}, fmt.Errorf("%w: hash %s", ErrUnable, h)
}

// SignPSS signs a digest by RSASSA-PSS with MGF1 of the same hash and a salt as long as it. ErrAway, ErrNoKey, ErrUnable.
func (t *Token) SignPSS(ctx context.Context, n Name, h crypto.Hash, digest []byte) ([]byte, error) {
	m, err := hashingOf(h)
	if err != nil {
		return nil, err
	}
	return t.sign(ctx, object{n, pkcs11.CKO_PRIVATE_KEY}, pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(m.hash, m.mgf, uint(h.Size()))), digest)
}

// SignPKCS1 signs a message by RSASSA-PKCS1-v1_5. ErrAway, ErrNoKey, ErrUnable.
func (t *Token) SignPKCS1(ctx context.Context, n Name, h crypto.Hash, message []byte) ([]byte, error) {
	m, err := hashingOf(h)
	if err != nil {
		return nil, err
	}
	return t.sign(ctx, object{n, pkcs11.CKO_PRIVATE_KEY}, pkcs11.NewMechanism(m.pkcs1, nil), message)
}

// HMAC makes the authentication code of a message. ErrAway, ErrNoKey, ErrUnable.
func (t *Token) HMAC(ctx context.Context, n Name, h crypto.Hash, message []byte) ([]byte, error) {
	m, err := hashingOf(h)
	if err != nil {
		return nil, err
	}
	return t.sign(ctx, object{n, pkcs11.CKO_SECRET_KEY}, pkcs11.NewMechanism(m.hmac, nil), message)
}

var errTwo = errors.New("two keys have one name")

func (t *Token) sign(ctx context.Context, o object, m *pkcs11.Mechanism, data []byte) ([]byte, error) {
	out := make(chan []byte, 1)
	err := t.do(ctx, func(s *session) error {
		found, err := s.find(o)
		if err != nil {
			return err
		}
		if len(found) > 1 {
			return fmt.Errorf("%w: %w", ErrUnable, errTwo)
		}
		if err := s.lib.SignInit(s.at, []*pkcs11.Mechanism{m}, found[0]); err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		sig, err := s.lib.Sign(s.at, data)
		if err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		return give(out, sig)
	})
	if err != nil {
		return nil, err
	}
	return <-out, nil
}
