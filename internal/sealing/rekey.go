package sealing

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"

	"github.com/rotorkms/rotor/internal/fault"
	"github.com/rotorkms/rotor/internal/guard"
	"github.com/rotorkms/rotor/internal/policy"
	"github.com/rotorkms/rotor/internal/seal"
	"github.com/rotorkms/rotor/internal/seal/every"
	"github.com/rotorkms/rotor/internal/seal/shamir"
	"github.com/rotorkms/rotor/internal/secret"
)

// Phases of a rekey.
const (
	PhaseNone      = "none"
	PhaseAuthorize = "authorize" // enough of the old shares are needed
	PhaseVerify    = "verify"    // enough of the new shares have to come back
	PhaseDone      = "done"
)

// Rekey is how far the making of new shares is. What is in force stays so until all of it has been done.
type Rekey struct {
	Phase    string
	Attempt  string
	Progress shamir.Progress
	Shares   []shamir.Share // the new ones, in the answer that makes them and nowhere else
	Sealer   string         // what they make
	Server   string         // host:port of the server in whose memory it is
}

// Texts are the new shares as they are printed.
func (r Rekey) Texts() []string { return shamir.Texts(r.Shares) }

// Progress is how far a collection of shares is.
type Progress = shamir.Progress

// rekey is one that goes on. It lives in the memory of one server and ends with it, as shares are kept nowhere: until the one commit that puts the new
// set into the place of the old one nothing has changed, and after it all has.
type rekey struct {
	attempt string
	server  string
	spec    string
	oldID   string         // the member that goes; empty: none
	old     *shamir.Sealer // collects the old shares; nil: there are none
	oldAll  seal.Sealer    // the member that they open
	next    seal.Sealer    // nil before the old shares suffice
	people  *shamir.Sealer // collects the new shares
}

func (r *rekey) view() Rekey {
	switch {
	case r == nil:
		return Rekey{Phase: PhaseNone}
	case r.next == nil:
		return Rekey{Phase: PhaseAuthorize, Server: r.server, Attempt: r.attempt, Progress: r.old.Progress()}
	}
	return Rekey{Phase: PhaseVerify, Server: r.server, Attempt: r.attempt, Progress: r.people.Progress(), Sealer: r.next.ID()}
}

// StartRekey begins to make new shares, THRESHOLD/TOTAL. with names sealers that are to be needed beside them, joined by "+"; empty: those
// that are needed now; "none": none. If a set of shares opens now it is replaced, once enough of its shares have agreed. fault.Invalid, InUse when one goes on, Denied, Sealed.
func (k *Keeper) StartRekey(ctx context.Context, c policy.Caller, sizes, with string) (Rekey, error) {
	g, permit, err := k.admit(ctx, c)
	if err != nil {
		return Rekey{}, err
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	if _, _, err := shamir.ParseSizes(sizes); err != nil {
		return Rekey{}, err
	}
	spec := shamir.Prefix + sizes
	if with == "" {
		with = k.companions()
	}
	if with != "" && with != "none" {
		spec += "+" + with
	}
	if _, _, _, err := New(spec, k.Named); err != nil {
		return Rekey{}, err
	}
	now, err := g.Wraps(ctx)
	if err != nil {
		return Rekey{}, err
	}
	set := k.refresh(now.Wraps)
	k.mu.Lock()
	going := k.rekey
	k.mu.Unlock()
	if going != nil {
		return going.view(), fault.New(fault.InUse, "rekey").WithHint("one goes on, attempt %s; finish it or abort it", going.attempt)
	}
	r := &rekey{attempt: rand.Text()[:16], server: k.server(), spec: spec}
	if len(set.People) > 1 {
		return Rekey{}, fault.New(fault.InUse, "rekey").WithHint("there are %d sets of shares; remove all but one first", len(set.People))
	}
	if len(set.People) == 0 {
		return k.makeShares(ctx, permit, r)
	}
	if err := r.collectFrom(set); err != nil {
		return Rekey{}, err
	}
	k.setRekey(r)
	return r.view(), nil
}

// collectFrom has the old shares collected by a sealer of the rekey's own: those that an unsealing collects do not agree to anything.
func (r *rekey) collectFrom(set Set) error {
	old, err := shamir.Open(set.People[0].Public())
	if err != nil {
		return err
	}
	r.old, r.oldAll, r.oldID = old, old, old.ID()
	if len(set.Composed) == 0 {
		return nil
	}
	c := set.Composed[0]
	r.oldID = c.ID()
	parts := c.Parts()
	for i, p := range parts {
		if p.ID() == old.ID() {
			parts[i] = old
		}
	}
	r.oldAll, err = every.New(parts...)
	return err
}

func (k *Keeper) setRekey(r *rekey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rekey = r
}

func (k *Keeper) admit(ctx context.Context, c policy.Caller) (*guard.Guard, *guard.Permit, error) {
	g := k.opened()
	if g == nil {
		return nil, nil, fault.New(fault.Sealed, "server")
	}
	permit, err := g.Admit(ctx, c, policy.ActSeal, policy.Resource{})
	return g, permit, err
}

// makeShares makes the new set and gives its shares out, which the log tells before the answer.
func (k *Keeper) makeShares(ctx context.Context, permit *guard.Permit, r *rekey) (Rekey, error) {
	next, people, shares, err := New(r.spec, k.Named)
	if err != nil {
		return Rekey{}, err
	}
	if err := permit.Release(ctx, map[string]string{"change": "shares of set " + people.Set(), "sealer": next.ID()}); err != nil {
		return Rekey{}, err
	}
	r.next, r.people = next, people
	k.setRekey(r)
	out := r.view()
	out.Shares = shares
	return out, nil
}

// Rekey takes a share: of the old set until enough of them have agreed, which makes the new shares and answers them, once; then of the new
// set until enough of them have come back, which puts it in the place of the old one. fault.ShareWrong, ShareForeign, ShareDuplicate,
// Conflict when another attempt goes on, NotFound when none does, Denied, Sealed.
func (k *Keeper) Rekey(ctx context.Context, c policy.Caller, attempt string, text secret.Bytes) (Rekey, error) {
	g, permit, err := k.admit(ctx, c)
	if err != nil {
		return Rekey{}, err
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	r, err := k.going(attempt)
	if err != nil {
		return Rekey{}, err
	}
	share, err := shamir.ParseShare(text)
	if err != nil {
		return r.view(), err
	}
	collector := r.people
	if r.next == nil {
		collector = r.old
	}
	p, err := collector.Add("", share)
	if err != nil || !p.Done() {
		return r.view(), err
	}
	if r.next == nil {
		err := g.ProveSealer(ctx, r.oldAll)
		r.old.Clear()
		if err != nil {
			return r.view(), err
		}
		return k.makeShares(ctx, permit, r)
	}
	return k.install(ctx, g, permit, r)
}

// install puts the new set into the wrap set. Its wrap is opened with the shares that came back before the commit.
func (k *Keeper) install(ctx context.Context, g *guard.Guard, permit *guard.Permit, r *rekey) (Rekey, error) {
	defer r.people.Clear()
	var err error
	if r.oldID == "" {
		err = g.AddSealer(ctx, permit, r.next)
	} else {
		err = g.ReplaceSealer(ctx, permit, r.oldID, r.next)
	}
	if err != nil {
		return r.view(), err
	}
	k.setRekey(nil)
	out := Rekey{Phase: PhaseDone, Server: r.server, Attempt: r.attempt, Progress: r.people.Progress(), Sealer: r.next.ID()}
	return out, k.changed(ctx, g, nil)
}

// AbortRekey gives up the one that goes on; the new shares are worth nothing then. fault.NotFound, Conflict, Denied, Sealed.
func (k *Keeper) AbortRekey(ctx context.Context, c policy.Caller, attempt string) (Rekey, error) {
	_, _, err := k.admit(ctx, c)
	if err != nil {
		return Rekey{}, err
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	r, err := k.going(attempt)
	if err != nil {
		return Rekey{}, err
	}
	for _, s := range []*shamir.Sealer{r.old, r.people} {
		if s != nil {
			s.Clear()
		}
	}
	k.setRekey(nil)
	return Rekey{Phase: PhaseNone}, nil
}

// server is the host:port that callers know this server by.
func (k *Keeper) server() string {
	if k.Address == nil {
		return ""
	}
	return k.Address()
}

// named is the server's address in a hint.
func (k *Keeper) named() string {
	if at := k.server(); at != "" {
		return ", " + at
	}
	return ""
}

func (k *Keeper) going(attempt string) (*rekey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.rekey == nil:
		return nil, fault.New(fault.NotFound, "rekey").WithHint("none goes on at this server%s: one lives in the memory of the server that it was started at, and ends with that; "+
			"what opens now is what rotor server sealer list shows. Name the server with --address, or start again", k.named())
	case attempt != "" && attempt != k.rekey.attempt:
		return nil, fault.New(fault.Conflict, "attempt "+attempt).WithHint("attempt %s goes on", k.rekey.attempt)
	}
	return k.rekey, nil
}

// companions are the names of the sealers that are needed beside the shares now, joined by "+".
func (k *Keeper) companions() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, c := range k.set.Composed {
		for _, p := range c.Parts() {
			for name, s := range k.Named {
				if s.ID() == p.ID() {
					names = append(names, name)
				}
			}
		}
	}
	slices.Sort(names)
	return strings.Join(names, "+")
}
