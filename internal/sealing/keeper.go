package sealing

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/secret"
)

// Bounds of a keeper.
const (
	AttemptLife = 15 * time.Minute // after its last share a collection is forgotten
	maxWrong    = 20               // shares of one source that are refused in a minute; then all of it are, until it is over
	maxSources  = 10_000           // that are told apart
)

// Config is what a Keeper needs.
type Config struct {
	Named map[string]seal.Sealer // those of the configuration, by name
	Wraps map[string][]byte      // the wrap set as the store had it at the start
	Hold  time.Duration          // how long the server goes on when no root that opens by itself can be reached; 0: for ever
	Seal  func(Reason)           // seals the server, because somebody told it to or by itself; it is not waited for
	Every time.Duration          // between two looks of the watch; default 1 min, or a quarter of the hold time
	Now   func() time.Time
	Log   *slog.Logger
	// Address is the host:port that callers know this server by; nil: it has none.
	Address func() string
}

// Keeper keeps the root of trust of one server. Safe for concurrent use.
type Keeper struct {
	Config
	enough chan struct{} // has one when shares suffice

	changing sync.Mutex // held over a change of the set, so that there is one at a time

	mu     sync.Mutex // guards what follows
	guard  *guard.Guard
	set    Set
	seen   time.Time // of the last share
	wrong  wrongs
	health map[string]health
	since  time.Time // when the last root that opens by itself was reached
	why    Reason    // that the server is sealed for; empty: it is open, or nobody has asked yet
	rekey  *rekey
}

// NewKeeper makes the keeper of a server that is still sealed.
func NewKeeper(c Config) *Keeper {
	if c.Every == 0 {
		c.Every = watchEvery
		if c.Hold > 0 {
			c.Every = min(c.Every, max(c.Hold/4, leastWait))
		}
	}
	return &Keeper{Config: c, enough: make(chan struct{}, 1), set: Members(c.Wraps, c.Named), health: map[string]health{}, wrong: wrongs{}}
}

// Sealers are what the store may open with now.
func (k *Keeper) Sealers() []seal.Sealer {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set.Sealers()
}

// Missing is a member of the wrap set that cannot be asked here, and why; "" when there is none.
func (k *Keeper) Missing() (id, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	missing := slices.Sorted(maps.Keys(k.set.Missing))
	if len(missing) == 0 {
		return "", ""
	}
	return missing[0], k.set.Missing[missing[0]]
}

// Enough has a value each time that shares suffice.
func (k *Keeper) Enough() <-chan struct{} { return k.enough }

// Opened tells the keeper that the store is open. The shares are forgotten.
func (k *Keeper) Opened(g *guard.Guard) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.guard, k.since, k.why = g, k.Now(), ""
	k.clear()
	g.SetFormer(k.former)
}

// former makes a sealer that left the wrap set; nil when the configuration does not name it and its wrap does not say what it is.
func (k *Keeper) former(id string, blob []byte) seal.Sealer {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, _ := Members(map[string][]byte{id: blob}, k.Named).find(id)
	return s
}

// expire forgets shares that have been there for too long. Call with mu held.
func (k *Keeper) expire() {
	if k.Now().Sub(k.seen) > AttemptLife {
		k.clear()
	}
}

// clear forgets all shares that are there. Call with mu held.
func (k *Keeper) clear() {
	for _, p := range k.set.People {
		p.Clear()
	}
}

// Kind is the kind of the member that the wrap set is as weak as: local, transit, pkcs11, shamir or all.
func (k *Keeper) Kind() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return kind(Weakest(k.Wraps))
}

// Sealed says whether the store is still closed, or is being closed again.
func (k *Keeper) Sealed() bool { return k.opened() == nil || k.Why() != "" }

func (k *Keeper) opened() *guard.Guard {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.guard
}

// Unseal takes a share. While the server is sealed enough of them open it; afterwards enough of them prove that they would, and count for a
// removal until AttemptLife is over. Whoever has a genuine share may bring it; from is where it comes from, so that the wrong ones of somebody else keep
// nobody out. fault.ShareWrong, ShareForeign, ShareDuplicate, Conflict, Unavailable after too many wrong ones.
func (k *Keeper) Unseal(ctx context.Context, from, attempt string, text secret.Bytes) (shamir.Progress, error) {
	if g := k.opened(); g != nil && len(g.Detected()) > 0 { // who wants to open must not find to have approved a recovery
		text.Destroy()
		return shamir.Progress{}, fault.New(fault.WrongState, "server").WithHint("it is open, in recovery mode; to approve a recovery: rotor server approve")
	}
	p, set, err := k.take(ctx, from, attempt, text)
	if err != nil || !p.Done() {
		return p, err
	}
	g := k.opened()
	if g == nil {
		select {
		case k.enough <- struct{}{}:
		default: // it is known already
		}
		return p, nil
	}
	return p, k.prove(ctx, g, set)
}

// Approve takes a share for something that custodians have to approve beside an open store. by is the member that they have opened, once
// enough are there; the shares are forgotten then. Errors as of Unseal, fault.NotFound when the wrap set has no shares, Sealed.
func (k *Keeper) Approve(ctx context.Context, from, attempt string, text secret.Bytes) (p shamir.Progress, by string, err error) {
	g := k.opened()
	if g == nil {
		text.Destroy()
		return p, "", fault.New(fault.Sealed, "server")
	}
	p, set, err := k.take(ctx, from, attempt, text)
	if err != nil || !p.Done() {
		return p, "", err
	}
	defer k.Forget()
	if err := k.prove(ctx, g, set); err != nil {
		return p, "", err
	}
	return p, k.memberOf(set).ID(), nil
}

// Forget forgets all shares that are there.
func (k *Keeper) Forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clear()
}

// Shares says how far the collections of shares are, those that have begun.
func (k *Keeper) Shares() (all []shamir.Progress) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.expire()
	for _, s := range k.set.People {
		p := s.Progress()
		p.Attempt = "" // whoever brought the first share was told
		all = append(all, p)
	}
	return all
}

// prove opens the wrap of the member that a set of shares belongs to.
func (k *Keeper) prove(ctx context.Context, g *guard.Guard, people *shamir.Sealer) error {
	s := k.memberOf(people)
	err := g.ProveSealer(ctx, s)
	k.note(s.ID(), err)
	return err
}

// memberOf is the member of the wrap set that a set of shares opens, itself or in a composition.
func (k *Keeper) memberOf(people *shamir.Sealer) seal.Sealer {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.set.Composed {
		if slices.Contains(c.Parts(), seal.Sealer(people)) {
			return c
		}
	}
	return people
}

// take adds a share to the set that it is of. An open server looks first whether another one has changed the wrap set; only a text that can be a share
// has it look, and too many wrong ones do not.
func (k *Keeper) take(ctx context.Context, from, attempt string, text secret.Bytes) (shamir.Progress, *shamir.Sealer, error) {
	share, err := k.parse(from, text)
	if err != nil {
		return shamir.Progress{}, nil, err
	}
	if g := k.opened(); g != nil {
		if now, err := g.Wraps(ctx); err == nil { // else what is known has to do
			k.refresh(now.Wraps)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Now()
	k.expire()
	for _, s := range k.set.People {
		if s.Set() != share.Set {
			continue
		}
		p, err := s.Add(attempt, share)
		if err == nil {
			k.seen = now
		} else if fault.CodeOf(err) == fault.ShareWrong {
			k.wrong.note(from, now)
		}
		return p, s, err
	}
	k.wrong.note(from, now)
	return shamir.Progress{}, nil, fault.New(fault.ShareForeign, share.Name()).WithHint("%s", k.sets())
}

// parse reads a share, unless there were too many wrong ones.
func (k *Keeper) parse(from string, text secret.Bytes) (shamir.Share, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Now()
	if k.wrong.over(from, now) {
		return shamir.Share{}, fault.New(fault.Unavailable, "shares").WithHint("%d wrong ones within a minute; wait for one", maxWrong)
	}
	share, err := shamir.ParseShare(text)
	if err != nil {
		k.wrong.note(from, now)
	}
	return share, err
}

// sets says whose shares are taken. Call with mu held.
func (k *Keeper) sets() string {
	if len(k.set.People) == 0 {
		return "no set of shares opens this server"
	}
	var names []string
	for _, s := range k.set.People {
		names = append(names, s.Set())
	}
	return "this server takes shares of set " + strings.Join(names, ", ")
}

// Reset forgets the shares of a collection. fault.Conflict.
func (k *Keeper) Reset(attempt string) (shamir.Progress, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := error(fault.New(fault.Conflict, "attempt "+attempt).WithHint("it was reset or has ended"))
	for _, s := range k.set.People {
		if e := s.Reset(attempt); e == nil {
			return s.Progress(), nil
		}
	}
	return shamir.Progress{}, err
}

// Member is one member of the wrap set as the status shows it.
type Member struct {
	ID, Kind        string
	Here, Automatic bool
	Opened          time.Time // zero: not since the start
	Error           string
}

// State is the root of trust as the status shows it.
type State struct {
	Sealed  bool
	Why     Reason // while it is sealed
	Shares  []shamir.Progress
	Members []Member
	Weakest string
	Warning string
	Rekey   Rekey
}

// State says how the root of trust is: to anybody whether the server is sealed and how many shares are there, to who may see the status
// the members as well.
func (k *Keeper) State(ctx context.Context, c policy.Caller) (State, error) {
	g := k.opened()
	k.mu.Lock()
	out := State{Sealed: g == nil || k.why != "", Why: k.why}
	for _, s := range k.set.People {
		if p := s.Progress(); g == nil || p.Have > 0 {
			p.Attempt = "" // whoever brought the first share was told
			out.Shares = append(out.Shares, p)
		}
	}
	k.mu.Unlock()
	if g == nil || !g.Allows(c, policy.ActStatus, policy.Resource{}) {
		return out, nil
	}
	now, err := g.Wraps(ctx)
	if err != nil {
		return out, err
	}
	set := k.refresh(now.Wraps)
	k.mu.Lock()
	defer k.mu.Unlock()
	out.Weakest, out.Warning, out.Rekey = Weakest(now.Wraps), k.warning(), k.rekey.view()
	for _, id := range slices.Sorted(maps.Keys(now.Wraps)) {
		_, here := set.find(id)
		h := k.health[id]
		m := Member{ID: id, Kind: kind(id), Here: here, Automatic: slices.ContainsFunc(set.Automatic, func(s seal.Sealer) bool { return s.ID() == id }), Opened: h.opened, Error: h.err}
		if !here {
			m.Error = set.Missing[id]
		}
		out.Members = append(out.Members, m)
	}
	return out, nil
}

// refresh follows the wrap set of an open store, which another server may have changed. While it is the same what collects shares stays.
func (k *Keeper) refresh(wraps map[string][]byte) Set {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !maps.EqualFunc(wraps, k.Wraps, func(a, b []byte) bool { return string(a) == string(b) }) {
		k.clear()
		k.Wraps, k.set = wraps, Members(wraps, k.Named)
		k.guard.SetSealers(k.set.Sealers())
	}
	return k.set
}

// SetNamed follows a change of the configuration. Members of the wrap set that it names no more cannot be asked from now on.
func (k *Keeper) SetNamed(named map[string]seal.Sealer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clear()
	k.Named, k.set = named, Members(k.Wraps, named)
	k.guard.SetSealers(k.set.Sealers())
}

// Change adds, removes or rotates a member of the wrap set, or notes that nobody has one any more that left it. sealer is a specification of New without shares, or an ID. fault.Invalid,
// NotFound, Exists, InUse, Unavailable, Conflict, Denied.
func (k *Keeper) Change(ctx context.Context, c policy.Caller, change, sealer string) error {
	g := k.opened()
	if g == nil {
		return fault.New(fault.Sealed, "server")
	}
	permit, err := g.Admit(ctx, c, policy.ActSeal, policy.Resource{})
	if err != nil {
		return err
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	now, err := g.Wraps(ctx)
	if err != nil {
		return err
	}
	set := k.refresh(now.Wraps)
	if change == "remove" || change == "gone" {
		id := sealer
		if s := k.Named[sealer]; s != nil {
			id = s.ID()
		}
		if change == "gone" {
			return g.SealerGone(ctx, permit, id)
		}
		return k.changed(ctx, g, g.RemoveSealer(ctx, permit, id, set.Sealers()))
	}
	s, there := set.find(sealer)
	if !there {
		if strings.Contains(sealer, shamir.Prefix) {
			return fault.New(fault.Invalid, "sealer "+sealer).WithHint("new shares are made by a rekey, which proves that they open before they count")
		}
		if s, _, _, err = New(sealer, k.Named); err != nil {
			return err
		}
	}
	switch change {
	case "add":
		return k.changed(ctx, g, g.AddSealer(ctx, permit, s))
	case "rotate":
		return k.changed(ctx, g, g.RotateSealer(ctx, permit, s))
	}
	return fault.New(fault.Invalid, "change").WithHint("add, remove, rotate or gone")
}

// changed follows a change that came through.
func (k *Keeper) changed(ctx context.Context, g *guard.Guard, err error) error {
	if err != nil {
		return err
	}
	now, err := g.Wraps(ctx)
	if err != nil {
		return err
	}
	k.refresh(now.Wraps)
	return nil
}

// Close seals the server because somebody with the right says so. fault.Denied, Sealed.
func (k *Keeper) Close(ctx context.Context, c policy.Caller) error {
	g := k.opened()
	if g == nil {
		return fault.New(fault.Sealed, "server")
	}
	permit, err := g.Admit(ctx, c, policy.ActSeal, policy.Resource{})
	if err != nil {
		return err
	}
	if err := permit.Release(ctx, map[string]string{"change": "seal"}); err != nil {
		return err
	}
	k.Log.WarnContext(ctx, "the server is sealed", "by", c.Name)
	k.seal(Told)
	return nil
}
