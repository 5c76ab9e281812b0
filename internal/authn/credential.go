package authn

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/keyring"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// Credentials are "rotor_credential_", their ID in hex, "_" and 32 random bytes in base64url.
const (
	credentialMark   = "rotor_credential_"
	credentialPrefix = "authn/credential/"
	idDigits         = 32
)

// Bounds of credentials.
const (
	DefaultCredentialLife = 90 * 24 * time.Hour
	MaxCredentialLife     = 366 * 24 * time.Hour
	maxCredentials        = 10_000
	maxNetworks           = 32
	MaxAttributes         = 32
	maxAttributeName      = 64
	maxAttribute          = 512
	MaxFailures           = 100 // NIST SP 800-63B-4, 3.2.2
	keepCredential        = 30 * 24 * time.Hour
)

// credential is the stored record.
type credential struct {
	Name       string            `json:"name"`
	Hash       string            `json:"hash"` // Argon2id, in PHC string format
	Networks   []netip.Prefix    `json:"networks,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Uses       uint32            `json:"uses,omitempty"` // 0: any number
	Used       uint32            `json:"used,omitempty"`
	Failures   uint32            `json:"failures,omitempty"` // in a row
	Created    time.Time         `json:"created"`
	Expires    time.Time         `json:"expires"`
	Revoked    time.Time         `json:"revoked,omitzero"`
	Maker      string            `json:"maker"`
}

func (c credential) admits(address string) bool { return inside(address, c.Networks) }

// Credential is what lists tell of one, and what an administrator asks for: Name, Networks, Attributes, Uses.
type Credential struct {
	ID, Name, Maker           string
	Networks                  []netip.Prefix
	Attributes                map[string]string
	Uses, Used, Failures      uint32
	Created, Expires, Revoked time.Time
	Locked                    bool
}

func (a *Authority) shown(id string, c credential) Credential {
	return Credential{
		ID: id, Name: c.Name, Maker: c.Maker, Networks: c.Networks, Attributes: c.Attributes, Uses: c.Uses, Used: c.Used, Failures: c.Failures,
		Created: c.Created, Expires: c.Expires, Revoked: c.Revoked, Locked: c.Failures >= a.access.Load().failures,
	}
}

// CreateCredential makes a credential and returns its text, which nobody can see again. ttl 0: DefaultCredentialLife. fault.Invalid, Denied,
// TooLarge.
func (a *Authority) CreateCredential(ctx context.Context, c policy.Caller, want Credential, ttl time.Duration) (Credential, string, error) {
	p, err := a.Guard.Admit(ctx, c, policy.ActCredentialCreate, policy.Resource{})
	if err != nil {
		return Credential{}, "", err
	}
	ttl = cmp.Or(ttl, DefaultCredentialLife)
	if err := want.check(ttl); err != nil {
		return Credential{}, "", err
	}
	random, now := secret.Random(32), a.Now().UTC()
	defer random.Destroy()
	id := hex.EncodeToString(secret.Random(idDigits / 2).Reveal())
	text := credentialMark + id + "_" + base64.RawURLEncoding.EncodeToString(random.Reveal())
	hash, err := a.hasher.Make(ctx, text)
	if err != nil {
		return Credential{}, "", err
	}
	made := credential{
		Name: want.Name, Hash: hash, Networks: want.Networks, Attributes: want.Attributes, Uses: want.Uses, Created: now, Expires: now.Add(ttl), Maker: c.Name,
	}
	w, err := guard.Put(credentialPrefix+id, made)
	if err != nil {
		return Credential{}, "", err
	}
	forget, err := a.overCredentials()
	if err != nil {
		return Credential{}, "", err
	}
	writes := append(forget, w)
	if _, err := a.commit(ctx, p, []guard.Cond{{Path: w.Path}}, writes, map[string]string{"credential": id, "name": want.Name}); err != nil {
		return Credential{}, "", err
	}
	return a.shown(id, made), text, nil
}

func (c Credential) check(ttl time.Duration) error {
	bad := func(what, hint string) error { return fault.New(fault.Invalid, what).WithHint("%s", hint) }
	switch {
	case !keyring.ValidName(c.Name):
		return bad("name", "lower-case letters, digits, and inside . _ -")
	case ttl < time.Second || ttl > MaxCredentialLife:
		return bad("ttl", "1 s to "+MaxCredentialLife.String())
	case len(c.Networks) > maxNetworks:
		return fault.New(fault.TooLarge, "networks").WithHint("at most %d", maxNetworks)
	}
	for _, n := range c.Networks {
		if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
			return bad("network", "an address and the length of its prefix, such as 10.0.0.0/8")
		}
	}
	return checkAttributes(c.Attributes)
}

// checkAttributes bounds what a caller brings along. fault.Invalid, TooLarge.
func checkAttributes(all map[string]string) error {
	if len(all) > MaxAttributes {
		return fault.New(fault.TooLarge, "attributes").WithHint("at most %d", MaxAttributes)
	}
	for name, value := range all {
		if name == "" || len(name) > maxAttributeName || len(value) > maxAttribute || !utf8.ValidString(name+value) {
			return fault.New(fault.Invalid, "attribute").WithHint("names have 1 to %d bytes, values at most %d, both UTF-8", maxAttributeName, maxAttribute)
		}
	}
	return nil
}

// overCredentials finds what can be forgotten, so that the number does not grow. fault.TooLarge.
func (a *Authority) overCredentials() (forget []guard.Write, err error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	now := a.Now()
	for id, r := range a.credentials.Rows {
		over := r.Value.Expires
		if !r.Value.Revoked.IsZero() && r.Value.Revoked.Before(over) {
			over = r.Value.Revoked
		}
		if !r.Deleted && now.After(over.Add(keepCredential)) && len(forget) < purgeBatch {
			forget = append(forget, guard.Write{Path: credentialPrefix + id, Delete: true})
		}
	}
	if len(forget) == 0 && len(a.credentials.Rows) >= maxCredentials {
		return nil, fault.New(fault.TooLarge, "credentials").WithHint("at most %d; those that are over are forgotten after %s", maxCredentials, keepCredential)
	}
	return forget, nil
}

// Credentials lists all credentials, the oldest first, without their secrets. fault.Denied.
func (a *Authority) Credentials(ctx context.Context, c policy.Caller) ([]Credential, error) {
	if _, err := a.Guard.Admit(ctx, c, policy.ActCredentials, policy.Resource{}); err != nil {
		return nil, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []Credential
	for id, r := range a.credentials.Rows {
		if !r.Deleted {
			out = append(out, a.shown(id, r.Value))
		}
	}
	slices.SortFunc(out, func(x, y Credential) int { return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID)) })
	return out, nil
}

// ChangeCredential revokes a credential, which ends its sessions, or unlocks it after failures. fault.Invalid, Denied, NotFound.
func (a *Authority) ChangeCredential(ctx context.Context, c policy.Caller, id, event string) (Credential, error) {
	p, err := a.Guard.Admit(ctx, c, policy.ActCredentialChange, policy.Resource{})
	if err != nil {
		return Credential{}, err
	}
	if event != "revoke" && event != "unlock" {
		return Credential{}, fault.New(fault.Invalid, "event").WithHint("revoke or unlock")
	}
	if !isID(id) {
		return Credential{}, fault.New(fault.NotFound, "credential")
	}
	var changed credential
	err = a.again(ctx, func() (store.Rev, error) {
		var cond guard.Cond
		if changed, cond, err = guard.Fetch[credential](ctx, a.Guard, credentialPrefix+id); err != nil {
			return 0, err
		}
		if cond.Rev == 0 {
			return 0, fault.New(fault.NotFound, "credential "+id)
		}
		if event == "unlock" {
			changed.Failures = 0
		} else if changed.Revoked.IsZero() {
			changed.Revoked = a.Now().UTC()
		}
		w, err := guard.Put(cond.Path, changed)
		if err != nil {
			return 0, err
		}
		return a.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"credential": id, "name": changed.Name, "event": event})
	})
	if err != nil {
		return Credential{}, err
	}
	if event == "revoke" {
		_, err = a.endSessions(ctx, p, func(s session) bool { return s.Source.Credential == id })
	}
	return a.shown(id, changed), err
}

// isID says whether a text is the ID of a credential or grant, so that it can be a part of a path.
func isID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(id) == idDigits && hex.EncodeToString(b) == id
}

// parseCredential reads the ID of a credential. fault.Unauthenticated.
func parseCredential(text string) (id string, err error) {
	rest, ok := strings.CutPrefix(text, credentialMark)
	if !ok || len(rest) != idDigits+1+secretChars || rest[idDigits] != '_' || !isID(rest[:idDigits]) {
		return "", notCredential()
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(rest[idDigits+1:]); err != nil {
		return "", notCredential()
	}
	return rest[:idDigits], nil
}

// notCredential is the one answer to every credential that is not taken, so that nobody learns which there are.
func notCredential() error {
	return fault.New(fault.Unauthenticated, "credential").WithHint("it is wrong, expired, used up, revoked, locked after failures, or not for this address")
}

// proven is what an authentication found out, with what has to be written when it is made use of.
type proven struct {
	caller policy.Caller
	source source
	conds  []guard.Cond
	writes []guard.Write
}

// proveCredential checks a credential. The cost of a wrong one is the same whether its ID exists or not. A wrong secret is counted before the
// answer; the right one counts only together with a commit that finds the record as it was read, so that no number of tries at a time gets
// past the limit of failures. fault.Unauthenticated.
func (a *Authority) proveCredential(ctx context.Context, p Proof) (proven, error) {
	text, address := p.Credential, p.Address
	id, err := parseCredential(text)
	if err != nil {
		return proven{}, a.failed(ctx, p, err)
	}
	c, cond, err := guard.Fetch[credential](ctx, a.Guard, credentialPrefix+id)
	if err != nil {
		return proven{}, err
	}
	ok, err := a.hasher.Matches(ctx, text, c.Hash)
	if err != nil {
		return proven{}, err
	}
	now := a.Now()
	switch {
	case cond.Rev == 0, !now.Before(c.Expires), !c.Revoked.IsZero(), c.Failures >= a.access.Load().failures:
		return proven{}, a.failed(ctx, p, notCredential())
	case !ok:
		if err := a.countFailure(ctx, id, address); err != nil {
			return proven{}, err
		}
		return proven{}, notCredential()
	case c.Uses > 0 && c.Used >= c.Uses, !c.admits(address):
		return proven{}, a.failed(ctx, p, notCredential())
	}
	out := proven{
		caller: policy.Caller{Kind: policy.KindCredential, Name: "credential/" + c.Name, Attributes: c.Attributes},
		source: source{Credential: id}, conds: []guard.Cond{cond},
	}
	if c.Uses > 0 || c.Failures > 0 {
		c.Used, c.Failures = c.Used+min(c.Uses, 1), 0
		w, err := guard.Put(cond.Path, c)
		if err != nil {
			return proven{}, err
		}
		out.writes = []guard.Write{w}
	}
	return out, nil
}

// failed puts a failure into the log, which is no record's, and returns the answer.
func (a *Authority) failed(ctx context.Context, p Proof, answer error) error {
	if err := a.Guard.Refuse(ctx, stranger(p), "login"); err != nil {
		return err
	}
	return answer
}

// stranger is how the log names somebody who is not known: by what is counted as one, or whoever has many addresses would fill the log.
func stranger(p Proof) policy.Caller {
	return policy.Caller{Name: "stranger/" + cmp.Or(p.From, p.Address)}
}

// countFailure commits one more failure in a row, until the limit.
func (a *Authority) countFailure(ctx context.Context, id, address string) error {
	return a.again(ctx, func() (store.Rev, error) {
		c, cond, err := guard.Fetch[credential](ctx, a.Guard, credentialPrefix+id)
		if err != nil || cond.Rev == 0 || c.Failures >= a.access.Load().failures {
			return 0, err
		}
		c.Failures++
		w, err := guard.Put(cond.Path, c)
		if err != nil {
			return 0, err
		}
		detail := map[string]string{"refused": "login", "credential": id, "address": address}
		return a.commit(ctx, a.Guard.System("authn", "login", policy.Resource{}), []guard.Cond{cond}, []guard.Write{w}, detail)
	})
}
