package suite

import (
	"crypto/mlkem"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
)

// mlkemOID is the object identifier of a parameter set (RFC 9935, 3; NIST CSOR).
func (s Spec) mlkemOID() asn1.ObjectIdentifier {
	switch s.ID {
	case MLKEM768:
		return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 2}
	case MLKEM1024:
		return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 3}
	}
	return nil
}

// spki is SubjectPublicKeyInfo (RFC 5280, 4.1).
type spki struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

// pkcs8 is OneAsymmetricKey without attributes (RFC 5958, 2).
type pkcs8 struct {
	Version   int
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

var errMLKEM = errors.New("suite: not an ML-KEM key of this size in its form (RFC 9935), or not the seed form")

func (s Spec) marshalEncapsulation(raw []byte) ([]byte, error) {
	return asn1.Marshal(spki{pkix.AlgorithmIdentifier{Algorithm: s.mlkemOID()}, asn1.BitString{Bytes: raw, BitLength: 8 * len(raw)}})
}

func (s Spec) parseEncapsulation(der []byte) (any, error) {
	var k spki
	rest, err := asn1.Unmarshal(der, &k)
	if err != nil || len(rest) > 0 || !k.Algorithm.Algorithm.Equal(s.mlkemOID()) || len(k.Algorithm.Parameters.FullBytes) > 0 || k.Key.BitLength%8 != 0 {
		return nil, errMLKEM
	}
	if s.ID == MLKEM768 {
		return mlkem.NewEncapsulationKey768(k.Key.Bytes)
	}
	return mlkem.NewEncapsulationKey1024(k.Key.Bytes)
}

// marshalSeed makes the seed form, [0] IMPLICIT OCTET STRING (RFC 9935, 6).
func (s Spec) marshalSeed(seed []byte) ([]byte, error) {
	inner, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: seed})
	if err != nil {
		return nil, err
	}
	defer clear(inner)
	return asn1.Marshal(pkcs8{0, pkix.AlgorithmIdentifier{Algorithm: s.mlkemOID()}, inner})
}

func (s Spec) parseSeed(der []byte) (any, error) {
	var k pkcs8
	rest, err := asn1.Unmarshal(der, &k)
	if err != nil || len(rest) > 0 || k.Version != 0 || !k.Algorithm.Algorithm.Equal(s.mlkemOID()) || len(k.Algorithm.Parameters.FullBytes) > 0 {
		return nil, errMLKEM
	}
	var seed asn1.RawValue
	rest, err = asn1.Unmarshal(k.Key, &seed)
	if err != nil || len(rest) > 0 || seed.Class != asn1.ClassContextSpecific || seed.Tag != 0 || seed.IsCompound || len(seed.Bytes) != mlkem.SeedSize {
		return nil, errMLKEM
	}
	if s.ID == MLKEM768 {
		return mlkem.NewDecapsulationKey768(seed.Bytes)
	}
	return mlkem.NewDecapsulationKey1024(seed.Bytes)
}
