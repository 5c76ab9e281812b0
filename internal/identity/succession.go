package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
)

// Succeeds says whether a certificate is another one of the same authority: it has name and key of the pinned one, is an authority of leaves alone
// as that is, and is signed by that key. Who can make one could have signed anything with the pinned certificate already, so it is trusted as
// that is; but it may end later, which lets an authority go on when its first certificate ends.
func Succeeds(pinned, next *x509.Certificate) bool {
	key, ok := pinned.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(next.PublicKey) && bytes.Equal(pinned.RawSubject, next.RawSubject) && SPIFFE(pinned) == SPIFFE(next) &&
		next.IsCA && next.MaxPathLenZero && next.CheckSignatureFrom(pinned) == nil
}

// later is what an identity pins after the server named an authority: the certificate of the two that ends later, nil if they are not of the
// same authority. A server that was not started again since a succession still names the older one.
func later(pinned, named *x509.Certificate) *x509.Certificate {
	switch {
	case pinned.Equal(named):
		return pinned
	case !Succeeds(pinned, named):
		return nil
	case named.NotAfter.After(pinned.NotAfter):
		return named
	}
	return pinned
}
