package acl

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/mounts"
	"github.com/rotorkms/rotor/internal/secret"
)

// This file is batch tokens (docs/decisions/0066). What another token's record says stands in the token itself, sealed under the key of the namespace that the
// others are in: every server reads it, and nothing is written but the entry in the log. So none is renewed, counted or revoked by itself.
const (
	batchMark     = "hvb."
	batchAccessor = "batch-" // begins the accessor of one, which is in the log alone: clients find nothing by it
	maxBatchText  = 4000     // bytes of one, which come with every request
)

// batchFacts keep what is sealed as a token from being opened as anything else.
func batchFacts() []byte { return []byte("vault batch token/1") }

func isBatch(text string) bool { return strings.HasPrefix(text, batchMark) }

// batchText seals a token into its text. fault.Invalid when there is too much of it.
func (s *Service) batchText(ctx context.Context, t token) (string, error) {
	t.Inc = s.Guard.Incarnation() // lives of namespaces are counted anew by a store that went back
	b, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encode a token: %w", err)
	}
	plain := secret.Take(b)
	defer plain.Destroy()
	sealed, err := s.Guard.SealMaterial(ctx, s.home, batchFacts(), plain)
	if err != nil {
		return "", err
	}
	text := batchMark + base64.RawURLEncoding.EncodeToString(sealed)
	if len(text) > maxBatchText {
		return "", bad("a batch token carries its metadata and policies: they are too long")
	}
	return text, nil
}

// openBatch reads a batch token that is in force: its time is not over, no recovery came since, its parents live, and the mount that gave it is there. fault.Unauthenticated.
func (s *Service) openBatch(ctx context.Context, text string) (token, error) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimPrefix(text, batchMark))
	if err != nil || len(text) > maxBatchText {
		return token{}, notToken()
	}
	m, err := s.Guard.OpenMaterial(ctx, s.home, batchFacts(), sealed)
	if fault.CodeOf(err) == fault.RecordTampered { // as of whoever makes one up
		return token{}, notToken()
	}
	if err != nil {
		return token{}, err
	}
	defer m.Destroy()
	var t token
	if err := json.Unmarshal(m.Reveal(), &t); err != nil || !t.Batch || t.Expires.IsZero() || t.Inc != s.Guard.Incarnation() || !s.Guard.HasNamespace(t.Namespace) {
		return token{}, notToken()
	}
	if !s.sourceStands(t) {
		return token{}, notToken()
	}
	return t, s.stands(ctx, t)
}

// sourceStands says whether the mount of the login is there that gave a token.
func (s *Service) sourceStands(t token) bool {
	if t.Source == "" {
		return true
	}
	for _, m := range s.Mounts.All(keyring.Namespace(t.Namespace)) {
		if m.Accessor == mountOf(t.Source) {
			return true
		}
	}
	return false
}

// typeOf is the type of the tokens of a login: the mount's word if that is no default, then the role's.
func typeOf(m mounts.Mount, asked string) (batch bool) {
	switch m.Settings.TokenType {
	case "batch", "service":
		return m.Settings.TokenType == "batch"
	}
	switch asked {
	case "batch", "default-batch":
		return true
	case "", "default":
		return m.Settings.TokenType == "default-batch"
	}
	return false
}
