package authn

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/identity"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

const (
	keepAnswer = 24 * time.Hour // how long after its end a token is remembered, to repeat its answer
	maxTokens  = 100_000        // that are remembered
	purgeBatch = 20             // forgotten tokens in the commit of a new one, so that their number does not grow
)

// joinRecord is the stored half of a join token.
type joinRecord struct {
	Digest     []byte    `json:"digest"` // of the token's text
	Instance   string    `json:"instance"`
	Generation uint64    `json:"generation"`
	Expires    time.Time `json:"expires"`
	Bound      []byte    `json:"bound,omitempty"`  // SHA-256 of the public key that used it first
	Chain      [][]byte  `json:"chain,omitempty"`  // the answer, repeated to the same key
	Second     bool      `json:"second,omitempty"` // another key has tried, which is in the audit log
	Admin      bool      `json:"admin,omitempty"`  // Instance is the name of an administrator
}

// about names who a token is for.
func (j joinRecord) about() string {
	if j.Admin {
		return "administrator " + j.Instance
	}
	return "instance " + j.Instance
}

// Invite makes a join token for one instance. ttl 0: identity.MaxTTL. fault.Invalid, Denied, TooLarge.
func (a *Authority) Invite(ctx context.Context, c policy.Caller, name string, ttl time.Duration, address string) (string, error) {
	p, err := a.Guard.Admit(ctx, c, policy.ActInvite, policy.Resource{})
	if err != nil {
		return "", err
	}
	switch {
	case !keyring.ValidName(name):
		return "", fault.New(fault.Invalid, "instance name").WithHint("lower-case letters, digits, and inside . _ -")
	case ttl != 0 && (ttl < time.Second || ttl > identity.MaxTTL):
		return "", fault.New(fault.Invalid, "ttl").WithHint("1 s to %s", identity.MaxTTL)
	case ttl == 0:
		ttl = identity.MaxTTL
	}
	if a.Room != nil {
		if err := a.Room(name); err != nil {
			return "", err
		}
	}
	t, text, err := a.newToken(name, a.InstanceID(name), ttl, address)
	if err != nil {
		return "", err
	}
	return text, a.again(ctx, func() (store.Rev, error) { return a.storeToken(ctx, p, t, identity.DigestJoinToken(text)) })
}

// newToken makes the text of a token for a SPIFFE ID. fault.Invalid.
func (a *Authority) newToken(name, id string, ttl time.Duration, address string) (identity.JoinToken, string, error) {
	sum := sha256.Sum256(a.ca.Raw)
	t := identity.JoinToken{
		Address: address, CA: sum[:], ID: hex.EncodeToString(secret.Random(16).Reveal()), Instance: name,
		SPIFFE: id, Expires: a.Now().UTC().Add(ttl).Truncate(time.Second), Secret: secret.Random(32).Reveal(),
	}
	text := t.Encode()
	if _, err := identity.ParseJoinToken(text); err != nil {
		return t, "", fault.New(fault.Invalid, "advertise").WithHint("%s is no host:port that a join token can carry", address)
	}
	return t, text, nil
}

func (a *Authority) storeToken(ctx context.Context, p *guard.Permit, t identity.JoinToken, digest [sha256.Size]byte) (store.Rev, error) {
	v, cond, err := a.present(ctx, t.Instance)
	if err != nil {
		return 0, err
	}
	value, err := json.Marshal(joinRecord{Digest: digest[:], Instance: t.Instance, Generation: v.Generation, Expires: t.Expires})
	if err != nil {
		return 0, fmt.Errorf("encode join token: %w", err)
	}
	forget, err := a.forgettable(a.tokens)
	if err != nil {
		return 0, err
	}
	writes := append(forget, guard.Write{Path: joinPrefix + t.ID, Value: value})
	return a.commit(ctx, p, []guard.Cond{cond, {Path: joinPrefix + t.ID}}, writes, map[string]string{"instance": t.Instance})
}

// forgettable finds tokens whose answer is repeated no more. fault.TooLarge.
func (a *Authority) forgettable(tokens guard.Table[ending]) (forget []guard.Write, err error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	now := a.Now()
	for id, r := range tokens.Rows {
		if len(forget) == purgeBatch {
			break
		}
		if !r.Deleted && now.After(r.Value.Expires.Add(keepAnswer)) {
			forget = append(forget, guard.Write{Path: tokens.Prefix + id, Delete: true})
		}
	}
	if len(forget) == 0 && len(tokens.Rows) >= maxTokens {
		return nil, fault.New(fault.TooLarge, "join tokens").WithHint("at most %d are remembered; old ones are forgotten after %s", maxTokens, keepAnswer)
	}
	return forget, nil
}

// Join answers a stranger with a token: the first key that uses the token gets the certificate, and gets the same one again
// whenever it asks again (a reply can be lost); any other key is refused. fault.Invalid, Unauthenticated, JoinTokenUsed,
// JoinTokenExpired.
func (a *Authority) Join(ctx context.Context, token string, csr []byte) (identity.Grant, error) {
	t, err := identity.ParseJoinToken(token)
	if err != nil {
		return identity.Grant{}, err
	}
	digest := identity.DigestJoinToken(token)
	var chain [][]byte
	err = a.again(ctx, func() (rev store.Rev, err error) {
		chain, rev, err = a.join(ctx, t, digest[:], csr)
		return rev, err
	})
	if err != nil {
		return identity.Grant{}, err
	}
	return a.grant(chain), nil
}

// join tells of a token only to who has all of it: anybody else gets the answer for an unknown one. The one exception is a token
// that says itself that it has ended, because the server forgets those.
func (a *Authority) join(ctx context.Context, t identity.JoinToken, digest, csr []byte) ([][]byte, store.Rev, error) {
	path := joinPrefix + t.ID
	if t.IsAdmin() {
		path = enrolPrefix + t.ID
	}
	rec, err := a.Guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		if !a.Now().Before(t.Expires) {
			return nil, 0, fault.New(fault.JoinTokenExpired, "join token")
		}
		return nil, 0, fault.New(fault.Unauthenticated, "join token")
	}
	if err != nil {
		return nil, 0, err
	}
	var j joinRecord
	if err := json.Unmarshal(rec.Value, &j); err != nil {
		return nil, 0, fault.Wrap(fault.RecordTampered, rec.Path, err)
	}
	if subtle.ConstantTimeCompare(j.Digest, digest) != 1 {
		return nil, 0, fault.New(fault.Unauthenticated, "join token")
	}
	req, err := parseCSR(csr)
	if err != nil {
		return nil, 0, err
	}
	key := sha256.Sum256(req.RawSubjectPublicKeyInfo)
	switch {
	case len(j.Bound) > 0 && subtle.ConstantTimeCompare(j.Bound, key[:]) == 1:
		return j.Chain, rec.Rev, nil
	case len(j.Bound) > 0:
		return nil, 0, a.second(ctx, rec, j)
	case !a.Now().Before(j.Expires):
		return nil, 0, fault.New(fault.JoinTokenExpired, j.about())
	}
	if j.Admin {
		return a.bindAdmin(ctx, rec, j, req, key[:])
	}
	return a.bind(ctx, rec, j, req, key[:])
}

// bind gives the token to a key. It commits only while the name has the generation that the token was made in.
func (a *Authority) bind(ctx context.Context, rec guard.Record, j joinRecord, req *x509.CertificateRequest, key []byte) ([][]byte, store.Rev, error) {
	v, cond, err := a.present(ctx, j.Instance)
	if err != nil {
		return nil, 0, err
	}
	if v.Generation != j.Generation {
		return nil, 0, fault.New(fault.JoinTokenExpired, "instance "+j.Instance).WithHint("the instance was removed after the token was made; make a new one")
	}
	der, err := a.signInstance(req.PublicKey, j.Instance, j.Generation)
	if err != nil {
		return nil, 0, err
	}
	j.Bound, j.Chain = key, [][]byte{der, a.ca.Raw}
	p := a.Guard.System("authn", policy.ActInvite, policy.Resource{})
	rev, err := a.put(ctx, p, rec, j, map[string]string{"joined": j.Instance}, cond)
	return j.Chain, rev, err
}

// second refuses another key; the first time it is in the audit log, because the token was stolen or given to two processes.
func (a *Authority) second(ctx context.Context, rec guard.Record, j joinRecord) error {
	if !j.Second {
		j.Second = true
		p := a.Guard.System("authn", policy.ActInvite, policy.Resource{})
		if _, err := a.put(ctx, p, rec, j, map[string]string{"refused": string(fault.JoinTokenUsed), "of": j.about()}); err != nil {
			return err
		}
	}
	return fault.New(fault.JoinTokenUsed, j.about())
}

func (a *Authority) put(ctx context.Context, p *guard.Permit, rec guard.Record, j joinRecord, detail map[string]string, conds ...guard.Cond) (store.Rev, error) {
	w, err := guard.Put(rec.Path, j)
	if err != nil {
		return 0, err
	}
	return a.commit(ctx, p, append(conds, guard.Cond{Path: rec.Path, Rev: rec.Rev}), []guard.Write{w}, detail)
}

func (a *Authority) signInstance(public any, name string, generation uint64) ([]byte, error) {
	subject := pkix.Name{CommonName: name, SerialNumber: strconv.FormatUint(generation, 10)}
	return a.sign(public, "/instance/"+name, subject, InstanceLife)
}

// Renew gives a caller a new certificate for a new or the same key; possible until RenewGrace after the old one's end, unless the
// instance was removed: it commits only while the name has the generation of the old certificate, and the new one has the same.
// fault.Unauthenticated, Denied, Invalid.
func (a *Authority) Renew(ctx context.Context, s tls.ConnectionState, csr []byte) (identity.Grant, error) {
	c, err := a.Identify(s, true)
	if err != nil {
		return identity.Grant{}, err
	}
	if c.Kind != policy.KindInstance {
		return identity.Grant{}, fault.New(fault.Denied, "renewal of "+c.Name)
	}
	req, err := parseCSR(csr)
	if err != nil {
		return identity.Grant{}, err
	}
	old := generation(s.PeerCertificates[0])
	var der []byte
	err = a.again(ctx, func() (store.Rev, error) {
		v, cond, err := a.present(ctx, c.Instance)
		if err != nil {
			return 0, err
		}
		if old < v.Generation {
			return 0, fault.New(fault.Unauthenticated, "caller").WithHint("the instance was removed")
		}
		if der, err = a.signInstance(req.PublicKey, c.Instance, old); err != nil {
			return 0, err
		}
		p := a.Guard.System("authn", "instance.renew", policy.Resource{})
		return p.Commit(ctx, []guard.Cond{cond}, nil, map[string]string{"instance": c.Instance})
	})
	if err != nil {
		return identity.Grant{}, err
	}
	return a.grant([][]byte{der, a.ca.Raw}), nil
}
