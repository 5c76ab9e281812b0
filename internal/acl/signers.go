package acl

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/oidc"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

// signers are the keys that the tokens of others are verified with, by the entry that configures them.
type signers struct {
	mu  sync.Mutex // guards all
	all map[string]signer
}

type signer struct {
	rev  store.Rev // of the entry
	keys *oidc.Keys
}

// keys gives the keys that an entry configures, which stay as long as it does not change: what was fetched is not fetched again.
func (g *signers) keys(id string, rev store.Rev, make func() (*oidc.Keys, error)) (*oidc.Keys, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, ok := g.all[id]
	if ok && old.rev == rev {
		return old.keys, nil
	}
	keys, err := make()
	if err != nil {
		return nil, err
	}
	if ok {
		old.keys.Close()
	}
	if g.all == nil || len(g.all) >= maxSigners {
		g.all = map[string]signer{}
	}
	g.all[id] = signer{rev, keys}
	return keys, nil
}

// maxSigners bounds the configurations whose keys are kept.
const maxSigners = 1000

// read finds an entry in the store, with what it says. there false: there is none.
func read[T Spec](ctx context.Context, s *Service, at At, into T) (e entry, rev store.Rev, there bool, err error) {
	if at.valid() != nil {
		return e, 0, false, nil //nolint:nilerr // what has no valid name is not there
	}
	e, cond, err := guard.Fetch[entry](ctx, s.Guard, entryPrefix+at.id())
	if err != nil || cond.Rev == 0 {
		return e, 0, false, err
	}
	if err := json.Unmarshal(e.Spec, into); err != nil {
		return e, 0, false, fault.Wrap(fault.RecordTampered, cond.Path, err)
	}
	return e, cond.Rev, true, nil
}

// inTime checks the times of a token with the skew of the clocks. One without an end is refused, as it could never be taken back.
func inTime(c oidc.Claims, now time.Time, skew time.Duration) error {
	exp, there, err := c.Moment("exp")
	switch {
	case err != nil:
		return err
	case !there:
		return bad("error validating token: it has no end (exp)")
	case !now.Before(exp.Add(skew)):
		return bad("error validating token: invalid expiration time (exp) claim: token is expired")
	}
	for _, name := range []string{"nbf", "iat"} {
		t, there, err := c.Moment(name)
		if err != nil {
			return err
		}
		if there && now.Add(skew).Before(t) {
			return bad("error validating token: invalid %s claim: token not yet valid", name)
		}
	}
	return nil
}

// globs says whether one of some patterns, in which * stands for anything, fits one of some texts.
func globs(patterns, texts []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return slices.ContainsFunc(texts, func(s string) bool { return policy.Match(strings.ReplaceAll(p, "*", "**"), s) })
	})
}

// sayable says whether a name that somebody else gave can be a part of a caller's: it does nothing to a terminal, and reads as it is written.
func sayable(name string) bool {
	return name != "" && len(name) <= maxDisplay && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}
