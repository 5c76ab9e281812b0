//go:build pkcs11

package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"errors"
	"slices"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/hsm"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
)

// Keys are the keys of one cluster in a token. Safe for concurrent use.
type Keys struct {
	token *hsm.Token
	label string
}

// Open loads the token's library, and asks the token nothing. fault.Invalid, NotFound.
func Open(c hsm.Config, cluster string) (*Keys, error) {
	t, err := hsm.Open(c)
	if err != nil {
		return nil, err
	}
	return &Keys{t, "rotor " + cluster}, nil
}

func (k *Keys) name(id string) hsm.Name { return hsm.Name{Label: k.label, ID: id} }

// Make makes an object of an algorithm, and has it do its work once: what the token cannot do is refused now. public is the encoded public key of a pair. When it fails
// there may be something of the name. fault.Unavailable, AlgorithmForbidden.
func (k *Keys) Make(ctx context.Context, a suite.Algorithm, id string) (public []byte, err error) {
	s, err := suite.Lookup(a)
	if err != nil {
		return nil, err
	}
	if !s.Token() {
		return nil, fault.New(fault.AlgorithmForbidden, "algorithm "+string(a)+" in a token")
	}
	pair, err := k.generate(ctx, s, k.name(id))
	if err != nil {
		return nil, faultOf(err, a)
	}
	if pair != nil {
		if public, err = suite.EncodePublic(a, pair); err != nil {
			return nil, err
		}
	}
	return public, k.prove(ctx, s, id, public)
}

// generate returns the public key of a pair.
func (k *Keys) generate(ctx context.Context, s suite.Spec, n hsm.Name) (crypto.PublicKey, error) {
	switch {
	case s.Nonce > 0:
		return nil, k.token.MakeAES(ctx, n, s.KeyBytes)
	case s.KeyBytes > 0:
		return nil, k.token.MakeHMAC(ctx, n, s.KeyBytes)
	case s.RSABits > 0:
		return k.token.MakeRSA(ctx, n, s.RSABits)
	case s.ID == suite.Ed25519:
		return k.token.MakeEd25519(ctx, n)
	}
	return k.token.MakeECDSA(ctx, n, curve(s))
}

// curve is that of an ECDSA of the table.
func curve(s suite.Spec) elliptic.Curve {
	switch s.Hash {
	case crypto.SHA384:
		return elliptic.P384()
	case crypto.SHA512:
		return elliptic.P521()
	}
	return elliptic.P256()
}

// proof is what a new object works on.
var proof = []byte("rotor: this object does its work")

// prove compares what the object does with the algorithm's code in memory, as far as that can be done without the key.
func (k *Keys) prove(ctx context.Context, s suite.Spec, id string, public []byte) error {
	cannot := fault.New(fault.AlgorithmForbidden, "algorithm "+string(s.ID)+" in this token").WithHint("the token makes the key, and what it does with it is wrong")
	switch {
	case s.Nonce > 0:
		box, err := k.Seal(ctx, id, proof, proof)
		if err != nil {
			return err
		}
		out, err := k.Open(ctx, id, box, proof)
		if err != nil {
			return err
		}
		if !bytes.Equal(out, proof) {
			return cannot
		}
		return nil
	case s.KeyBytes > 0:
		tag, err := k.Sign(ctx, s.ID, id, proof)
		if err == nil && len(tag) != s.Hash.Size() {
			return cannot
		}
		return err
	}
	sig, err := k.Sign(ctx, s.ID, id, proof)
	if err != nil {
		return err
	}
	if suite.Verify(s.ID, public, proof, sig) != nil {
		return cannot
	}
	return nil
}

// Seal encrypts by AES-GCM: nonce, ciphertext, tag. fault.Unavailable, NotFound.
func (k *Keys) Seal(ctx context.Context, id string, plaintext, data []byte) ([]byte, error) {
	own := secret.Copy(plaintext)
	defer own.Destroy() // the token's room has a copy of its own
	box, err := k.token.Encrypt(ctx, k.name(id), own, data)
	return box, faultOf(err, suite.AES256GCM)
}

// Open opens what Seal made. fault.DecryptFailed, Unavailable, NotFound.
func (k *Keys) Open(ctx context.Context, id string, box, data []byte) ([]byte, error) {
	plain, err := k.token.Decrypt(ctx, k.name(id), box, data)
	if err != nil {
		return nil, faultOf(err, suite.AES256GCM)
	}
	defer plain.Destroy()
	return slices.Clone(plain.Reveal()), nil
}

// Sign signs a message as suite.Signer does, and makes the tag of a MAC key as suite.Tag does. fault.Unavailable, NotFound, AlgorithmForbidden.
func (k *Keys) Sign(ctx context.Context, a suite.Algorithm, id string, msg []byte) ([]byte, error) {
	s, err := suite.Lookup(a)
	if err != nil {
		return nil, err
	}
	out, err := k.sign(ctx, s, k.name(id), msg)
	return out, faultOf(err, a)
}

func (k *Keys) sign(ctx context.Context, s suite.Spec, n hsm.Name, msg []byte) ([]byte, error) {
	switch {
	case s.KeyBytes > 0:
		return k.token.HMAC(ctx, n, s.Hash, msg)
	case s.ID == suite.Ed25519:
		return k.token.SignEd25519(ctx, n, msg)
	case s.PSS():
		return k.token.SignPSS(ctx, n, s.Hash, s.Digest(msg))
	case s.RSABits > 0:
		return k.token.SignPKCS1(ctx, n, s.Hash, msg)
	}
	return k.token.SignECDSA(ctx, n, s.Digest(msg))
}

// Alive asks whether the token is there. fault.Unavailable.
func (k *Keys) Alive(ctx context.Context) error { return faultOf(k.token.Alive(ctx), "") }

// Destroy destroys an object, and says whether there was one. fault.Unavailable.
func (k *Keys) Destroy(ctx context.Context, id string) (was bool, err error) {
	was, err = k.token.Destroy(ctx, k.name(id))
	return was, faultOf(err, "")
}

// faultOf is a token's error as a fault.
func faultOf(err error, a suite.Algorithm) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hsm.ErrRefused):
		return fault.New(fault.DecryptFailed, "ciphertext")
	case errors.Is(err, hsm.ErrNoKey):
		return fault.Wrap(fault.NotFound, "object in the token", err).WithHint("somebody destroyed it there, or the token is another one; bring the token's backup")
	case errors.Is(err, hsm.ErrUnable):
		return fault.Wrap(fault.AlgorithmForbidden, "algorithm "+string(a)+" in this token", err).WithHint("the token, or the user of this PIN, cannot do it; choose another algorithm, or custody server")
	case errors.Is(err, hsm.ErrAway):
		return fault.Wrap(fault.Unavailable, "token", err).WithHint("the token cannot be reached; the server's log says why")
	}
	return err
}
