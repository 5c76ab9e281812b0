package authn

import (
	"cmp"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	adminPrefix = "authn/admin/"
	enrolPrefix = "authn/enrol/"
)

// admin is the stored record of an administrator. A certificate carries the generation that it was made in, as an instance's does.
type admin struct {
	Generation uint64    `json:"generation"`
	Created    time.Time `json:"created"`
	Removed    time.Time `json:"removed,omitzero"`
}

// Admin is what lists tell of an administrator.
type Admin struct {
	Name             string
	Created, Removed time.Time
}

func (a *Authority) adminRemoved(name string, generation uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	r, ok := a.admins.Get(name)
	return ok && (generation < r.Value.Generation || !r.Value.Removed.IsZero())
}

// admit signs an administrator's certificate and notes the administrator, in one commit with what else it takes.
func (a *Authority) admit(ctx context.Context, p *guard.Permit, name string, req *x509.CertificateRequest) ([]byte, store.Rev, error) {
	v, cond, err := guard.Fetch[admin](ctx, a.Guard, adminPrefix+name)
	if err != nil {
		return nil, 0, err
	}
	der, w, err := a.signAdmin(&v, name, req)
	if err != nil {
		return nil, 0, err
	}
	rev, err := a.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"admin": name})
	return der, rev, err
}

// signAdmin makes the certificate and the record's write. One who was removed comes back as another.
func (a *Authority) signAdmin(v *admin, name string, req *x509.CertificateRequest) ([]byte, guard.Write, error) {
	if v.Created.IsZero() || !v.Removed.IsZero() {
		v.Created, v.Removed = a.Now().UTC(), time.Time{}
	}
	der, err := a.sign(req.PublicKey, "/admin/"+name, pkix.Name{CommonName: name, SerialNumber: strconv.FormatUint(v.Generation, 10)}, adminLife)
	if err != nil {
		return nil, guard.Write{}, err
	}
	w, err := guard.Put(adminPrefix+name, v)
	return der, w, err
}

// InviteAdmin makes an enrolment token, with which one key becomes an administrator. ttl 0: identity.MaxEnrolTTL. fault.Invalid, Denied.
func (a *Authority) InviteAdmin(ctx context.Context, c policy.Caller, name string, ttl time.Duration, address string) (string, error) {
	p, err := a.Guard.Admit(ctx, c, policy.ActAdminInvite, policy.Resource{})
	if err != nil {
		return "", err
	}
	return a.inviteAdmin(ctx, p, name, ttl, address)
}

// Enrolment makes the enrolment token of the first administrator, at init and by somebody who can read the store's seal.
func (a *Authority) Enrolment(ctx context.Context, name, address string) (string, error) {
	return a.inviteAdmin(ctx, a.Guard.System("authn", policy.ActAdminInvite, policy.Resource{}), name, 0, address)
}

func (a *Authority) inviteAdmin(ctx context.Context, p *guard.Permit, name string, ttl time.Duration, address string) (string, error) {
	ttl = cmp.Or(ttl, identity.MaxEnrolTTL)
	switch {
	case !keyring.ValidName(name):
		return "", fault.New(fault.Invalid, "administrator's name").WithHint("lower-case letters, digits, and inside . _ -")
	case ttl < time.Second || ttl > identity.MaxEnrolTTL:
		return "", fault.New(fault.Invalid, "ttl").WithHint("1 s to %s", identity.MaxEnrolTTL)
	}
	t, text, err := a.newToken(name, "spiffe://"+a.TrustDomain+"/admin/"+name, ttl, address)
	if err != nil {
		return "", err
	}
	digest := identity.DigestJoinToken(text)
	return text, a.again(ctx, func() (store.Rev, error) {
		v, cond, err := guard.Fetch[admin](ctx, a.Guard, adminPrefix+name)
		if err != nil {
			return 0, err
		}
		w, err := guard.Put(enrolPrefix+t.ID, joinRecord{Digest: digest[:], Instance: name, Generation: v.Generation, Expires: t.Expires, Admin: true})
		if err != nil {
			return 0, err
		}
		forget, err := a.forgettable(a.enrolments)
		if err != nil {
			return 0, err
		}
		conds := []guard.Cond{cond, {Path: w.Path}}
		return a.commit(ctx, p, conds, append(forget, w), map[string]string{"admin": name})
	})
}

// bindAdmin gives an enrolment token to a key, while the name has the generation that the token was made in.
func (a *Authority) bindAdmin(ctx context.Context, rec guard.Record, j joinRecord, req *x509.CertificateRequest, key []byte) ([][]byte, store.Rev, error) {
	v, cond, err := guard.Fetch[admin](ctx, a.Guard, adminPrefix+j.Instance)
	if err != nil {
		return nil, 0, err
	}
	if v.Generation != j.Generation {
		return nil, 0, fault.New(fault.JoinTokenExpired, j.about()).WithHint("the administrator was removed after the token was made; make a new one")
	}
	der, w, err := a.signAdmin(&v, j.Instance, req)
	if err != nil {
		return nil, 0, err
	}
	j.Bound, j.Chain = key, [][]byte{der, a.ca.Raw}
	used, err := guard.Put(rec.Path, j)
	if err != nil {
		return nil, 0, err
	}
	p := a.Guard.System("authn", policy.ActAdminInvite, policy.Resource{})
	rev, err := a.commit(ctx, p, []guard.Cond{cond, {Path: rec.Path, Rev: rec.Rev}}, []guard.Write{w, used}, map[string]string{"enrolled": j.Instance})
	return j.Chain, rev, err
}

// Admins lists the administrators, also those that were removed, by name. fault.Denied.
func (a *Authority) Admins(ctx context.Context, c policy.Caller) ([]Admin, error) {
	if _, err := a.Guard.Admit(ctx, c, policy.ActAdmins, policy.Resource{}); err != nil {
		return nil, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []Admin
	for name, r := range a.admins.Rows {
		if !r.Deleted {
			out = append(out, Admin{name, r.Value.Created, r.Value.Removed})
		}
	}
	slices.SortFunc(out, func(x, y Admin) int { return cmp.Compare(x.Name, y.Name) })
	return out, nil
}

// RemoveAdmin denies every certificate, enrolment token and session that an administrator has now. The last one stays. fault.Denied, NotFound,
// InUse.
func (a *Authority) RemoveAdmin(ctx context.Context, c policy.Caller, name string) error {
	p, err := a.Guard.Admit(ctx, c, policy.ActAdminRemove, policy.Resource{})
	if err != nil {
		return err
	}
	if !keyring.ValidName(name) {
		return fault.New(fault.Invalid, "administrator's name")
	}
	return a.again(ctx, func() (store.Rev, error) {
		v, conds, err := a.others(ctx, name)
		if err != nil {
			return 0, err
		}
		v.Generation, v.Removed = v.Generation+1, a.Now().UTC()
		w, err := guard.Put(adminPrefix+name, v)
		if err != nil {
			return 0, err
		}
		return a.commit(ctx, p, conds, []guard.Write{w}, map[string]string{"admin": name})
	})
}

// others reads an administrator who may be removed, with the condition that another one stays. fault.NotFound, InUse.
func (a *Authority) others(ctx context.Context, name string) (admin, []guard.Cond, error) {
	v, cond, err := guard.Fetch[admin](ctx, a.Guard, adminPrefix+name)
	if err != nil {
		return v, nil, err
	}
	if cond.Rev == 0 || !v.Removed.IsZero() {
		return v, nil, fault.New(fault.NotFound, "administrator "+name)
	}
	records, _, err := a.Guard.List(ctx, adminPrefix)
	if err != nil {
		return v, nil, err
	}
	for _, rec := range records {
		other, otherCond, err := guard.Fetch[admin](ctx, a.Guard, rec.Path)
		if err != nil {
			return v, nil, err
		}
		if rec.Path != cond.Path && otherCond.Rev != 0 && other.Removed.IsZero() {
			return v, []guard.Cond{cond, otherCond}, nil
		}
	}
	return v, nil, fault.New(fault.InUse, "administrator "+name).WithHint("it is the last one; invite another first")
}
