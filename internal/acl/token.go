package acl

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/authn"
	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/lenient"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
)

// Tokens are "hvs." and, in base64url, one byte that says what they are, the three bytes of their record's slot and 32 random bytes.
const (
	tokenMark   = "hvs."
	tokenBytes  = 1 + 3 + 32
	kindToken   = 1
	kindWrap    = 2
	accessorLen = 15 // random bytes of an accessor
)

// Bounds of tokens.
const (
	maxTokens    = 100_000 // that live at a time
	maxWraps     = 10_000  // wrapping tokens that live at a time
	maxChain     = 32      // of a token, its parent, its parent's parent…
	maxMeta      = 64      // elements of a token's metadata
	maxMetaText  = 4 << 10 // bytes of all of them
	maxMakers    = 32      // different ones, from whom a token comes
	maxMakerText = 8 << 10 // bytes of their names and metadata
	maxPolicies  = 64      // of one token
	maxDisplay   = 256     // bytes of a name that is shown
	maxCIDRs     = 64
)

// token is the stored record. The token itself is not kept.
type token struct {
	Hash      []byte            `json:"hash"` // SHA-256 of the token: it has 256 random bits, so nothing slower is needed
	Accessor  string            `json:"accessor"`
	Namespace string            `json:"namespace"`
	Policies  []string          `json:"policies"`
	Caller    string            `json:"caller"` // the name that rules and the audit log have for its bearer
	Makers    []policy.Maker    `json:"makers,omitempty"`
	Display   string            `json:"display_name"`
	Path      string            `json:"path"` // that it was made by
	Meta      map[string]string `json:"meta,omitempty"`
	Role      string            `json:"role,omitempty"`   // of tokens that one of auth/token/roles made
	Source    string            `json:"source,omitempty"` // ID of the entry that a login was made by: without it no renewal
	Created   time.Time         `json:"created"`
	Renewed   time.Time         `json:"renewed,omitzero"` // last
	Expires   time.Time         `json:"expires,omitzero"` // zero: never
	TTL       time.Duration     `json:"ttl_ns"`           // that it was given first
	MaxTTL    time.Duration     `json:"max_ttl_ns,omitempty"`
	Explicit  time.Duration     `json:"explicit_max_ttl_ns,omitempty"`
	Period    time.Duration     `json:"period_ns,omitempty"`
	Uses      int64             `json:"num_uses,omitempty"` // that are left; 0: any number; -1: none
	Renewable bool              `json:"renewable,omitempty"`
	Parent    string            `json:"parent,omitempty"` // its slot, "/" and its accessor; empty: it has none
	CIDRs     []string          `json:"bound_cidrs,omitempty"`
	Batch     bool              `json:"batch,omitempty"` // there is no record of it
	Mount     string            `json:"mount,omitempty"` // accessor of where the login was that it comes from
	Life      uint64            `json:"life,omitempty"`  // of its namespace (guard.Life)
	Inc       uint32            `json:"inc,omitempty"`   // of a batch token: the incarnation of the store that it was made in
}

// Token is what is told of a token. TTL is what is left of it.
type Token struct {
	Accessor, Namespace, Caller, DisplayName, Path, Role, EntityID string
	Policies                                                       []string
	Meta                                                           map[string]string
	Created, Renewed, Expires                                      time.Time // Expires zero: never
	CreationTTL, TTL, ExplicitMaxTTL, Period                       time.Duration
	NumUses                                                        int64
	Orphan, Renewable, Batch                                       bool
	CIDRs                                                          []string
}

func (t token) shown(now time.Time) Token {
	out := Token{
		Accessor: t.Accessor, Namespace: t.Namespace, Caller: t.Caller, DisplayName: t.Display, Path: t.Path, Role: t.Role, Policies: t.Policies, Meta: t.Meta,
		Created: t.Created, Renewed: t.Renewed, Expires: t.Expires, CreationTTL: t.TTL, ExplicitMaxTTL: t.Explicit, Period: t.Period, NumUses: max(t.Uses, 0),
		Orphan: t.Parent == "", Renewable: t.Renewable, CIDRs: t.CIDRs, Batch: t.Batch,
	}
	if t.Batch {
		out.Accessor = ""
	}
	if !t.Expires.IsZero() {
		out.TTL = max(t.Expires.Sub(now), 0)
	}
	return out
}

// Ticket is a new or renewed token. The text of a new one is shown once.
type Ticket struct {
	Text string
	Token
	Warnings []string
}

// notToken is the one answer to every bearer that is none.
func notToken() error {
	return fault.New(fault.Unauthenticated, "token").WithHint("it is unknown, expired, used up or revoked: log in again")
}

// parseToken reads the kind and slot of a token. fault.Unauthenticated.
func parseToken(text string) (kind byte, slot string, err error) {
	rest, ok := strings.CutPrefix(text, tokenMark)
	if !ok || len(rest) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return 0, "", notToken()
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || b[0] != kindToken && b[0] != kindWrap {
		return 0, "", notToken()
	}
	return b[0], slotName(binary.BigEndian.Uint32([]byte{0, b[1], b[2], b[3]})), nil
}

func slotName(n uint32) string { return fmt.Sprintf("%06x", n) }

// newText makes the text of a token, and its hash.
func newText(kind byte, slot string) (text string, hash []byte) {
	var n uint32
	_, _ = fmt.Sscanf(slot, "%06x", &n) // slotName made it
	random := secret.Random(32)
	defer random.Destroy()
	b := append([]byte{kind, byte(n >> 16), byte(n >> 8), byte(n)}, random.Reveal()...)
	text = tokenMark + base64.RawURLEncoding.EncodeToString(b)
	return text, hashOf(text)
}

func hashOf(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// newUUID is a random UUID (RFC 9562, 5.4).
func newUUID() string {
	b := secret.Random(16).Reveal()
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newAccessor() string {
	return strings.ToLower(base32.StdEncoding.EncodeToString(secret.Random(accessorLen).Reveal()))
}

// Identify names the caller behind a token that comes from an address, and when it ends at the latest. One for a number of uses is used once more,
// durably, before the answer. Sessions of rotor's own are taken as well. fault.Unauthenticated.
func (s *Service) Identify(ctx context.Context, text, address string) (policy.Caller, time.Time, error) {
	if strings.HasPrefix(text, authn.SessionMark) {
		return s.Authority.Session(ctx, text, address)
	}
	var slot string
	find := s.openBatch
	if !isBatch(text) {
		kind, at, err := parseToken(text)
		if err != nil {
			return policy.Caller{}, time.Time{}, err
		}
		if kind == kindWrap {
			return s.identifyWrap(ctx, at, text)
		}
		slot, find = at, func(ctx context.Context, text string) (token, error) { return s.find(ctx, at, hashOf(text)) }
	}
	t, err := find(ctx, text)
	if err != nil {
		return policy.Caller{}, time.Time{}, err
	}
	if !admits(t.CIDRs, address) {
		return policy.Caller{}, time.Time{}, notToken()
	}
	if t.Uses != 0 {
		if t, err = s.use(ctx, slot, t); err != nil {
			return policy.Caller{}, time.Time{}, err
		}
	}
	until := t.Expires
	if until.IsZero() {
		until = s.Now().Add(lenient.MaxTime)
	}
	acl, err := s.acl(t.Namespace, t.Policies)
	if err != nil {
		return policy.Caller{}, time.Time{}, err
	}
	return t.caller(acl), until, nil
}

// Stands says whether a token that Identify took is still in force. It counts as no use. fault.Unauthenticated.
func (s *Service) Stands(ctx context.Context, text, address string) error {
	if strings.HasPrefix(text, authn.SessionMark) {
		_, _, err := s.Authority.Session(ctx, text, address)
		return err
	}
	if isBatch(text) {
		_, err := s.openBatch(ctx, text)
		return err
	}
	kind, slot, err := parseToken(text)
	if err != nil {
		return err
	}
	if kind == kindWrap {
		_, err := s.findWrap(ctx, slot, text)
		return err
	}
	_, err = s.find(ctx, slot, hashOf(text))
	return err
}

func (t token) caller(acl *policy.ACL) policy.Caller {
	return policy.Caller{Kind: policy.KindVault, Name: t.Caller, Attributes: t.Meta, Makers: t.Makers, ACL: acl, Accessor: t.Accessor, Mount: t.Mount}
}

// find gives the living token of a slot. One that this server has not heard of is looked for in the store, as another may have made it a moment ago;
// all who ask at the same time share one look at how far the store is. fault.Unauthenticated.
func (s *Service) find(ctx context.Context, slot string, hash []byte) (token, error) {
	t, known := s.known(slot, hash)
	if !known {
		if err := s.catchUp(ctx, tokenPrefix+slot); err != nil {
			return token{}, err
		}
		if t, known = s.known(slot, hash); !known {
			return token{}, notToken()
		}
	}
	return t, s.stands(ctx, t)
}

// stands says whether a token and its parents are in force; what is not known of a parent is looked for in the store. fault.Unauthenticated.
func (s *Service) stands(ctx context.Context, t token) error {
	if _, closed := s.Guard.Life(t.Namespace); closed { // which may be opened again, so it is not over
		return notToken()
	}
	alive, unsure := s.alive(t)
	for seen := ""; unsure != "" && unsure != seen; { // a parent's record has not come yet, or is gone
		if err := s.refresh(ctx, tokenPrefix+unsure); err != nil {
			return err
		}
		seen = unsure
		alive, unsure = s.alive(t)
	}
	if !alive {
		return notToken()
	}
	return nil
}

// catchUp reads a record from the store if the store is further than what was heard of it.
func (s *Service) catchUp(ctx context.Context, path string) error {
	last, err := s.Guard.CaughtUp(ctx, strings.TrimSuffix(prefix, "/"))
	if err != nil || uint64(last) <= s.heard.Load() {
		return err
	}
	return s.refresh(ctx, path)
}

func (s *Service) known(slot string, hash []byte) (token, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, ok := s.tokens.Get(slot)
	return r.Value, ok && subtle.ConstantTimeCompare(r.Value.Hash, hash) == 1
}

// alive says whether a token and all its parents are in force. unsure names the slot of a parent that is not known.
func (s *Service) alive(t token) (alive bool, unsure string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.living(t)
}

// living is alive. Call with mu held.
func (s *Service) living(t token) (alive bool, unsure string) {
	now := s.Now()
	for range maxChain + 1 {
		if !t.Expires.IsZero() && !now.Before(t.Expires) {
			return false, ""
		}
		if life, _ := s.Guard.Life(t.Namespace); life != t.Life { // it is of a namespace that was deleted and made again
			return false, ""
		}
		if t.Parent == "" {
			return true, ""
		}
		slot, accessor, _ := strings.Cut(t.Parent, "/")
		r, ok := s.tokens.Rows[slot]
		if !ok || r.Deleted || r.Value.Accessor != accessor { // gone, or the slot is the parent's by now and what is known is what was there before
			return false, slot
		}
		t = r.Value
	}
	return false, ""
}

// over says whether a token is not in force any more. Call with mu held.
func (s *Service) over(t token) bool {
	alive, _ := s.living(t)
	return !alive || t.Uses < 0
}

// use counts one use of a token for a number of them. fault.Unauthenticated when none was left.
func (s *Service) use(ctx context.Context, slot string, known token) (token, error) {
	var t token
	err := again(ctx, func() (err error) {
		var cond guard.Cond
		if t, cond, err = guard.Fetch[token](ctx, s.Guard, tokenPrefix+slot); err != nil {
			return err
		}
		if cond.Rev == 0 || subtle.ConstantTimeCompare(t.Hash, known.Hash) != 1 || t.Uses < 0 {
			return notToken()
		}
		if t.Uses == 0 {
			return nil
		}
		if t.Uses--; t.Uses == 0 {
			t.Uses = -1
		}
		w, err := guard.Put(cond.Path, t)
		if err != nil {
			return err
		}
		p := s.Guard.Vouch(t.caller(nil), "vault.token.use", "token").Within(t.Namespace)
		return s.commit(ctx, p, []guard.Cond{cond}, []guard.Write{w}, map[string]string{"accessor": t.Accessor})
	})
	return t, err
}

// acl gives the compiled policies of a token. A policy that there is not allows nothing. fault.RecordTampered for one that does not parse any more.
func (s *Service) acl(ns string, names []string) (*policy.ACL, error) {
	key := ns + "\x00" + strings.Join(names, "\x00")
	s.mu.RLock()
	a := s.compiled[key]
	s.mu.RUnlock()
	if a != nil {
		return a, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []policy.PathPolicy
	for _, name := range names {
		if name == policy.RootPolicy {
			all = append(all, policy.PathPolicy{Name: name})
			continue
		}
		text, ok := s.text(ns, name)
		if !ok {
			continue
		}
		p, err := policy.ParsePathPolicy(name, text)
		if err != nil {
			return nil, fault.Wrap(fault.RecordTampered, policyPrefix+ns+"/"+name, err)
		}
		all = append(all, p)
	}
	if len(s.compiled) >= maxTokens/10 {
		clear(s.compiled)
	}
	a = policy.NewACL(ns, ns == s.home, all)
	s.compiled[key] = a
	return a, nil
}

// draft is a token in the making.
type draft struct {
	token
	text  string
	write guard.Write
	cond  guard.Cond
	done  func() // gives the slot back, if it was not taken
}

// prepare makes the record and the text of a token. Commit its write under its condition, if there is one, and call done after. fault.QuotaReached.
func (s *Service) prepare(ctx context.Context, t token) (*draft, error) {
	if t.Life == 0 { // of a namespace that was made again meanwhile its commit fails
		t.Life, _ = s.Guard.Life(t.Namespace)
	}
	if t.Batch {
		t.Accessor = batchAccessor + newAccessor()
		text, err := s.batchText(ctx, t)
		return &draft{token: t, text: text, done: func() {}}, err
	}
	slot, cond, done, err := reserve(s, s.tokens, t.groups())
	if err != nil {
		return nil, err
	}
	d := &draft{token: t, cond: cond, done: done}
	d.text, d.Hash = newText(kindToken, slot)
	d.Accessor = newAccessor()
	if d.write, err = guard.Put(cond.Path, d.token); err != nil {
		done()
		return nil, err
	}
	return d, nil
}

// changes are what a commit of the token consists of, with those of what proved it.
func (d *draft) changes(conds []guard.Cond, writes []guard.Write) ([]guard.Cond, []guard.Write) {
	if d.Batch {
		return conds, writes
	}
	return append(conds, d.cond), append(writes, d.write)
}

// ticket is what the bearer gets.
func (d *draft) ticket(now time.Time, warnings ...string) Ticket {
	return Ticket{Text: d.text, Token: d.shown(now), Warnings: warnings}
}

// admits says whether an address lies in one of some networks; none: everywhere.
func admits(networks []string, address string) bool {
	if len(networks) == 0 {
		return true
	}
	ip, err := netip.ParseAddr(address)
	return err == nil && slices.ContainsFunc(networks, func(text string) bool {
		n, err := parseCIDR(text)
		return err == nil && n.Contains(ip.Unmap().WithZone(""))
	})
}

// parseCIDR reads a network, or an address that stands for itself.
func parseCIDR(text string) (netip.Prefix, error) {
	if n, err := netip.ParsePrefix(text); err == nil {
		return n.Masked(), nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, bad("invalid CIDR block %q", text)
	}
	return netip.PrefixFrom(ip, ip.BitLen()), nil
}

// checkCIDRs says whether every text is a network.
func checkCIDRs(all []string) error {
	if len(all) > maxCIDRs {
		return bad("at most %d CIDR blocks", maxCIDRs)
	}
	for _, text := range all {
		if _, err := parseCIDR(text); err != nil {
			return err
		}
	}
	return nil
}

// checkMeta bounds what a client says of a token.
func checkMeta(meta map[string]string, display string) error {
	n := 0
	for name, value := range meta {
		n += len(name) + len(value)
	}
	if len(meta) > maxMeta || n > maxMetaText || len(display) > maxDisplay {
		return bad("metadata has at most %d elements and %d bytes, and the display name %d", maxMeta, maxMetaText, maxDisplay)
	}
	return nil
}

// policiesOf sorts the names of policies as clients of Vault know them: in small letters, each once; with "default", unless it was not wanted. fault.Invalid.
func policiesOf(names []string, without bool) ([]string, error) {
	set := map[string]bool{}
	for _, n := range names {
		if n = strings.ToLower(strings.TrimSpace(n)); n != "" {
			set[n] = true
		}
	}
	if !without && !set[policy.RootPolicy] {
		set[defaultPolicy] = true
	}
	if len(set) > maxPolicies {
		return nil, bad("at most %d policies", maxPolicies)
	}
	return slices.Sorted(maps.Keys(set)), nil
}
