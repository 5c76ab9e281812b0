package acl

import (
	"context"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
)

// Bounds of passwords: at least 8 characters, and at least 64 are taken (NIST SP 800-63B, 5.1.1.2).
const (
	minPassword = 8   // characters
	maxPassword = 512 // bytes
)

// Locking of a user after wrong passwords in a row, as Vault does it.
const (
	maxFailures = 5
	lockFor     = 15 * time.Minute
)

// User is a user of a userpass mount.
type User struct{ Params }

// PutUser makes or changes a user; password nil leaves it. A new user needs one. fault.Invalid, Denied, TooLarge, Unavailable.
func (s *Service) PutUser(ctx context.Context, c policy.Caller, at At, password *string, change func(Spec) error) error {
	p, err := s.Guard.Admit(ctx, c, policy.ActAuthChange, about(at.Namespace))
	if err != nil {
		return err
	}
	at.Name = strings.ToLower(at.Name)
	hash := ""
	if password != nil {
		switch n := utf8.RuneCountInString(*password); {
		case *password == "":
			return bad("missing password")
		case n < minPassword || len(*password) > maxPassword || !utf8.ValidString(*password):
			return bad("a password has at least %d characters and at most %d bytes", minPassword, maxPassword)
		}
		if hash, err = s.Authority.Hasher().Make(ctx, *password); err != nil {
			return err
		}
	}
	return s.put(ctx, p, at, func(e *entry, spec Spec) error {
		if hash != "" {
			e.Password, e.Failures = hash, 0
		}
		if e.Password == "" {
			return bad("missing password")
		}
		return change(spec)
	})
}

// invalidUser is the one answer to names and passwords that do not fit, so that nobody learns which there are.
const invalidUser = "invalid username or password"

// refuseEvery is the grid on which wrong passwords are answered: wider than a hash and a commit take, so that the commit that counts a failure of a user who
// exists, and is not locked, does not show.
const refuseEvery = 100 * time.Millisecond

// LoginUser exchanges a name and a password for a token. The cost is the same whether the user exists or not. A wrong password is counted before the
// answer; after maxFailures in a row none is taken for lockFor. fault.Invalid, Unavailable when too many log in at this moment, QuotaReached.
func (s *Service) LoginUser(ctx context.Context, d Door, name, password string) (Ticket, error) {
	var out Ticket
	began := time.Now() // of the process's own clock, as it is about nothing else
	err := again(ctx, func() error {
		v, err := s.proveUser(ctx, d, strings.ToLower(name), password)
		if err != nil {
			return err
		}
		out, err = s.open(ctx, d, v)
		return err
	})
	if fault.CodeOf(err) == fault.Invalid {
		select {
		case <-time.After(refuseEvery - time.Since(began)%refuseEvery):
		case <-ctx.Done():
		}
	}
	return out, err
}

func (s *Service) proveUser(ctx context.Context, d Door, name, password string) (visitor, error) {
	refuse := func() (visitor, error) { return visitor{}, s.refuse(ctx, d, notIn(invalidUser)) }
	at := At{Namespace: d.Namespace, Mount: d.Mount, Kind: KindUser, Name: name}
	if at.valid() != nil || len(password) > maxPassword {
		return refuse()
	}
	e, cond, err := guard.Fetch[entry](ctx, s.Guard, entryPrefix+at.id())
	if err != nil {
		return visitor{}, err
	}
	ok, err := s.Authority.Hasher().Matches(ctx, password, e.Password)
	if err != nil {
		return visitor{}, err
	}
	locked := e.Failures >= maxFailures && s.Now().Sub(e.Failed) < lockFor
	switch {
	case cond.Rev == 0 || locked:
		return refuse()
	case !ok:
		if err := s.countFailure(ctx, d, at, name); err != nil {
			return visitor{}, err
		}
		return visitor{}, notIn(invalidUser)
	}
	user := &User{}
	if err := json.Unmarshal(e.Spec, user); err != nil {
		return visitor{}, fault.Wrap(fault.RecordTampered, cond.Path, err)
	}
	v := visitor{
		caller: name, display: strings.TrimSuffix(d.Mount.Path, "/") + "-" + name, source: at.id(), params: &user.Params,
		meta: map[string]string{"username": name}, conds: []guard.Cond{cond}, // no number of tries at a time gets past the limit of failures
	}
	if e.Failures > 0 {
		e.Failures = 0
		w, err := guard.Put(cond.Path, e)
		if err != nil {
			return visitor{}, err
		}
		v.writes = []guard.Write{w}
	}
	return v, nil
}

// countFailure commits one more failure in a row.
func (s *Service) countFailure(ctx context.Context, d Door, at At, name string) error {
	return again(ctx, func() error {
		e, cond, err := guard.Fetch[entry](ctx, s.Guard, entryPrefix+at.id())
		if err != nil || cond.Rev == 0 {
			return err
		}
		now := s.Now().UTC()
		if e.Failures >= maxFailures && now.Sub(e.Failed) >= lockFor {
			e.Failures = 0
		}
		if e.Failures >= maxFailures {
			return nil
		}
		e.Failures, e.Failed = e.Failures+1, now
		w, err := guard.Put(cond.Path, e)
		if err != nil {
			return err
		}
		detail := map[string]string{"refused": "vault.login", "user": name, "address": d.Address, "mount": d.Mount.Full()}
		return s.commit(ctx, s.Guard.System("acl", "vault.login", policy.Resource{Namespace: d.Namespace}), []guard.Cond{cond}, []guard.Write{w}, detail)
	})
}
