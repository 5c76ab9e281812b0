// Package issuer makes access tokens and the key set that verifies them.
package issuer

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/kms"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/suite"
	"github.com/rotorkms/rotor/internal/token"
)

// Bounds of a token's life.
const (
	DefaultTTL = 5 * time.Minute
	MaxTTL     = 24 * time.Hour
)

// Issuer signs with the keys of a kms.Service.
type Issuer struct {
	KMS  *kms.Service
	Name string // the "iss" claim
	Now  func() time.Time
}

// Issue makes a token for the caller itself, signed by the primary version of the key. fault.Denied, Invalid.
func (i Issuer) Issue(ctx context.Context, c policy.Caller, ref kms.Ref, audience string, scope []string, ttl time.Duration) (string, error) {
	if audience == "" || len(audience) > 256 || len(scope) > 32 {
		return "", fault.New(fault.Invalid, "audience")
	}
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	if ttl > MaxTTL {
		return "", fault.New(fault.Invalid, "ttl").WithHint("at most %s", MaxTTL)
	}
	now := i.Now()
	msg, sig, err := i.KMS.SignToken(ctx, c, ref, func(k keyring.Key, v keyring.Version) ([]byte, error) {
		return token.Input(v.Algorithm, KeyID(k.Namespace, v.Handle), token.Claims{
			Issuer: i.Name, Subject: c.Name, Audience: audience, IssuedAt: now.Unix(), NotBefore: now.Unix(),
			Expires: now.Add(ttl).Unix(), ID: hex.EncodeToString(secret.Random(16).Reveal()), Scope: strings.Join(scope, " "),
		})
	})
	if err != nil {
		return "", err
	}
	return token.Assemble(msg, sig), nil
}

// KeyID is the "kid" of a version: its handle, which is never used again in its namespace.
func KeyID(ns keyring.Namespace, handle uint32) string { return fmt.Sprintf("%s-%08x", ns, handle) }

// Set is the key set of a namespace, and how long it may be cached: pre-published, signing and verify-only versions of every
// signing key.
func (i Issuer) Set(ns keyring.Namespace) (token.Set, time.Duration) {
	var s token.Set
	maxAge := 5 * time.Minute
	for _, k := range i.KMS.Keys() {
		if k.Purpose != suite.Sign || k.Namespace != ns {
			continue
		}
		maxAge = min(maxAge, k.Rotation.Margin)
		for _, v := range k.Snapshot().Versions {
			if v.Live() && v.State != keyring.Compromised && v.State != keyring.Suspended {
				s.Keys = append(s.Keys, token.Key{ID: KeyID(ns, v.Handle), Algorithm: v.Algorithm, Public: v.Public})
			}
		}
	}
	return s, maxAge
}
