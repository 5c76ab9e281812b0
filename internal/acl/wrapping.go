package acl

import (
	"context"
	"crypto/subtle"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
)

// Bounds of wrapped answers.
const (
	maxWrapped = 256 << 10           // bytes of one
	MaxWrapTTL = 32 * 24 * time.Hour // that one waits for
)

// wrap is the stored record of a wrapping token, without what it stands for.
type wrap struct {
	Hash            []byte        `json:"hash"`
	Accessor        string        `json:"accessor"`
	Namespace       string        `json:"namespace"`
	Path            string        `json:"path"` // that was answered
	Created         time.Time     `json:"created"`
	Expires         time.Time     `json:"expires"`
	TTL             time.Duration `json:"ttl_ns"`
	WrappedAccessor string        `json:"wrapped_accessor,omitempty"`
	Owner           string        `json:"owner,omitempty"` // whom it counts for
	Mount           string        `json:"mount,omitempty"` // accessor of where that logged in
}

// wrapped is the whole record. Only Unwrap reads it; it is sealed like every other.
type wrapped struct {
	wrap
	Answer []byte `json:"answer"`
}

// Wrapping is what stands in the place of an answer.
type Wrapping struct {
	Text            string // of the token, shown once
	Accessor, Path  string
	TTL             time.Duration
	Created         time.Time
	WrappedAccessor string // of the token in the answer
}

// notWrapping is the one answer to what is no wrapping token, or was one and is opened.
func notWrapping() error { return bad("wrapping token is not valid or does not exist") }

// CreateWrapping keeps an answer for whoever shows the token first. ns and path are those of the request; inner is the accessor of a token in the
// answer. The caller had the right to the answer itself, so it needs no other. fault.Invalid, TooLarge, QuotaReached.
func (s *Service) CreateWrapping(ctx context.Context, c policy.Caller, ns, path string, answer []byte, ttl time.Duration, inner string) (Wrapping, error) {
	switch {
	case ttl <= 0 || ttl > MaxWrapTTL:
		return Wrapping{}, bad("requested wrapping TTL is not valid: above 0 and at most %d days", int(MaxWrapTTL.Hours()/24))
	case len(answer) > maxWrapped:
		return Wrapping{}, fault.New(fault.TooLarge, "answer").WithHint("at most %d bytes can be wrapped", maxWrapped)
	}
	p := s.Guard.System("acl", "vault.wrap", about(ns))
	if !c.IsZero() {
		p = s.Guard.Vouch(c, "vault.wrap", "of its own answer").Within(ns)
	}
	w := wrap{Namespace: ns, Path: path, TTL: ttl, WrappedAccessor: inner, Owner: ownerOf(c.Name, c.Makers), Mount: c.Mount}
	if c.IsZero() { // a login: it counts for whose token is in the answer, or who could log in on that path
		s.mu.RLock()
		if r, ok := s.tokens.Get(s.index.accessors[inner]); ok {
			w.Owner, w.Mount = ownerOf(r.Value.Caller, r.Value.Makers), r.Value.Mount
		} else {
			w.Owner = path
		}
		s.mu.RUnlock()
	}
	return s.keep(ctx, p, func() (wrapped, []guard.Cond, []guard.Write, error) { return wrapped{w, answer}, nil, nil, nil })
}

// keep commits an answer under a new token, with what goes in its place. what is asked again when something changed meanwhile.
func (s *Service) keep(ctx context.Context, p *guard.Permit, what func() (wrapped, []guard.Cond, []guard.Write, error)) (out Wrapping, err error) {
	err = again(ctx, func() error {
		r, conds, writes, err := what()
		if err != nil {
			return err
		}
		slot, cond, done, err := reserve(s, s.wraps, r.groups())
		if err != nil {
			return err
		}
		defer done()
		r.Accessor, r.Created = newAccessor(), s.Now().UTC()
		r.Expires = r.Created.Add(r.TTL)
		text, hash := newText(kindWrap, slot)
		r.Hash = hash
		w, err := guard.Put(cond.Path, r)
		if err != nil {
			return err
		}
		if err := s.commit(ctx, p, append(conds, cond), append(writes, w), map[string]string{"accessor": r.Accessor, "path": r.Path}); err != nil {
			return err
		}
		out = Wrapping{text, r.Accessor, r.Path, r.TTL, r.Created, r.WrappedAccessor}
		return nil
	})
	return out, err
}

// Rewrap keeps the answer that a token stands for under another one, for as long as at first, in one commit: the first opens nothing any more. fault.Invalid, Denied.
func (s *Service) Rewrap(ctx context.Context, c policy.Caller, ns, text string) (Wrapping, error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActUnwrapAnswer, about(ns))
	if err != nil {
		return Wrapping{}, err
	}
	kind, slot, err := parseToken(text)
	if err != nil || kind != kindWrap {
		return Wrapping{}, notWrapping()
	}
	return s.keep(ctx, p, func() (wrapped, []guard.Cond, []guard.Write, error) {
		r, cond, err := s.closed(ctx, slot, text)
		return r, []guard.Cond{cond}, []guard.Write{{Path: cond.Path, Delete: true}}, err
	})
}

// closed reads what a token stands for, as long as nobody has opened it. fault.Invalid.
func (s *Service) closed(ctx context.Context, slot, text string) (wrapped, guard.Cond, error) {
	r, cond, err := guard.Fetch[wrapped](ctx, s.Guard, wrapPrefix+slot)
	if err == nil && (cond.Rev == 0 || subtle.ConstantTimeCompare(r.Hash, hashOf(text)) != 1 || !s.Now().Before(r.Expires)) {
		err = notWrapping()
	}
	return r, cond, err
}

// identifyWrap names the bearer of a wrapping token, who may open it and nothing else.
func (s *Service) identifyWrap(ctx context.Context, slot, text string) (policy.Caller, time.Time, error) {
	w, err := s.findWrap(ctx, slot, text)
	if err != nil {
		return policy.Caller{}, time.Time{}, notToken()
	}
	acl, err := s.acl(w.Namespace, []string{"response-wrapping"})
	return policy.Caller{Kind: policy.KindVault, Name: "vault/wrapping", ACL: acl}, w.Expires, err
}

func (s *Service) findWrap(ctx context.Context, slot, text string) (wrap, error) {
	look := func() (wrap, bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		r, ok := s.wraps.Get(slot)
		return r.Value, ok && subtle.ConstantTimeCompare(r.Value.Hash, hashOf(text)) == 1 && s.Now().Before(r.Value.Expires)
	}
	w, ok := look()
	if !ok {
		if err := s.catchUp(ctx, wrapPrefix+slot); err != nil {
			return wrap{}, err
		}
		if w, ok = look(); !ok {
			return wrap{}, notWrapping()
		}
	}
	return w, nil
}

// LookupWrapping tells of a wrapping token, to whoever has it, without opening it. fault.Invalid.
func (s *Service) LookupWrapping(ctx context.Context, text string) (Wrapping, error) {
	kind, slot, err := parseToken(text)
	if err != nil || kind != kindWrap {
		return Wrapping{}, notWrapping()
	}
	w, err := s.findWrap(ctx, slot, text)
	return Wrapping{"", w.Accessor, w.Path, w.TTL, w.Created, w.WrappedAccessor}, err
}

// Unwrap gives the answer that a token stands for, once: whoever is second gets none, at whichever server. That it was opened is durable before the
// answer is given; an answer that is lost on its way is lost. fault.Invalid, Denied.
func (s *Service) Unwrap(ctx context.Context, c policy.Caller, ns, text string) (answer []byte, path string, err error) {
	p, err := s.Guard.Admit(ctx, c, policy.ActUnwrapAnswer, about(ns))
	if err != nil {
		return nil, "", err
	}
	kind, slot, err := parseToken(text)
	if err != nil || kind != kindWrap {
		return nil, "", notWrapping()
	}
	r, cond, err := s.closed(ctx, slot, text)
	if err != nil {
		return nil, "", err
	}
	err = s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{{Path: cond.Path, Delete: true}}, map[string]string{"accessor": r.Accessor, "path": r.Path})
	if fault.CodeOf(err) == fault.Conflict {
		return nil, "", notWrapping()
	}
	if err != nil {
		return nil, "", err
	}
	return r.Answer, r.Path, nil
}
