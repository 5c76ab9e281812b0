package authn

import (
	"cmp"
	"slices"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/oidc"
)

// Access says who may come in besides instances and administrators, and for how long. The zero value lets in those with a credential.
type Access struct {
	SessionLife  time.Duration // absolute limit of a session; default 12 h, at most MaxSessionLife
	SessionIdle  time.Duration // how long a session lives without use; default 1 h, at least a minute
	Failures     int           // in a row, after which a credential is locked until an administrator unlocks it; default 20, at most MaxFailures
	Issuers      []*oidc.Issuer
	Certificates []*ClientCA
}

// access is the checked form, swapped as a whole.
type access struct {
	sessions struct{ Life, Idle time.Duration }
	failures uint32
	Access
}

// Validate says what is wrong, and changes nothing. fault.Invalid.
func (a Access) Validate() error {
	_, err := a.check()
	return err
}

func (a Access) check() (*access, error) {
	out := &access{Access: a}
	out.sessions.Life = cmp.Or(a.SessionLife, 12*time.Hour)
	out.sessions.Idle = cmp.Or(a.SessionIdle, time.Hour)
	n := cmp.Or(a.Failures, 20)
	bad := func(field, hint string) error { return fault.New(fault.Invalid, field).WithHint("%s", hint) }
	switch {
	case out.sessions.Life < minIdle || out.sessions.Life > MaxSessionLife:
		return nil, bad("session_life", "1 m to 24 h")
	case out.sessions.Idle < minIdle || out.sessions.Idle > out.sessions.Life:
		return nil, bad("session_idle", "1 m to session_life")
	case n < 1 || n > MaxFailures:
		return nil, bad("failures", "1 to 100")
	}
	out.failures = uint32(n)
	var names []string
	for _, i := range a.Issuers {
		names = append(names, i.Name)
	}
	for _, c := range a.Certificates {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		return nil, bad("auth", "two issuers or authorities have one name")
	}
	return out, nil
}

func (a *access) issuer(name string) *oidc.Issuer {
	return find(a.Issuers, func(i *oidc.Issuer) bool { return i.Name == name })
}

func (a *access) certificate(name string) *ClientCA {
	return find(a.Certificates, func(c *ClientCA) bool { return c.Name == name })
}

// choose finds the issuer that a token names, or that its bearer named. fault.TokenInvalid.
func (a *access) choose(p Proof) (*oidc.Issuer, error) {
	is := func(i *oidc.Issuer) bool { return i.Name == p.Issuer }
	if p.Issuer == "" {
		named, err := oidc.IssuerOf(p.JWT)
		if err != nil {
			return nil, err
		}
		is = func(i *oidc.Issuer) bool { return i.URL == named }
	}
	if i := find(a.Issuers, is); i != nil {
		return i, nil
	}
	return nil, fault.New(fault.TokenInvalid, "token").WithHint("its issuer is not configured here")
}

func find[T any](all []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i]
	}
	return nil
}

// Configure swaps who may come in; sessions of issuers and authorities that are gone end. fault.Invalid, and then nothing changes.
func (a *Authority) Configure(c Access) error {
	checked, err := c.check()
	if err != nil {
		return err
	}
	if old := a.access.Swap(checked); old != nil {
		for _, i := range checked.Issuers {
			if before := old.issuer(i.Name); before != nil && before != i {
				i.Inherit(before)
				before.Close()
			}
		}
	}
	return nil
}
