// Package issuer makes access tokens and the key set that verifies them.
package issuer

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
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

// Bounds of what a caller chooses, in bytes and numbers; together they stay below what verifiers read.
const (
	maxAudience = 256
	maxScopes   = 32
	maxScope    = 128
)

// backdate is how far a verifier's clock may be behind without refusing a fresh token.
const backdate = 30 * time.Second

// Issuer signs with the keys of a kms.Service.
type Issuer struct {
	KMS  *kms.Service
	Name string        // the "iss" claim
	Lag  time.Duration // how old a set may be that a server hands out while another has changed it: taken off the time that it may be cached
	Now  func() time.Time
}

// Issue makes a token for the caller itself, signed by the primary version of the key. fault.Denied, Invalid.
func (i Issuer) Issue(ctx context.Context, c policy.Caller, ref kms.Ref, audience string, scope []string, ttl time.Duration) (string, error) {
	if err := check(audience, scope, ttl); err != nil {
		return "", err
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	now := i.Now()
	msg, sig, err := i.KMS.SignToken(ctx, c, ref, func(k keyring.Key, v keyring.Version) ([]byte, error) {
		return token.Input(v.Algorithm, KeyID(k.Namespace, v.Handle), token.Claims{
			Issuer: i.Name, Subject: c.Name, Audience: audience, IssuedAt: now.Unix(), NotBefore: now.Add(-backdate).Unix(),
			Expires: now.Add(ttl).Unix(), ID: hex.EncodeToString(secret.Random(16).Reveal()), Scope: strings.Join(scope, " "),
		})
	})
	if err != nil {
		return "", err
	}
	return token.Assemble(msg, sig), nil
}

// check bounds what a caller chooses, so that every token that is issued can be verified. fault.Invalid names the field.
func check(audience string, scope []string, ttl time.Duration) error {
	bad := func(field, hint string, args ...any) error {
		return fault.New(fault.Invalid, field).WithHint(hint, args...)
	}
	if !printable(audience, "") || len(audience) > maxAudience {
		return bad("audience", "1 to %d printable ASCII characters", maxAudience)
	}
	if len(scope) > maxScopes {
		return bad("scope", "at most %d", maxScopes)
	}
	for _, s := range scope {
		if !printable(s, "\"\\") || strings.Contains(s, " ") || len(s) > maxScope {
			return bad("scope", "each 1 to %d printable ASCII characters without space, quote and backslash (RFC 6749, 3.3)", maxScope)
		}
	}
	if ttl != 0 && (ttl < time.Second || ttl > MaxTTL) {
		return bad("ttl", "1 s to %s", MaxTTL)
	}
	return nil
}

func printable(s, but string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c != ' ' && strings.IndexByte(but, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// KeyID is the "kid" of a version: its handle, which is never used again in its namespace.
func KeyID(ns keyring.Namespace, handle uint32) string { return fmt.Sprintf("%s-%08x", ns, handle) }

// published says whether strangers may know a version: before it signs, while it does, and while what it signed is to be verified.
func published(k keyring.Key, s keyring.SnapshotVersion, now time.Time) bool {
	v, err := k.Version(s.Number)
	return err == nil && s.Live() && (v.State == keyring.PreActivation || k.MayProcess(v, time.Time{}, now, false) == nil)
}

// Set is the key set of a namespace, and how long it may be cached: pre-published, signing and verify-only versions of every
// signing key.
func (i Issuer) Set(ns keyring.Namespace) (token.Set, time.Duration) {
	var s token.Set
	maxAge := 5 * time.Minute
	for _, k := range i.KMS.Keys() {
		if k.Purpose != suite.Sign || k.Namespace != ns {
			continue
		}
		maxAge = min(maxAge, max(0, k.Rotation.Margin-i.Lag))
		for _, v := range k.Snapshot().Versions {
			if published(k, v, i.Now()) {
				s.Keys = append(s.Keys, token.Key{ID: KeyID(ns, v.Handle), Algorithm: v.Algorithm, Public: v.Public})
			}
		}
	}
	slices.SortFunc(s.Keys, func(a, b token.Key) int { return cmp.Compare(a.ID, b.ID) })
	return s, maxAge
}
