package authn

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/secret"
	"github.com/rotorkms/rotor/internal/store"
)

// SessionMark is what the tokens of sessions begin with: they are "rotor_session_", the slot of their record in hex, "_" and 32 random bytes in base64url.
const (
	SessionMark   = "rotor_session_"
	sessionPrefix = "authn/session/"
	slotDigits    = 6
	secretChars   = 43 // of 32 bytes in base64url
)

// Bounds of sessions.
const (
	maxSessions      = 100_000 // that live at a time
	maxOfCaller      = 100     // sessions of one caller; another one ends the oldest
	MaxSessionLife   = 24 * time.Hour
	minIdle          = time.Minute
	touches          = 4 // how often in an idle limit its use is written, at most
	maxSlotsSearched = 64
)

// session is the stored record. The token itself is not kept.
type session struct {
	ID         string            `json:"id"`
	Hash       []byte            `json:"hash"` // SHA-256 of the token: it has 256 random bits, so nothing slower is needed
	Kind       policy.Kind       `json:"kind"`
	Name       string            `json:"name"`
	SPIFFEID   string            `json:"spiffe_id,omitempty"`
	Instance   string            `json:"instance,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Source     source            `json:"source"`
	Address    string            `json:"address"`
	Created    time.Time         `json:"created"`
	Used       time.Time         `json:"used"` // coarse: at most a quarter of Idle behind
	Expires    time.Time         `json:"expires"`
	Idle       time.Duration     `json:"idle_ns"`
}

// source is what a session was made of. When that ends, the session does.
type source struct {
	Credential  string `json:"credential,omitempty"` // its ID
	Issuer      string `json:"issuer,omitempty"`     // the configured name
	Certificate string `json:"certificate,omitempty"`
	Instance    string `json:"instance,omitempty"`
	Admin       string `json:"admin,omitempty"`
	Generation  uint64 `json:"generation,omitempty"` // of an instance or administrator
	Serial      string `json:"serial,omitempty"`     // of a foreign certificate, in hex

	Until time.Time `json:"until,omitzero"` // when it ends itself
}

// String names a source in lists.
func (s source) String() string {
	for _, e := range []struct{ kind, name string }{
		{"credential", s.Credential}, {"issuer", s.Issuer}, {"certificate", s.Certificate}, {"instance", s.Instance}, {"admin", s.Admin},
	} {
		if e.name != "" {
			return e.kind + "/" + e.name
		}
	}
	return ""
}

func (s session) caller() policy.Caller {
	return policy.Caller{
		Kind: s.Kind, Name: s.Name, SPIFFEID: s.SPIFFEID, Instance: s.Instance, Attributes: s.Attributes, Generation: s.Source.Generation, Session: s.ID,
	}
}

// end is when the session is over, if it is not used any more.
func (s session) end() time.Time {
	if idle := s.Used.Add(s.Idle); idle.Before(s.Expires) {
		return idle
	}
	return s.Expires
}

// Session is what lists tell of one.
type Session struct {
	ID, Caller, Source, Address string
	Created, Used, Expires      time.Time
}

// Ticket is a new session.
type Ticket struct {
	Token   string // shown once
	ID      string
	Caller  policy.Caller
	Expires time.Time
	Idle    time.Duration
}

// notSession is the one answer to every bearer that is none.
func notSession() error {
	return fault.New(fault.Unauthenticated, "session").WithHint("it is unknown, expired or revoked: log in again")
}

// parseSession reads the slot of a session token. fault.Unauthenticated.
func parseSession(token string) (slot string, err error) {
	rest, ok := strings.CutPrefix(token, SessionMark)
	if !ok || len(rest) != slotDigits+1+secretChars || rest[slotDigits] != '_' {
		return "", notSession()
	}
	slot = rest[:slotDigits]
	if n, err := strconv.ParseUint(slot, 16, 32); err != nil || n >= maxSessions || slotName(n) != slot {
		return "", notSession()
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(rest[slotDigits+1:]); err != nil {
		return "", notSession()
	}
	return slot, nil
}

func slotName(n uint64) string { return fmt.Sprintf("%0*x", slotDigits, n) }

// Session names the caller behind a session token that comes from an address, and when the session ends at the latest. A token that this
// server has not heard of is looked for in the store, as another may have made it a moment ago. fault.Unauthenticated.
func (a *Authority) Session(ctx context.Context, token, address string) (policy.Caller, time.Time, error) {
	slot, err := parseSession(token)
	if err != nil {
		return policy.Caller{}, time.Time{}, err
	}
	hash := sha256.Sum256([]byte(token))
	s, rev, ok := a.known(slot, hash[:])
	if !ok {
		if s, rev, err = a.lookFor(ctx, slot, hash[:]); err != nil {
			return policy.Caller{}, time.Time{}, err
		}
	}
	now := a.Now()
	if !now.Before(s.end()) || !a.lives(ctx, s.Source, address) {
		return policy.Caller{}, time.Time{}, notSession()
	}
	a.touch(ctx, slot, s, rev, now)
	return s.caller(), s.Expires, nil
}

// lookFor finds a session that this server has not heard of, as another may have made it a moment ago. All who ask at the same time share one look at
// how far the store is, so that strangers with made-up tokens cost no more. fault.Unauthenticated.
func (a *Authority) lookFor(ctx context.Context, slot string, hash []byte) (session, store.Rev, error) {
	last, err := a.Guard.CaughtUp(ctx, strings.TrimSuffix(prefix, "/"))
	if err != nil {
		return session{}, 0, err
	}
	if uint64(last) <= a.heard.Load() {
		if s, rev, ok := a.known(slot, hash); ok {
			return s, rev, nil
		}
		return session{}, 0, notSession()
	}
	s, cond, err := guard.Fetch[session](ctx, a.Guard, sessionPrefix+slot)
	if err != nil {
		return session{}, 0, err
	}
	if cond.Rev == 0 || subtle.ConstantTimeCompare(s.Hash, hash) != 1 {
		return session{}, 0, notSession()
	}
	return s, cond.Rev, a.refresh(ctx, cond.Path)
}

// known looks into the view. A record of the slot that is another session's does not count, as the store may have a newer one.
func (a *Authority) known(slot string, hash []byte) (session, store.Rev, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	r, ok := a.sessions.Get(slot)
	return r.Value, r.Rev, ok && subtle.ConstantTimeCompare(r.Value.Hash, hash) == 1
}

// lives says whether what a session was made of would still be taken.
func (a *Authority) lives(ctx context.Context, s source, address string) bool {
	switch {
	case s.Credential != "":
		r, ok := a.credential(ctx, s.Credential)
		return ok && r.Revoked.IsZero() && r.admits(address) && a.Now().Before(r.Expires)
	case s.Issuer != "":
		return a.access.Load().issuer(s.Issuer) != nil
	case s.Certificate != "":
		ca := a.access.Load().certificate(s.Certificate)
		return ca != nil && !ca.revoked(s.Serial)
	case s.Instance != "":
		return !a.isRemoved(s.Instance, s.Generation)
	case s.Admin != "":
		return !a.adminRemoved(s.Admin, s.Generation)
	}
	return false
}

// credential finds a credential, also one that another server made a moment ago.
func (a *Authority) credential(ctx context.Context, id string) (credential, bool) {
	known := func() (guard.Row[credential], bool, bool) {
		a.mu.RLock()
		defer a.mu.RUnlock()
		r, ok := a.credentials.Rows[id]
		return r, ok, ok && !r.Deleted
	}
	r, seen, there := known()
	if !seen && a.refresh(ctx, credentialPrefix+id) == nil {
		r, _, there = known()
	}
	return r.Value, there
}

// touch writes the use of a session, a few times in its idle limit. That it cannot is no reason to refuse: the session ends earlier then.
func (a *Authority) touch(ctx context.Context, slot string, s session, rev store.Rev, now time.Time) {
	if now.Sub(s.Used) < s.Idle/touches {
		return
	}
	if _, busy := a.touching.LoadOrStore(slot, true); busy {
		return
	}
	defer a.touching.Delete(slot)
	s.Used = now.UTC()
	w, err := guard.Put(sessionPrefix+slot, s)
	if err != nil {
		return
	}
	p := a.Guard.Vouch(s.caller(), "session.use", "session")
	_, _ = a.commit(ctx, p, []guard.Cond{{Path: w.Path, Rev: rev}}, []guard.Write{w}, map[string]string{"session": s.ID}) // see above
}

// newSession commits a session for a caller who was authenticated, together with what the authentication itself has to write.
func (a *Authority) newSession(ctx context.Context, c policy.Caller, src source, address string, conds []guard.Cond, writes []guard.Write) (Ticket, error) {
	limits, now := a.access.Load().sessions, a.Now().UTC()
	s := session{
		ID: hex.EncodeToString(secret.Random(8).Reveal()), Kind: c.Kind, Name: c.Name, SPIFFEID: c.SPIFFEID, Instance: c.Instance, Attributes: c.Attributes,
		Source: src, Address: address, Created: now, Used: now, Expires: now.Add(limits.Life), Idle: limits.Idle,
	}
	if !src.Until.IsZero() && src.Until.Before(s.Expires) {
		s.Expires = src.Until.UTC()
	}
	slot, rev, err := a.freeSlot(c.Name, now)
	if err != nil {
		return Ticket{}, err
	}
	random := secret.Random(32)
	defer random.Destroy()
	token := SessionMark + slot + "_" + base64.RawURLEncoding.EncodeToString(random.Reveal())
	hash := sha256.Sum256([]byte(token))
	s.Hash = hash[:]
	w, err := guard.Put(sessionPrefix+slot, s)
	if err != nil {
		return Ticket{}, err
	}
	p := a.Guard.Vouch(c, "login", src.String())
	_, err = a.commit(ctx, p, append(conds, guard.Cond{Path: w.Path, Rev: rev}), append(writes, w), map[string]string{"session": s.ID, "address": address})
	if fault.CodeOf(err) == fault.Conflict {
		if err := a.refresh(ctx, w.Path); err != nil { // another server took the slot
			return Ticket{}, err
		}
	}
	if err != nil {
		return Ticket{}, err
	}
	return Ticket{Token: token, ID: s.ID, Caller: s.caller(), Expires: s.Expires, Idle: s.Idle}, nil
}

// refresh brings one record into the view before the watch does.
func (a *Authority) refresh(ctx context.Context, path string) error {
	rec, err := a.Guard.Get(ctx, path)
	if fault.CodeOf(err) == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return a.take(guard.Change{Record: rec}, false)
}

// freeSlot finds a record that a new session may take: that of the caller's oldest one when it has too many, else one that is over, else a
// new one. Slots are used again because the log remembers every path for ever. fault.TooLarge.
func (a *Authority) freeSlot(name string, now time.Time) (slot string, rev store.Rev, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slot, r, full := a.oldest(name, now); full {
		return slot, r.Rev, nil
	}
	n := uint64(len(a.sessions.Rows)) // slots are taken in order, so that is about their number
	for i := range uint64(maxSlotsSearched) {
		slot := slotName((a.cursor + i) % (n + 1))
		r, there := a.sessions.Rows[slot]
		if !there || !r.Deleted && !now.Before(r.Value.end()) {
			a.cursor = (a.cursor + i + 1) % (n + 1)
			return slot, r.Rev, nil
		}
	}
	a.cursor += maxSlotsSearched
	for ; n < maxSessions; n++ {
		if _, there := a.sessions.Rows[slotName(n)]; !there {
			return slotName(n), 0, nil
		}
	}
	return "", 0, fault.New(fault.TooLarge, "sessions").WithHint("at most %d at a time", maxSessions)
}

// oldest finds the caller's oldest session. Call with mu held.
func (a *Authority) oldest(name string, now time.Time) (slot string, r guard.Row[session], full bool) {
	n := 0
	for id, other := range a.sessions.Rows {
		if other.Deleted || other.Value.Name != name || !now.Before(other.Value.end()) {
			continue
		}
		if n++; slot == "" || other.Value.Created.Before(r.Value.Created) {
			slot, r = id, other
		}
	}
	return slot, r, n >= maxOfCaller
}

// Sessions lists the sessions of a caller, of every caller, or the asker's own, for which no right is needed. fault.Unauthenticated, Denied.
func (a *Authority) Sessions(ctx context.Context, c policy.Caller, name string, all bool) ([]Session, error) {
	if c.IsZero() {
		return nil, fault.New(fault.Unauthenticated, "")
	}
	if all || name != "" && name != c.Name {
		if _, err := a.Guard.Admit(ctx, c, policy.ActSessions, policy.Resource{}); err != nil {
			return nil, err
		}
	} else {
		name = c.Name
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []Session
	for _, r := range a.sessions.Rows {
		s := r.Value
		if r.Deleted || !a.Now().Before(s.end()) || !all && s.Name != name {
			continue
		}
		out = append(out, Session{s.ID, s.Name, s.Source.String(), s.Address, s.Created, s.Used, s.Expires})
	}
	slices.SortFunc(out, func(x, y Session) int { return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID)) })
	return out, nil
}

// Logout ends the session that the request showed. fault.Invalid without one.
func (a *Authority) Logout(ctx context.Context, c policy.Caller) error {
	if c.Session == "" {
		return fault.New(fault.Invalid, "session").WithHint("the request showed a certificate, not a session")
	}
	p := a.Guard.Vouch(c, "logout", "session")
	for _, slot := range a.slotsOf(func(s session) bool { return s.ID == c.Session }) {
		if _, err := a.endSession(ctx, p, slot, func(s session) bool { return s.ID == c.Session }); err != nil {
			return err
		}
	}
	return nil
}

// RevokeSessions ends one session, or all of a caller. One's own need no right. fault.Invalid, Denied, NotFound for an ID that is of no session.
func (a *Authority) RevokeSessions(ctx context.Context, c policy.Caller, id, name string) (int, error) {
	if c.IsZero() {
		return 0, fault.New(fault.Unauthenticated, "")
	}
	if (id == "") == (name == "") {
		return 0, fault.New(fault.Invalid, "session").WithHint("name a session or a caller")
	}
	pick := func(s session) bool { return id != "" && s.ID == id || name != "" && s.Name == name }
	own := func(s session) bool { return pick(s) && s.Name == c.Name }
	p := a.Guard.Vouch(c, policy.ActSessionRevoke, "own")
	if name != c.Name && len(a.slotsOf(own)) == 0 {
		var err error
		if p, err = a.Guard.Admit(ctx, c, policy.ActSessionRevoke, policy.Resource{}); err != nil {
			return 0, err
		}
	}
	n, err := a.endSessions(ctx, p, pick)
	if err == nil && n == 0 && id != "" {
		err = fault.New(fault.NotFound, "session "+id)
	}
	return n, err
}

// slotsOf finds sessions in the view.
func (a *Authority) slotsOf(pick func(session) bool) (slots []string) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for slot, r := range a.sessions.Rows {
		if !r.Deleted && pick(r.Value) {
			slots = append(slots, slot)
		}
	}
	return slots
}

// endSessions ends sessions as the store has them now, so that none that another server has made is passed over.
func (a *Authority) endSessions(ctx context.Context, p *guard.Permit, pick func(session) bool) (ended int, err error) {
	records, _, err := a.Guard.List(ctx, sessionPrefix)
	if err != nil {
		return 0, err
	}
	for _, rec := range records {
		var s session
		if err := json.Unmarshal(rec.Value, &s); err != nil {
			return ended, fault.Wrap(fault.RecordTampered, rec.Path, err)
		}
		if !pick(s) {
			continue
		}
		done, err := a.endSession(ctx, p, strings.TrimPrefix(rec.Path, sessionPrefix), pick)
		if err != nil {
			return ended, err
		}
		if done {
			ended++
		}
	}
	return ended, nil
}

// endSession deletes the record in a slot if it is a session that is meant.
func (a *Authority) endSession(ctx context.Context, p *guard.Permit, slot string, pick func(session) bool) (ended bool, err error) {
	err = a.again(ctx, func() (store.Rev, error) {
		s, cond, err := guard.Fetch[session](ctx, a.Guard, sessionPrefix+slot)
		if err != nil || cond.Rev == 0 || !pick(s) {
			return 0, err
		}
		rev, err := a.commit(ctx, p, []guard.Cond{cond}, []guard.Write{{Path: cond.Path, Delete: true}}, map[string]string{"session": s.ID, "of": s.Name})
		ended = err == nil
		return rev, err
	})
	return ended, err
}

// inside says whether an address lies in one of some networks; none: everywhere.
func inside(address string, networks []netip.Prefix) bool {
	if len(networks) == 0 {
		return true
	}
	ip, err := netip.ParseAddr(address)
	return err == nil && slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(ip.Unmap().WithZone("")) })
}

// Own tells of the session that the request showed. fault.NotFound without one.
func (a *Authority) Own(_ context.Context, c policy.Caller) (Session, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, r := range a.sessions.Rows {
		if s := r.Value; !r.Deleted && s.ID == c.Session && c.Session != "" {
			return Session{s.ID, s.Name, s.Source.String(), s.Address, s.Created, s.Used, s.Expires}, nil
		}
	}
	return Session{}, fault.New(fault.NotFound, "session")
}
